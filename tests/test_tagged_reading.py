"""Families with tagged parameters: what models write beside the template, and text that is cut."""

from __future__ import annotations

import pytest
from parsing import calls, content, read, reasoning, run
from tagged_cases import FAMILIES, TAGGED, TOOLS, TURNS, written

from mlx_server.text.parsers import tagged_families as families
from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.minimax_m3 import MINIMAX_M3
from mlx_server.text.parsers.output_parser import OutputParser
from mlx_server.text.parsers.solar import SolarOpen
from mlx_server.text.parsers.tagged import Tagged

ONE_EACH = sorted({syntax.name: name for name, syntax in FAMILIES.items()}.values())
"""A template of every family."""

QWEN, SEED, GLM, M2 = families.QWEN_CODER, families.SEED, families.GLM, families.MINIMAX_M2
M = "]<]minimax[>["


@pytest.mark.parametrize("turn", ["strings", "two", "nested"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_cut_text_gives_what_it_has(name, turn):
    syntax, text = FAMILIES[name].for_tools(TOOLS), written(name, turn)
    whole = _raw(run([text], syntax))
    named = 0
    for cut in range(len(text)):
        found = _raw(run([text[:cut]], syntax))
        assert [name for name, _ in found] == [name for name, _ in whole[: len(found)]]
        assert len(found) >= named
        named = len(found)
        for (_, part), (_, arguments) in zip(found, whole, strict=False):
            assert arguments.startswith(part), text[:cut]


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_call_starts_with_its_name_and_a_string_comes_piece_by_piece(name):
    syntax, text = FAMILIES[name].for_tools(TOOLS), written(name, "strings")
    parser_events = _stream(text, syntax)
    argument = TURNS["strings"][1][0][1]["text"]
    first = next(i for i, events in enumerate(parser_events) if events)
    assert any(isinstance(event, CallStart) for event in parser_events[first])
    assert "path" not in text[: first + 1]  # the first parameter
    pieces = [e for events in parser_events for e in events if isinstance(e, CallPiece)]
    assert len(pieces) > len(argument)  # no two characters had to wait for each other


@pytest.mark.parametrize("syntax", TAGGED, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "before",
    ["", "Write {mark} to call.\n", "{mark}", "{mark}not a call at all", "{mark}\n<b>x</b>"],
)
def test_markup_in_prose_is_content(syntax, before):
    for mark in syntax.marks:
        text = f"I say: {before.format(mark=mark)}"
        events = read(text, syntax)
        assert content(events) == text
        assert calls(events) == []


@pytest.mark.parametrize("syntax", TAGGED, ids=lambda s: s.name)
def test_what_follows_a_name_and_is_no_parameter_is_content(syntax):
    form = syntax.form
    text = f"See {form.call}name{form.name_end} and so on."
    assert content(read(text, syntax)) == text


@pytest.mark.parametrize("name", ONE_EACH)
def test_content_stands_before_between_and_behind(name):
    syntax = FAMILIES[name].for_tools(TOOLS)
    text = written(name, "names")
    if isinstance(syntax, SolarOpen):
        text = (
            f"<|content|>Before.<|end|><|begin|>assistant{text}<|begin|>assistant<|content|>Behind."
        )
    else:
        text = f"Before.\n{text}\nBetween.\n{text}\nBehind."
    events = read(text, syntax)
    many = 1 if isinstance(syntax, SolarOpen) else 2
    assert calls(events) == TURNS["names"][1] * many
    assert content(events).replace("\n", "") == ("Before." + "Between." * (many - 1) + "Behind.")


LIBERTIES = [
    # No line ends, or too many.
    (QWEN, "<tool_call><function=f><parameter=s>a</parameter></function></tool_call>", {"s": "a"}),
    (QWEN, "<tool_call>\n\n<function=f>\n\n<parameter=s>\n\na\n\n</parameter>\n\n</function>\n"
           "</tool_call>", {"s": "\na\n"}),
    (GLM, "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>a</arg_value>\n</tool_call>", {"s": "a"}),
    (GLM, "<tool_call>\nf\n</tool_call>", {}),
    (families.GLM_LINES, "<tool_call>f<arg_key>s</arg_key><arg_value>a</arg_value></tool_call>",
     {"s": "a"}),
    # The outer tag is missing, or only its beginning is.
    (QWEN, "<function=f>\n<parameter=s>\na\n</parameter>\n</function>", {"s": "a"}),
    (QWEN, "<function=f>\n<parameter=s>\na\n</parameter>\n</function>\n</tool_call>", {"s": "a"}),
    (M2, '<invoke name="f"><parameter name="s">a</parameter></invoke>', {"s": "a"}),
    (families.HUNYUAN, "<tool_call:opensource>f<tool_sep:opensource></tool_call:opensource>", {}),
    # Ends are missing.
    (QWEN, "<tool_call>\n<function=f>\n<parameter=s>\na\n</parameter>\n</tool_call>", {"s": "a"}),
    (QWEN, "<tool_call>\n<function=f>\n<parameter=s>\na\n</function>\n</tool_call>", {"s": "a"}),
    (QWEN, "<tool_call>\n<function=f>\n<parameter=s>\na\n<parameter=n>\n1\n</function>\n"
           "</tool_call>", {"s": "a", "n": 1}),
    (QWEN, "<function=f\n<parameter=s>a</parameter></function>", {"s": "a"}),
    (GLM, "<tool_call>f<arg_key>s</arg_key><arg_value>a<arg_key>n<arg_value>1</tool_call>",
     {"s": "a", "n": 1}),
    (M2, '<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">a\n</invoke>\n'
         "</minimax:tool_call>", {"s": "a\n"}),
    # One end too many.
    (SEED, "<seed:tool_call><function=f><parameter=s>a</parameter></parameter></function>"
           "</seed:tool_call>", {"s": "a"}),
    # The arguments are JSON after all, or the whole call is.
    (QWEN, '<tool_call>\n<function=f>\n{"s": "a"}\n</function>\n</tool_call>', {"s": "a"}),
    (QWEN, '<tool_call>\n{"name": "f", "arguments": {"s": "a"}}\n</tool_call>', {"s": "a"}),
    (GLM, '<tool_call>{"name": "f", "parameters": {"s": "a"}}</tool_call>', {"s": "a"}),
    (GLM, '<tool_call>f\n{"s": "a"}\n</tool_call>', {"s": "a"}),
    # Markup of a CDATA section, with space and JSON.
    (families.MINICPM, '<function name="f"><param name="n"><![CDATA[[1]]]></param></function>',
     {"n": [1]}),
    (families.MINICPM, '<function name="f">\n<param name="s">a</param>\n</function>', {"s": "a"}),
    # Trees with space between the tags.
    (MINIMAX_M3, f'{M}<tool_call>{M}<invoke name="f">\n {M}<l>\n{M}<item>1{M}</item>\n{M}</l>\n'
                 f"{M}</invoke>{M}</tool_call>", {"l": [1]}),
    (MINIMAX_M3, f'{M}<invoke name="f">{M}<s>a{M}</s>{M}<o>{M}<item>b{M}</item>{M}</o>{M}</invoke>',
     {"s": "a", "o": {"item": "b"}}),
    (MINIMAX_M3, f'{M}<invoke name="f">{M}<l>{M}</l>{M}<o>{M}</o>{M}<s>{M}</s>{M}</invoke>',
     {"l": [], "o": {}, "s": ""}),
]  # fmt: skip
STRING = ToolRule("f", {"properties": {"x": {"type": "string"}}})
FREE = ToolRule(
    "f",
    {
        "properties": {
            "s": {"type": "string"},
            "l": {"type": "array", "items": {"type": "integer"}},
            "o": {"type": "object"},
        }
    },
)


@pytest.mark.parametrize(("syntax", "text", "arguments"), LIBERTIES)
def test_what_models_write_instead_is_read(syntax, text, arguments):
    events = read(text, syntax.for_tools([FREE]))
    assert calls(events) == [("f", arguments)]
    assert content(events) == ""


def test_calls_that_nobody_closed_follow_one_another():
    text = "<tool_call>\n<function=f>\n<parameter=s>\na\n</parameter>\n<function=g>\n</function>"
    assert calls(read(text, QWEN)) == [("f", {"s": "a"}), ("g", {})]


def test_junk_within_a_call_ends_it_and_is_content():
    text = "<tool_call><function=f><parameter=s>1</parameter>Sorry, no.</function></tool_call> Bye"
    events = read(text, QWEN)
    assert calls(events) == [("f", {"s": 1})]
    assert content(events) == "Sorry, no.</function></tool_call> Bye"


def test_junk_behind_a_call_in_its_section_is_content_and_so_is_a_second_call_that_is_none():
    text = "<tool_call><function=f></function> and <function=g nothing"
    events = read(text, QWEN)
    assert calls(events) == [("f", {})]
    assert content(events) == "and <function=g nothing"


@pytest.mark.parametrize(
    "text", ["</parameter>", "\n<function=x>", "a\n</function>\nb", "<parameter"]
)
def test_markup_in_a_string_is_kept_unless_it_ends_it(text):
    whole = (
        f"<tool_call>\n<function=f>\n<parameter=s>\n{text}\n</parameter>\n</function>\n</tool_call>"
    )
    events = read(whole, QWEN.for_tools([FREE]))
    if text == "</parameter>":
        assert calls(events) == [("f", {"s": ""})]
    else:
        assert calls(events) == [("f", {"s": text})]


TYPED = [
    ({"type": "string"}, "01234", "01234"),
    ({"type": "string"}, "true", "true"),
    ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
    ({"type": "string"}, '"quoted"', '"quoted"'),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": ["string", "null"]}, "None", None),
    ({"type": ["string", "null"]}, "12", "12"),
    ({"type": ["string", "null"]}, "nothing", "nothing"),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "12", 12),
    ({"type": "integer"}, "12", 12),
    ({"type": "integer"}, '"12"', 12),
    ({"type": "integer"}, "twelve", "twelve"),
    ({"type": "boolean"}, "True", True),
    ({"type": "object"}, "{'a': [None, True, 'it\\'s']}", {"a": [None, True, "it's"]}),
    ({"type": "object"}, '{"a": "two\nlines"}', {"a": "two\nlines"}),
    ({"type": "object"}, '"{\\"a\\": 1}"', {"a": 1}),
    ({"type": "array"}, "[1, 2", "[1, 2"),
    ({"$ref": "#/$defs/name"}, "7", "7"),
    ({}, "12", 12),
    ({}, " 1.5e3 ", 1500.0),
    ({}, "01234", "01234"),
    ({}, "NaN", "NaN"),
    ({}, '"a"', '"a"'),
    ({}, "plain", "plain"),
    ({}, "", ""),
    ({}, "[1, null]", [1, None]),
]


@pytest.mark.parametrize(("schema", "text", "value"), TYPED)
@pytest.mark.parametrize("syntax", [SEED, M2, MINIMAX_M3, GLM], ids=lambda s: s.name)
def test_the_schema_decides_what_a_text_is_and_its_look_where_that_says_nothing(
    syntax, schema, text, value
):
    definitions = {"name": {"type": "string"}}
    tool = ToolRule("f", {"properties": {"x": schema}, "$defs": definitions})
    events = read(_call_of(syntax, text), syntax.for_tools([tool]))
    assert calls(events) == [("f", {"x": value})]


@pytest.mark.parametrize(("text", "value"), [(t, v) for s, t, v in TYPED if s == {}])
def test_without_tools_the_look_decides(text, value):
    assert calls(read(_call_of(M2, text), M2)) == [("f", {"x": value})]


def test_a_large_number_is_passed_on_as_it_is_written():
    digits = "123456789012345678901234567890.10"
    events = run([_call_of(M2, digits)], M2)
    assert _raw(events) == [("f", f'{{"x": {digits}}}')]


def test_solar_marks_reasoning_and_content():
    text = "<|think|>Hm.\n<|end|><|begin|>assistant<|content|>Yes <b>.<|end|>"
    events = read(text, SolarOpen())
    assert (reasoning(events), content(events)) == ("Hm.", "Yes <b>.")


@pytest.mark.parametrize(
    "text",
    [
        "<|tool_call:begin|>abc",
        "<|tool_call:begin|>abc<|tool_call:name|>f",
        "<|tool_call:begin|>abc<|tool_call:end|>",
        "<|tool_calls|>none",
    ],
)
def test_what_is_no_call_of_solars_is_content(text):
    events = read(text, SolarOpen())
    assert calls(events) == []
    assert content(events) == text


def test_a_call_of_solars_has_the_models_own_id():
    text = "<|tool_calls|><|tool_call:begin|>k3<|tool_call:name|>f<|tool_call:end|><|calls|>"
    assert read(text, SolarOpen()) == [CallStart("f", "k3"), CallPiece("{}")]


def _call_of(syntax: Tagged, text: str) -> str:
    """A call of `f` with the parameter `x`."""
    form = syntax.form
    end = f"{M}</x>" if syntax is MINIMAX_M3 else form.value_end
    parameter = f"{form.key}x{form.key_end}{form.value}{text}{end}"
    return f"{form.section}{form.call}f{form.name_end}{parameter}{form.call_end}{form.section_end}"


def _raw(events) -> list[tuple[str, str]]:
    """Names and arguments, which need not be whole."""
    found: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStart):
            found.append((event.name, ""))
        elif isinstance(event, CallPiece):
            found[-1] = (found[-1][0], found[-1][1] + event.text)
    return found


def _stream(text: str, syntax) -> list[list]:
    """The events that come with each character."""
    parser = OutputParser(syntax, None)
    return [parser.feed(character) for character in text]
