"""Tokenizers out of GGUF metadata give the ids and bytes of the models' own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import read_gguf, story, write_gguf
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mlx_server import demo
from mlx_server.errors import ModelLoadError
from mlx_server.text.gguf_tokenizer import WORDS, load_gguf
from mlx_server.text.tokenizer import Tokenizer

__all__ = ["story"]

TEXTS = [
    "", " ", "  ", "\n", "a", "Once upon a time", " Once  upon a time ", "\n\n  x\r\n\ty ",
    "Lily's mom said, \"Lily, LET'S go.\" They'll've gone.",
    "Café ñandú — “quoted” …", "媽 🤗 👨‍👩‍👧",
    "你好，世界。Привет שלום مرحبا हिन्दी", "é é ﬁ Ω",
    "#include <cstdio>\nint main() { return 0x41; }",
    "1234567890 3.14159e-10 50% $100 & more", "UPPER lower MiXeD CamelCaseWord",
    "\xa0nbsp\u200ahair\u3000wide",
    "aaaaaaaa    \t\t  ", "<s>hi</s> <0x41> <unk>", "a/b//c !!! ???\n/", "\U0010ffff\ufffd\x80",
]  # fmt: skip
WORDS_OF_TEXTS = [
    "once", "upon", "a", "time", "there", "was", "Lily's", "little", "42", "dogs,", "played!",
    "\n\t", "007", "été",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS_OF_TEXTS, k=rng.randint(1, 12))) for _ in range(count)]
    letters = [chr(i) for i in (*range(1, 0x250), *range(0x3040, 0x3060), 0x1F600)]
    return texts + ["".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize(
    ("file", "folder"),
    [("stories260K", "stories260k"), ("stories260K-infill", "stories260k-infill")],
)
def test_the_file_s_tokenizer_is_the_folder_s(stories: Path, file: str, folder: str) -> None:
    ours, theirs = Tokenizer.load(stories / f"{file}.gguf"), Tokenizer.load(stories / folder)
    for text in TEXTS + random_texts(500):
        for special in (True, False):
            ids = theirs.encode(text, special)
            assert ours.encode(text, special) == ids
            assert ours.decode(ids) == theirs.decode(ids)
    for name in ("vocab_size", "bos_token_id", "eos_token_ids", "special_token_ids", "table"):
        assert getattr(ours, name) == getattr(theirs, name)


# ---------------------------------------------------------------- byte-level BPE

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE = {"gpt-2": GPT2, "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2])}
"""The words of these as their models' own tokenizer.json has them."""


def bytes_tokenizer(pre: str) -> Backend:
    backend = Backend(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in WORDS[pre].patterns]
    own = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.pre_tokenizer = PRE.get(pre, own)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3 + random_texts(100), trainer)
    return backend


def write_bytes(path: Path, backend: Backend, pre: str | None, **metadata: Any) -> Path:
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    said = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if t.startswith("<|") else 1 for t, _ in vocabulary],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.pre": pre,
    }
    said |= {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    said = {key: value for key, value in said.items() if value is not None}
    return write_gguf(path, said, {"x": np.zeros(1, dtype=np.float32)})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "default"])
def test_byte_level_tokenizers(tmp_path: Path, pre: str) -> None:
    backend = bytes_tokenizer(pre)
    ours = Tokenizer.load(write_bytes(tmp_path / "m.gguf", backend, pre))
    backend.model.ignore_merges = WORDS[pre].ignore_merges
    for text in TEXTS + random_texts(200):
        ids = backend.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.encode(text) == [0] * WORDS[pre].add_bos + ids
        assert b"".join(ours.token_bytes(i) for i in ids) == text.encode()
    assert ours.encode("a<|eot_id|>b", add_special_tokens=False)[1] == 1
    assert ours.eos_token_ids == {1}


PIECES = {
    "gpt-2": "It|'s| 1234| dogs|,|  | ok|\n|\n|Two",
    "smollm": "It|'s| |1|2|3|4| dogs|,|  | ok|\n|\n|Two",
    "llama-bpe": "It|'s| |123|4| dogs|,|  | ok|\n\n|Two",
    "qwen2": "It|'s| |1|2|3|4| dogs|,|  | ok|\n\n|Two",
    "tekken": "It|'s| |1|2|3|4| dogs|,|  | ok|\n\n|Two",
    "default": "It|'|s| |123|4| dogs|,|  | ok|\n|\n|Two",
}


@pytest.mark.parametrize("pre", PIECES)
def test_words_before_the_merges(pre: str) -> None:
    """What llama.cpp's patterns say of one text, by hand."""
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in WORDS[pre].patterns]
    found = pre_tokenizers.Sequence(splits).pre_tokenize_str("It's 1234 dogs,   ok\n\nTwo")
    assert "|".join(piece for piece, _ in found) == PIECES[pre]


def test_every_kind_of_words_compiles() -> None:
    for words in WORDS.values():
        for pattern in words.patterns:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            pieces = split.pre_tokenize_str("It's 12 x\n")
            assert "".join(piece for piece, _ in pieces) == "It's 12 x\n"


@pytest.mark.parametrize(("said", "starts"), [(None, True), (True, True), (False, False)])
def test_the_file_says_whether_texts_have_a_start(
    tmp_path: Path, said: bool | None, starts: bool
) -> None:
    backend = bytes_tokenizer("llama-bpe")
    path = write_bytes(tmp_path / "m.gguf", backend, "llama-bpe", add_bos_token=said)
    assert (Tokenizer.load(path).encode("a")[0] == 0) is starts
    path = write_bytes(tmp_path / "m.gguf", backend, "gpt-2", add_eos_token=True)
    assert Tokenizer.load(path).encode("a")[-1] == 1


# ---------------------------------------------------------------- the rest of the metadata


def with_metadata(tmp_path: Path, source: dict[str, Any], **metadata: Any) -> Path:
    said = source | {f"tokenizer.{k.replace('__', '.')}": v for k, v in metadata.items()}
    said = {key: value for key, value in said.items() if value is not None}
    return write_gguf(tmp_path / "m.gguf", said, {"x": np.zeros(1, dtype=np.float32)})


def test_a_template_and_tokens_of_the_user(tmp_path: Path, story: Any) -> None:
    tokens = list(story[0]["tokenizer.ggml.tokens"])
    kinds = story[0]["tokenizer.ggml.token_type"].copy()
    tokens[500], kinds[500] = "<|im_start|>", 4
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    path = with_metadata(
        tmp_path, story[0], ggml__tokens=tokens, ggml__token_type=kinds, chat_template=template
    )
    tokenizer = Tokenizer.load(path)
    assert tokenizer.has_chat_template
    assert tokenizer.template.source == template
    assert 500 in tokenizer.encode("a<|im_start|>b")
    assert 500 not in tokenizer.special_token_ids
    assert tokenizer.markup_tokens["<|im_start|>"] == 500
    assert not Tokenizer.load(with_metadata(tmp_path, story[0])).has_chat_template


def test_no_space_before_a_text(tmp_path: Path, story: Any) -> None:
    tokenizer = Tokenizer.load(with_metadata(tmp_path, story[0], ggml__add_space_prefix=False))
    ids = tokenizer.encode("Once", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"Once"
    assert tokenizer.decode(tokenizer.encode(" a", add_special_tokens=False)) == " a"


FAULTS = {
    "none": ({"ggml__tokens": None}, "has no tokenizer"),
    "model": ({"ggml__model": "t5"}, "tokenizer.ggml.model 't5'; known are llama and gpt2"),
    "pre": ({"ggml__model": "gpt2", "ggml__merges": ["a b"], "ggml__pre": "x"}, "pre 'x'; known"),
    "merges": ({"ggml__model": "gpt2"}, "has no tokenizer.ggml.merges"),
    "merge": ({"ggml__model": "gpt2", "ggml__merges": ["a b c"]}, "'a b c', which is no pair"),
    "unknown merge": ({"ggml__model": "gpt2", "ggml__merges": ["qqq zzz"]}, "is damaged"),
    "scores": ({"ggml__scores": [1.0]}, "512 tokens and 1 tokenizer.ggml.scores"),
    "types": ({"ggml__token_type": [1]}, "512 tokens and 1 tokenizer.ggml.token_type"),
    "twice": ({"ggml__tokens": ["a"] * 512}, "has the token 'a' twice"),
    "long": ({"ggml__tokens": ["a" * 1025] + ["a"] * 511}, "a token of 1025 characters"),
    "odd types": ({"ggml__token_type": "x"}, "token_type"),
    "odd scores": ({"ggml__scores": 4}, "scores"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_tokenizer_that_cannot_be_made(tmp_path: Path, story: Any, case: str) -> None:
    metadata, text = FAULTS[case]
    with pytest.raises(ModelLoadError) as error:
        load_gguf(with_metadata(tmp_path, story[0], **metadata))
    assert text in error.value.message
    assert "m.gguf" in error.value.message
    assert "\n" not in error.value.message


def test_read_gguf_keeps_what_it_reads(tmp_path: Path, story: Any) -> None:
    """The tests' own writer and reader agree."""
    path = write_gguf(tmp_path / "m.gguf", *story)
    metadata, tensors = read_gguf(path)
    assert metadata.keys() == story[0].keys()
    assert all(np.array_equal(tensors[name], story[1][name]) for name in story[1])


def test_the_demo_s_vocabulary_comes_back(tmp_path: Path) -> None:
    """A tokenizer of bytes that a library other than this test's trained and saved."""
    theirs = Tokenizer.load(demo.path())
    backend = Backend.from_file(str(demo.path() / "tokenizer.json"))
    path = write_bytes(tmp_path / "m.gguf", backend, "gpt-2", bos_token_id=None)
    ours = Tokenizer.load(path)
    for text in TEXTS + random_texts(100):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.table == theirs.table
    assert ours.special_token_ids == theirs.special_token_ids
