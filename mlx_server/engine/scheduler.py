"""What runs in the next step: admission, chunked prefill under a token budget, preemption.

Decode rows run in every step; prompts share what the budget leaves. The
scheduler reads no clock, no free memory and no set order: the same commands
give the same steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from mlx_server.cache.base import Cache
from mlx_server.cache.prefix import PrefixCache
from mlx_server.core import FinishReason
from mlx_server.engine.seating import Seating
from mlx_server.engine.sequence import Sequence, Status
from mlx_server.engine.slots import Slots

QUIET = 4
"""Chunks' worth of prompt tokens in a step of a prompt that holds up nobody."""

LOOKAHEAD = 16
"""Waiting sequences that are looked at for how many of one size are to be seated."""


@dataclass(slots=True)
class Scheduled:
    """A row of the next step.

    Attributes:
        num_tokens: Tokens of the sequence to compute.
        end: How many of its tokens are computed after the step.
        samples: Whether its last position yields a token.
    """

    sequence: Sequence
    num_tokens: int
    end: int
    samples: bool


class Scheduler:
    """
    Args:
        cache: Where admitted sequences get their seats.
        prefixes: What ended ones leave there for others.
        max_batch_size: Sequences that run at the same time.
        prefill_chunk_size: Prompt tokens per step beside decode rows, all prompts together.
        prompt_concurrency: Prompts of a step; None: as many as the chunk has room for.
        cont_batching: Sequences join while others run.
        slot_similarity: See `Slots`.
        observe: Is told of what is moved: "preempt" or "shift", and the sequence.

    Attributes:
        slots: Where running sequences sit; as many as may run.
        suspects: Sequences that were in a step that failed: they run one at a
            time until each has shown that it was not the cause.
    """

    def __init__(
        self,
        cache: Cache,
        prefixes: PrefixCache,
        *,
        max_batch_size: int,
        prefill_chunk_size: int,
        prompt_concurrency: int | None = None,
        cont_batching: bool = True,
        slot_similarity: float = 0.0,
        observe: Callable[[str, Sequence], None] = lambda what, sequence: None,
    ) -> None:
        self.cache = cache
        self.seating = Seating(cache, prefixes)
        self.max_batch_size = max_batch_size
        self.prefill_chunk_size = prefill_chunk_size
        self.prompt_concurrency = prompt_concurrency
        self.cont_batching = cont_batching
        self.slots = Slots(max_batch_size, slot_similarity)
        self._observe = observe
        # The last arrival of those that run together, where nobody joins them.
        self._boarding = -1
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.suspects: list[Sequence] = []
        self.num_preemptions = 0
        self.num_shifts = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason, *, keep: bool = True) -> None:
        """Take the sequence off, wherever it is, and free its seat and its slot.

        Args:
            reason: Why it has ended.
            keep: Leave what it computed to the prefix cache.
        """
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        if sequence in self.suspects:
            self.suspects.remove(sequence)
        self.seating.leave(sequence, keep=keep)
        self.slots.leave(sequence, reason)
        sequence.status = Status.FINISHED

    def preempt(self, sequence: Sequence) -> None:
        """Give up its seat; its tokens are kept and computed again later."""
        self.num_preemptions += 1
        self._observe("preempt", sequence)
        self._requeue(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.seating.leave(sequence, keep=False)
        self.slots.leave(sequence, None)
        sequence.status = Status.WAITING
        place = sum(other.arrival < sequence.arrival for other in self.waiting)
        self.waiting.insert(place, sequence)

    def clear(self) -> None:
        """Drop every sequence."""
        for sequence in self:
            self.seating.leave(sequence, keep=False)
            self.slots.leave(sequence, "error")
            sequence.status = Status.FINISHED
        self.running.clear()
        self.waiting.clear()
        self.suspects.clear()

    def next_up(self) -> list[Sequence]:
        """Whom the next step would have been about, if it could not even be planned."""
        return self.suspects[:1] or list(self.running) or list(self.waiting)[:1]

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    @property
    def busy(self) -> bool:
        """Whether any sequence is running or waits."""
        return bool(self.running or self.waiting)

    # ------------------------------------------------------------ one step

    def schedule(self) -> list[Scheduled]:
        """The rows of the next step, each with room in its seat."""
        if self.suspects:
            return self._schedule_alone(self.suspects[0])
        for sequence in [s for s in self.running if s.full]:
            self._shift(sequence)
        self._admit()
        # The last token of a prompt whose other tokens are stored is a decode row as well.
        decoding = [s for s in self.running if s.num_to_compute == 1 and s.wants_step]
        rows = [self._row(s, 1) for s in decoding if self._make_room(s, s.num_tokens)]
        rows += self._prefill_rows(bool(rows))
        # Making room for one row may have preempted another that was listed before it.
        return [row for row in rows if row.sequence.seat is not None]

    def _schedule_alone(self, sequence: Sequence) -> list[Scheduled]:
        self._shift(sequence)
        if sequence.seat is None:
            if sequence.num_pending:
                return []
            while not self.slots.has_room(sequence) or not self.seating.open(
                sequence, alone=not self.running
            ):
                self.preempt(max(self.running, key=lambda s: s.arrival))
            self._start(sequence)
        if not sequence.wants_step or not sequence.num_to_compute:
            return []
        row = self._row(sequence, self._chunk(sequence, self.prefill_chunk_size))
        return [row] if self._make_room(sequence, row.end) else []

    def _row(self, sequence: Sequence, count: int) -> Scheduled:
        end = sequence.num_computed + count
        samples = end == sequence.num_tokens and sequence.num_left > 0
        return Scheduled(sequence, count, end, samples)

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """How many tokens a row computes of those that are left."""
        start = sequence.num_computed
        end = start + min(sequence.num_to_compute, budget)
        for place in sequence.checkpoints:
            if start < place < end:
                end = place
        return self.cache.chunk_end(start, end) - start

    def _shift(self, sequence: Sequence) -> None:
        """Make room in a full window, once all its tokens are known to the host."""
        if not sequence.full or sequence.num_pending:
            return
        self.num_shifts += 1
        self._observe("shift", sequence)
        for other in self.waiting:  # what it waits for does not come any more
            if other.follows is not None and other.follows[0] is sequence:
                other.follows = None
        others = [s for s in self.running if s is not sequence]
        if sequence.seat is None:
            sequence.shift()
        elif not self.seating.shift(sequence, others):
            self._requeue(sequence)

    def _admit(self) -> None:
        """First come, first served; who waits for another's prefix or for a certain slot holds
        up nobody."""
        if not self.running and self.waiting:
            self._boarding = self.waiting[min(len(self.waiting), self.max_batch_size) - 1].arrival
        for sequence in list(self.waiting):
            # A preempted row waits until the host knows its last token.
            if len(self.running) >= self.max_batch_size or sequence.num_pending:
                return
            if not self.cont_batching and sequence.arrival > self._boarding:
                return
            if not self.slots.has_room(sequence):
                continue
            self._shift(sequence)
            seated = self.seating.place(sequence, self.running, self._expected(sequence))
            if seated:
                self._start(sequence)
            elif seated is False:
                return

    def _expected(self, sequence: Sequence) -> int:
        """Sequences of its size that can be seated now, itself included."""
        places = self.max_batch_size - len(self.running)
        cost = self.cache.cost(self.seating.room(sequence))
        others = islice(self.waiting, LOOKAHEAD)
        alike = (self.cache.cost(self.seating.room(other)) == cost for other in others)
        return min(places, max(1, sum(alike)))

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        awaited = {other.request.slot for other in self.waiting}
        self.slots.take(sequence, awaited)
        sequence.status = Status.RUNNING
        self.running.append(sequence)

    def _prefill_rows(self, decoding: bool) -> list[Scheduled]:
        """Prompt chunks under the budget, which is larger for a prompt that runs alone.

        The oldest prompt gets at least half of it, so that it always advances;
        the rest goes to the prompts with the least left, so that a long one
        never holds up the short ones behind it.
        """
        prompts = [s for s in self.running if s.num_to_compute > 1]
        if not prompts:
            return []
        alone = not decoding and len(self.running) == 1
        budget = self.prefill_chunk_size * (QUIET if alone else 1)
        oldest, others = prompts[0], sorted(prompts[1:], key=lambda s: s.num_to_compute)
        if self.prompt_concurrency is not None:
            # Not a prompt: what a guide leaves no choice about in a running reply.
            new = [s for s in (oldest, *others) if s.num_computed < s.num_given]
            others = [s for s in others if s not in new[self.prompt_concurrency :]]
        shares = {oldest: self._chunk(oldest, -(-budget // 2) if others else budget)}
        budget -= shares[oldest]
        for sequence in others:
            shares[sequence] = self._chunk(sequence, budget)
            budget -= shares[sequence]
        shares[oldest] = self._chunk(oldest, shares[oldest] + budget)
        rows = []
        for sequence, count in shares.items():
            if count and self._make_room(sequence, sequence.num_computed + count):
                rows.append(self._row(sequence, count))
        return rows

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve room, preempting the latest arrivals if it must; False if it went itself."""
        if sequence.seat is None:
            return False
        seat = sequence.seat
        while not self.seating.make_room(lambda: self.cache.can_reserve(seat, num_tokens)):
            # The last one there is goes too: its old room and its new one would not
            # fit together, so it is computed again in a larger seat.
            last = max(self.running, key=lambda s: s.arrival)
            self.preempt(last)
            if last is sequence:
                return False
        self.cache.reserve(sequence.seat, num_tokens)
        return True
