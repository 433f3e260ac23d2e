"""The tokenizer in a GGUF file's metadata, made anew with the tokenizers library.

    tokenizer.ggml.model   "llama": SentencePiece's BPE · "gpt2": BPE over bytes
    .tokens .scores .merges .token_type .pre · .bos_token_id … · .add_bos_token …
    tokenizer.chat_template

SentencePiece keeps no merges: every way to cut a token in two is one, and the
better the token's score, the earlier it is done. What cuts a text into words
before the merges is in no file: `.pre` only names it, and llama.cpp's source says
what it means (src/llama-vocab.cpp), after the tokenizers of the models themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import read_header, split_files

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Values of token_type; 1 is a normal token and 5 an unused one."""

SPACE = "\u2581"

MAX_TOKEN = 1024
"""Characters. Real ones have some hundred at most, and the ways to cut one in two are as many."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)


@dataclass(frozen=True, slots=True)
class Words:
    """How a text is cut before the merges.

    Attributes:
        patterns: One after the other, each within what the last one left.
        ignore_merges: A word that is a token is that token, whatever the merges say.
        add_bos: Whether texts begin with the start token where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = Words((rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True, add_bos=True)
_QWEN2 = Words((rf"{_LETTERS}|\p{{N}}|{_REST}",))
_TEKKEN = Words(
    (rf"{_CASES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ignore_merges=True,
    add_bos=True,
)
_PLAIN = Words((_GPT2,))
_DIGITS = Words((r"\p{N}", _GPT2))

WORDS: Mapping[str, Words] = {
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _PLAIN,
    "gpt2": _PLAIN,
    "phi-2": _PLAIN,
    "mpt": _PLAIN,
    "olmo": _PLAIN,
    "roberta-bpe": _PLAIN,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": Words(_LLAMA3.patterns),
    "smaug-bpe": Words(_LLAMA3.patterns),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "tekken": _TEKKEN,
    "deepseek-coder": Words(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
         r"\p{N}"),
    ),
}  # fmt: skip
"""The known values of tokenizer.ggml.pre."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The metadata's lists, checked."""

    path: Path
    metadata: Mapping[str, Any]
    tokens: list[str]
    kinds: Sequence[int]

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def special(self, key: str) -> str | None:
        """The token that the metadata give an id for."""
        i = self.get(f"{key}_token_id")
        return self.tokens[i] if type(i) is int and 0 <= i < len(self.tokens) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if not isinstance(value, bool) else value


def load_gguf(path: Path) -> Any:
    """The tokenizer of the file `path` as transformers' own class, with its chat template.

    Raises:
        ModelLoadError: The file has none, or one that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = _read(path)
    try:
        backend = _backend(vocabulary)
    except ModelLoadError:
        raise
    # tokenizers raises a bare Exception for what it cannot take.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(
            f"The tokenizer in {path} is damaged: fetch the file again ({reason})."
        ) from None
    named = {
        f"{name}_token": vocabulary.special(key)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token is not None},
    )
    hf.chat_template = _template(vocabulary.metadata)
    return hf


def _read(path: Path) -> _Vocabulary:
    metadata = read_header(split_files(path)[0]).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelLoadError(
            f"{path} has no tokenizer (tokenizer.ggml.tokens); convert the model again with it."
        )
    kinds = _numbers(path, metadata, "token_type", len(tokens))
    # llama.cpp's names for tokens that have none.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if (longest := max(map(len, tokens))) > MAX_TOKEN:
        raise ModelLoadError(
            f"{path} has a token of {longest} characters, and {MAX_TOKEN} can be read; fetch it "
            "again."
        )
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ModelLoadError(f"{path} has the token {twice[:80]!r} twice; convert it again.")
    return _Vocabulary(path, metadata, tokens, [1] * len(tokens) if kinds is None else kinds)


def _numbers(path: Path, metadata: Mapping[str, Any], key: str, count: int) -> list[Any] | None:
    """A list of one number for each token; None if the file has none.

    Raises:
        ModelLoadError: It is no such list.
    """
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or len(value) != count:
        found = len(value) if isinstance(value, np.ndarray) else "no list of"
        raise ModelLoadError(
            f"{path} has {count} tokens and {found} tokenizer.ggml.{key}; fetch it again."
        )
    return value.tolist()


def _backend(vocabulary: _Vocabulary) -> Any:
    from tokenizers import AddedToken

    kind = vocabulary.get("model")
    if kind not in KINDS:
        raise ModelLoadError(
            f"{vocabulary.path} has tokenizer.ggml.model {str(kind)[:80]!r}; known are "
            f"{' and '.join(KINDS)}. Choose a repo with safetensors weights of the same model."
        )
    backend, add_bos = KINDS[kind](vocabulary)
    # Their ids are those that the vocabulary gives them.
    added: dict[bool, list[Any]] = {True: [], False: []}
    for token, token_kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        if token_kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = token_kind != USER_DEFINED
            added[special].append(AddedToken(token, special=special, normalized=False))
    backend.add_special_tokens(added[True])
    backend.add_tokens(added[False])
    _surround(backend, vocabulary, add_bos)
    return backend


def _surround(backend: Any, vocabulary: _Vocabulary, add_bos: bool) -> None:
    from tokenizers import processors

    before: list[tuple[str, Any]] = []
    after: list[tuple[str, Any]] = []
    for key, default, pieces in (("bos", add_bos, before), ("eos", False, after)):
        token = vocabulary.special(key)
        if token is not None and vocabulary.flag(f"add_{key}_token", default):
            pieces.append((token, vocabulary.get(f"{key}_token_id")))
    if not before and not after:
        return
    single = [*(f"{t}:0" for t, _ in before), "$A:0", *(f"{t}:0" for t, _ in after)]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B:1"], special_tokens=[*before, *after]
    )


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = vocabulary.tokens
    scores = _numbers(vocabulary.path, vocabulary.metadata, "scores", len(tokens))
    if scores is None or not np.isfinite(scores).all():
        raise ModelLoadError(
            f"{vocabulary.path} has no tokenizer.ggml.scores, or some that are no numbers; fetch "
            "it again."
        )
    ids = {token: i for i, token in enumerate(tokens)}
    has_bytes = any(kind == BYTE for kind in vocabulary.kinds)
    unknown = vocabulary.special("unknown")
    model = models.BPE(
        vocab=ids,
        merges=_merges(tokens, scores, vocabulary.kinds),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    backend = Tokenizer(model)
    prefix = vocabulary.flag("add_space_prefix", True)
    first = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend, True


def _merges(
    tokens: list[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Every cut of every normal token into two others, the better the score, the earlier."""
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] not in (CONTROL, BYTE, UNKNOWN)}
    found = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], left, right))
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


def _byte_level(vocabulary: _Vocabulary) -> tuple[Any, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise ModelLoadError(f"{vocabulary.path} has no tokenizer.ggml.merges; fetch it again.")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if wrong := next(
        (merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None
    ):
        raise ModelLoadError(
            f"{vocabulary.path} has the merge {wrong[:80]!r}, which is no pair; fetch it again."
        )
    pre = vocabulary.get("pre", "default")
    words = WORDS.get(pre) if isinstance(pre, str) else None
    if words is None:
        raise ModelLoadError(
            f"{vocabulary.path} has tokenizer.ggml.pre {str(pre)[:80]!r}; known are "
            f"{', '.join(WORDS)}. Choose a repo with safetensors weights of the same model."
        )
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary.tokens)},
            merges=pairs,
            ignore_merges=words.ignore_merges,
        )
    )
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in words.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend, words.add_bos


KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}
"""tokenizer.ggml.model → what makes its backend."""


def _template(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None
