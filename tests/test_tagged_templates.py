"""Families with tagged parameters: what their own templates render is read and is allowed."""

from __future__ import annotations

import json

import jsonschema
import pytest
from grammars import Bytes
from parsing import calls, content, read, run
from tagged_cases import (
    FAMILIES,
    TAGGED,
    TEMPLATES,
    TOOLS,
    TURNS,
    grammar,
    specials,
    template,
    written,
)

from mlx_server.text.parsers import tagged_families as families
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.minimax_m3 import MINIMAX_M3
from mlx_server.text.parsers.solar import SolarOpen

PYTHON_CONTAINERS = (families.SEED, families.MINICPM)
"""Their templates write lists and objects as Python does; the grammar holds them to JSON."""


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_template_is_of_its_family_alone(name):
    text = template(name)
    every = {syntax.name: syntax for syntax in FAMILIES.values()}.values()
    assert [s.name for s in every if s.matches(text, ())] == [FAMILIES[name].name]


def test_other_templates_are_of_none():
    template("Qwen3-Coder")  # skips where there are none
    others = [path for path in TEMPLATES.glob("*.jinja") if path.stem not in FAMILIES]
    assert others
    for path in others:
        matching = [s.name for s in FAMILIES.values() if s.matches(path.read_text(), ())]
        assert not matching, path.stem


@pytest.mark.parametrize("turn", sorted(TURNS))
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_the_template_renders_is_read(name, turn):
    text, expected = TURNS[turn]
    if isinstance(FAMILIES[name], SolarOpen):
        text = ""  # it leaves out what stands beside calls
    events = read(written(name, turn), FAMILIES[name].for_tools(TOOLS))
    assert calls(events) == expected
    assert content(events).strip() == text  # space behind the reasoning is that one's


@pytest.mark.parametrize("turn", sorted(set(TURNS) - {"two"}))
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_the_template_renders_is_allowed(name, turn):
    syntax = FAMILIES[name]
    if turn == "nested" and syntax in PYTHON_CONTAINERS:
        pytest.skip("written as Python")
    text = written(name, turn).strip()
    trees = turn == "nested" and syntax is MINIMAX_M3  # of unknown keys: only with its token
    for tokens in (specials(syntax), [])[: 1 if trees else 2]:
        vocabulary = Bytes(tokens)
        lark = grammar(syntax, TOOLS, vocabulary.specials)
        assert vocabulary.accepts(lark, text), vocabulary.accepted(lark, text)


BOUNDED = (
    ToolRule(
        "a.b-c",
        {
            "type": "object",
            "properties": {
                "kind": {"enum": ["x y", "<z>", 7, None]},
                "on": {"type": "boolean"},
                "n": {"type": "integer", "minimum": 0, "maximum": 99},
                "none": {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
                "list": {"type": "array", "items": {"enum": ["p", "q"]}, "maxItems": 3},
                "tree": {"$ref": "#/$defs/tree"},
            },
            "required": ["kind", "n", "tree"],
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {
                        "leaf": {"type": "boolean"},
                        "inner": {
                            "type": "array",
                            "items": {"$ref": "#/$defs/tree"},
                            "maxItems": 1,
                        },
                    },
                    "required": ["leaf"],
                    "additionalProperties": False,
                }
            },
        },
    ),
    ToolRule("now", {"type": "object", "properties": {}, "additionalProperties": False}),
    ToolRule("unlisted", {"type": "object", "properties": {}, "required": ["it"]}),
    ToolRule("text", {"type": "object", "properties": {"t": {"type": "string"}, "any": {}}}),
    ToolRule("anything", {}),
)
WALKED = (*TAGGED, SolarOpen())


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("syntax", WALKED, ids=lambda s: s.name)
def test_what_the_grammar_allows_is_a_call_of_a_tool(syntax, several):
    vocabulary = Bytes(specials(syntax))
    # At random hardly anything ends where letters may come instead.
    tools = BOUNDED[:-1] if syntax is MINIMAX_M3 else BOUNDED
    lark = grammar(syntax, tools, vocabulary.specials, several=several)
    for seed in range(8):
        text = vocabulary.walk(lark, seed)
        events = run([text], syntax.for_tools(tools))
        found = calls(events)
        assert not content(events).strip(), text
        assert len(found) == 1 if not several else found, text
        for name, arguments in found:
            (rule,) = (tool for tool in BOUNDED if tool.name == name)
            jsonschema.validate(arguments, dict(rule.schema))


@pytest.mark.parametrize("syntax", WALKED, ids=lambda s: s.name)
def test_without_tokens_of_its_own_the_family_is_held_to_the_same(syntax):
    tools = BOUNDED[:2]  # without free text: at random it would hardly ever end
    vocabulary, lark = Bytes(), Lark({})
    text = lark.grammar(syntax.section(lark, tools, several=False))
    for seed in range(4):
        events = run([vocabulary.walk(text, seed)], syntax.for_tools(tools))
        ((name, arguments),) = calls(events)
        (rule,) = (tool for tool in tools if tool.name == name)
        jsonschema.validate(arguments, dict(rule.schema))


def test_python_words_are_allowed_where_the_template_writes_them():
    rule = ToolRule("f", {"properties": {"on": {"type": "boolean"}}, "required": ["on"]})
    text = "<tool_call>\n<function=f>\n<parameter=on>\n%s\n</parameter>\n</function>\n</tool_call>"
    lark = grammar(families.QWEN_CODER, [rule], {})
    for word in ("True", "False", "true", "false"):
        assert Bytes().accepts(lark, text % word)
        found = calls(run([text % word], families.QWEN_CODER.for_tools([rule])))
        assert found == [("f", {"on": json.loads(word.lower())})]
    assert not Bytes().accepts(lark, text % "None")


def test_trees_of_tags_deeper_than_the_grammar_goes_are_json():
    closed = {"type": "object", "additionalProperties": False}
    deep: dict = closed | {"properties": {"leaf": {"type": "boolean"}}}
    for _ in range(8):
        deep = closed | {"properties": {"in": deep}, "required": ["in"]}
    rule = ToolRule("f", deep)
    vocabulary = Bytes(specials(MINIMAX_M3))
    text = vocabulary.walk(grammar(MINIMAX_M3, [rule], vocabulary.specials), seed=1)
    ((_, arguments),) = calls(run([text], MINIMAX_M3.for_tools([rule])))
    jsonschema.validate(arguments, deep)
