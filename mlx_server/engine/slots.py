"""Slots: the numbered places that running sequences sit in, as clients know them (llama.cpp).

A slot holds no state of the model: that is a seat's or the prefix cache's matter. It
remembers the last sequence that sat there, so that clients can ask for it by number, and so
that a conversation's next turn finds its slot again.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import numpy as np

from mlx_server.cache.prefix import common_prefix
from mlx_server.core import AdapterScale, FinishReason
from mlx_server.engine.sequence import Sequence
from mlx_server.exchange import SlotState
from mlx_server.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Past:
    """What a slot remembers of a sequence that has left it.

    Args:
        tokens: int32 [k], its whole prompt and reply.
    """

    request_id: str
    params: SamplingParams
    tokens: np.ndarray
    num_prompt_tokens: int
    num_decoded: int
    num_left: int
    finish_reason: FinishReason | None


@dataclass(slots=True, eq=False)
class Slot:
    """
    Attributes:
        sequence: Who sits there; None: nobody.
        past: The last one that did; None: nobody yet, or it was made to forget.
        used: When it was last left, as a count; 0: never.
    """

    id: int
    sequence: Sequence | None = None
    past: Past | None = None
    used: int = 0
    _tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    _adapters: tuple[AdapterScale, ...] = ()

    @property
    def tokens(self) -> np.ndarray:
        """int32 [k]: the prompt and the reply of the sequence that sits there or sat there last,
        as the model has seen them (without what a full context has let go); valid until the
        next step."""
        return self._tokens if self.sequence is None else self.sequence.window.view

    @property
    def adapters(self) -> tuple[AdapterScale, ...]:
        """What that was computed under."""
        return self._adapters if self.sequence is None else self.sequence.request.adapters

    def remember(self, tokens: np.ndarray, adapters: tuple[AdapterScale, ...]) -> None:
        """Take tokens, int32 [k], for those of its last sequence; nobody may sit there."""
        assert self.sequence is None
        self._tokens, self._adapters, self.past = tokens, adapters, None

    def forget(self) -> None:
        """Remember nobody; nobody may sit there."""
        self.remember(np.zeros(0, np.int32), ())

    def state(self) -> SlotState:
        """What it holds just now, or held last; a copy."""
        past = self.past if self.sequence is None else _past(self.sequence, None)
        if past is None:
            tokens = tuple(self._tokens.tolist())
            return SlotState(
                self.id, token_ids=tokens, num_prompt_tokens=len(tokens), adapters=self.adapters
            )
        return SlotState(
            id=self.id,
            processing=self.sequence is not None,
            request_id=past.request_id,
            params=past.params,
            token_ids=tuple(past.tokens.tolist()),
            num_prompt_tokens=past.num_prompt_tokens,
            num_decoded=past.num_decoded,
            num_left=past.num_left,
            finish_reason=past.finish_reason,
            adapters=self.adapters,
        )


class Slots:
    """All slots of an engine.

    Args:
        count: How many.
        similarity: Share of a prompt that a slot must remember to be chosen for it; 0: such
            a slot is not looked for.
    """

    def __init__(self, count: int, similarity: float = 0.0) -> None:
        self._slots = [Slot(i) for i in range(count)]
        self._similarity = similarity
        self._leaves = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def has_room(self, sequence: Sequence) -> bool:
        """Whether there is a free slot for it."""
        wanted = sequence.request.slot
        if wanted is not None:
            return self._slots[wanted].sequence is None
        return any(slot.sequence is None for slot in self._slots)

    def take(self, sequence: Sequence, awaited: Set[int | None] = frozenset()) -> Slot:
        """Give the sequence a slot; there is room.

        Args:
            awaited: Slots that somebody waits for by their number: taken last.
        """
        wanted = sequence.request.slot
        slot = self._choose(sequence, awaited) if wanted is None else self._slots[wanted]
        assert slot.sequence is None
        slot.sequence, sequence.slot = sequence, slot.id
        return slot

    def _choose(self, sequence: Sequence, awaited: Set[int | None]) -> Slot:
        free = [slot for slot in self._slots if slot.sequence is None]
        free = [slot for slot in free if slot.id not in awaited] or free
        for slot in free:
            if slot.id == sequence.last_slot:
                return slot
        return self._similar(sequence, free) or min(free, key=lambda slot: slot.used)

    def _similar(self, sequence: Sequence, free: list[Slot]) -> Slot | None:
        """The one whose tokens share the longest prefix, if that is enough of the prompt."""
        if not self._similarity:
            return None
        prompt, adapters = sequence.window.view, sequence.request.adapters
        best, most = None, 0
        for slot in free:
            tokens = slot._tokens
            # Whoever differs where the best one ends is no better.
            if slot._adapters != adapters or not most < len(tokens) or most >= len(prompt):
                continue
            if tokens[most] == prompt[most] and (common := common_prefix(tokens, prompt)) > most:
                best, most = slot, common
        return best if most >= self._similarity * len(prompt) else None

    def leave(self, sequence: Sequence, reason: FinishReason | None) -> None:
        """Free the sequence's slot, if it has one.

        Args:
            reason: Why it ended; None: it has not.
        """
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        self._leaves += 1
        slot.used = self._leaves
        slot.past = _past(sequence, reason)
        # Nobody adds to the buffers of a sequence that has ended, and one that is to go on
        # writes behind what a view shows.
        slot._tokens, slot._adapters = sequence.window.view, sequence.request.adapters
        slot.sequence, sequence.slot, sequence.last_slot = None, None, slot.id


def _past(sequence: Sequence, reason: FinishReason | None) -> Past:
    params, tokens = sequence.request.params, sequence.tokens.view
    decoded = len(tokens) - sequence.num_prompt_tokens
    return Past(
        sequence.request.id,
        params,
        tokens,
        sequence.num_prompt_tokens,
        decoded,
        max(0, params.max_tokens - decoded),
        reason,
    )
