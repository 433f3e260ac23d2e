"""Rotary position embeddings (arXiv:2104.09864) with every scaling that Llama checkpoints use.

Each scaling comes down to per-dimension periods and a factor on the input, so
one module serves them all. Positions are given per token: a packed batch holds
tokens of many sequences.

Sources: linear (Meta, arXiv:2306.15595), dynamic NTK (transformers), llama3
(Meta's Llama 3.1), yarn (arXiv:2309.00071), longrope (arXiv:2402.13753),
proportional and mrope as in mlx-lm. Formulas agree with mlx_lm.models.rope_utils. What the
command line asks for is llama.cpp's (`_llama_cpp`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import mlx.core as mx

Scaling = Mapping[str, Any]


class Rope:
    """Rotates the first `dims` features of each head.

    Args:
        dims: Features to rotate.
        traditional: Rotate neighbouring pairs instead of halves.
        base: Base of the periods; unused where `periods` is given.
        periods: float32 [dims / 2], positions per radian.
        position_scale: Factor on positions.
        magnitude: Factor on the rotated features.
        dynamic: (factor, trained length) of dynamic NTK scaling.
    """

    def __init__(
        self,
        dims: int,
        *,
        traditional: bool = False,
        base: float = 10000.0,
        periods: mx.array | None = None,
        position_scale: float = 1.0,
        magnitude: float = 1.0,
        dynamic: tuple[float, int] | None = None,
    ) -> None:
        self.dims = dims
        self.traditional = traditional
        self.base = base
        self._periods = periods
        self.position_scale = position_scale
        self.magnitude = magnitude
        self.dynamic = dynamic

    def rotation(self, positions: mx.array) -> Rotation:
        """What the layers of a step share.

        Args:
            positions: int32 [N], of every packed token in its sequence.
        """
        return Rotation(self, positions)

    def angles(self, positions: mx.array) -> mx.array:
        """positions: int32 [N] → float32 [N, dims / 2], as `mx.fast.rope` has them."""
        steps = positions.astype(mx.float32)
        if self.dynamic is not None:
            # The base grows with the sequence once it is longer than in training, so
            # every token has periods of its own and mx.fast.rope cannot be used.
            factor, trained = self.dynamic
            growth = factor * mx.maximum(steps + 1, trained) / trained - (factor - 1)
            base = self.base * growth ** (self.dims / (self.dims - 2))
            exponents = mx.arange(0, self.dims, 2, dtype=mx.float32) / self.dims
            return steps[:, None] / base[:, None] ** exponents
        if self._periods is not None:
            speeds = 1 / self._periods
        else:
            half = self.dims // 2
            exponents = mx.arange(0, -half, -1, dtype=mx.float32)
            speeds = mx.exp(exponents * (math.log(self.base) / half))
        return (steps * self.position_scale)[:, None] * speeds


class Rotation:
    """Turns queries and keys at given positions.

    MLX has a kernel for it on a GPU. On a CPU it would work out the same angles for
    every layer anew, so here their sines are taken once.

    Args:
        positions: int32 [N].
    """

    def __init__(self, rope: Rope, positions: mx.array) -> None:
        self._rope = rope
        self._positions = positions
        self._composed = rope.dynamic is not None or mx.default_device() == mx.cpu
        # A feature's partner stands half the features on, or beside it.
        half = rope.dims // 2
        self._pairs = (half, 2) if rope.traditional else (2, half)
        if self._composed:
            angles = rope.angles(positions)
            cos, sin = mx.cos(angles), mx.sin(angles)
            axis = -1 if rope.traditional else -2
            self._own = mx.stack([cos, cos], axis=axis)[:, None]
            self._partner = mx.stack([-sin, sin], axis=axis)[:, None]

    def __call__(self, x: mx.array) -> mx.array:
        """x: [N, heads, 1, dim] → like x."""
        rope = self._rope
        if rope.magnitude != 1.0:
            x = x.at[..., : rope.dims].multiply(rope.magnitude)
        if self._composed:
            return self._compose(x)
        return mx.fast.rope(
            x,
            rope.dims,
            traditional=rope.traditional,
            base=None if rope._periods is not None else rope.base,
            scale=rope.position_scale,
            offset=self._positions,
            freqs=rope._periods,
        )

    def _compose(self, x: mx.array) -> mx.array:
        dims = self._rope.dims
        turned = x[..., :dims].astype(mx.float32).reshape(*x.shape[:2], *self._pairs)
        swapped = turned[..., ::-1] if self._rope.traditional else turned[..., ::-1, :]
        turned = _turn(turned, self._own, swapped, self._partner)
        turned = turned.reshape(*x.shape[:3], dims).astype(x.dtype)
        return turned if dims == x.shape[-1] else mx.concatenate([turned, x[..., dims:]], axis=-1)


@partial(mx.compile, shapeless=True)
def _turn(own: mx.array, cos: mx.array, partner: mx.array, sin: mx.array) -> mx.array:
    return own * cos + partner * sin


def make_rope(
    dims: int,
    base: float,
    traditional: bool,
    scaling: Scaling | None,
    max_position_embeddings: int | None,
) -> Rope:
    """The Rope that a config describes.

    Raises:
        ValueError: An unknown kind of scaling, or one whose settings are missing or unusable.
    """
    options = _options(dims, base, scaling or {}, max_position_embeddings)
    return Rope(dims, **{"traditional": traditional, "base": base} | options)


def kind_of(scaling: Scaling | None) -> str:
    """The name of a scaling, in `SCALINGS` or not."""
    scaling = scaling or {}
    return scaling.get("type") or scaling.get("rope_type", "default")


def _options(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    kind = kind_of(scaling)
    if kind not in SCALINGS:
        raise ValueError(f"rope scaling {kind!r} is not known (known: {', '.join(SCALINGS)})")
    try:
        return SCALINGS[kind](dims, base, scaling, trained)
    except KeyError as error:
        raise ValueError(f"rope scaling {kind!r} needs {error} in rope_scaling") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"rope scaling {kind!r} cannot use its settings ({error})") from None


def _plain_periods(dims: int, base: float) -> mx.array:
    return base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)


def _default(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    return {}


def _linear(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    return {"position_scale": 1 / scaling["factor"]}


def _dynamic(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    return {"dynamic": (scaling["factor"], trained or 2048)}


def _llama3(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    factor = scaling["factor"]
    low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    original = scaling.get("original_max_position_embeddings", 8192)
    periods = _plain_periods(dims, base)
    wavelengths = 2 * mx.pi * periods
    blend = (original / wavelengths - low) / (high - low)
    blended = periods / ((1 - blend) / factor + blend)
    long = wavelengths > original / low
    medium = (wavelengths > original / high) & (wavelengths < original / low)
    return {"periods": mx.where(medium, blended, mx.where(long, periods * factor, periods))}


def _ramp(dims: int, base: float, original: int, fast: float, slow: float) -> mx.array:
    """float32 [dims / 2]: 0 where a pair turns more than `fast` times within the `original`
    tokens, 1 where it turns less than `slow` times, and a line between."""

    def dimension(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(fast)), 0)
    high = min(math.ceil(dimension(slow)), dims - 1)
    span = max(high - low, 0.001)
    return mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / span, 0, 1)


def yarn_magnitude(scaling: Scaling) -> float:
    """YaRN's factor on the rotated features."""
    factor = scaling["factor"]

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return magnitude(scaling.get("mscale", 1)) / magnitude(scaling.get("mscale_all_dim", 0))


def _yarn(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    factor = scaling["factor"]
    original = scaling.get("original_max_position_embeddings", 4096)
    fast, slow = scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)
    ramp = _ramp(dims, base, original, fast, slow)
    plain = _plain_periods(dims, base)
    stretched = factor * plain
    return {
        "periods": stretched * plain / (stretched * (1 - ramp) + plain * ramp),
        "magnitude": yarn_magnitude(scaling),
    }


def _llama_cpp(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    """llama.cpp's scaling by flags, as its `rope_yarn` computes it (ggml, `ggml-cpu/ops.cpp`).

    For pair i of a token at position p, with θ = p · base^(-2i / dims) / f:

        angle      θ · (s · (1 - m) + m),   m = (1 - ramp) · ext_factor
        magnitude  attn_factor · (1 + 0.1 · ln(1 / s)), the last only where ext_factor is not 0

    s is `freq_scale` and f the factor on the pair's period by which the model's own scaling
    differs from none (`inner`; llama.cpp has it as the tensor rope_freqs).
    """
    scale, ext_factor = scaling["freq_scale"], scaling["ext_factor"]
    inner = _options(dims, base, scaling.get("inner") or {}, trained)
    magnitude = inner.get("magnitude", 1.0) * scaling["attn_factor"]
    if not ext_factor:
        return {**inner, "position_scale": scale, "magnitude": magnitude}
    original = scaling["original_max_position_embeddings"]
    ramp = _ramp(dims, base, original, scaling["beta_fast"], scaling["beta_slow"])
    mix = (1 - ramp) * ext_factor
    plain = inner.get("periods")
    if plain is None:
        plain = _plain_periods(dims, base)
    magnitude *= 1 + 0.1 * math.log(1 / scale)
    return {**inner, "periods": plain / (scale * (1 - mix) + mix), "magnitude": magnitude}


def _longrope(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    original = scaling["original_max_position_embeddings"]
    factor = (trained or original) / original
    long_factor = mx.array(scaling["long_factor"], dtype=mx.float32)
    return {
        "traditional": False,  # it rotates halves, whatever rope_traditional says
        "periods": long_factor * _plain_periods(dims, base),
        "magnitude": 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original)),
    }


def _proportional(dims: int, base: float, scaling: Scaling, trained: int | None) -> dict[str, Any]:
    rotated = int(dims * scaling.get("partial_rotary_factor", 1.0))
    exponents = mx.arange(0, rotated, 2, dtype=mx.float32) / dims
    turning = scaling.get("factor", 1.0) * base**exponents
    still = mx.full(((dims - rotated) // 2,), mx.inf)
    return {"periods": mx.concatenate([turning, still])}


SCALINGS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "deepseek_yarn": _yarn,
    "telechat3-yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
    "mrope": _default,
    "llama.cpp": _llama_cpp,
}
"""One line per scaling: (dims, base, rope_scaling, max_position_embeddings) → Rope's options."""
