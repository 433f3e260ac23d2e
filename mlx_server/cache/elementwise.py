"""Elementwise functions for float32 on a CPU, as polynomials over whole arrays.

MLX for Linux takes the numbers one by one there: an exponential costs fifteen times a
product (measured: `silu` of [256, 1024] takes four times the matrix product before it).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

FEW = 12_000
"""Numbers up to which one slow operation takes less time than twenty fast ones."""

_ROUND = 12582912.0
"""1.5 · 2^23: added to a small number it leaves the nearest whole one in the low bits."""

_EXP2 = (0.0013276470, 0.0096755410, 0.055507135, 0.24022120, 0.69314694, 1.0000001)
"""2^f for |f| ≤ 1/2, highest power first; the relative error is below 8e-8 (least squares,
weighted until the error was even)."""


def exp(x: mx.array) -> mx.array:
    """e^x for float32 x ≤ 87; what is below -87 gives 1.6e-38. Relative error: 4e-6."""
    x = mx.maximum(x, -87.0) * 1.4426950408889634
    rounded = x + _ROUND
    fraction = x - (rounded - _ROUND)
    result = fraction * _EXP2[0] + _EXP2[1]
    for coefficient in _EXP2[2:]:
        result = result * fraction + coefficient
    # 2^n is added to the exponent's bits.
    bits = mx.view(result, mx.int32) + (mx.view(rounded, mx.int32) << 23)
    return mx.view(bits, mx.float32)


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x), by MLX itself where it has a kernel, for other types and few numbers."""
    return x / (1 + exp(mx.minimum(-x, 87.0))) if _slow(x) else nn.silu(x)


def logsumexp(x: mx.array) -> mx.array:
    """Over the last axis, which stays with one entry; by MLX itself as above."""
    if not _slow(x):
        return mx.logsumexp(x, axis=-1, keepdims=True)
    top = x.max(axis=-1, keepdims=True)
    return top + mx.log(exp(x - top).sum(axis=-1, keepdims=True))


def _slow(x: mx.array) -> bool:
    return x.size >= FEW and x.dtype == mx.float32 and mx.default_device() == mx.cpu
