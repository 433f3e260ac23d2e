"""The last replies' figures."""

from __future__ import annotations

import threading
from collections import deque

from mlx_server.deltas import Finished, Timings
from mlx_server.services import Runtime

RECENT = 100
"""Replies whose figures are kept."""


class Recent:
    """The last replies' figures. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timings: deque[Timings] = deque(maxlen=RECENT)

    def add(self, finished: Finished) -> None:
        with self._lock:
            self._timings.append(finished.timings)

    def clear(self) -> None:
        with self._lock:
            self._timings.clear()

    def runtime(self) -> Runtime:
        with self._lock:
            timings = list(self._timings)
        prompt = sum(t.prompt_ms for t in timings) / 1000
        completion = sum(t.predicted_ms for t in timings) / 1000
        return Runtime(
            prompt_tokens=sum(t.prompt_n for t in timings),
            prompt_seconds=prompt,
            # The first token of each comes with the prompt's computation.
            completion_tokens=sum(max(0, t.predicted_n - 1) for t in timings),
            completion_seconds=completion,
            requests=len(timings),
            total_seconds=prompt + completion,
        )
