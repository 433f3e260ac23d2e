"""LLM: one loaded model, text in and deltas out.

    request ── template, encode ──> EngineRequest ──> worker
    worker ── token outputs ──> detokenizer ──> stop strings ──> Delta

Everything here runs on the thread of whoever asks; the engine sees tokens only.
"""

from __future__ import annotations

import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_server.core import (
    AdapterScale,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from mlx_server.deltas import Delta, Done, Finished, Heartbeat, Lull, Progress, Started, Usage
from mlx_server.engine.limits import no_room
from mlx_server.engine.worker import Worker
from mlx_server.errors import ContextLengthExceeded, DeadlineExceeded, RequestError, ServerError
from mlx_server.exchange import EngineRequest, Origin, StepOutput, TokenOutput
from mlx_server.text.output import Choice
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_SEQUENCES = 4096
"""The most replies that one request may ask for, prompts times n."""

HEARTBEAT = 15.0
"""Seconds of silence after which a waiting client is told that it is not forgotten."""


@dataclass(frozen=True)
class LLM:
    """
    Args:
        name: The id it is listed under; also the engine's key in the worker.
        vocab_size: Width of the model's logits; token ids are below it.
        context_length: Tokens that fit, prompt and reply together.
        kv_tokens: The longest sequence that the memory for keys and values holds.
        defaults: Sampling settings of the command line and the model's
            generation_config.json, for fields a request leaves out.
    """

    name: str
    worker: Worker
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    kv_tokens: int
    defaults: Mapping[str, Any]

    def generate(
        self,
        request: GenerationRequest,
        adapters: tuple[AdapterScale, ...] = (),
    ) -> Generation:
        """Check and queue a request.

        Args:
            adapters: Sorted (adapter, scale) pairs for all of its sequences.

        Raises:
            RequestError: It is invalid or does not fit.
            Unavailable: The queue is full.
        """
        if len(request.prompts) * request.n > MAX_SEQUENCES:
            raise RequestError(
                f"The request asks for {len(request.prompts) * request.n} replies; "
                f"at most {MAX_SEQUENCES} are possible.",
                param="prompt" if len(request.prompts) > 1 else "n",
            )
        params = self._params(request)
        prompts = [self._encode(prompt) for prompt in request.prompts]
        requests = [
            EngineRequest(
                id=f"{request.id}/{i}",
                token_ids=tuple(ids),
                params=self._fit(params, ids, prompt),
                n=request.n,
                adapters=adapters,
                eos_token_ids=self.tokenizer.eos_token_ids,
            )
            for i, (ids, prompt) in enumerate(zip(prompts, request.prompts, strict=True))
        ]
        return Generation(self, request, requests)

    def _params(self, request: GenerationRequest) -> SamplingParams:
        options = {**request.defaults, **self.defaults, **request.options}
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(63)
        params = SamplingParams(**options)
        for token_id, _ in params.logit_bias:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"Token id {token_id} in logit_bias is not in the vocabulary "
                    f"(0 to {self.vocab_size - 1}).",
                    param="logit_bias",
                )
        return params

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = self.tokenizer.encode_prompt(prompt)
        if isinstance(prompt, TokenPrompt):
            wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
            if wrong is not None:
                raise RequestError(
                    f"Token id {wrong} in prompt is not in the vocabulary "
                    f"(0 to {self.vocab_size - 1}).",
                    param="prompt",
                )
        if not ids:
            raise RequestError(
                "The prompt is empty, and this model has no token to begin with.",
                param="prompt",
            )
        return ids

    def _fit(self, params: SamplingParams, ids: Sequence[int], prompt: Prompt) -> SamplingParams:
        """A larger max_tokens is cut where the context is full, and ends in "length"."""
        room = self.context_length - len(ids)
        param = "prompt" if isinstance(prompt, TextPrompt | TokenPrompt) else "messages"
        if room < (0 if params.max_tokens == 0 else 1):
            raise ContextLengthExceeded(len(ids), self.context_length, param=param)
        wanted = 0 if params.max_tokens == 0 else 1
        if len(ids) + wanted > self.kv_tokens < self.context_length:
            raise RequestError(no_room(len(ids), self.kv_tokens), param=param)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        return replace(params, max_tokens=limit)


class Outbox(queue.SimpleQueue[StepOutput]):
    """The steps' outputs for one request. `listener` is called behind each of them."""

    listener: Callable[[], None] | None = None

    def put(self, item: StepOutput) -> None:
        super().put(item)
        if self.listener is not None:
            self.listener()


class Generation:
    """A running request: iterate for its deltas; `cancel()` from any thread.

    Iterating raises the request's own ServerError where one ends it. It waits for
    the engine; after `listen()` it gives a Lull instead, and the listener tells
    when to go on.
    """

    def __init__(
        self,
        llm: LLM,
        request: GenerationRequest,
        requests: list[EngineRequest],
    ) -> None:
        self._llm = llm
        self._requests = requests
        self._closed = False
        self._outbox = Outbox()
        self._last_shown = 0.0
        timeout = request.timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._choices = {
            (r.id, i): Choice(p * request.n + i, r, llm.tokenizer, _echo_of(request, p, llm, r))
            for p, r in enumerate(requests)
            for i in range(request.n)
        }
        llm.worker.submit(llm.name, requests, self._outbox)

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called when there is more, from any thread; None: wait again."""
        self._outbox.listener = listener

    def patience(self) -> float:
        """Seconds until there is something to say though nothing comes."""
        until = self._last_shown + HEARTBEAT
        if self._deadline is not None:
            until = min(until, self._deadline)
        return until - time.monotonic()

    def cancel(self) -> None:
        """Stop generating and end the iteration; harmless when it has ended already."""
        if not self._closed:
            self._close()
            self._outbox.put(StepOutput(error=ServerError("The request was cancelled.")))

    def _close(self) -> None:
        self._closed = True
        for request in self._requests:
            self._llm.worker.abort(request.id)

    def __iter__(self) -> Iterator[Delta]:
        prompts = sum(len(request.token_ids) for request in self._requests)
        try:
            yield Started(Usage(prompt_tokens=prompts))
            left = len(self._choices)
            self._last_shown = time.monotonic()
            while left:
                step = self._next()
                if not isinstance(step, StepOutput):
                    yield step
                    continue
                if step.error is not None:
                    raise step.error
                for output in step.outputs:
                    for delta in self._feed(output):
                        left -= isinstance(delta, Finished)
                        if not isinstance(delta, Progress):  # most clients see nothing of it
                            self._last_shown = time.monotonic()
                        yield delta
            yield Done(self._usage())
        finally:
            if not self._closed:
                self._close()

    def _next(self) -> StepOutput | Heartbeat | Lull:
        """What comes next. Raises DeadlineExceeded."""
        wait = self.patience()
        if wait > 0:
            listening = self._outbox.listener is not None
            try:
                return self._outbox.get(block=not listening, timeout=wait)
            except queue.Empty:
                if listening:
                    return Lull()
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise DeadlineExceeded("The request ran out of the time it was given.")
        self._last_shown = now
        return Heartbeat()

    def _feed(self, output: TokenOutput) -> Iterator[Delta]:
        choice = self._choices[output.request_id, output.index]
        if output.origin is not None:
            self._log_origin(output, output.origin)
        if choice.finished:
            return
        yield from choice.feed(output)
        if choice.finished and output.finish_reason is None:
            # A stop string matched; the engine does not know yet.
            self._llm.worker.abort(output.request_id, output.index)

    def _log_origin(self, output: TokenOutput, origin: Origin) -> None:
        size = next(len(r.token_ids) for r in self._requests if r.id == output.request_id)
        story = f"{output.request_id}: {origin.known} of {size} prompt tokens are known"
        if origin.position is not None:
            there, here = (
                self._llm.tokenizer.decode(ids, skip_special_tokens=False)
                for ids in (origin.there, origin.here)
            )
            story += (
                f"; the nearest earlier conversation differs from token {origin.position} on: "
                f"{there!r} there, {here!r} here"
            )
        log.debug("%s", story)

    def _usage(self) -> Usage:
        """Each prompt counts once, however many replies it got."""
        total = Usage()
        for (_, copy), choice in self._choices.items():
            usage = choice.usage
            if copy > 0:
                usage = replace(usage, prompt_tokens=0, cached_tokens=0)
            total += usage
        return total


def _echo_of(
    request: GenerationRequest, place: int, llm: LLM, engine_request: EngineRequest
) -> str | None:
    """The prompt's text, where the client wants it back."""
    if not request.echo:
        return None
    prompt = request.prompts[place]
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return llm.tokenizer.decode(engine_request.token_ids, skip_special_tokens=True)
