"""What a client is told about a token: its log-probability or probability, and the best ones."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_server.cache.elementwise import logsumexp
from mlx_server.sampling.row import power_of_two
from mlx_server.sampling_params import MAX_TOP_LOGPROBS


def position_logprobs(
    logits: mx.array, token_ids: mx.array, top: int | Sequence[int]
) -> tuple[mx.array, mx.array, mx.array]:
    """Log-softmax of given tokens, and the best ones at each position.

    Args:
        logits: [P, V], any float type.
        token_ids: int32 [P].
        top: How many of the best, may be 0; of each position, or of all.

    Returns:
        float32 [P]; int32 [P, T], best first; float32 [P, T]. T = min(the most of any, V):
        a position's entries beyond its own number mean nothing.
    """
    logits = logits.astype(mx.float32)
    # Only what is asked for is normalised: no second [P, V] array.
    log_total = logsumexp(logits)
    own = mx.take_along_axis(logits, token_ids[:, None], axis=-1) - log_total
    ids = best(logits, [top] * len(logits) if isinstance(top, int) else top)
    return own[:, 0], ids, mx.take_along_axis(logits, ids, axis=-1) - log_total


def position_probs(
    logits: mx.array, token_ids: mx.array, top: Sequence[int]
) -> tuple[mx.array, mx.array, mx.array]:
    """The same with the softmax: probabilities of given tokens and the best ones.

    Args:
        logits: float32 [P, V], at least one in each row above -inf; what is -inf has 0.
        token_ids: int32 [P].
        top: How many of the best, of each position.

    Returns:
        As of `position_logprobs`.
    """
    probs = mx.softmax(logits, axis=-1, precise=True)
    own = mx.take_along_axis(probs, token_ids[:, None], axis=-1)
    ids = best(logits, top)
    return own[:, 0], ids, mx.take_along_axis(probs, ids, axis=-1)


def best(logits: mx.array, top: Sequence[int]) -> mx.array:
    """Ids of the largest values, best first; of equals, the lowest id.

    Args:
        logits: float32 [P, V].
        top: How many of each row.

    Returns:
        int32 [P, T], T = min(the most of any row, V).
    """
    num_rows, vocab_size = logits.shape
    most = min(max(top, default=0), vocab_size)
    if most == 0:
        return mx.zeros((num_rows, 0), dtype=mx.int32)
    # Rows are sorted to one of a few depths, which hangs on their own number alone: so does
    # which of several equals at that depth are among the best.
    depths = [min(_depth(k), vocab_size) for k in top]
    if min(depths) == max(depths):
        return _best(logits, depths[0])[:, :most]
    parts, order = [], []
    for depth in sorted(set(depths)):
        lines = [i for i, d in enumerate(depths) if d == depth]
        ids = _best(logits[mx.array(lines)], depth)[:, :most]
        parts.append(mx.pad(ids, [(0, 0), (0, most - ids.shape[-1])]))
        order += lines
    return mx.concatenate(parts)[mx.array(np.argsort(order).astype(np.int32))]


def _depth(top: int) -> int:
    return MAX_TOP_LOGPROBS if top <= MAX_TOP_LOGPROBS else power_of_two(top)


def _best(logits: mx.array, depth: int) -> mx.array:
    """int32 [P, depth]."""
    vocab_size = logits.shape[-1]
    ids = mx.argpartition(logits, vocab_size - depth, axis=-1)[:, vocab_size - depth :]
    ids = mx.sort(ids.astype(mx.int32), axis=-1)
    order = mx.argsort(-mx.take_along_axis(logits, ids, axis=-1), axis=-1)
    return mx.take_along_axis(ids, order, axis=-1)
