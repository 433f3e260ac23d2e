"""Figures from replies: rates, gaps and the ideal. Plain functions of times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.client import Reply


@dataclass(frozen=True, slots=True)
class Bare:
    """The bare loop's speed: forward and argmax, no server.

    Attributes:
        prefill_rate: Prompt tokens a second, one prompt of `prompt` tokens in chunks of 2,048.
        decode_rate: Output tokens a second, all rows together.
        batch: Rows.
        context: Tokens a row has in its cache half-way through the measurement.
    """

    prefill_rate: float
    decode_rate: float
    batch: int
    prompt: int
    context: int


def seconds(replies: Sequence[Reply]) -> float:
    """From the first request's start to the last one's end."""
    return max(r.ended for r in replies) - min(r.started for r in replies)


def tokens_per_second(replies: Sequence[Reply]) -> float:
    """Output tokens of the requests that were answered, over the whole time."""
    return sum(r.tokens for r in replies if r.error is None) / max(seconds(replies), 1e-9)


def first_token(replies: Sequence[Reply]) -> float | None:
    """Median seconds to the first token."""
    found = [r.first_after for r in replies if r.first_after is not None]
    return median(found) if found else None


def longest_gap(replies: Sequence[Reply], since: float = float("-inf")) -> float | None:
    """The longest wait between two pieces of one stream that ends after `since`, in seconds."""
    gaps = [
        later - earlier
        for r in replies
        for earlier, later in zip(r.times, r.times[1:], strict=False)
        if later >= since
    ]
    return max(gaps, default=None)


def decode_window(replies: Sequence[Reply]) -> tuple[float, float] | None:
    """The time in which all streams decode: last first token to first end, in seconds."""
    if not replies or any(len(r.times) < 2 for r in replies):
        return None
    window = max(r.times[0] for r in replies), min(r.times[-1] for r in replies)
    return window if window[0] < window[1] else None


def decode_rate(replies: Sequence[Reply]) -> float | None:
    """Tokens a second of all streams while all of them decode; None if they never did.

    Some servers send several tokens in one piece, so pieces are weighed by the
    stream's tokens per piece.
    """
    window = decode_window(replies)
    if window is None:
        return None
    total = 0.0
    for r in replies:
        inside = [t for t in r.times if window[0] <= t <= window[1]]
        if len(inside) < 4 or inside[-1] <= inside[0]:
            return None
        per_piece = r.tokens / len(r.times)
        total += per_piece * (len(inside) - 1) / (inside[-1] - inside[0])
    return total


def ideal_seconds(needed_prompt: int, output_tokens: int, bare: Bare) -> float:
    """What the bare loop would take for that many prompt and output tokens."""
    return needed_prompt / bare.prefill_rate + output_tokens / bare.decode_rate


SHARED = 16
"""A common prefix of fewer tokens counts as none: all chats begin with the same few."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def needed_tokens(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> int:
    """Prompt tokens that have to be computed if no prefix is computed twice.

    Args:
        prompts: In the order in which they were sent.
        replies: The tokens of each one's reply. The last of them was never an input, so the
            next prompt has to compute it. At least one token of each prompt is computed.
    """
    seen: list[list[int]] = []
    needed = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        shared = max((common_prefix(prompt, known) for known in seen), default=0)
        needed += max(1, len(prompt) - (shared if shared >= SHARED else 0))
        seen.append([*prompt, *reply[:-1]])
    return needed
