"""The KV-cache contract.

A cache hands out *seats*: a seat is where one sequence's state lives between
steps. The engine opens a seat when it admits a sequence, reserves room before
each step, and closes it when the sequence ends; only the model that owns the
cache looks inside.

What holds for every cache:

- Opening, growing and closing a seat copies no other seat's state.
- `reserve(seat, n)` may move that seat's own state (it outgrew its room), so
  it is called before the step is built, never while it is.
- `seat.length` counts the tokens whose state is stored. The model adds to it
  when it builds a forward pass; `truncate` takes tokens off again where the
  state allows it (`can_truncate`).
- Nobody keeps an array of the cache across steps. MLX writes into a buffer in
  place only while no other array shares it; one kept slice turns every later
  write into a copy of the whole pool. For the same reason a step's outputs are
  evaluated, never the cache arrays themselves.
- All of it runs on the engine thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


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
        can_truncate: Whether a seat's last tokens can be taken off again.
        max_bytes: The engine's budget for all seats together.
    """

    can_truncate: bool = True
    max_bytes: float = float("inf")

    @abstractmethod
    def open(self, num_tokens: int) -> Seat:
        """A seat with room for `num_tokens` tokens."""

    @abstractmethod
    def reserve(self, seat: Seat, num_tokens: int) -> None:
        """Make room for `num_tokens` tokens in total."""

    @abstractmethod
    def truncate(self, seat: Seat, length: int) -> None:
        """Forget all tokens after the first `length`."""

    @abstractmethod
    def close(self, seat: Seat) -> None:
        """Give the seat up. Its memory may be reused at once: steps already
        submitted run before anything submitted later."""

    @abstractmethod
    def cost(self, num_tokens: int) -> int:
        """Bytes that a sequence of `num_tokens` tokens takes."""

    def can_open(self, num_tokens: int) -> bool:
        """Whether a new seat of this size stays within `max_bytes`."""
        return self.nbytes + self.cost(num_tokens) <= self.max_bytes

    def can_reserve(self, seat: Seat, num_tokens: int) -> bool:
        """Whether growing the seat stays within `max_bytes`."""
        return self.nbytes + self.cost(num_tokens) - self.cost(seat.length) <= self.max_bytes

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, free room included."""
