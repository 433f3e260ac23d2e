"""Quantised keys and values of mlx-lm's architectures, also of rows that decode together.

mlx-lm quantises the cache of one sequence only. `BatchQuantizedKVCache` is to
`QuantizedKVCache` what its `BatchKVCache` is to `KVCache`; keys and values are triples
of packed numbers, scales and biases, each [rows, heads, tokens, width]. Because of
`bits` and `group_size` mlx-lm's attention multiplies with them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, CacheList, KVCache, QuantizedKVCache

from mlx_server.cache.storage import Quantization


class RowQuantizedKVCache(QuantizedKVCache):
    """mlx-lm's, and it can be merged."""

    @classmethod
    def merge(cls, caches: Sequence[QuantizedKVCache]) -> BatchQuantizedKVCache:
        """Rows, each of one sequence, as one batch."""
        return BatchQuantizedKVCache.merge(caches)

    def size(self) -> int:
        return self.offset


class BatchQuantizedKVCache(BatchKVCache):
    """Rows padded on the left.

    Args:
        left_padding: Tokens of it, per row.
    """

    def __init__(self, left_padding: list[int], group_size: int, bits: int) -> None:
        super().__init__(left_padding)
        self.group_size = group_size
        self.bits = bits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Add keys and values [rows, heads, tokens, head_dim]; all columns so far."""
        start, end = self._idx, self._idx + keys.shape[2]
        new = tuple(
            mx.quantize(array, group_size=self.group_size, bits=self.bits)
            for array in (keys, values)
        )
        if self.keys is None or end > self.keys[0].shape[2]:
            self._grow(new, end - start)
        held: Any = (self.keys, self.values)
        for stored, pieces in zip(held, new, strict=True):
            for array, piece in zip(stored, pieces, strict=True):
                array[..., start:end, :] = piece
        self._idx = end
        self.offset = self.offset + (end - start)
        return self.keys_and_values()

    def _grow(self, like: Any, num_tokens: int) -> None:
        steps = -(-num_tokens // self.step) * self.step
        room = tree_map(lambda x: mx.zeros((*x.shape[:2], steps, x.shape[3]), x.dtype), like)
        if self.keys is not None:
            old = self.keys_and_values()
            room = tree_map(lambda a, b: mx.concatenate([a, b], axis=2), old, room)
        self.keys, self.values = room

    def keys_and_values(self) -> tuple[Any, Any]:
        """What is stored: triples [rows, heads, tokens, width], padding included."""
        return tree_map(lambda array: array[..., : self._idx, :], (self.keys, self.values))

    def finalize(self) -> None:
        """Called by mlx-lm after a prompt. Raises NotImplementedError for padding on the right."""
        if self._right_padding is not None:
            raise NotImplementedError("Rows are padded on the left.")

    def filter(self, batch_indices: mx.array) -> None:
        arrays = (self.keys, self.values)
        self.keys, self.values = tree_map(lambda array: array[batch_indices], arrays)
        self.offset = self.offset[batch_indices]
        self.left_padding = self.left_padding[batch_indices]

    def extend(self, other: BatchQuantizedKVCache) -> None:
        end = max(self._idx, other._idx)

        def aligned(cache: BatchQuantizedKVCache) -> tuple[Any, Any]:
            left = end - cache._idx
            pad = [(0, 0), (0, 0), (left, 0), (0, 0)]
            return tree_map(lambda array: mx.pad(array, pad), cache.keys_and_values())

        self.keys, self.values = tree_map(
            lambda a, b: mx.concatenate([a, b]), aligned(self), aligned(other)
        )
        self.left_padding = mx.concatenate(
            [cache.left_padding + (end - cache._idx) for cache in (self, other)]
        )
        self.offset = mx.concatenate([self.offset, other.offset])
        self._idx = end

    def empty_row(self) -> RowQuantizedKVCache:
        """A cache of one sequence that is quantised alike and holds nothing."""
        return RowQuantizedKVCache(self.group_size, self.bits)

    def extract(self, idx: int) -> RowQuantizedKVCache:
        """A copy of row `idx`, without its padding."""
        padding: Any = self.left_padding[idx].item()
        row, start = self.empty_row(), padding
        own, columns = slice(idx, idx + 1), slice(start, self._idx)
        row.keys, row.values = tree_map(
            lambda array: mx.contiguous(array[own, :, columns]), (self.keys, self.values)
        )
        row.offset = self._idx - start
        return row

    @classmethod
    def merge(cls, caches: Sequence[QuantizedKVCache]) -> BatchQuantizedKVCache:
        """One batch of rows [1, heads, tokens, width], padded on the left to the longest."""
        longest = max(cache.offset for cache in caches)
        padding = [longest - cache.offset for cache in caches]
        merged = cls(padding, caches[0].group_size, caches[0].bits)

        def stacked(*rows: mx.array) -> mx.array:
            return mx.concatenate(
                [
                    mx.pad(row[:, :, : longest - left], [(0, 0), (0, 0), (left, 0), (0, 0)])
                    for row, left in zip(rows, padding, strict=True)
                ]
            )

        merged.keys, merged.values = tree_map(
            stacked, *((tuple(cache.keys), tuple(cache.values)) for cache in caches)
        )
        merged.offset += longest
        merged._idx = longest
        return merged

    @property
    def nbytes(self) -> int:
        if self.keys is None:
            return 0
        return sum(array.nbytes for array in (*self.keys, *self.values))


def quantised(caches: Iterable[Any], quantization: Quantization) -> list[Any]:
    """Batch-1 caches with every KVCache among them quantised; the others as they are."""
    return [_quantised(cache, quantization) for cache in caches]


def _quantised(cache: Any, quantization: Quantization) -> Any:
    if isinstance(cache, CacheList):
        return CacheList(*quantised(cache.caches, quantization))
    if not isinstance(cache, KVCache):
        return cache
    group_size, bits = quantization.group_size, quantization.bits
    new: Any = RowQuantizedKVCache(group_size, bits)
    new.offset = cache.offset
    if cache.keys is not None:
        new.keys = mx.quantize(cache.keys, group_size=group_size, bits=bits)
        new.values = mx.quantize(cache.values, group_size=group_size, bits=bits)
    return new
