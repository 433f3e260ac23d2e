"""From logits to tokens, for any mixture of settings in one lazy graph.

    logits [M, V] ─ processors ─ allowed tokens ─ rows fall into groups of the same way:
        greedy                     argmax
        no filter                  temperature, draw
        top_p | top_k + min_p | …  filters, temperature, draw
    the groups' tokens, back in the order of the rows ─ tokens [M]

A row's group follows from its own parameters and everything in a group is
computed row by row, so its token is the same whatever else is in the batch, and
greedy rows pay nothing for their neighbours' filters. Nothing here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_server.cache.elementwise import exp_below, logsumexp
from mlx_server.sampling.processors import process
from mlx_server.sampling.row import SamplingRow, column, power_of_two
from mlx_server.sampling_params import MAX_TOP_LOGPROBS, SamplingParams

SMALLEST_TEMPERATURE = 1e-20
"""Greedy in all but name, and far from overflow: logits are divided by it."""


@dataclass(slots=True)
class Sampled:
    """A step's tokens, lazy.

    Attributes:
        tokens: int32 [M].
        logprob_rows: The L rows that asked for log-probabilities.
        logprobs: float32 [L], the chosen tokens' log-softmax of the model's own
            logits, before any processor, filter or temperature.
        top_ids, top_logprobs: int32 and float32 [L, T], best first; T is the
            most that any row asked for. None if that is 0.
    """

    tokens: mx.array
    logprob_rows: tuple[int, ...] = ()
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """What the engine evaluates."""
        every = (self.tokens, self.logprobs, self.top_ids, self.top_logprobs)
        return [array for array in every if array is not None]


def sample(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None = None
) -> Sampled:
    """Choose a token for every row.

    Args:
        logits: [M, V], any float type.
        rows: M of them, at least one.
        pending_tokens: int32 [M], the newest token of each row where
            `row.pending`; None if no row has one.
    """
    processed = constrain(process(logits, rows, pending_tokens), rows)
    groups: dict[Way, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_way(row.params), []).append(i)
    chosen = [
        _choose(_take(processed, group, len(rows)), way, [rows[i] for i in group])
        for way, group in groups.items()
    ]
    tokens = chosen[0] if len(chosen) == 1 else _merge(chosen, list(groups.values()))
    sampled = Sampled(tokens.astype(mx.int32))
    _add_logprobs(sampled, logits, rows)
    return sampled


def constrain(logits: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    """Make impossible what `row.allowed` leaves out, in the rows that have it.

    Args:
        logits: [M, V].
        rows: M rows.
    """
    guided = [i for i, row in enumerate(rows) if row.allowed is not None]
    if not guided:
        return logits
    num_rows, vocab_size = logits.shape
    words = np.full((num_rows, -(-vocab_size // 32)), 0xFFFFFFFF, dtype=np.uint32)
    for i in guided:
        words[i] = rows[i].allowed
    # The bits are spread out on the device: a 32nd of the bytes has to go there.
    bits = (mx.array(words)[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    mask = bits.reshape(num_rows, -1)[:, :vocab_size]
    return mx.where(mask, logits, -mx.inf)


def position_logprobs(
    logits: mx.array, token_ids: mx.array, top: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Log-softmax of given tokens, and the best ones at each position.

    Args:
        logits: [P, V], any float type.
        token_ids: int32 [P].
        top: How many of the best, T = min(top, V); may be 0.

    Returns:
        float32 [P]; int32 [P, T], best first; float32 [P, T].
    """
    logits = logits.astype(mx.float32)
    # Only what is asked for is normalised: no second [P, V] array.
    log_total = logsumexp(logits)
    own = mx.take_along_axis(logits, token_ids[:, None], axis=-1) - log_total
    ids = _best(logits, top)
    return own[:, 0], ids, mx.take_along_axis(logits, ids, axis=-1) - log_total


# ---------------------------------------------------------------- filters


class Distribution:
    """Logits [R, V] that filters look at; sorted at most once, and only if asked.

    No filter needs them normalised: top_k and min_p compare, top_p divides by a
    sum that it has anyway.
    """

    def __init__(self, logits: mx.array) -> None:
        self.logits = logits

    @cached_property
    def ascending(self) -> mx.array:
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
    equals (nucleus sampling, arXiv:1904.09751)."""
    ascending = distribution.ascending
    probs = mx.exp(ascending - ascending[:, -1:])
    mass_above = mx.cumsum(probs, axis=-1, reverse=True, inclusive=False)
    total = mass_above[:, :1] + probs[:, :1]
    reached = mass_above >= column(p.top_p for p in params) * total
    # Never all of them, even where top_p is so small that it is 0 in float32.
    dropped = mx.minimum(reached.sum(axis=-1, keepdims=True), ascending.shape[-1] - 1)
    return distribution.logits >= mx.take_along_axis(ascending, dropped, axis=-1)


def min_p(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep tokens at least min_p times as likely as the best one (arXiv:2407.01082)."""
    best = distribution.logits.max(axis=-1, keepdims=True)
    return distribution.logits >= best + column(np.log([p.min_p for p in params]))


def top_k(distribution: Distribution, params: Sequence[SamplingParams]) -> mx.array:
    """Keep exactly the k most likely tokens; of equals, those with the lowest ids."""
    logits = distribution.logits
    k = np.array([min(p.top_k, logits.shape[-1]) for p in params])
    threshold = distribution.kth_largest(k)
    above, equal = logits > threshold, logits == threshold
    room = column(k, np.int32) - above.sum(axis=-1, keepdims=True)
    return above | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= room))


FILTERS = (
    Filter(lambda params: params.top_p < 1, top_p),
    Filter(lambda params: params.min_p > 0, min_p),
    Filter(lambda params: params.top_k > 0, top_k),
)
"""In mlx-lm's order, before the temperature as there. All look at the unfiltered
distribution: each keeps a head of the same ranking, so what is left is what
applying them one after the other leaves. A new one is added here."""


# ---------------------------------------------------------------- choosing

Way = tuple[Filter, ...] | None
"""The filters a row goes through; None is greedy."""


def _way(params: SamplingParams) -> Way:
    # top_k = 1 and top_p = 0 leave the best token: no need to sort for it.
    if params.temperature <= 0 or params.top_k == 1 or params.top_p <= 0:
        return None
    return tuple(filter for filter in FILTERS if filter.uses(params))


def _choose(logits: mx.array, way: Way, rows: Sequence[SamplingRow]) -> mx.array:
    """Tokens [R] of R rows that go the same way."""
    if way is None:
        return mx.argmax(logits, axis=-1)
    logits = logits.astype(mx.float32)
    if way:
        distribution, params = Distribution(logits), [row.params for row in rows]
        for filter in way:
            logits = mx.where(filter.keep(distribution, params), logits, -mx.inf)
    return _draw(logits, rows)


def _draw(logits: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    """One token per row from softmax(logits / temperature): the first at which the summed
    probabilities pass a random number of the row.

    One number a row costs a third of noise for every token (Gumbel-max) on a CPU, and no
    random numbers on the device. What is -inf stays impossible at any temperature.
    """
    temperature = column(max(row.params.temperature, SMALLEST_TEMPERATURE) for row in rows)
    distance = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    weights = exp_below(distance, mx.array(0.0))
    mass = mx.cumsum(weights, axis=-1)
    # The numbers stay below 1, so the last possible token is passed at the latest.
    passed = (mass > row_numbers(rows) * mass[:, -1:]) & (weights > 0)
    # A parallel sum may round a step down: then the likeliest one, whose weight is 1.
    return mx.argmax(mx.where(passed, 2.0, weights), axis=-1)


def row_numbers(rows: Sequence[SamplingRow]) -> mx.array:
    """Random numbers in [0, 1), float32 [R, 1]: from a hash of (seed, choice, position).

    Each is mixed in with the finaliser of SplitMix64 (Steele, Lea and Flood 2014),
    which is a bijection: within one stream no two positions share a hash.
    """
    state = np.zeros(len(rows), dtype=np.uint64)
    for numbers in (
        [row.params.seed % 2**64 for row in rows],
        [row.choice for row in rows],
        [row.position for row in rows],
    ):
        state = _mix(state ^ np.array(numbers, dtype=np.uint64))
    return column((state >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _take(array: mx.array, group: list[int], num_rows: int) -> mx.array:
    return array if len(group) == num_rows else array[mx.array(group)]


def _merge(chosen: list[mx.array], groups: list[list[int]]) -> mx.array:
    """The groups' tokens in the order of the rows."""
    place = np.argsort(np.concatenate(groups)).astype(np.int32)
    return mx.concatenate(chosen)[mx.array(place)]


# ---------------------------------------------------------------- log-probabilities


def _add_logprobs(sampled: Sampled, logits: mx.array, rows: Sequence[SamplingRow]) -> None:
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    if not asked:
        return
    top = max(rows[i].params.logprobs for i in asked)
    sampled.logprob_rows = tuple(asked)
    sampled.logprobs, ids, values = position_logprobs(
        _take(logits, asked, len(rows)), _take(sampled.tokens, asked, len(rows)), top
    )
    if top:
        sampled.top_ids, sampled.top_logprobs = ids, values


def _best(logits: mx.array, top: int) -> mx.array:
    """Ids of the `top` largest values, int32 [P, T], best first; of equals, the lowest id."""
    num_rows, vocab_size = logits.shape
    if top == 0:
        return mx.zeros((num_rows, 0), dtype=mx.int32)
    # Always as many, so that a row's choice among equals does not hang on its neighbours.
    width = min(max(top, MAX_TOP_LOGPROBS), vocab_size)
    ids = mx.argpartition(logits, vocab_size - width, axis=-1)[:, vocab_size - width :]
    ids = mx.sort(ids.astype(mx.int32), axis=-1)
    order = mx.argsort(-mx.take_along_axis(logits, ids, axis=-1), axis=-1)
    return mx.take_along_axis(ids, order[:, :top], axis=-1)
