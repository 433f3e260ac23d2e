"""What a reply must follow: the fields that say so, and the grammar they come to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from mlx_server.api.constraints import ANY_OBJECT, MAX_ALTERNATIVES, MAX_GRAMMAR_BYTES, alternatives
from mlx_server.api.fields import MAX_DEPTH
from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.api.openai_completions import OpenAICompletions
from mlx_server.core import Grammar
from mlx_server.errors import RequestError

SCHEMA = {"type": "object", "properties": {"z": {"const": "ä"}, "a": {"type": "integer"}}}
WRITTEN = '{"type":"object","properties":{"z":{"const":"ä"},"a":{"type":"integer"}}}'
GBNF = 'root ::= "yes" | "no"'
LARK = '%llguidance {}\nstart: "yes" | "no"'
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def chat(**fields: Any) -> Any:
    return OpenAIChat().parse({"messages": [{"role": "user", "content": "hi"}], **fields})


def completion(**fields: Any) -> Any:
    return OpenAICompletions().parse({"prompt": "hi", **fields})


def response_format(kind: str, **fields: Any) -> dict:
    return {"response_format": {"type": kind, **fields}}


def by_schema(param: str, text: str = WRITTEN) -> Grammar:
    return Grammar("json_schema", text, param)


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        (response_format("text"), None),
        ({"grammar": "", "regex": "", "json_schema": "", "guided_grammar": ""}, None),
        (response_format("json_object"), by_schema("response_format", ANY_OBJECT)),
        (response_format("json_object", schema=None), by_schema("response_format", ANY_OBJECT)),
        (response_format("json_object", schema=SCHEMA), by_schema("response_format.schema")),
        (
            response_format("json_object", schema=json.dumps(SCHEMA)),
            by_schema("response_format.schema"),
        ),
        (
            response_format("json_schema", json_schema={"schema": SCHEMA}),
            by_schema("response_format.json_schema.schema"),
        ),
        (
            response_format(
                "json_schema", json_schema={"name": "n", "strict": False, "schema": SCHEMA}
            ),
            by_schema("response_format.json_schema.schema"),
        ),
        (response_format("json_schema", schema=SCHEMA), by_schema("response_format.schema")),
        ({"json_schema": SCHEMA}, by_schema("json_schema")),
        ({"json_schema": json.dumps(SCHEMA)}, by_schema("json_schema")),
        ({"json_schema": {}}, by_schema("json_schema", "{}")),
        ({"json_schema": True}, by_schema("json_schema", "true")),
        ({"guided_json": SCHEMA}, by_schema("guided_json")),
        ({"structured_outputs": {"json": SCHEMA}}, by_schema("structured_outputs.json")),
        (
            {"structured_outputs": {"json_object": True}},
            by_schema("structured_outputs.json_object", ANY_OBJECT),
        ),
        ({"regex": "a+"}, Grammar("regex", "a+", "regex")),
        ({"guided_regex": "a+"}, Grammar("regex", "a+", "guided_regex")),
        (
            {"structured_outputs": {"regex": "a+", "json": None}},
            Grammar("regex", "a+", "structured_outputs.regex"),
        ),
        ({"grammar": GBNF}, Grammar("gbnf", GBNF, "grammar")),
        ({"grammar": LARK}, Grammar("lark", LARK, "grammar")),
        ({"guided_grammar": GBNF}, Grammar("gbnf", GBNF, "guided_grammar")),
        (
            {"structured_outputs": {"grammar": LARK}},
            Grammar("lark", LARK, "structured_outputs.grammar"),
        ),
        ({"guided_choice": ["a"]}, Grammar("lark", 'start: "a"', "guided_choice")),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            Grammar("lark", 'start: "a" | "b"', "structured_outputs.choice"),
        ),
    ],
)
def test_the_grammar_that_is_asked_for(parse: Any, fields: dict, expected: Grammar | None) -> None:
    assert parse(**fields).grammar == expected


@pytest.mark.parametrize(
    ("grammar", "kind"),
    [
        ("start: /a+/", "lark"),
        ("A: /a/\n  start: A", "lark"),
        ("?start : A\nA: /a/", "lark"),
        ("start[capture]: /a/", "lark"),
        ("start ::= [a]", "gbnf"),
        ('root ::= "x"\n# start: "y"', "gbnf"),
        ("starting: /a/", "gbnf"),
        ("root: /a/", "gbnf"),
    ],
)
def test_a_grammar_is_larks_by_its_start_rule(grammar: str, kind: str) -> None:
    assert chat(grammar=grammar).grammar.kind == kind


def deep(levels: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (response_format("xml"), "response_format.type"),
        (response_format("grammar", grammar=GBNF), "response_format.type"),
        (response_format("json_schema"), "response_format.json_schema"),
        (response_format("json_schema", json_schema=[]), "response_format.json_schema"),
        (response_format("json_schema", json_schema={}), "response_format.json_schema.schema"),
        (
            response_format("json_schema", json_schema={"name": 1, "schema": {}}),
            "response_format.json_schema.name",
        ),
        (
            response_format("json_schema", json_schema={"strict": 1, "schema": {}}),
            "response_format.json_schema.strict",
        ),
        *(
            (
                response_format("json_schema", json_schema={"schema": schema}),
                "response_format.json_schema.schema",
            )
            for schema in (
                [], 1, "", "{", "[]", '"a"', "1", "[" * 100_000, {"title": "\ud800"},
                '{"title": "\\ud800"}', '{"minimum": NaN}', deep(MAX_DEPTH + 1),
                {"title": "ä" * (MAX_GRAMMAR_BYTES // 2)},
            )
        ),
        (response_format("json_schema", schema=1), "response_format.schema"),
        (response_format("json_object", schema="x"), "response_format.schema"),
        ({"json_schema": "{"}, "json_schema"),
        ({"guided_choice": ["a"] * (MAX_ALTERNATIVES + 1)}, "guided_choice"),
        ({"guided_choice": ["a", "\ud800"]}, "guided_choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_named_by_its_path(parse: Any, fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"`{param}` must ")


def test_a_schema_may_be_as_deep_and_as_long_as_its_bounds() -> None:
    empty = len('{"title":""}')
    longest = {"title": "ä" * ((MAX_GRAMMAR_BYTES - empty) // 2)}
    for schema in (deep(MAX_DEPTH), longest):
        asked = response_format("json_schema", json_schema={"name": "n", "schema": schema})
        assert json.loads(chat(**asked).grammar.text) == schema


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({"grammar": GBNF, "regex": "a"}, "grammar", "regex"),
        (
            {"json_schema": {}, **response_format("json_object")},
            "response_format",
            "json_schema",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.regex",
            "structured_outputs.choice",
        ),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json", "guided_regex"),
    ],
)
def test_two_grammars_at_once_are_refused(fields: dict, first: str, second: str) -> None:
    with pytest.raises(RequestError, match=f"`{first}` and `{second}`") as caught:
        chat(**fields)
    assert caught.value.param == second


# ---------------------------------------------------------------- beside tools

NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_a_grammar_stays_where_the_reply_may_have_content(choice: str | None) -> None:
    request = chat(tools=TOOLS, tool_choice=choice, grammar=GBNF)
    assert request.grammar == Grammar("gbnf", GBNF, "grammar")
    assert (request.tool_use is None) == (choice == "none")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_a_call_that_must_be_made_leaves_no_room_for_a_grammar(fields: dict, field: str) -> None:
    with pytest.raises(RequestError, match=f"`regex` cannot be given where `{field}`") as caught:
        chat(**fields, regex="a")
    assert caught.value.param == "regex"
    request = chat(**fields, **response_format("json_schema", schema=SCHEMA))
    assert request.grammar is None and request.tool_use.required


# ---------------------------------------------------------------- alternatives


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=4), min_size=1, max_size=4)
)
def test_alternatives_are_what_a_reply_may_be(words: list[str]) -> None:
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_lark(alternatives(words))

    def accepts(reply: str) -> bool:
        matcher = LLMatcher(tokenizer, grammar)
        tokens = list(reply.encode())
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert all(accepts(word) for word in words)
    for other in ("".join(words), words[0] + "x", words[-1][:1]):
        assert accepts(other) == (other in words)
