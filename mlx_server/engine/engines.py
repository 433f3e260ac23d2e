"""The engines of a worker by name, and what those that have gone had counted."""

from __future__ import annotations

import threading
from collections import Counter

from mlx_server.engine.engine import Engine


class Engines(dict[str, Engine]):
    """Changed on the engine thread only; `stats` is for any thread."""

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
