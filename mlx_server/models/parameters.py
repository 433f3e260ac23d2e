"""A module's arrays by name."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    """Every weight with its dotted name, as in a safetensors file."""
    return cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))
