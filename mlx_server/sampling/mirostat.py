"""Mirostat (arXiv:2007.14966): the surprise of the tokens is held near `mirostat_tau` bits.

A bound on the surprise, mu, says how much of the tail is dropped before a token is drawn;
afterwards it is moved against the error of what was drawn. It begins at 2 tau. All is as in
llama.cpp (`llama_sampler_mirostat_apply` and `llama_sampler_mirostat_v2_apply` in
src/llama-sampling.cpp): the temperature comes before, no other filter is applied, and the
error is that of the probability after the tail was dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_server.sampling.candidates import Candidates
from mlx_server.sampling.draw import temperatures
from mlx_server.sampling.row import SamplingRow, column

M = 100
"""Of the most likely tokens, whose probabilities the exponent of Zipf's law is fitted to."""


@dataclass(frozen=True, slots=True)
class Mirostat:
    """
    Args:
        version: 1 or 2.
    """

    version: int

    def apply(self, logits: mx.array, rows: Sequence[SamplingRow]) -> Candidates:
        """What a token is drawn from, at temperature 1.

        Args:
            logits: float32 [R, V], processed and masked.
            rows: R rows; `row.mu` is used.
        """
        best = logits.max(axis=-1, keepdims=True)
        left = Candidates((logits - best) / temperatures(rows))
        mu = column(_mu(row) for row in rows)
        return _by_rank(left, mu) if self.version == 1 else _by_surprise(left, mu)

    def moved(self, left: Candidates, drawn: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
        """The new mu, float32 [R].

        Args:
            left: As `apply` gave it.
            drawn: int [R], the places of the tokens in it.
        """
        place = drawn[:, None].astype(mx.int32)
        surprise = -mx.take_along_axis(left.logprobs(), place, axis=-1) / math.log(2)
        error = surprise - column(row.params.mirostat_tau for row in rows)
        mu = column(_mu(row) for row in rows)
        return (mu - column(row.params.mirostat_eta for row in rows) * error)[:, 0]


def _mu(row: SamplingRow) -> float:
    return 2 * row.params.mirostat_tau if row.mu is None else row.mu


def _by_surprise(left: Candidates, mu: mx.array) -> Candidates:
    """Version 2: drop tokens more surprising than mu, but never the best one.

    Args:
        mu: float32 [R, 1], bits.
    """
    first = left.places() == mx.argmax(left.logits, axis=-1, keepdims=True)
    return left.kept((-left.logprobs() / math.log(2) <= mu) | first)


def _by_rank(left: Candidates, mu: mx.array) -> Candidates:
    """Version 1: keep the k best, where Zipf's law says that their surprise is mu.

    The exponent s is fitted to the M best; with e = s - 1

        k = (e · 2^mu / (1 - V^-e)) ^ (1 / s)

    computed by its logarithm, so that no mu overflows.

    Args:
        mu: float32 [R, 1], bits.
    """
    left = left.in_order()
    vocab_size = left.logits.shape[-1]
    count = left.count()
    steps = min(M, vocab_size) - 1
    ratios = mx.log(mx.arange(2, steps + 2) / mx.arange(1, steps + 1))[None]
    there = left.places()[:, :steps] < count - 1
    falls = mx.where(there, left.logits[:, :steps] - left.logits[:, 1 : steps + 1], 0.0)
    weights = mx.where(there, ratios, 0.0)
    square = mx.square(weights).sum(axis=-1, keepdims=True)
    s = (weights * falls).sum(axis=-1, keepdims=True) / mx.maximum(square, 1e-9)
    e = s - 1
    e = mx.where(mx.abs(e) < 1e-4, 1e-4, e)  # near its limit, 1 / ln V
    spread = mx.log(e / -mx.expm1(-e * math.log(max(vocab_size, 2))))
    log_k = (spread + mu * math.log(2)) / mx.maximum(s, 1e-9)
    k = mx.exp(mx.clip(log_k, 0.0, math.log(vocab_size) + 1.0))
    return left.head(mx.clip(k.astype(mx.int32), 1, vocab_size))
