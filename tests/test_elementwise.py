"""Polynomials on the CPU equal the functions they stand for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_server.cache import elementwise
from mlx_server.cache.elementwise import logsumexp, swiglu


@pytest.fixture(params=[True, False], ids=["compiled", "no compiler"], autouse=True)
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param and shutil.which("g++") is None:
        pytest.skip("needs g++")
    if not request.param:
        mx.disable_compile()
    yield
    if not request.param and shutil.which("g++"):
        mx.enable_compile()


def test_exp_below() -> None:
    top = mx.array([[3.0], [50.0]])
    x = top - mx.array(np.linspace(0, 20, 10_001).astype(np.float32))
    expected = np.exp(np.array(x, np.float64) - np.array(top))
    np.testing.assert_allclose(np.array(elementwise.exp_below(x, top)), expected, rtol=1e-5)
    far = mx.array([-87.0, -1e3, -1e30, -mx.inf])
    assert elementwise.exp_below(far, mx.array([0.0])).tolist() == pytest.approx([0] * 4, abs=1e-30)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_swiglu(dtype: mx.Dtype) -> None:
    x = mx.concatenate([mx.linspace(-20, 20, 4001), mx.array([-1e4, -100, 0, 100, 1e4])])
    x, up = x.astype(dtype), mx.linspace(-2, 2, 4006).astype(dtype)
    found, expected = swiglu(x, up), nn.silu(x) * up
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), np.array(expected.astype(mx.float32)),
        rtol=1e-5, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 16, 300])
def test_rms_norm(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, weight = (
        mx.array(rng.normal(0, 3, (rows, 64)), mx.float32),
        mx.array(rng.random(64), mx.float32),
    )
    expected = mx.fast.rms_norm(x, weight, 1e-5)
    np.testing.assert_allclose(
        np.array(elementwise.rms_norm(x, weight, 1e-5)), np.array(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("width", [10, 20_000])
def test_logsumexp(width: int) -> None:
    x = mx.array(np.random.default_rng(0).normal(0, 30, (3, width)).astype(np.float32))
    expected = mx.logsumexp(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.array(logsumexp(x)), np.array(expected), atol=1e-5)
