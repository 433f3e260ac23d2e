"""Logits processors: bias and penalties, for any mixture of rows in one pass.

A processor touches only the logits of the tokens it names, in the rows that use
it, so a step costs one gather and one scatter of small [R, W] index arrays, not
a pass over the vocabulary. A row's result depends on that row alone.

The tokens a penalty looks at are the host's history plus the pending token. Both
end up in one index array, short rows padded with a token of their own:

    row 0   a b c a | ?        ? = the pending token
    row 1   d e d d | ?        d d: padding
    row 2   ? ? ? ? | ?        nothing but the pending token yet
    row 3   f g h f | f        nothing pending: padding

A token may thus stand there several times. Every copy reads the old logit and
writes the same new value, so the order of the writes does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import mlx.core as mx
import numpy as np

from mlx_server.sampling.row import SamplingRow, column, power_of_two
from mlx_server.sampling_params import SamplingParams

BIAS_ENTRY = np.dtype([("token", np.int64), ("bias", np.float32)])


@dataclass(slots=True)
class Window:
    """Tokens that a penalty looks at, for the R rows that use it.

    Attributes:
        params: The R rows' parameters.
        rows: int32 [R, 1], their places in the batch.
        ids: int32 [R, W], tokens seen; each at least once.
        weights: float32 [R, W], 1 for an occurrence, 0 for padding.
    """

    params: list[SamplingParams]
    rows: mx.array
    ids: mx.array
    weights: mx.array


@dataclass(frozen=True, slots=True)
class Processor:
    """`apply(logits [M, V], rows, pending_tokens)` is called if any row's params use it."""

    uses: Callable[[SamplingParams], bool]
    apply: Callable[[mx.array, Sequence[SamplingRow], mx.array | None], mx.array]


def process(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Apply every processor, in order, to the rows that use it.

    Args:
        logits: [M, V]. Left as it is where no row uses a processor, else the
            result is a new float32 array.
        rows: M rows.
        pending_tokens: int32 [M], read where `row.pending`; None if nowhere.
    """
    for processor in PROCESSORS:
        if any(processor.uses(row.params) for row in rows):
            logits = processor.apply(logits.astype(mx.float32), rows, pending_tokens)
    return logits


# ---------------------------------------------------------------- the processors


def logit_bias(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Add `params.logit_bias`. Token ids outside the vocabulary are ignored."""
    pairs = [row.params.logit_bias for row in rows]
    # No loop over the entries in Python: this runs at every step.
    entries = np.fromiter(chain.from_iterable(pairs), BIAS_ENTRY)
    places = np.repeat(np.arange(len(rows)), [len(p) for p in pairs])
    known = (entries["token"] >= 0) & (entries["token"] < logits.shape[-1])
    entries, places = entries[known], places[known]
    if not len(entries):
        return logits
    # Padding adds 0 to a logit that has an entry anyway.
    padding = (0, power_of_two(len(entries)) - len(entries))
    tokens = np.pad(entries["token"], padding, constant_values=entries["token"][0])
    places = np.pad(places, padding, constant_values=places[0])
    index = mx.array(places.astype(np.int32)), mx.array(tokens.astype(np.int32))
    return logits.at[index].add(mx.array(np.pad(entries["bias"], padding)))


def repetition(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Divide positive logits of seen tokens by the penalty, multiply negative ones
    (arXiv:1909.05858), however often they were seen."""
    window = _window(rows, pending_tokens, _uses_repetition, _repetition_context)
    if window is None:
        return logits
    penalty = column(params.repetition_penalty for params in window.params)
    old = logits[window.rows, window.ids]
    return _replaced(logits, window, mx.where(old < 0, old * penalty, old / penalty))


def presence(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Subtract the penalty once from every token seen."""
    window = _window(rows, pending_tokens, _uses_presence, _penalty_context)
    if window is None:
        return logits
    penalty = column(params.presence_penalty for params in window.params)
    return _replaced(logits, window, logits[window.rows, window.ids] - penalty)


def frequency(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Subtract the penalty once per occurrence."""
    window = _window(rows, pending_tokens, _uses_frequency, _penalty_context)
    if window is None:
        return logits
    penalty = column(params.frequency_penalty for params in window.params)
    # Counted on the device, where the pending token is; sums of ones are exact in any order.
    own = mx.arange(len(window.params))[:, None]
    counts = mx.zeros((len(window.params), logits.shape[-1])).at[own, window.ids]
    seen = counts.add(window.weights)[own, window.ids]
    return _replaced(logits, window, logits[window.rows, window.ids] - penalty * seen)


# ---------------------------------------------------------------- who uses what, and how far back


def _uses_logit_bias(params: SamplingParams) -> bool:
    return bool(params.logit_bias)


def _uses_repetition(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 and params.repetition_context_size != 0


def _uses_presence(params: SamplingParams) -> bool:
    return params.presence_penalty != 0 and params.penalty_context_size != 0


def _uses_frequency(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0 and params.penalty_context_size != 0


def _repetition_context(params: SamplingParams) -> int | None:
    return params.repetition_context_size


def _penalty_context(params: SamplingParams) -> int | None:
    return params.penalty_context_size


PROCESSORS = (
    Processor(_uses_logit_bias, logit_bias),
    Processor(_uses_repetition, repetition),
    Processor(_uses_presence, presence),
    Processor(_uses_frequency, frequency),
)
"""In the order they are applied, which is mlx-lm's. A new one is added here."""


# ---------------------------------------------------------------- windows


def _window(
    rows: Sequence[SamplingRow],
    pending_tokens: mx.array | None,
    uses: Callable[[SamplingParams], bool],
    context: Callable[[SamplingParams], int | None],
) -> Window | None:
    """The tokens seen by each row that uses a penalty; None if no row has seen any."""
    found = []
    for i, row in enumerate(rows):
        if uses(row.params):
            known = _known(row, context(row.params))
            if row.pending or len(known):
                found.append((i, row, known))
    if not found:
        return None

    width = power_of_two(max(len(known) for _, _, known in found))
    ids = np.zeros((len(found), width), dtype=np.int32)
    weights = np.zeros((len(found), width), dtype=np.float32)
    for line, (_, _, known) in enumerate(found):
        ids[line, : len(known)] = known
        ids[line, len(known) :] = known[0] if len(known) else 0
        weights[line, : len(known)] = 1

    places = mx.array(np.array([i for i, _, _ in found], dtype=np.int32))
    window = Window(
        [row.params for _, row, _ in found], places[:, None], mx.array(ids), mx.array(weights)
    )
    if any(row.pending for _, row, _ in found):
        _add_pending(window, pending_tokens[places], found)
    return window


def _add_pending(
    window: Window, tokens: mx.array, found: Sequence[tuple[int, SamplingRow, np.ndarray]]
) -> None:
    """Append the pending tokens, int32 [R], as a last column."""
    pending = column((row.pending for _, row, _ in found), np.bool_)
    unknown = column((len(known) == 0 for _, _, known in found), np.bool_)
    last = mx.where(pending, tokens[:, None], window.ids[:, :1])
    window.ids = mx.concatenate([mx.where(unknown, last, window.ids), last], axis=1)
    window.weights = mx.concatenate([window.weights, pending.astype(mx.float32)], axis=1)


def _known(row: SamplingRow, context: int | None) -> np.ndarray:
    """The window's tokens without the pending one.

    Args:
        context: The last so many tokens of prompt and reply, all if negative;
            None is the whole reply without the prompt.
    """
    if context is None:
        return row.token_ids[row.num_prompt_tokens :]
    if context < 0:
        return row.token_ids
    room = context - row.pending
    return row.token_ids[max(0, len(row.token_ids) - room) :]


def _replaced(logits: mx.array, window: Window, values: mx.array) -> mx.array:
    """A copy of `logits` with new values at the window's tokens."""
    logits = mx.array(logits)  # assignment changes the object it is given
    logits[window.rows, window.ids] = values
    return logits
