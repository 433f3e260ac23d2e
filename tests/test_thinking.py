"""Where reasoning stands: the table of marks, and what templates write around them."""

from __future__ import annotations

import pytest
from grammars import rendered
from literal_cases import source
from parsing import content, read, reasoning

from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Thought
from mlx_server.text.parsers.hermes import Hermes
from mlx_server.text.parsers.thinking import THINKING, find_thinking


@pytest.mark.parametrize("marking", THINKING, ids=lambda marking: marking.opening)
def test_reasoning_is_told_apart(marking):
    thinking = marking.thinking("")
    closed = f"Hm <b>.{thinking.closing}{thinking.tail}"
    tail = thinking.tail.strip()  # what is no space is left to the syntax
    for text, inside in (
        (f"{thinking.opening}{thinking.lead}{closed}Yes.", False),
        (f"{thinking.lead}{closed}Yes.", True),
    ):
        events = read(text, None, thinking, inside=inside)
        assert (reasoning(events), content(events)) == ("Hm <b>.", f"{tail}Yes.")


@pytest.mark.parametrize("marking", THINKING, ids=lambda marking: marking.opening)
def test_the_first_that_matches_is_its_own(marking):
    opening, closing = marking.opening, marking.closing
    template = "".join(marking.signs) or f"{{{{ '{opening}' + thought + '{closing}' }}}}"
    assert find_thinking(template, ()).opening == opening
    assert find_thinking("", (opening, closing)).opening == opening
    assert find_thinking("", (opening,)) is None


@pytest.mark.parametrize(
    ("template", "lead", "tail"),
    [
        (r"{{ '<think>\n' + thought + '\n</think>\n\n' }}", "\n", "\n\n"),
        (r"{{ '<think>' + thought + '</think>' }}", "", ""),
        (r"{{ '<think>\n\n</think>\n' }}", "\n", "\n"),
        # Looking for the marks says nothing of what is written around them.
        (r"{% if '</think>' in text %}{{ text.split('</think>')[-1] }}{% endif %}", "\n", "\n\n"),
        (r"""{% if text.split("<think>") %}{{ '<think>' }}{% endif %}""", "", "\n\n"),
    ],
)
def test_line_ends_are_the_templates(template, lead, tail):
    assert find_thinking(template, ()) == Thinking("<think>", "</think>", lead, tail)


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen-Qwen3-0.6B", "Qwen3.5-4B", "Bielik-11B-v3.0-Instruct", "StepFun3.5-Flash"),
        *("MiniMax-M3", "ByteDance-Seed-OSS", "Spark2.5", "inclusionai-ling-3.0-flash"),
        *("tencent-Hy3", "openbmb-MiniCPM5-1B", "Kimi-K3", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    ],
)
def test_a_rendered_turn_has_them(name):
    template = source(name)
    turn = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    variables = {"enable_thinking": True, "reasoning_effort": "high"}
    text = rendered(template, [{"role": "user", "content": "Q"}, turn], **variables)
    found = find_thinking(template, ())
    assert f"{found.opening}{found.lead}Hm." in text
    assert f"{found.closing}{found.tail}Yes." in text


MADE = [CallStart("f"), CallPiece('{"a": 1}')]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"hm {CALL}", [Thought("hm"), *MADE]),
        (
            f"hm {CALL}\nmore</think>\n\nbye",
            [Thought("hm"), *MADE, Thought("more"), Content("bye")],
        ),
        (f"a {CALL} b {CALL}", [Thought("a"), *MADE, Thought("b"), *MADE]),
        (f"hm</think>{CALL}", [Thought("hm"), *MADE]),
        ("in <tool_call> tags</think>yes", [Thought("in <tool_call> tags"), Content("yes")]),
        ("a <tool_call>", [Thought("a <tool_call>")]),
        (
            'a <tool_call>\n{"b": 1} c</think>d',
            [Thought('a <tool_call>\n{"b": 1} c'), Content("d")],
        ),
    ],
)
def test_a_call_within_the_reasoning_is_not_lost(text: str, expected: list) -> None:
    assert read(text, Hermes(), Thinking("<think>", "</think>"), inside=True) == expected
