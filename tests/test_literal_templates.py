"""Families of their own kind: what their templates render is read and is allowed."""

from __future__ import annotations

import jsonschema
import pytest
from grammars import Bytes
from literal_cases import FAMILIES, OTHERS, SYNTAXES, TEMPLATES, TOOLS, TURNS, source
from parsing import calls, content, read, run

from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.tagged import Tagged

CASES = [
    (name, turn)
    for name, family in FAMILIES.items()
    for turn in TURNS
    if turn not in family.lacks and len(TURNS[turn]) <= family.most
]


def test_a_template_is_of_its_family_alone():
    source("Kimi-K3")  # skips where there are none
    own = {f.template: f.syntax.name for f in FAMILIES.values() if f.template} | OTHERS
    for path in TEMPLATES.glob("*.jinja"):
        found = [syntax.name for syntax in SYNTAXES if syntax.matches(path.read_text(), ())]
        assert found == ([own[path.stem]] if path.stem in own else []), path.stem


@pytest.mark.parametrize(
    ("template", "vocabulary", "name"),
    [
        ("… put it in the format of [func_name1(params_name1=params_value1, …)]", (), "pythonic"),
        ("{{ '<start_function_call>call:' + name + '{' }}", (), "functiongemma"),
        ("{{ message.content }}", ("<|tool_call_start|>",), "lfm2"),
    ],
)
def test_what_no_template_at_hand_shows(template, vocabulary, name):
    assert [s.name for s in SYNTAXES if s.matches(template, vocabulary)] == [name]


@pytest.mark.parametrize(("name", "turn"), CASES)
def test_what_the_template_renders_is_read(name, turn):
    family, expected = FAMILIES[name], TURNS[turn]
    said = "Let me see." if family.keeps else ""
    events = read(family.written(expected, said), family.syntax.for_tools(TOOLS))
    assert calls(events) == expected
    assert content(events) == said


@pytest.mark.parametrize(("name", "turn"), CASES)
def test_what_the_template_renders_is_allowed(name, turn):
    family = FAMILIES[name]
    text = family.written(TURNS[turn])
    for tokens in (family.tokens, []):
        vocabulary = Bytes(tokens)
        lark = Lark(vocabulary.specials)
        grammar = lark.grammar(family.syntax.calls(lark, TOOLS))
        assert vocabulary.accepts(grammar, text), vocabulary.accepted(grammar, text)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_is_cut_gives_what_it_has(name):
    family = FAMILIES[name]
    syntax = family.syntax.for_tools(TOOLS)
    for turn in ("quotes", "nested"):
        ((called, _),) = TURNS[turn]
        text = family.written(TURNS[turn])
        whole = "".join(e.text for e in run([text], syntax) if isinstance(e, CallPiece))
        known = text.index(called + family.known) + len(called + family.known)
        for end in range(1, len(text)):
            events = run([text[:end]], syntax)
            starts = [event.name for event in events if isinstance(event, CallStart)]
            assert starts == [called] or (end < known and not starts), text[:end]
            pieces = "".join(e.text for e in events if isinstance(e, CallPiece))
            assert whole.startswith(pieces), text[:end]


# ---------------------------------------------------------------- random walks

_TREE = {
    "type": "object",
    "properties": {
        "leaf": {"type": "boolean"},
        "kinds": {"type": "array", "items": {"enum": ["p", "q r"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["leaf"],
    "additionalProperties": False,
}
BOUNDED = (
    ToolRule(
        "a.b-c",
        {
            "type": "object",
            "properties": {
                "kind": {"enum": ["x y", "it's", 7, None]},
                "on": {"type": "boolean"},
                "n": {"type": "integer", "minimum": 0, "maximum": 99},
                "none": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
                "tree": {"$ref": "#/$defs/tree"},
                "trees": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            },
            "required": ["kind", "n", "tree"],
            "additionalProperties": False,
            "$defs": {"tree": _TREE},
        },
    ),
    ToolRule("now", {"type": "object", "properties": {}, "additionalProperties": False}),
    ToolRule("text", {"type": "object", "properties": {"t": {"type": "string"}, "any": {}}}),
    ToolRule("unlisted", {"type": "object", "properties": {}, "required": ["it"]}),
    ToolRule("anything", {}),
)


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("name", [name for name, f in FAMILIES.items() if name == f.syntax.name])
def test_what_the_grammar_allows_is_a_call_of_a_tool(name, several):
    family = FAMILIES[name]
    # At random free texts hardly ever end without tokens, nor do many of them.
    most = BOUNDED[:-1] if several or isinstance(family.syntax, Tagged) else BOUNDED
    walks = [(family.tokens, most, 8), ([], BOUNDED[:2], 3)]
    for tokens, tools, seeds in walks[: 1 if several else 2]:
        vocabulary = Bytes(tokens)
        lark = Lark(vocabulary.specials)
        expression = family.syntax.calls(lark, tools, several)
        grammar = lark.grammar(expression)
        for seed in range(seeds):
            text = vocabulary.walk(grammar, seed)
            events = run([text], family.syntax.for_tools(tools))
            found = calls(events)
            assert not content(events), text
            assert found if several else len(found) == 1, text
            for called, arguments in found:
                (rule,) = (tool for tool in tools if tool.name == called)
                jsonschema.validate(arguments, dict(rule.schema))
