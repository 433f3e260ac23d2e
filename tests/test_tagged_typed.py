"""What a schema says of a value's type, and values that stand as text."""

from __future__ import annotations

import json

import pytest
from grammars import Bytes

from mlx_server.text.parsers import tagged_families as families
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.minimax_m3 import MINIMAX_M3
from mlx_server.text.parsers.typed import ALL_KINDS, as_json, kinds, resolved, size, standing_alone

ROOT = {
    "$defs": {"a/b": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}},
    "properties": {"n": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, ALL_KINDS),
        (True, ALL_KINDS),
        ({"type": "string"}, {"string"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["array", "null"]}, {"array", "null"}),
        ({"type": "string", "nullable": True}, {"string", "null"}),
        ({"type": "any"}, ALL_KINDS),
        ({"enum": ["a", 1, None]}, {"string", "integer", "number", "null"}),
        ({"const": [1.5]}, {"array"}),
        ({"anyOf": [{"type": "object"}, {"const": True}]}, {"object", "boolean"}),
        ({"oneOf": [{"type": "null"}, {}]}, ALL_KINDS),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"string"}),
        ({"$ref": "#/properties/n"}, {"integer"}),
        ({"$ref": "#/$defs/nowhere"}, ALL_KINDS),
        ({"$ref": "#/$defs/loop"}, ALL_KINDS),
        ({"$ref": "https://example.com/schema"}, ALL_KINDS),
    ],
)
def test_a_schema_says_which_types_a_value_may_have(schema, expected):
    assert kinds(schema, ROOT) == expected


def test_a_schema_that_is_a_part_of_itself_comes_to_an_end():
    root = {"anyOf": [{"$ref": "#"}, {"type": "string"}]}
    assert kinds({"$ref": "#"}, root) == ALL_KINDS
    assert resolved({"$ref": "#"}, {"$ref": "#"}) == {}


@pytest.mark.parametrize("reference", ["#/$defs/a~1b", "#/properties/n", "#/$defs/tree"])
def test_a_parameters_schema_stands_alone_with_what_it_refers_to(reference):
    root = ROOT | {"$defs": ROOT["$defs"] | {"tree": {"items": {"$ref": "#/properties/n"}}}}
    alone = standing_alone({"$ref": reference}, root)
    assert kinds(alone, alone) == kinds({"$ref": reference}, root)
    assert "#/properties" not in json.dumps(alone)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "(" * 100_000, "9" * 5000, "1e999", "{1: {2}}", "("]
)
def test_text_that_cannot_be_read_is_a_string_or_left_as_it_is(text):
    assert as_json(text, ALL_KINDS) in (json.dumps(text), text)


def test_a_value_is_held_to_a_schema_that_refers_to_another_parameter():
    same = {"$ref": "#/properties/n"}
    tool = ToolRule("f", {"properties": {"n": {"type": "integer"}, "m": same}, "required": ["m"]})
    lark = Lark({})
    grammar = lark.grammar(families.GLM.section(lark, [tool], several=False))
    call = "<tool_call>f<arg_key>m</arg_key><arg_value>%s</arg_value></tool_call>"
    assert Bytes().accepts(grammar, call % "12")
    assert not Bytes().accepts(grammar, call % "twelve")


def test_names_that_begin_alike_are_told_apart():
    value = {"properties": {"a": {"type": "string"}, "a.b": {"type": "integer"}}}
    tools = [ToolRule("get", value), ToolRule("get_all", value), ToolRule("get_all.now", {})]
    lark = Lark({})
    grammar = lark.grammar(families.GLM.section(lark, tools, several=False))
    a = "<arg_key>a</arg_key><arg_value>x</arg_value>"
    b = "<arg_key>a.b</arg_key><arg_value>1</arg_value>"
    for name in ("get", "get_all"):
        for parameters in ("", a, b, a + b):
            assert Bytes().accepts(grammar, f"<tool_call>{name}{parameters}</tool_call>")
        assert not Bytes().accepts(grammar, f"<tool_call>{name}{b}{a}</tool_call>")
    assert Bytes().accepts(grammar, f"<tool_call>get_all.now{a}</tool_call>")


@pytest.mark.parametrize("times", [1, 3])
def test_grammars_of_schemas_that_are_a_part_of_themselves_are_made(times):
    again = [{"$ref": "#/$defs/a"}] * times
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"anyOf": [*again, {"type": "null"}]}},
    }
    for syntax in (families.GLM, MINIMAX_M3):
        lark = Lark({})
        assert syntax.section(lark, [ToolRule("f", schema)], several=False)


@pytest.mark.parametrize("leaf", [True, {}, {"type": "string"}, {"$ref": "#/$defs/a~1b"}])
@pytest.mark.parametrize("depth", range(14, 19))
def test_a_length_is_looked_for_in_alternatives_of_any_depth(leaf, depth):
    schema = leaf
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "integer"}]}
    assert size(schema, ROOT) == (0, None)
    assert size({"oneOf": [{"minLength": 2, "maxLength": 3}, {"type": "null"}]}, ROOT) == (2, 3)
