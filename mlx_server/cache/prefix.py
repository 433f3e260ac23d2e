"""PrefixCache: what ended sequences leave behind, found again by its tokens.

An entry is a seat that no sequence sits in, with the tokens whose state it holds. A
new sequence goes on from the longest common prefix that the seat's state allows:

    entry      s s s s s u u u a a a          a turn's prompt and its reply
    next turn  s s s s s u u u a a a v v      takes the seat over: nothing is copied
    another    s s s s s w w                  forks: a copy of the first five

Entries are compared one by one, a few thousand tokens at a time. An entry can be
better than the best one so far only if it agrees at the position where that one
ended, so most cost a single comparison, and all of them together never cost more
than reading the tokens once that the cache holds.

The least recently used entries go first, when there are too many bytes or entries of
them, or when a running sequence needs the room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlx_server.cache.base import Cache, Seat
from mlx_server.core import AdapterScale

BLOCK = 4096
"""Tokens that are compared at a time."""

Adapters = tuple[AdapterScale, ...]


def common_prefix(a: np.ndarray, b: np.ndarray, known: int = 0) -> int:
    """How many tokens int32 [n] and int32 [m] have in common from the start.

    Args:
        known: So many are known to be.
    """
    size = min(len(a), len(b))
    for start in range(known, size, BLOCK):
        end = min(start + BLOCK, size)
        differ = a[start:end] != b[start:end]
        if differ.any():
            return start + int(differ.argmax())
    return size


@dataclass(slots=True, eq=False)
class Prefix:
    """
    Attributes:
        tokens: int32 [seat.length], whose state the seat holds.
        adapters: What it was computed under.
        checkpoint: Others come back to it, so it is copied while there is room.
    """

    tokens: np.ndarray
    adapters: Adapters
    seat: Seat
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """
    Attributes:
        prefix: The entry to go on from.
        length: Tokens of it that can be gone on from.
        common: Tokens that some entry has in common with what was looked for.
    """

    prefix: Prefix
    length: int
    common: int


class PrefixCache:
    """
    Args:
        cache: Whose seats it holds.
        max_bytes, max_entries: Bounds of what it holds.
    """

    def __init__(self, cache: Cache, max_bytes: float, max_entries: float) -> None:
        self.cache = cache
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.nbytes = 0
        self.num_evicted = 0
        # The least recently used first.
        self._entries: dict[Prefix, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Prefix]:
        # A copy: other threads look while entries come and go.
        return iter(list(self._entries))

    def find(self, tokens: np.ndarray, adapters: Adapters) -> Match | None:
        """The entry that spares most of the work on `tokens`, and of several the last used.

        Args:
            tokens: int32 [n]; the last one is always computed.
        """
        return self._best(tokens, adapters, len(tokens) - 1)

    def holding(self, tokens: np.ndarray, adapters: Adapters) -> Match | None:
        """The entry that holds the state of the most of `tokens`, from the first on; None if
        nothing is known of them.

        Args:
            tokens: int32 [n]; unlike in `find`, all of them may be known.
        """
        match = self._best(tokens, adapters, len(tokens))
        return match if match is not None and match.length else None

    def drop_along(self, tokens: np.ndarray, adapters: Adapters) -> None:
        """Drop every entry that holds nothing but the beginning of `tokens`.

        Args:
            tokens: int32 [n].
            adapters: Only entries that were computed under them.
        """
        for entry in list(self._entries):
            if entry.adapters == adapters and common_prefix(entry.tokens, tokens) == len(
                entry.tokens
            ):
                self.drop(entry)

    def _best(self, tokens: np.ndarray, adapters: Adapters, wanted: int) -> Match | None:
        best, length, most_common = None, -1, 0
        for entry in reversed(self._entries):
            need = max(length, 0)
            # Whoever differs where the best one ends is no better.
            if (
                entry.adapters != adapters
                or need >= min(len(entry.tokens), len(tokens))
                or entry.tokens[need] != tokens[need]
            ):
                continue
            common = common_prefix(entry.tokens, tokens)
            most_common = max(most_common, common)
            usable = self.cache.reusable(entry.seat, min(common, wanted))
            if usable > length:
                best, length = entry, usable
        return None if best is None else Match(best, length, most_common)

    def store(
        self, tokens: np.ndarray, adapters: Adapters, seat: Seat, *, checkpoint: bool = False
    ) -> None:
        """Hold a seat whose sequence has ended, unless another entry makes it needless.

        Args:
            tokens: int32 [seat.length]; not to be written to any more.
        """
        bounds = min(self.max_bytes, self.max_entries)
        if not bounds or not len(tokens) or self._covered(tokens, adapters, checkpoint):
            self.cache.close(seat)
            return
        self._drop_covered_by(tokens, adapters, seat)
        while not self.cache.can_keep(seat):
            if not self.evict():
                self.cache.close(seat)
                return
        self.cache.keep(seat)
        entry = Prefix(tokens, adapters, seat, checkpoint)
        self._entries[entry] = None
        self.nbytes += self.cache.held(seat)
        while self.nbytes > self.max_bytes or len(self._entries) > self.max_entries:
            self.evict()

    def _covered(self, tokens: np.ndarray, adapters: Adapters, checkpoint: bool) -> bool:
        """Whether an entry serves all that these tokens' would; it counts as used."""
        for entry in self._entries:
            if entry.adapters == adapters and self._serves(entry.tokens, entry.seat, tokens):
                self.touch(entry)
                entry.checkpoint |= checkpoint
                return True
        return False

    def _drop_covered_by(self, tokens: np.ndarray, adapters: Adapters, seat: Seat) -> None:
        for entry in list(self._entries):
            if entry.adapters == adapters and self._serves(tokens, seat, entry.tokens):
                self.drop(entry)

    def _serves(self, tokens: np.ndarray, seat: Seat, shorter: np.ndarray) -> bool:
        """Whether the seat, which holds `tokens`, also stands for `shorter`."""
        size = len(shorter)
        return (
            size <= len(tokens)
            and shorter[-1] == tokens[size - 1]
            and self.cache.reusable(seat, size) == size
            and common_prefix(tokens, shorter) == size
        )

    def touch(self, entry: Prefix) -> None:
        """It was of use just now."""
        del self._entries[entry]
        self._entries[entry] = None

    def take(self, entry: Prefix) -> Seat:
        """Take an entry out; its seat is the caller's."""
        del self._entries[entry]
        self.nbytes -= self.cache.held(entry.seat)
        return entry.seat

    def drop(self, entry: Prefix) -> None:
        """Forget an entry and close its seat."""
        self.cache.close(self.take(entry))

    def evict(self, spare: Prefix | None = None) -> bool:
        """Drop the least recently used entry, `spare` excepted; False if there is none."""
        entry = next((entry for entry in self._entries if entry is not spare), None)
        if entry is None:
            return False
        self.drop(entry)
        self.num_evicted += 1
        return True

    def clear(self) -> None:
        """Drop every entry."""
        for entry in list(self._entries):
            self.drop(entry)
