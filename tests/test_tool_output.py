"""Tokens to deltas behind a parser: reasoning, content and calls, each with its tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mlx_server import demo
from mlx_server.deltas import CallArguments, CallStarted, Delta, Finished, Reasoning, Text
from mlx_server.exchange import Candidates, EngineRequest, TokenOutput
from mlx_server.sampling_params import SamplingParams
from mlx_server.text.output import Choice
from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.hermes import Hermes
from mlx_server.text.parsers.output_parser import OutputParser
from mlx_server.text.tokenizer import Tokenizer

THINKING = Thinking("<think>", "</think>")
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CUT = CALL.partition("}}")[0]
MADE = ("add", '{"a": 1}')


def _load() -> Tokenizer:
    """The bundled model's tokenizer, with special tokens for the marks."""
    hf = PreTrainedTokenizerFast.from_pretrained(demo.path())
    hf.add_tokens(MARKS, special_tokens=True)
    return Tokenizer(hf)


TOKENIZER = _load()
IDS = TOKENIZER.markup_tokens
SHOWN = frozenset(IDS[mark] for mark in MARKS)
(EOS,) = TOKENIZER.eos_token_ids


def tokens(reply: str) -> list[int]:
    return TOKENIZER.encode(reply, add_special_tokens=False)


def run(
    ids: list[int],
    *,
    stop: tuple[str, ...] = (),
    reason: str = "stop",
    inside: bool = False,
    step: int = 1,
) -> list[Delta]:
    """The deltas of a reply that comes `step` tokens at a time."""
    params = SamplingParams(stop=stop, max_tokens=len(ids), logprobs=0)
    request = EngineRequest("r", (1, 5), params, eos_token_ids=TOKENIZER.eos_token_ids)
    parser = OutputParser(Hermes(), THINKING, inside=inside)
    choice = Choice(0, request, TOKENIZER, None, parser, SHOWN)
    deltas: list[Delta] = []
    for at in range(0, len(ids), step):
        found = tuple(ids[at : at + step])
        values = tuple(Candidates(-float(at + i)) for i in range(len(found)))
        last = at + step >= len(ids)
        deltas += choice.feed(
            TokenOutput("r", 0, found, values, finish_reason=reason if last else None)
        )
        if choice.finished:
            break
    assert isinstance(deltas[-1], Finished)
    return deltas


def shape(deltas: list[Delta]) -> dict[str, Any]:
    """What they say, all in all."""
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, CallStarted):
            assert delta.call == len(calls)
            calls.append([delta.name, ""])
        elif isinstance(delta, CallArguments):
            assert delta.call == len(calls) - 1
            calls[-1][1] += delta.text
    return {
        "content": "".join(d.text for d in deltas if isinstance(d, Text)),
        "reasoning": "".join(d.text for d in deltas if isinstance(d, Reasoning)),
        "calls": [tuple(made) for made in calls],
        "reason": deltas[-1].reason,
        "stop": deltas[-1].stop_sequence,
    }


def entries(deltas: list[Delta]) -> list[tuple[int, float]]:
    pieces = [d for d in deltas if not isinstance(d, Finished)]
    return [(entry.id, entry.logprob) for piece in pieces for entry in piece.tokens]


def said(content="", reasoning="", calls=(), reason="stop", stop=None) -> dict[str, Any]:
    return {
        "content": content,
        "reasoning": reasoning,
        "calls": list(calls),
        "reason": reason,
        "stop": stop,
    }


REPLIES = [
    ("hello", {}, said("hello")),
    ("hello", {"reason": "length"}, said("hello", reason="length")),
    ("<think>\nhm\n</think>\n\nhello", {}, said("hello", "hm")),
    ("hm</think>hello", {"inside": True}, said("hello", "hm")),
    ("hm", {"inside": True, "reason": "length"}, said("", "hm", reason="length")),
    (CALL, {}, said(calls=[MADE], reason="tool_calls")),
    (CALL + "\n" + CALL, {}, said(calls=[MADE, MADE], reason="tool_calls")),
    ("<think>hm</think>Well: " + CALL, {}, said("Well:", "hm", [MADE], "tool_calls")),
    (CUT, {"reason": "length"}, said(calls=[("add", '{"a": 1')], reason="length")),
    # Stop strings: in the content they count, in reasoning and calls they do not.
    ("one two three", {"stop": ("two",)}, said("one ", stop="two")),
    ("<think>two</think>one two", {"stop": ("two",)}, said("one ", "two", stop="two")),
    ("two</think>one", {"stop": ("two",), "inside": True}, said("one", "two")),
    (CALL, {"stop": ("add", '"a"', "tool")}, said(calls=[MADE], reason="tool_calls")),
    (CALL + "one two", {"stop": ("two",)}, said("one ", calls=[MADE], reason="tool_calls",
                                                stop="two")),
    # What might have been one is given before what interrupts it.
    ("a tw" + CALL, {"stop": ("two",)}, said("a tw", calls=[MADE], reason="tool_calls")),
    # In the middle of an answer the mark is a word that it is about.
    ("a tw<think>o</think>o", {}, said("a tw<think>o</think>o")),
    (CALL + "<think>o</think>a", {}, said("a", "o", [MADE], "tool_calls")),
    ("a tw", {"stop": ("two",)}, said("a tw")),
]  # fmt: skip


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(("reply", "options", "expected"), REPLIES)
def test_what_a_reply_says(
    reply: str, options: dict[str, Any], expected: dict[str, Any], step: int
) -> None:
    assert shape(run(tokens(reply), step=step, **options)) == expected


@pytest.mark.parametrize(("reply", "options", "expected"), REPLIES)
def test_the_end_token_says_nothing(
    reply: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    if options.get("reason") != "length":
        deltas = run([*tokens(reply), EOS], **options)
        assert shape(deltas) == expected
        assert EOS not in [token for token, _ in entries(deltas)]


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(("reply", "options", "expected"), REPLIES)
def test_each_token_has_its_entry_once_and_in_order(
    reply: str, options: dict[str, Any], expected: dict[str, Any], step: int
) -> None:
    ids = tokens(reply)
    deltas = run(ids, step=step, **options)
    every = [(token, -float(i)) for i, token in enumerate(ids)]
    found = entries(deltas)
    assert found == every[: len(found)]
    if expected["stop"] is None:
        assert found == every
        assert deltas[-1].usage.completion_tokens == len(ids)
    else:  # the token that completes the stop string, at least, is not reported
        assert len(found) < deltas[-1].usage.completion_tokens


PIECES = ['{"name"', "a", "two ", "tw", " ", "\n"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*MARKS, "a", "two ", CALL, "\n", '{"name"', "tw", " "]), max_size=9)
)
def test_any_reply_says_the_same_at_any_pace_and_loses_no_token(parts: list[str]) -> None:
    ids = tokens("".join(parts) + "x")
    slow, fast = run(ids, stop=("two!",)), run(ids, stop=("two!",), step=1000)
    assert shape(slow) == shape(fast)
    assert entries(slow) == entries(fast) == [(t, -float(i)) for i, t in enumerate(ids)]
    assert slow[-1].usage == fast[-1].usage


@pytest.mark.parametrize(
    ("before", "thought", "after", "inside"),
    [
        ("", "<think>hm hm</think>", "hello", False),
        ("", "hm hm</think>", "hello", True),
        ("", "hm hm", "", True),
        ("", "<think>hm", "", False),
        (CALL, "<think>hm</think>", CALL, False),
        (CALL, "", "hello", False),
    ],
)
def test_reasoning_tokens_are_those_from_mark_to_mark(
    before: str, thought: str, after: str, inside: bool
) -> None:
    deltas = run(tokens(before + thought + after), inside=inside)
    usage = deltas[-1].usage
    assert usage.reasoning_tokens == len(tokens(thought))
    assert usage.completion_tokens == len(tokens(before + thought + after))


def test_special_tokens_are_for_the_parser_only() -> None:
    other = IDS["<|im_start|>"]
    ids = [IDS["<think>"], other, *tokens("hm"), IDS["</think>"], other, *tokens("a" + CALL)]
    deltas = run(ids)
    assert shape(deltas) == said("a", "hm", [MADE], "tool_calls")
    assert [token for token, _ in entries(deltas)] == ids


def test_every_call_has_an_id_and_its_arguments_are_json() -> None:
    deltas = run(tokens("\n".join([CALL] * 5)))
    started = [d for d in deltas if isinstance(d, CallStarted)]
    assert len({d.id for d in started}) == 5
    assert all(json.loads(arguments) == {"a": 1} for _, arguments in shape(deltas)["calls"])
