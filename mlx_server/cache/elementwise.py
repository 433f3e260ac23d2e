"""Elementwise functions for float32 on a CPU, as polynomials over whole arrays.

MLX for Linux takes the numbers one by one there: an exponential costs fifteen times a
product (measured: `silu` of [256, 1024] takes four times the matrix product before it).
Where a compiler is at hand the operations of one function become one kernel, or a few
(`engine/device.py` turns that off where there is none): a step's time there goes to MLX's
cost per operation as much as to the numbers.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

FEW = 12_000
"""Numbers up to which one slow operation takes less time than twenty fast ones."""

_EXP = (2.0180902e-14, 7.7899326e-12, 2.4835612e-9, 6.3577762e-7, 1.2207031e-4, 0.015625, 1.0)
"""e^(t / 64), highest power first: least squares for |t| ≤ 20, until the error was even."""

# Kernels that hold for every shape, and for each shape that comes: a little faster,
# for functions that see few.
_fused = partial(mx.compile, shapeless=True)
_fused_by_shape = mx.compile


def _exp(t: mx.array) -> mx.array:
    """e^t for t ≥ -87, infinity where t is large; relative error 7e-6 for |t| ≤ 20, 2e-4 to 40.

    Squaring needs no access to the exponent's bits, which would bind a kernel to its shape.
    """
    result = _EXP[0] * t + _EXP[1]
    for coefficient in _EXP[2:]:
        result = result * t + coefficient
    for _ in range(6):
        result = mx.square(result)
    return result


def exp_below(x: mx.array, top: mx.array) -> mx.array:
    """e^(x - top), by MLX itself where it has a kernel.

    Args:
        x: Any shape; 0 comes of what is far below `top`.
        top: Broadcast to x, and nowhere below it.
    """
    return _exp_below(x, top) if slow(x) else mx.exp(x - top)


@_fused
def _exp_below(x: mx.array, top: mx.array) -> mx.array:
    # All powers of a distance above 0 are positive, so that nothing cancels or overflows to NaN.
    return mx.reciprocal(_exp(top - x))


@_fused_by_shape
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * up / (1 + mx.reciprocal(_exp(mx.maximum(gate, -87.0))))


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up (arXiv:2002.05202), by MLX itself where it has a kernel.

    Args:
        gate, up: Of one shape, which is the result's.
    """
    return _swiglu(gate, up) if slow(gate) else nn.silu(gate) * up


@_fused
def _rms_norm(x: mx.array, weight: mx.array, share: mx.array, eps: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) * share + eps) * weight


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / √(mean(x²) + eps) · weight over the last axis (arXiv:1910.07467), by MLX itself where
    it has a kernel or the rows are many.

    Args:
        x: [..., dim].
        weight: [dim].
    """
    if slow(x) and x.size < FEW:
        return _rms_norm(x, weight, mx.array(1 / x.shape[-1]), mx.array(eps))
    return mx.fast.rms_norm(x, weight, eps)


def logsumexp(x: mx.array) -> mx.array:
    """log Σ e^x: [..., n] → [..., 1], by MLX itself as above."""
    if not slow(x) or x.size < FEW:
        return mx.logsumexp(x, axis=-1, keepdims=True)
    top = x.max(axis=-1, keepdims=True)
    return top + mx.log(exp_below(x, top).sum(axis=-1, keepdims=True))


def slow(x: mx.array) -> bool:
    """Whether MLX has no kernel for such numbers: float32 on a CPU, any shape."""
    return x.dtype == mx.float32 and mx.default_device() == mx.cpu
