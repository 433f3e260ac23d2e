"""Runner: a batch of rows → logits → tokens, submitted to the device without waiting for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_server.engine.scheduler import Scheduled
from mlx_server.engine.sequence import Sequence
from mlx_server.exchange import Candidates
from mlx_server.models.base import Row, ServedModel
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling.sampler import Sampled, position_logprobs, sample

Note = tuple[str, int, dict[str, Any]]
"""What a pass does for a row: its name, the trace's thread, and what there is to say."""


@dataclass(slots=True)
class PromptLogprobs:
    """Log-probabilities of a chunk's prompt tokens, still on the device.

    Attributes:
        first: The prompt's first token is among them.
        found: float32 [P], int32 [P, T], float32 [P, T] as of `position_logprobs`;
            None where a prompt has no second token.
    """

    first: bool
    found: tuple[mx.array, mx.array, mx.array] | None

    def arrays(self) -> list[mx.array]:
        """What the engine evaluates with the step."""
        return list(self.found or ())

    def read(self) -> tuple[Candidates, ...]:
        """The entries on the host; waits for the device if they are not there yet."""
        # Nothing predicts the first token of a prompt.
        start = (Candidates(None),) if self.first else ()
        return start + (_candidates(*self.found) if self.found else ())


@dataclass(slots=True)
class Flight:
    """A step on its way.

    Attributes:
        sampling: The sequences that get a token, in the order of `sampled.tokens`.
        logits: [M, V] of these, while their tokens are still to be chosen (`Runner.choose`).
        arrays: What is evaluated.
        error: What went wrong when it was launched.
        began: When the step began that built it.
        num_prompt_tokens, num_decode_tokens: What it computes.
        notes: For the trace.
    """

    rows: list[Scheduled]
    sampling: list[Sequence]
    sampled: Sampled | None
    logits: mx.array | None
    prompt_logprobs: dict[Sequence, PromptLogprobs]
    arrays: list[mx.array]
    launched: bool = False
    error: Exception | None = None
    began: float = 0.0
    num_prompt_tokens: int = 0
    num_decode_tokens: int = 0
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class Landed:
    """What a flight brought for one sequence."""

    row: Scheduled
    token_id: int | None
    candidates: Candidates | None
    prompt_logprobs: tuple[Candidates, ...]


class Runner:
    """Builds passes of one model and reads what they brought; nothing else waits for the device.

    Args:
        model: Whose forward passes they are.

    Attributes:
        overlaps: Whether a launched pass runs while the host goes on. On a CPU
            `mx.async_eval` comes back when all but the last few operations are done.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.overlaps = mx.default_device() != mx.cpu

    def build(self, rows: list[Scheduled], previous: Flight | None) -> Flight:
        """Build a step, without computing anything yet.

        Args:
            previous: The flight that has not been read yet; its tokens are used
                on the device.
        """
        # One-token rows first and in the cache's order, as the model wants them.
        rows = sorted(rows, key=lambda r: (r.num_tokens > 1, r.sequence.seat.order))
        tokens = self._input_tokens(rows, previous)
        packed = [
            Row(r.sequence.seat, r.num_tokens, _num_logits(r), r.sequence.request.adapters)
            for r in rows
        ]
        starts = {r.sequence: r.sequence.num_computed for r in rows}
        logits, pending = self.model.forward(tokens, packed)
        prompt_logprobs = self._prompt_logprobs(packed, rows, logits, starts)
        arrays = list(pending)
        for entry in prompt_logprobs.values():
            arrays += entry.arrays()
        sampling = [r.sequence for r in rows if r.samples]
        flight = Flight(rows, sampling, None, None, prompt_logprobs, arrays)
        if not sampling:
            return flight
        flight.logits, last = _sampled_positions(rows, packed, logits, tokens)
        if any(sequence.deferred for sequence in sampling):
            flight.arrays.append(flight.logits)
        else:
            self._draw(flight, [_sampling_row(s) for s in sampling], last)
        return flight

    def choose(self, flight: Flight, allowed: dict[Sequence, np.ndarray | None]) -> None:
        """Build the sampling of a flight with rows whose tokens hang on what the flight before
        brought (`Sequence.deferred`): that has landed.

        Args:
            flight: With its `logits`, [M, V].
            allowed: For those of `flight.sampling` that still are to get a token, which
                tokens it may be (`Guide.allowed`: uint32 [⌈V / 32⌉]; None: all).
        """
        places = [i for i, s in enumerate(flight.sampling) if s in allowed]
        flight.sampling = [flight.sampling[i] for i in places]
        if len(places) < len(flight.logits):
            flight.logits = flight.logits[mx.array(places)] if places else None
        if flight.logits is not None:
            rows = [_sampling_row(s, allowed[s]) for s in flight.sampling]
            self._draw(flight, rows, None)
            flight.launched = False

    def _draw(self, flight: Flight, rows: list[SamplingRow], last: mx.array | None) -> None:
        flight.sampled = sample(flight.logits, rows, last)
        flight.logits = None
        flight.arrays += flight.sampled.arrays()
        for sequence in flight.sampling:
            sequence.num_pending += 1

    def launch(self, flight: Flight) -> None:
        """Start computing a step."""
        # Never the cache's arrays: holding them would make the next step copy them.
        arrays, flight.arrays, flight.launched = flight.arrays, [], True
        mx.async_eval(arrays)

    def _input_tokens(self, rows: list[Scheduled], previous: Flight | None) -> mx.array:
        """int32 [N]: the host's tokens, or the previous flight's where only the device has them."""
        known, sources, any_pending = [], [], False
        places = {s: i for i, s in enumerate(previous.sampling)} if previous else {}
        for row in rows:
            sequence, start = row.sequence, row.sequence.num_computed
            ids = sequence.window.view[start : start + row.num_tokens]
            if len(ids) < row.num_tokens:
                known.append(np.zeros(1, np.int32))
                sources.append(places[sequence])
                any_pending = True
            else:
                known.append(ids)
                sources.append(-1)
        if not any_pending:
            return mx.array(np.concatenate(known))
        # Pending rows have one token, so they are among the first `num_single`.
        num_single = sum(row.num_tokens == 1 for row in rows)
        source = np.array(sources[:num_single], dtype=np.int32)
        sampled = previous.sampled.tokens
        if num_single == len(sampled) and (source == np.arange(num_single)).all():
            singles = sampled
        else:
            singles = sampled[mx.array(np.maximum(source, 0))]
            if (source < 0).any():
                host = mx.array(np.concatenate(known[:num_single]))
                singles = mx.where(mx.array(source < 0), host, singles)
        if num_single == len(rows):
            return singles
        return mx.concatenate([singles, mx.array(np.concatenate(known[num_single:]))])

    def _prompt_logprobs(
        self,
        packed: list[Row],
        rows: list[Scheduled],
        logits: mx.array,
        starts: dict[Sequence, int],
    ) -> dict[Sequence, PromptLogprobs]:
        found, at = {}, 0
        for row, share in zip(rows, packed, strict=True):
            sequence = row.sequence
            if _tells_of_prompt(sequence):
                span = logits[at : at + share.num_logits]
                entry = _span_logprobs(sequence, starts[sequence], span)
                if entry is not None:
                    found[sequence] = entry
            at += share.num_logits
        return found

    def read(self, flight: Flight) -> list[Landed]:
        """Wait for the flight's tokens; the one place where host and device meet."""
        token_ids: dict[Sequence, int] = {}
        candidates: dict[Sequence, Candidates] = {}
        sampled = flight.sampled
        if sampled is not None:
            drawn: Any = sampled.tokens.tolist()
            token_ids = dict(zip(flight.sampling, drawn, strict=True))
            for sequence in flight.sampling:
                sequence.num_pending -= 1
            candidates = _sampled_candidates(flight.sampling, sampled)
            if sampled.mu is not None:
                surprises: Any = sampled.mu.tolist()
                for i, mu in zip(sampled.mirostat_rows, surprises, strict=True):
                    flight.sampling[i].mu = mu
        return [
            Landed(
                row,
                token_ids.get(row.sequence),
                candidates.get(row.sequence),
                flight.prompt_logprobs[row.sequence].read()
                if row.sequence in flight.prompt_logprobs
                else (),
            )
            for row in flight.rows
        ]


def _span_logprobs(sequence: Sequence, start: int, logits: mx.array) -> PromptLogprobs | None:
    """Logits of positions start, start + 1 … tell of the tokens one further on."""
    end = min(start + len(logits), sequence.num_prompt_tokens - 1)
    first = sequence.num_prompt_logprobs == 0 and start == 0
    # After a preemption only what was not reported yet.
    begin = max(start, sequence.num_prompt_logprobs - 1)
    if begin >= end and not first:
        return None
    ids = mx.array(sequence.tokens.view[begin + 1 : end + 1])
    top = sequence.request.params.prompt_logprobs or 0
    found = None
    if begin < end:
        found = position_logprobs(logits[begin - start : end - start], ids, top)
    return PromptLogprobs(first, found)


def _sampled_positions(
    rows: list[Scheduled], packed: list[Row], logits: mx.array, tokens: mx.array
) -> tuple[mx.array, mx.array]:
    """The logits [M, V] that tokens are drawn from, and the M tokens before them."""
    picks, inputs, at, token_at = [], [], 0, 0
    for row, share in zip(rows, packed, strict=True):
        at += share.num_logits
        token_at += row.num_tokens
        if row.samples:
            picks.append(at - 1)
            inputs.append(token_at - 1)
    if len(picks) < len(logits):
        logits = logits[mx.array(picks)]
    return logits, tokens if len(inputs) == len(tokens) else tokens[mx.array(inputs)]


def _num_logits(row: Scheduled) -> int:
    sequence = row.sequence
    if _tells_of_prompt(sequence) and sequence.num_computed < sequence.num_prompt_tokens:
        return row.num_tokens
    return int(row.samples)


def _tells_of_prompt(sequence: Sequence) -> bool:
    """Whether log-probabilities of its prompt are wanted: all have been given before its window
    is truncated."""
    return sequence.request.params.prompt_logprobs is not None and not sequence.truncated


def _sampling_row(sequence: Sequence, allowed: np.ndarray | None = None) -> SamplingRow:
    return SamplingRow(
        params=sequence.request.params,
        choice=sequence.index,
        position=sequence.position,
        token_ids=sequence.tokens.view,
        num_prompt_tokens=sequence.num_prompt_tokens,
        pending=sequence.num_pending > 0,
        allowed=allowed,
        mu=sequence.mu,
    )


def _sampled_candidates(sampling: list[Sequence], sampled: Sampled) -> dict[Sequence, Candidates]:
    """Of those that asked for log-probabilities, or for probabilities."""
    found: dict[Sequence, Candidates] = {}
    if sampled.logprobs is not None:
        entries = _candidates(sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
        for i, entry in zip(sampled.logprob_rows, entries, strict=True):
            top = entry.top[: sampling[i].request.params.logprobs or 0]
            found[sampling[i]] = Candidates(entry.logprob, top)
    if sampled.probs is not None:
        entries = _candidates(sampled.probs, sampled.top_prob_ids, sampled.top_probs)
        for i, entry in zip(sampled.prob_rows, entries, strict=True):
            top = entry.top[: sampling[i].request.params.probs]
            logprobs = found.get(sampling[i], Candidates(None))
            found[sampling[i]] = replace(logprobs, prob=entry.logprob, top_probs=top)
    return found


def _candidates(
    logprobs: mx.array, top_ids: mx.array | None, top_logprobs: mx.array | None
) -> tuple[Candidates, ...]:
    values: Any = logprobs.tolist()
    if top_ids is None or top_ids.shape[-1] == 0:
        return tuple(Candidates(value) for value in values)
    ids: Any = top_ids.tolist()
    tops: Any = top_logprobs.tolist()
    return tuple(
        Candidates(value, tuple(zip(row, probs, strict=True)))
        for value, row, probs in zip(values, ids, tops, strict=True)
    )
