"""What an engine tells: of a sequence in a step, and of itself."""

from __future__ import annotations

import time

from mlx_server.core import FinishReason
from mlx_server.engine.scheduler import Scheduler
from mlx_server.engine.sequence import Sequence
from mlx_server.exchange import Candidates, TokenOutput
from mlx_server.services import RowInfo


def report(
    sequence: Sequence,
    token_ids: tuple[int, ...],
    reason: FinishReason | None,
    logprobs: tuple[Candidates, ...],
    prompt_logprobs: tuple[Candidates, ...],
) -> TokenOutput:
    """What a step did for a sequence; what is told only once is told with it."""
    origin, sequence.origin = sequence.origin, None
    started_at = None if sequence.announced else sequence.started_at
    sequence.announced = True
    if token_ids and sequence.first_token_at is None:
        sequence.first_token_at = time.monotonic()
    return TokenOutput(
        request_id=sequence.request.id,
        index=sequence.index,
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        prompt_tokens_done=sequence.num_prompt_done,
        cached_tokens=sequence.num_cached_tokens,
        finish_reason=reason,
        origin=origin,
        started_at=started_at,
        truncated=sequence.truncated,
        slot=sequence.last_slot if sequence.slot is None else sequence.slot,
    )


def counts(scheduler: Scheduler) -> dict[str, float]:
    """What its scheduler and its prefixes have counted; from any thread."""
    seating = scheduler.seating
    return {
        "prompt_tokens_cached": seating.num_cached_tokens,
        "prefix_hits": seating.num_hits,
        "prefix_misses": seating.num_misses,
        "preemptions": scheduler.num_preemptions,
        "shifts": scheduler.num_shifts,
        "prefix_evictions": seating.prefixes.num_evicted,
    }


def figures(scheduler: Scheduler) -> dict[str, float]:
    """What its scheduler, its cache and its prefixes hold; from any thread."""
    cache, prefixes = scheduler.cache, scheduler.seating.prefixes
    seats = [s.seat for s in list(scheduler.running)] + [e.seat for e in prefixes]
    budget = cache.max_bytes
    return {
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "slots": len(scheduler.slots),
        "prefix_entries": len(prefixes),
        "prefix_bytes": prefixes.nbytes,
        "kv_bytes": cache.nbytes,
        "kv_budget_bytes": 0 if budget == float("inf") else int(budget),
        "kv_tokens": sum(seat.length for seat in seats if seat is not None),
    }


def rows(scheduler: Scheduler, model: str) -> list[RowInfo]:
    """Who runs just now; from any thread, so each may be a step ahead of the other.

    Args:
        model: The id they are told under.
    """
    now = time.monotonic()
    return [_row(sequence, model, now) for sequence in list(scheduler.running)]


def _row(sequence: Sequence, model: str, now: float) -> RowInfo:
    seat, prompt = sequence.seat, sequence.num_prompt_tokens
    computed = 0 if seat is None else seat.length
    # Stored counts what is on its way; what has been reported is there.
    done = max(sequence.num_prompt_done, sequence.num_cached_tokens)
    if done >= prompt:  # one that gave up its seat computes it once more
        done = prompt if sequence.truncated else min(computed, prompt)
    decoded = len(sequence.tokens) - prompt
    began, first = sequence.started_at, sequence.first_token_at
    return RowInfo(
        slot=sequence.slot,
        model=model,
        state="prefill" if done < prompt or computed < sequence.num_given else "decode",
        num_prompt_tokens=prompt,
        num_cached_tokens=sequence.num_cached_tokens,
        num_prompt_done=done,
        num_decoded=decoded,
        num_left=max(0, sequence.request.params.max_tokens - decoded),
        seconds=0.0 if began is None else now - began,
        speed=(decoded - 1) / (now - first) if first is not None and decoded > 1 else None,
    )
