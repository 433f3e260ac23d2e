"""What mlx-lm's caches hold of a row: copied out, cut back, grown and counted.

All of it is decided from lengths that the host knows: mlx-lm's own `extract` and
`filter` read offsets from the device, which waits for the step that is on its way.

A copy is one that may be written to: keys and values are written in place, so theirs
are new arrays; recurrent states are replaced by every step and can be shared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlx_server.cache.zoo_quantized import BatchQuantizedKVCache

STEP = KVCache.step
"""Tokens that mlx-lm's caches grow by."""

COPY_STEP = 64
"""State is copied out in multiples of so many tokens, so that buffers can be used again."""


def up_to_multiple(num_tokens: int, step: int) -> int:
    """The smallest multiple of `step` that is no less."""
    return -(-num_tokens // step) * step


def leaves(caches: Iterable[Any]) -> list[Any]:
    """The caches with those of each CacheList in its place."""
    found: list[Any] = []
    for cache in caches:
        found += leaves(cache.caches) if isinstance(cache, CacheList) else [cache]
    return found


def state_arrays(caches: Iterable[Any]) -> list[mx.array]:
    """Every array that mlx-lm's caches hold, of whatever shape their kind has."""
    flat: Any = tree_flatten([cache.state for cache in caches])
    return [value for _, value in flat if isinstance(value, mx.array)]


def nbytes(caches: Iterable[Any]) -> int:
    """Bytes of the caches' arrays, room that is not used yet included."""
    return sum(array.nbytes for array in state_arrays(caches))


def reach(leaf: Any) -> float:
    """Length up to which the leaf's state can be cut back to every shorter length.

    A window forgets the tokens that a shorter sequence would see again, and not every
    cache that has a `trim` drops what it trimmed.
    """
    if isinstance(leaf, KVCache | QuantizedKVCache):
        return float("inf")
    if isinstance(leaf, RotatingKVCache):
        return leaf.max_size - 1
    if isinstance(leaf, ChunkedKVCache):
        return leaf.chunk_size
    return 0


# ---------------------------------------------------------------- copying a row out


def copy_row(cache: Any, index: int, stored: int, length: int, room: int) -> Any:
    """One row of a cache in a cache of batch 1 that may be written to.

    Args:
        index: Of the row; the batch forms hold several.
        stored: Tokens that the row has there.
        length: Tokens of it that are wanted: all, or fewer where `reach` allows.
        room: Tokens that keys and values get room for, if they can have it.
    """
    if isinstance(cache, CacheList):
        return CacheList(*(copy_row(part, index, stored, length, room) for part in cache.caches))
    if isinstance(cache, ArraysCache):
        return _copy_states(cache, index)
    if isinstance(cache, BatchKVCache):
        new = cache.empty_row() if isinstance(cache, BatchQuantizedKVCache) else KVCache()
        return _with_columns(new, cache, index, cache._idx - stored, length, room)
    if isinstance(cache, BatchRotatingKVCache):
        return _window_of_row(cache, index, stored, length)
    if isinstance(cache, KVCache | QuantizedKVCache):
        return _with_columns(copy.copy(cache), cache, 0, 0, length, room)
    if isinstance(cache, RotatingKVCache):
        return _copy_window(cache, stored, length)
    if isinstance(cache, ChunkedKVCache):
        chunked, held = copy.copy(cache), length - cache.start_position
        chunked.keys, chunked.values = _columns((cache.keys, cache.values), 0, 0, held, held)
        chunked.offset = length
        return chunked
    return copy.deepcopy(cache)


def _columns(arrays: Any, index: int, start: int, length: int, room: int) -> Any:
    """Tokens `start` to `start + length` of a row, copied, with room for `room` at least.

    Args:
        arrays: A tree of [rows, heads, tokens, width].
    """
    wanted = up_to_multiple(length, COPY_STEP)
    capacity = max(wanted, up_to_multiple(room, STEP) if room > length else 0)

    def cut(array: mx.array) -> mx.array:
        part = array[index : index + 1, :, start : start + wanted]
        if part.shape[2] >= capacity or room <= length:
            return mx.contiguous(part)
        return mx.pad(part, [(0, 0), (0, 0), (0, capacity - part.shape[2]), (0, 0)])

    return tree_map(cut, arrays)


def _with_columns(new: Any, cache: Any, index: int, start: int, length: int, room: int) -> Any:
    if cache.keys is not None:
        arrays = (cache.keys, cache.values)
        new.keys, new.values = _columns(arrays, index, start, length, room)
    new.offset = length
    return new


def _copy_states(cache: ArraysCache, index: int) -> ArraysCache:
    # A view would keep the whole batch's states, or a whole chunk's, alive.
    own = slice(index, index + 1)
    new = ArraysCache(len(cache.cache))
    new.cache = [None if state is None else mx.contiguous(state[own]) for state in cache.cache]
    return new


def _window_of_row(
    cache: Any,  # a BatchRotatingKVCache: mlx-lm's says that its keys are None
    index: int,
    stored: int,
    length: int,
) -> RotatingKVCache:
    """In temporal order, without the padding on its left."""
    new, own = RotatingKVCache(cache.max_size), slice(index, index + 1)
    keys, values, end = cache.keys[own], cache.values[own], cache._idx
    if cache.rotated:
        keys, values = (mx.roll(array, -end, 2) for array in (keys, values))
        end = cache.max_size
    held = min(stored, cache.max_size)
    kept = held - (stored - length)
    new.keys, new.values = _columns((keys, values), 0, end - held, kept, kept)
    new.offset, new._idx = length, kept
    return new


def _copy_window(cache: RotatingKVCache, stored: int, length: int) -> RotatingKVCache:
    new = copy.copy(cache)
    arrays = (cache.keys, cache.values)
    if stored < cache.max_size:
        # All of its tokens are there, in their order.
        new.keys, new.values = _columns(arrays, 0, 0, length, length)
        new.offset = new._idx = length
        return new
    # What a chunk saw beyond the window is of no more use.
    surplus = cache._idx - cache.max_size
    if surplus > 0 and cache._idx == cache.keys.shape[2] and not cache.keep:
        arrays = tree_map(lambda array: array[:, :, surplus:], arrays)
        new._idx = cache.max_size
    new.keys, new.values = tree_map(mx.contiguous, arrays)
    return new


# ---------------------------------------------------------------- a row of its own


def grow(caches: Iterable[Any], num_tokens: int) -> None:
    """Room for `num_tokens` in the keys and values of batch-1 caches."""
    capacity = up_to_multiple(num_tokens, STEP)
    for leaf in leaves(caches):
        if isinstance(leaf, KVCache | QuantizedKVCache) and leaf.keys is not None:
            arrays = (leaf.keys, leaf.values)
            leaf.keys, leaf.values = tree_map(lambda array: _padded(array, capacity), arrays)


def _padded(array: mx.array, capacity: int) -> mx.array:
    missing = capacity - array.shape[2]
    if missing <= 0:
        return array
    return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)])


def is_loose(caches: Iterable[Any], length: int) -> bool:
    """Whether a copy of batch-1 caches would spare more than an eighth of some layer's memory."""
    for leaf in leaves(caches):
        held = length
        if isinstance(leaf, RotatingKVCache):
            held = min(length, leaf.max_size)
        elif isinstance(leaf, ChunkedKVCache):
            held = length - leaf.start_position
        elif not isinstance(leaf, KVCache | QuantizedKVCache):
            continue
        keys: Any = leaf.keys
        if isinstance(leaf, QuantizedKVCache) and keys is not None:
            keys = keys[0]
        if keys is not None and keys.shape[2] - up_to_multiple(held, COPY_STEP) > held // 8:
            return True
    return False


# ---------------------------------------------------------------- rows of a batch


def keep_rows(cache: Any, indices: Sequence[int], stored: Sequence[int]) -> None:
    """Let go of all rows of a batch form but those at `indices`, which hold `stored` tokens."""
    if isinstance(cache, CacheList):
        for part in cache.caches:
            keep_rows(part, indices, stored)
    elif isinstance(cache, BatchKVCache) and cache.keys is not None:
        padding = [cache._idx - length for length in stored]
        least, rows = min(padding), mx.array(list(indices))
        arrays = (cache.keys, cache.values)
        cache.keys, cache.values = tree_map(lambda array: array[:, :, least:][rows], arrays)
        cache.left_padding = mx.array([amount - least for amount in padding])
        cache.offset = mx.array(list(stored))
        cache._idx -= least
    else:
        cache.filter(mx.array(list(indices)))
