"""Grammars over a model's tokens, by llguidance (https://github.com/guidance-ai/llguidance).

A grammar is compiled once for a model and a text, to a matcher that each sequence gets a
copy of. All of them end in llguidance's own notations: JSON Schema, regular expressions
and Lark; llama.cpp's GBNF is translated. No arrays here: masks are numpy's.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mlx_server.core import Grammar
from mlx_server.errors import RequestError
from mlx_server.exchange import GuideError
from mlx_server.sampling.notations import together, translated

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_GRAMMARS = 1024
"""Compiled grammars that are kept; the one that was used longest ago goes."""

MAX_KEPT_BYTES = 2 * 2**20
"""Of the texts of those that are kept: a compiled grammar takes up to some 200 times as much."""

MAX_LEXER_FUEL = 400_000
"""llguidance's own limit, 1,000,000, takes ten seconds in the worst case."""

MAX_ITEMS = 4_000
"""Of the parser at once, which costs time at each token: with llguidance's own 2,000 an object
of 500 optional properties fails in the middle of a reply."""

STACK_BYTES = 2**28
"""llguidance recurses along chains of rules, and a thread's usual stack ends, and with it the
process, after some hundred definitions. This holds what fits into a request."""


SPACE = b" \t\r\n"


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens as grammars see them.

    Args:
        tokens: The bytes of each token; special tokens have those of their text.
        specials: Ids of the special tokens by their text: no text matches these.
        eos_token_ids: Tokens that end a reply.
        width: Of the model's logits, V; no smaller than the number of tokens.
        encode: The tokens of a text as it would stand within another.
    """

    tokens: Sequence[bytes]
    specials: Mapping[str, int]
    eos_token_ids: frozenset[int]
    width: int
    encode: Callable[[str], list[int]]

    def encode_markup(self, text: str) -> list[int]:
        """The tokens of a text in which special tokens are written as such."""
        ids: list[int] = []
        for part in self._markup.split(text) if self._markup else [text]:
            ids += [self.specials[part]] if part in self.specials else self.encode(part)
        return ids

    def overrunning(self, mark: str) -> frozenset[int]:
        """The tokens that can hold the last of a mark and then something that is no space."""
        if mark not in self._overrunning:
            end = mark.encode()
            found = (i for i, token in enumerate(self.tokens) if _overruns(token, end))
            self._overrunning[mark] = frozenset(found)
        return self._overrunning[mark]

    @cached_property
    def _overrunning(self) -> dict[str, frozenset[int]]:
        """By the mark: looking at 128k tokens takes too long to be done for each request."""
        return {}

    @cached_property
    def _markup(self) -> re.Pattern[str] | None:
        names = sorted(filter(None, self.specials), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None


class Grammars:
    """The grammars of one model, compiled and remembered. May be used from any thread.

    Args:
        vocabulary: The model's tokens, as bytes.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._compiled: OrderedDict[str, LLMatcher | ValueError] = OrderedDict()
        self._latest: dict[tuple[Grammar, str | None], str] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make what every grammar needs of the vocabulary: for 128k tokens it takes 0.4 s, in
        which no other thread runs, so better while the model is loaded."""
        _ = self._tokenizer

    # ------------------------------------------------------------ compiling

    def compile(self, grammar: Grammar, around: str | None = None) -> str:
        """A client's grammar in llguidance's form, known to compile.

        Args:
            around: A Lark grammar for the whole, in which `@reply` stands for the client's.

        Raises:
            RequestError: It does not; the reason is quoted.
        """
        if (known := self._latest.get((grammar, around))) is not None:
            return known
        try:
            inner = translated(grammar)
        except ValueError as error:
            raise _refused(grammar, str(error)) from None
        except RecursionError:
            raise _refused(grammar, "it is nested too deeply.") from None
        if problem := self.problem(together(inner)):
            raise _refused(grammar, problem)
        text = together(inner)
        if around is not None:
            text = together({"lark_grammar": around}, {"name": "reply", **inner})
            if problem := self.problem(text):
                raise _refused(grammar, problem)
        self._latest = {(grammar, around): text}  # a request may have thousands of prompts
        return text

    def problem(self, text: str) -> str | None:
        """Why a grammar in llguidance's form does not compile; None if it does."""
        try:
            self._matcher(text)
        except ValueError as error:
            return str(error)
        return None

    def matcher(self, text: str) -> Matcher:
        """A matcher at the grammar's start, for a grammar that compiles."""
        return Matcher(self._matcher(text).deep_copy(), self.vocabulary.width)

    def _matcher(self, text: str) -> LLMatcher:
        """Raises ValueError. That is kept as well: an agent sends its tools with every turn,
        and finding out that a grammar is too complex may take seconds."""
        with self._lock:
            found = self._compiled.get(text)
            if found is not None:
                self._compiled.move_to_end(text)
        if found is None:
            found = _with_deep_stack(lambda: self._tried(text))
            self._keep(text, found)
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found

    def _keep(self, text: str, found: LLMatcher | ValueError) -> None:
        with self._lock:
            self._compiled[text] = found
            while len(self._compiled) > 1 and (
                len(self._compiled) > MAX_GRAMMARS or sum(map(len, self._compiled)) > MAX_KEPT_BYTES
            ):
                self._compiled.popitem(last=False)

    def _tried(self, text: str) -> LLMatcher | ValueError:
        try:
            return self._build(text)
        except ValueError as error:
            return ValueError(str(error))  # without the traceback, and all that it holds

    def _build(self, text: str) -> LLMatcher:
        """Raises ValueError where it does not compile, or a reply could not even begin."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=MAX_LEXER_FUEL, max_items_in_row=MAX_ITEMS)
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(_short(matcher.get_error()))
        probe = matcher.deep_copy()
        probe.try_consume_tokens(probe.compute_ff_tokens())
        if not probe.is_stopped():
            probe.compute_bitmask()
        if probe.is_error():
            reason = _short(probe.get_error().partition("<state>")[0])
            raise ValueError(
                "nothing follows it." if "NoExtension" in reason else f"it is too complex: {reason}"
            )
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = _Tokens(self.vocabulary)
        return LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.eos_token_ids)


class Matcher:
    """A grammar, and how far a reply has come in it. Not for two threads at once.

    Args:
        matcher: llguidance's.
        width: Of the model's logits, V.
    """

    def __init__(self, matcher: LLMatcher, width: int) -> None:
        self._matcher = matcher
        self._words = -(-width // 32)

    @property
    def ended(self) -> bool:
        """Nothing can follow."""
        return self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """The reply may end here."""
        return self._matcher.is_accepting()

    def allowed(self) -> np.ndarray:
        """The tokens that may follow, end tokens where the grammar may end: uint32
        [⌈V / 32⌉], the lowest bit first."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        self._check()
        return mask[: self._words]

    def forced(self) -> list[int]:
        """The tokens that must follow."""
        forced = self._matcher.compute_ff_tokens()
        self._check()
        return forced

    def accept(self, token_id: int) -> None:
        """The reply got this token.

        Raises:
            GuideError: It does not follow the grammar, or that became too complex.
        """
        if not self._matcher.consume_token(token_id):
            self._check()
            raise GuideError(f"Token {token_id} does not follow the grammar.")

    def try_accept(self, token_ids: Sequence[int]) -> bool:
        """Accept all of them, or not all: then the matcher is of no further use."""
        return self._matcher.try_consume_tokens(list(token_ids)) == len(token_ids)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _short(self._matcher.get_error())
            raise GuideError(f"The grammar became too complex to follow: {reason}")


class _Tokens:
    """The vocabulary in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        tokens = list(vocabulary.tokens) + [b""] * (vocabulary.width - len(vocabulary.tokens))
        eos = sorted(vocabulary.eos_token_ids)
        if not eos:  # one beyond the logits, which no model can give
            eos = [len(tokens)]
            tokens.append(b"<end>")
        self.tokens = tokens
        self.eos_token_ids = eos
        self.eos_token_id = eos[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({*vocabulary.specials.values(), *eos})

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._vocabulary.encode(text)


# ---------------------------------------------------------------- at the edges


def _overruns(token: bytes, end: bytes) -> bool:
    if end[-1:] not in token:  # as of nearly all of them
        return False
    place = token.find(end)
    if place >= 0 and token[place + len(end) :].strip(SPACE):
        return True
    sizes = range(1, min(len(end), len(token)))
    return any(token[:n] == end[-n:] and token[n:].strip(SPACE) for n in sizes)


_stack_lock = threading.Lock()


def _with_deep_stack(work: Callable[[], T]) -> T:
    """What `work` gives or raises, called in a thread of its own."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    with _stack_lock:  # the size is the process's; a thread that begins meanwhile gets more too
        usual = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    return result.result()


def _refused(grammar: Grammar, reason: str) -> RequestError:
    return RequestError(f"`{grammar.param}` cannot be used: {reason}", param=grammar.param)


def _short(reason: str) -> str:
    """An error's first lines in one."""
    words = " ".join(reason.split())
    return words[:400] + ("…" if len(words) > 400 else "")
