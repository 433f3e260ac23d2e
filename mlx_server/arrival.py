"""Arrival: a request whose model has to be loaded first.

Its stream begins at once: the client gets headers and keep-alive comments while
other requests finish and the model is loaded, and may leave meanwhile.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from mlx_server.core import Delta, GenerationRequest, Heartbeat
from mlx_server.errors import DeadlineExceeded, ServerError
from mlx_server.llm import HEARTBEAT, Generation


class Home(Protocol):
    """`pool.ModelPool` as an arrival sees it."""

    def bring(self, arrival: Arrival) -> None:
        """Have the model loaded, or raise what keeps it away."""
        ...

    def start(
        self, name: str, adapter: str | None, request: GenerationRequest
    ) -> Generation | None:
        """Queue the request; None where the model is not in memory."""
        ...


class Arrival:
    """Iterate for the deltas; `cancel()` from any thread.

    Args:
        name: The model.
        adapter: The adapter that the request's `model` named, if one.
    """

    def __init__(
        self, pool: Home, name: str, adapter: str | None, request: GenerationRequest
    ) -> None:
        self.name = name
        self.cancelled = False
        self._pool = pool
        self._adapter = adapter
        self._request = request
        timeout = request.timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._generation: Generation | None = None
        self._news: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def cancel(self) -> None:
        self.cancelled = True
        self._news.put(None)
        if self._generation is not None:
            self._generation.cancel()

    def __iter__(self) -> Iterator[Delta]:
        while self._generation is None:
            yield from self._wait()
            request = self._request
            if self._deadline is not None:
                request = replace(request, timeout=max(0.0, self._deadline - time.monotonic()))
            # Another request may have had it unloaded again: then it waits once more.
            self._generation = self._pool.start(self.name, self._adapter, request)
        if self.cancelled:
            self._generation.cancel()
        yield from self._generation

    def _wait(self) -> Iterator[Heartbeat]:
        """Until the model is there. Raises what kept it away."""
        threading.Thread(target=self._bring, name="loading", daemon=True).start()
        while True:
            wait = HEARTBEAT
            if self._deadline is not None:
                wait = min(wait, max(0.0, self._deadline - time.monotonic()))
            try:
                error = self._news.get(timeout=wait)
            except queue.Empty:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self.cancelled = True
                    raise DeadlineExceeded(
                        "The request ran out of the time it was given."
                    ) from None
                yield Heartbeat()
                continue
            if error is not None:
                raise error
            if self.cancelled:
                raise ServerError("The request was cancelled.")
            return

    def _bring(self) -> None:
        try:
            self._pool.bring(self)
        except Exception as error:
            self._news.put(error)
        else:
            self._news.put(None)
