"""One choice's tokens on their way to text, and what the text turns out to be."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Iterator, Set
from dataclasses import replace

from mlx_server.core import FinishReason
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Finished,
    Progress,
    Reasoning,
    Text,
    Timings,
    TokenLogprob,
    TopLogprob,
    TopProb,
    Usage,
)
from mlx_server.exchange import Candidates, EngineRequest, TokenOutput
from mlx_server.text.clock import Clock
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Event, Thought
from mlx_server.text.parsers.output_parser import OutputParser
from mlx_server.text.stop import StopChecker
from mlx_server.text.tokenizer import Tokenizer

Matching = Generator[Delta, None, str | None]
"""Gives deltas; returns the stop string that matched."""


class Choice:
    """One sequence's tokens on their way to text. Sans-IO: outputs in, deltas out.

        token ids ─ detokenizer ─ parser ─┬─ content ─ stop strings ─ Text
                                          ├─ Reasoning
                                          └─ CallStarted, CallArguments

    Stop strings end the content; in reasoning and calls they mean nothing.
    Log-probabilities travel with the text they belong to: an entry is released
    when the last character that its token completed is; behind a parser, with
    the first piece that is given after its token came.

    Args:
        echo: The prompt's text, to be given back before the reply.
        ids, timings: Give these with the text.
        parser: Tells reasoning and calls from content; None: all is content.
        shown: Special tokens that are markup for the parser.
    """

    def __init__(
        self,
        index: int,
        request: EngineRequest,
        tokenizer: Tokenizer,
        echo: str | None = None,
        parser: OutputParser | None = None,
        shown: Set[int] = frozenset(),
        *,
        ids: bool = False,
        timings: bool = False,
    ) -> None:
        self.index = index
        self._clock = Clock()
        self._give_timings = timings
        self._new_ids: list[int] | None = [] if ids else None
        self._truncated = False
        self._slot: int | None = None
        self.finished = False
        self._cached_tokens = self._completion_tokens = self._reasoning_tokens = 0
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer(request.token_ids, shown=shown)
        self._parser = parser
        self._num_calls = 0
        self._stop = StopChecker(request.params.stop)
        self._echo = echo
        self._start = len(echo or "")
        self._prompt_entries: list[TokenLogprob] = []
        self._prompt_detokenizer = tokenizer.detokenizer()
        self._prompt_decoded = 0
        # Entries not released yet, each with the length of the text up to its end.
        self._held: list[tuple[int, TokenLogprob]] = []
        self._decoded = 0
        self._released = 0

    @property
    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(
            len(self._request.token_ids),
            self._cached_tokens,
            self._completion_tokens,
            self._reasoning_tokens,
        )

    def feed(self, output: TokenOutput) -> Iterator[Delta]:
        """The deltas of a step; one that brought several tokens gives one piece of each kind."""
        deltas = self._feed(output)
        return _joined(deltas) if len(output.token_ids) > 1 else deltas

    @property
    def begun(self) -> bool:
        """Whether it has any token."""
        return self._completion_tokens > 0

    @property
    def timings(self) -> Timings:
        """Of the reply so far."""
        return self._clock.timings(self.usage)

    def _feed(self, output: TokenOutput) -> Iterator[Delta]:
        self._note(output)
        for found in output.prompt_logprobs:
            token_id = self._request.token_ids[len(self._prompt_entries)]
            self._prompt_entries.append(self._entry(token_id, found, self._prompt_decoded))
            self._prompt_decoded += len(self._prompt_detokenizer.feed(token_id))
        # A full context is computed anew in the middle of a reply, too.
        if not self.begun and (self._clock.running or not output.token_ids):
            yield self._progress(output)
        if not output.token_ids and output.finish_reason is None:
            return
        if self._echo is not None:
            yield Text(self.index, self._echo, tuple(self._prompt_entries))
            self._echo = None
        tokens = self._shown(output)
        self._completion_tokens += len(output.token_ids)
        candidates = output.logprobs or (None,) * len(tokens)
        for token_id, candidate in zip(tokens, candidates, strict=False):
            entry = None
            if candidate is not None:
                entry = self._entry(token_id, candidate, self._start + self._decoded)
            thinking = self._thinking
            matched = yield from self._add(self._detokenizer.feed(token_id), entry)
            self._reasoning_tokens += thinking or self._thinking
            if matched is not None:
                yield from self._finish("stop", matched)
                return
        if output.finish_reason is not None:
            yield from self._end(output.finish_reason)

    def _note(self, output: TokenOutput) -> None:
        """What is told at the end, or on the way."""
        self._cached_tokens = output.cached_tokens or self._cached_tokens
        self._truncated = output.truncated
        self._slot = output.slot
        has_token = bool(output.token_ids or output.finish_reason)
        self._clock.tick(output.at, output.started_at, has_token)
        if self._new_ids is not None:
            self._new_ids += output.token_ids

    def _progress(self, output: TokenOutput) -> Progress:
        return Progress(
            output.prompt_tokens_done,
            len(self._request.token_ids),
            self._cached_tokens,
            self._clock.elapsed_ms,
            self.index,
            self._slot,
        )

    @property
    def _thinking(self) -> bool:
        """What was read last is reasoning."""
        return self._parser is not None and self._parser.thinking

    def _shown(self, output: TokenOutput) -> tuple[int, ...]:
        """Its tokens without the one that ended the reply, if one did."""
        ids, request = output.token_ids, self._request
        ends = output.finish_reason == "stop" and not request.params.ignore_eos
        return ids[:-1] if ends and ids and ids[-1] in request.eos_token_ids else ids

    def _end(self, reason: FinishReason) -> Iterator[Delta]:
        matched = yield from self._add(self._detokenizer.flush(), None)
        if matched is None and self._parser is not None:
            matched = yield from self._show(self._parser.flush(cut=reason == "length"))
        if matched is None:
            yield from self._release(self._stop.flush(), everything=True)
        yield from self._finish(reason if matched is None else "stop", matched)

    def _add(self, text: str, entry: TokenLogprob | None) -> Matching:
        """Take new text; returns the stop string that matched."""
        self._decoded += len(text)
        if entry is not None:
            self._held.append((self._decoded, entry))
        if self._parser is None:
            return (yield from self._show_content(text))
        return (yield from self._show(self._parser.feed(text)))

    def _show(self, events: list[Event]) -> Matching:
        """Returns the stop string that matched."""
        for event in events:
            match event:
                case Content(text):
                    matched = yield from self._show_content(text)
                    if matched is not None:
                        return matched
                    continue
            # The content is interrupted, so what was held back of it is no stop string.
            yield from self._release(self._stop.flush())
            match event:
                case Thought(text):
                    yield Reasoning(self.index, text, self._entries())
                case CallStart(name, own_id):
                    call_id = own_id or f"call_{secrets.token_hex(12)}"
                    self._num_calls += 1
                    call = self._num_calls - 1
                    yield CallStarted(self.index, call, call_id, name, self._entries())
                case CallPiece(text):
                    call = self._num_calls - 1
                    yield CallArguments(self.index, call, text, self._entries())
        return None

    def _show_content(self, text: str) -> Matching:
        result = self._stop.feed(text)
        yield from self._release(result.text)
        return result.matched

    def _release(self, text: str, everything: bool = False) -> Iterator[Delta]:
        self._released += len(text)
        everything = everything or (self._parser is not None and bool(text))
        entries = self._entries() if everything else self._entries(self._released)
        if text or entries:
            yield self._text(text, entries)

    def _text(self, text: str, entries: tuple[TokenLogprob, ...]) -> Text:
        ids = tuple(self._new_ids or ())
        if ids:
            self._new_ids = []
        return Text(self.index, text, entries, ids, self.timings if self._give_timings else None)

    def _entries(self, end: int | None = None) -> tuple[TokenLogprob, ...]:
        """Take the held entries of the text up to `end`; None takes all."""
        count = len(self._held) if end is None else 0
        while end is not None and count < len(self._held) and self._held[count][0] <= end:
            count += 1
        entries = tuple(entry for _, entry in self._held[:count])
        del self._held[:count]
        return entries

    def _finish(self, reason: FinishReason, stop_sequence: str | None) -> Iterator[Delta]:
        if self._new_ids:
            yield self._text("", ())
        if reason == "stop" and self._num_calls:
            reason = "tool_calls"
        yield self._finished(reason, stop_sequence)

    def cut(self) -> Finished:
        """It is broken off: nothing more is to come."""
        return self._finished("abort", None)

    def _finished(self, reason: FinishReason, stop_sequence: str | None) -> Finished:
        self.finished = True
        return Finished(
            self.index,
            reason,
            stop_sequence,
            self.usage,
            self.timings,
            self._truncated,
            self._slot,
        )

    def _entry(self, token_id: int, found: Candidates, offset: int) -> TokenLogprob:
        tokenizer = self._tokenizer
        return TokenLogprob(
            id=token_id,
            token=tokenizer.token_text(token_id),
            bytes=tokenizer.token_bytes(token_id),
            logprob=found.logprob,
            top=tuple(
                TopLogprob(i, tokenizer.token_text(i), tokenizer.token_bytes(i), value)
                for i, value in found.top
            ),
            offset=offset,
            prob=found.prob,
            top_probs=tuple(
                TopProb(i, tokenizer.token_text(i), tokenizer.token_bytes(i), value)
                for i, value in found.top_probs
            ),
        )


def _place(delta: Text | Reasoning | CallArguments) -> tuple[int, ...]:
    """Which text of the reply a piece belongs to."""
    return (delta.index, delta.call) if isinstance(delta, CallArguments) else (delta.index,)


def _with(
    last: Text | Reasoning | CallArguments, delta: Text | Reasoning | CallArguments
) -> Text | Reasoning | CallArguments:
    both = replace(last, text=last.text + delta.text, tokens=last.tokens + delta.tokens)
    if isinstance(both, Text) and isinstance(delta, Text):
        both = replace(both, ids=both.ids + delta.ids)  # the timings of a step are the same
    return both


def _joined(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Neighbours made one that are pieces of the same text."""
    last: Delta | None = None
    for delta in deltas:
        if (
            isinstance(delta, Text | Reasoning | CallArguments)
            and last is not None
            and type(last) is type(delta)
            and _place(delta) == _place(last)
        ):
            last = _with(last, delta)
            continue
        if last is not None:
            yield last
        last = delta
    if last is not None:
        yield last
