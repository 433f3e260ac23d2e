"""Replies that are long, deep or broken: read without an exception, to the last word."""

from __future__ import annotations

import random
import re

import pytest
from parsing import calls, content, fold, reasoning, run

from mlx_server.text.formats import SYNTAXES, OutputFormat
from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.output_parser import OutputParser

BY_NAME = {syntax.name: syntax for syntax in SYNTAXES}
THINKING = Thinking("<think>", "</think>")
TOOLS = (
    ToolRule("write", {"type": "object", "properties": {"text": {"type": "string"}}}),
    ToolRule("f", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}}),
)

LONG = 40_000
LINES = "x\\n" * (LONG // 3)
M3 = "]<]minimax[>["


def pieces(text: str, width: int = 4) -> list[str]:
    return [text[at : at + width] for at in range(0, len(text), width)]


# ---------------------------------------------------------------- long


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "a" + " \n" * (LONG // 2)),
        ("glm", "<tool_call>" + "x" * LONG),
        ("lfm2", "<|tool_call_start|>[" + "x" * LONG),
    ],
    ids=["space", "name", "python name"],
)
def test_long_text_that_is_no_call_is_content(name: str, text: str) -> None:
    assert content(run(pieces(text), BY_NAME[name])) == text


@pytest.mark.parametrize("width", [4, 10 * LONG])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": "{LINES}"}}}}'),
        ("hermes", f'<tool_call>{{"arguments": {{"a": "{LINES}"}}, "name": "f"}}'),
        ("lfm2", f"<|tool_call_start|>[f(a='{LINES}')]"),
        ("gemma-4", "<|tool_call>call:f{a:" + "x " * (LONG // 2) + "}"),
    ],
    ids=["json", "arguments first", "python", "bare value"],
)
def test_long_arguments_come_whole(name: str, text: str, width: int) -> None:
    ((_, arguments),) = calls(run(pieces(text, width), BY_NAME[name]))
    expected = LINES.replace("\\n", "\n") if LINES in text else "x " * (LONG // 2)
    assert arguments["a"].strip() == expected.strip()


# ---------------------------------------------------------------- deep


@pytest.mark.parametrize("depth", [50, 2000])
@pytest.mark.parametrize(
    ("name", "start", "again"),
    [
        ("gemma-4", "<|tool_call>call:f{a:", "["),
        ("gemma-4", "<|tool_call>call:f{a:", "{a:"),
        ("lfm2", "<|tool_call_start|>[f(a=", "["),
        ("hermes", "<tool_call>", '{"function": '),
        ("hermes", '<tool_call>{"name": "f", "arguments": ', "["),
        ("minimax-m3", f'{M3}<tool_call>{M3}<invoke name="f">', f"{M3}<a>"),
    ],
)
def test_a_model_that_opens_brackets_for_ever_is_no_error(
    name: str, start: str, again: str, depth: int
) -> None:
    text = start + again * depth
    events = run([text], BY_NAME[name])
    assert run(pieces(text), BY_NAME[name]) == events
    assert ("f", None) in [(e.name, e.id) for e in events if isinstance(e, CallStart)] or (
        content(events) == text
    )


# ---------------------------------------------------------------- broken

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<to", ""),
        ("<tool_call>\n{", ""),
        ('<tool_call>\n{"na', ""),
        ("<think>a</think>\n<tool", ""),
        (CALL + "\n<tool_c", ""),
        ("a <to", "a <to"),  # it may be what the answer is about
        ("hello", "hello"),
        ("<b", "<b"),
    ],
)
def test_of_a_reply_that_is_cut_no_mark_stays(text: str, said: str) -> None:
    parser = OutputParser(BY_NAME["hermes"], THINKING)
    events = [*parser.feed(text), *parser.flush(cut=True)]
    assert content(events) == said
    whole = OutputParser(BY_NAME["hermes"], THINKING)
    ended = [*whole.feed(text), *whole.flush()]
    assert content(ended).strip() == text.removeprefix(CALL).split("</think>")[-1].strip()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "deepseek-v3.1",
            "<｜tool▁calls▁begin｜>Hm<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
            "<｜tool▁calls▁begin｜>Hm",
        ),
        (
            "kimi-k2",
            "<|tool_call_begin|>Hm<|tool_calls_section_begin|><|tool_call_begin|>f"
            "<|tool_call_argument_begin|>{}<|tool_call_end|>",
            "<|tool_call_begin|>Hm",
        ),
    ],
)
def test_a_call_behind_a_mark_that_began_none_is_read(name: str, text: str, said: str) -> None:
    events = run([text], BY_NAME[name])
    assert (calls(events), content(events)) == ([("f", {})], said)
    assert run(text, BY_NAME[name]) == events


WORDS = (
    *("W1", "W2", "W3", " ", "\n", "\n\n", "{", "}", '"', "[", "]", "(", ")", ",", ":", "=", "'"),
    *("write", "f", "text", "null", "\\", "é😀", "<b>", '"name": "f"', "call:f{a:1}", "f(a=1)"),
    '{"name": "write", "arguments": {"text": "W4"}}',
)


@pytest.mark.parametrize("name", BY_NAME)
def test_marks_in_any_order_are_read_alike_at_any_pace_and_lose_no_content(name: str) -> None:
    syntax = BY_NAME[name].for_tools(TOOLS)
    thinking = None if syntax.thinks else THINKING
    marks = sorted(OutputFormat(syntax, thinking).markup)
    halves = [half for m in marks for half in (m[: len(m) // 2], m[len(m) // 2 :])]
    rng = random.Random(name)
    for _ in range(60):
        words = [rng.choice(rng.choice((marks, WORDS, halves))) for _ in range(rng.randint(1, 25))]
        text = "".join(words)
        whole = run([text], syntax, thinking)
        assert run(text, syntax, thinking) == whole, text
        given = "".join(
            e.text if not isinstance(e, CallStart) else f" {e.name} {e.id} " for e in whole
        )
        called = any(isinstance(event, CallStart) for event in whole)
        if not called:
            assert re.findall(r"W\d", given) == re.findall(r"W\d", text), text


@pytest.mark.parametrize("name", BY_NAME)
def test_reasoning_and_content_come_through_as_they_are(name: str) -> None:
    text = "def f(x): return [x, 'a']  # <b>\n" * 20 + "end"
    syntax = BY_NAME[name]
    assert content(run(pieces(text), syntax)) == text
    if not syntax.thinks:
        parser = OutputParser(syntax, THINKING, inside=True)
        events = [event for piece in pieces(text) for event in parser.feed(piece)]
        assert reasoning(fold([*events, *parser.flush()])) == text
        assert not any(isinstance(event, CallPiece) for event in events)
