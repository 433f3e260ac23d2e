"""One choice's tokens on their way to text."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_server.core import FinishReason
from mlx_server.deltas import Delta, Finished, Progress, Text, TokenLogprob, TopLogprob, Usage
from mlx_server.exchange import Candidates, EngineRequest, TokenOutput
from mlx_server.text.stop import StopChecker
from mlx_server.text.tokenizer import Tokenizer


class Choice:
    """One sequence's tokens on their way to text. Sans-IO: outputs in, deltas out.

    Log-probabilities travel with the text they belong to: an entry is released
    when the last character that its token completed is.

    Args:
        echo: The prompt's text, to be given back before the reply.
    """

    def __init__(
        self, index: int, request: EngineRequest, tokenizer: Tokenizer, echo: str | None
    ) -> None:
        self.index = index
        self.finished = False
        self._cached_tokens = self._completion_tokens = 0
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer(request.token_ids)
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
        return Usage(len(self._request.token_ids), self._cached_tokens, self._completion_tokens)

    def feed(self, output: TokenOutput) -> Iterator[Delta]:
        if output.cached_tokens:
            self._cached_tokens = output.cached_tokens
        for found in output.prompt_logprobs:
            token_id = self._request.token_ids[len(self._prompt_entries)]
            self._prompt_entries.append(self._entry(token_id, found, self._prompt_decoded))
            self._prompt_decoded += len(self._prompt_detokenizer.feed(token_id))
        if not output.token_ids and output.finish_reason is None:
            yield Progress(output.prompt_tokens_done, len(self._request.token_ids))
            return
        if self._echo is not None:
            yield Text(self.index, self._echo, tuple(self._prompt_entries))
            self._echo = None
        ends = output.finish_reason == "stop"
        shown = output.token_ids[:-1] if ends else output.token_ids
        found = output.logprobs or [None] * len(output.token_ids)
        self._completion_tokens += len(output.token_ids)
        for token_id, candidates in zip(shown, found, strict=False):
            entry = None
            if candidates is not None:
                entry = self._entry(token_id, candidates, self._start + self._decoded)
            matched = yield from self._add(self._detokenizer.feed(token_id), entry)
            if matched is not None:
                yield self._finish("stop", matched)
                return
        if output.finish_reason is not None:
            matched = yield from self._add(self._detokenizer.flush(), None)
            if matched is None:
                yield from self._release(self._stop.flush(), everything=True)
            reason = output.finish_reason if matched is None else "stop"
            yield self._finish(reason, matched)

    def _add(self, text: str, entry: TokenLogprob | None) -> Iterator[Delta]:
        """Pass new text through the stop strings; returns the one that matched."""
        self._decoded += len(text)
        if entry is not None:
            self._held.append((self._decoded, entry))
        result = self._stop.feed(text)
        yield from self._release(result.text)
        return result.matched

    def _release(self, text: str, everything: bool = False) -> Iterator[Delta]:
        self._released += len(text)
        count = len(self._held) if everything else 0
        while count < len(self._held) and self._held[count][0] <= self._released:
            count += 1
        entries = tuple(entry for _, entry in self._held[:count])
        del self._held[:count]
        if text or entries:
            yield Text(self.index, text, entries)

    def _finish(self, reason: FinishReason, stop_sequence: str | None) -> Finished:
        self.finished = True
        return Finished(self.index, reason, stop_sequence, self.usage)

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
        )
