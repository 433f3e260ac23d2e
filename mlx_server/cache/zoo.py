"""Where the sequences of an mlx-lm architecture live: in that architecture's own caches.

A *group* holds mlx-lm's caches, one per layer, for one or more sequences. A
sequence starts in a group of its own, with the plain caches of batch 1; a
prompt is computed there, and so is a row that decodes alone. Rows that decode
together share a group of mlx-lm's batch caches, padded on the left:

    group 3  ░░░░███████      group 5  ██████████████████████
             ░███████████              ░░░░░██████████████████
             ████████████

Groups change only in `arrange` and `alone`, just before a forward pass, and when a
row ends and is kept. All rows of a group take every step together, so their lengths
stay as far apart as they were when they met: `fits` is asked once, at the meeting.
Rows whose keys and values are quantised and rows whose are not share no group.

Unlike our own modules' cache, joining and leaving copy: mlx-lm's `extend` writes the
whole group anew, and so does letting rows go. It happens once when a row starts
decoding and once when it ends; nothing of it waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import mlx.core as mx

from mlx_server.cache import zoo_export, zoo_state
from mlx_server.cache.base import Cache, Exported, Seat
from mlx_server.cache.storage import Quantization
from mlx_server.cache.zoo_quantized import quantised
from mlx_server.errors import ServerError

SLACK = 256
"""Tokens of padding that a row may have, however short it is: mlx-lm's caches grow by as many."""


def fits(shortest: int, longest: int) -> bool:
    """Whether rows of these lengths may be padded to one."""
    return longest <= max(2 * shortest, shortest + SLACK)


@dataclass(slots=True, eq=False)
class Group:
    """
    Attributes:
        caches: mlx-lm's, one per layer; batch forms where `batched`.
        seats: In the order of the batch axis. Those that moved on stay listed
            until the group is arranged again.
        quantized: Its plain caches are quantised.
    """

    number: int
    caches: list[Any]
    seats: list[ZooSeat]
    batched: bool = False
    quantized: bool = False

    def members(self) -> list[ZooSeat]:
        """The seats that sit here now; those that have moved on are not among them."""
        return [seat for seat in self.seats if seat.group is self]

    def seat_all(self, seats: Sequence[ZooSeat]) -> None:
        """Make these its seats, in this order: row i of the caches is seat i."""
        self.seats = list(seats)
        for index, seat in enumerate(self.seats):
            seat.group, seat.order = self, (self.number, index)

    def release(self, seat: ZooSeat) -> None:
        """The seat moves on; memory goes with the last one, the rest when it is arranged."""
        seat.group = None
        if not self.members():
            self.caches, self.seats = [], []

    def copied(self, seat: ZooSeat, length: int, room: int) -> list[Any]:
        """The first `length` tokens of a member's state, in batch-1 caches with room for `room`."""
        index = self.seats.index(seat)
        caches = [
            zoo_state.copy_row(cache, index, seat.length, length, room) for cache in self.caches
        ]
        # Submitted before anything else is written: a copy that is still lazy would keep
        # all of the old state alive, and turn the next write into a copy of it.
        mx.async_eval(zoo_state.state_arrays(caches))
        return caches


@dataclass(slots=True, eq=False)
class ZooSeat(Seat):
    """
    Attributes:
        group: Where its state lives; None once closed.
        room: Tokens that it was promised room for; 0 while it is kept.
        nbytes: What it counts for in the budget: the cost of its room, or what is kept.
    """

    group: Group | None = None
    room: int = 0
    nbytes: int = 0


class ZooCache(Cache):
    """
    Args:
        make_caches: Makes one sequence's mlx-lm caches, one per layer.
        cost: Bytes that they take for a number of tokens.
        batchable: Whether they have batch forms; else no two rows share a group.
        padded: Whether those are padded to one length (recurrent states are not).
        can_truncate: Whether all of them can forget their last tokens at any length.
        reach: Length up to which they can, where it is not so at any.
        quantization: Of the plain ones among them.
    """

    def __init__(
        self,
        make_caches: Callable[[], list[Any]],
        cost: Callable[[int], int],
        *,
        batchable: bool,
        padded: bool,
        can_truncate: bool,
        reach: float,
        quantization: Quantization | None = None,
    ) -> None:
        self.batchable = batchable
        self.padded = padded
        self.can_truncate = can_truncate
        self.reach = float("inf") if can_truncate else reach
        self._make_caches = make_caches
        self._cost = cost
        self._quantization = quantization
        self._start = float("inf") if quantization is None else quantization.start
        self._promised = 0
        self._numbers = count()

    # ------------------------------------------------------------ the contract

    def open(self, num_tokens: int, expected: int = 1) -> ZooSeat:
        seat = ZooSeat()
        self._promise(seat, num_tokens)
        self._house(seat, self._make_caches(), quantized=False)
        self._quantize(seat)
        return seat

    def fork(self, seat: Seat, length: int, num_tokens: int, expected: int = 1) -> ZooSeat:
        seat = _own(seat)
        group = seat.group
        new = ZooSeat(length)
        self._promise(new, num_tokens)
        self._house(new, group.copied(seat, length, num_tokens), quantized=group.quantized)
        return new

    def reserve(self, seat: Seat, num_tokens: int) -> None:
        seat = _own(seat)
        group = seat.group
        if num_tokens > seat.room:
            if not seat.room:
                # Kept until now: mlx-lm would copy what is stored to make room for a step.
                zoo_state.grow(group.caches, num_tokens)
            self._promise(seat, num_tokens)
        self._quantize(seat)

    def truncate(self, seat: Seat, length: int) -> None:
        """
        Raises:
            ServerError: The architecture's state cannot go back; close the seat
                and compute its tokens again.
        """
        seat = _own(seat)
        surplus = seat.length - length
        if surplus <= 0:
            return
        if self.reusable(seat, length) < length:
            raise ServerError("This architecture's state cannot be truncated.")
        for cache in self.alone(seat).caches:
            cache.trim(surplus)
        seat.length = length

    def keep(self, seat: Seat) -> None:
        seat = _own(seat)
        group = seat.group
        held = zoo_state.nbytes(group.caches)
        if group.batched or held > seat.nbytes or zoo_state.is_loose(group.caches, seat.length):
            self._move_out(seat, room=0)
            held = zoo_state.nbytes(seat.group.caches)
        self._promised += held - seat.nbytes
        seat.room, seat.nbytes = 0, held

    def close(self, seat: Seat) -> None:
        seat = _own(seat)
        if seat.group is not None:
            self._promised -= seat.nbytes
            seat.group.release(seat)

    def export(self, seat: Seat, length: int) -> Exported:
        """Every array that mlx-lm's caches hold, under "layer.attribute"."""
        seat = _own(seat)
        group = seat.group
        arrays, leaves = zoo_export.pack(group.copied(seat, length, 0))
        return arrays, {"leaves": leaves, **self._layout(quantized=group.quantized)}

    def adopt(
        self, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], length: int
    ) -> ZooSeat:
        plain = self._layout(quantized=False)["storage"]
        # At `start` itself a seat is quantised when it is reserved for more.
        quantized = length >= self._start
        if length == self._start and metadata.get("storage") == plain:
            quantized = False
        self.check_layout(metadata, self._layout(quantized=quantized))
        caches = self._make_caches()
        if quantized:
            caches = quantised(caches, self._quantization)
        zoo_export.unpack(caches, arrays, metadata.get("leaves", ""))
        seat = ZooSeat(length, nbytes=zoo_state.nbytes(caches))
        self._promised += seat.nbytes
        self._house(seat, caches, quantized=quantized)
        return seat

    def _layout(self, *, quantized: bool) -> dict[str, str]:
        storage = "as they are computed"
        if quantized:
            storage = (
                f"in {self._quantization.bits} bits, groups of {self._quantization.group_size}"
            )
        return {"cache": "mlx-lm", "storage": storage}

    def reusable(self, seat: Seat, length: int) -> int:
        group, length = _own(seat).group, min(length, seat.length)
        if length < seat.length and seat.length > self.reach:
            return 0
        # What a sequence computes before `start` it computes with plain keys and values.
        return 0 if group.quantized and length < self._start else length

    def chunk_end(self, start: int, end: int) -> int:
        return int(self._start) if start < self._start < end else end

    # ------------------------------------------------------------ bytes

    def cost(self, num_tokens: int) -> int:
        return self._cost(num_tokens)

    def held(self, seat: Seat) -> int:
        assert isinstance(seat, ZooSeat)
        return seat.nbytes

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        assert isinstance(seat, ZooSeat)
        growth = self.cost(num_tokens) - seat.nbytes
        return num_tokens <= seat.room or growth <= 0 or self.nbytes + growth <= self.max_bytes

    @property
    def nbytes(self) -> int:
        """Bytes promised to open seats and held by kept ones. The padding of groups is
        not counted."""
        return self._promised

    def _promise(self, seat: ZooSeat, num_tokens: int) -> None:
        cost = self.cost(num_tokens)
        self._promised += cost - seat.nbytes
        seat.room, seat.nbytes = num_tokens, cost

    # ------------------------------------------------------------ before a forward pass

    def alone(self, seat: ZooSeat) -> Group:
        """The seat in a group of its own, with batch-1 caches."""
        if seat.group.batched:
            self._move_out(seat, seat.room)
        return seat.group

    def arrange(self, seats: Sequence[ZooSeat]) -> list[Group]:
        """Groups that hold these seats and no others, as few as padding allows."""
        groups = list(dict.fromkeys(seat.group for seat in seats))
        if len(groups) == 1 and len(groups[0].seats) == len(seats):
            return groups
        running = set(seats)
        for group in groups:
            self._keep(group, running)
        if not self.batchable:
            return groups
        # From the shortest up; the first of a cluster has its shortest row.
        groups.sort(key=lambda group: (group.quantized, _shortest(group)))
        clusters: list[list[Group]] = []
        for group in groups:
            if clusters and self._may_join(clusters[-1], group):
                clusters[-1].append(group)
            else:
                clusters.append([group])
        return [_join(cluster) for cluster in clusters]

    def _may_join(self, cluster: list[Group], group: Group) -> bool:
        if group.quantized is not cluster[0].quantized:
            return False
        if not self.padded:
            return True
        longest = max(seat.length for g in (*cluster, group) for seat in g.seats)
        return fits(_shortest(cluster[0]), longest)

    def _house(self, seat: ZooSeat, caches: list[Any], *, quantized: bool) -> None:
        Group(next(self._numbers), caches, [], quantized=quantized).seat_all([seat])

    def _quantize(self, seat: ZooSeat) -> None:
        """Quantise its keys and values if it is time."""
        if seat.length < self._start or seat.group.quantized:
            return
        group = self.alone(seat)
        group.caches = quantised(group.caches, self._quantization)
        group.quantized = True

    def _keep(self, group: Group, running: set[ZooSeat]) -> None:
        """Let all rows but the running ones go: closed ones for good, idle ones elsewhere."""
        stay = []
        for index, seat in enumerate(group.seats):
            if seat.group is group and seat in running:
                stay.append(index)
            elif seat.group is group:
                self._move_out(seat, seat.room)
        if len(stay) < len(group.seats):
            seats = [group.seats[index] for index in stay]
            for cache in group.caches:
                zoo_state.keep_rows(cache, stay, [seat.length for seat in seats])
            group.seat_all(seats)

    def _move_out(self, seat: ZooSeat, room: int) -> None:
        group = seat.group
        caches = group.copied(seat, seat.length, room)
        group.release(seat)
        self._house(seat, caches, quantized=group.quantized)


def _own(seat: Seat) -> ZooSeat:
    assert isinstance(seat, ZooSeat)
    return seat


def _shortest(group: Group) -> int:
    return min(seat.length for seat in group.seats)


def _join(groups: list[Group]) -> Group:
    """All rows in the first batched group, or in a new one. Each group's seats are all live."""
    if len(groups) == 1:
        return groups[0]
    singles = [group for group in groups if not group.batched]
    joined = [group for group in groups if group.batched]
    if singles:
        layers = zip(*(group.caches for group in singles), strict=True)
        merged = [layer[0].merge(list(layer)) for layer in layers]
        seats = [seat for group in singles for seat in group.seats]
        quantized = singles[0].quantized
        joined.append(Group(singles[0].number, merged, seats, batched=True, quantized=quantized))
    base = joined[0]
    for other in joined[1:]:
        for cache, more in zip(base.caches, other.caches, strict=True):
            cache.extend(more)
    base.seat_all([seat for group in joined for seat in group.seats])
    return base
