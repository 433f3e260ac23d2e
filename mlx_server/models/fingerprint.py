"""What tells one model's saved state from another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_server.models.parameters import parameters

SAMPLE = 256
"""Numbers of each array that are read."""

_INNER = ("linear", "embedding", "experts")
"""Where the wrappers of `lora_layers.py` keep the layer that they stand for."""


def fingerprint(module: nn.Module) -> str:
    """A hash over a model's settings, its weights' names, shapes and types, and `SAMPLE`
    numbers of each, spread evenly. Adapters over it do not change it.

    Args:
        module: Ours or mlx_lm's, with its weights loaded. The sampled numbers are evaluated.
    """
    settings = json.dumps(_settings(module), sort_keys=True, default=str)
    control = getattr(module, "control", None) or {}
    arrays = {f"control.{layer}": array for layer, array in control.items()}
    arrays |= _base_weights(module)
    return _digest(settings, arrays)


def adapter_fingerprint(module: nn.Module, name: str) -> str | None:
    """The same of an adapter over the model; None if it is not loaded.

    Args:
        name: As in `AdapterBank.load`.
    """
    arrays: dict[str, mx.array] = {}
    scales: list[tuple[str, float]] = []
    for path, wrapper in _wrappers(module):
        factors = wrapper.table.factors.get(name)
        if factors is not None:
            arrays |= {f"{path}.a": factors.a, f"{path}.b": factors.b}
            scales.append((path, factors.scale))
    return _digest(json.dumps(sorted(scales)), arrays) if arrays else None


def _settings(module: nn.Module) -> Any:
    args: Any = getattr(module, "args", None)
    if is_dataclass(args) and not isinstance(args, type):
        return asdict(args)
    return vars(args) if hasattr(args, "__dict__") else repr(args)


def _wrappers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, part in module.named_modules():
        if hasattr(part, "table") and hasattr(part.table, "factors"):
            yield path, part


def _base_weights(module: nn.Module) -> dict[str, mx.array]:
    """By the names that they have without adapters."""
    inner = {
        f"{path}.{attribute}.": f"{path}."
        for path, part in module.named_modules()
        if hasattr(part, "bank")
        for attribute in _INNER
    }
    # The innermost first: a wrapper may stand within another's layer.
    prefixes = sorted(inner, key=len, reverse=True)
    weights = {}
    for name, array in parameters(module):
        for prefix in prefixes:
            if name.startswith(prefix):
                name = inner[prefix] + name.removeprefix(prefix)
        weights[name] = array
    return weights


def _digest(settings: str, arrays: dict[str, mx.array]) -> str:
    names = sorted(arrays)
    described = [(name, list(arrays[name].shape), str(arrays[name].dtype)) for name in names]
    found = hashlib.sha256(json.dumps([settings, described]).encode())
    samples = [_sample(arrays[name]) for name in names]
    if samples:
        found.update(np.array(mx.concatenate(samples)).tobytes())
    return found.hexdigest()


def _sample(array: mx.array) -> mx.array:
    """uint8 [n]."""
    flat = array.reshape(-1)
    step = max(1, flat.size // SAMPLE)
    return mx.contiguous(flat[::step][:SAMPLE]).view(mx.uint8)
