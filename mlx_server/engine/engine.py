"""Engine: sequences in, tokens out, a step at a time. No threads, no text."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import count

import numpy as np

from mlx_server.cache.prefix import PrefixCache
from mlx_server.core import FinishReason
from mlx_server.engine.limits import Counters, Limits, bound, most_tokens, no_room
from mlx_server.engine.runner import Flight, Landed, Runner
from mlx_server.engine.scheduler import Scheduled, Scheduler
from mlx_server.engine.sequence import Sequence, Status
from mlx_server.errors import RequestError, ServerError
from mlx_server.exchange import EngineRequest, GuideError, StepOutput, TokenOutput
from mlx_server.models.base import ServedModel

log = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Failed steps after which a sequence runs alone to its end."""

Outputs = dict[str, StepOutput]
"""What a step did, per request."""


class Engine:
    """Runs one model's sequences in one batch.

    Attributes:
        max_tokens: The longest sequence that context and memory budget allow.

    `step()` is pipelined: the next forward pass is built, and on a GPU on its way, before
    the tokens of the one before are read, so the device never waits for the host. A row
    that turns out to have ended is in one pass too many; that pass's token is dropped.
    Where a row has a guide, the next pass runs while the last tokens are read and what may
    follow them is found out; only then are its own tokens chosen.
    """

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model = model
        if limits.max_kv_bytes is not None:
            model.cache.max_bytes = limits.max_kv_bytes
        self.prefixes = PrefixCache(
            model.cache, bound(limits.prompt_cache_bytes), bound(limits.prompt_cache_size)
        )
        self.scheduler = Scheduler(
            model.cache,
            self.prefixes,
            max_batch_size=limits.max_batch_size,
            prefill_chunk_size=limits.prefill_chunk_size,
        )
        self.runner = Runner(model)
        self.max_tokens = most_tokens(model)
        self.counters = Counters()
        self._flight: Flight | None = None
        self._requests: dict[str, list[Sequence]] = {}
        self._arrivals = count()

    # ------------------------------------------------------------ commands

    def add(self, request: EngineRequest) -> None:
        """Queue a request. What the memory budget cannot hold of its `max_tokens` is cut.

        Raises:
            RequestError: Not even its prompt and one token fit the budget.
        """
        if len(request.token_ids) + min(1, request.params.max_tokens) > self.max_tokens:
            raise RequestError(no_room(len(request.token_ids), self.max_tokens))
        room = self.max_tokens - len(request.token_ids)
        if request.params.max_tokens > room:
            request = replace(request, params=replace(request.params, max_tokens=room))
        prompt = np.array(request.token_ids, dtype=np.int32)
        sequences = [Sequence(request, i, next(self._arrivals), prompt) for i in range(request.n)]
        self._requests[request.id] = sequences
        for sequence in sequences:
            self.scheduler.add(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its sequences, at once; unknown ids are ignored."""
        for sequence in list(self._requests.get(request_id, ())):
            if index is None or sequence.index == index:
                self._finish(sequence)

    def holds(self, request_id: str) -> bool:
        """Whether any of the request's sequences is still to end."""
        return request_id in self._requests

    def drop_all(self) -> list[str]:
        """Give up every request and start afresh; returns their ids."""
        ids = list(self._requests)
        self.scheduler.clear()
        self.prefixes.clear()
        self._requests.clear()
        self._flight = None
        return ids

    @property
    def busy(self) -> bool:
        return self.scheduler.busy or self._flight is not None

    @property
    def num_free(self) -> int:
        """Places that no sequence has."""
        return max(0, self.scheduler.max_batch_size - self.num_running)

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def num_steps(self) -> int:
        return self.counters.steps

    def stats(self) -> dict[str, int]:
        """What it has done, and what it holds just now; from any thread."""
        return asdict(self.counters) | {
            "prompt_tokens_cached": self.scheduler.seating.num_cached_tokens,
            "prefix_hits": self.scheduler.seating.num_hits,
            "prefix_misses": self.scheduler.seating.num_misses,
            "preemptions": self.scheduler.num_preemptions,
            "running": self.num_running,
            "waiting": self.num_waiting,
            "prefix_entries": len(self.prefixes),
            "prefix_bytes": self.prefixes.nbytes,
            "prefix_evictions": self.prefixes.num_evicted,
            "kv_bytes": self.model.cache.nbytes,
        }

    # ------------------------------------------------------------ one step

    def step(self) -> Outputs:
        """Schedule → run → postprocess."""
        self.launch()
        previous, self._flight = self._flight, None
        rows: list[Scheduled] = []
        failed: Exception | None = None
        try:
            rows = self.scheduler.schedule()
            if rows:
                starts = [row.sequence.num_computed for row in rows]
                self._flight = self.runner.build(rows, previous)
                if self.runner.overlaps:
                    self.runner.launch(self._flight)
                self._count(rows, starts)
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

    def _count(self, rows: list[Scheduled], starts: list[int]) -> None:
        counters = self.counters
        counters.steps += 1
        for row, start in zip(rows, starts, strict=True):
            prompt = row.sequence.num_prompt_tokens
            counters.prompt_tokens_computed += max(0, min(row.end, prompt) - start)
            counters.generated_tokens += row.samples

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
        request, token_id = sequence.request, result.token_id
        reason: FinishReason | None = None
        if token_id is not None:
            reason = sequence.append(token_id)
        elif request.params.max_tokens == 0 and row.end == sequence.num_prompt_tokens:
            reason = "length"
        if reason is not None:
            self._finish(sequence)
        origin, sequence.origin = sequence.origin, None
        return TokenOutput(
            request_id=request.id,
            index=sequence.index,
            token_ids=() if token_id is None else (token_id,),
            logprobs=() if result.candidates is None else (result.candidates,),
            prompt_logprobs=result.prompt_logprobs,
            prompt_tokens_done=sequence.num_prompt_done,
            cached_tokens=sequence.num_cached_tokens,
            finish_reason=reason,
            origin=origin,
        )

    # ------------------------------------------------------------ guided rows

    def _choose(self, flight: Flight, outputs: Outputs) -> Exception | None:
        """Choose the tokens of a pass with guided rows, now that the ones before are known.
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
        # Log-probabilities come from sampling, so there it goes token by token.
        if guide is None or params.logprobs is not None or params.prompt_logprobs is not None:
            return None
        token_ids, reason = sequence.extend(guide.forced())
        if not token_ids:
            return None
        self.counters.forced_tokens += len(token_ids)
        self.counters.generated_tokens += len(token_ids) - 1  # one was counted as sampled
        if reason is not None:
            self._finish(sequence)
        return TokenOutput(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=tuple(token_ids),
            prompt_tokens_done=sequence.num_prompt_done,
            cached_tokens=sequence.num_cached_tokens,
            finish_reason=reason,
        )

    def _give_up(self, sequence: Sequence, error: GuideError) -> Outputs:
        """End a request whose guide failed; it is nobody else's matter."""
        request_id = sequence.request.id
        log.warning("request %s cannot be guided any further: %s", request_id, error)
        self.abort(request_id)
        return {request_id: StepOutput(error=ServerError(str(error)))}

    def _finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        self.scheduler.finish(sequence, keep=keep)
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
            self._finish(sequence, keep=False)
        outputs[culprit.request.id] = StepOutput(
            error=ServerError(f"The model failed on this request: {error}")
        )
