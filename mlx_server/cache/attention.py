"""Attention in plain operations, for float32 on a device that has no kernel for it.

MLX composes `scaled_dot_product_attention` of single operations on a CPU, one product
per query head, and its softmax is six sevenths of the time of a prompt chunk behind
1,000 tokens. Here the query heads of one key head are the rows of one product, the
exponential is that of `elementwise.py`, and the scores stay in the core's cache.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_server.cache.elementwise import exp_below

FEW = 8_000
"""Scores up to which MLX's own composition is faster, having fewer operations."""

HIDDEN = -1e30
"""Added to the scores that a query does not see."""

SCORES = 200_000
"""Scores that are made at a time: what stays in a core's cache while they are worked on."""


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: mx.array | str | None,
) -> mx.array:
    """Scaled dot-product attention; arguments and result as of MLX's own.

    Args:
        queries: float32 [rows, heads, tokens, dim].
        keys, values: float32 [rows, kv_heads, columns, dim].
        mask: Boolean or to add, [rows, 1, 1, columns] or [tokens, columns]; "causal"; None.
    """
    rows, heads, tokens, dim = queries.shape
    columns = keys.shape[2]
    if tokens == 1:
        # It sees everything but what an array hides.
        hidden = None if isinstance(mask, str) else mask
        if rows * heads * columns < FEW:
            folded = queries.reshape(rows, keys.shape[1], -1, dim)
            out = mx.fast.scaled_dot_product_attention(
                folded, keys, values, scale=scale, mask=hidden
            )
            return out.reshape(queries.shape)
        return _attend(queries * scale, keys, values, hidden)
    queries = queries * scale
    outputs = []
    step = max(16, SCORES // (rows * heads * columns))
    for start in range(0, tokens, step):
        stop, visible = min(start + step, tokens), columns
        seen = None
        if isinstance(mask, str):
            visible = columns - tokens + stop
            size = stop - start
            seen = mx.tri(size, visible, visible - size, dtype=mx.bool_)
        elif mask is not None:
            seen = mask[start:stop] if mask.ndim == 2 else mask
        block = queries[:, :, start:stop]
        outputs.append(_attend(block, keys[:, :, :visible], values[:, :, :visible], seen))
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=2)


def bias(mask: mx.array) -> mx.array:
    """A boolean mask as one to add: 0 where it is true, `HIDDEN` where not; any shape, and one to
    add comes back as it is."""
    return mx.where(mask, 0.0, HIDDEN) if mask.dtype == mx.bool_ else mask


def _attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
    shape, kv_heads, columns = queries.shape, keys.shape[1], keys.shape[2]
    folded = queries.reshape(shape[0], kv_heads, -1, shape[3])
    scores = (folded @ keys.swapaxes(-1, -2)).reshape(*shape[:3], columns)
    if mask is not None:
        scores = scores + bias(mask)
    weights = exp_below(scores, scores.max(axis=-1, keepdims=True))
    out = weights.reshape(*folded.shape[:3], columns) @ values
    return out.reshape(shape) / weights.sum(axis=-1, keepdims=True)
