"""Token ids to text, one token at a time.

Sans-IO: feed ids, get the text that is certain by now, `flush()` at the end. What
comes out, put together, is the decoding of prompt and reply without the prompt's:
a continuation keeps its leading space. Special tokens are left out unless asked for.

Two ways, chosen by the tokenizer's decoder:

- `ByteDetokenizer` where a token simply is some bytes (byte-level BPE,
  SentencePiece with byte fallback): an incremental UTF-8 decoder over them.
- `WindowDetokenizer` for all others: decode a few tokens with and without the
  new one, and take the difference (the scheme of vLLM's incremental detokenizer).
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SPACE = "\u2581"  # how SentencePiece writes a space

TokenKind = Literal["byte_level", "sentencepiece", "other"]


class Detokenizer(ABC):
    """The text of one sequence."""

    @abstractmethod
    def feed(self, token_id: int) -> str:
        """The text that this token made certain; empty while a character is incomplete."""

    @abstractmethod
    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character."""


class ByteDetokenizer(Detokenizer):
    """For tokenizers whose tokens are bytes.

    Invalid bytes become U+FFFD as in `bytes.decode("utf-8", "replace")`.

    Args:
        table: The bytes of every token; ids outside it have none.
        hidden: Tokens that are left out.
        strip_first_space: The tokenizer drops one space at the very start of
            a text (SentencePiece), so of the reply if the prompt shows nothing.
        prompt_ids: What the reply continues; a character that its last tokens
            began is completed.
    """

    def __init__(
        self,
        table: Sequence[bytes],
        hidden: Set[int] = frozenset(),
        *,
        strip_first_space: bool = False,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._table = table
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        # No character has more than four bytes.
        for token_id in reversed(prompt_ids):
            tail = self._bytes(token_id) + tail
            if len(tail) >= 4:
                break
        self._decoder.decode(tail)
        self._strip = strip_first_space and not tail

    def feed(self, token_id: int) -> str:
        return self._stripped(self._decoder.decode(self._bytes(token_id)))

    def flush(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._hidden or not 0 <= token_id < len(self._table):
            return b""
        return self._table[token_id]

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class WindowDetokenizer(Detokenizer):
    """For every other tokenizer, through its own decoding.

        ids      a  b  c  d  e            shown: what decode(a b c) ends with
                 context ^  ^ new         text:  decode(a b c d e) beyond decode(a b c)

    New tokens wait while the text ends in U+FFFD, as it does within a
    character; after `MAX_WAIT` of them it is taken for real, so that the window,
    and with it the time per token, stays bounded.

    Args:
        decode: Text of some tokens, special ones included.
        hidden: Tokens that are left out.
        prompt_ids: What the reply continues.
    """

    CONTEXT = 6
    MAX_WAIT = 8

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        hidden: Set[int] = frozenset(),
        *,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._hidden = hidden
        context: list[int] = []
        for token_id in reversed(prompt_ids):
            if token_id not in hidden:
                context.append(token_id)
            if len(context) == self.CONTEXT:
                break
        self._ids = context[::-1]
        self._shown = len(self._ids)
        # A character that the prompt began is the reply's once it is complete.
        self._shown_text = decode(self._ids).rstrip(REPLACEMENT) if self._ids else ""

    def feed(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        waiting = len(self._ids) - self._shown
        if text.endswith(REPLACEMENT) and waiting < self.MAX_WAIT:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        if self._shown == len(self._ids):
            return ""
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        new = text[len(self._shown_text) :]
        # Context, because many decoders treat the first token of a text in a way of its own.
        self._ids = self._ids[-self.CONTEXT :]
        self._shown = len(self._ids)
        self._shown_text = self._decode(self._ids)
        return new


# ---------------------------------------------------------------- bytes of a token


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: itself
    where it is printable, else counted from U+0100 on (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def byte_level_bytes(token: str, alphabet: Mapping[str, int]) -> bytes:
    """The bytes that a token of a byte-level BPE stands for (GPT-2's alphabet).

    Args:
        alphabet: Printable character → byte.
    """
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes that a SentencePiece token stands for, "<0x0A>" being one byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token.replace(SPACE, " ").encode()


def decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """The backend's decoder as tokenizer.json describes it, a sequence as its steps."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return []
    description = json.loads(decoder.__getstate__())
    return description["decoders"] if description["type"] == "Sequence" else [description]


def token_kind(steps: Sequence[Mapping[str, Any]]) -> TokenKind:
    """How a token's bytes are written, by the decoder that reads them."""
    types = [step["type"] for step in steps]
    if types == ["ByteLevel"]:
        return "byte_level"
    if types[:3] == ["Replace", "ByteFallback", "Fuse"]:
        replace = (steps[0].get("pattern"), steps[0].get("content"))
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        if replace == ({"String": SPACE}, " ") and list(steps[3:]) in ([], strip):
            return "sentencepiece"
    return "other"
