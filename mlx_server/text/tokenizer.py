"""A model's tokenizer: text and conversations to token ids, and back.

Loaded by transformers; encoding and decoding go straight to its Rust backend
where there is one, because the wrapper changes the backend's settings on the way,
which is not safe with many threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
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
from mlx_server.text.template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, prefixed_text

_VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


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

        hf = _load_hf(Path(path), trust_remote_code)
        if chat_template is not None:
            source: str | None = _read_template(chat_template)
        elif use_default_chat_template:
            source = DEFAULT_CHAT_TEMPLATE
        else:
            source = _own_template(hf, Path(path))
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

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises RequestError if the template refuses it."""
        if prompt.role_mapping is not None and not self.has_chat_template:
            return prefixed_text(prompt.messages, prompt.role_mapping)
        return self._template.render(prompt.messages, prompt.template_args)

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

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token within a text; b"" outside the vocabulary."""
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def token_text(self, token_id: int) -> str:
        """A token's bytes as text, U+FFFD for what is no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), *, skip_special: bool = True
    ) -> Detokenizer:
        """A detokenizer for one reply to a prompt. Costs microseconds."""
        hidden = self.special_token_ids if skip_special else frozenset()
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


# ---------------------------------------------------------------- loading


def _well_formed(text: str) -> str:
    """JSON can carry half of a surrogate pair, UTF-8 cannot: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load_hf(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if not trust_remote_code and not any(
        found for pattern in _VOCABULARY_FILES for found in path.glob(pattern)
    ):
        raise ModelLoadError(
            f"{path} has no tokenizer (no tokenizer.json, tokenizer.model or vocabulary): "
            "copy the tokenizer's files there."
        )
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    # tokenizers raises a bare Exception for a file that it cannot read.
    except Exception as error:
        reason = " ".join(str(error).split())
        if not trust_remote_code and "trust_remote_code" in reason:
            raise ModelLoadError(
                f"The tokenizer in {path} brings its own code; start with --trust-remote-code "
                "if you trust it."
            ) from None
        raise ModelLoadError(
            f"The tokenizer in {path} cannot be loaded: its files are damaged, incomplete or of "
            f"an unknown kind; download them again ({reason[:200]})."
        ) from None


def _read_template(given: str) -> str:
    """The template in a file, or `given` itself if it is one."""
    if "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"--chat-template {given}: {getattr(error, 'strerror', None) or error}; "
            "give a readable file or the template itself."
        ) from None


def _own_template(hf: Any, path: Path) -> str | None:
    template = hf.chat_template
    if template is None and (path / "chat_template.json").is_file():
        try:
            template = json.loads((path / "chat_template.json").read_text(encoding="utf-8"))
            template = template["chat_template"]
        except (ValueError, KeyError, TypeError):
            raise ModelLoadError(
                f"{path / 'chat_template.json'} is damaged: download it again or give another "
                "with --chat-template."
            ) from None
    if isinstance(template, dict):  # several, by name
        template = template.get("default") or next(iter(template.values()), None)
    return template
