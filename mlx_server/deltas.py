"""What comes back: a stream of `Delta`s. A whole reply is their fold.

Standard library only, frozen throughout, like `core.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mlx_server.core import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached` prompt tokens were found in the prefix cache."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a reply took.

    Args:
        prompt_n: Prompt tokens that were computed,
        prompt_ms: and the milliseconds until the first token, from the first step on.
        predicted_n: Tokens of the reply,
        predicted_ms: and the milliseconds they took.
        cache_n: Prompt tokens that were known.
        first_at: When the first token was known, in seconds of `time.monotonic`; None before.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    cache_n: int = 0
    first_at: float | None = None


@dataclass(frozen=True, slots=True)
class TopProb:
    id: int
    token: str
    bytes: bytes
    prob: float


@dataclass(frozen=True, slots=True)
class TopLogprob:
    id: int
    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated (or echoed) token.

    Args:
        logprob: None for a prompt's first token.
        offset: Characters of the choice's text before the token's own; a token that is
            a part of a character points at that.
        prob, top_probs: Where asked for: probabilities of what it was sampled from.
    """

    id: int
    token: str
    bytes: bytes
    logprob: float | None
    top: tuple[TopLogprob, ...] = ()
    offset: int = 0
    prob: float | None = None
    top_probs: tuple[TopProb, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request is accepted: it is valid and it fits."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Progress:
    """A choice's prompt is on its way, or done.

    Args:
        processed: Prompt tokens computed so far, of `total`; the first `cached` were known.
        ms: Milliseconds since the first step.
        slot: Where it runs.
    """

    processed: int
    total: int
    cached: int = 0
    ms: float = 0.0
    index: int = 0
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing came for a while; a stream sends a comment to keep the client waiting."""


@dataclass(frozen=True, slots=True)
class Lull:
    """Nothing more has come yet. Only where whoever iterates asked to be told of news."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the reply. `tokens` only where log-probabilities were asked for, `ids` and
    `timings` (so far) where these were."""

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers; `tokens` as of `Text`."""

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The reply's call number `call`, from 0, begins: its id and whole name are known."""

    index: int
    call: int
    id: str
    name: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments: all of them, joined, are its JSON text."""

    index: int
    call: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Choice `index` is complete.

    Args:
        stop_sequence: The stop string that ended it.
        truncated: The context was full on the way, and the oldest tokens made room.
        slot: Where it ran.
    """

    index: int
    reason: FinishReason
    stop_sequence: str | None
    usage: Usage
    timings: Timings = Timings()
    truncated: bool = False
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Every choice is complete. The usage counts each prompt once."""

    usage: Usage


Delta = (
    Started
    | Progress
    | Heartbeat
    | Lull
    | Text
    | Reasoning
    | CallStarted
    | CallArguments
    | Finished
    | Done
)
