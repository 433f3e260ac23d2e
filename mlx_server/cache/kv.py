"""Where a running sequence's keys and values live: slots in slabs, grouped by capacity.

A slab is one pair of arrays per layer, [slots, kv_heads, capacity, head_dim]; a
sequence sits in one slot. Rows of one slab are attended to together, each up
to its own length, through a view of the slab: nothing is padded to the longest
row, and joining or leaving touches no other row.

    slab (capacity 512)          slab (capacity 8192)
    slot 0  ████████░░░░         slot 0  ███████████████████████░░░░
    slot 1  ███░░░░░░░░░
    slot 2  (free)

Capacities go up by a third or a half (256, 384, 512, 768, 1024 …), so a slot is
at most a third empty once its sequence has 256 tokens. A sequence that outgrows
its slot moves up alone. Room is added as new slabs, never by enlarging one:
half as many slots as the capacity has already, so that few stay free, and at
most `SLAB_SLOTS`, or `SLAB_TOKENS` together, so that a slab with one row left
holds little more than that row. Rows join the fullest slab, and a slab whose
last row leaves is dropped.

Writes happen in place, because nothing else holds a slab's arrays: see the
contract in `base.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_server.cache.base import Cache, Seat

SMALLEST = 256
"""Capacity of the smallest slots, in tokens."""

SLAB_SLOTS = 8
"""The most slots of a slab."""

SLAB_TOKENS = 8192
"""Tokens that all slots of a slab hold together, unless a single slot holds more."""


def capacity_for(num_tokens: int) -> int:
    """The smallest capacity that holds `num_tokens`: 256·2^k or 384·2^k."""
    capacity = SMALLEST
    while capacity < num_tokens:
        if capacity + capacity // 2 >= num_tokens:
            return capacity + capacity // 2
        capacity *= 2
    return capacity


@dataclass(slots=True, eq=False)
class Slab:
    """Keys and values of `len(seats)` sequences; `keys[layer]` is [slots, heads, capacity, dim]."""

    number: int
    capacity: int
    keys: list[mx.array]
    values: list[mx.array]
    seats: list[KVSeat | None]

    @property
    def num_live(self) -> int:
        return len(self.seats) - self.seats.count(None)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.keys) + sum(a.nbytes for a in self.values)


@dataclass(slots=True, eq=False)
class KVSeat(Seat):
    slab: Slab = field(kw_only=True)
    slot: int = field(kw_only=True)


class KVCache(Cache):
    """Slabs for one model.

    Args:
        num_layers, num_kv_heads, head_dim: The model's shape.
        dtype: Of keys and values.
    """

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: mx.Dtype) -> None:
        self.num_layers = num_layers
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.slabs: dict[int, list[Slab]] = {}
        self._next_number = 0

    def open(self, num_tokens: int) -> KVSeat:
        capacity = capacity_for(num_tokens)
        slab = self._slab_with_room(capacity)
        if slab is None:
            taken = sum(len(slab.seats) for slab in self.slabs.get(capacity, []))
            # At most half of the budget that is left: rows that grow need some of it.
            affordable = (self.max_bytes - self.nbytes) / (2 * self.cost(capacity))
            wanted = max(min(taken, 4), taken // 2)
            slots = min(wanted, SLAB_SLOTS, SLAB_TOKENS // capacity, affordable)
            slab = self._new_slab(capacity, max(1, int(slots)))
        slot = slab.seats.index(None)
        seat = KVSeat(slab=slab, slot=slot, order=(slab.number, slot))
        slab.seats[slot] = seat
        return seat

    def _slab_with_room(self, capacity: int) -> Slab | None:
        """The fullest slab that has a free slot, so that the others empty out."""
        slabs = [slab for slab in self.slabs.get(capacity, []) if None in slab.seats]
        return max(slabs, key=lambda s: s.num_live / len(s.seats), default=None)

    def _new_slab(self, capacity: int, num_slots: int) -> Slab:
        shape = (num_slots, self.num_kv_heads, capacity, self.head_dim)
        arrays = [mx.zeros(shape, self.dtype) for _ in range(2 * self.num_layers)]
        self._next_number += 1
        slab = Slab(
            number=self._next_number,
            capacity=capacity,
            keys=arrays[: self.num_layers],
            values=arrays[self.num_layers :],
            seats=[None] * num_slots,
        )
        self.slabs.setdefault(capacity, []).append(slab)
        return slab

    def reserve(self, seat: Seat, num_tokens: int) -> None:
        assert isinstance(seat, KVSeat)
        if num_tokens <= seat.slab.capacity:
            return
        old, slot, length = seat.slab, seat.slot, seat.length
        # Evaluated at once: a lazy slice of the old slab would turn the next
        # write of its other rows into a copy of the whole slab.
        kept = [mx.contiguous(a[slot : slot + 1, :, :length]) for a in old.keys + old.values]
        mx.eval(kept)
        place = self.open(num_tokens)
        seat.slab, seat.slot, seat.order = place.slab, place.slot, place.order
        seat.slab.seats[seat.slot] = seat
        for array, entry in zip(seat.slab.keys + seat.slab.values, kept, strict=True):
            array[seat.slot : seat.slot + 1, :, :length] = entry
        self._leave(old, slot)

    def truncate(self, seat: Seat, length: int) -> None:
        seat.length = min(seat.length, length)

    def close(self, seat: Seat) -> None:
        assert isinstance(seat, KVSeat)
        self._leave(seat.slab, seat.slot)

    def _leave(self, slab: Slab, slot: int) -> None:
        slab.seats[slot] = None
        if slab.num_live == 0:
            slabs = self.slabs[slab.capacity]
            slabs.remove(slab)
            if not slabs:
                del self.slabs[slab.capacity]

    def cost(self, num_tokens: int) -> int:
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.size
        return capacity_for(num_tokens) * per_token

    def can_open(self, num_tokens: int) -> bool:
        return self._slab_with_room(capacity_for(num_tokens)) is not None or super().can_open(
            num_tokens
        )

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        assert isinstance(seat, KVSeat)
        return num_tokens <= seat.slab.capacity or self.can_open(num_tokens)

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self._all())

    def _all(self) -> Iterator[Slab]:
        for slabs in self.slabs.values():
            yield from slabs
