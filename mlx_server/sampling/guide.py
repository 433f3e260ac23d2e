"""What holds one reply to its form, token by token.

    THINKING   within the reasoning: free, but for a budget, and no end before an answer
               that has to come
    WATCHING   free; the beginning of a call is looked for
    BOUND      a grammar says what may follow: the reply's own, or that of the calls whose
               beginning was seen

Text is looked at as bytes, since a token may hold half a character.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlx_server.exchange import GuideError
from mlx_server.sampling.grammar import SPACE, Grammars, Matcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How a reply's reasoning is told from its answer.

    Args:
        opening, closing: The marks around it.
        tail: What the model's family writes behind the closing.
        inside: The prompt ends within it.
        budget: Tokens after which it is ended; None: it ends by itself.
    """

    opening: str
    closing: str
    tail: str = ""
    inside: bool = False
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Trigger:
    """A text that begins something with a grammar of its own.

    Args:
        mark: The text; the grammar begins with it, behind the lead.
        grammar: In llguidance's form, known to compile.
        leading: It counts only where the content begins with it.
        lead: Space that the grammar has before the mark, and a model may leave out.
    """

    mark: str
    grammar: str
    leading: bool = False
    lead: str = ""


@dataclass(frozen=True)
class Plan:
    """What a request wants of each of its replies. Calling it makes a reply's guide.

    Args:
        grammar: What the whole reply behind the reasoning must follow; None: nothing.
        triggers: Looked for where it is free.
        once: The reply ends behind the first call.
    """

    grammars: Grammars
    grammar: str | None = None
    triggers: tuple[Trigger, ...] = ()
    reasoning: Reasoning | None = None
    once: bool = False

    def __call__(self) -> Guide:
        return Guide(self)

    @cached_property
    def opening_token(self) -> int | None:
        """The token that begins reasoning; None where that takes more than one."""
        if self.reasoning is None:
            return None
        return self.grammars.vocabulary.specials.get(self.reasoning.opening)

    @cached_property
    def thoughts(self) -> np.ndarray:
        """The tokens that may come within the reasoning where an answer has to follow, as of
        `Guide.allowed`: none that ends the reply, and none that ends the reasoning and
        begins the answer in one, which might not be how that has to begin."""
        assert self.reasoning is not None
        vocabulary, closing = self.grammars.vocabulary, self.reasoning.closing
        barred = {i for i in vocabulary.eos_token_ids if i < vocabulary.width}
        if closing not in vocabulary.specials:
            barred |= vocabulary.overrunning(closing)
        bits = np.ones(-(-vocabulary.width // 32) * 32, dtype=np.uint8)
        bits[sorted(barred)] = 0
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def only(self, token_id: int) -> np.ndarray:
        """That one token, as of `Guide.allowed`: uint32 [⌈V / 32⌉]."""
        words = np.zeros(-(-self.grammars.vocabulary.width // 32), dtype=np.uint32)
        words[token_id >> 5] = np.uint32(1 << (token_id & 31))
        return words


class _Phase(enum.Enum):
    THINKING = enum.auto()
    WATCHING = enum.auto()
    BOUND = enum.auto()


class Guide:
    """Holds one reply to its plan; the contract is `exchange.Guide`. On the engine thread only.

    Args:
        plan: What the request wants of each of its replies.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._vocabulary = plan.grammars.vocabulary
        self._queue: list[int] = []  # what must come next, whatever the phase
        self._text = b""  # the end of what is looked at for marks
        self._content = False  # some came, so no reasoning begins any more
        self._called = False  # a call came, so a leading mark is none any more
        self._num_thoughts = 0
        self._tailed = False  # what the family writes behind its reasoning was seen to
        self._may_think = plan.reasoning is not None
        self._ended = False
        self._matcher: Matcher | None = None
        self._phase = _Phase.WATCHING
        if plan.reasoning is not None and plan.reasoning.inside:
            self._think()
        elif plan.grammar is not None:
            self._bind(plan.grammars.matcher(plan.grammar))

    # ------------------------------------------------------------ what may follow

    @property
    def ended(self) -> bool:
        """The reply is complete: not even an end token may follow."""
        return self._ended

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, if that is known.

        Raises:
            GuideError: The grammar became too complex.
        """
        if self._queue:
            return tuple(self._queue)
        if self._phase is _Phase.BOUND and not self._may_open:
            return self._grammar.forced()
        return ()

    def allowed(self) -> np.ndarray | None:
        """The tokens that may come next, uint32 [⌈V / 32⌉], the lowest bit first; None: all.

        Raises:
            GuideError: The grammar became too complex.
        """
        if self._queue:
            return self._plan.only(self._queue[0])
        if self._phase is _Phase.THINKING:
            return self._plan.thoughts if self._plan.grammar is not None else None
        if self._phase is _Phase.WATCHING:
            return None
        words = self._grammar.allowed()
        opening = self._plan.opening_token
        if self._may_open and opening is not None:
            words = words | self._plan.only(opening)
        return words

    @property
    def _grammar(self) -> Matcher:
        """Of the phase BOUND."""
        assert self._matcher is not None
        return self._matcher

    @property
    def _reasoning(self) -> Reasoning:
        """Where the model reasons or may."""
        assert self._plan.reasoning is not None
        return self._plan.reasoning

    @property
    def _may_open(self) -> bool:
        """The model may begin to think instead of answering."""
        return (
            self._may_think
            and self._plan.grammar is not None
            and self._plan.opening_token is not None
        )

    # ------------------------------------------------------------ what came

    def accept(self, token_id: int) -> None:
        """The reply got this token.

        Raises:
            GuideError: It does not follow what it is held to, or that became too complex.
        """
        if self._queue:
            if token_id != self._queue.pop(0):
                raise GuideError(f"Token {token_id} is not the one that had to come.")
            if not self._queue:
                self._answer(b"")
            return
        if self._phase is _Phase.BOUND:
            self._follow(token_id)
            return
        known = 0 <= token_id < len(self._vocabulary.tokens)
        self._text += self._vocabulary.tokens[token_id] if known else b""
        if self._phase is _Phase.THINKING:
            self._think_on()
        else:
            self._watch()

    def _follow(self, token_id: int) -> None:
        if self._may_open and token_id == self._plan.opening_token:
            self._think()
            return
        self._may_think = False
        matcher = self._grammar
        matcher.accept(token_id)
        if matcher.ended:
            self._release()

    def _release(self) -> None:
        """The grammar is at its end: what follows is free again, if anything is to follow."""
        self._matcher = None
        self._ended = self._plan.grammar is not None or self._plan.once
        self._phase, self._text = _Phase.WATCHING, b""
        self._content, self._may_think = False, self._plan.reasoning is not None

    # ------------------------------------------------------------ reasoning

    def _think(self) -> None:
        self._phase, self._text, self._may_think = _Phase.THINKING, b"", False
        self._matcher = None
        budget = self._reasoning.budget
        if budget is not None and self._num_thoughts >= budget:
            self._close()

    def _think_on(self) -> None:
        reasoning = self._reasoning
        self._num_thoughts += 1
        closing = reasoning.closing.encode()
        place = self._text.find(closing)
        if place >= 0:
            self._answer(self._text[place + len(closing) :])
            return
        self._text = self._text[-len(closing) :]
        if reasoning.budget is not None and self._num_thoughts >= reasoning.budget:
            self._close()

    def _close(self) -> None:
        """End the reasoning in the family's way."""
        self._tailed = True
        reasoning = self._reasoning
        text = reasoning.closing + reasoning.tail
        # What of the closing stands there already is not written twice.
        written = self._text.decode("utf-8", "ignore")
        for size in range(min(len(written), len(reasoning.closing) - 1), 0, -1):
            if reasoning.closing.startswith(written[-size:]):
                text = text[size:]
                break
        self._queue = self._encode(text)

    def _answer(self, rest: bytes) -> None:
        """The reasoning is over; `rest` came behind it in the same token."""
        self._phase, self._text = _Phase.WATCHING, rest
        if self._plan.grammar is None:
            self._may_think = True  # some go on to think, and the budget is for all of it
            self._watch()
            return
        tail = self._reasoning.tail.encode()
        if not self._tailed and tail != rest and tail.startswith(rest):
            # The grammar has no place for it, but models are used to it.
            self._tailed = True
            self._queue = self._encode(tail[len(rest) :].decode())
            return
        self._bind(self._plan.grammars.matcher(self._plan.grammar))

    # ------------------------------------------------------------ calls

    def _bind(self, matcher: Matcher) -> None:
        self._phase, self._matcher, self._text = _Phase.BOUND, matcher, b""
        if matcher.ended:
            self._release()

    def _watch(self) -> None:
        """Look for a mark in what came."""
        if self._may_think and not self._content:
            opening = self._reasoning.opening.encode().lstrip(SPACE)
            if self._text.lstrip(SPACE).startswith(opening):
                self._think()
                return
        for trigger in self._plan.triggers:
            mark = trigger.mark.encode()
            place = self._text.find(mark)
            if place < 0 or (
                trigger.leading and (self._content or self._called or self._text[:place].strip())
            ):
                continue
            self._pull(trigger, self._text[place:])
            return
        marks = [t.mark for t in self._plan.triggers]
        keep = max((len(mark.encode()) for mark in marks), default=0)
        if self._may_think:
            keep = max(keep, len(self._reasoning.opening.encode()))
        if len(self._text.lstrip(SPACE)) > keep:
            self._content = True
        self._text = self._text[-keep:] if keep else b""

    def _pull(self, trigger: Trigger, text: bytes) -> None:
        """A call begins. What does not follow its grammar is left free."""
        self._text, self._content, self._called = b"", True, True
        try:
            ids = self._encode(trigger.lead + text.decode())
        except UnicodeDecodeError:
            return
        matcher = self._plan.grammars.matcher(trigger.grammar)
        if matcher.try_accept(ids):
            self._bind(matcher)
        else:
            log.debug("a call begins in a form that is not held to: %r", text)

    def _encode(self, text: str) -> list[int]:
        return self._vocabulary.encode_markup(text)
