"""What an engine counts, and what it tells of its work: a clock that decides nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mlx_server.core import FinishReason
from mlx_server.engine.runner import Flight, Note
from mlx_server.engine.scheduler import Scheduled
from mlx_server.engine.sequence import Sequence
from mlx_server.engine.trace import STEPS, Trace


@dataclass(slots=True)
class Counters:
    """Since the start.

    Attributes:
        prompt_tokens_computed: Also those computed again after a preemption, and what a full
            context has left of a sequence.
        generated_tokens: Sampled, those of ended rows that nobody got included, or forced.
        forced_tokens: Those that a grammar left no choice about.
        prompt_seconds, decode_seconds: Wall time of the steps. Where one computed prompts
            and replies, it is split as their tokens are.
    """

    steps: int = 0
    prompt_tokens_computed: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


class Recorder:
    """
    Args:
        trace: Where it is all written down; None: nowhere.

    Attributes:
        counters: What it comes to.
    """

    def __init__(self, trace: Trace | None) -> None:
        self.counters = Counters()
        self.trace = trace
        self._landed_at = 0.0

    def added(self, sequence: Sequence) -> None:
        """It was queued just now."""
        sequence.added_at = time.monotonic()

    def built(self, flight: Flight, rows: list[Scheduled], began: float) -> None:
        """A pass with these rows is built, by a step that began at `began`."""
        counters = self.counters
        counters.steps += 1
        flight.began = began
        for row in rows:
            sequence, start = row.sequence, row.end - row.num_tokens
            prompt = max(0, min(row.end, sequence.num_given) - start)
            flight.num_prompt_tokens += prompt
            flight.num_decode_tokens += row.num_tokens - prompt
            counters.generated_tokens += row.samples
            if sequence.started_at is None:
                sequence.started_at = began
                self._span("queued", sequence, sequence.added_at, began, {})
            if self.trace is not None:
                flight.notes.append(_note(row, bool(prompt)))
        counters.prompt_tokens_computed += flight.num_prompt_tokens

    def landed(self, flight: Flight) -> None:
        """Its tokens are there."""
        now = time.monotonic()
        # Passes overlap: each counts from the landing of the one before.
        began, self._landed_at = max(flight.began, self._landed_at), now
        prompt, decode = flight.num_prompt_tokens, flight.num_decode_tokens
        share = prompt / (prompt + decode)
        self.counters.prompt_seconds += share * (now - began)
        self.counters.decode_seconds += (1 - share) * (now - began)
        if self.trace is None:
            return
        args = {"rows": len(flight.rows), "prompt_tokens": prompt, "decode_tokens": decode}
        self.trace.add("step", began, now, args=args)
        for name, thread, args in flight.notes:
            self.trace.add(name, began, now, args=args, thread=thread)

    def moved(self, what: str, sequence: Sequence) -> None:
        """It was preempted, or its context was shifted."""
        if self.trace is not None:
            args = {"request": _name(sequence)}
            self.trace.add(what, time.monotonic(), args=args, thread=_thread(sequence))

    def finished(self, sequence: Sequence, reason: FinishReason) -> None:
        """It has ended, wherever it was."""
        if self.trace is None:
            return
        now, tokens = time.monotonic(), len(sequence.tokens) - sequence.num_prompt_tokens
        args = {"reason": reason, "prompt_tokens": sequence.num_prompt_tokens, "tokens": tokens}
        self._span("request", sequence, sequence.added_at, now, args)
        if sequence.started_at is None:
            self._span("queued", sequence, sequence.added_at, now, {})
        else:
            told = {"request": _name(sequence)} | args
            self.trace.add("finish", now, args=told, thread=_thread(sequence))

    def _span(
        self, name: str, sequence: Sequence, start: float, end: float, args: dict[str, Any]
    ) -> None:
        if self.trace is not None:
            self.trace.add(name, start, end, args=args, id=_name(sequence))


def _note(row: Scheduled, prompt: bool) -> Note:
    sequence = row.sequence
    args = {"request": _name(sequence), "tokens": row.num_tokens, "end": row.end}
    return "prefill" if prompt else "decode", _thread(sequence), args


def _name(sequence: Sequence) -> str:
    return f"{sequence.request.id}[{sequence.index}]"


def _thread(sequence: Sequence) -> int:
    """Of the slot that it has or had."""
    slot = sequence.last_slot if sequence.slot is None else sequence.slot
    return STEPS if slot is None else slot + 1
