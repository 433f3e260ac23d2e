"""Tools that may be called do not push a model into a call: an answer stays free."""

from __future__ import annotations

from pathlib import Path

import pytest
from grammars import emitted
from guiding import EOS, TOKENS
from models import SHARED
from parsing import run

from mlx_server.sampling.grammar import Grammars, Vocabulary
from mlx_server.sampling.guide import Plan, Reasoning, Trigger
from mlx_server.sampling.notations import lark_grammar
from mlx_server.text.formats import choose_format
from mlx_server.text.parsers.events import Thought
from mlx_server.text.parsers.lark import Lark, ToolRule

TEMPLATES = sorted((SHARED / "templates").glob("*.jinja"))
ANSWERS = [
    "It is sunny.",
    '{"city": "Bern"}',
    '{"names": ["a"]}',
    '[{"city": "Bern"}, 2]',
    "[a link](b)",
    "<b>bold</b> to=functions of x",
    "Action: none",
]
RULES = [ToolRule("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}})]

pytestmark = pytest.mark.skipif(not TEMPLATES, reason="../shared is absent")


def vocabulary(markup: frozenset[str], as_tokens: bool) -> Vocabulary:
    tags = sorted(text for text in markup if text[:1] + text[-1:] in ("<>", "[]"))
    specials = {text: len(TOKENS) + i for i, text in enumerate(tags)} if as_tokens else {}
    tokens = [*TOKENS, *(text.encode() for text in specials)]
    return Vocabulary(tokens, specials, frozenset({EOS}), len(tokens), lambda t: list(t.encode()))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_answer_is_never_taken_for_a_call(path: Path) -> None:
    template = path.read_text("utf-8")
    format_ = choose_format(template, (), knows_tools=True)
    syntax = format_.syntax.for_tools(RULES)
    for as_tokens in (False, True):
        words = vocabulary(format_.markup, as_tokens)
        lark = Lark(words.specials)
        section = syntax.section(lark, RULES, True)
        text = lark_grammar(lark.grammar(section))
        triggers = tuple(Trigger(t.mark, text, t.leading) for t in syntax.triggers)
        assert triggers
        plan = Plan(Grammars(words), triggers=triggers)
        for answer in ANSWERS:
            turn = {"role": "assistant", "content": answer}
            try:
                reply = emitted(template, turn, functions="[]", datetime="now")
            except Exception:  # a template of which this simple rendering asks too much
                reply = answer
            guide = plan()
            for token in words.encode_markup(reply):
                guide.accept(token)
                assert guide.allowed() is None, (reply, guide)


@pytest.mark.parametrize("name", ["openai-gpt-oss-120b", "muse-glimmer", "upstage-Solar-Open-100B"])
def test_reasoning_in_a_message_of_its_own_is_ended_by_a_budget(name: str) -> None:
    template = (SHARED / "templates" / f"{name}.jinja").read_text("utf-8")
    format_ = choose_format(template, (), knows_tools=True)
    marks = format_.syntax.reasoning
    assert format_.syntax.thinks and marks is not None
    words = vocabulary(format_.markup | {marks.tail}, as_tokens=True)
    reasoning = Reasoning(marks.opening, marks.closing, marks.tail, budget=3)
    guide = Plan(Grammars(words), reasoning=reasoning)()
    for token in words.encode_markup(f"{marks.opening}abc"):
        assert not guide.forced()
        guide.accept(token)
    ending = marks.closing + marks.tail
    assert list(guide.forced()) == words.encode_markup(ending)
    for token in words.encode_markup(ending):
        guide.accept(token)
    assert not guide.forced() and guide.allowed() is None
    # What the reply is then read as: the reasoning, and nothing of its markup.
    events = run([f"{marks.opening}abc{ending}"], format_.syntax)
    assert [type(e) for e in events] == [Thought] and events[0].text == "abc"
