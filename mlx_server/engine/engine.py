"""Engine: sequences in, tokens out, a step at a time. No threads, no text."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import count

import numpy as np

from mlx_server.cache.prefix import PrefixCache
from mlx_server.core import FinishReason
from mlx_server.engine.limits import Limits, bound, check_slot, most_tokens, no_room
from mlx_server.engine.recorder import Counters, Recorder
from mlx_server.engine.reports import counts, figures, report
from mlx_server.engine.runner import Flight, Landed, Runner
from mlx_server.engine.scheduler import Scheduled, Scheduler
from mlx_server.engine.sequence import Sequence, Status
from mlx_server.engine.slots import Slots
from mlx_server.engine.trace import Trace
from mlx_server.errors import RequestError, ServerError
from mlx_server.exchange import (
    Candidates,
    EngineRequest,
    GuideError,
    SlotState,
    StepOutput,
    TokenOutput,
)
from mlx_server.models.base import ServedModel

log = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Failed steps after which a sequence runs alone to its end."""

Outputs = dict[str, StepOutput]
"""What a step did, per request."""


class Engine:
    """Runs one model's sequences in one batch. On one thread; `stats` and `counts` from any.

    Args:
        model: With its cache, which is this engine's alone from here on.
        limits: What it may use.

    Attributes:
        max_tokens: The longest sequence that context and memory budget allow.
        trace: What happened lately; None: it is not written down.

    `step()` is pipelined: the next forward pass is built, and on a GPU on its way, before
    the tokens of the one before are read, so the device never waits for the host. A row
    that turns out to have ended is in one pass too many; that pass's token is dropped.
    Where a row's token hangs on all before it (a guide, a sampler with a memory), the next
    pass runs while the last tokens are read and what may follow them is found out; only then
    are its own tokens chosen.
    """

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model = model
        kv_bytes = limits.kv_bytes(model)
        if kv_bytes is not None:
            model.cache.max_bytes = kv_bytes
        self.trace = Trace() if limits.trace else None
        self.recorder = Recorder(self.trace)
        self.prefixes = PrefixCache(
            model.cache, bound(limits.prompt_cache_bytes), bound(limits.prompt_cache_size)
        )
        self.scheduler = Scheduler(
            model.cache,
            self.prefixes,
            max_batch_size=limits.max_batch_size,
            prefill_chunk_size=limits.prefill_chunk_size,
            prompt_concurrency=limits.prompt_concurrency,
            cont_batching=limits.cont_batching,
            slot_similarity=limits.slot_similarity,
            observe=self.recorder.moved,
        )
        self.runner = Runner(model)
        self.max_tokens = most_tokens(model, limits.longest(model.context_length))
        self._flight: Flight | None = None
        self._requests: dict[str, list[Sequence]] = {}
        self._arrivals = count()

    # ------------------------------------------------------------ commands

    def add(self, request: EngineRequest) -> None:
        """Queue a request. What neither context nor memory can hold of its `max_tokens` is cut,
        unless its oldest tokens make room (`n_keep`).

        Raises:
            RequestError: Not even its prompt and one token fit, or there is no such slot.
        """
        params, size = request.params, len(request.token_ids)
        if size + min(1, params.max_tokens) > self.max_tokens:
            raise RequestError(no_room(size, self.max_tokens))
        if request.slot is not None:
            check_slot(request.slot, len(self.slots))
        context = None if params.n_keep is None else self.max_tokens
        if context is None:
            params = replace(params, max_tokens=min(params.max_tokens, self.max_tokens - size))
        if params.probs is not None and params.logprobs is None:
            params = replace(params, logprobs=0)  # the token's own comes with them
        request = replace(request, params=params)
        prompt = np.array(request.token_ids, dtype=np.int32)
        sequences = [
            Sequence(request, i, next(self._arrivals), prompt, context) for i in range(request.n)
        ]
        self._requests[request.id] = sequences
        for sequence in sequences:
            self.recorder.added(sequence)
            self.scheduler.add(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its sequences, at once; unknown ids are ignored."""
        for sequence in list(self._requests.get(request_id, ())):
            if index is None or sequence.index == index:
                self._finish(sequence, "abort")

    def holds(self, request_id: str) -> bool:
        """Whether any of the request's sequences is still to end."""
        return request_id in self._requests

    def drop_all(self) -> list[str]:
        """Give up every request and start afresh; returns their ids."""
        ids = list(self._requests)
        for sequence in self.scheduler:
            self.recorder.finished(sequence, "error")
        self.scheduler.clear()
        self.prefixes.clear()
        self._requests.clear()
        self._flight = None
        return ids

    @property
    def busy(self) -> bool:
        """Whether there is anything to step for: sequences, or a pass on its way."""
        return self.scheduler.busy or self._flight is not None

    @property
    def num_free(self) -> int:
        """Places that no sequence has."""
        return max(0, self.scheduler.max_batch_size - self.num_running)

    @property
    def num_running(self) -> int:
        """Sequences that have a place."""
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self.scheduler.waiting)

    @property
    def counters(self) -> Counters:
        """What it has done since it was made."""
        return self.recorder.counters

    @property
    def num_steps(self) -> int:
        """Passes of the model that it has built."""
        return self.counters.steps

    @property
    def slots(self) -> Slots:
        """Where sequences run, and who ran there last; on the engine thread."""
        return self.scheduler.slots

    def slot_states(self) -> list[SlotState]:
        """What they hold just now; on the engine thread."""
        return [slot.state() for slot in self.slots]

    def stats(self) -> dict[str, float]:
        """What it has done, and what it holds just now; from any thread.

        Bytes and tokens of keys and values count what running sequences hold and what is
        kept for others; a budget of 0 is none.
        """
        return self.counts() | figures(self.scheduler)

    def counts(self) -> dict[str, float]:
        """What of it never gets less; from any thread."""
        return asdict(self.counters) | counts(self.scheduler)

    # ------------------------------------------------------------ one step

    def step(self) -> Outputs:
        """Schedule → run → postprocess."""
        began = time.monotonic()
        self.launch()
        previous, self._flight = self._flight, None
        rows: list[Scheduled] = []
        failed: Exception | None = None
        try:
            rows = self.scheduler.schedule()
            if rows:
                self._flight = self.runner.build(rows, previous)
                if self.runner.overlaps:
                    self.runner.launch(self._flight)
                self.recorder.built(self._flight, rows, began)
                self._leave_checkpoints(rows)
        except Exception as error:
            failed = error
        outputs = self._land(previous) if previous else {}
        if failed is None and self._flight is not None and self._flight.logits is not None:
            failed = self._choose(self._flight, outputs)
        if failed is not None:
            involved = [row.sequence for row in rows] or self.scheduler.next_up()
            self._recover(involved, failed, outputs)
        return outputs

    def launch(self) -> None:
        """Start the pass that the last step built, where that takes the time of the pass:
        whoever waits for the step's outputs should have them before. The next step does it
        otherwise."""
        if self._flight is not None and not self._flight.launched:
            try:
                self.runner.launch(self._flight)
            except Exception as error:
                self._flight.error = error

    def _leave_checkpoints(self, rows: list[Scheduled]) -> None:
        for row in rows:
            if row.end in row.sequence.checkpoints:
                self.scheduler.seating.leave_checkpoint(row.sequence, row.end)

    def _land(self, flight: Flight) -> Outputs:
        try:
            if flight.error is not None:
                raise flight.error
            landed = self.runner.read(flight)
        except Exception as error:
            # Whatever was computed lately may be broken, entries included.
            self.prefixes.clear()
            outputs: Outputs = {}
            self._recover([row.sequence for row in flight.rows], error, outputs)
            return outputs
        self.recorder.landed(flight)
        found: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        given_up: Outputs = {}
        for result in landed:
            # Ended or aborted after this pass was submitted.
            sequence = result.row.sequence
            if sequence.status is not Status.FINISHED:
                try:
                    found[sequence.request.id].append(self._postprocess(result))
                except GuideError as error:
                    given_up |= self._give_up(sequence, error)
        return {key: StepOutput(tuple(outputs)) for key, outputs in found.items()} | given_up

    def _postprocess(self, result: Landed) -> TokenOutput:
        row, sequence = result.row, result.row.sequence
        suspects = self.scheduler.suspects
        # What keeps failing in company has to stay alone.
        if sequence in suspects and sequence.num_failures <= MAX_FAILURES:
            suspects.remove(sequence)
        sequence.num_prompt_logprobs += len(result.prompt_logprobs)
        done = min(row.end, sequence.num_prompt_tokens)
        sequence.num_prompt_done = max(sequence.num_prompt_done, done)
        token_id, reason = result.token_id, None
        if token_id is not None:
            reason = sequence.append(token_id)
        elif sequence.request.params.max_tokens == 0 and row.end == sequence.num_prompt_tokens:
            reason = "length"
        return self._told(
            sequence,
            () if token_id is None else (token_id,),
            reason,
            () if result.candidates is None else (result.candidates,),
            result.prompt_logprobs,
        )

    def _told(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        reason: FinishReason | None,
        logprobs: tuple[Candidates, ...] = (),
        prompt_logprobs: tuple[Candidates, ...] = (),
    ) -> TokenOutput:
        """What is told of a sequence that got tokens, and ends if there is a reason."""
        if reason is not None:
            self._finish(sequence, reason)
        return report(sequence, token_ids, reason, logprobs, prompt_logprobs)

    # ------------------------------------------------------------ tokens that hang on the last

    def _choose(self, flight: Flight, outputs: Outputs) -> Exception | None:
        """Choose the tokens of a pass that has to wait for those before, now that they are known.
        Returns what failed."""
        allowed: dict[Sequence, np.ndarray | None] = {}
        try:
            for sequence in flight.sampling:
                if sequence.status is Status.FINISHED:
                    continue
                try:
                    extended = self._extend(sequence)
                    if extended is None:
                        guide = sequence.guide
                        allowed[sequence] = None if guide is None else guide.allowed()
                        continue
                except GuideError as error:
                    outputs |= self._give_up(sequence, error)
                    continue
                earlier = outputs.get(sequence.request.id, StepOutput())
                joined = (*earlier.outputs, extended)
                outputs[sequence.request.id] = replace(earlier, outputs=joined)
            # Giving up ends the other sequences of a request, too.
            left = {s: words for s, words in allowed.items() if s.status is not Status.FINISHED}
            self.runner.choose(flight, left)
            if self.runner.overlaps:
                self.runner.launch(flight)
        except Exception as error:
            return error
        return None

    def _extend(self, sequence: Sequence) -> TokenOutput | None:
        """Give a guided row the tokens that its guide leaves no choice about.

        They are computed like a prompt's, all in one pass. None: there are none, and
        its next one is to be sampled.
        """
        guide, params = sequence.guide, sequence.request.params
        # Probabilities come from sampling, so there it goes token by token; whoever asks for
        # those behind the samplers gets log-probabilities as well (`add`).
        if guide is None or (params.logprobs, params.prompt_logprobs) != (None, None):
            return None
        token_ids, reason = sequence.extend(guide.forced())
        if not token_ids:
            return None
        self.counters.forced_tokens += len(token_ids)
        self.counters.generated_tokens += len(token_ids) - 1  # one was counted as sampled
        return self._told(sequence, tuple(token_ids), reason)

    def _give_up(self, sequence: Sequence, error: GuideError) -> Outputs:
        """End a request whose guide failed; it is nobody else's matter."""
        request_id = sequence.request.id
        log.warning("request %s cannot be guided any further: %s", request_id, error)
        self.abort(request_id)
        return {request_id: StepOutput(error=ServerError(str(error)))}

    def _finish(self, sequence: Sequence, reason: FinishReason, *, keep: bool = True) -> None:
        self.recorder.finished(sequence, reason)
        self.scheduler.finish(sequence, reason, keep=keep)
        siblings = self._requests[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request.id]

    # ------------------------------------------------------------ failures

    def _recover(self, rows: list[Sequence], error: Exception, outputs: Outputs) -> None:
        """Nobody but the culprit is lost: all rows start over, the failed ones one by one.

        The failed pass may have left broken lazy arrays in the cache, so every
        running row gives up its seat and is computed again from its tokens.
        """
        live = [sequence for sequence in rows if sequence.status is not Status.FINISHED]
        # A pass submitted meanwhile builds on the failed one.
        self._flight = None
        for sequence in self.scheduler:
            sequence.num_pending = 0
            sequence.follows = None
        for sequence in list(self.scheduler.running):
            self.scheduler.preempt(sequence)
        for sequence in self.scheduler.waiting:  # one may have failed on its way to a seat
            self.scheduler.seating.leave(sequence, keep=False)
        alone = len(live) == len(rows) == 1
        culprit = live[0] if alone and live[0] in self.scheduler.suspects else None
        if culprit is None:
            log.warning("a step of %d rows failed, trying them one by one: %s", len(rows), error)
            for sequence in live:
                sequence.num_failures += 1
            fresh = [s for s in live if s not in self.scheduler.suspects]
            self.scheduler.suspects += fresh
            return
        log.error("request %s failed", culprit.request.id, exc_info=error)
        for sequence in self.scheduler:
            sequence.num_failures = 0  # they were the culprit's
        for sequence in list(self._requests.get(culprit.request.id, ())):
            self._finish(sequence, "error", keep=False)
        outputs[culprit.request.id] = StepOutput(
            error=ServerError(f"The model failed on this request: {error}")
        )
