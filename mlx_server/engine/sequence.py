"""Sequence: one row of the batch, from its prompt to its last token."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

import numpy as np

from mlx_server.cache.base import Seat
from mlx_server.core import FinishReason
from mlx_server.exchange import EngineRequest, Guide, Origin
from mlx_server.sampling.row import needs_host


class TokenBuffer:
    """Token ids that grow at the end, as an int32 array without copies per token.

    Args:
        ids: int32 [k], which several buffers may share: it is never written to.
    """

    __slots__ = ("_ids", "_size")

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._size = len(ids)

    def __len__(self) -> int:
        return self._size

    def append(self, token_id: int) -> None:
        """Add a token; a buffer that shares its ids copies them first."""
        if self._size == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(max(64, self._size), np.int32)])
        self._ids[self._size] = token_id
        self._size += 1

    @property
    def view(self) -> np.ndarray:
        """int32 [len]; valid until the next append."""
        return self._ids[: self._size]


class Status(enum.Enum):
    """Where a sequence is: in the queue, in a slot, or done with."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence of a request. Lives on the engine thread.

    Steps are pipelined: while the host reads the token of one step, the next
    step, which already uses that token on the device, is on its way.

        tokens      p0 p1 p2 g0 g1          known to the host
        num_pending             g2          sampled, still on the device
        seat.length ^^^^^^^^^^^^^^          stored, or being stored, in the KV cache

    One that goes on in a full context (`n_keep`) lets its oldest tokens go. What the model
    sees from then on, the window, is computed like a prompt:

        tokens      p0 p1 p2 g0 g1 g2 g3 g4 g5 g6
        window      p0          g1 g2 g3 g4 g5 g6     n_keep 1, context 8: full with g4
                    ^^^^^^^^^^^^^^^^^^^^^^^           num_given

    Attributes:
        tokens: Prompt and generated tokens known to the host: what limits, penalties and
            random numbers go by.
        window: Those of them that the model sees, and the cache is about; the same object
            until the context is full for the first time.
        num_given: Tokens of the window that are computed like a prompt's.
        context: Tokens at which the window is full; None: it ends there.
        truncated: The window has lost tokens.
        num_pending: Sampled tokens that the host has not read yet.
        seat: Its place in the KV cache while it runs.
        slot, last_slot: Numbers of the slot it runs in, and of the last one it ran in.
        mu: Mirostat's threshold behind the tokens known to the host; None at first.
        deferred: Its tokens are chosen when all before are known to the host.
        added_at, started_at: `time.monotonic()` when it came, and when its first step began.
        announced: `started_at` has been reported.
        first_token_at: `time.monotonic()` when the first token of its reply was known.
        num_failures: Failed steps it was in.
        num_prompt_logprobs, num_prompt_done: Prompt tokens whose log-probabilities,
            or whose computation, have been reported.
        num_cached_tokens: Prompt tokens that were known when it was first seated.
        arrival: Order of admission; the last to come is preempted first.
        follows: Whom it waits for, to go on from that sequence's first so many tokens.
        checkpoints: Lengths at which it leaves its state to the prefix cache.
        origin: What was known of its prompt, until that is reported; only while debugging.
        guide: What holds its reply to a form; it has been told of all tokens in `tokens`.
    """

    request: EngineRequest
    index: int
    arrival: int
    prompt: InitVar[np.ndarray]
    context: int | None = None
    tokens: TokenBuffer = field(init=False)
    window: TokenBuffer = field(init=False)
    num_given: int = field(init=False)
    truncated: bool = False
    status: Status = Status.WAITING
    seat: Seat | None = None
    num_pending: int = 0
    num_failures: int = 0
    num_prompt_logprobs: int = 0
    num_prompt_done: int = 0
    num_cached_tokens: int = 0
    follows: tuple[Sequence, int] | None = None
    checkpoints: set[int] = field(default_factory=set)
    origin: Origin | None = None
    guide: Guide | None = field(init=False)
    slot: int | None = None
    last_slot: int | None = None
    mu: float | None = None
    deferred: bool = field(init=False)
    added_at: float = 0.0
    started_at: float | None = None
    announced: bool = False
    first_token_at: float | None = None

    def __post_init__(self, prompt: np.ndarray) -> None:
        self.tokens = self.window = TokenBuffer(prompt)
        self.num_given = len(prompt)
        self.deferred = self.request.guide is not None or needs_host(self.request.params)
        self.guide = self.request.guide() if self.request.guide is not None else None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt as it was sent, whatever the window has lost since."""
        return len(self.request.token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of the window that exist, on the host or only on the device."""
        return len(self.window) + self.num_pending

    @property
    def position(self) -> int:
        """Tokens of prompt and reply that exist, on the host or only on the device."""
        return len(self.tokens) + self.num_pending

    @property
    def num_computed(self) -> int:
        """Tokens of the window whose state is stored, or on its way to be."""
        return self.seat.length if self.seat is not None else 0

    @property
    def num_to_compute(self) -> int:
        """Tokens of the window that a forward pass has still to see."""
        return self.num_tokens - self.num_computed

    @property
    def num_left(self) -> int:
        """Tokens it may still generate, those on the device not counted in."""
        limit = self.request.params.max_tokens
        assert limit is not None
        return self.num_prompt_tokens + limit - self.position

    @property
    def full(self) -> bool:
        """Whether its oldest tokens must make room before it can go on."""
        return self.context is not None and self.num_tokens >= self.context and self.num_left > 0

    @property
    def wants_step(self) -> bool:
        """Whether a further step is of use, as far as the host knows."""
        if self.num_left > 0:
            return not self.full
        # Only the prompt is to be evaluated (max_tokens 0, with its log-probabilities).
        return self.num_computed < self.num_given

    def shift(self) -> int:
        """Make room in a full window, whose tokens are all known to the host, as llama.cpp
        does: the older half goes of what is behind the first `n_keep`.

        Returns:
            How many stayed at the beginning.
        """
        context, wanted = self.context, self.request.params.n_keep
        if wanted < 0:
            wanted = self.num_prompt_tokens
        keep = max(0, min(wanted, context - 4))
        discard = (context - keep) // 2
        tokens = self.window.view
        self.window = TokenBuffer(np.concatenate([tokens[:keep], tokens[keep + discard :]]))
        self.num_given = len(self.window)
        self.truncated = True
        self.checkpoints.clear()
        self.follows = None
        return keep

    def append(self, token_id: int) -> FinishReason | None:
        """Add a token of its reply; returns why it ends with it, if it does.

        Raises:
            GuideError: It does not follow the guide, or that cannot go on.
        """
        request = self.request
        self.tokens.append(token_id)
        if self.window is not self.tokens:
            self.window.append(token_id)
        if token_id in request.eos_token_ids and not request.params.ignore_eos:
            return "stop"
        if self.guide is not None:
            self.guide.accept(token_id)
            if self.guide.ended:
                return "stop"
        # Not `num_left`, which counts what is on its way as well.
        length = len(self.tokens) - self.num_prompt_tokens
        return "length" if length >= request.params.max_tokens else None

    def extend(self, token_ids: Iterable[int]) -> tuple[list[int], FinishReason | None]:
        """Add tokens as long as it goes on and its window has room; returns those that it got,
        and why it ended."""
        added: list[int] = []
        for token_id in tuple(token_ids):
            if self.full:
                break
            added.append(token_id)
            reason = self.append(token_id)
            if reason is not None:
                return added, reason
        return added, None
