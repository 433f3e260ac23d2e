"""Fill-in-the-middle: a gap in a text, written with the tokens that a model has for it.

The layout is llama-server's /infill (and Qwen2.5-Coder's for a repository,
arXiv:2409.12186):

    [repo]project⏎ [file]name⏎ text … [file]filename⏎ [prefix]prefix prompt [suffix]suffix [middle]

A model without a token for files gets a plain line between them. Where everything does not
fit, the prefix loses its beginning, the suffix its end, and the files that come first go first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mlx_server.core import InfillFile, InfillPrompt
from mlx_server.errors import NotSupported

WINDOW = 2048
"""Tokens of prefix, suffix and prompt that are kept, three quarters of them of the prefix
(llama-server's `n_batch`)."""

_PROJECT, _FILE = "myproject", "filename"
"""What llama-server calls a project and the file with the gap; neither comes with a request."""

_BETWEEN_FILES = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family of models writes its tokens.

    Args:
        middle: None: the reply begins right behind the second part.
        suffix_first: The models were trained on that order only.
    """

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool = False


_FAMILIES = (
    _Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Yi-Coder
    _Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, Stable Code
    _Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Family("<PRE>", "<SUF>", "<MID>"),
    _Family("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    _Family("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),  # Seed-Coder
    _Family("[PREFIX]", "[SUFFIX]", None, suffix_first=True),  # Codestral
    _Family("<|prefix|>", "<|suffix|>", "<|middle|>"),
)
_REPO = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<repo_name>", "<reponame>", "<REPO>")
_SEPARATOR = ("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<filename>")
_PAD = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")
_ENDS = ("▁<EOT>", "<EOT>", "<|endoftext|>")
"""What ends the text of a gap, though a chat's replies end otherwise."""


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """A model's tokens for gaps.

    Args:
        middle, repo, file: None: there is none.
        suffix_first: The only order that the model knows.
        ends: Tokens that end the text of a gap, besides the model's end tokens.
    """

    prefix: int
    suffix: int
    middle: int | None
    repo: int | None
    file: int | None
    suffix_first: bool
    ends: frozenset[int]


class InfillTokenizer(Protocol):
    """What of a tokenizer writes a gap."""

    @property
    def infill(self) -> InfillTokens | None: ...

    @property
    def start_ids(self) -> list[int]: ...

    def encode(
        self, text: str, add_special_tokens: bool = True, *, markup: bool = True
    ) -> list[int]: ...


def find_infill_tokens(vocabulary: Mapping[str, int]) -> InfillTokens | None:
    """The tokens of the first family that the vocabulary has; None: the model fills no gaps."""
    for family in _FAMILIES:
        marks = [m for m in (family.prefix, family.suffix, family.middle) if m is not None]
        if not all(mark in vocabulary for mark in marks):
            continue
        repo = next((vocabulary[mark] for mark in _REPO if mark in vocabulary), None)
        file = next((vocabulary[mark] for mark in _SEPARATOR if mark in vocabulary), None)
        ends = {vocabulary[mark] for mark in (*_PAD, *_ENDS) if mark in vocabulary}
        return InfillTokens(
            prefix=vocabulary[family.prefix],
            suffix=vocabulary[family.suffix],
            middle=None if family.middle is None else vocabulary[family.middle],
            repo=repo,
            file=file,
            suffix_first=family.suffix_first,
            ends=frozenset(ends | {token for token in (repo, file) if token is not None}),
        )
    return None


def encode_infill(
    tokenizer: InfillTokenizer,
    prompt: InfillPrompt,
    context_length: int | None = None,
    max_tokens: int | None = None,
) -> list[int]:
    """The gap as the model's tokens.

    Args:
        context_length: Tokens that fit, prompt and reply together; None: nothing is cut.
        max_tokens: The reply's limit, for which room is left; None: a quarter of the context.

    Raises:
        NotSupported: The model has no fill-in-the-middle tokens.
    """
    tokens = tokenizer.infill
    if tokens is None:
        raise NotSupported(
            "Infill is not supported by this model: its vocabulary has no fill-in-the-middle "
            "tokens (such as <|fim_prefix|>, <|fim_suffix|> and <|fim_middle|>). Use a model that "
            "was trained for it, or /completion."
        )
    prefix = tokenizer.encode(prompt.prefix, False, markup=False)
    suffix = tokenizer.encode(prompt.suffix, False, markup=False)
    begun = tokenizer.encode(prompt.prompt, False) if prompt.prompt else []
    extra = _extra(tokenizer, tokens, prompt.files)
    if context_length is not None:
        reply = context_length // 4 if max_tokens is None else max_tokens
        # The first is llama-server's; there a short context would leave the reply no room.
        window = max(0, min(WINDOW, context_length - min(reply, context_length // 2) - 4))
        num_prefix = min(len(prefix), 3 * (window // 4))
        prefix = prefix[len(prefix) - num_prefix :]
        suffix = suffix[: max(0, window // 4 - 2 - len(begun))]
    before = [tokens.prefix, *prefix, *begun]
    after = [tokens.suffix, *suffix]
    turned = prompt.suffix_first or tokens.suffix_first
    gap = [*tokenizer.start_ids, *(after + before if turned else before + after)]
    if tokens.middle is not None:
        gap.append(tokens.middle)
    if context_length is not None:
        num_extra = min(len(extra), max(0, context_length - len(gap) - 2 * reply))
        extra = extra[len(extra) - num_extra :]
    return [*extra, *gap]


def _extra(
    tokenizer: InfillTokenizer, tokens: InfillTokens, files: tuple[InfillFile, ...]
) -> list[int]:
    """The repository's name and the other files, up to where the file with the gap begins."""

    def text(value: str) -> list[int]:
        return tokenizer.encode(value, False, markup=False)

    ids: list[int] = []
    if tokens.repo is not None:
        ids += [tokens.repo, *text(f"{_PROJECT}\n")]
    for file in files:
        if tokens.file is None:
            ids += text(_BETWEEN_FILES)
        else:
            ids += [tokens.file, *text(f"{file.name}\n")]
        ids += text(file.text)
    if tokens.file is not None:
        ids += [tokens.file, *text(f"{_FILE}\n")]
    return ids
