"""The engines of a worker by name, and what those that have gone had counted."""

from __future__ import annotations

import threading
from collections import Counter

from mlx_server.engine import reports
from mlx_server.engine.engine import Engine
from mlx_server.services import RowInfo


class Engines(dict[str, Engine]):
    """Changed on the engine thread only; `stats` and `rows` are for any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._past: Counter[str] = Counter()

    def drop(self, name: str) -> None:
        """Forget an engine, but not what it has counted: counters never go back."""
        with self._lock:
            engine = self.pop(name, None)
            if engine is not None:
                self._past.update(engine.counts())

    def stats(self) -> Counter[str]:
        """What the engines have counted and hold, summed over them."""
        with self._lock:
            total = Counter(self._past)
            for engine in list(self.values()):
                total.update(engine.stats())
        return total

    def rows(self) -> list[RowInfo]:
        """The sequences that run just now, model by model, by their slots."""
        # An encoder stands among them without a scheduler.
        engines = [(name, e) for name, e in list(self.items()) if isinstance(e, Engine)]
        found = [row for name, engine in engines for row in reports.rows(engine.scheduler, name)]
        return sorted(found, key=lambda row: (row.model, -1 if row.slot is None else row.slot))
