"""What the OpenAI routes share: the error form, and a reply as chunks or as their fold.

Wire forms: https://platform.openai.com/docs/api-reference (chat, completions).
"""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_server import __version__
from mlx_server.api.base import Dialect, Formatter, Json, Pool, to_json
from mlx_server.core import GenerationRequest
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Done,
    Finished,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    Usage,
)
from mlx_server.errors import ServerError

SYSTEM_FINGERPRINT = f"fp_mlx_server-{__version__}"

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""The API's own sampling defaults."""

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks (the API does the same)."""

FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    # A reply that was broken off must not pass for a whole one, and "length" is
    # the one reason by which every client knows that something is missing.
    "abort": "length",
    "error": "length",
}

_ERROR_TYPES = {
    "authentication": "authentication_error",
    "rate_limit": "rate_limit_error",
    "timeout": "timeout_error",
    "not_supported": "not_supported_error",
    "unavailable": "unavailable_error",
    "server_error": "server_error",
    "model_load": "server_error",
}

Logprobs = dict[str, list[Any]]
LogprobsRenderer = Callable[[tuple[TokenLogprob, ...]], Logprobs]

Piece = Text | Reasoning | CallStarted | CallArguments
"""The deltas of which a reply consists."""

Place = int | tuple[int, ...]
"""What tells a choice's text, its reasoning and each of its calls apart."""


class OpenAIDialect(Dialect):
    """The error form of all OpenAI routes."""

    def error(self, error: ServerError) -> Json:
        code: str | int | None = error.code
        if code is None and error.kind == "unavailable":
            code = error.status  # as llama-server has it, which clients wait for
        return {
            "error": {
                "message": error.message,
                "type": _ERROR_TYPES.get(error.kind, "invalid_request_error"),
                "param": error.param,
                "code": code,
            }
        }


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """What a formatter must remember of the body.

    Args:
        include_usage: End a stream with a chunk that carries the usage.
        logprobs: "openai", "mlx_lm" or "legacy"; None where none were asked for.
        legacy_calls: The call is a `function_call`, as clients of `functions` expect.
    """

    include_usage: bool = False
    logprobs: str | None = None
    legacy_calls: bool = False


@dataclass(slots=True)
class Call:
    """A call of a whole reply while its deltas are folded."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """One choice of a whole reply while its deltas are folded."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    logprobs: Logprobs | None = None
    reason: str = FINISH_REASONS["abort"]

    def add(self, delta: Piece) -> None:
        if isinstance(delta, Text):
            self.texts.append(delta.text)
        elif isinstance(delta, Reasoning):
            self.reasoning.append(delta.text)
        elif isinstance(delta, CallStarted):
            self.calls.append(Call(delta.id, delta.name))
        else:
            self.calls[delta.call].arguments.append(delta.text)

    def add_logprobs(self, piece: Logprobs) -> None:
        if self.logprobs is None:
            self.logprobs = {name: [] for name in piece}
        for name, values in piece.items():
            self.logprobs[name] += values


class OpenAIFormatter(Formatter):
    """One reply. A subclass says how a choice looks; the rest is the same everywhere.

    Args:
        request: The request; its `format` is a `ReplyFormat`.
        model: The name the reply carries.
    """

    whole_object: str
    chunk_object: str

    def __init__(self, request: GenerationRequest, model: str) -> None:
        self._num_choices = len(request.prompts) * request.n
        self._include_usage = request.format.include_usage
        self._logprobs = self.logprobs_renderer(request.format.logprobs)
        self._finish_reasons = FINISH_REASONS
        self._frames: dict[Place, tuple[str, str]] = {}
        self._head = {
            "id": request.id,
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }

    @abstractmethod
    def logprobs_renderer(self, form: str | None) -> LogprobsRenderer | None:
        """What turns a piece's tokens into lists that can be joined; None without any."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """A choice of the first chunk, if the form has one."""

    @abstractmethod
    def piece(self, delta: Piece) -> Json:
        """A choice of a chunk that carries a piece of the reply."""

    @abstractmethod
    def closing(self, index: int) -> Json:
        """A choice of the chunk that ends it, but for the reason."""

    @abstractmethod
    def whole(self, index: int, choice: Choice) -> Json:
        """A choice of a whole reply, but for its log-probabilities and the reason."""

    def delta(self, delta: Delta) -> Iterable[Json | str]:
        if isinstance(delta, Text):
            place: Place = delta.index
        elif isinstance(delta, Reasoning):
            place = (delta.index,)
        elif isinstance(delta, CallArguments):
            place = (delta.index, delta.call)
        else:
            yield from self._marks(delta)
            return
        if self._logprobs is not None and (delta.text or delta.tokens):
            yield self._chunk(self._piece(delta))
        elif delta.text:
            yield self._text_chunk(delta, place)

    def _marks(self, delta: Delta) -> Iterable[Json]:
        """The chunks between the texts."""
        if isinstance(delta, CallStarted):
            yield self._chunk(self._piece(delta))
        elif isinstance(delta, Started):
            openings = (self.opening(index) for index in range(self._num_choices))
            yield from (self._chunk(choice) for choice in openings if choice is not None)
        elif isinstance(delta, Finished):
            choice = self.closing(delta.index)
            choice["finish_reason"] = self._finish_reasons[delta.reason]
            yield self._chunk(choice)
        elif isinstance(delta, Done) and self._include_usage:
            yield {**self._head, "choices": [], "usage": usage_body(delta.usage)}

    def finish(self) -> Iterable[Json | str]:
        return ("[DONE]",)

    def collect(self, deltas: Iterable[Delta]) -> Json:
        choices = [Choice() for _ in range(self._num_choices)]
        usage = Usage()
        for delta in deltas:
            if isinstance(delta, Piece):
                choice = choices[delta.index]
                choice.add(delta)
                if self._logprobs is not None:
                    choice.add_logprobs(self._logprobs(delta.tokens))
            elif isinstance(delta, Finished):
                choices[delta.index].reason = self._finish_reasons[delta.reason]
            elif isinstance(delta, Done):
                usage = delta.usage
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [
                {
                    **self.whole(index, choice),
                    "logprobs": choice.logprobs,
                    "finish_reason": choice.reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage_body(usage),
        }

    def _chunk(self, choice: Json) -> Json:
        return {**self._head, "choices": [choice]}

    def _piece(self, delta: Piece) -> Json:
        choice = self.piece(delta)
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs(delta.tokens)
        return choice

    def _text_chunk(self, delta: Text | Reasoning | CallArguments, place: Place) -> str:
        """A chunk as JSON. There is one for each token, and only the text differs."""
        if place not in self._frames:
            chunk = to_json(self._chunk(self.piece(replace(delta, text="text"))))
            before, _, after = chunk.rpartition('"text"')
            self._frames[place] = before, after
        before, after = self._frames[place]
        return f"{before}{to_json(delta.text)}{after}"


def usage_body(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def reply_model(request: GenerationRequest, pool: Pool) -> str:
    """The name the client sent, else that of the model that answers."""
    return request.model if request.model is not None else pool.current_model()
