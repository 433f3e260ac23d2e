"""How many packed tokens the linear layers like to see at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

OPENBLAS_TILE = 16
"""Rows of OpenBLAS's float32 kernel. A product of 12 rows takes twice what one of 16 does,
one of 8 a fifth more (384 → 1,024, two cores with AVX-512)."""

FEW = 4
"""Rows from which filling a tile costs nothing."""


def row_tile(module: nn.Module) -> int:
    """A number of rows whose multiples cost no more than the counts just below them.

    More than 1 for float32 weights on a CPU with OpenBLAS only: elsewhere a row
    costs the same wherever it stands.
    """
    if mx.default_device() != mx.cpu or not _has_openblas():
        return 1
    linear = [m for m in module.modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)]
    plain = all(isinstance(m, nn.Linear) and m.weight.dtype == mx.float32 for m in linear)
    return OPENBLAS_TILE if linear and plain else 1


def padding(count: int, tile: int) -> int:
    """Rows to add to `count` of them."""
    return -count % tile if count >= FEW else 0


@cache
def _has_openblas() -> bool:
    """MLX's Linux wheel takes what the system has, or what was preloaded."""
    try:
        return "openblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
