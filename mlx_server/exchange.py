"""What passes between `llm.py` and the engine: tokens, never text. Frozen, like `core.py`.

The engine gets `EngineRequest`s and answers each step with `StepOutput`s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mlx_server.core import AdapterScale, FinishReason
from mlx_server.sampling_params import SamplingParams


class GuideError(Exception):
    """A guide cannot go on: the reply's grammar became too complex to follow."""


class Guide(Protocol):
    """What holds one sequence to a form. Used on the engine thread only.

    For each token of the reply: `forced`, else `allowed`, then `accept`. All may raise
    GuideError.
    """

    @property
    def ended(self) -> bool:
        """The reply is complete: nothing may follow, not even an end token."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, if that is known; they need no sampling."""
        ...

    def allowed(self) -> np.ndarray | None:
        """The tokens that may come next, uint32 words of 32 bits each, the lowest bit
        first; None allows all."""
        ...

    def accept(self, token_id: int) -> None:
        """The sequence got this token."""
        ...


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt, as tokens, and the n sequences to grow from it.

    Args:
        id: Unique in the process.
        token_ids: The prompt, at least one token.
        params: Resolved; `max_tokens` is set and fits the context, `seed` is set.
        n: Sequences to generate; sequence i draws from f(seed, i, position).
        adapters: Sorted (adapter, scale) pairs.
        eos_token_ids: Tokens that end a sequence unless `ignore_eos`.
        guide: Makes what holds a sequence to a form, one for each; None: nothing does.
        slot: The slot that its sequences have to run in; None: any.
        reuse: They may go on from what earlier ones have computed.
    """

    id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    adapters: tuple[AdapterScale, ...] = ()
    eos_token_ids: frozenset[int] = frozenset()
    guide: Callable[[], Guide] | None = None
    slot: int | None = None
    reuse: bool = True


@dataclass(frozen=True, slots=True)
class Candidates:
    """Log-probabilities at one position: the token's own and the best (id, value) pairs.

    `prob`, `top_probs`: the same as probabilities of what the token was sampled from, where
    `SamplingParams.probs` asks for them.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    prob: float | None = None
    top_probs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """How much of a prompt was known, for the log.

    Args:
        known: Tokens that did not have to be computed.
        position: Where the nearest earlier conversation differs; None where it does not,
        there, here: and the tokens that follow there and in this prompt.
    """

    known: int
    position: int | None = None
    there: tuple[int, ...] = ()
    here: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one step did for one sequence.

    Args:
        request_id, index: Which sequence of which request.
        token_ids: New tokens, usually one; none for mere progress. An end
            token is included when it ended the sequence.
        logprobs: One entry per token where asked for, else empty.
        prompt_logprobs: Entries for prompt tokens computed in this step.
        prompt_tokens_done: Prompt tokens computed so far.
        cached_tokens: Prompt tokens that were found in the prefix cache.
        finish_reason: Set on the sequence's last output.
        origin: On its first output while the log level is DEBUG.
        started_at: On its first output: `time.monotonic()` when its first step began.
        truncated: Its oldest tokens have made room for new ones (`n_keep`).
        slot: Where it runs.
        at: `time.monotonic()` when it was known; who reads it may be late.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Candidates, ...] = ()
    prompt_logprobs: tuple[Candidates, ...] = ()
    prompt_tokens_done: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    origin: Origin | None = None
    started_at: float | None = None
    truncated: bool = False
    slot: int | None = None
    at: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True, slots=True)
class SlotState:
    """One of the engine's places and the sequence that has it, or had it last.

    Args:
        params: None before the first one.
        token_ids: Its prompt and reply.
        num_decoded: Tokens of the reply.
        num_left: Tokens that it may still generate; -1: until the context is full.
    """

    id: int
    processing: bool = False
    request_id: str | None = None
    params: SamplingParams | None = None
    token_ids: tuple[int, ...] = ()
    num_prompt_tokens: int = 0
    num_decoded: int = 0
    num_left: int = 0
    finish_reason: FinishReason | None = None
    adapters: tuple[AdapterScale, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step did for one request: the only type an outbox carries.

    `error` ends the request; it is the request's own, never another's.
    """

    outputs: tuple[TokenOutput, ...] = ()
    error: Exception | None = None
