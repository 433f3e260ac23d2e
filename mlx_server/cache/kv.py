"""Where a sequence's keys and values live: slots in slabs, grouped by capacity.

A slab is a few arrays per layer, [slots, kv_heads, capacity, width]; a sequence sits in
one slot. Rows of one slab are attended to together, each up to its own length, through
a view of the slab: nothing is padded to the longest row, and joining or leaving touches
no other row.

    slab (capacity 512)          slab (capacity 8192)
    slot 0  ████████░░░░         slot 0  ███████████████████████░░░░
    slot 1  ███░░░░░░░░░
    slot 2  (free)

Capacities go up by a third or a half (256, 384, 512, 768, 1024 …), so a slot is
at most a third empty once its sequence has 256 tokens. A sequence that outgrows
its slot moves up alone. Room is added as new slabs, never by enlarging one: as many
slots as rows are known to come, or half as many as the capacity has already, so that
few stay free, and at most `SLAB_SLOTS`, or `SLAB_TOKENS` together, so that a slab with
one row left holds little more than that row. Rows join the fullest slab, and a slab
whose last row leaves is dropped.

What an ended sequence leaves to the prefix cache stays where it is if its slab is all
its own, as a long one's is, and is copied out of a shared slab otherwise: the slabs that
rows share hold running rows only.

Writes happen in place, because nothing else holds a slab's arrays: see the
contract in `base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_server.cache.base import Cache, Exported, Seat
from mlx_server.cache.storage import Plain, Quantization, Quantized, Storage

SMALLEST = 256
"""Capacity of the smallest slots, in tokens."""

SLAB_SLOTS = 8
"""The most slots of a slab."""

SLAB_TOKENS = 8192
"""Tokens that all slots of a slab hold together, unless a single slot holds more."""

COPY_STEP = 64
"""State is copied out in multiples of so many tokens, so that buffers can be used again."""

Layers = list[list[mx.array]]
"""State of some slots: per layer, the arrays of its storage."""


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
    """State of `len(seats)` sequences; an array of `layers[i]` is [slots, heads, capacity, width].

    Attributes:
        kept: It holds one ended sequence: nothing is written to it.
    """

    number: int
    capacity: int
    storage: Storage
    layers: Layers
    seats: list[KVSeat | None]
    kept: bool = False

    @property
    def num_live(self) -> int:
        """Slots that a seat holds."""
        return len(self.seats) - self.seats.count(None)

    @property
    def num_heads(self) -> int:
        """Heads of keys and values, as they are stored."""
        return self.layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Of all its arrays, free slots included."""
        slots = len(self.seats) * self.capacity * len(self.layers)
        return slots * self.storage.bytes_per_token(self.num_heads)


@dataclass(slots=True, eq=False)
class KVSeat(Seat):
    """A seat and its slot.

    Attributes:
        slab, slot: Where its keys and values are; `reserve` may change both.
    """

    slab: Slab = field(kw_only=True)
    slot: int = field(kw_only=True)


class KVCache(Cache):
    """Slabs for one model.

    Args:
        num_layers, num_kv_heads, head_dim: The model's shape.
        dtype: Of keys and values.
        quantization: How they are stored once a sequence has `quantization.start` tokens.

    Attributes:
        slabs: Those that rows share, by storage and capacity.

    Raises:
        ValueError: The group size does not divide the heads.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: mx.Dtype,
        quantization: Quantization | None = None,
    ) -> None:
        self.num_layers = num_layers
        self.num_kv_heads = num_kv_heads
        self.slabs: dict[tuple[Storage, int], list[Slab]] = {}
        self._plain: Storage = Plain(head_dim, dtype)
        self._quantized: Storage | None = None
        self._start: float = float("inf")
        if quantization is not None:
            fitted = quantization.fitted([head_dim])
            self._quantized = Quantized(head_dim, dtype, fitted.bits, fitted.group_size)
            self._start = quantization.start
        self._next_number = 0
        self._nbytes = 0

    # ------------------------------------------------------------ the contract

    def open(self, num_tokens: int, expected: int = 1) -> KVSeat:
        return self._open(0, num_tokens, expected)

    def fork(self, seat: Seat, length: int, num_tokens: int, expected: int = 1) -> KVSeat:
        assert isinstance(seat, KVSeat)
        state = self._state(seat, length)
        new = self._open(length, num_tokens, expected)
        self._write(new, state, length)
        new.length = length
        return new

    def reserve(self, seat: Seat, num_tokens: int) -> None:
        assert isinstance(seat, KVSeat)
        if self._stays(seat, num_tokens):
            seat.slab.kept = False
            return
        state = self._state(seat, seat.length, leaving=True)
        if seat.slab.storage is not self._storage(seat.length):
            state = [list(self._storage(seat.length).encode(*layer)) for layer in state]
        place = self._open(seat.length, num_tokens, 1)
        self._leave(seat)
        self._sit(seat, place.slab, place.slot)
        self._write(seat, state, seat.length)

    def truncate(self, seat: Seat, length: int) -> None:
        seat.length = min(seat.length, length)

    def keep(self, seat: Seat) -> None:
        assert isinstance(seat, KVSeat)
        if len(seat.slab.seats) > 1:
            state = self._state(seat, seat.length)
            slab = self._new_slab(seat.slab.storage, state[0][0].shape[2], 1, state)
            self._leave(seat)
            self._sit(seat, slab, 0)
        seat.slab.kept = True

    def close(self, seat: Seat) -> None:
        assert isinstance(seat, KVSeat)
        self._leave(seat)

    def export(self, seat: Seat, length: int) -> Exported:
        """Arrays [1, kv_heads, length, width] under "layer.part"."""
        assert isinstance(seat, KVSeat)
        own = slice(seat.slot, seat.slot + 1)
        arrays = {
            f"{i}.{j}": mx.contiguous(array[own, :, :length])
            for i, layer in enumerate(seat.slab.layers)
            for j, array in enumerate(layer)
        }
        # Evaluated before the next write, as in `_state`.
        mx.async_eval(list(arrays.values()))
        return arrays, _layout(seat.slab.storage)

    def adopt(
        self, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], length: int
    ) -> KVSeat:
        storage = self._storage(length)
        self.check_layout(metadata, _layout(storage))
        columns = -(-length // COPY_STEP) * COPY_STEP
        room = [(0, 0), (0, 0), (0, columns - length), (0, 0)]
        layers: Layers = []
        for i in range(self.num_layers):
            layers.append([])
            for j, (width, dtype) in enumerate(storage.widths):
                array, shape = arrays.get(f"{i}.{j}"), (1, self.num_kv_heads, length, width)
                if array is None or array.shape != shape or array.dtype != dtype:
                    raise ValueError(f"there are no {dtype} keys or values {shape} of layer {i}")
                layers[-1].append(mx.pad(array, room))
        mx.async_eval(layers)
        slab = self._new_slab(storage, columns, 1, layers)
        slab.kept = True
        seat = KVSeat(length, slab=slab, slot=0)
        self._sit(seat, slab, 0)
        return seat

    def reusable(self, seat: Seat, length: int) -> int:
        assert isinstance(seat, KVSeat)
        length = min(length, seat.length)
        # What a sequence computes before `start` it computes with plain keys and values.
        return length if seat.slab.storage is self._storage(length) else 0

    def chunk_end(self, start: int, end: int) -> int:
        return int(self._start) if start < self._start < end else end

    # ------------------------------------------------------------ bytes

    def cost(self, num_tokens: int) -> int:
        if num_tokens <= self._start:
            return self._bytes(self._plain, num_tokens)
        # A sequence that is quantised on its way has both for a moment.
        before = self._bytes(self._plain, int(self._start)) if self._start else 0
        return before + self._bytes(self._storage(num_tokens), num_tokens)

    def _bytes(self, storage: Storage, num_tokens: int) -> int:
        per_token = self.num_layers * storage.bytes_per_token(self.num_kv_heads)
        return capacity_for(num_tokens) * per_token

    def held(self, seat: Seat) -> int:
        assert isinstance(seat, KVSeat)
        return seat.slab.nbytes // len(seat.slab.seats)

    def can_open(self, num_tokens: int, length: int = 0) -> bool:
        free = self._slab_with_room(self._storage(length), self._capacity(length, num_tokens))
        # A plain slot is no room for what comes after it.
        enough = free is not None and (num_tokens <= self._start or length >= self._start)
        return enough or self.nbytes + self.cost(num_tokens) <= self.max_bytes

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        assert isinstance(seat, KVSeat)
        if self._stays(seat, num_tokens):
            return True
        storage = self._storage(seat.length)
        capacity = self._capacity(seat.length, num_tokens)
        if self._slab_with_room(storage, capacity) is not None:
            return True
        return self.nbytes + self._bytes(storage, capacity) <= self.max_bytes

    def can_keep(self, seat: Seat) -> bool:
        assert isinstance(seat, KVSeat)
        slab = seat.slab
        if slab.num_live == 1:
            return True  # where it is, or its slab goes
        per_token = self.num_layers * slab.storage.bytes_per_token(self.num_kv_heads)
        return self.nbytes + _copied(seat.length, slab) * per_token <= self.max_bytes

    @property
    def nbytes(self) -> int:
        return self._nbytes

    # ------------------------------------------------------------ slabs

    def _storage(self, length: int) -> Storage:
        """How a sequence with `length` tokens stored goes on."""
        return self._quantized if length >= self._start else self._plain

    def _capacity(self, length: int, num_tokens: int) -> int:
        """Of the slot that it gets: plain ones end where it is quantised."""
        return capacity_for(
            num_tokens if length >= self._start else int(min(num_tokens, self._start))
        )

    def _stays(self, seat: KVSeat, num_tokens: int) -> bool:
        need = num_tokens if seat.length >= self._start else min(num_tokens, self._start)
        return seat.slab.storage is self._storage(seat.length) and need <= seat.slab.capacity

    def _open(self, length: int, num_tokens: int, expected: int) -> KVSeat:
        """A seat for a sequence of which `length` tokens are stored elsewhere."""
        storage, capacity = self._storage(length), self._capacity(length, num_tokens)
        slab = self._slab_with_room(storage, capacity)
        if slab is None:
            pool = self.slabs.setdefault((storage, capacity), [])
            taken = sum(len(slab.seats) for slab in pool)
            # At most half of the budget that is left: rows that grow need some of it.
            affordable = (self.max_bytes - self.nbytes) / (2 * self._bytes(storage, capacity))
            wanted = max(expected, min(taken, 4), taken // 2)
            slots = min(wanted, SLAB_SLOTS, SLAB_TOKENS // capacity, affordable)
            slab = self._new_slab(storage, capacity, max(1, int(slots)))
            pool.append(slab)
        seat = KVSeat(slab=slab, slot=0)
        self._sit(seat, slab, slab.seats.index(None))
        return seat

    def _slab_with_room(self, storage: Storage, capacity: int) -> Slab | None:
        """The fullest slab that has a free slot, so that the others empty out."""
        slabs = [slab for slab in self.slabs.get((storage, capacity), []) if None in slab.seats]
        return max(slabs, key=lambda s: s.num_live / len(s.seats), default=None)

    def _new_slab(
        self, storage: Storage, capacity: int, slots: int, layers: Layers | None = None
    ) -> Slab:
        if layers is None:
            shape = (slots, self.num_kv_heads, capacity)
            layers = [
                [mx.zeros((*shape, width), dtype) for width, dtype in storage.widths]
                for _ in range(self.num_layers)
            ]
        self._next_number += 1
        slab = Slab(self._next_number, capacity, storage, layers, [None] * slots)
        self._nbytes += slab.nbytes
        return slab

    def _sit(self, seat: KVSeat, slab: Slab, slot: int) -> None:
        seat.slab, seat.slot, seat.order = slab, slot, (slab.number, slot)
        slab.seats[slot] = seat

    def _leave(self, seat: KVSeat) -> None:
        slab = seat.slab
        slab.seats[seat.slot] = None
        if slab.num_live == 0:
            self._nbytes -= slab.nbytes
            key = slab.storage, slab.capacity
            if slab in (pool := self.slabs.get(key, [])):
                pool.remove(slab)
            if not pool:
                self.slabs.pop(key, None)

    # ------------------------------------------------------------ moving state

    def _state(self, seat: KVSeat, length: int, leaving: bool = False) -> Layers:
        """The first `length` tokens' state, in arrays [1, heads, tokens, width].

        Args:
            leaving: The seat is about to leave its slab.
        """
        slab = seat.slab
        end = _copied(length, slab)
        own = slice(seat.slot, seat.slot + 1)
        views = [[array[own, :, :end] for array in layer] for layer in slab.layers]
        if slab.kept or (leaving and len(slab.seats) == 1):
            return views  # nobody writes there any more
        # Evaluated before the next write: a lazy slice would turn it into a copy of the slab.
        copies = [[mx.contiguous(view) for view in layer] for layer in views]
        mx.async_eval(copies)
        return copies

    def _write(self, seat: KVSeat, state: Layers, length: int) -> None:
        own = slice(seat.slot, seat.slot + 1)
        for layer, entries in zip(seat.slab.layers, state, strict=True):
            for array, entry in zip(layer, entries, strict=True):
                array[own, :, :length] = entry[:, :, :length]


def _layout(storage: Storage) -> dict[str, str]:
    """What has to agree where exported state is to go on."""
    return {"cache": "slabs", "storage": str(storage)}


def _copied(length: int, slab: Slab) -> int:
    """Tokens that are copied for `length` of them."""
    return min(-(-length // COPY_STEP) * COPY_STEP, slab.capacity)
