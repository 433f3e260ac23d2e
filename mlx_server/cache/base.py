"""The KV-cache contract.

A cache hands out *seats*: a seat is where one sequence's state lives between
steps. The engine opens a seat when it admits a sequence, reserves room before
each step, and closes it when the sequence ends, or keeps it for the prefix cache
(`prefix.py`); only the model that owns the cache looks inside.

What holds for every cache:

- Opening, forking, growing, keeping and closing a seat copies no other seat's state.
- `reserve(seat, n)` may move that seat's own state (it outgrew its room), so
  it is called before the step is built, never while it is.
- `seat.length` counts the tokens whose state is stored. The model adds to it
  when it builds a forward pass; `truncate` takes tokens off again where the
  state allows it (`reusable`).
- Nobody keeps an array of the cache across steps. MLX writes into a buffer in
  place only while no other array shares it; one kept slice turns every later
  write into a copy of the whole pool. For the same reason a step's outputs are
  evaluated, never the cache arrays themselves.
- All of it runs on the engine thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

Exported = tuple[dict[str, mx.array], dict[str, str]]
"""A seat's state as arrays by name, and what says how to read them."""


@dataclass(slots=True, eq=False)
class Seat:
    """One sequence's place in a cache.

    Attributes:
        length: Tokens stored.
        order: Decode rows run sorted by this, so that neighbours in the cache
            are neighbours in the batch.
    """

    length: int = 0
    order: tuple[int, int] = (0, 0)


class Cache(ABC):
    """
    Attributes:
        can_truncate: Whether a seat can go back to any shorter length.
        max_bytes: The engine's budget for all seats together.
    """

    can_truncate: bool = True
    max_bytes: float = float("inf")

    @abstractmethod
    def open(self, num_tokens: int, expected: int = 1) -> Seat:
        """A seat with room for `num_tokens` tokens.

        Args:
            expected: Seats of about this size that are about to be opened, this one
                included.
        """

    @abstractmethod
    def fork(self, seat: Seat, length: int, num_tokens: int, expected: int = 1) -> Seat:
        """A new seat with the state of another's first `length` tokens, which
        `reusable` allows, and room for `num_tokens`."""

    @abstractmethod
    def reserve(self, seat: Seat, num_tokens: int) -> None:
        """Make room for `num_tokens` tokens in total."""

    @abstractmethod
    def truncate(self, seat: Seat, length: int) -> None:
        """Forget all tokens after the first `length`, which `reusable` allows."""

    @abstractmethod
    def keep(self, seat: Seat) -> None:
        """The seat's sequence has ended: hold its state, and no more, until it is
        forked from, reserved for another sequence or closed."""

    @abstractmethod
    def close(self, seat: Seat) -> None:
        """Give the seat up. Its memory may be reused at once: steps already
        submitted run before anything submitted later."""

    @abstractmethod
    def cost(self, num_tokens: int) -> int:
        """Bytes that a sequence of `num_tokens` tokens takes."""

    @abstractmethod
    def held(self, seat: Seat) -> int:
        """Bytes that the seat holds."""

    @abstractmethod
    def export(self, seat: Seat, length: int) -> Exported:
        """A copy of the state of a seat's first `length` tokens, which `reusable` allows.

        Raises:
            ValueError: It has a part that cannot be written down.
        """

    @abstractmethod
    def adopt(
        self, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], length: int
    ) -> Seat:
        """A seat with exported state, as `keep` leaves it: it goes on as the exported one
        does. The arrays are evaluated and are the cache's from here on.

        Raises:
            ValueError: They are another cache's; the message says what differs.
        """

    @staticmethod
    def check_layout(metadata: Mapping[str, str], own: Mapping[str, str]) -> None:
        """Raises ValueError where exported state is not laid out as here.

        Args:
            own: What has to agree, `storage` among it.
        """
        if {key: metadata.get(key) for key in own} != own:
            found = metadata.get("storage") or "by another cache"
            raise ValueError(f"keys and values are stored {own['storage']} here, there {found}")

    def reusable(self, seat: Seat, length: int) -> int:
        """The most tokens, `length` at most, that another sequence may go on from."""
        return min(length, seat.length)

    def chunk_end(self, start: int, end: int) -> int:
        """Where a chunk of prompt tokens from `start` must end, `end` at most."""
        return end

    def can_open(self, num_tokens: int, length: int = 0) -> bool:
        """Whether a new seat of this size, or a fork at `length`, stays within `max_bytes`."""
        return self.nbytes + self.cost(num_tokens) <= self.max_bytes

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        """Whether growing the seat stays within `max_bytes`."""
        return self.nbytes + self.cost(num_tokens) - self.cost(seat.length) <= self.max_bytes

    def can_keep(self, seat: Seat) -> bool:
        """Whether keeping the seat stays within `max_bytes`."""
        return True

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, free room included."""
