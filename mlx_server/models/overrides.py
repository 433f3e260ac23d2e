"""llama.cpp's flags for rotary positions, put over what a config.json says.

llama.cpp has one scaling with a few numbers, and its flags replace them one by one; here
the model's own scaling is read as those numbers first. Our modules take them as they are
(`rope.py`); mlx-lm's get them in the words of config.json, where those can say it.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.models.registry import OURS, resolve_classes
from mlx_server.models.rope import kind_of, yarn_magnitude

BETA_FAST, BETA_SLOW = 32.0, 1.0
DEFAULT_BASE = 10000.0

_YARN = ("yarn", "deepseek_yarn", "telechat3-yarn")


@dataclass(frozen=True, slots=True)
class RopeOverrides:
    """What the command line says of rotary positions; None: nothing.

    Args:
        scaling: "none", "linear" or "yarn".
        freq_base: Base of the periods.
        freq_scale: Factor on positions.
        orig_ctx: YaRN's length of the training's context.
        ext_factor: YaRN's share of extrapolation; negative: 1 with yarn, else 0.
        attn_factor: Factor on the rotated features' magnitude.
        beta_slow, beta_fast: Rotations between which YaRN blends.
    """

    scaling: str | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    orig_ctx: int | None = None
    ext_factor: float | None = None
    attn_factor: float | None = None
    beta_slow: float | None = None
    beta_fast: float | None = None

    @classmethod
    def of(cls, config: Config) -> RopeOverrides:
        """
        Raises:
            ModelLoadError: --rope-scale and --rope-freq-scale contradict each other.
        """
        scale = config.rope_freq_scale
        if config.rope_scale is not None:
            by_factor = 1 / config.rope_scale
            if scale is not None and not math.isclose(scale, by_factor, rel_tol=1e-6):
                raise ModelLoadError(
                    f"--rope-scale {config.rope_scale:g} is --rope-freq-scale {by_factor:g}, not "
                    f"{scale:g}; give one of them."
                )
            scale = by_factor
        return cls(
            scaling=config.rope_scaling,
            freq_base=config.rope_freq_base,
            freq_scale=scale,
            orig_ctx=config.yarn_orig_ctx,
            ext_factor=config.yarn_ext_factor,
            attn_factor=config.yarn_attn_factor,
            beta_slow=config.yarn_beta_slow,
            beta_fast=config.yarn_beta_fast,
        )

    @property
    def given(self) -> bool:
        """Whether the command line asks for anything of the kind."""
        return any(getattr(self, f.name) is not None for f in fields(self))

    @property
    def scales(self) -> bool:
        """Whether anything but the base is given."""
        return any(getattr(self, f.name) is not None for f in fields(self) if f.name != "freq_base")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """One rotary scaling, in llama.cpp's numbers.

    Args:
        inner: The model's own scaling where it is none of llama.cpp's.
    """

    yarn: bool
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float
    orig_ctx: int | None
    inner: Mapping[str, Any] | None

    @property
    def plain(self) -> bool:
        return self.freq_scale == 1 and not self.ext_factor and self.attn_factor == 1


def apply(config: Mapping[str, Any], overrides: RopeOverrides) -> dict[str, Any]:
    """A config.json with the rotary positions that the command line asks for.

    Args:
        config: As read from the file; it is not changed.

    Raises:
        ModelLoadError: The architecture's positions cannot be set so.
    """
    result = dict(config)
    if not overrides.given:
        return result
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping) and any(isinstance(v, Mapping) for v in parameters.values()):
        raise _cannot(config, "its layers have several kinds of rotary positions")
    scaling = config.get("rope_scaling") or parameters or None
    if not isinstance(scaling, Mapping | None):
        raise _cannot(config, "its rope_scaling is no object")
    ours = config.get("model_type") in OURS and config.get("model_file") is None
    if not ours:
        _check_reads(config, overrides)
    changed: dict[str, Any] = {}
    if overrides.freq_base is not None:
        result["rope_theta"] = changed["rope_theta"] = overrides.freq_base
    if overrides.scales:
        numbers = _resolve(config, scaling, overrides)
        new = _for_ours(numbers) if ours else _for_zoo(config, numbers)
        result["rope_scaling"] = new
        changed |= new or {"rope_type": "default"}
    if isinstance(parameters, Mapping):
        # transformers 5 writes base and scaling together, and some modules read only that.
        kept = ("rope_theta", "partial_rotary_factor")
        old = {k: v for k, v in parameters.items() if k in kept or not overrides.scales}
        result["rope_parameters"] = old | changed
    return result


def _resolve(
    config: Mapping[str, Any], scaling: Mapping[str, Any] | None, overrides: RopeOverrides
) -> _Numbers:
    """The model's numbers with the given ones over them, as in `llama_context`."""
    kind = kind_of(scaling)
    scaling = scaling or {}
    yarn, scale, attn_factor, inner = kind in _YARN, 1.0, 1.0, None
    try:
        if yarn or kind == "linear":
            scale = 1 / scaling["factor"]
        if yarn:
            # What its magnitude has beyond that of `rope_yarn`.
            attn_factor = yarn_magnitude(scaling) / (1 + 0.1 * math.log(1 / scale))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise _cannot(config, f"its own rope_scaling ({kind}) has no usable factor") from None
    if kind == "dynamic":
        raise _cannot(config, "its own rope_scaling (dynamic) changes with every token")
    if not yarn and kind not in ("default", "linear", "mrope"):
        inner = scaling
    if overrides.scaling is not None:
        yarn = overrides.scaling == "yarn"
    if overrides.freq_scale is not None:
        scale = overrides.freq_scale
    if overrides.scaling == "none":
        scale = 1.0
    ext_factor = overrides.ext_factor
    if ext_factor is None or ext_factor < 0:
        ext_factor = 1.0 if yarn else 0.0
    trained = scaling.get("original_max_position_embeddings")
    return _Numbers(
        yarn=yarn,
        freq_scale=scale,
        ext_factor=ext_factor,
        attn_factor=attn_factor * (1.0 if overrides.attn_factor is None else overrides.attn_factor),
        beta_fast=_first(overrides.beta_fast, scaling.get("beta_fast"), BETA_FAST),
        beta_slow=_first(overrides.beta_slow, scaling.get("beta_slow"), BETA_SLOW),
        orig_ctx=overrides.orig_ctx or trained or config.get("max_position_embeddings"),
        inner=inner,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _for_ours(numbers: _Numbers) -> dict[str, Any] | None:
    if numbers.plain:
        return dict(numbers.inner) if numbers.inner else None
    if numbers.ext_factor and numbers.orig_ctx is None:
        raise ModelLoadError(
            "config.json does not say how long the training's context was; give --yarn-orig-ctx."
        )
    return {
        "rope_type": "llama.cpp",
        "freq_scale": numbers.freq_scale,
        "ext_factor": numbers.ext_factor,
        "attn_factor": numbers.attn_factor,
        "beta_fast": numbers.beta_fast,
        "beta_slow": numbers.beta_slow,
        "original_max_position_embeddings": numbers.orig_ctx,
        "inner": None if numbers.inner is None else dict(numbers.inner),
    }


def _for_zoo(config: Mapping[str, Any], numbers: _Numbers) -> dict[str, Any] | None:
    """In the words of config.json."""
    if numbers.plain:
        return dict(numbers.inner) if numbers.inner else None
    if numbers.inner is not None:
        raise _cannot(config, f"its own rope_scaling ({kind_of(numbers.inner)}) cannot be scaled")
    factor = 1 / numbers.freq_scale
    if not numbers.ext_factor:
        if numbers.attn_factor != 1:
            raise _cannot(config, "without YaRN it has no factor on the magnitude")
        return {"type": "linear", "rope_type": "linear", "factor": factor}
    if numbers.ext_factor != 1 or factor <= 1:
        raise _cannot(config, "its YaRN has a --yarn-ext-factor of 1 and a --rope-scale above 1")
    if numbers.orig_ctx is None:
        raise _cannot(config, "config.json names no length of the training; give --yarn-orig-ctx")
    growth = 0.1 * math.log(factor)
    return {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": numbers.orig_ctx,
        "beta_fast": numbers.beta_fast,
        "beta_slow": numbers.beta_slow,
        # mlx-lm's magnitude is 1 + mscale · growth.
        "mscale": (numbers.attn_factor * (1 + growth) - 1) / growth,
        "mscale_all_dim": 0,
    }


def _check_reads(config: Mapping[str, Any], overrides: RopeOverrides) -> None:
    """See that mlx-lm's module reads the fields in question, and does not just declare them."""
    if config.get("model_file") is not None:
        raise _cannot(config, "it runs code of its own")
    _, args_class, _ = resolve_classes(config)
    declared = inspect.signature(args_class).parameters
    source = inspect.getsource(sys.modules[args_class.__module__])

    def reads(name: str) -> bool:
        return name in declared and re.search(rf"\.{name}\b", source) is not None

    whole = reads("rope_parameters") and isinstance(config.get("rope_parameters"), Mapping)
    if overrides.freq_base is not None and not (reads("rope_theta") or whole):
        raise _cannot(config, "mlx-lm's module for it reads no rope_theta")
    if overrides.scales and not (reads("rope_scaling") or whole):
        raise _cannot(config, "mlx-lm's module for it reads no rope_scaling")
    if overrides.scales and "initialize_rope" not in source:
        raise _cannot(config, "mlx-lm's module for it has a rope_scaling of its own")


def _cannot(config: Mapping[str, Any], reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"the --rope and --yarn flags cannot be applied to model_type {config.get('model_type')!r}:"
        f" {reason}. Start without them."
    )
