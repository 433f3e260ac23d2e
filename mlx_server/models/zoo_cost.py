"""What a sequence's caches will take, from those of a probe that was never evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.models.cache import (
    ArraysCache,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlx_server.cache.zoo_state import STEP, up_to_multiple

Cost = Callable[[int], int]
"""Bytes by number of tokens."""


def cost_function(leaves: Sequence[Any], num_tokens: int) -> Cost:
    """
    Args:
        leaves: A sequence's caches, without quantised ones.
        num_tokens: Tokens that they hold.
    """
    fixed = 0
    per_token: dict[float, float] = defaultdict(float)
    leaf: Any
    for leaf in leaves:
        if isinstance(leaf, ArraysCache):
            fixed += leaf.nbytes
        elif isinstance(leaf, KVCache | RotatingKVCache | ChunkedKVCache | QuantizedKVCache):
            stored: Any = leaf.keys
            keys = stored[0] if isinstance(leaf, QuantizedKVCache) else stored
            limit = float(getattr(leaf, "max_size", "inf"))
            if isinstance(leaf, ChunkedKVCache):
                limit = leaf.chunk_size + leaf.step
            per_token[limit] += leaf.nbytes / keys.shape[2]
        else:
            per_token[float("inf")] += leaf.nbytes / num_tokens

    def cost(num_tokens: int) -> int:
        allocated = up_to_multiple(num_tokens, STEP)
        growing = sum(rate * min(allocated, limit) for limit, rate in per_token.items())
        return fixed + int(growing)

    return cost


def quantised_cost(
    plain: Sequence[Any], quantised: Sequence[Any], num_tokens: int, start: int
) -> Cost:
    """
    Args:
        plain, quantised: A sequence's caches before and after `start` tokens, in one order.
    """
    pairs = list(zip(plain, quantised, strict=True))
    others = cost_function([old for old, new in pairs if type(old) is type(new)], num_tokens)
    before = cost_function([old for old, new in pairs if type(old) is not type(new)], num_tokens)
    after = cost_function([new for old, new in pairs if type(old) is not type(new)], num_tokens)

    def cost(num_tokens: int) -> int:
        if num_tokens <= start:
            return others(num_tokens) + before(num_tokens)
        # On its way to being quantised a sequence has both for a moment.
        return others(num_tokens) + after(num_tokens) + (before(start) if start else 0)

    return cost
