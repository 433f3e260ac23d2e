"""Where the sequences of an mlx-lm architecture live: in that architecture's own caches.

A *group* holds mlx-lm's caches, one per layer, for one or more sequences. A
sequence starts in a group of its own, with the plain caches of batch 1; a
prompt is computed there, and so is a row that decodes alone. Rows that decode
together share a group of mlx-lm's batch caches, padded on the left:

    group 3  ░░░░███████      group 5  ██████████████████████
             ░███████████              ░░░░░██████████████████
             ████████████

Groups change only in `arrange` and `alone`, just before a forward pass. All
rows of a group take every step together, so their lengths stay as far apart as
they were when they met: `fits` is asked once, at the meeting.

Unlike our own modules' cache, joining and leaving copy: mlx-lm's `extend` and
`filter` write the whole group anew, and some of them wait for the device. It
happens once when a row starts decoding and once when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_server.cache.base import Cache, Seat
from mlx_server.errors import ServerError

SLACK = 256
"""Tokens of padding that a row may have, however short it is: mlx-lm's caches grow by as many."""


def fits(shortest: int, longest: int) -> bool:
    """Whether rows of these lengths may be padded to one."""
    return longest <= max(2 * shortest, shortest + SLACK)


def state_arrays(caches: Iterable[Any]) -> list[mx.array]:
    """Every array that mlx-lm's caches hold."""
    flat = tree_flatten([cache.state for cache in caches])
    return [value for _, value in flat if isinstance(value, mx.array)]


@dataclass(slots=True, eq=False)
class Group:
    """
    Attributes:
        caches: mlx-lm's, one per layer; batch forms where `batched`.
        seats: In the order of the batch axis. Those that moved on stay listed
            until the group is arranged again.
    """

    number: int
    caches: list[Any]
    seats: list[ZooSeat]
    batched: bool = False

    def members(self) -> list[ZooSeat]:
        return [seat for seat in self.seats if seat.group is self]

    def seat_all(self, seats: Sequence[ZooSeat]) -> None:
        self.seats = list(seats)
        for index, seat in enumerate(self.seats):
            seat.group, seat.order = self, (self.number, index)

    def release(self, seat: ZooSeat) -> None:
        """The seat moves on; memory goes with the last one, the rest when it is arranged."""
        seat.group = None
        if not self.members():
            self.caches, self.seats = [], []


@dataclass(slots=True, eq=False)
class ZooSeat(Seat):
    """
    Attributes:
        group: Where its state lives; None once closed.
        room: Tokens that it was promised room for.
    """

    group: Group | None = None
    room: int = 0


class ZooCache(Cache):
    """
    Args:
        make_caches: Makes one sequence's mlx-lm caches, one per layer.
        cost: Bytes that they take for a number of tokens.
        batchable: Whether they have batch forms; else no two rows share a group.
        padded: Whether those are padded to one length (recurrent states are not).
        can_truncate: Whether all of them can forget their last tokens at any length.
    """

    def __init__(
        self,
        make_caches: Callable[[], list[Any]],
        cost: Callable[[int], int],
        *,
        batchable: bool,
        padded: bool,
        can_truncate: bool,
    ) -> None:
        self.batchable = batchable
        self.padded = padded
        self.can_truncate = can_truncate
        self._make_caches = make_caches
        self._cost = cost
        self._promised = 0
        self._numbers = count()

    # ------------------------------------------------------------ the contract

    def open(self, num_tokens: int) -> ZooSeat:
        seat = ZooSeat(room=num_tokens)
        self._promised += self.cost(num_tokens)
        self._house(seat, self._make_caches())
        return seat

    def reserve(self, seat: Seat, num_tokens: int) -> None:
        assert isinstance(seat, ZooSeat)
        if num_tokens > seat.room:
            self._promised += self.cost(num_tokens) - self.cost(seat.room)
            seat.room = num_tokens

    def truncate(self, seat: Seat, length: int) -> None:
        """
        Raises:
            ServerError: The architecture's state cannot go back; close the seat
                and compute its tokens again.
        """
        assert isinstance(seat, ZooSeat)
        surplus = seat.length - length
        if surplus <= 0:
            return
        if not self.can_truncate:
            raise ServerError("This architecture's state cannot be truncated.")
        for cache in self.alone(seat).caches:
            cache.trim(surplus)
        seat.length = length

    def close(self, seat: Seat) -> None:
        assert isinstance(seat, ZooSeat)
        if seat.group is not None:
            self._promised -= self.cost(seat.room)
            seat.group.release(seat)

    def cost(self, num_tokens: int) -> int:
        return self._cost(num_tokens)

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        assert isinstance(seat, ZooSeat)
        growth = self.cost(num_tokens) - self.cost(seat.room)
        return growth <= 0 or self.nbytes + growth <= self.max_bytes

    @property
    def nbytes(self) -> int:
        """Bytes promised to open seats. The padding of groups is not counted."""
        return self._promised

    # ------------------------------------------------------------ before a forward pass

    def alone(self, seat: ZooSeat) -> Group:
        """The seat in a group of its own, with batch-1 caches."""
        group = seat.group
        if group.batched:
            self._move_out(group, group.seats.index(seat))
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
        groups.sort(key=_shortest)
        clusters: list[list[Group]] = []
        for group in groups:
            if clusters and self._may_join(clusters[-1], group):
                clusters[-1].append(group)
            else:
                clusters.append([group])
        return [_join(cluster) for cluster in clusters]

    def _may_join(self, cluster: list[Group], group: Group) -> bool:
        if not self.padded:
            return True
        longest = max(seat.length for g in (*cluster, group) for seat in g.seats)
        return fits(_shortest(cluster[0]), longest)

    def _house(self, seat: ZooSeat, caches: list[Any]) -> None:
        Group(next(self._numbers), caches, []).seat_all([seat])

    def _keep(self, group: Group, running: set[ZooSeat]) -> None:
        """Let all rows but the running ones go: closed ones for good, idle ones elsewhere."""
        stay = []
        for index, seat in enumerate(group.seats):
            if seat.group is group and seat in running:
                stay.append(index)
            elif seat.group is group:
                self._move_out(group, index)
        if len(stay) < len(group.seats):
            indices = mx.array(stay)
            for cache in group.caches:
                cache.filter(indices)
            group.seat_all([group.seats[index] for index in stay])

    def _move_out(self, group: Group, index: int) -> None:
        seat = group.seats[index]
        caches = [_own(cache.extract(index)) for cache in group.caches]
        # At once: a lazy copy would keep the whole group's old state alive.
        mx.eval(state_arrays(caches))
        group.release(seat)
        self._house(seat, caches)


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
        joined.append(Group(singles[0].number, merged, seats, batched=True))
    base = joined[0]
    for other in joined[1:]:
        for cache, more in zip(base.caches, other.caches, strict=True):
            cache.extend(more)
    base.seat_all([seat for group in joined for seat in group.seats])
    return base


def _own(cache: Any) -> Any:
    """mlx-lm's `extract` gives views of recurrent states; a view keeps the whole batch's."""
    for part in getattr(cache, "caches", ()):
        _own(part)
    if isinstance(states := getattr(cache, "cache", None), list):
        cache.cache = [mx.contiguous(state) for state in states]
    return cache
