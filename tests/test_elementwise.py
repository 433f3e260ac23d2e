"""Polynomials on the CPU equal the functions they stand for."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_server.cache.elementwise import exp, logsumexp, silu


def test_exp() -> None:
    x = np.linspace(-86, 86, 10_001).astype(np.float32)
    np.testing.assert_allclose(np.array(exp(mx.array(x))), np.exp(x.astype(np.float64)), rtol=5e-6)
    assert exp(mx.array([0.0, -1e30])).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_silu(dtype: mx.Dtype) -> None:
    x = mx.concatenate([mx.linspace(-20, 20, 4001), mx.array([-1e4, -100, 0, 100, 1e4])])
    found, expected = silu(x.astype(dtype)), nn.silu(x.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), np.array(expected.astype(mx.float32)),
        rtol=5e-6, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("width", [10, 20_000])
def test_logsumexp(width: int) -> None:
    x = mx.array(np.random.default_rng(0).normal(0, 30, (3, width)).astype(np.float32))
    expected = mx.logsumexp(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.array(logsumexp(x)), np.array(expected), atol=1e-5)
