"""Seating: how a sequence comes to its seat, with as much of it computed as is known.

The state a sequence can go on from lies in the prefix cache or in another sequence's
seat. What another one is about to compute is worth waiting for: of requests that arrive
together, the first computes what they share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

from mlx_server.cache.base import Cache, Seat
from mlx_server.cache.prefix import Match, Prefix, PrefixCache, common_prefix
from mlx_server.engine.sequence import Sequence
from mlx_server.exchange import Origin

log = logging.getLogger(__name__)

HEADROOM = 64
"""Tokens a new seat has room for beyond those it starts with."""

WORTHWHILE = 32
"""Shared tokens that are worth a copy, or waiting for, if they are not half of the sequence."""

REWIND = 32
"""Where state cannot go back, a prompt leaves it so many tokens before its end as well:
a chat template renders the end of a past turn in another way than that of the last."""

QUOTED = 8
"""Tokens that are shown of either side where a conversation differs from an earlier one."""


class Seating:
    """
    Args:
        cache: Where the seats are.
        prefixes: What ended sequences left in it.

    Attributes:
        num_cached_tokens: Prompt tokens that did not have to be computed, in all.
        num_hits, num_misses: Sequences that were seated behind something known, or not.
    """

    def __init__(self, cache: Cache, prefixes: PrefixCache) -> None:
        self.cache = cache
        self.prefixes = prefixes
        self.num_cached_tokens = 0
        self.num_hits = 0
        self.num_misses = 0

    # ------------------------------------------------------------ room

    def room(self, sequence: Sequence) -> int:
        """Tokens that a sequence's seat is opened for: what it has, and some of what may come."""
        room = sequence.num_tokens + min(sequence.num_left, HEADROOM)
        return room if sequence.context is None else min(room, sequence.context)

    def make_room(self, fits: Callable[[], bool]) -> bool:
        """Drop entries of the prefix cache until a row's seat can grow."""
        return self._evict(fits, 0)

    def _evict(self, fits: Callable[[], bool], cost: int, spare: Prefix | None = None) -> bool:
        """Drop entries, `spare` excepted, until something fits; none if all of them are not
        enough for its cost."""
        cache, prefixes = self.cache, self.prefixes
        evictable = prefixes.nbytes - (cache.held(spare.seat) if spare else 0)
        if not fits() and cache.nbytes + cost - evictable > cache.max_bytes:
            return False
        while not fits():
            if not prefixes.evict(spare):
                return False
        return True

    def _can_open(self, num_tokens: int, length: int = 0, spare: Prefix | None = None) -> bool:
        cache = self.cache
        return self._evict(
            lambda: cache.can_open(num_tokens, length), cache.cost(num_tokens), spare
        )

    # ------------------------------------------------------------ taking a seat

    def open(self, sequence: Sequence, expected: int = 1, *, alone: bool = False) -> bool:
        """Seat a sequence from scratch; False if there is no room.

        Args:
            alone: Nobody else runs, so there will never be more room.
        """
        room = self.room(sequence)
        if not self._can_open(room):
            if not alone:
                return False
            self.prefixes.clear()
        sequence.seat = self.cache.open(room, expected)
        return True

    def place(self, sequence: Sequence, running: Seq[Sequence], expected: int) -> bool | None:
        """Seat a sequence behind the longest part of it that is known.

        Args:
            expected: Sequences of its size, itself included, that are about to be seated.

        Returns:
            None if another sequence is about to compute more, False if there is no room.
        """
        if not _reuses(sequence):
            return self.open(sequence, expected, alone=not running)
        if self._is_following(sequence):
            return None
        match = self.prefixes.find(sequence.window.view, sequence.request.adapters)
        source, length, coming = self._among(sequence, running)
        known = max(length, match.length if match else 0)
        if coming is not None and _worthwhile(sequence, coming[1] - known, coming[1]):
            sequence.follows = coming
            self._ask_for_checkpoint(coming[0], coming[1])
            return None
        if not _worthwhile(sequence, known, known):
            seated = self.open(sequence, expected, alone=not running)
        elif match is not None and match.length >= length:
            seated = self._go_on(sequence, match, expected, alone=not running)
        else:
            seated = self._fork(sequence, source.seat, length, expected)
        if seated:
            self._note(sequence, match)
        return seated

    def _is_following(self, sequence: Sequence) -> bool:
        if sequence.follows is None:
            return False
        leader, length = sequence.follows
        if leader.seat is not None and leader.num_computed < length:
            return True
        sequence.follows = None
        return False

    def _among(
        self, sequence: Sequence, running: Seq[Sequence]
    ) -> tuple[Sequence | None, int, tuple[Sequence, int] | None]:
        """The running sequence to fork from, at which length, and who will have more (and
        how much) when its prompt is computed."""
        best, length, coming = None, 0, None
        tokens, wanted = sequence.window.view, len(sequence.window) - 1
        for other in running:
            ids = other.window.view
            if other.request.adapters != sequence.request.adapters or ids[0] != tokens[0]:
                continue
            common = min(common_prefix(ids, tokens), wanted)
            usable = self.cache.reusable(other.seat, min(common, other.num_computed))
            if usable > length:
                best, length = other, usable
            if other.num_computed < common and common > (coming[1] if coming else 0):
                coming = other, common
        return best, length, coming

    def shift(self, sequence: Sequence, others: Seq[Sequence]) -> bool | None:
        """Make room in a full window, and seat the sequence behind what is known of the rest.
        Its own beginning stays where it is if its state can go back there and nobody knows
        much more.

        Args:
            others: Those that run beside it.

        Returns:
            As of `place`.
        """
        keep, match = sequence.shift(), None
        if _reuses(sequence):
            match = self.prefixes.find(sequence.window.view, sequence.request.adapters)
        gain = match.length - keep if match is not None else 0
        if gain < WORTHWHILE and 0 < keep == self.cache.reusable(sequence.seat, keep):
            self.cache.truncate(sequence.seat, keep)
            return True
        self.leave(sequence, keep=False)
        return self.place(sequence, others, 1)

    # ------------------------------------------------------------ from a known prefix

    def _go_on(self, sequence: Sequence, match: Match, expected: int, *, alone: bool) -> bool:
        """From an entry: taken over where it is used up, or where two have no room."""
        prefixes, cache, entry = self.prefixes, self.cache, match.prefix
        room = self.room(sequence)
        if match.length < len(entry.tokens) or entry.checkpoint:
            # Not in evict's way while others make room for its fork.
            prefixes.touch(entry)
            if self._can_open(room, match.length, spare=entry):
                sequence.seat = cache.fork(entry.seat, match.length, room, expected)
                return True
            if cache.reusable(entry.seat, match.length) < match.length:
                return self.open(sequence, expected, alone=alone)
        if self._evict(lambda: cache.can_reserve(entry.seat, room), cache.cost(room), entry):
            seat = prefixes.take(entry)
            sequence.seat = seat
            cache.truncate(seat, match.length)
            cache.reserve(seat, room)
            return True
        return self.open(sequence, expected, alone=alone)

    def _fork(self, sequence: Sequence, source: Seat, length: int, expected: int) -> bool:
        if not self._can_open(self.room(sequence), length):
            return False
        sequence.seat = self.cache.fork(source, length, self.room(sequence), expected)
        return True

    # ------------------------------------------------------------ checkpoints

    def _ask_for_checkpoint(self, leader: Sequence, length: int) -> None:
        if not self.cache.can_truncate:
            leader.checkpoints.add(length)

    def _note(self, sequence: Sequence, match: Match | None) -> None:
        """What was found, and where state is to be left that cannot be had by going back."""
        found, size = sequence.num_computed, sequence.num_given
        self.num_cached_tokens += min(found, size)
        self.num_hits += found > 0
        self.num_misses += found == 0
        if not sequence.num_prompt_done:
            sequence.num_cached_tokens = min(found, size)
        if not self.cache.can_truncate:
            places = {size - 1 if sequence.request.n > 1 else 0, size - REWIND}
            if match is not None and match.common - found > REWIND:
                places.add(match.common)
            sequence.checkpoints |= {p for p in places if found < p < size}
        if log.isEnabledFor(logging.DEBUG):
            sequence.origin = _origin(sequence, found, match)

    def leave_checkpoint(self, sequence: Sequence, length: int) -> None:
        """Leave a copy of a sequence's state, which has just got to `length`."""
        sequence.checkpoints.discard(length)
        if not self._can_open(length):
            return
        seat = self.cache.fork(sequence.seat, length, length)
        tokens = sequence.window.view[:length].copy()
        self.prefixes.store(tokens, sequence.request.adapters, seat, checkpoint=True)

    # ------------------------------------------------------------ leaving a seat

    def leave(self, sequence: Sequence, *, keep: bool) -> None:
        """
        Args:
            keep: What it computed may be of use to others.
        """
        seat, sequence.seat = sequence.seat, None
        if seat is None:
            return
        length = min(seat.length, len(sequence.window))
        if not keep or not length or self.cache.reusable(seat, length) < length:
            self.cache.close(seat)
            return
        self.cache.truncate(seat, length)
        tokens = sequence.window.view[:length].copy()
        self.prefixes.store(tokens, sequence.request.adapters, seat)


def _reuses(sequence: Sequence) -> bool:
    """Whether it may go on from what is known; nobody keeps the logits of a prompt."""
    request = sequence.request
    return request.reuse and request.params.prompt_logprobs is None


def _worthwhile(sequence: Sequence, gain: int, length: int) -> bool:
    return gain > 0 and (gain >= WORTHWHILE or 2 * length >= sequence.num_tokens)


def _origin(sequence: Sequence, found: int, match: Match | None) -> Origin:
    tokens = sequence.window.view[: sequence.num_given]
    entry = match.prefix.tokens if match else tokens[:0]
    at = common_prefix(entry, tokens)
    if at == min(len(tokens), len(entry)):
        return Origin(found)
    there, here = (tuple(ids[at : at + QUOTED].tolist()) for ids in (entry, tokens))
    return Origin(found, at, there, here)
