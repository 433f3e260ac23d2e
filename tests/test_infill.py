"""Gaps, written with the tokens that a model has for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlx_server.core import InfillFile, InfillPrompt
from mlx_server.errors import NotSupported
from mlx_server.text.infill import WINDOW, encode_infill, find_infill_tokens
from mlx_server.text.tokenizer import Tokenizer

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def made(marks: Sequence[str], *, starts: bool = False) -> Tokenizer:
    """A tokenizer with a token for each byte, and the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", *marks])
    if starts:
        start = [("<s>", backend.token_to_id("<s>"))]
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))


def written(tokenizer: Tokenizer, prompt: InfillPrompt, **limits: int) -> str:
    return tokenizer.decode(tokenizer.encode_prompt(prompt, **limits))


# ---------------------------------------------------------------- which tokens


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        (QWEN, "{0}pre{1}suf{2}"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "{0}pre{1}suf{2}"),
        (("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), "{0}pre{1}suf{2}"),
        (DEEPSEEK, "{0}pre{1}suf{2}"),
        (("▁<PRE>", "▁<SUF>", "▁<MID>"), "{0}pre{1}suf{2}"),
        (("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"), "{0}pre{1}suf{2}"),
        (("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"), "{1}suf{0}pre{2}"),
        (("[PREFIX]", "[SUFFIX]"), "{1}suf{0}pre"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_families(marks: tuple[str, ...], expected: str) -> None:
    assert written(made(marks), InfillPrompt("pre", "suf")) == expected.format(*marks)


@pytest.mark.parametrize("marks", [(), QWEN[:2], ("[MIDDLE]",), ("<fim_prefix>", "<SUF>", "<MID>")])
def test_a_model_without_them_says_so(marks: tuple[str, ...]) -> None:
    tokenizer = made(marks)
    assert tokenizer.infill is None
    with pytest.raises(NotSupported, match="Infill is not supported by this model"):
        tokenizer.encode_prompt(InfillPrompt("pre", "suf"))


@pytest.mark.parametrize(
    ("more", "repo", "file", "ends"),
    [
        ((), None, None, ()),
        (("<|repo_name|>", "<|file_sep|>"), 3, 4, (3, 4)),
        (("<repo_name>", "<file_sep>"), 3, 4, (3, 4)),
        (("<reponame>", "<filename>"), 3, 4, (3, 4)),
        (("<|fim_pad|>", "<|endoftext|>", "▁<EOT>"), None, None, (3, 4, 5)),
    ],
)
def test_what_else_a_vocabulary_has(
    more: tuple[str, ...], repo: int | None, file: int | None, ends: tuple[int, ...]
) -> None:
    tokens = find_infill_tokens({mark: i for i, mark in enumerate((*QWEN, *more))})
    assert tokens is not None
    assert (tokens.repo, tokens.file, tokens.ends) == (repo, file, frozenset(ends))


# ---------------------------------------------------------------- the layout

FILES = (InfillFile("a.py", "aaa"), InfillFile("b.py", "bbb"))


@pytest.mark.parametrize(
    ("more", "prompt", "expected"),
    [
        ((), InfillPrompt("p", "s", "begun"), "[P]pbegun[S]s[M]"),
        ((), InfillPrompt("p", "s", "begun", suffix_first=True), "[S]s[P]pbegun[M]"),
        ((), InfillPrompt("", ""), "[P][S][M]"),
        (
            (),
            InfillPrompt("p", "s", files=FILES),
            "\n\n--- snippet ---\n\naaa\n\n--- snippet ---\n\nbbb[P]p[S]s[M]",
        ),
        (
            ("<|repo_name|>", "<|file_sep|>"),
            InfillPrompt("p", "s"),
            "<|repo_name|>myproject\n<|file_sep|>filename\n[P]p[S]s[M]",
        ),
        (
            ("<|repo_name|>", "<|file_sep|>"),
            InfillPrompt("p", "s", files=FILES, suffix_first=True),
            "<|repo_name|>myproject\n<|file_sep|>a.py\naaa<|file_sep|>b.py\nbbb"
            "<|file_sep|>filename\n[S]s[P]p[M]",
        ),
    ],
)
def test_layout(more: tuple[str, ...], prompt: InfillPrompt, expected: str) -> None:
    for short, mark in zip(("[P]", "[S]", "[M]"), QWEN, strict=True):
        expected = expected.replace(short, mark)
    assert written(made((*QWEN, *more)), prompt) == expected


def test_the_start_token_stands_before_the_gap() -> None:
    tokenizer = made((*QWEN, "<|file_sep|>"), starts=True)
    text = written(tokenizer, InfillPrompt("p", "s"))
    assert text == "<|file_sep|>filename\n<s><|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    assert tokenizer.start_ids == [tokenizer.bos_token_id]
    assert made(QWEN).start_ids == []


def test_marks_within_the_texts_are_text() -> None:
    """Else a file could end the gap that it stands beside."""
    tokenizer = made(QWEN)
    mark = "<|fim_middle|>"
    ids = tokenizer.encode_prompt(
        InfillPrompt(f"a{mark}", f"b{mark}", files=(InfillFile("f", mark),))
    )
    assert ids.count(tokenizer.infill.middle) == 1
    assert tokenizer.decode(ids).count(mark) == 4


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("context", [64, 300, 3000, 10_000])
@pytest.mark.parametrize("max_tokens", [None, 1, 20, 5000])
@pytest.mark.parametrize("suffix_first", [False, True])
def test_a_long_gap_leaves_room_for_the_reply(
    context: int, max_tokens: int | None, suffix_first: bool
) -> None:
    tokenizer = made((*QWEN, "<|repo_name|>", "<|file_sep|>"), starts=True)
    files = (InfillFile("a", "a" * 9000), InfillFile("b", "b" * 9000))
    prompt = InfillPrompt("p" * 9000, "s" * 9000, files=files, suffix_first=suffix_first)
    ids = encode_infill(tokenizer, prompt, context, max_tokens)
    reply = context // 4 if max_tokens is None else min(max_tokens, context // 2)
    assert len(ids) + reply <= context
    text = tokenizer.decode(ids)
    assert text.count("p" * 10) and text.count("s" * 3)
    assert abs(text.count("p") - 3 * text.count("s")) < 16
    if context == 10_000 and max_tokens != 5000:
        assert text.count("p") > 3 * WINDOW // 4 - 20
        assert text.startswith("b") and "filename" in text  # the first file went first


def test_the_prefix_loses_its_beginning_and_the_suffix_its_end() -> None:
    tokenizer = made(QWEN)
    numbers = " ".join(map(str, range(2000)))
    ids = encode_infill(tokenizer, InfillPrompt(numbers, numbers), 400, 20)
    before, after = tokenizer.decode(ids).removeprefix(QWEN[0]).split(QWEN[1])
    assert numbers.endswith(before) and len(before) > 200
    assert numbers.startswith(after.removesuffix(QWEN[2])) and len(after) > 60


def test_what_fits_is_not_cut() -> None:
    tokenizer = made((*QWEN, "<|repo_name|>", "<|file_sep|>"))
    prompt = InfillPrompt("p" * 100, "s" * 30, "begun", FILES)
    whole = encode_infill(tokenizer, prompt)
    assert encode_infill(tokenizer, prompt, 1000, 100) == whole
    assert encode_infill(tokenizer, prompt, 100_000) == whole


def test_a_real_vocabulary(stories: Path) -> None:
    tokenizer = Tokenizer.load(stories / "stories260k-infill")
    ids = tokenizer.encode_prompt(
        InfillPrompt("Once", " end", files=(InfillFile("f", "Lily"),)),
        context_length=2048,
        max_tokens=16,
    )
    plain = [tokenizer.encode(text, False) for text in ("myproject\n", "f\n", "Lily", "filename\n")]
    gap = [1, 512, *tokenizer.encode("Once", False), 513, *tokenizer.encode(" end", False), 514]
    assert ids == [515, *plain[0], 516, *plain[1], *plain[2], 516, *plain[3], *gap]
    assert tokenizer.infill.ends == {515, 516}
