"""From logits to tokens, for any mixture of settings in one lazy graph.

    logits [M, V] ─ processors ─ allowed tokens ─ rows fall into groups of the same way:
        greedy                     argmax
        no filter                  temperature, draw
        top_p | top_k + min_p | …  filters, temperature, draw
        a chain                    llama.cpp's samplers in their order, draw
        mirostat 1 | 2             temperature, what mu leaves, draw
    the groups' tokens, back in the order of the rows ─ tokens [M]

A row's group follows from its own parameters and everything in a group is
computed row by row, so its token is the same whatever else is in the batch, and
greedy rows pay nothing for their neighbours' filters. Nothing here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import mlx.core as mx
import numpy as np

from mlx_server.sampling.candidates import Candidates
from mlx_server.sampling.chain import Chain, chain_of
from mlx_server.sampling.draw import draw, temperatures
from mlx_server.sampling.filters import FILTERS, ONLY_BEST, Distribution, Filter
from mlx_server.sampling.mirostat import Mirostat
from mlx_server.sampling.order import order_of, uses_mirostat
from mlx_server.sampling.processors import process
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling.top import position_logprobs, position_probs
from mlx_server.sampling_params import SamplingParams

__all__ = ["Sampled", "constrain", "position_logprobs", "sample"]


@dataclass(slots=True)
class Sampled:
    """A step's tokens, lazy.

    Attributes:
        tokens: int32 [M].
        logprob_rows: The L rows that asked for log-probabilities.
        logprobs: float32 [L], the chosen tokens' log-softmax of the model's own
            logits, before any processor, filter or temperature.
        top_ids, top_logprobs: int32 and float32 [L, T], best first; T is the
            most that any row asked for, and what a row did not ask for means
            nothing. None if T is 0.
        prob_rows: The P rows that asked for probabilities.
        probs: float32 [P], those of the chosen tokens in what they were drawn
            from: behind processors, mask, samplers and temperature. Of greedy
            rows the softmax of the processed and masked logits, whatever else
            is set, as llama.cpp's server documents it for `n_probs`; where
            top_k = 1 or top_p = 0 made it greedy, 1.
        top_prob_ids, top_probs: As of the log-probabilities; 0 for tokens that
            could not be drawn, which may be any.
        mirostat_rows: The K rows with mirostat.
        mu: float32 [K], their `SamplingRow.mu` for the next token.
    """

    tokens: mx.array
    logprob_rows: tuple[int, ...] = ()
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None
    prob_rows: tuple[int, ...] = ()
    probs: mx.array | None = None
    top_prob_ids: mx.array | None = None
    top_probs: mx.array | None = None
    mirostat_rows: tuple[int, ...] = ()
    mu: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """What the engine evaluates: every field that is an array, of the shapes above."""
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if isinstance(value, mx.array)]


Way = tuple[Filter, ...] | Chain | Mirostat | None
"""How a row comes to its token: mlx-lm's filters, or llama.cpp's; None is greedy."""


@dataclass(slots=True)
class Chosen:
    """The tokens of the R rows that go the same way.

    Attributes:
        rows: Their places in the batch.
        tokens: int [R].
        left: What they were drawn from.
        temperature: And at which one, float32 [R, 1]; None: 1.
        mu: float32 [R], with mirostat.
    """

    rows: list[int]
    tokens: mx.array
    left: Candidates
    temperature: mx.array | None = None
    mu: mx.array | None = None


def sample(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None = None
) -> Sampled:
    """Choose a token for every row.

    Args:
        logits: [M, V], any float type.
        rows: M of them, at least one.
        pending_tokens: int32 [M], the newest token of each row where
            `row.pending`; None if no row has one.

    Raises:
        ValueError: A row of which `needs_host` holds is pending.
    """
    processed = constrain(process(logits, rows, pending_tokens), rows)
    groups: dict[Way, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_way(row.params, logits.shape[-1]), []).append(i)
    chosen = [_choose(processed, pending_tokens, way, group, rows) for way, group in groups.items()]
    sampled = Sampled(_merge(chosen, [c.tokens for c in chosen])[1].astype(mx.int32))
    _add_logprobs(sampled, logits, rows)
    _add_probs(sampled, chosen, rows, logits.shape[-1])
    moved = [c for c in chosen if c.mu is not None]
    if moved:
        surprises = [c.mu for c in moved if c.mu is not None]
        sampled.mirostat_rows, sampled.mu = _merge(moved, surprises)
    return sampled


def constrain(logits: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    """Make impossible what `row.allowed` leaves out, in the rows that have it.

    Args:
        logits: [M, V].
        rows: M rows.
    """
    guided = [(i, row.allowed) for i, row in enumerate(rows) if row.allowed is not None]
    if not guided:
        return logits
    num_rows, vocab_size = logits.shape
    words = np.full((num_rows, -(-vocab_size // 32)), 0xFFFFFFFF, dtype=np.uint32)
    for i, allowed in guided:
        words[i] = allowed
    # The bits are spread out on the device: a 32nd of the bytes has to go there.
    bits = (mx.array(words)[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    mask = bits.reshape(num_rows, -1)[:, :vocab_size]
    return mx.where(mask, logits, -mx.inf)


# ---------------------------------------------------------------- choosing


def _way(params: SamplingParams, vocab_size: int) -> Way:
    if params.temperature <= 0:
        return None
    if uses_mirostat(params):
        return Mirostat(params.mirostat)
    names = order_of(params).chain
    if names is not None:
        return chain_of(params, names, vocab_size)
    # top_k = 1 and top_p = 0 leave the best token: no need to sort for it.
    if params.top_k == 1 or params.top_p <= 0:
        return None if params.probs is None else (ONLY_BEST,)
    return tuple(filter for filter in FILTERS if filter.uses(params))


def _choose(
    processed: mx.array,
    pending_tokens: mx.array | None,
    way: Way,
    group: list[int],
    every: Sequence[SamplingRow],
) -> Chosen:
    """
    Args:
        processed: [M, V].
        pending_tokens: int32 [M], as of `sample`.
        group: The R of the M rows that go this way.
        every: M rows.
    """
    logits = _take(processed, group, len(every))
    if way is None:
        return Chosen(group, mx.argmax(logits, axis=-1), Candidates(logits))
    logits, rows = logits.astype(mx.float32), [every[i] for i in group]
    if isinstance(way, Mirostat):
        if any(row.pending for row in rows):
            raise ValueError("Mirostat needs the newest token of a row on the host.")
        left, temperature = way.apply(logits, rows), None
    elif isinstance(way, Chain):
        pending = None if pending_tokens is None else _take(pending_tokens, group, len(every))
        left, temperature = way.apply(logits, rows, pending)
    else:
        left, temperature = Candidates(_filtered(logits, way, rows)), temperatures(rows)
    places = draw(left.logits, rows, temperature)
    tokens = places
    if left.ids is not None:
        tokens = mx.take_along_axis(left.ids, places[:, None].astype(mx.int32), axis=-1)[:, 0]
    mu = way.moved(left, places, rows) if isinstance(way, Mirostat) else None
    return Chosen(group, tokens.astype(mx.int32), left, temperature, mu)


def _filtered(
    logits: mx.array, filters: tuple[Filter, ...], rows: Sequence[SamplingRow]
) -> mx.array:
    if filters:
        distribution, params = Distribution(logits), [row.params for row in rows]
        for filter in filters:
            logits = mx.where(filter.keep(distribution, params), logits, -mx.inf)
    return logits


def _take(array: mx.array, group: list[int], num_rows: int) -> mx.array:
    return array if len(group) == num_rows else array[mx.array(group)]


def _merge(chosen: list[Chosen], values: list[mx.array]) -> tuple[tuple[int, ...], mx.array]:
    """The groups' rows in order, and in the same order one value for each."""
    rows = np.concatenate([c.rows for c in chosen])
    if len(values) == 1:
        return tuple(rows.tolist()), values[0]
    order = np.argsort(rows).astype(np.int32)
    return tuple(rows[order].tolist()), mx.concatenate(values)[mx.array(order)]


# ---------------------------------------------------------------- what clients are told


def _add_logprobs(sampled: Sampled, logits: mx.array, rows: Sequence[SamplingRow]) -> None:
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    if not asked:
        return
    top = [rows[i].params.logprobs or 0 for i in asked]
    sampled.logprob_rows = tuple(asked)
    sampled.logprobs, ids, values = position_logprobs(
        _take(logits, asked, len(rows)), _take(sampled.tokens, asked, len(rows)), top
    )
    if ids.shape[-1]:
        sampled.top_ids, sampled.top_logprobs = ids, values


def _add_probs(
    sampled: Sampled, chosen: list[Chosen], rows: Sequence[SamplingRow], vocab_size: int
) -> None:
    asked = [i for i, row in enumerate(rows) if row.params.probs is not None]
    if not asked:
        return
    drawn_from: dict[int, mx.array] = {}
    for group in chosen:
        lines = [line for line, i in enumerate(group.rows) if i in asked]
        if lines:
            logits = _final(group, lines, vocab_size)
            drawn_from |= {group.rows[n]: logits[at] for at, n in enumerate(lines)}
    sampled.prob_rows = tuple(asked)
    sampled.probs, ids, values = position_probs(
        mx.stack([drawn_from[i] for i in asked]),
        _take(sampled.tokens, asked, len(rows)),
        [rows[i].params.probs or 0 for i in asked],
    )
    if ids.shape[-1]:
        sampled.top_prob_ids, sampled.top_probs = ids, values


def _final(group: Chosen, lines: list[int], vocab_size: int) -> mx.array:
    """The logits, float32 [L, V], whose softmax some rows of a group were drawn from."""
    some, size = mx.array(lines), len(group.rows)
    ids = group.left.ids
    left = Candidates(
        _take(group.left.logits, lines, size).astype(mx.float32),
        None if ids is None else ids[some],
    )
    logits = left.spread(vocab_size)
    if group.temperature is not None:  # what is left may be huge (`chain.LARGEST_LOGIT`)
        logits = (logits - logits.max(axis=-1, keepdims=True)) / group.temperature[some]
    return logits
