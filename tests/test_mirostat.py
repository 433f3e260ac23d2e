"""Mirostat: mu, the tail that is dropped and the surprise, over many steps against numpy."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_server.sampling.row import SamplingRow, needs_host
from mlx_server.sampling.sampler import sample
from mlx_server.sampling_params import SamplingParams

VOCAB = 400


def make_row(
    position: int = 5, mu: float | None = None, pending: bool = False, **options: Any
) -> SamplingRow:
    return SamplingRow(
        params=SamplingParams(**{"seed": 11, "mirostat": 2, **options}),
        choice=0,
        position=position,
        token_ids=np.array([3, 1, 4, 1, 5], dtype=np.int32),
        num_prompt_tokens=2,
        pending=pending,
        mu=mu,
    )


def make_logits(step: int, vocab: int = VOCAB) -> mx.array:
    return mx.random.normal((1, vocab), key=mx.random.key(step)) * 2.5


def log2_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return (shifted - math.log(np.exp(shifted).sum())) / math.log(2)


def left_by(logits: np.ndarray, mu: float, params: SamplingParams) -> np.ndarray:
    """The ids that either version leaves, best first."""
    ids = np.flatnonzero(logits > -np.inf)
    ids = ids[np.lexsort((ids, -logits[ids]))]
    scaled = logits[ids] / params.temperature
    if params.mirostat == 2:
        return ids[: max(1, int((-log2_softmax(scaled) <= mu).sum()))]
    if len(ids) == 1:
        return ids
    ranks = np.arange(1, min(100, len(ids)))
    t, falls = np.log((ranks + 1) / ranks), -np.diff(scaled)[: len(ranks)]
    s = (t * falls).sum() / (t * t).sum()
    e = s - 1
    k = ((e * 2**mu) / (1 - len(logits) ** -e)) ** (1 / s)
    return ids[: max(1, int(k))]


SETTINGS: list[dict[str, Any]] = [
    {"mirostat": 2},
    {"mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.3},
    {"mirostat": 2, "mirostat_tau": 0.1, "mirostat_eta": 1.0},
    {"mirostat": 2, "temperature": 0.5},
    {"mirostat": 1},
    {"mirostat": 1, "mirostat_tau": 2.0, "mirostat_eta": 0.3},
    {"mirostat": 1, "temperature": 1.7, "mirostat_tau": 3.0},
    {"mirostat": 1, "presence_penalty": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_many_steps_follow_the_definition(settings: dict[str, Any]) -> None:
    mu = None
    sizes = set()
    for step in range(120):
        row = make_row(step, mu, probs=VOCAB, **settings)
        logits = make_logits(step)
        sampled = sample(logits, [row])
        bound = 2 * row.params.mirostat_tau if mu is None else mu

        processed = np.array(logits[0]).astype(np.float64)
        processed[[4, 1, 5]] -= row.params.presence_penalty
        left = left_by(processed, bound, row.params)
        surprise = -log2_softmax(processed[left] / row.params.temperature)

        ids, probs = np.array(sampled.top_prob_ids[0]), np.array(sampled.top_probs[0])
        assert set(ids[probs > 0]) == set(left)
        np.testing.assert_allclose(probs[: len(left)], 2**-surprise, rtol=1e-4)

        token = sampled.tokens.item()
        own = surprise[left.tolist().index(token)]
        assert sampled.mirostat_rows == (0,)
        assert sampled.probs.item() == pytest.approx(2**-own, rel=1e-4)
        mu = sampled.mu[0].item()
        error = own - row.params.mirostat_tau
        assert mu == pytest.approx(bound - row.params.mirostat_eta * error, abs=1e-4)
        sizes.add(len(left))
    assert len(sizes) > 2  # mu has moved the bound


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [1.5, 3.0])
def test_the_surprise_comes_near_tau(version: int, tau: float) -> None:
    """The paper's claim: of the distribution that is drawn from, on the average."""
    mu, surprises = None, []
    for step in range(600):
        row = make_row(step, mu, mirostat=version, mirostat_tau=tau, probs=0)
        sampled = sample(make_logits(step % 60), [row])
        mu = sampled.mu[0].item()
        surprises.append(-math.log2(sampled.probs.item()))
    assert np.mean(surprises[100:]) == pytest.approx(tau, abs=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_other_samplers_are_not_applied(version: int) -> None:
    others = {"top_k": 2, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "tfs_z": 0.1}
    others |= {"samplers": ("top_k", "top_p"), "min_keep": 3, "dynatemp_range": 0.5}
    others |= {"xtc_probability": 1.0, "xtc_threshold": 0.01, "top_n_sigma": 0.1}
    plain = [make_row(i, 6.0, mirostat=version, probs=9) for i in range(20)]
    with_others = [make_row(i, 6.0, mirostat=version, probs=9, **others) for i in range(20)]
    logits = mx.broadcast_to(make_logits(0), (20, VOCAB))
    for one, two in zip(
        sample(logits, plain).arrays(), sample(logits, with_others).arrays(), strict=True
    ):
        np.testing.assert_array_equal(np.array(one), np.array(two))


def test_dry_comes_before_it() -> None:
    logits = mx.zeros((1, VOCAB))
    row = make_row(dry_multiplier=1000.0, dry_allowed_length=1, probs=VOCAB)
    row.token_ids = np.array([7, 8, 7], dtype=np.int32)
    sampled = sample(logits, [row])
    probs = np.zeros(VOCAB)
    probs[np.array(sampled.top_prob_ids[0])] = np.array(sampled.top_probs[0])
    assert np.flatnonzero(probs == 0).tolist() == [8]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("logits", "mu", "kept"),
    [
        ([0.0], 5.0, 1),  # one token
        ([-math.inf, 2.0, -math.inf, -math.inf], 5.0, 1),  # one possible token
        ([3.0, 1.0, -math.inf, 0.0], 1e4, 3),  # no bound, and no overflow
        ([3.0, 1.0, -math.inf, 0.0], -50.0, 1),  # nothing is as little surprising
        ([1.0, 1.0, 1.0, 1.0], -1.0, 1),  # not even several best ones
    ],
)
def test_edges(version: int, logits: list[float], mu: float, kept: int) -> None:
    row = make_row(mu=mu, mirostat=version, probs=len(logits))
    sampled = sample(mx.array([logits]), [row])
    assert (np.array(sampled.top_probs) > 0).sum() == kept
    assert math.isfinite(sampled.mu.item())
    assert logits[sampled.tokens.item()] > -math.inf


def test_mu_of_a_batch_is_in_the_order_of_its_rows() -> None:
    settings = [{"mirostat": 1}, {}, {"mirostat": 2}, {"mirostat": 2, "temperature": 0.0}]
    settings = [*settings, {"mirostat": 1, "mirostat_eta": 0.5}, {"mirostat": 0, "top_k": 3}]
    rows = [make_row(i, 5.0 + i, **{"mirostat": 0, **s}) for i, s in enumerate(settings)]
    logits = mx.concatenate([make_logits(i) for i in range(len(rows))])
    together = sample(logits, rows)
    assert together.mirostat_rows == (0, 2, 4)
    assert together.mu.shape == (3,) and together.mu.dtype == mx.float32
    for line, i in enumerate(together.mirostat_rows):
        alone = sample(logits[i : i + 1], [rows[i]])
        assert alone.mu.item() == together.mu[line].item()
        assert alone.tokens.item() == together.tokens[i].item()


def test_rows_without_it_bring_no_mu() -> None:
    sampled = sample(make_logits(0), [make_row(mirostat=0)])
    assert sampled.mirostat_rows == () and sampled.mu is None


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"mirostat": 1}, True),
        ({"mirostat": 2, "temperature": 0.3}, True),
        ({"mirostat": 2, "temperature": 0.0}, False),  # greedy: mu would change nothing
        ({"mirostat": 0}, False),
        ({"mirostat": 0, "dry_multiplier": 0.5}, True),
        ({"mirostat": 0, "dry_multiplier": 0.5, "temperature": 0.0}, True),
        ({"mirostat": 0, "repetition_penalty": 1.5, "typical_p": 0.3}, False),
    ],
    ids=str,
)
def test_needs_host(settings: dict[str, Any], needs: bool) -> None:
    assert needs_host(SamplingParams(**settings)) is needs


def test_a_pending_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="Mirostat"):
        sample(make_logits(0), [make_row(pending=True)], mx.array([1], dtype=mx.int32))
