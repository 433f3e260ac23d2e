"""Embeddings on the engine thread: a bounded chunk a call, so that streams go on between.

    handler thread   job = DecoderJob(…);  until job.done: worker.call(job.advance)
    engine thread    step … step · chunk · step … step · chunk · step

A job is held by the thread that asked for it, and only the engine thread moves it on. Between
two calls it holds the seat of an input that is not done, and numbers on the host: never a
lazy array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_server.cache.base import Seat
from mlx_server.core import AdapterScale
from mlx_server.engine.engine import Engine
from mlx_server.engine.scheduler import QUIET
from mlx_server.errors import NotSupported, Unavailable
from mlx_server.models.base import Row, ServedModel
from mlx_server.services import Pooling


class Job(ABC):
    """Inputs on their way to numbers.

    Args:
        engine: The name of the model's engine.
        size: How many inputs there are.

    Attributes:
        results: float32 [dim] for each input, None while it is not done; for a ranking one
            number each.
    """

    def __init__(self, engine: str, size: int) -> None:
        self.engine = engine
        self.results: list[np.ndarray | None] = [None] * size

    @property
    def done(self) -> bool:
        """Whether every input has its result."""
        return all(result is not None for result in self.results)

    @abstractmethod
    def advance(self, engines: Mapping[str, Any]) -> bool:
        """Compute one chunk, on the engine thread; False if there is no room for one now.

        Raises:
            NotSupported: The model gives no embeddings.
            Unavailable: It was unloaded.
        """

    def close(self, engines: Mapping[str, Any]) -> None:  # noqa: B027
        """Give up what the job holds, on the engine thread."""


def engine_of(engines: Mapping[str, Any], name: str) -> Any:
    """The engine of that name. Raises Unavailable: its model was unloaded."""
    if name not in engines:
        raise Unavailable("The model was unloaded; try again.", retry_after=1)
    return engines[name]


def chunk_budget(chunk_size: int, engines: Mapping[str, Any]) -> int:
    """Tokens of a chunk: more where no stream waits for it."""
    busy = any(engine.busy for engine in engines.values())
    return chunk_size * (1 if busy else QUIET)


# ---------------------------------------------------------------- models that generate


@dataclass(slots=True)
class _Input:
    """An input that has its seat.

    Attributes:
        vector: float32 [hidden], what its chunks have brought so far.
    """

    index: int
    token_ids: np.ndarray
    seat: Seat
    vector: np.ndarray | None = None


class DecoderJob(Job):
    """Inputs through a model that generates, packed like a step's rows.

    Inputs run in their order, short ones together and a long one in chunks. Each has a seat of
    its own while it does; the prefix cache neither helps nor keeps it, but gives way.

    Args:
        inputs: Token ids, each at least one and within the engine's `max_tokens`.
        adapters: Sorted (adapter, scale) pairs that they run under.
    """

    def __init__(
        self,
        engine: str,
        inputs: Sequence[Sequence[int]],
        pooling: Pooling,
        adapters: tuple[AdapterScale, ...] = (),
    ) -> None:
        super().__init__(engine, len(inputs))
        self._inputs = [np.array(ids, dtype=np.int32) for ids in inputs]
        self._pooling = pooling
        self._adapters = adapters
        self._waiting = deque(range(len(inputs)))
        self._seated: list[_Input] = []

    def advance(self, engines: Mapping[str, Any]) -> bool:
        engine = engine_of(engines, self.engine)
        if not isinstance(engine, Engine):
            raise NotSupported("This model is an encoder now; try again.")
        try:
            shares = self._plan(engine, chunk_budget(engine.scheduler.prefill_chunk_size, engines))
            if shares:
                self._compute(engine.model, shares)
        except Exception:
            self.close(engines)
            raise
        return bool(shares)

    def close(self, engines: Mapping[str, Any]) -> None:
        engine = engines.get(self.engine)
        seated, self._seated = self._seated, []
        for entry in seated:
            if engine is not None:
                engine.model.cache.close(entry.seat)

    def _plan(self, engine: Engine, budget: int) -> list[tuple[_Input, int]]:
        """Which inputs get how many tokens computed, each with room in its seat."""
        shares = []
        begun = list(self._seated)
        while budget > 0 and (begun or self._waiting):
            entry = begun.pop(0) if begun else self._seat(engine, budget)
            if entry is None:
                break
            end = self._end(engine, entry, budget)
            if end is None:
                # Its room is given to others, and it starts over.
                self._seated.remove(entry)
                self._waiting.appendleft(entry.index)
                engine.model.cache.close(entry.seat)
                break
            shares.append((entry, end - entry.seat.length))
            budget -= end - entry.seat.length
        return shares

    def _seat(self, engine: Engine, budget: int) -> _Input | None:
        """The next input in a seat of its own; None if there is no room."""
        cache, prefixes = engine.model.cache, engine.prefixes
        token_ids = self._inputs[self._waiting[0]]
        size = len(token_ids)
        short_of = cache.nbytes + cache.cost(size) - cache.max_bytes
        if not cache.can_open(size) and short_of > prefixes.nbytes:
            return None  # all that could give way would not be enough
        while not cache.can_open(size):
            if not prefixes.evict():
                return None
        expected = min(len(self._waiting), max(1, budget // size))
        entry = _Input(self._waiting.popleft(), token_ids, cache.open(size, expected))
        self._seated.append(entry)
        return entry

    def _end(self, engine: Engine, entry: _Input, budget: int) -> int | None:
        """Where the input's next chunk ends, with room for it; None if there is none."""
        cache, seat = engine.model.cache, entry.seat
        end = cache.chunk_end(seat.length, min(len(entry.token_ids), seat.length + budget))
        while not cache.can_reserve(seat, end):
            if not engine.prefixes.evict():
                return None
        cache.reserve(seat, end)
        return end

    def _compute(self, model: ServedModel, shares: list[tuple[_Input, int]]) -> None:
        # One-token rows first and in the cache's order, as the model wants them.
        shares = sorted(shares, key=lambda s: (s[1] > 1, s[0].seat.order))
        pieces = [e.token_ids[e.seat.length : e.seat.length + count] for e, count in shares]
        rows = [Row(entry.seat, count, 0, self._adapters) for entry, count in shares]
        hidden = model.hidden(mx.array(np.concatenate(pieces)), rows)
        ends = np.cumsum([count for _, count in shares]).tolist()
        parts = [
            _share(hidden[end - count : end], self._pooling)
            for end, (_, count) in zip(ends, shares, strict=True)
        ]
        found = np.array(mx.stack(parts))
        for (entry, count), part in zip(shares, found, strict=True):
            self._take(entry, part, first=entry.seat.length == count)
            if entry.seat.length == len(entry.token_ids):
                self._finish(model, entry)

    def _take(self, entry: _Input, part: np.ndarray, *, first: bool) -> None:
        if self._pooling == "mean" and not first:
            entry.vector = entry.vector + part
        elif self._pooling != "cls" or first:
            entry.vector = part

    def _finish(self, model: ServedModel, entry: _Input) -> None:
        self._seated.remove(entry)
        model.cache.close(entry.seat)
        vector = entry.vector
        if self._pooling == "mean":
            vector = vector / len(entry.token_ids)
        self.results[entry.index] = vector


def _share(hidden: mx.array, pooling: Pooling) -> mx.array:
    """What a chunk's states [n, hidden] add to an input's vector: float32 [hidden]."""
    if pooling == "mean":
        return hidden.astype(mx.float32).sum(axis=0)
    # A chunk whose token is not the one that counts is computed all the same: all of its
    # layers' keys and values but the last layer's hang together.
    return hidden[0 if pooling == "cls" else -1].astype(mx.float32)
