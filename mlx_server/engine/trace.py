"""What happens to requests in the engine, as Chrome trace events (Perfetto reads them too).

    request   b───────────────────────────────────e     a span of each sequence, with its
    queued    b─────e                                    wait for a place within
    step       ▇▇▇▇▇▇▇▇▇ ▇▇▇▇ ▇▇▇▇ ▇▇▇▇ ▇▇▇▇             thread 0
    slot 0           ▇▇▇ ▇▇▇▇ ▇▇▇▇ ▇▇▇▇                  thread 1: prefill, decode, finish
    slot 1     ▇▇▇▇▇▇▇▇▇ ▇▇▇▇ ▇▇▇▇ ▇▇▇▇ ▇▇▇▇             thread 2

The format is described in Google's "Trace Event Format" (2016).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

CAPACITY = 100_000
"""Events that are kept; the oldest go first."""

STEPS = 0
"""The thread that steps are shown on; slot i is thread i + 1."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    Args:
        thread: See `STEPS`.
        start, end: `time.monotonic()`; one that has no end is a moment.
        id: Spans with one may lie across each other: they are shown by it.
    """

    name: str
    thread: int
    start: float
    end: float | None
    id: str | None
    args: dict[str, Any]


class Trace:
    """The last events of one engine; older ones fall out.

    Args:
        capacity: How many are kept.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._events)

    def add(
        self,
        name: str,
        start: float,
        end: float | None = None,
        *,
        args: dict[str, Any],
        thread: int = STEPS,
        id: str | None = None,
    ) -> None:
        """Add an event; see `Event`."""
        self._events.append(Event(name, thread, start, end, id, args))

    def export(self, process: int, name: str) -> list[dict[str, Any]]:
        """The events as JSON-able dicts, in the order of time; times in microseconds of the
        monotonic clock. From any thread.

        Args:
            process, name: The number and the name that they are shown under.
        """
        events = self._events.copy()  # whole: the interpreter lock is held meanwhile
        threads = {event.thread for event in events}
        found = [_name("process_name", process, 0, name)]
        for thread in sorted(threads):
            label = "steps" if thread == STEPS else f"slot {thread - 1}"
            found.append(_name("thread_name", process, thread, label))
        told = [entry for i, event in enumerate(events) for entry in _told(event, i, process)]
        return found + [entry for _, entry in sorted(told, key=lambda pair: pair[0])]


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {
        "name": what,
        "ph": "M",
        "ts": 0,
        "pid": process,
        "tid": thread,
        "args": {"name": name},
    }


def _told(
    event: Event, number: int, process: int
) -> list[tuple[tuple[float, float, int], dict[str, Any]]]:
    """Its entries, each with its place: by time, and at one time so that spans lie in one
    another, the later added in the earlier. Readers take what ends for what began last."""
    start = round(event.start * 1e6, 1)
    common = {"name": event.name, "cat": "engine", "pid": process, "tid": event.thread}
    args = {"args": event.args}
    if event.end is None:
        return [((start, 0, number), common | {"ph": "i", "s": "t", "ts": start} | args)]
    end = round(event.end * 1e6, 1)
    length = round(end - start, 1)
    if event.id is None:
        return [((start, 0, number), common | {"ph": "X", "ts": start, "dur": length} | args)]
    common |= {"cat": "request", "id": event.id}
    return [
        ((start, -length, number), common | {"ph": "b", "ts": start} | args),
        ((end, length, -number), common | {"ph": "e", "ts": end, "args": {}}),
    ]
