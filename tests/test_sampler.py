"""Sampling: the right distribution, mlx-lm's filters, the same token in any company."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import sample_utils

from mlx_server.sampling import draw, filters
from mlx_server.sampling.draw import row_numbers
from mlx_server.sampling.filters import Distribution
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling.sampler import position_logprobs, sample
from mlx_server.sampling_params import SamplingParams

VOCAB = 203


def make_row(
    position: int = 4, choice: int = 0, pending: bool = False, **params: Any
) -> SamplingRow:
    known = np.array([3, 1, 4, 1, 5], dtype=np.int32)
    return SamplingRow(
        params=SamplingParams(**{"seed": 7, **params}),
        choice=choice,
        position=position,
        token_ids=known,
        num_prompt_tokens=3,
        pending=pending,
    )


def make_logits(num_rows: int, dtype: mx.Dtype = mx.float32, vocab: int = VOCAB) -> mx.array:
    return (mx.random.normal((num_rows, vocab), key=mx.random.key(3)) * 3).astype(dtype)


def tokens_of(logits: mx.array, rows: list[SamplingRow], last: list[int] | None = None) -> list:
    pending = None if last is None else mx.array(last, dtype=mx.int32)
    return sample(logits, rows, pending).tokens.tolist()


def draws(logits: list[float] | np.ndarray, count: int, **params: Any) -> np.ndarray:
    """`count` tokens of one distribution, at as many positions."""
    repeated = mx.broadcast_to(mx.array(logits, dtype=mx.float32), (count, len(logits)))
    return np.array(tokens_of(repeated, [make_row(i, **params) for i in range(count)]))


# ---------------------------------------------------------------- greedy


GREEDY = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0, "top_p": 0.5}]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("settings", GREEDY, ids=str)
def test_greedy_takes_the_best_and_of_equals_the_first(settings: dict, dtype: mx.Dtype) -> None:
    logits = make_logits(5, dtype)
    expected = np.argmax(np.array(logits.astype(mx.float32)), axis=-1).tolist()
    assert tokens_of(logits, [make_row(**settings) for _ in range(5)]) == expected
    tied = mx.array([[0.0, 2.0, 1.0, 2.0]])
    assert tokens_of(tied, [make_row(**settings)]) == [1]


def test_tokens_are_int32() -> None:
    for settings in ({"temperature": 0.0}, {}, {"top_p": 0.5}):
        assert sample(make_logits(1), [make_row(**settings)]).tokens.dtype == mx.int32


# ---------------------------------------------------------------- filters


def kept(logits: mx.array, name: str, *values: float) -> np.ndarray:
    keep = getattr(filters, name)
    params = [SamplingParams(**{name: value}) for value in values]
    return np.array(keep(Distribution(logits.astype(mx.float32)), params))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", v) for v in (1e-6, 0.1, 0.5, 0.9, 0.999)]
    + [("min_p", v) for v in (1e-6, 0.02, 0.3, 1.0)]
    + [("top_k", v) for v in (1, 2, 17, 100, VOCAB - 1)],
)
def test_filters_keep_what_mlx_lm_keeps(name: str, value: float, dtype: mx.Dtype) -> None:
    logits = make_logits(4, dtype).astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    theirs = np.array(getattr(sample_utils, f"apply_{name}")(logprobs, value))
    ours = np.where(kept(logprobs, name, *[value] * 4), np.array(logprobs), -np.inf)
    if name == "top_k":  # which of several equals stay is undefined there: compare their values
        theirs, ours = np.sort(theirs, axis=-1), np.sort(ours, axis=-1)
    np.testing.assert_array_equal(ours, theirs)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = mx.log(mx.array([[0.1, 0.4, 0.2, 0.3]]))
    for value, expected in ((0.35, {1}), (0.45, {1, 3}), (0.75, {1, 3, 2}), (0.95, {0, 1, 2, 3})):
        assert set(np.flatnonzero(kept(logits, "top_p", value))) == expected


@pytest.mark.parametrize(("name", "value"), [("top_p", 1e-60), ("min_p", 1.0), ("top_k", 1)])
def test_the_strictest_filter_keeps_the_best_token(name: str, value: float) -> None:
    logits = make_logits(3)
    best = np.argmax(np.array(logits), axis=-1)[:, None]
    assert (kept(logits, name, *[value] * 3) == (np.arange(VOCAB) == best)).all()


def test_top_p_keeps_equals_together_and_top_k_the_first_of_them() -> None:
    logits = mx.array([[1.0, 3.0, 3.0, 0.0, 3.0]])
    assert kept(logits, "top_p", 0.2).tolist() == [[False, True, True, False, True]]
    assert kept(logits, "top_k", 2).tolist() == [[False, True, True, False, False]]
    assert kept(logits, "top_k", 4).tolist() == [[True, True, True, False, True]]


@pytest.mark.parametrize("vocab", [31, 4096])
def test_top_k_keeps_k_with_and_without_a_full_sort(vocab: int) -> None:
    values = [2, 5, 31, 10**6]
    logits = make_logits(4, mx.bfloat16, vocab)  # many equals
    for ks in (values, values[:2]):
        rows = logits[: len(ks)].astype(mx.float32)
        keep = kept(rows, "top_k", *ks)
        assert keep.sum(axis=-1).tolist() == [min(k, vocab) for k in ks]
        for row, mask in zip(np.array(rows), keep, strict=True):
            best = np.argsort(-row, kind="stable")[: mask.sum()]
            assert set(np.flatnonzero(mask)) == set(best)


def test_a_distribution_is_sorted_only_where_the_filter_needs_it() -> None:
    distribution = Distribution(make_logits(2, vocab=4096))
    filters.min_p(distribution, [SamplingParams(min_p=0.1)] * 2)
    filters.top_k(distribution, [SamplingParams(top_k=20)] * 2)
    assert "ascending" not in vars(distribution)
    filters.top_p(distribution, [SamplingParams(top_p=0.9)] * 2)
    assert "ascending" in vars(distribution)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_p": 0.7, "min_p": 0.05, "top_k": 6},
        {"top_p": 0.9, "top_k": 3, "temperature": 5.0},
    ],
    ids=str,
)
def test_sampling_stays_within_what_mlx_lm_leaves(settings: dict) -> None:
    logits = make_logits(1, vocab=40)
    left = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for name in ("top_p", "min_p", "top_k"):
        if name in settings:
            left = getattr(sample_utils, f"apply_{name}")(left, settings[name])
    expected = set(np.flatnonzero(np.isfinite(np.array(left[0]))))
    hot = {"temperature": 3.0, **settings}  # so that every token that is left turns up
    assert set(draws(np.array(logits[0]), 600, **hot)) == expected


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    logits, count = np.linspace(-2, 2, 9), 8000
    probs = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    observed = np.bincount(draws(logits, count, temperature=temperature), minlength=9)
    chi_square = ((observed - count * probs) ** 2 / (count * probs)).sum()
    assert chi_square < 26.1  # 8 degrees of freedom, p = 0.001; the draws are fixed


def test_a_tiny_temperature_is_greedy_and_a_huge_one_uniform() -> None:
    logits = make_logits(6) * 50
    best = np.argmax(np.array(logits), axis=-1).tolist()
    for tiny in (1e-3, 1e-20, 1e-300):
        assert tokens_of(logits, [make_row(temperature=tiny)] * 6) == best
    counts = np.bincount(draws(np.linspace(-50, 50, 8), 4000, temperature=1e30), minlength=8)
    assert (abs(counts - 500) < 100).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 100.0}, {"top_p": 0.99}, {"top_k": 5}, {"min_p": 0.001}],
    ids=str,
)
def test_impossible_tokens_are_never_drawn(settings: dict) -> None:
    logits = np.full(32, -np.inf)
    logits[[5, 9]] = [0.0, 1.0]
    assert set(draws(logits, 200, **settings)) == {5, 9}
    only = np.full(32, -np.inf)
    only[30] = -1e30
    assert set(draws(only, 50, **settings)) == {30}
    assert set(draws(np.full(32, -np.inf), 3, **settings)) == {0}  # nothing possible: no crash


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_no_random_number_leads_to_an_impossible_token(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "row_numbers", lambda rows: mx.full((len(rows), 1), number))
    logits = np.full(4000, -np.inf)
    logits[1000:3000] = np.random.default_rng(0).normal(size=2000)
    assert set(draws(logits, 2)) == {1000 if number == 0 else 2999}
    assert set(draws([-math.inf, -math.inf, 0.0], 2)) == {2}


# ---------------------------------------------------------------- streams of random numbers


def test_seed_choice_and_position_each_open_a_stream_of_their_own() -> None:
    logits = mx.broadcast_to(make_logits(1) / 6, (40, VOCAB))
    base = tokens_of(logits, [make_row(i) for i in range(40)])
    assert base == tokens_of(logits, [make_row(i) for i in range(40)])
    for other in ({"seed": 8}, {"seed": -7}, {"seed": 7 + 2**32}, {"choice": 1}):
        different = tokens_of(logits, [make_row(i, **other) for i in range(40)])
        assert different != base
    assert len(set(base)) > 20


def test_numbers_are_even_and_do_not_collide() -> None:
    rows = [
        make_row(position, choice, seed=seed)
        for seed in (0, 1, 2, 2**63, 2**64 - 2)
        for choice in range(5)
        for position in range(100)
    ]
    numbers = np.array(row_numbers(rows))
    assert numbers.dtype == np.float32 and numbers.shape == (len(rows), 1)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(set(numbers[:, 0].tolist())) >= len(rows) - 2  # 24 bits of each hash
    counts, _ = np.histogram(numbers, 10, (0, 1))
    assert abs(counts - 250).max() < 60


# ---------------------------------------------------------------- company


MIXTURE: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.5, "logprobs": 2},
    {"top_k": 7, "temperature": 0.7},
    {"min_p": 0.1, "logprobs": 0},
    {"top_p": 0.9, "min_p": 0.02, "top_k": 40, "presence_penalty": 1.0},
    {"temperature": 2.5, "logit_bias": ((5, 8.0), (6, 8.0))},
    {"top_k": 10**6},
    {"frequency_penalty": 1.5, "top_p": 0.5, "logprobs": 20},
    {"top_p": 0.8, "seed": 11},
    {"top_k": 3, "top_p": 0.3, "repetition_penalty": 1.2},
    {"temperature": 1e-9},
    {"temperature": 0.0},
]


def mixture() -> list[SamplingRow]:
    return [
        make_row(position=i, choice=i % 3, pending=i % 3 == 0, **settings)
        for i, settings in enumerate(MIXTURE)
    ]


@pytest.mark.parametrize("vocab", [33, 1000])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_row_gets_the_same_token_in_any_company(dtype: mx.Dtype, vocab: int) -> None:
    rows = mixture()
    logits, last = make_logits(len(rows), dtype, vocab), list(range(len(rows)))
    together = tokens_of(logits, rows, last)

    alone = [tokens_of(logits[i : i + 1], [rows[i]], [last[i]])[0] for i in range(len(rows))]
    assert together == alone

    generator = np.random.default_rng(5)
    for size in (2, 5, 9, len(rows)):
        some = generator.permutation(len(rows))[:size].tolist()
        assert tokens_of(
            logits[mx.array(some)], [rows[i] for i in some], [last[i] for i in some]
        ) == [together[i] for i in some]


def test_equal_rows_get_equal_tokens_beside_any_neighbour() -> None:
    logits = mx.broadcast_to(make_logits(1), (2 * len(MIXTURE), VOCAB))
    rows = [row for other in mixture() for row in (make_row(99, top_p=0.9), other)]
    tokens = tokens_of(logits, rows, [1] * len(rows))
    assert len(set(tokens[::2])) == 1


# ---------------------------------------------------------------- log-probabilities


def log_softmax(logits: mx.array) -> np.ndarray:
    x = np.array(logits.astype(mx.float32)).astype(np.float64)
    return (
        x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))[:, None]
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_logprobs_are_those_of_the_model(dtype: mx.Dtype) -> None:
    rows = mixture()
    logits = make_logits(len(rows), dtype)
    sampled = sample(logits, rows, mx.zeros((len(rows),), dtype=mx.int32))
    assert sampled.logprob_rows == (3, 5, 9)
    assert len(sampled.arrays()) == 4
    expected = log_softmax(logits)
    tokens = sampled.tokens.tolist()
    for line, i in enumerate(sampled.logprob_rows):
        assert sampled.logprobs[line].item() == pytest.approx(expected[i, tokens[i]], abs=1e-5)
        best = np.argsort(-np.array(logits[i].astype(mx.float32)), kind="stable")[:20]
        np.testing.assert_allclose(
            np.array(sampled.top_logprobs[line]), expected[i, best], atol=1e-5
        )
        np.testing.assert_allclose(
            expected[i, np.array(sampled.top_ids[line])], expected[i, best], atol=1e-9
        )


def test_no_more_is_returned_than_was_asked_for() -> None:
    logits = make_logits(2)
    assert len(sample(logits, [make_row(), make_row()]).arrays()) == 1
    plain = sample(logits, [make_row(), make_row(logprobs=0)])
    assert plain.logprob_rows == (1,) and plain.logprobs.shape == (1,)
    assert plain.top_ids is None and plain.top_logprobs is None
    some = sample(logits, [make_row(logprobs=2), make_row(logprobs=5)])
    assert some.top_ids.shape == some.top_logprobs.shape == (2, 5)
    assert some.top_ids.dtype == mx.int32


def test_the_best_tokens_do_not_hang_on_how_many_a_neighbour_asks_for() -> None:
    logits = mx.broadcast_to(mx.arange(VOCAB) % 4, (2, VOCAB)).astype(mx.float32)  # many equals
    alone = sample(logits[:1], [make_row(logprobs=3)]).top_ids.tolist()[0]
    beside = sample(logits, [make_row(logprobs=3), make_row(logprobs=20)]).top_ids.tolist()[0]
    assert beside[:3] == alone


@pytest.mark.parametrize("tops", [[3, 20, 21], [0, 1, 200, 5], [VOCAB, 40, 33, 64, 2], [10**6, 1]])
def test_rows_may_ask_for_any_number_each(tops: list[int]) -> None:
    logits = mx.floor(make_logits(len(tops)))  # many equals
    together = sample(logits, [make_row(logprobs=top) for top in tops])
    assert together.top_ids.shape == (len(tops), min(max(tops), VOCAB))
    for i, top in enumerate(tops):
        alone = sample(logits[i : i + 1], [make_row(logprobs=top)])
        ids = together.top_ids[i, :top].tolist()
        assert ids == (alone.top_ids[0].tolist() if top else [])
        values = np.array(logits[i])
        assert values[ids].tolist() == sorted(values, reverse=True)[:top]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("top", [0, 1, 5, 30, 300])
def test_position_logprobs(top: int) -> None:
    logits = make_logits(6, mx.bfloat16)
    ids = [0, 5, 100, VOCAB - 1, 7, 7]
    own, top_ids, top_logprobs = position_logprobs(logits, mx.array(ids, dtype=mx.int32), top)
    expected = log_softmax(logits)
    np.testing.assert_allclose(np.array(own), expected[np.arange(6), ids], atol=1e-5)
    assert top_ids.shape == top_logprobs.shape == (6, min(top, VOCAB))
    ranked = -np.sort(-expected, axis=-1)[:, :top]
    np.testing.assert_allclose(np.array(top_logprobs), ranked, atol=1e-5)
    assert all(len(set(line)) == len(line) for line in top_ids.tolist())


# ---------------------------------------------------------------- laziness


def test_building_the_graph_waits_for_nothing() -> None:
    """Logits and pending tokens are large lazy arrays: computing them would show in memory."""
    rows = mixture()
    seed = mx.zeros((len(rows), 1), dtype=mx.int32)
    logits = mx.zeros((len(rows), 200_000)) + seed  # 11 MB
    unread = mx.ones((len(rows), 200_000)) + seed
    pending = mx.argmax(unread, axis=-1).astype(mx.int32)
    mx.eval(seed)
    before = mx.get_active_memory()
    sampled = sample(logits, rows, pending)
    assert mx.get_active_memory() - before < 1_000_000
    mx.eval(sampled.tokens)
    assert mx.get_active_memory() - before > 2 * 10_000_000
