"""Models that know nothing of a grammar, or of anything, write replies that follow it: those that
end do, and those that are cut say so."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from guiding import EOS, WIDTH, client, decode, make_grammars
from models import CONFIG, make_engine, make_pair, random_prompts, request, run

from mlx_server.core import ChatPrompt, GenerationRequest, Grammar, Message, TextPart
from mlx_server.deltas import Finished, Text
from mlx_server.pool import ModelPool
from mlx_server.sampling.guide import Plan

COPIES = 64
TOKEN_LIMIT = 160
"""Well above what the bounded schemas need, byte by byte."""

GRAMMARS = make_grammars()


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


SHORT = {"type": "string", "maxLength": 8}
BOUNDED = {
    "a person": closed(
        {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120},
         "kind": {"enum": ["cat", "dog"]}}
    ),
    "a list": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9},
               "minItems": 1, "maxItems": 5},
    "a tagged union": {
        "$defs": {"A": closed({"t": {"const": "a"}, "on": {"type": "boolean"}}),
                  "B": closed({"t": {"const": "b"}, "word": SHORT})},
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
    },
    "strings": closed({"date": {"type": "string", "format": "date"},
                       "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}),
    "what may be left out": {
        "type": "object", "additionalProperties": False,
        "properties": {"a": {"type": ["boolean", "null"]}, "b": {"const": [1, "x"]}, "c": SHORT},
    },
    "a tree of two levels": closed(
        {"left": closed({"n": {"enum": [1, 2.5]}}), "right": {"anyOf": [SHORT, {"type": "null"}]}}
    ),
}  # fmt: skip
"""Schemas whose instances have an end."""

OTHERS = {
    "a regex": ("regex", "[A-Z][a-z]{2,8} [0-9]{4}"),
    "GBNF": (
        "gbnf",
        'root ::= move (", " move){0,3}\nmove ::= [a-h] [1-8] ("x" | "-") [a-h] [1-8]',
    ),
    "Lark": ("lark", 'start: word (" " word){0,3} "."\nword: /[a-z]{1,6}/'),
}
MATCHES = {
    "a regex": r"[A-Z][a-z]{2,8} [0-9]{4}",
    "GBNF": r"[a-h][1-8][x-][a-h][1-8](, [a-h][1-8][x-][a-h][1-8]){0,3}",
    "Lark": r"[a-z]{1,6}( [a-z]{1,6}){0,3}\.",
}
UNBOUNDED = {
    "any object": {"type": "object"},
    "a list without end": {"type": "array", "items": {"type": "string"}},
    "a tree": {"$ref": "#/$defs/n", "$defs": {"n": {
        "type": "object", "additionalProperties": False, "required": ["v", "kids"],
        "properties": {"v": {"type": "boolean"},
                       "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}}},
}  # fmt: skip
GIVEN = {
    **{name: client("json_schema", found) for name, found in {**BOUNDED, **UNBOUNDED}.items()},
    **{name: client(kind, text) for name, (kind, text) in OTHERS.items()},
}


def check(name: str, text: str) -> None:
    if name in MATCHES:
        assert re.fullmatch(MATCHES[name], text), text
        return
    judge = jsonschema.Draft202012Validator
    schema = {**BOUNDED, **UNBOUNDED}[name]
    judge(schema, format_checker=judge.FORMAT_CHECKER).validate(json.loads(text))


def check_all(name: str, replies: list[tuple[str, str]]) -> None:
    """
    Args:
        replies: Texts and finish reasons.
    """
    reasons = Counter(reason for _, reason in replies)
    print(f"{name}: {dict(reasons)} of {len(replies)}")
    assert set(reasons) <= {"stop", "length"}
    for text, reason in replies:
        if reason == "stop":
            check(name, text)
    if name not in UNBOUNDED:
        share = reasons["stop"] / len(replies)
        assert share >= 0.95, f"{share:.0%} of the replies ended within {TOKEN_LIMIT} tokens"


# ---------------------------------------------------------------- a model of random weights


@pytest.fixture(scope="module")
def random_model():
    return make_pair({**CONFIG, "vocab_size": WIDTH})[1]


@pytest.mark.parametrize("name", GIVEN)
def test_random_weights_write_what_follows_the_grammar(random_model, name: str) -> None:
    (prompt,) = random_prompts([7])
    made = request(
        name,
        prompt,
        n=COPIES,
        eos=frozenset({EOS}),
        temperature=1.5,
        max_tokens=TOKEN_LIMIT,
        seed=3,
    )
    plan = Plan(GRAMMARS, GRAMMARS.compile(GIVEN[name]))
    found = run(make_engine(random_model, batch=COPIES), replace(made, guide=plan))
    assert not found.errors
    check_all(
        name,
        [
            (decode([t for t in found.tokens(name, i) if t != EOS]), str(found.reason(name, i)))
            for i in range(COPIES)
        ],
    )


@pytest.mark.parametrize("limit", [1, 5, 17])
def test_a_reply_that_is_cut_says_so(random_model, limit: int) -> None:
    (prompt,) = random_prompts([7])
    plan = Plan(GRAMMARS, GRAMMARS.compile(GIVEN["a person"]))
    made = request("r", prompt, n=8, eos=frozenset({EOS}), temperature=1.5, max_tokens=limit)
    found = run(make_engine(random_model), replace(made, guide=plan))
    for i in range(8):
        assert found.reason("r", i) == "length" and len(found.tokens("r", i)) == limit


# ---------------------------------------------------------------- a model that has learned


@pytest.fixture(scope="module")
def pool(open_pool, stories) -> ModelPool:
    return open_pool(model=str(stories / "stories260k-chat"))


def replies_of(
    pool: ModelPool, name: str, grammar: Grammar, n: int, limit: int, temperature: float = 1.5
) -> list[tuple[str, str]]:
    asked = Message("user", (TextPart("Tell me of Tom and his dog."),))
    options = {"temperature": temperature, "max_tokens": limit, "seed": 11}
    generation = pool.generate(
        GenerationRequest(
            id=name, model=None, prompts=(ChatPrompt((asked,)),), options=options, n=n,
            grammar=grammar,
        )
    )  # fmt: skip
    texts, reasons = [""] * n, [""] * n
    for delta in generation:
        match delta:
            case Text(index=index, text=text):
                texts[index] += text
            case Finished(index=index, reason=reason):
                reasons[index] = reason
    return list(zip(texts, reasons, strict=True))


@pytest.mark.parametrize("name", GIVEN)
def test_a_story_teller_writes_what_follows_the_grammar(pool: ModelPool, name: str) -> None:
    check_all(name, replies_of(pool, name, GIVEN[name], COPIES, TOKEN_LIMIT))


def test_a_greedy_reply_follows_it_too(pool: ModelPool) -> None:
    for name in BOUNDED:
        ((text, reason),) = replies_of(pool, name, GIVEN[name], 1, TOKEN_LIMIT, temperature=0.0)
        assert reason == "stop"
        check(name, text)


def test_a_cut_reply_of_the_story_teller_says_so(pool: ModelPool) -> None:
    replies = replies_of(pool, "cut", GIVEN["a person"], 8, 5)
    assert {reason for _, reason in replies} == {"length"}
