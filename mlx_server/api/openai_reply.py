"""A reply in OpenAI's form: as chunks, or as their fold.

Wire forms: https://platform.openai.com/docs/api-reference (chat, completions). Where a client
asks for it, or has to look for it anyway, there is what llama-server adds: `timings`,
`prompt_progress`, `__verbose`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_server import __version__
from mlx_server.api.base import Json, to_json
from mlx_server.api.llama_limits import Watching
from mlx_server.api.llama_options import LlamaView
from mlx_server.api.llama_reply import (
    LlamaFormatter,
    progress_body,
    timings_body,
    token_body,
)
from mlx_server.core import GenerationRequest
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Done,
    Finished,
    Progress,
    Reasoning,
    Started,
    Text,
    Timings,
    TokenLogprob,
    Usage,
)

SYSTEM_FINGERPRINT = f"fp_mlx_server-{__version__}"

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

Logprobs = dict[str, list[Any]]
LogprobsRenderer = Callable[[tuple[TokenLogprob, ...]], Logprobs]

Piece = Text | Reasoning | CallStarted | CallArguments
"""The deltas of which a reply consists."""

Place = int | tuple[int, ...]
"""What tells a choice's text, its reasoning and each of its calls apart."""


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """What a formatter must remember of the body.

    Args:
        include_usage: End a stream with a chunk that carries the usage.
        logprobs: "openai", "mlx_lm", "legacy" or "llama"; None where none were asked for.
        legacy_calls: The call is a `function_call`, as clients of `functions` expect.
        view: What llama.cpp's options ask of the reply.
        verbose: Give llama.cpp's body of the reply beside it.
    """

    include_usage: bool = False
    logprobs: str | None = None
    legacy_calls: bool = False
    view: LlamaView = field(default_factory=LlamaView)
    verbose: bool = False


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
    ids: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None
    timings: Timings = field(default_factory=Timings)
    reason: str = FINISH_REASONS["abort"]

    def add(self, delta: Piece) -> None:
        if isinstance(delta, Text):
            self.texts.append(delta.text)
            self.ids += delta.ids
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


class OpenAIFormatter(Watching):
    """One reply. A subclass says how a choice looks; the rest is the same everywhere.

    Args:
        request: The request; its `format` is a `ReplyFormat`.
        model: The name the reply carries.
        max_tokens: The command line's.
    """

    whole_object: str
    chunk_object: str

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        max_tokens: int | None = None,
    ) -> None:
        self._num_choices = len(request.prompts) * request.n
        self._include_usage = request.format.include_usage
        self._logprobs = self._renderer(request.format.logprobs)
        self._view = view = request.format.view
        self._verbose: LlamaFormatter | None = None
        if request.format.verbose:
            self._verbose = LlamaFormatter(request, view, max_tokens)
        self._detailed = (
            self._logprobs is not None or self._verbose is not None or view.timings or view.tokens
        )
        self._timings = Timings()
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

    def _renderer(self, form: str | None) -> LogprobsRenderer | None:
        return self._llama_logprobs if form == "llama" else self.logprobs_renderer(form)

    def _llama_logprobs(self, tokens: tuple[TokenLogprob, ...]) -> Logprobs:
        """Those of `n_probs`, as llama-server has them in a choice."""
        greedy = self.params is not None and self.params.temperature <= 0
        return {"content": [token_body(token, self._view, greedy) for token in tokens]}

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
        if self._detailed:
            if delta.text or delta.tokens or (isinstance(delta, Text) and delta.ids):
                yield self._detailed_chunk(delta)
        elif delta.text:
            yield self._text_chunk(delta, place)

    def _marks(self, delta: Delta) -> Iterable[Json]:
        """The chunks between the texts."""
        if isinstance(delta, CallStarted):
            yield self._chunk(self._piece(delta))
        elif isinstance(delta, Started):
            self._start(delta)
            openings = (self.opening(index) for index in range(self._num_choices))
            yield from (self._chunk(choice) for choice in openings if choice is not None)
        elif isinstance(delta, Progress) and self._view.progress:
            yield {**self._chunk(self.closing(delta.index)), **progress_body(delta)}
        elif isinstance(delta, Finished):
            yield self._end(delta)
        elif isinstance(delta, Done) and self._include_usage:
            usage, timings = usage_body(delta.usage), timings_body(self._timings)
            yield {**self._head, "choices": [], "usage": usage, "timings": timings}

    def _start(self, delta: Started) -> None:
        if self._verbose is not None:
            self._verbose.generation = self.generation
            self._verbose.start(delta)

    def _end(self, delta: Finished) -> Json:
        choice = self.closing(delta.index)
        choice["finish_reason"] = self._finish_reasons[delta.reason]
        chunk = self._chunk(choice)
        if delta.index == 0:
            self._timings = delta.timings
        if not self._include_usage:  # else they are in the last chunk
            chunk["timings"] = timings_body(delta.timings)
        if self._verbose is not None:
            chunk["__verbose"] = self._verbose.last(delta)
        return chunk

    def _detailed_chunk(self, delta: Text | Reasoning | CallArguments) -> Json:
        choice = self._piece(delta)
        chunk = self._chunk(choice)
        if isinstance(delta, Text):
            if self._view.tokens:
                choice["tokens"] = list(delta.ids)
            if self._view.timings and delta.timings is not None:
                chunk["timings"] = timings_body(delta.timings)
            if self._verbose is not None:
                chunk["__verbose"] = self._verbose.piece(delta)
        return chunk

    def finish(self) -> Iterable[Json | str]:
        return ("[DONE]",)

    def collect(self, deltas: Iterable[Delta]) -> Json:
        choices = [Choice() for _ in range(self._num_choices)]
        usage = Usage()
        more: Json = {}
        for delta in deltas:
            if isinstance(delta, Piece):
                self._add(choices[delta.index], delta)
            elif isinstance(delta, Started):
                self._start(delta)
            elif isinstance(delta, Finished):
                choice = choices[delta.index]
                choice.reason = self._finish_reasons[delta.reason]
                choice.timings = delta.timings
                if self._verbose is not None and delta.index == 0:
                    more["__verbose"] = self._verbose.last(delta, whole=True)
            elif isinstance(delta, Done):
                usage = delta.usage
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [self._whole(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_body(usage),
            "timings": timings_body(choices[0].timings),
            **more,
        }

    def _add(self, choice: Choice, delta: Piece) -> None:
        choice.add(delta)
        if self._logprobs is not None:
            choice.add_logprobs(self._logprobs(delta.tokens))
        if self._verbose is not None and isinstance(delta, Text):
            self._verbose.take(delta)

    def _whole(self, index: int, choice: Choice) -> Json:
        body = self.whole(index, choice)
        if self._view.tokens:
            body["tokens"] = choice.ids
        return {**body, "logprobs": choice.logprobs, "finish_reason": choice.reason}

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


def finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)
