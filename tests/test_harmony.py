"""gpt-oss's and Muse's messages: channels, recipients, and what stands between them."""

from __future__ import annotations

import pytest
from grammars import Bytes
from literal_cases import HARMONY_TOKENS
from parsing import read, run

from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Thought
from mlx_server.text.parsers.harmony import Harmony
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.muse import MUSE

HARMONY = Harmony()
NEXT = "<|end|><|start|>assistant"
THOUGHT = f"<|channel|>analysis<|message|>Hm <b>.{NEXT}"
CALL = "<|channel|>commentary to=functions.get.it-now <|constrain|>json<|message|>"
ATEM = '<atem:function_calls>\n<atem:invoke name="f">\n</atem:invoke>\n</atem:function_calls>'
TOOL = ToolRule("f", {"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|channel|>final<|message|>Hi<|return|>", [Content("Hi")]),
        ("<|start|>assistant<|channel|>final<|message|>Hi", [Content("Hi")]),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", [Content("{}")]),
        (f"{THOUGHT}<|channel|>final<|message|>Hi", [Thought("Hm <b>."), Content("Hi")]),
        (
            f"<|channel|>commentary<|message|>I look.{NEXT}{CALL}{{}}<|call|>",
            [Content("I look."), CallStart("get.it-now"), CallPiece("{}")],
        ),
        (
            f'{THOUGHT}{CALL}{{"a": [1]}}<|call|>',
            [Thought("Hm <b>."), CallStart("get.it-now"), CallPiece('{"a": [1]}')],
        ),
        # The recipient first, another channel, no type, no end, a person.
        (
            " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
            [CallStart("f"), CallPiece("{}")],
        ),
        (
            "<|start|>assistant to=functions.f<|channel|>analysis<|message|>{}",
            [CallStart("f"), CallPiece("{}")],
        ),
        ("to=functions.f code<|message|><|call|>", [CallStart("f"), CallPiece("{}")]),
        (
            "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
            [CallStart("python"), CallPiece("print(1)")],
        ),
        (
            f'{CALL}{{"a": 1}}<|start|>assistant{CALL}{{}}',
            [
                *(CallStart("get.it-now"), CallPiece('{"a": 1}')),
                *(CallStart("get.it-now"), CallPiece("{}")),
            ],
        ),
        ("<|channel|>commentary to=user<|message|>Hi<|end|>", [Content("Hi")]),
        (
            "<|channel|>analysis<|message|>Hm<|channel|>final<|message|>Hi",
            [Thought("Hm"), Content("Hi")],
        ),
        # Cut off.
        ("<|channel|>", []),
        ("<|channel|>ana", []),
        ("<|channel|>final<|mess", []),
        (f"{THOUGHT}<|channel|>commentary to=functions.ge", [Thought("Hm <b>.")]),
        ("<|channel|>commentary to=functions.f ", [CallStart("f")]),
        (f'{CALL}{{"a": ', [CallStart("get.it-now"), CallPiece('{"a": ')]),
        # No messages.
        ("Plain text", [Content("Plain text")]),
        ("Use <|channel|> to switch.", [Content("Use <|channel|> to switch.")]),
        ("<|channel|>other<|message|>Hi", [Content("<|channel|>other<|message|>Hi")]),
        ("<|start|>user<|message|>Hi", [Content("<|start|>user<|message|>Hi")]),
    ],
)
def test_harmony(text, expected):
    assert read(text, HARMONY) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" to=user<|message|>Hi<|eot|>", [Content("Hi")]),
        ("<|message|>Hi", [Content("Hi")]),
        (
            f" to=self<|message|>Hm<|eom|><|start|>assistant to=f<|message|>{ATEM}<|eom|>",
            [Thought("Hm"), CallStart("f"), CallPiece("{}")],
        ),
        (
            " to=self<|message|>Hm<|eom|><|start|>assistant to=user<|message|>Hi<|eot|>",
            [Thought("Hm"), Content("Hi")],
        ),
        (" to=us", []),
        (" to=user<|mess", []),
        (" to=self<|message|>H", [Thought("H")]),
        ("to=bob, or not", [Content("to=bob, or not")]),
        ("<|start|>assistant, he said", [Content("<|start|>assistant, he said")]),
    ],
)
def test_muse(text, expected):
    assert read(text, MUSE) == expected


MUSE_TOKENS = ["<|start|>", "<|message|>", "<|eom|>"]
MUSE_THOUGHT = " to=self<|message|>Hm.<|eom|><|start|>assistant"


@pytest.mark.parametrize("most", [None, 3, 0])
@pytest.mark.parametrize(
    ("syntax", "tokens", "thought", "call", "answer"),
    [
        (
            HARMONY,
            HARMONY_TOKENS,
            f"<|channel|>analysis<|message|>Hm.{NEXT}",
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            "<|channel|>final<|message|>yes",
        ),
        (MUSE, MUSE_TOKENS, MUSE_THOUGHT, f" to=f<|message|>{ATEM}", " to=user<|message|>yes"),
    ],
)
def test_grammars_allow_so_much_reasoning(syntax, tokens, thought, call, answer, most):
    vocabulary = Bytes(tokens)
    for body in ("call", "answer"):
        lark = Lark(vocabulary.specials)
        if body == "call":
            grammar, text = syntax.calls(lark, [TOOL]), call
        else:
            grammar, text = syntax.answer(lark, '"yes"'), answer
        grammar = lark.grammar(f"{syntax.thought(lark, most)} {grammar}")
        assert vocabulary.accepts(grammar, text)
        assert vocabulary.accepts(grammar, thought + text) == (most != 0)
        long = thought.replace("Hm.", "Hm, hm.") + text
        assert vocabulary.accepts(grammar, long) == (most is None)
        assert not vocabulary.accepts(grammar, "yes")


@pytest.mark.parametrize(
    ("syntax", "tokens", "text"),
    [
        (HARMONY, HARMONY_TOKENS, f'{THOUGHT}{CALL}{{"a": "b"}}<|call|>'),
        (MUSE, MUSE_TOKENS, f"{MUSE_THOUGHT} to=f<|message|>{ATEM}"),
    ],
)
def test_every_token_adds_to_what_was_there(syntax, tokens, text):
    vocabulary = Bytes(tokens)
    ids = vocabulary.encode(text)
    whole = read(text, syntax)
    for end in range(len(ids)):
        for found, expected in zip(
            run([vocabulary.decode(ids[:end])], syntax), whole, strict=False
        ):
            if isinstance(found, Content):  # markup that is no token, not yet whole
                assert any(text.startswith(found.text) for text in (" to=", ATEM))
            elif isinstance(found, CallStart):
                assert found == expected
            else:
                assert expected.text.startswith(found.text)
