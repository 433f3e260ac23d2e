"""JSON Schemas: what is let through follows them, what follows them is let through, and what
cannot be held to is refused. `jsonschema` is the judge of all three."""

from __future__ import annotations

import json
import random
from datetime import date, datetime
from typing import Any

import jsonschema
import numpy as np
import pytest
from guiding import EOS, TOKENS, WIDTH, client, encode, make_grammars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_cases import CLIENTS, FORMATS, HELD, INT, REFUSED, SAME_TO_ALL, obj

from mlx_server.errors import RequestError
from mlx_server.sampling.schema import exact_schema
from mlx_server.sampling.schema_strings import portable_pattern

GRAMMARS = make_grammars()
JUDGE = jsonschema.Draft202012Validator
WALKS = 20


def compiled(schema: Any) -> str:
    return GRAMMARS.compile(client("json_schema", json.dumps(schema), "response_format"))


def accepts(grammar: str, text: str) -> bool:
    matcher = GRAMMARS.matcher(grammar)
    return matcher.try_accept(encode(text)) and matcher.complete


def follows(schema: Any, instance: Any, judge: Any = JUDGE) -> bool:
    judge = jsonschema.validators.validator_for(schema, judge)
    return judge(schema, format_checker=judge.FORMAT_CHECKER).is_valid(instance)


def walk(grammar: str, seed: int, most: int = 160) -> str | None:
    """What a model might write that knows nothing; None where it came to no end."""
    rng, matcher, ids = random.Random(seed), GRAMMARS.matcher(grammar), []
    while len(ids) < most:
        if matcher.ended:
            return b"".join(TOKENS[i] for i in ids).decode()
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")[:WIDTH]
        options = set(np.flatnonzero(bits).tolist())
        assert options, b"".join(TOKENS[i] for i in ids)
        if EOS in options and (len(options) == 1 or rng.random() < 0.3):
            return b"".join(TOKENS[i] for i in ids).decode()
        options -= {EOS}
        closing = sorted(options & set(b'"}],'))
        choice = rng.choice(closing if closing and rng.random() < 0.3 else sorted(options))
        matcher.accept(choice)
        ids.append(choice)
    return None


@pytest.mark.parametrize("schema, valid, invalid", HELD.values(), ids=HELD)
def test_what_follows_a_schema_is_let_through_and_nothing_else(
    schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    grammar = compiled(schema)
    for instance, expected in [(x, True) for x in valid] + [(x, False) for x in invalid]:
        assert follows(schema, instance) is expected, "the table is wrong"
        assert accepts(grammar, json.dumps(instance, ensure_ascii=False)) is expected, instance


@pytest.mark.parametrize("schema", [row[0] for row in HELD.values()], ids=HELD)
def test_a_random_walk_follows_the_schema(schema: Any) -> None:
    grammar = compiled(schema)
    ends = [text for seed in range(WALKS) if (text := walk(grammar, seed)) is not None]
    assert ends or "pattern" in json.dumps(schema)  # few letters lead to a pattern's
    for text in ends:
        assert follows(schema, json.loads(text)), text


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_held_to(name: str) -> None:
    schema = {"type": "string", "format": name}
    grammar = compiled(schema)
    valid, invalid = FORMATS[name]
    assert all(accepts(grammar, json.dumps(text)) and follows(schema, text) for text in valid)
    assert not any(accepts(grammar, json.dumps(text)) for text in invalid)
    for text in filter(None, (walk(grammar, seed) for seed in range(30))):
        assert follows(schema, json.loads(text)), text
        if name == "date":
            date.fromisoformat(json.loads(text))
        if name == "date-time":
            datetime.fromisoformat(json.loads(text))


@pytest.mark.parametrize("name", ["int32", "password", "cuid2", "path", "color", "json-string"])
def test_a_format_that_json_schema_does_not_know_is_an_annotation(name: str) -> None:
    grammar = compiled({"type": ["string", "integer"], "format": name})
    assert accepts(grammar, '"anything"') and accepts(grammar, "3")


def test_formats_and_patterns_hold_together() -> None:
    grammar = compiled({"type": "string", "format": "date", "pattern": "^2024"})
    assert accepts(grammar, '"2024-01-31"') and not accepts(grammar, '"2023-01-31"')


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("schema, quoted", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_held_to_is_refused_by_name(schema: Any, quoted: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled(schema)
    assert quoted in str(caught.value) and caught.value.param == "response_format"


def test_a_name_cannot_be_written_again_in_another_spelling() -> None:
    grammar = compiled(obj({"a/": INT}, ["a/"]))
    assert accepts(grammar, '{"a/": 1, "b": "x"}')
    for again in ("\\u0061/", "a\\/", "a/"):
        assert not accepts(grammar, '{"a/": 1, "' + again + '": "x"}')


def test_no_spaces_are_left_to_the_model() -> None:
    grammar = compiled({"type": ["object", "array"]})
    assert accepts(grammar, '{"a": [1, 2], "b": {}}')
    for text in ('{"a":1}', '{ "a": 1}', "[1,2]", "[1, 2]\n", " []"):
        assert not accepts(grammar, text)


# ---------------------------------------------------------------- patterns


@pytest.mark.filterwarnings("ignore:Possible set:FutureWarning")
@pytest.mark.parametrize("pattern", SAME_TO_ALL)
def test_a_pattern_is_held_to_in_pythons_reading_too(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern, "maxLength": 6}
    found = [text for seed in range(60) if (text := walk(compiled(schema), seed)) is not None]
    assert found
    for text in found:
        assert "\\p" in pattern or follows(schema, json.loads(text)), text


@pytest.mark.parametrize(
    "pattern, reason",
    [("a++", "quantifier"), ("[]a]", "`]`"), ("a\\", "end"), ("[a", "without"), ("\\x4", "digits")],
)
def test_a_pattern_that_engines_read_differently_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        portable_pattern(pattern)


# ---------------------------------------------------------------- what clients send


@pytest.mark.parametrize("schema, reply", CLIENTS.values(), ids=CLIENTS)
def test_what_clients_send_is_held_to(schema: Any, reply: Any) -> None:
    assert follows(schema, reply), "the table is wrong"
    grammar = compiled(schema)
    assert accepts(grammar, json.dumps(reply))
    for text in filter(None, (walk(grammar, seed, 400) for seed in range(WALKS))):
        assert follows(schema, json.loads(text)), text


# ---------------------------------------------------------------- any schema

scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": ["string", "null"]}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.builds(
        lambda low, size: {"type": "number", "minimum": low / 8, "maximum": (low + size) / 8},
        st.integers(-20, 20),
        st.integers(1, 40),
    ),
    st.builds(lambda n: {"type": "integer", "multipleOf": n}, st.integers(1, 12)),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.permutations(["a", 1, None, 2.5, "é"]).map(lambda values: {"enum": values[:3]}),
    st.sampled_from(["^[ab]{1,3}$", "^\\d+$", "x?y"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)


def compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.permutations("abcd").map(lambda names: names[1:])
    return st.one_of(
        st.builds(
            lambda names, schema, rest, all_: {
                "type": "object",
                "properties": dict.fromkeys(names, schema),
                "required": names[: len(names) if all_ else 1],
                "additionalProperties": rest,
            },
            names, inner, st.one_of(st.booleans(), inner), st.booleans(),
        ),
        st.builds(
            lambda first, rest, low: {
                "type": "array", "prefixItems": first, "items": rest,
                "minItems": low, "maxItems": low + 2,
            },
            st.lists(inner, min_size=1, max_size=2), inner, st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        inner.map(lambda part: {"allOf": [part, {"description": "the same"}]}),
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(scalars, compounds, max_leaves=6), st.integers(0, 2**32))
def test_a_random_walk_follows_any_schema(schema: Any, seed: int) -> None:
    grammar = compiled(schema)
    for text in filter(None, (walk(grammar, seed + i) for i in range(4))):
        assert follows(schema, json.loads(text)), text


@given(st.recursive(scalars, compounds, max_leaves=6))
def test_an_exact_schema_is_exact_already(schema: Any) -> None:
    once = exact_schema(schema)
    assert exact_schema(once) == once
