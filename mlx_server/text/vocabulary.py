"""A tokenizer's tokens: texts to ids, ids to texts, and the bytes of each.

Loaded by transformers; encoding and decoding go straight to its Rust backend
where there is one, because the wrapper changes the backend's settings on the way,
which is not safe with many threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence, Set
from functools import cached_property
from typing import Any

from mlx_server.text.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    WindowDetokenizer,
    byte_alphabet,
    byte_level_bytes,
    decoder_steps,
    sentencepiece_bytes,
    token_kind,
)

_BEFORE = ("\n", ".", "a")
"""Texts to put before another, to see how it is written behind something."""

_TAG = re.compile(r"[<\[].*[>\]]", re.DOTALL)


class Vocabulary:
    """All methods may be called from many threads at once.

    Args:
        hf: transformers' tokenizer.

    Attributes:
        vocab_size: Number of tokens, added ones included.
        bos_token_id: Token that begins a text, if the model has one.
        special_token_ids: Tokens that are not shown in a reply.
    """

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._backend = getattr(hf, "backend_tokenizer", None)
        self._lock = threading.Lock()  # for tokenizers written in Python
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = bool(hf.split_special_tokens)
        self.vocab_size: int = len(hf)
        self.bos_token_id: int | None = hf.bos_token_id
        self._added = {i: token.content for i, token in hf.added_tokens_decoder.items()}
        self.special_token_ids = frozenset(
            [i for i, token in hf.added_tokens_decoder.items() if token.special]
            + list(hf.all_special_ids)
        )
        steps = decoder_steps(self._backend)
        self._kind = token_kind(steps)
        if self._backend is None and hasattr(hf, "byte_decoder"):
            self._kind = "byte_level"  # as in GPT-2's and Kimi's Python tokenizers
        self._strips_first_space = any(step["type"] == "Strip" for step in steps)

    # ------------------------------------------------------------ text to ids

    def encode(
        self, text: str, add_special_tokens: bool = True, *, markup: bool = True
    ) -> list[int]:
        """The ids of a text.

        Args:
            add_special_tokens: Put the tokenizer's own around the text.
            markup: Take special tokens within the text for such, not for text.
        """
        text = _well_formed(text)
        if self._backend is None:
            with self._lock:
                # Some take no option that they do not know.
                options = {} if markup else {"split_special_tokens": True}
                return list(self._hf.encode(text, add_special_tokens=add_special_tokens, **options))
        backend = self._backend
        if not markup:
            ids = _encode_fast(backend, text, False)
            if not self.special_token_ids.isdisjoint(ids):
                backend = self._plain_backend
            elif not add_special_tokens:
                return ids
        return _encode_fast(backend, text, add_special_tokens)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts in one input, as cross-encoders read them, with the tokenizer's own tokens
        around them: the ids, and which of the two each belongs to (0 or 1)."""
        first, second = _well_formed(first), _well_formed(second)
        if self._backend is None:
            with self._lock:
                found = self._hf(first, second, return_token_type_ids=True)
            return list(found["input_ids"]), list(found["token_type_ids"])
        encoding = self._backend.encode(first, second)
        return encoding.ids, encoding.type_ids

    def encode_within(self, text: str) -> list[int]:
        """The tokens of a text as it stands within another: no special tokens, and no space
        put before it, as many tokenizers do at the start of a text."""
        wanted, markup = text.encode(), set(self.markup_tokens.values())
        for before in ("", *_BEFORE):
            ids = self.encode(before + text, add_special_tokens=False)
            size = len(before.encode())
            while ids and size >= len(self.token_bytes(ids[0])):
                size -= len(self.token_bytes(ids.pop(0)))
            same = size == 0 and b"".join(map(self.token_bytes, ids)) == wanted
            if same and markup.isdisjoint(ids):
                return ids
        return self._spelled(wanted)

    def _spelled(self, text: bytes) -> list[int]:
        """Tokens that spell the bytes, the longest first; b"" where there is none."""
        ids, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((e for e in ends if text[at:e] in self._ids), None)
            if end is None:
                at += 1
                continue
            ids.append(self._ids[text[at:end]])
            at = end
        return ids

    def spell(self, text: bytes) -> list[int]:
        """Tokens that spell the bytes within a text."""
        try:
            return self.encode_within(text.decode())
        except UnicodeDecodeError:
            return self._spelled(text)

    @cached_property
    def start_ids(self) -> list[int]:
        """What the tokenizer puts before a text: the start token, or nothing."""
        ids = self.encode("")
        return ids[:1] if ids and ids[0] == self.bos_token_id else []

    # ------------------------------------------------------------ ids to text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence, as the tokenizer's own decoder gives it.
        Ids outside the vocabulary have no text."""
        return self._decode([i for i in ids if i in self._tokens], skip_special_tokens)

    @cached_property
    def markup_tokens(self) -> dict[str, int]:
        """Tokens that are no text, by how they are written: the special ones, and added ones
        that look like tags (many models do not call "<tool_call>" special)."""
        return {
            text: i
            for i, text in self._added.items()
            if i in self.special_token_ids or _TAG.fullmatch(text)
        }

    def visible(self, markup: Set[str]) -> frozenset[int]:
        """The special tokens among the texts by which replies are read, or within them."""
        return frozenset(
            i
            for text, i in self.markup_tokens.items()
            if i in self.special_token_ids and any(text in mark for mark in markup)
        )

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """The tokens that are one newline and nothing else."""
        return tuple(i for i, word in enumerate(self._table) if word == b"\n")

    @property
    def table(self) -> Sequence[bytes]:
        """The bytes of every token, by id."""
        return self._table

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token within a text; b"" outside the vocabulary."""
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def token_text(self, token_id: int) -> str:
        """A token's bytes as text, U+FFFD for what is no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(
        self,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special: bool = True,
        shown: Set[int] = frozenset(),
    ) -> Detokenizer:
        """A detokenizer for one reply to a prompt. Costs microseconds.

        Args:
            shown: Special tokens that are not left out.
        """
        hidden = self.special_token_ids - shown if skip_special else frozenset()
        if self._kind == "other":
            return WindowDetokenizer(self.decode, hidden, prompt_ids=prompt_ids)
        strip = self._strips_first_space
        return ByteDetokenizer(self._table, hidden, strip_first_space=strip, prompt_ids=prompt_ids)

    def _decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        if self._backend is not None:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        with self._lock:
            return self._hf.decode(ids, skip_special_tokens=skip_special_tokens)

    @cached_property
    def _plain_backend(self) -> Any:
        """The backend again, for texts whose special tokens are text: the setting is the
        backend's own, and other threads use that one."""
        own: Any = self._backend
        backend = type(own).from_str(own.to_str())
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """Every token as the vocabulary writes it."""
        return {i: token for token, i in self._hf.get_vocab().items()} | self._added

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """Plain tokens by their bytes."""
        markup = set(self.markup_tokens.values())
        return {b: i for i, b in enumerate(self._table) if b and i not in markup}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)

    @cached_property
    def _table(self) -> list[bytes]:
        """Every token's bytes. Two threads may both build it; they build the same."""
        table = [b""] * (max(self._tokens, default=-1) + 1)
        alphabet = byte_alphabet()
        anchor = self.encode("a", add_special_tokens=False)[:1]
        anchor_text = self.decode(anchor)
        for i, token in self._tokens.items():
            if i in self._added:
                table[i] = token.encode()
            elif self._kind == "byte_level":
                table[i] = byte_level_bytes(token, alphabet)
            elif self._kind == "sentencepiece":
                table[i] = sentencepiece_bytes(token)
            else:
                # A token by itself would lose its space: decode it behind another.
                text = self._decode([*anchor, i])
                table[i] = text.removeprefix(anchor_text).encode()
        return table


def _encode_fast(backend: Any, text: str, add_special_tokens: bool) -> list[int]:
    # The batch call lets other threads run meanwhile, and this one computes no offsets.
    return backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _well_formed(text: str) -> str:
    """JSON can carry half of a surrogate pair, UTF-8 cannot: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
