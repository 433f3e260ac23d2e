"""Calls in JSON as models write them besides what their templates show, what only looks
like a call, and what grammars make at random."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from json_families import (
    FAMILIES,
    RULES,
    SHORT,
    SPECIALS,
    TEMPLATES,
    Family,
    found,
    grammar,
    vocabulary,
)
from parsing import calls, content, fold, read

from mlx_server.text.formats import SYNTAXES
from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.output_parser import OutputParser

OURS = tuple(dict.fromkeys([*(family.syntax for family in FAMILIES), "granite-3"]))
each_syntax = pytest.mark.parametrize("name", OURS)

NAME, ARGUMENTS = '"get_weather"', '{"city": "Bern"}'
CALL = f'{{"name": {NAME}, "arguments": {ARGUMENTS}}}'
OTHER = f'{{"name": {NAME}, "parameters": {ARGUMENTS}}}'
BARE = ("get_weather", {})

WILD: tuple[tuple[str, str, list[tuple[str, Any]], str], ...] = (
    # one tag, many ways
    ("hermes", f"<tool_call>{CALL}</tool_call>", [SHORT], ""),
    ("hermes", f"<tool_call> {OTHER} </tool_call>\n", [SHORT], ""),
    ("hermes", f"<tool_call>\n{CALL}", [SHORT], ""),
    ("hermes", f"<tool_call>{CALL}\n<tool_call>{CALL}</tool_call>", [SHORT, SHORT], ""),
    ("hermes", f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", [SHORT, SHORT], ""),
    ("hermes", f"<tool_call>[{CALL}, {CALL}]</tool_call>", [SHORT, SHORT], ""),
    ("hermes", f"<tool_call>{CALL}}}\n</tool_call>", [SHORT], ""),
    ("hermes", f'<tool_call>{{"arguments": {ARGUMENTS}, "name": {NAME}}}</tool_call>', [SHORT], ""),
    ("hermes", f'<tool_call>{{"name": {NAME}}}</tool_call>', [BARE], ""),
    ("hermes", f'<tool_call>{{"name": {NAME}, "arguments": null}}</tool_call>', [BARE], ""),
    ("hermes", f'<tool_call>{{"name": {NAME}, "arguments": }}</tool_call>', [BARE], ""),
    ("hermes", f'<tool_call>{{"type": "function", "function": {CALL}}}</tool_call>', [SHORT], ""),
    ("hermes", f"<tool_call>{CALL.replace('name', 'function', 1)}</tool_call>", [SHORT], ""),
    (
        "hermes",
        f'<tool_call>{{"name": {NAME}, "arguments": {json.dumps(ARGUMENTS)}}}</tool_call>',
        [SHORT],
        "",
    ),
    (
        "hermes",
        "<tool_call>\n{'arguments': {'city': 'Bern'}, 'name': 'get_weather'}\n</tool_call>",
        [SHORT],
        "",
    ),
    ("hermes", "<tool_call>{'a': 1}</tool_call>", [], "<tool_call>{'a': 1}</tool_call>"),
    ("hermes", f"A <tool_call>{CALL}</tool_call> B", [SHORT], "AB"),
    ("hermes", f"<tool_call>{CALL}, and so on", [SHORT], ", and so on"),
    ("reka", f"Hi.\n\n<tool_call>\n{CALL}\n</tool_call>\n", [SHORT], "Hi."),
    # lists
    ("nemotron-nano-2", f"<TOOLCALL>[\n  {CALL},\n  {CALL}\n]</TOOLCALL>", [SHORT, SHORT], ""),
    ("nemotron-nano-2", f"<TOOLCALL>{CALL}</TOOLCALL>.", [SHORT], "."),
    ("minimax-m1", f"<tool_calls>{CALL}\n\n{CALL}</tool_calls>", [SHORT, SHORT], ""),
    ("firefunction-2", f"functools[{CALL},{CALL}]", [SHORT, SHORT], ""),
    ("firefunction-2", "Use functools[0].", [], "Use functools[0]."),
    ("granite-3", f"<|tool_call|>[{CALL}]", [SHORT], ""),
    ("granite-3", f"<|tool_call|> {CALL}\n", [SHORT], ""),
    ("granite-3", "<response>\nHi <b>.</response>", [], "Hi <b>."),
    ("granite-3", f"<response>Hi. <|tool_call|>[{CALL}]", [SHORT], "Hi."),
    ("granite-3", "It is a <response> tag.", [], "It is a <response> tag."),
    ("gigachat-3", f"Hi.\n\nfunction call<|role_sep|>\n{CALL}", [SHORT], "Hi."),
    ("gigachat-3", "A function call is what?", [], "A function call is what?"),
    ("gigachat-3.1", f"<|function_call|>\n{CALL}", [SHORT], ""),
    ("apriel", "[BEGIN FINAL RESPONSE]\nHi.\n[END FINAL RESPONSE]", [], "Hi."),
    ("apriel", f"A\n[BEGIN FINAL RESPONSE]\n<tool_calls>[{CALL}]</tool_calls>", [SHORT], "A"),
    # bare, in a list, behind semicolons, under another tag
    ("llama-3", f"{OTHER}; {OTHER};{OTHER}", [SHORT] * 3, ""),
    ("llama-3", f"\n{OTHER}\n{OTHER}", [SHORT] * 2, ""),
    ("llama-3", f"[{CALL}, {CALL}]", [SHORT] * 2, ""),
    ("llama-3", f"<|python_tag|>{OTHER}", [SHORT], ""),
    ("llama-3", f"Well. <|python_tag|>{OTHER}", [SHORT], "Well."),
    ("llama-3", f"<function=get_weather>{ARGUMENTS}</function>", [SHORT], ""),
    ("llama-3", f'{{"type": "function", "name": {NAME}, {OTHER[24:]}', [SHORT], ""),
    ("llama-3", f'{{"type": "function", "function": {OTHER}}}', [SHORT], ""),
    ("llama-3", f"{OTHER}; so it is", [SHORT], "; so it is"),
    ("llama-3", '{"name": "Bob", "age": 3}', [], '{"name": "Bob", "age": 3}'),
    ("llama-3", f'{{"list": [1], "name": {NAME}}}', [], f'{{"list": [1], "name": {NAME}}}'),
    ("llama-3", f"Look: {OTHER}", [], f"Look: {OTHER}"),
    ("llama-3", "<|python_tag|>print(1)", [], "<|python_tag|>print(1)"),
    # a tag that has the name
    ("functionary-3.1", f"<function=get_weather>\n{ARGUMENTS}\n</function> B", [SHORT], "B"),
    ("functionary-3.1", f"<function=get_weather>{ARGUMENTS}", [SHORT], ""),
    ("functionary-3.1", "<function=get_weather></function>", [BARE], ""),
    ("functionary-3.1", "f <function=f>x</function>", [], "f <function=f>x</function>"),
    # names that are marks
    ("functionary-3.2", f">>>get_weather\n\n{ARGUMENTS}\n>>>all\nB", [SHORT], "B"),
    ("functionary-3.2", "all\nSo:\n>>> print(1)\n1", [], "So:\n>>> print(1)\n1"),
    ("functionary-3.2", "get_weather\nis it", [], "get_weather\nis it"),
    # three generations, read alike
    *(
        (name, text, [SHORT], "")
        for name in ("mistral", "mistral-list", "mistral-call-id")
        for text in (
            f"[TOOL_CALLS]get_weather{ARGUMENTS}",
            f"[TOOL_CALLS] get_weather[ARGS] {ARGUMENTS}",
            f"[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{ARGUMENTS}",
            f"[TOOL_CALLS] [{CALL}]",
            f"[TOOL_CALLS]{CALL}",
        )
    ),
    ("mistral", "[TOOL_CALLS]get weather[ARGS]{}", [], "[TOOL_CALLS]get weather[ARGS]{}"),
    # actions
    (
        "command-r-plus",
        f'Action: ```json\n[{{"tool_name": {NAME}, "parameters": {ARGUMENTS}}}]\n``` B',
        [SHORT],
        "B",
    ),
    ("command-r-plus", "Action: ```json\n[1]\n```", [], "Action: ```json\n[1]\n```"),
    (
        "command-r7b",
        f'<|START_ACTION|>[{{"tool_name": {NAME}, "parameters": {ARGUMENTS}, '
        '"tool_call_id": "7"}]<|END_ACTION|>',
        [SHORT],
        "",
    ),
    (
        "command-r7b",
        "<|START_RESPONSE|>It is <co>sunny</co: 0:[1]>.<|END_RESPONSE|>",
        [],
        "It is <co>sunny</co: 0:[1]>.",
    ),
    ("cohere-2", "<|START_TEXT|>Hi.", [], "Hi."),
)


@pytest.mark.parametrize(("name", "text", "expected", "said"), WILD, ids=lambda v: str(v)[:60])
def test_what_models_write_besides(
    name: str, text: str, expected: list[tuple[str, Any]], said: str
) -> None:
    events = read(text, found(name))
    assert (calls(events), content(events).rstrip()) == (expected, said)


def test_a_call_that_ends_before_its_arguments_has_begun() -> None:
    assert read("[TOOL_CALLS]get_weather[ARGS]", found("mistral")) == [CallStart("get_weather")]
    assert read("get_weather\n", found("functionary-3.2")) == [CallStart("get_weather")]


@each_syntax
@pytest.mark.parametrize(
    "junk",
    ["", " is a tag", '{"a": 1}', '{"name": 3}', "[1, 2]", '{"na', "[{]", "\n\n</tool_call> <b>"],
)
def test_what_is_no_call_stays_in_the_content(name: str, junk: str) -> None:
    syntax = found(name)
    marks = [mark for mark in syntax.marks if mark not in getattr(syntax, "markup", ())]
    for mark in marks:
        if name == "functionary-3.2" and (mark == ">>>all\n" or junk[:1] in ("", "{")):
            continue  # the content's own mark, and a name before JSON or the end: a call
        text = f"so {mark}{junk}"
        events = read(text, syntax)
        assert (calls(events), content(events)) == ([], text)


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="no templates here")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_arguments_are_given_as_they_come(family: Family) -> None:
    text = family.reply("", [("get_weather", {"city": "Bern \\ 東京", "days": 12})])
    parser = OutputParser(found(family.syntax), None)
    whole = "".join(e.text for e in parser.feed(text) if isinstance(e, CallPiece))
    start = text.index(whole)
    parser, given = OutputParser(found(family.syntax), None), ""
    for end, character in enumerate(text, start=1):
        given += "".join(e.text for e in parser.feed(character) if isinstance(e, CallPiece))
        come = min(max(end - start, 0), len(whole))
        # An escape is given when it is whole.
        assert come - len("\\u6771") < len(given) <= come and whole.startswith(given)


@each_syntax
@pytest.mark.parametrize("specials", [SPECIALS, ()], ids=["tokens", "text"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_random_walks_are_valid_calls(name: str, specials: tuple[str, ...], several: bool) -> None:
    text, syntax = vocabulary(specials), found(name)
    lark = grammar(syntax, text, several=several)
    schemas = {rule.name: rule.schema for rule in RULES}
    for seed in range(3):
        made = text.walk(lark, seed)
        parser = OutputParser(syntax, None)
        events = fold([*parser.feed(made), *parser.flush()])
        assert content(events).strip() == "", made
        given = calls(events)
        assert given if several else len(given) == 1
        for called, arguments in given:
            jsonschema.validate(arguments, schemas[called])


@each_syntax
def test_schemas_that_say_nothing(name: str) -> None:
    text, syntax = vocabulary(SPECIALS), found(name)
    rules = (ToolRule("any", {}), ToolRule("a.b-c", {"properties": {'"x y"': {}}}))
    lark = grammar(syntax, text, rules=rules)
    known = syntax.for_tools(rules)
    family = next((f for f in FAMILIES if f.syntax == name), None)
    if family is None or not TEMPLATES.is_dir():
        assert not text.matcher(lark).is_error()
        return
    for given in (
        ("any", {"a": [1, {"b": None}]}),
        ("any", {}),
        ("a.b-c", {'"x y"': 1.5, "z": []}),
    ):
        reply = family.as_forced([given])
        assert text.accepts(lark, reply), text.accepted(lark, reply)
        parser = OutputParser(known, None)
        assert calls([*parser.feed(reply), *parser.flush()]) == [given]
    assert not text.accepts(lark, family.as_forced([("any", [3])]))


def test_every_syntax_has_a_name_of_its_own() -> None:
    names = [syntax.name for syntax in SYNTAXES]
    assert len({*names}) == len(names) and all(names)
