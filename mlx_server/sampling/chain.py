"""llama.cpp's samplers: a chain in which each takes what the one before left.

    logits [R, V] ─ top_k ─ the best [R, W], in order ─ top_p ─ … ─ temperature ─ draw

A token that a sampler drops gets -inf, and every sampler looks at what is above: it
normalises anew, and counts no token that a grammar or a bias has made impossible. All are
those of src/llama-sampling.cpp as of November 2024 (`llama_sampler_<name>_apply`, the last
with tail free sampling), with three differences: equals are dropped from the highest token
id on, where llama.cpp leaves that to its sorting; top_k, top_n_sigma and all the others keep
`min_keep` tokens, as the server's document has it; and each keeps one at least.

A step's rows that go through the same chain are computed together and row by row: all that
decides how, the width of what top_k leaves included, follows from a row's own parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_server.sampling.candidates import Candidates
from mlx_server.sampling.draw import SMALLEST_TEMPERATURE, row_numbers, temperatures
from mlx_server.sampling.dry import dry
from mlx_server.sampling.order import uses_dynamic_temperature
from mlx_server.sampling.processors import penalise
from mlx_server.sampling.row import SamplingRow, column, power_of_two
from mlx_server.sampling_params import SamplingParams

LARGEST_TEMPERATURE = 1e30
"""Even, and far from infinity, by which -inf cannot be divided."""

LARGEST_LOGIT = 1e15
"""What is below can be divided by any temperature, and penalised, without overflow."""

SMALLEST_WIDTH = 16


@dataclass(slots=True)
class Group:
    """Rows that go through the same chain.

    Attributes:
        rows: R of them.
        pending_tokens: int32 [R], as of `process`.
        vocab_size: V.
        width: Of what top_k leaves, no less than any of the rows wants.
        floor: `min_keep` asks for more than the one token that stays anyway.
        streams: Of random numbers, for samplers that draw one.
    """

    rows: Sequence[SamplingRow]
    pending_tokens: mx.array | None
    vocab_size: int
    width: int
    floor: bool
    streams: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def column(self, value: Callable[[SamplingParams], float]) -> mx.array:
        """float32 [R, 1]."""
        return column(value(row.params) for row in self.rows)

    def least(self) -> mx.array:
        """How many each row keeps at least, int32 [R, 1]."""
        return column((max(1, row.params.min_keep) for row in self.rows), np.int32)


@dataclass(frozen=True, slots=True)
class Chain:
    """How a row comes to what its token is drawn from.

    Args:
        steps: Names in STEPS.
        width, floor: As of `Group`.
        scaled: The temperature comes last, and is left to the drawing.
    """

    steps: tuple[str, ...]
    width: int
    floor: bool
    scaled: bool

    def apply(
        self, logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
    ) -> tuple[Candidates, mx.array | None]:
        """
        Args:
            logits: float32 [R, V], processed and masked.
            rows: R rows.
            pending_tokens: int32 [R], as of `process`.

        Returns:
            What is left, and the temperature, float32 [R, 1], that it is drawn at; None: 1.
        """
        group = Group(rows, pending_tokens, logits.shape[-1], self.width, self.floor)
        left = Candidates(logits)
        for name in self.steps:
            left = STEPS[name](left, group)
        return left, temperatures(rows) if self.scaled else None


def chain_of(params: SamplingParams, names: Sequence[str], vocab_size: int) -> Chain:
    """
    Args:
        names: As of `Order.chain`.
    """
    moving = uses_dynamic_temperature(params)
    scaled = bool(names) and names[-1] == "temperature" and not moving
    steps = tuple(names[:-1] if scaled else names)
    if moving:
        steps = tuple("dynamic_temperature" if n == "temperature" else n for n in steps)
    width = 0
    if "top_k" in steps:
        width = max(params.top_k, params.min_keep, SMALLEST_WIDTH)
        width = min(power_of_two(width), vocab_size)
    return Chain(steps, width, params.min_keep > 1, scaled)


# ---------------------------------------------------------------- the samplers


def top_k(left: Candidates, group: Group) -> Candidates:
    """Keep the k most likely."""
    left = left.top(min(group.width, left.logits.shape[-1]))
    size = group.vocab_size
    return left.head(
        column((min(max(r.params.top_k, r.params.min_keep), size) for r in group.rows), np.int32)
    )


def top_p(left: Candidates, group: Group) -> Candidates:
    """Keep the fewest of the most likely whose probabilities reach top_p
    (arXiv:1904.09751)."""
    left = left.in_order()
    mass = mx.cumsum(left.probs(), axis=-1)
    # Compared with the sum's own end, so that rounding lets no row fall short of it.
    reached = mass >= group.column(lambda params: params.top_p) * mass[:, -1:]
    return left.head(_first(reached & (left.places() + 1 >= group.least())) + 1)


def min_p(left: Candidates, group: Group) -> Candidates:
    """Keep those at least min_p times as likely as the best one (arXiv:2407.01082)."""
    worst = column(np.log([min(row.params.min_p, 1.0) for row in group.rows]))
    return _from(left, left.best() + worst, group)


def top_n_sigma(left: Candidates, group: Group) -> Candidates:
    """Keep those whose logits are within n standard deviations of the best
    (arXiv:2411.07641)."""
    there = left.logits > -mx.inf
    count = mx.maximum(there.sum(axis=-1, keepdims=True), 1)
    mean = mx.where(there, left.logits, 0.0).sum(axis=-1, keepdims=True) / count
    square = mx.square(mx.where(there, left.logits - mean, 0.0))
    sigma = mx.sqrt(square.sum(axis=-1, keepdims=True) / count)
    return _from(left, left.best() - group.column(lambda p: p.top_n_sigma) * sigma, group)


def tail_free(left: Candidates, group: Group) -> Candidates:
    """Drop the tail, which begins where the curve of the sorted probabilities has z of its
    bends behind it: of the sum of its absolute second differences
    (https://www.trentonbricken.com/Tail-Free-Sampling/)."""
    left = left.in_order()
    width = left.logits.shape[-1]
    if width <= 2:
        return left
    probs, count = left.probs(), left.count()
    slope = probs[:, :-1] - probs[:, 1:]
    inside = left.places()[:, : width - 2] < count - 2
    bends = mx.where(inside, mx.abs(slope[:, :-1] - slope[:, 1:]), 0.0)
    total = bends.sum(axis=-1, keepdims=True)
    even = mx.where(inside, 1.0 / mx.maximum(count - 2, 1), 0.0)
    bends = mx.where(total > 1e-6, bends / mx.where(total > 0, total, 1.0), even)
    passed = mx.cumsum(bends, axis=-1) > group.column(lambda params: params.tfs_z)
    passed = passed & inside & (left.places()[:, : width - 2] >= group.least())
    return left.head(mx.where(passed.any(axis=-1, keepdims=True), _first(passed), count))


def typical_p(left: Candidates, group: Group) -> Candidates:
    """Keep the fewest whose probabilities exceed typical_p, beginning with those whose
    surprise is nearest to the one that is to be expected, the entropy (arXiv:2202.00666)."""
    probs, logprobs = left.probs(), left.logprobs()
    entropy = _entropy(probs, logprobs)
    order = mx.argsort(mx.abs(-logprobs - entropy), axis=-1)  # what was dropped is infinitely far
    left = left.reordered(order)
    mass = mx.cumsum(mx.take_along_axis(probs, order, axis=-1), axis=-1)
    exceeded = mass > group.column(lambda params: params.typical_p)
    exceeded = exceeded & (left.places() + 1 >= group.least())
    count = mx.where(
        exceeded.any(axis=-1, keepdims=True), _first(exceeded) + 1, left.logits.shape[-1]
    )
    return left.head(count)


def xtc(left: Candidates, group: Group) -> Candidates:
    """Exclude top choices: with the probability of `xtc_probability`, drop all but the least
    likely of those that reach the threshold (p-e-w,
    https://github.com/oobabooga/text-generation-webui/pull/6335)."""
    left = left.in_order()
    reaching = left.probs() >= group.column(lambda params: params.xtc_threshold)
    dropped = reaching.sum(axis=-1, keepdims=True).astype(mx.int32) - 1
    chance = row_numbers(group.rows, next(group.streams))
    drop = (chance <= group.column(lambda params: params.xtc_probability)) & (
        left.count() - dropped >= group.least()
    )
    left = left.kept(~drop | (left.places() >= dropped))
    return Candidates(left.logits, left.ids, ordered=False)


def temperature(left: Candidates, group: Group) -> Candidates:
    """Divide the logits by it."""
    return _divided(left, temperatures(group.rows))


def dynamic_temperature(left: Candidates, group: Group) -> Candidates:
    """Divide the logits by temperature ± dynatemp_range: the more, the nearer the entropy is
    to the largest that so many tokens can have (arXiv:2309.02772; `temp_ext` in llama.cpp).

        low + (high - low) · (entropy / log(count)) ^ dynatemp_exponent
    """
    low = group.column(lambda p: max(0.0, p.temperature - p.dynatemp_range))
    high = group.column(lambda p: p.temperature + p.dynatemp_range)
    entropy = _entropy(left.probs(), left.logprobs())
    count = left.count()
    share = mx.clip(entropy / mx.log(mx.maximum(count, 2).astype(mx.float32)), 0.0, 1.0)
    value = low + (high - low) * mx.power(share, group.column(lambda p: p.dynatemp_exponent))
    value = mx.where(count > 1, mx.clip(value, SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE), 1.0)
    return _divided(left, value)


def penalties(left: Candidates, group: Group) -> Candidates:
    """Repetition, presence and frequency penalties (`processors.py`)."""
    everywhere = range(len(group.rows))
    logits = _bounded(left.spread(group.vocab_size))
    return Candidates(penalise(logits, group.rows, everywhere, group.pending_tokens))


def repetitions(left: Candidates, group: Group) -> Candidates:
    """DRY (`dry.py`)."""
    return Candidates(dry(left.spread(group.vocab_size), group.rows, range(len(group.rows))))


Step = Callable[[Candidates, Group], Candidates]

STEPS: dict[str, Step] = {
    "penalties": penalties,
    "dry": repetitions,
    "top_n_sigma": top_n_sigma,
    "top_k": top_k,
    "tfs_z": tail_free,
    "typical_p": typical_p,
    "top_p": top_p,
    "min_p": min_p,
    "xtc": xtc,
    "temperature": temperature,
    "dynamic_temperature": dynamic_temperature,
}
"""By the names of `sampling_params.SAMPLERS`. A new one is added here, there and in `order.py`."""


# ---------------------------------------------------------------- what they share


def _first(mask: mx.array) -> mx.array:
    """The place of the first true one in each row, int32 [R, 1]; 0 where there is none."""
    return mx.argmax(mask, axis=-1, keepdims=True).astype(mx.int32)


def _from(left: Candidates, worst: mx.array, group: Group) -> Candidates:
    """Those whose logits are no less than `worst`, float32 [R, 1]."""
    if not group.floor:
        return left.kept(left.logits >= mx.minimum(worst, left.best()))
    left = left.in_order()
    return left.kept((left.logits >= worst) | (left.places() < group.least()))


def _entropy(probs: mx.array, logprobs: mx.array) -> mx.array:
    """In nats, float32 [R, 1]."""
    return -mx.where(probs > 0, probs * logprobs, 0.0).sum(axis=-1, keepdims=True)


def _divided(left: Candidates, temperature: mx.array) -> Candidates:
    """By a temperature of each row, float32 [R, 1]."""
    return Candidates(_bounded(left.logits) / temperature, left.ids, left.ordered)


def _bounded(logits: mx.array) -> mx.array:
    """The logits, float32 [R, W]; where small temperatures or penalties that were applied again
    and again have made the best one huge, what the others lack to it."""
    best = logits.max(axis=-1, keepdims=True)
    return mx.where(mx.abs(best) > LARGEST_LOGIT, logits - best, logits)
