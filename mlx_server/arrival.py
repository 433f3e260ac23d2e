"""Arrival: a request whose model has to be loaded first.

Its stream begins at once: the client gets headers and keep-alive comments while
other requests finish and the model is loaded, and may leave meanwhile.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Protocol

from mlx_server.core import GenerationRequest
from mlx_server.deltas import Delta, Heartbeat, Timings, Usage
from mlx_server.errors import DeadlineExceeded, ServerError
from mlx_server.generation import HEARTBEAT, Generation
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import Served


class Home(Protocol):
    """`pool.ModelPool` as an arrival sees it."""

    def bring(self, arrival: Arrival) -> Generation | None:
        """Load its model and queue its request; None if it gave up."""
        ...


class Arrival:
    """Iterate for the deltas; `cancel()` from any thread.

    Args:
        name: The model (also `model`, as of a running request).
        adapter: The adapter that the request's `model` named, if one.

    Attributes:
        params, served: How its tokens are chosen, and the model; None until that is loaded.
    """

    def __init__(
        self, home: Home, name: str, adapter: str | None, request: GenerationRequest
    ) -> None:
        self.name = self.model = name
        self.adapter = adapter
        self.params: SamplingParams | None = None
        self.served: Served | None = None
        self.cancelled = False
        self._home = home
        self._request = request
        timeout = request.timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._generation: Generation | None = None
        self._news: queue.SimpleQueue[Generation | Exception] = queue.SimpleQueue()

    @property
    def usage(self) -> Usage:
        """What it has used so far; nothing before its model is there."""
        return Usage() if self._generation is None else self._generation.usage

    @property
    def timings(self) -> tuple[Timings, ...]:
        """Of each of its replies so far; none before its model is there."""
        return () if self._generation is None else self._generation.timings

    def request(self) -> GenerationRequest:
        """The request, with the time that it has left."""
        if self._deadline is None:
            return self._request
        return replace(self._request, timeout=max(0.0, self._deadline - time.monotonic()))

    def cancel(self) -> None:
        self.cancelled = True
        self._news.put(ServerError("The request was cancelled."))
        if self._generation is not None:
            self._generation.cancel()

    def __iter__(self) -> Iterator[Delta]:
        threading.Thread(target=self._bring, name="loading", daemon=True).start()
        try:
            news = yield from self._wait()
            if isinstance(news, Exception):
                raise news
            yield from news
        finally:
            self.cancelled = True

    def _wait(self) -> Generator[Heartbeat, None, Generation | Exception]:
        """What comes of it: the running request, or what went wrong."""
        while True:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded("The request ran out of the time it was given.")
            try:
                return self._news.get(timeout=HEARTBEAT if left is None else min(HEARTBEAT, left))
            except queue.Empty:
                yield Heartbeat()

    def _bring(self) -> None:
        try:
            generation = self._home.bring(self)
        except Exception as error:
            self._news.put(error)
            return
        if generation is not None:
            self.params, self.served = generation.params, generation.served
            self._generation = generation
            self._news.put(generation)
            if self.cancelled:
                generation.cancel()
