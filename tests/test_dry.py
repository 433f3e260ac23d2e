"""DRY: equal to the definition by brute force, linear, and sparse in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_server.sampling import dry as module
from mlx_server.sampling.dry import dry_penalties
from mlx_server.sampling.row import SamplingRow, needs_host
from mlx_server.sampling.sampler import sample
from mlx_server.sampling_params import SamplingParams

VOCAB = 30
a, b, c, y = 1, 2, 3, 4
EXAMPLE = [a, b, c, c, b, c, y, a, b, c]


def make_params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"dry_multiplier": 1.0, "seed": 3, **options})


def make_row(tokens: Sequence[int], pending: bool = False, **options: Any) -> SamplingRow:
    ids = np.array(tokens, dtype=np.int32)
    return SamplingRow(make_params(**options), 0, len(ids), ids, 1, pending)


def penalties_of(tokens: Sequence[int], **options: Any) -> dict[int, float]:
    ids, values = dry_penalties(np.array(tokens, dtype=np.int32), make_params(**options))
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def by_definition(tokens: Sequence[int], params: SamplingParams) -> dict[int, float]:
    """Every length at every place."""
    size = params.dry_penalty_last_n
    window = list(tokens) if size == -1 else list(tokens)[max(0, len(tokens) - size) :]
    least = params.dry_allowed_length
    if len(window) <= least:
        return {}
    limit = len(window)
    for place in reversed(range(len(window))):
        fitting = [
            x for x in params.dry_breakers if x and x == tuple(window[place : place + len(x)])
        ]
        if fitting:
            limit = len(window) - place - max(map(len, fitting))
            break
    longest: dict[int, int] = {}
    for place in range(1, len(window)):
        n = 0
        while n < min(place, limit) and window[place - 1 - n] == window[-1 - n]:
            n += 1
        if n >= least:
            longest[window[place]] = max(n, longest.get(window[place], 0))
    free = {x[0] for x in params.dry_breakers if len(x) == 1}
    return {
        token: params.dry_multiplier * params.dry_base ** (n - least)
        for token, n in longest.items()
        if token not in free
    }


def test_the_example() -> None:
    assert penalties_of(EXAMPLE, dry_allowed_length=1, dry_base=2.0) == {c: 4.0, b: 1.0, y: 2.0}
    assert penalties_of(EXAMPLE, dry_allowed_length=2, dry_base=2.0) == {c: 2.0, y: 1.0}
    assert penalties_of(EXAMPLE, dry_allowed_length=3, dry_base=2.0) == {c: 1.0}
    assert penalties_of(EXAMPLE, dry_allowed_length=4) == {}


CASES: list[tuple[dict[str, Any], dict[int, float]]] = [
    # A match ends at the last breaker: here none of the tokens behind it is left …
    ({"dry_breakers": ((c,),)}, {}),
    # … here "c" alone, or "b c".
    ({"dry_breakers": ((b,),)}, {c: 1.0, y: 1.0}),
    ({"dry_breakers": ((a,),)}, {c: 2.0, y: 2.0, b: 1.0}),
    # A sequence breaks only where it is complete, and takes all its tokens.
    ({"dry_breakers": ((a, b),)}, {c: 1.0, y: 1.0, b: 1.0}),
    ({"dry_breakers": ((a, c),)}, {c: 4.0, y: 2.0, b: 1.0}),
    ({"dry_breakers": ((b,), (b, c))}, {}),
    ({"dry_breakers": ((c, y), (c, a))}, {c: 4.0, y: 2.0, b: 1.0}),
    ({"dry_breakers": ((c, c, c, c, c), ())}, {c: 4.0, y: 2.0, b: 1.0}),
    # A token that is a breaker itself is not penalised.
    ({"dry_breakers": ((y,),)}, {c: 4.0, b: 1.0}),
    ({"dry_breakers": ((y, b),)}, {c: 4.0, b: 1.0, y: 2.0}),
    # The window.
    ({"dry_penalty_last_n": 7}, {b: 1.0, y: 2.0}),
    ({"dry_penalty_last_n": 5}, {y: 1.0}),
    ({"dry_penalty_last_n": 4}, {}),
    ({"dry_penalty_last_n": 1}, {}),
    ({"dry_penalty_last_n": 100}, {c: 4.0, b: 1.0, y: 2.0}),
]


@pytest.mark.parametrize(("options", "expected"), CASES, ids=str)
def test_breakers_and_windows(options: dict[str, Any], expected: dict[int, float]) -> None:
    options = {"dry_allowed_length": 1, "dry_base": 2.0, **options}
    assert by_definition(EXAMPLE, make_params(**options)) == expected
    assert penalties_of(EXAMPLE, **options) == expected


tokens_lists = st.lists(st.integers(0, 3), min_size=0, max_size=40)
breaker_lists = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=2)


@settings(max_examples=400, deadline=None)
@given(
    tokens_lists,
    breaker_lists,
    st.integers(0, 4),
    st.sampled_from([-1, 1, 3, 10, 30]),
    st.booleans(),
)
def test_equals_the_definition(
    tokens: list[int], breakers: list[list[int]], allowed: int, last: int, twice: bool
) -> None:
    tokens = tokens * (1 + twice)
    options = {
        "dry_breakers": tuple(map(tuple, breakers)),
        "dry_allowed_length": allowed,
        "dry_penalty_last_n": last,
    }
    expected = by_definition(tokens, make_params(**options))
    assert penalties_of(tokens, **options) == pytest.approx(expected)


@pytest.mark.parametrize("period", [1, 2, 7, 300])
@pytest.mark.parametrize("breakers", [(), ((5, 6, 7),), ((0,),)], ids=str)
def test_histories_that_repeat_themselves(period: int, breakers: tuple) -> None:
    """All of them go the way of the Z-algorithm, which the power's limit ends."""
    tokens = [i % period for i in range(1200)]
    options = {"dry_breakers": breakers, "dry_base": 1.5}
    expected = by_definition(tokens, make_params(**options | {"dry_base": 1.0}))
    found = penalties_of(tokens, **options)
    assert found.keys() == expected.keys()
    assert all(0 < value <= 3.5e38 for value in found.values())


def test_no_repetition_goes_across_a_breaker_in_them_either() -> None:
    tokens, options = (20 * [1] + [9]) * 10 + 20 * [1], {"dry_breakers": ((9, 1),)}
    assert penalties_of(tokens, **options) == by_definition(tokens, make_params(**options))


def test_a_history_that_repeats_itself_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    class Counting(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == int(other)

        __hash__ = int.__hash__

    algorithm = module._common_ends
    monkeypatch.setattr(
        module, "_common_ends", lambda window: algorithm([Counting(t) for t in window])
    )
    for period in (1, 3, 50):
        compared = 0
        assert penalties_of([i % period for i in range(3000)])
        assert 0 < compared < 3 * 3000


def test_the_last_breaker_is_found_at_any_distance() -> None:
    for behind in (0, 1, 255, 256, 257, 600):
        phrase = [10 + i % 13 for i in range(behind)]
        tokens = [*phrase, 9, 8, *phrase, 9, 8, *phrase]
        found = penalties_of(tokens, dry_breakers=((9, 8),), dry_base=1.0, dry_allowed_length=0)
        assert (
            found.keys()
            == by_definition(
                tokens, make_params(dry_breakers=((9, 8),), dry_base=1.0, dry_allowed_length=0)
            ).keys()
        )


@pytest.mark.parametrize(
    "off",
    [{"dry_multiplier": 0.0}, {"dry_base": 0.9}, {"dry_penalty_last_n": 0}],
    ids=str,
)
def test_it_can_be_off(off: dict[str, Any]) -> None:
    logits = mx.zeros((1, VOCAB))
    row = make_row(EXAMPLE, probs=VOCAB, **off)
    assert not needs_host(row.params)
    np.testing.assert_allclose(np.array(sample(logits, [row]).top_probs), 1 / VOCAB, rtol=1e-5)


def test_it_is_subtracted_in_the_rows_that_use_it_only() -> None:
    logits = mx.random.normal((4, VOCAB), key=mx.random.key(1))
    repeating = make_row(EXAMPLE, probs=VOCAB, dry_breakers=((b,),))
    greedy = make_row(EXAMPLE, temperature=0.0, dry_multiplier=100.0, probs=VOCAB)
    rows = [make_row(EXAMPLE, dry_multiplier=0.0, probs=VOCAB), repeating, greedy, repeating]
    sampled = sample(logits, rows)
    for line, row in enumerate(rows):
        expected = np.array(logits[line]).astype(np.float64)
        if row.params.dry_multiplier:
            for token, value in by_definition(EXAMPLE, row.params).items():
                expected[token] -= value
        probs = np.zeros(VOCAB)
        probs[np.array(sampled.top_prob_ids[line])] = np.array(sampled.top_probs[line])
        weights = np.exp(expected - expected.max())
        np.testing.assert_allclose(probs, weights / weights.sum(), rtol=1e-4, atol=1e-9)


def test_tokens_beyond_the_vocabulary_and_overflow_do_no_harm() -> None:
    row = make_row([VOCAB + 5, 7] * 400, dry_base=5.0, dry_multiplier=100.0, probs=1)
    sampled = sample(mx.zeros((1, VOCAB)), [row])
    assert 0 < sampled.probs.item() < 1
    row = make_row([5, 7] * 400, dry_base=5.0, dry_multiplier=-100.0, temperature=0.0)
    barred = mx.where(mx.arange(VOCAB)[None] == 5, -mx.inf, 0.0)
    assert sample(barred, [row]).tokens.item() != 5


@pytest.mark.parametrize("samplers", [None, ("top_k", "dry"), ()], ids=str)
def test_a_pending_token_is_an_error(samplers: tuple[str, ...] | None) -> None:
    row = make_row(EXAMPLE, pending=True, samplers=samplers, top_k=3)
    assert needs_host(row.params)
    with pytest.raises(ValueError, match="DRY"):
        sample(mx.zeros((1, VOCAB)), [row], mx.array([1], dtype=mx.int32))
