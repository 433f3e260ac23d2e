"""How one step's packed tokens are written to the slabs and attended to.

The plan is drawn once per step and used by every layer. Decode rows of a slab
share one attention call over the view `slab[lo:hi, :, begin:end]`, several where
free slots would be more than half of it; each prompt chunk has a call of its own.

    packed tokens   d0 d1 d2 d3 | c0 c1 c2 c3 c4
    decode groups   └slab 1┘ └2┘
    chunks                        └── slot 5 ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_server.cache.kv import KVSeat, Slab

Made = TypeVar("Made")

VIEW_STEP = 64
"""Views over several rows end at a multiple of this, so that their shapes repeat."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows `start:stop` of the packed tokens, all in one slab.

    Attributes:
        lo, hi: The slots they span.
        cells: uint32 [rows, heads] thrice, slot, head and position of each new key. MLX
            takes them as they are; from a slice it would make such arrays in every layer.
        end: Tokens of the longest row, the new one included.
        lengths: int32 [hi - lo, 1, 1, 1], each slot's tokens; None where no
            mask is needed (one row).
        spread: int32 [hi - lo], the packed row of each slot, where free slots
            lie between; None where rows and slots agree.
        places: int32 [rows], the inverse of `spread`.
    """

    slab: Slab
    start: int
    stop: int
    lo: int
    hi: int
    cells: tuple[mx.array, mx.array, mx.array]
    begin: int
    end: int
    lengths: mx.array | None
    spread: mx.array | None
    places: mx.array | None

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Put the rows' new entries, [rows, heads, 1, dim], into the slab in place."""
        arrays, new = self.slab.layers[layer], self.slab.storage.encode(keys, values)
        for array, entry in zip(arrays, new, strict=True):
            if self.stop - self.start == 1:
                array[self.lo : self.hi, :, self.end - 1 : self.end] = entry
            else:
                array[self.cells] = entry[:, :, 0]

    def mask(self, begin: int, window: int | None) -> mx.array | None:
        """Which of the view's columns each slot sees: [slots, 1, 1, columns]."""
        if self.lengths is None:
            return None
        column = mx.arange(begin, self._view_end())
        seen = column < self.lengths
        if window is not None:
            seen = seen & (column >= self.lengths - window)
        return self.slab.storage.mask(seen)

    def _view_end(self) -> int:
        if self.lengths is None:
            return self.end
        return min(-(-self.end // VIEW_STEP) * VIEW_STEP, self.slab.capacity)

    def attend(
        self, layer: int, queries: mx.array, mask: mx.array | None, begin: int, scale: float
    ) -> mx.array:
        """queries [rows, heads, 1, dim] → [rows, heads, 1, dim]."""
        view = (slice(self.lo, self.hi), slice(None), slice(begin, self._view_end()))
        if self.spread is not None:
            queries = queries[self.spread]
        stored = [array[view] for array in self.slab.layers[layer]]
        out = self.slab.storage.attend(queries, stored, scale, mask)
        return out if self.places is None else out[self.places]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `start:stop` of the packed tokens, at `offset` of their sequence."""

    slab: Slab
    slot: int
    start: int
    stop: int
    offset: int

    @property
    def end(self) -> int:
        """Tokens of its sequence that are stored behind the step."""
        return self.offset + self.stop - self.start

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """keys, values: [1, heads, tokens, dim]."""
        arrays, new = self.slab.layers[layer], self.slab.storage.encode(keys, values)
        for array, entry in zip(arrays, new, strict=True):
            array[self.slot : self.slot + 1, :, self.offset : self.end] = entry

    def mask(self, window: int | None) -> mx.array | str | None:
        """What each of its queries sees of the view from `begin` on.

        Args:
            window: Tokens that a query sees, its own included; None: all.

        Returns:
            As of `Storage.attend`: a mask [tokens, columns], "causal", or None for one token.
        """
        if window is not None and self.end > window:
            query = mx.arange(self.offset, self.end)[:, None]
            column = mx.arange(self.begin(window), self.end)
            return self.slab.storage.mask((column <= query) & (column > query - window))
        return None if self.stop - self.start == 1 else "causal"

    def begin(self, window: int | None) -> int:
        """The first column of its sequence that any of its queries sees."""
        return 0 if window is None else max(0, self.offset - window + 1)

    def attend(
        self,
        layer: int,
        queries: mx.array,
        mask: mx.array | str | None,
        window: int | None,
        scale: float,
    ) -> mx.array:
        """queries [1, heads, tokens, dim] → the same shape."""
        view = (
            slice(self.slot, self.slot + 1),
            slice(None),
            slice(self.begin(window), self.end),
        )
        stored = [array[view] for array in self.slab.layers[layer]]
        return self.slab.storage.attend(queries, stored, scale, mask)


class StepPlan:
    """One step's attention.

    Args:
        seats: The rows' seats in packed order, decode rows first.
        counts: New tokens of each row.
        windows: Sliding-window sizes that the model's layers use (None: full attention).
        spare: Packed tokens behind the rows' that nobody reads.

    Attributes:
        positions: int32 [N], the position of every packed token in its sequence.
    """

    def __init__(
        self,
        seats: Sequence[KVSeat],
        counts: Sequence[int],
        windows: Sequence[int | None],
        spare: int = 0,
    ) -> None:
        self.spare = spare
        num_decode = next((i for i, n in enumerate(counts) if n > 1), len(counts))
        self.num_decode = num_decode
        self.groups = list(_decode_groups(seats[:num_decode]))
        self.chunks: list[Chunk] = []
        starts = [seat.length for seat in seats]
        at = num_decode
        for seat, count in zip(seats[num_decode:], counts[num_decode:], strict=True):
            self.chunks.append(Chunk(seat.slab, seat.slot, at, at + count, seat.length))
            at += count
        spans = [np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, counts, strict=True)]
        self.positions = mx.array(np.concatenate([*spans, np.zeros(spare, np.int32)]))
        # Masks are the same in every layer of one window size.
        self._masks = {
            w: (
                [(g.mask(self._begin(g, w), w), self._begin(g, w)) for g in self.groups],
                [chunk.mask(w) for chunk in self.chunks],
            )
            for w in set(windows)
        }
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What the layers share: made by the first that asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @staticmethod
    def _begin(group: DecodeGroup, window: int | None) -> int:
        return 0 if window is None else max(0, group.begin - window)

    def attend(
        self,
        layer: int,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None = None,
    ) -> mx.array:
        """Store the new keys and values and attend to all that each row may see.

        Args:
            queries: [N, heads, 1, dim], rotated.
            keys, values: [N, kv_heads, 1, dim], keys rotated.

        Returns:
            [N, heads * dim].
        """
        group_masks, chunk_masks = self._masks[window]
        outputs = []
        for group, (mask, begin) in zip(self.groups, group_masks, strict=True):
            rows = slice(group.start, group.stop)
            group.write(layer, keys[rows], values[rows])
            out = group.attend(layer, queries[rows], mask, begin, scale)
            outputs.append(out.reshape(out.shape[0], -1))
        for chunk, chunk_mask in zip(self.chunks, chunk_masks, strict=True):
            tokens = slice(chunk.start, chunk.stop)
            # [tokens, heads, 1, dim] → [1, heads, tokens, dim]
            q, k, v = (a[tokens].transpose(2, 1, 0, 3) for a in (queries, keys, values))
            chunk.write(layer, k, v)
            out = chunk.attend(layer, q, chunk_mask, window, scale)
            outputs.append(out[0].transpose(1, 0, 2).reshape(chunk.stop - chunk.start, -1))
        if self.spare:
            outputs.append(mx.zeros((self.spare, outputs[0].shape[1]), outputs[0].dtype))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)


def _runs(seats: Sequence[KVSeat]) -> list[list[KVSeat]]:
    """Cut the rows where the slab changes or a gap would leave a run less than half live.

    A free slot costs as much attention as a row, so a run never costs more than
    twice what its rows do.
    """
    runs: list[list[KVSeat]] = []
    for seat in seats:
        run = runs[-1] if runs else []
        if run and run[0].slab is seat.slab and 2 * len(run) + 1 >= seat.slot - run[0].slot:
            run.append(seat)
        else:
            runs.append([seat])
    return runs


def _cells(
    slots: np.ndarray, num_heads: int, positions: np.ndarray
) -> tuple[mx.array, mx.array, mx.array]:
    grid = np.broadcast_arrays(slots[:, None], np.arange(num_heads), positions[:, None])
    slot, head, position = (mx.array(part.astype(np.uint32)) for part in grid)
    return slot, head, position


def _decode_groups(seats: Sequence[KVSeat]) -> list[DecodeGroup]:
    """Decode rows, sorted by `seat.order`, as groups; their `start` counts the rows before."""
    groups, start = [], 0
    for rows in _runs(seats):
        slots = np.array([seat.slot for seat in rows], dtype=np.int32)
        lengths = np.array([seat.length + 1 for seat in rows], dtype=np.int32)
        lo, hi = int(slots[0]), int(slots[-1]) + 1
        gaps = hi - lo > len(rows)
        spread = np.zeros(hi - lo, dtype=np.int32)
        spread[slots - lo] = np.arange(len(rows))
        # A free slot between two rows repeats row 0's query; nobody reads its result.
        slot_lengths = np.full(hi - lo, lengths.max(), dtype=np.int32)
        slot_lengths[slots - lo] = lengths
        alone = len(rows) == 1
        groups.append(
            DecodeGroup(
                slab=rows[0].slab,
                start=start,
                stop=start + len(rows),
                lo=lo,
                hi=hi,
                cells=_cells(slots, rows[0].slab.num_heads, lengths - 1),
                begin=int(lengths.min()),
                end=int(lengths.max()),
                lengths=None if alone else mx.array(slot_lengths.reshape(-1, 1, 1, 1)),
                spread=mx.array(spread) if gaps else None,
                places=mx.array(slots - lo) if gaps else None,
            )
        )
        start += len(rows)
    return groups
