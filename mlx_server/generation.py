"""A running request: the engine's steps come in, deltas go out.

    worker ── token outputs ──> detokenizer ──> parser ──> stop strings ──> Delta

Everything here runs on the thread of whoever iterates.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from mlx_server.core import GenerationRequest, TextPrompt
from mlx_server.deltas import (
    Delta,
    Done,
    Finished,
    Heartbeat,
    Lull,
    Progress,
    Started,
    Timings,
    Usage,
)
from mlx_server.engine.worker import Worker
from mlx_server.errors import DeadlineExceeded, ServerError
from mlx_server.exchange import EngineRequest, Origin, StepOutput, TokenOutput
from mlx_server.replies import ReplyForm
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import Served
from mlx_server.text.output import Choice
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

HEARTBEAT = 15.0
"""Seconds of silence after which a waiting client is told that it is not forgotten."""


class Outbox(queue.SimpleQueue[StepOutput]):
    """The steps' outputs for one request. `listener` is called behind each of them."""

    listener: Callable[[], None] | None = None

    def put(self, item: StepOutput, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        if self.listener is not None:
            self.listener()


class Generation:
    """A running request: iterate for its deltas; `cancel()` from any thread.

    Iterating raises the request's own ServerError where one ends it. It waits for
    the engine; after `listen()` it gives a Lull instead, and the listener tells
    when to go on.

    Args:
        observe: Is told of every choice that ends.

    Attributes:
        model: The id of the model that answers.
        params: How its tokens are chosen, everything resolved.
        served: The model that answers; it may be gone before the reply has been read.
    """

    def __init__(
        self,
        model: str,
        worker: Worker,
        tokenizer: Tokenizer,
        request: GenerationRequest,
        requests: list[EngineRequest],
        forms: list[ReplyForm],
        served: Served,
        observe: Callable[[Finished], None] = lambda finished: None,
    ) -> None:
        self.model = model
        self.params: SamplingParams | None = requests[0].params
        self.served: Served | None = served
        self._observe = observe
        self._worker = worker
        self._tokenizer = tokenizer
        self._requests = requests
        self._closed = False
        self._outbox = Outbox()
        self._last_shown = 0.0
        timeout = request.timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._choices = {
            (r.id, i): Choice(
                p * request.n + i,
                r,
                tokenizer,
                _echo_of(request, p, tokenizer, r),
                form.parser(),
                form.shown,
                ids=request.return_tokens,
                timings=request.return_timings,
            )
            for p, (r, form) in enumerate(zip(requests, forms, strict=True))
            for i in range(request.n)
        }
        worker.submit(model, requests, self._outbox)

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
            self._worker.abort(request.id)

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
            yield Done(self.usage)
        finally:
            if not self._closed:
                self._close()
            self._count_cut()

    def _count_cut(self) -> None:
        """Replies that somebody broke off are told of as well."""
        for choice in self._choices.values():
            if choice.begun and not choice.finished:
                self._observe(choice.cut())

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
        for delta in choice.feed(output):
            if isinstance(delta, Finished):
                self._observe(delta)
            yield delta
        if choice.finished and output.finish_reason is None:
            # A stop string matched; the engine does not know yet.
            self._worker.abort(output.request_id, output.index)

    def _log_origin(self, output: TokenOutput, origin: Origin) -> None:
        size = next(len(r.token_ids) for r in self._requests if r.id == output.request_id)
        story = f"{output.request_id}: {origin.known} of {size} prompt tokens are known"
        if origin.position is not None:
            there, here = (
                self._tokenizer.decode(ids, skip_special_tokens=False)
                for ids in (origin.there, origin.here)
            )
            story += (
                f"; the nearest earlier conversation differs from token {origin.position} on: "
                f"{there!r} there, {here!r} here"
            )
        log.debug("%s", story)

    @property
    def usage(self) -> Usage:
        """What it has used so far; each prompt counts once, however many replies it gets."""
        total = Usage()
        for (_, copy), choice in self._choices.items():
            usage = choice.usage
            if copy > 0:
                usage = replace(usage, prompt_tokens=0, cached_tokens=0)
            total += usage
        return total

    @property
    def timings(self) -> tuple[Timings, ...]:
        """Of each of its replies so far."""
        return tuple(choice.timings for choice in self._choices.values())


def _echo_of(
    request: GenerationRequest, place: int, tokenizer: Tokenizer, engine_request: EngineRequest
) -> str | None:
    """The prompt's text, where the client wants it back."""
    if not request.echo:
        return None
    prompt = request.prompts[place]
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return tokenizer.decode(engine_request.token_ids, skip_special_tokens=True)
