"""A model's tokenizer: text and conversations to token ids, and back.

Loaded by transformers; encoding and decoding go straight to its Rust backend
where there is one, because the wrapper changes the backend's settings on the way,
which is not safe with many threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_server.core import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from mlx_server.errors import ModelLoadError
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
from mlx_server.text.formats import OutputFormat, choose_format
from mlx_server.text.template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, prefixed_text
from mlx_server.text.tokenizer_files import load_hf, own_template, read_template

_BEFORE = ("\n", ".", "a")
"""Texts to put before another, to see how it is written behind something."""

_TAG = re.compile(r"[<\[].*[>\]]", re.DOTALL)


class Tokenizer:
    """Made by `Tokenizer.load`. All methods may be called from many threads at once.

    Attributes:
        vocab_size: Number of tokens, added ones included.
        eos_token_ids: Tokens that end a reply.
        bos_token_id: Token that begins a text, if the model has one.
        special_token_ids: Tokens that are not shown in a reply.
        has_chat_template: Whether a template was given or came with the model.
    """

    def __init__(
        self,
        hf: Any,
        *,
        chat_template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self._hf = hf
        self._backend = getattr(hf, "backend_tokenizer", None)
        self._lock = threading.Lock()  # for tokenizers written in Python
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = bool(hf.split_special_tokens)
        self.vocab_size: int = len(hf)
        self.bos_token_id: int | None = hf.bos_token_id
        own_eos = () if hf.eos_token_id is None else (hf.eos_token_id,)
        self.eos_token_ids = frozenset((*eos_token_ids, *own_eos))
        self._added = {i: token.content for i, token in hf.added_tokens_decoder.items()}
        self.special_token_ids = frozenset(
            [i for i, token in hf.added_tokens_decoder.items() if token.special]
            + list(hf.all_special_ids)
        )
        self.has_chat_template = chat_template is not None
        variables = {**hf.special_tokens_map, **(template_args or {})}
        self._template = ChatTemplate(chat_template or DEFAULT_CHAT_TEMPLATE, variables)
        steps = decoder_steps(self._backend)
        self._kind = token_kind(steps)
        if self._backend is None and hasattr(hf, "byte_decoder"):
            self._kind = "byte_level"  # as in GPT-2's and Kimi's Python tokenizers
        self._strips_first_space = any(step["type"] == "Strip" for step in steps)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        use_default_chat_template: bool = False,
        template_args: Mapping[str, Any] | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> Tokenizer:
        """The tokenizer of a model folder.

        Args:
            chat_template: A file or the template itself, instead of the model's.
            use_default_chat_template: ChatML instead of the model's.
            template_args: Variables for every rendering; a request's come first.
            eos_token_ids: End tokens that the model's configuration names; the
                tokenizer's own is added.

        Raises:
            ModelLoadError: Says in one line what is missing or wrong.
        """
        from jinja2 import TemplateSyntaxError

        hf = load_hf(Path(path), trust_remote_code)
        if chat_template is not None:
            source: str | None = read_template(chat_template)
        elif use_default_chat_template:
            source = DEFAULT_CHAT_TEMPLATE
        else:
            source = own_template(hf, Path(path))
        try:
            return cls(
                hf, chat_template=source, template_args=template_args, eos_token_ids=eos_token_ids
            )
        except TemplateSyntaxError as error:
            raise ModelLoadError(
                f"The chat template does not compile (line {error.lineno}: {error.message}); "
                "mend it or give another with --chat-template."
            ) from None
        except ValueError as error:
            raise ModelLoadError(f"--chat-template-args: {error}.") from None

    # ------------------------------------------------------------ text to ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        text = _well_formed(text)
        if self._backend is not None:
            # The batch call lets other threads run meanwhile, and this one computes no offsets.
            batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return batch[0].ids
        with self._lock:
            return list(self._hf.encode(text, add_special_tokens=add_special_tokens))

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

    @property
    def template(self) -> ChatTemplate:
        """The chat template that renders conversations, the default one if there is no other."""
        return self._template

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises RequestError if the template refuses it."""
        if prompt.role_mapping is not None and not self.has_chat_template:
            return prefixed_text(prompt.messages, prompt.role_mapping, prompt.tools)
        return self._template.render(
            prompt.messages,
            prompt.template_args,
            tools=prompt.tools,
            reasoning_effort=prompt.reasoning_effort,
        )

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's ids; empty only if the prompt is and the model has no start token.

        A template writes its special tokens itself; a plain text gets the
        tokenizer's. Raises RequestError if the chat template refuses the messages.
        """
        match prompt:
            case TokenPrompt():
                return list(prompt.token_ids)
            case TextPrompt():
                return self.encode(prompt.text)
            case ChatPrompt():
                templated = prompt.role_mapping is None or self.has_chat_template
                return self.encode(self.render(prompt), add_special_tokens=not templated)

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
    def format(self) -> OutputFormat:
        """How the model's family writes reasoning and calls."""
        template = self._template
        return choose_format(template.source, self._hf.get_vocab(), template.knows_tools)

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


def _well_formed(text: str) -> str:
    """JSON can carry half of a surrogate pair, UTF-8 cannot: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
