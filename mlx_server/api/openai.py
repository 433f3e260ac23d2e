"""What the OpenAI routes share: the error form, and a reply as chunks or as their fold.

Wire forms: https://platform.openai.com/docs/api-reference (chat, completions).
"""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlx_server import __version__
from mlx_server.api.base import Dialect, Formatter, Json, Pool, to_json
from mlx_server.core import GenerationRequest
from mlx_server.deltas import Delta, Done, Finished, Started, Text, Usage
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
    """

    include_usage: bool = False
    logprobs: str | None = None


@dataclass(slots=True)
class Choice:
    """One choice of a whole reply while its deltas are folded."""

    texts: list[str] = field(default_factory=list)
    logprobs: Logprobs | None = None
    reason: str = FINISH_REASONS["abort"]

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
        self._frames: dict[int, tuple[str, str]] = {}
        self._head = {
            "id": request.id,
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }

    @abstractmethod
    def logprobs_renderer(self, form: str | None) -> Callable[[Text], Logprobs] | None:
        """What turns a piece's tokens into lists that can be joined; None without any."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """A choice of the first chunk, if the form has one."""

    @abstractmethod
    def piece(self, index: int, text: str) -> Json:
        """A choice of a chunk that carries text; "" for the one that ends the choice."""

    @abstractmethod
    def whole(self, index: int, text: str) -> Json:
        """A choice of a whole reply."""

    def delta(self, delta: Delta) -> Iterable[Json | str]:
        if isinstance(delta, Text):
            if self._logprobs is not None and (delta.text or delta.tokens):
                choice = self.piece(delta.index, delta.text)
                choice["logprobs"] = self._logprobs(delta)
                yield self._chunk(choice)
            elif delta.text:
                yield self._text_chunk(delta.index, delta.text)
        elif isinstance(delta, Started):
            openings = (self.opening(index) for index in range(self._num_choices))
            yield from (self._chunk(choice) for choice in openings if choice is not None)
        elif isinstance(delta, Finished):
            choice = self.piece(delta.index, "")
            choice["finish_reason"] = FINISH_REASONS[delta.reason]
            yield self._chunk(choice)
        elif isinstance(delta, Done) and self._include_usage:
            yield {**self._head, "choices": [], "usage": usage_body(delta.usage)}

    def finish(self) -> Iterable[Json | str]:
        return ("[DONE]",)

    def collect(self, deltas: Iterable[Delta]) -> Json:
        choices = [Choice() for _ in range(self._num_choices)]
        usage = Usage()
        for delta in deltas:
            if isinstance(delta, Text):
                choice = choices[delta.index]
                choice.texts.append(delta.text)
                if self._logprobs is not None:
                    choice.add_logprobs(self._logprobs(delta))
            elif isinstance(delta, Finished):
                choices[delta.index].reason = FINISH_REASONS[delta.reason]
            elif isinstance(delta, Done):
                usage = delta.usage
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [
                {
                    **self.whole(index, "".join(choice.texts)),
                    "logprobs": choice.logprobs,
                    "finish_reason": choice.reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage_body(usage),
        }

    def _chunk(self, choice: Json) -> Json:
        return {**self._head, "choices": [choice]}

    def _text_chunk(self, index: int, text: str) -> str:
        """A chunk as JSON. There is one for each token, and only the text differs."""
        if index not in self._frames:
            chunk = to_json(self._chunk(self.piece(index, "text")))
            before, _, after = chunk.rpartition('"text"')
            self._frames[index] = before, after
        before, after = self._frames[index]
        return f"{before}{to_json(text)}{after}"


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
