"""DRY, "don't repeat yourself": a penalty on tokens that would go on with a repetition.

A token that followed, somewhere in the history, the same n tokens that the history ends
with would make a repetition of n + 1; from n = `dry_allowed_length` on it loses

    dry_multiplier · dry_base ^ (n - dry_allowed_length)

from its logit, for the longest such n. By p-e-w
(https://github.com/oobabooga/text-generation-webui/pull/5677); the details are those of
llama.cpp (`llama_sampler_dry_apply` in src/llama-sampling.cpp, pull request 9702).

    history   a b c c b c y a b c        n = 3 for c, after "a b c"
                    ·                    n = 1 for b, after "c"
                                         n = 2 for y, after "b c"

It needs the history on the host, and takes time linear in its length there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_server.sampling.row import SamplingRow, power_of_two
from mlx_server.sampling_params import SamplingParams

FLOAT_MAX = float(np.finfo(np.float32).max)
LOG_FLOAT_MAX = math.log(FLOAT_MAX)
"""The power stops growing before it overflows."""

BLOCK = 256
"""Tokens that are looked at in one go when the last breaker is searched: it is near."""

Breakers = tuple[tuple[int, ...], ...]


def dry(logits: mx.array, rows: Sequence[SamplingRow], places: Sequence[int]) -> mx.array:
    """Subtract the penalty.

    Args:
        logits: float32 [M, V].
        rows: M rows.
        places: Of the rows that use it; nothing may be pending there.

    Raises:
        ValueError: The newest token of a row is not known on the host (`needs_host`).
    """
    tokens, penalties, lines = [], [], []
    for i in places:
        if rows[i].pending:
            raise ValueError("DRY needs the newest token of a row on the host.")
        found, values = dry_penalties(rows[i].token_ids, rows[i].params)
        known = found < logits.shape[-1]
        tokens.append(found[known])
        penalties.append(values[known])
        lines.append(np.full(known.sum(), i))
    count = sum(map(len, tokens))
    if not count:
        return logits
    padding = (0, power_of_two(count) - count)  # which subtracts 0 from one of them
    index = [
        mx.array(np.pad(np.concatenate(part), padding, mode="edge").astype(np.int32))
        for part in (lines, tokens)
    ]
    values = np.pad(np.concatenate(penalties), padding)
    values = np.clip(values, -FLOAT_MAX, FLOAT_MAX).astype(np.float32)
    return logits.at[index[0], index[1]].subtract(mx.array(values))


def dry_penalties(token_ids: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that would go on with a repetition, and what they lose.

    Args:
        token_ids: int32 [N], prompt and reply.

    Returns:
        int [T], each token once; float64 [T].
    """
    nothing = np.zeros(0, np.int64), np.zeros(0)
    size = params.dry_penalty_last_n
    window = token_ids if size == -1 else token_ids[max(0, len(token_ids) - size) :]
    least = params.dry_allowed_length
    if len(window) <= least or len(window) < 2:
        return nothing
    breakers = _breakers(_Same(params.dry_breakers))
    limit = _unbroken(window, breakers)
    if limit < least:
        return nothing
    ends, lengths = _repetitions(window, limit, least)
    tokens, place = np.unique(window[ends + 1], return_inverse=True)
    longest = np.zeros(len(tokens), dtype=np.int64)
    np.maximum.at(longest, place, lengths)
    # What ends a repetition by itself stays free to do so.
    free = np.fromiter((() in breakers.get(t, ()) for t in tokens.tolist()), bool, len(tokens))
    tokens, power = tokens[~free], longest[~free] - least
    if params.dry_base > 1.000001:
        power = np.minimum(power, int(LOG_FLOAT_MAX / math.log(params.dry_base)))
    return tokens, params.dry_multiplier * np.power(float(params.dry_base), power)


# ---------------------------------------------------------------- repetitions


def _repetitions(window: np.ndarray, limit: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Where else in the window its end stands.

    Args:
        window: int [N].
        limit: No more than so many tokens are compared.
        least: Shorter repetitions do not count.

    Returns:
        The place of the last token of each, int [K], and how many tokens it has, int [K].
    """
    size = len(window)
    ends = np.arange(size - 1)
    lengths = np.zeros(size - 1, dtype=np.int64)
    alive, work = ends, 0
    for n in range(min(limit, size - 1)):
        alive = alive[alive >= n]
        alive = alive[window[alive - n] == window[size - 1 - n]]
        if not len(alive):
            break
        lengths[alive] = n + 1
        work += len(alive)
        if work > 4 * size:  # a history that repeats itself: only Z stays linear
            lengths = np.minimum(_common_ends(window.tolist()), limit)
            break
    counting = lengths >= least
    return ends[counting], lengths[counting]


def _common_ends(window: list[int]) -> np.ndarray:
    """How many tokens that end at each place but the last equal those that end the window:
    int [N - 1]. The Z-algorithm (Gusfield 1997, chapter 1) on the window read backwards."""
    text = window[::-1]
    size = len(text)
    z = [0] * size
    left = right = 0  # text[left:right] is the match that reaches furthest
    for k in range(1, size):
        n = min(z[k - left], right - k) if k < right else 0
        while k + n < size and text[n] == text[k + n]:
            n += 1
        z[k] = n
        if k + n > right:
            left, right = k, k + n
    return np.array(z[:0:-1])


# ---------------------------------------------------------------- breakers


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Breakers, which may be thousands, told apart by being the same object: comparing or
    hashing them takes longer than everything else here."""

    breakers: Breakers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.breakers is other.breakers

    def __hash__(self) -> int:
        return id(self.breakers)


@lru_cache(maxsize=64)
def _breakers(same: _Same) -> dict[int, list[tuple[int, ...]]]:
    """By their first token, what must follow it; nothing more where that is enough."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for head, *tail in filter(None, same.breakers):
        found.setdefault(head, []).append(tuple(tail))
    return found


def _unbroken(window: np.ndarray, breakers: dict[int, list[tuple[int, ...]]]) -> int:
    """Tokens behind the window's last breaker; all where there is none."""
    size = len(window)
    if not breakers:
        return size
    for end in range(size, 0, -BLOCK):
        start = max(0, end - BLOCK)
        for back, token in enumerate(reversed(window[start:end].tolist())):
            if token not in breakers:
                continue
            rest = window[end - back :]
            matching = [
                len(tail)
                for tail in breakers[token]
                if len(tail) <= len(rest) and tuple(rest[: len(tail)].tolist()) == tail
            ]
            if matching:
                return len(rest) - max(matching)
    return size
