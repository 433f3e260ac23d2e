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

from mlx_server.sampling.dry import dry
from mlx_server.sampling.order import order_of, uses_dry, uses_penalties
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
class Penalty:
    """`apply(logits [M, V], rows, places, pending_tokens)` is called with the places of the
    rows that use it, if there are any."""

    uses: Callable[[SamplingParams], bool]
    apply: Callable[
        [mx.array, Sequence[SamplingRow], Sequence[int], mx.array | None],
        mx.array,
    ]


def process(
    logits: mx.array, rows: Sequence[SamplingRow], pending_tokens: mx.array | None
) -> mx.array:
    """Add the bias, then apply penalties and DRY to the rows that use them, but where
    `params.samplers` puts them behind other samplers (`order.py`).

    Args:
        logits: [M, V]. Left as it is where no row uses a processor, else the
            result is a new float32 array.
        rows: M rows.
        pending_tokens: int32 [M], read where `row.pending`; None if nowhere.
    """
    places = [i for i, row in enumerate(rows) if row.params.logit_bias]
    if places:
        logits = logit_bias(logits.astype(mx.float32), rows, places)
    places = [
        i
        for i, row in enumerate(rows)
        if uses_penalties(row.params) and order_of(row.params).penalties_first
    ]
    logits = penalise(logits, rows, places, pending_tokens)
    places = [
        i for i, row in enumerate(rows) if uses_dry(row.params) and order_of(row.params).dry_first
    ]
    return dry(logits.astype(mx.float32), rows, places) if places else logits


def penalise(
    logits: mx.array,
    rows: Sequence[SamplingRow],
    places: Sequence[int],
    pending_tokens: mx.array | None,
) -> mx.array:
    """Apply the repetition, presence and frequency penalties, each to the rows that use it.

    One after the other they do what llama.cpp's `llama_sampler_penalties_apply`
    (src/llama-sampling.cpp) does in one: the factor first, then what is subtracted.

    Args:
        logits: [M, V]; as of `process`.
        rows: M rows.
        places: Of the rows that may be penalised.
        pending_tokens: int32 [M]; as of `process`.
    """
    before = logits
    for penalty in PENALTIES:
        using = [i for i in places if penalty.uses(rows[i].params)]
        if using:
            logits = penalty.apply(logits.astype(mx.float32), rows, using, pending_tokens)
    return logits if logits is before else _restored(logits, before, rows, places)


# ---------------------------------------------------------------- the processors


def logit_bias(logits: mx.array, rows: Sequence[SamplingRow], places: Sequence[int]) -> mx.array:
    """Add `params.logit_bias`. Token ids outside the vocabulary are ignored.

    Args:
        logits: float32 [M, V].
        rows: M rows.
        places: Of the rows that have a bias.
    """
    pairs = [rows[i].params.logit_bias for i in places]
    # No loop over the entries in Python: this runs at every step.
    entries = np.fromiter(chain.from_iterable(pairs), BIAS_ENTRY)
    lines = np.repeat(np.array(places), [len(p) for p in pairs])
    known = (entries["token"] >= 0) & (entries["token"] < logits.shape[-1])
    entries, lines = entries[known], lines[known]
    if not len(entries):
        return logits
    # Padding adds 0 to a logit that has an entry anyway.
    padding = (0, power_of_two(len(entries)) - len(entries))
    tokens = np.pad(entries["token"], padding, constant_values=entries["token"][0])
    lines = np.pad(lines, padding, constant_values=lines[0])
    index = mx.array(lines.astype(np.int32)), mx.array(tokens.astype(np.int32))
    return logits.at[index].add(mx.array(np.pad(entries["bias"], padding)))


def repetition(
    logits: mx.array,
    rows: Sequence[SamplingRow],
    places: Sequence[int],
    pending_tokens: mx.array | None,
) -> mx.array:
    """Divide positive logits of seen tokens by the penalty, multiply negative ones
    (arXiv:1909.05858), however often they were seen. Looks at the last
    `repetition_context_size` tokens of prompt and reply.

    Args:
        logits: float32 [M, V].
        rows: M rows.
        places: Of the rows that use it.
        pending_tokens: int32 [M], as of `process`.
    """
    window = _window(rows, places, pending_tokens, _repetition_context)
    if window is None:
        return logits
    penalty = column(params.repetition_penalty for params in window.params)
    old = logits[window.rows, window.ids]
    return _replaced(logits, window, mx.where(old < 0, old * penalty, old / penalty))


def presence(
    logits: mx.array,
    rows: Sequence[SamplingRow],
    places: Sequence[int],
    pending_tokens: mx.array | None,
) -> mx.array:
    """Subtract the penalty once from every token seen: of the reply (OpenAI), or of the last
    `penalty_context_size` tokens. Arguments as of `repetition`: logits [M, V]."""
    window = _window(rows, places, pending_tokens, _penalty_context)
    if window is None:
        return logits
    penalty = column(params.presence_penalty for params in window.params)
    return _replaced(logits, window, logits[window.rows, window.ids] - penalty)


def frequency(
    logits: mx.array,
    rows: Sequence[SamplingRow],
    places: Sequence[int],
    pending_tokens: mx.array | None,
) -> mx.array:
    """Subtract the penalty once per occurrence of a token; what is looked at and the arguments
    are those of `presence`: logits [M, V]."""
    window = _window(rows, places, pending_tokens, _penalty_context)
    if window is None:
        return logits
    penalty = column(params.frequency_penalty for params in window.params)
    # Counted on the device, where the pending token is; sums of ones are exact in any order.
    own = mx.arange(len(window.params))[:, None]
    counts = mx.zeros((len(window.params), logits.shape[-1])).at[own, window.ids]
    seen = counts.add(window.weights)[own, window.ids]
    return _replaced(logits, window, logits[window.rows, window.ids] - penalty * seen)


def _restored(
    logits: mx.array, before: mx.array, rows: Sequence[SamplingRow], places: Sequence[int]
) -> mx.array:
    """The logits with those of `params.unpenalized` as they were before."""
    pairs = [
        (i, token)
        for i in places
        for token in rows[i].params.unpenalized
        if 0 <= token < logits.shape[-1]
    ]
    if not pairs:
        return logits
    pairs += [pairs[0]] * (power_of_two(len(pairs)) - len(pairs))
    index = np.array(pairs, dtype=np.int32)
    lines, tokens = mx.array(index[:, 0]), mx.array(index[:, 1])
    logits = mx.array(logits)  # assignment changes the object it is given
    logits[lines, tokens] = before[lines, tokens].astype(mx.float32)
    return logits


# ---------------------------------------------------------------- who uses what, and how far back


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


PENALTIES = (
    Penalty(_uses_repetition, repetition),
    Penalty(_uses_presence, presence),
    Penalty(_uses_frequency, frequency),
)
"""In the order they are applied, which is mlx-lm's and llama.cpp's. A new one is added here."""


# ---------------------------------------------------------------- windows


def _window(
    rows: Sequence[SamplingRow],
    places: Sequence[int],
    pending_tokens: mx.array | None,
    context: Callable[[SamplingParams], int | None],
) -> Window | None:
    """The tokens seen by the rows at these places; None if no row has seen any."""
    found = []
    for i in places:
        row = rows[i]
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

    lines = mx.array(np.array([i for i, _, _ in found], dtype=np.int32))
    window = Window(
        [row.params for _, row, _ in found], lines[:, None], mx.array(ids), mx.array(weights)
    )
    if pending_tokens is not None and any(row.pending for _, row, _ in found):
        _add_pending(window, pending_tokens[lines], found)
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
