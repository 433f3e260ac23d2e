"""A model's tokenizer: prompts of every kind to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mlx_server.core import (
    ChatPrompt,
    InfillPrompt,
    MixedPrompt,
    Prompt,
    TextOptions,
    TextPrompt,
    TokenPrompt,
)
from mlx_server.errors import ModelLoadError, RequestError
from mlx_server.services import TokenPiece
from mlx_server.text.formats import OutputFormat, choose_format
from mlx_server.text.infill import InfillTokens, encode_infill, find_infill_tokens
from mlx_server.text.template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, prefixed_text
from mlx_server.text.template_names import TEMPLATES
from mlx_server.text.text_options import TokenSequence, find_breakers, resolve
from mlx_server.text.tokenizer_files import load_hf, own_template, read_template
from mlx_server.text.vocabulary import Vocabulary


class Tokenizer(Vocabulary):
    """Made by `Tokenizer.load`. All methods may be called from many threads at once.

    Args:
        hf: transformers' tokenizer.
        chat_template: Its source; None: the default one.
        template_args: Variables for every rendering; a request's come first.
        eos_token_ids: End tokens beside the tokenizer's own.

    Attributes:
        eos_token_ids: Tokens that end a reply; `eos_token_id` is the tokenizer's own, if any.
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
        super().__init__(hf)
        self.eos_token_id: int | None = hf.eos_token_id
        own_eos = () if hf.eos_token_id is None else (hf.eos_token_id,)
        self.eos_token_ids = frozenset((*eos_token_ids, *own_eos))
        self.has_chat_template = chat_template is not None
        variables = {**hf.special_tokens_map, **(template_args or {})}
        self._template = ChatTemplate(chat_template or DEFAULT_CHAT_TEMPLATE, variables)

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
            chat_template: A file, the template itself or llama.cpp's name of one, instead
                of the model's.
            use_default_chat_template: ChatML instead of the model's.
            template_args: Variables for every rendering; a request's come first.
            eos_token_ids: End tokens that the model's configuration names; the
                tokenizer's own is added.

        Raises:
            ModelLoadError: Says in one line what is missing or wrong.
        """
        from jinja2 import TemplateSyntaxError

        hf = load_hf(Path(path), trust_remote_code)
        if chat_template is not None and chat_template in TEMPLATES:
            source: str | None = _with_start(TEMPLATES[chat_template], hf)
        elif chat_template is not None:
            source = read_template(chat_template)
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

    # ------------------------------------------------------------ prompts

    @property
    def template(self) -> ChatTemplate:
        """The chat template that renders conversations, the default one if there is no other."""
        return self._template

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text. Raises RequestError if the template refuses it."""
        if prompt.role_mapping is not None and not self.has_chat_template:
            return prefixed_text(
                prompt.messages,
                prompt.role_mapping,
                prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final=prompt.continue_final,
            )
        return self._template.render(
            prompt.messages,
            prompt.template_args,
            tools=prompt.tools,
            reasoning_effort=prompt.reasoning_effort,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final=prompt.continue_final,
        )

    def encode_prompt(
        self,
        prompt: Prompt,
        *,
        context_length: int | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The prompt's ids; empty only if the prompt is and the model has no start token.

        A template writes its special tokens itself; a plain text, and a text that
        begins a mixed prompt, gets the tokenizer's.

        Args:
            context_length, max_tokens: What a gap's surroundings are cut for (`encode_infill`).

        Raises:
            RequestError: The chat template refuses the messages.
            NotSupported: A gap, and the model has no tokens for one.
        """
        match prompt:
            case TokenPrompt():
                return list(prompt.token_ids)
            case TextPrompt():
                return self.encode(prompt.text)
            case MixedPrompt():
                return self._encode_parts(prompt.parts, add_special=True, markup=True)
            case InfillPrompt():
                return encode_infill(self, prompt, context_length, max_tokens)
            case ChatPrompt():
                templated = prompt.role_mapping is None or self.has_chat_template
                return self.encode(self.render(prompt), add_special_tokens=not templated)

    def _encode_parts(
        self, parts: Sequence[str | int], *, add_special: bool, markup: bool
    ) -> list[int]:
        """Texts and ids; special tokens are put around the first part only, and if it is text."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.encode(part, add_special and i == 0, markup=markup)
        return ids

    def pieces(
        self, parts: Sequence[str | int], *, add_special: bool, markup: bool
    ) -> list[TokenPiece]:
        """Texts and ids as tokens with their bytes; an id outside the vocabulary has none.

        Args:
            add_special: Put the tokenizer's own tokens around the first part, if it is text.
            markup: Take special tokens within the texts for such, not for text.
        """
        ids = self._encode_parts(parts, add_special=add_special, markup=markup)
        return [TokenPiece(i, self.token_bytes(i)) for i in ids]

    def resolve(self, options: TextOptions) -> dict[str, Any]:
        """Options that are text as `SamplingParams` fields: `logit_bias`, `dry_breakers` and
        `unpenalized`, all three."""
        return resolve(self, options)

    def breakers(self, text: str) -> tuple[TokenSequence, ...]:
        """The token sequences that hold a text that repetition does not go across."""
        return self._breakers(text)

    @cached_property
    def _breakers(self) -> Callable[[str], tuple[TokenSequence, ...]]:
        # Every token is looked at, and the same few texts come with every request.
        return lru_cache(maxsize=64)(lambda text: find_breakers(self._table, self.spell, text))

    @cached_property
    def infill(self) -> InfillTokens | None:
        """The model's fill-in-the-middle tokens, if it has them."""
        return find_infill_tokens(self._hf.get_vocab())

    @cached_property
    def format(self) -> OutputFormat:
        """How the model's family writes reasoning and calls."""
        template = self._template
        return choose_format(template.source, self._hf.get_vocab(), template.knows_tools)


def _with_start(template: str, hf: Any) -> str:
    """The template with the start token where the tokenizer puts one before texts: a template
    writes its special tokens itself, and llama.cpp's names mean it without."""
    bos = hf.bos_token
    starts = bos is not None and hf.encode("")[:1] == [hf.bos_token_id]
    return "{{ bos_token }}" + template if starts and not template.startswith(bos) else template


def check_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises RequestError for one that is not in the vocabulary."""
    wrong = next((i for i in token_ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise RequestError(
            f"Token id {wrong} in `{param}` is not in the vocabulary (0 to {vocab_size - 1}).",
            param=param,
        )
