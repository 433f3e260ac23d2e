"""When a sequence began, and when its tokens came."""

from __future__ import annotations

from mlx_server.deltas import Timings, Usage


class Clock:
    """Of one sequence, told of each of its steps."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._first_token: float | None = None
        self._last = 0.0

    def tick(self, at: float, started_at: float | None, has_token: bool) -> None:
        """A step had an output at that time."""
        self._last = at
        if started_at is not None:
            self._started = started_at
        if has_token and self._first_token is None:
            self._first_token = self._last

    @property
    def running(self) -> bool:
        """Whether it is known when the sequence began."""
        return self._started is not None

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds from the first step to the last tick."""
        return 0.0 if self._started is None else 1000 * (self._last - self._started)

    def timings(self, usage: Usage) -> Timings:
        """Of a reply that has used so much, up to the last tick."""
        if self._started is None:
            return Timings(cache_n=usage.cached_tokens)
        first = self._last if self._first_token is None else self._first_token
        return Timings(
            prompt_n=usage.prompt_tokens - usage.cached_tokens,
            prompt_ms=1000 * (first - self._started),
            predicted_n=usage.completion_tokens,
            predicted_ms=1000 * (self._last - first),
            cache_n=usage.cached_tokens,
            first_at=self._first_token,
        )
