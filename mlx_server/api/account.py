"""What a request used: a dialect fills it while it answers, the server's access line tells it.

A stream's deltas pass `watch()` in whichever thread drives it, one at any time (server/pump.py);
`figures()` is asked for once when the reply is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mlx_server.api.pool import Generation
from mlx_server.core import FinishReason
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Done,
    Finished,
    Reasoning,
    Text,
    Timings,
    Usage,
)
from mlx_server.errors import ServerError

_SHOWN = (Text, Reasoning, CallStarted, CallArguments)


@dataclass(frozen=True, slots=True)
class Figures:
    """
    Args:
        model: The id of the model that answered; `asked`: what the client called it, if it did.
        usage: Of all replies together, each prompt counted once.
        generated: Whether replies were asked for; else vectors or scores.
        first_token_seconds: From the request's first byte to the first piece of a reply; None
            where there was none.
        tokens_per_second: What came behind each reply's first token, in the time from the first
            to the last of all, as the engine took it. None where nothing did.
        finish_reasons: Of the replies that ended, in their order.
        error: The kind of the error that broke the replies off, if one did.
    """

    model: str
    asked: str | None
    usage: Usage
    generated: bool = True
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    finish_reasons: tuple[FinishReason, ...] = ()
    error: str | None = None


class Account:
    """
    Args:
        started: When the request's first byte had come (`time.monotonic`).
    """

    def __init__(self, started: float | None = None) -> None:
        self.started = time.monotonic() if started is None else started
        self._generation: Generation | None = None
        self._embedded: Figures | None = None
        self._asked: str | None = None
        self._first: float | None = None
        self._reasons: dict[int, FinishReason] = {}
        self._usage: Usage | None = None
        self._error: str | None = None

    def watch(
        self,
        generation: Generation,
        deltas: Iterable[Delta],
        *,
        asked: str | None,
    ) -> Iterator[Delta]:
        """The deltas as they are, with what they tell noted on the way.

        Args:
            generation: Knows what was used where the deltas are broken off.
            deltas: Its own, or what a dialect has made of them.
            asked: The model that the request names.
        """
        self._generation, self._asked = generation, asked
        return self._noted(deltas)

    def _noted(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        try:
            for delta in deltas:
                self._note(delta)
                yield delta
        except ServerError as error:
            self._error = error.kind
            raise
        except Exception:
            self._error = ServerError.kind
            raise

    def _note(self, delta: Delta) -> None:
        if isinstance(delta, _SHOWN):
            if self._first is None:
                self._first = time.monotonic()
        elif isinstance(delta, Finished):
            self._reasons[delta.index] = delta.reason
        elif isinstance(delta, Done):
            self._usage = delta.usage

    def embedded(self, model: str, num_tokens: int, *, asked: str | None) -> None:
        """Vectors or scores were made of so many tokens by `model`; the request named `asked`."""
        self._embedded = Figures(model, asked, Usage(num_tokens), generated=False)

    def figures(self) -> Figures | None:
        """What was used up to now; None where no model was."""
        if self._generation is None:
            return self._embedded
        usage = self._generation.usage if self._usage is None else self._usage
        return Figures(
            self._generation.model,
            self._asked,
            usage,
            first_token_seconds=None if self._first is None else self._first - self.started,
            tokens_per_second=_speed(self._generation.timings),
            finish_reasons=tuple(reason for _, reason in sorted(self._reasons.items())),
            error=self._error,
        )


def _speed(timings: Sequence[Timings]) -> float | None:
    """Of replies that ran together, or in turns where there is room for a few only."""
    # The first token of each comes with its prompt: it took no time of its own.
    tokens = sum(max(0, reply.predicted_n - 1) for reply in timings)
    spans = [
        (reply.first_at, reply.first_at + reply.predicted_ms / 1000)
        for reply in timings
        if reply.first_at is not None
    ]
    seconds = max(end for _, end in spans) - min(first for first, _ in spans) if spans else 0.0
    return tokens / seconds if tokens and seconds > 0 else None
