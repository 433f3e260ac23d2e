"""mlx-lm's filters: which tokens stay in question, for rows that use the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_server.sampling.row import column, power_of_two
from mlx_server.sampling_params import SamplingParams


class Distribution:
    """Logits [R, V] that filters look at; sorted at most once, and only if asked.

    No filter needs them normalised: top_k and min_p compare, top_p divides by a
    sum that it has anyway.

    Args:
        logits: float32 [R, V]; -inf for what is impossible.
    """

    def __init__(self, logits: mx.array) -> None:
        self.logits = logits

    @cached_property
    def ascending(self) -> mx.array:
        """The logits sorted along the vocabulary, least first: [R, V]."""
        return mx.sort(self.logits, axis=-1)

    def kth_largest(self, k: np.ndarray) -> mx.array:
        """[R, 1]: row r's k[r]-th largest value, 1 ≤ k ≤ V."""
        vocab_size = self.logits.shape[-1]
        width = power_of_two(int(k.max()))
        if "ascending" in self.__dict__ or 8 * width > vocab_size:
            tail, width = self.ascending, vocab_size
        else:  # a partition costs a tenth of a sort where the backend has one
            top = mx.partition(self.logits, vocab_size - width, axis=-1)
            tail = mx.sort(top[:, vocab_size - width :], axis=-1)
        return mx.take_along_axis(tail, column(width - k, np.int32), axis=-1)


@dataclass(frozen=True, slots=True)
class Filter:
    """`keep(distribution, params of its R rows)` is a boolean [R, V]; it keeps one at least."""

    uses: Callable[[SamplingParams], bool]
    keep: Callable[[Distribution, Sequence[SamplingParams]], mx.array]


def top_p(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep the smallest set of tokens whose probabilities reach top_p, and their
    equals (nucleus sampling, arXiv:1904.09751): bool [R, V]."""
    ascending = distribution.ascending
    probs = mx.exp(ascending - ascending[:, -1:])
    mass_above = mx.cumsum(probs, axis=-1, reverse=True, inclusive=False)
    total = mass_above[:, :1] + probs[:, :1]
    reached = mass_above >= column(p.top_p for p in params) * total
    # Never all of them, even where top_p is so small that it is 0 in float32.
    dropped = mx.minimum(reached.sum(axis=-1, keepdims=True), ascending.shape[-1] - 1)
    return distribution.logits >= mx.take_along_axis(ascending, dropped, axis=-1)


def min_p(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep tokens at least min_p times as likely as the best one (arXiv:2407.01082):
    bool [R, V]."""
    best = distribution.logits.max(axis=-1, keepdims=True)
    return distribution.logits >= best + column(np.log([p.min_p for p in params]))


def top_k(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep exactly the k most likely tokens (arXiv:1805.04833); of equals, those with the lowest
    ids: bool [R, V]."""
    logits = distribution.logits
    k = np.array([min(p.top_k, logits.shape[-1]) for p in params])
    threshold = distribution.kth_largest(k)
    above, equal = logits > threshold, logits == threshold
    room = column(k, np.int32) - above.sum(axis=-1, keepdims=True)
    return above | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= room))


def only_best(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep the best token, of equals the first: what a greedy choice is made of. bool
    [R, V]."""
    logits = distribution.logits
    return mx.arange(logits.shape[-1]) == mx.argmax(logits, axis=-1, keepdims=True)


FILTERS = (
    Filter(lambda params: params.top_p < 1, top_p),
    Filter(lambda params: params.min_p > 0, min_p),
    Filter(lambda params: params.top_k > 0, top_k),
)
"""In mlx-lm's order, before the temperature as there. All look at the unfiltered
distribution: each keeps a head of the same ranking, so what is left is what
applying them one after the other leaves. A new one is added here."""

ONLY_BEST = Filter(lambda params: params.top_k == 1 or params.top_p <= 0, only_best)
"""In place of the others, where somebody has to be told what the token was drawn from."""
