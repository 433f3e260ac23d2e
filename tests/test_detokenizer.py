"""Detokenizers: what comes out token by token is the decoding of the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mlx_server.text.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    WindowDetokenizer,
    byte_alphabet,
)
from mlx_server.text.tokenizer import Tokenizer

MODELS = Path(__file__).parents[1] / "../shared/models"
TRAINING = ["the quick brown fox, 日本語の文章 👩‍👩‍👧 naïve café — jumps over the lazy dog\n"] * 20
SPACE = "\u2581"

TEXT = st.lists(
    st.sampled_from([*"the fox 日本👩‍é\u0301\n, \t", "<|end|>"])
    | st.characters(codec="utf-8", exclude_characters="\ufffd")
).map("".join)


def wrap(backend: Backend) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>"))


def byte_level() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    return wrap(backend)


def sentencepiece(strip: bool) -> Tokenizer:
    """Byte fallback for all but a few letters, as in Llama 2 (`strip`) or Gemma."""
    pieces = [SPACE, *"thefox", SPACE + "the", "th", "he", SPACE + "t"]
    tokens = ["<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(pieces)]
    merges = [("t", "h"), ("h", "e"), (SPACE, "t"), (SPACE + "t", "he")]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab, merges, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    prepend = [normalizers.Prepend(SPACE)] if strip else []
    backend.normalizer = normalizers.Sequence([*prepend, replace])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    backend.add_special_tokens(["<|end|>"])
    return wrap(backend)


def wordpiece() -> Tokenizer:
    pieces = ["<|end|>", "[UNK]", "the", "fox", "##es", "##x", "t", ",", "日", "##é"]
    backend = Backend(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["<|end|>"])
    return wrap(backend)


def metaspace() -> Tokenizer:
    pieces = ["<|end|>", "<unk>", SPACE, SPACE + "the", SPACE + "fox", "t", "he", "日本", "é"]
    backend = Backend(models.Unigram([(p, -1.0 * i) for i, p in enumerate(pieces)], 1, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<|end|>"])
    return wrap(backend)


BYTE_LEVEL, SPM, SPM_NO_STRIP = byte_level(), sentencepiece(True), sentencepiece(False)
WORDPIECE, METASPACE = wordpiece(), metaspace()
ALL = {
    "byte-level": BYTE_LEVEL,
    "sentencepiece": SPM,
    "sentencepiece without strip": SPM_NO_STRIP,
    "wordpiece": WORDPIECE,
    "metaspace": METASPACE,
}
every_tokenizer = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL.keys())


def streamed(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join(map(detokenizer.feed, ids)) + detokenizer.flush()


@pytest.mark.parametrize(
    ("tokenizer", "kind"),
    [
        (BYTE_LEVEL, ByteDetokenizer),
        (SPM, ByteDetokenizer),
        (SPM_NO_STRIP, ByteDetokenizer),
        (WORDPIECE, WindowDetokenizer),
        (METASPACE, WindowDetokenizer),
    ],
)
def test_the_way_is_chosen_by_the_decoder(tokenizer: Tokenizer, kind: type) -> None:
    assert type(tokenizer.detokenizer()) is kind


@every_tokenizer
@given(text=TEXT, cut=st.integers(0, 30), skip=st.booleans())
def test_prompt_and_reply_decode_to_the_whole_wherever_the_prompt_ends(
    tokenizer: Tokenizer, text: str, cut: int, skip: bool
) -> None:
    ids = tokenizer.encode(text)
    prompt, reply = ids[:cut], ids[cut:]
    known = "".join(map(tokenizer.detokenizer(skip_special=skip).feed, prompt))
    text = streamed(tokenizer.detokenizer(prompt, skip_special=skip), reply)
    assert known + text == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SPM, SPM_NO_STRIP])
@given(data=st.binary(max_size=24))
def test_any_bytes_come_out_as_utf8_with_replacements(tokenizer: Tokenizer, data: bytes) -> None:
    byte_token = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    ids = [byte_token[bytes([byte])] for byte in data]
    expected = data.decode("utf-8", "replace")
    prompt = tokenizer.encode("the")  # so that no first space is dropped
    assert streamed(tokenizer.detokenizer(prompt), ids) == expected


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=30))
def test_any_byte_level_ids_come_out_as_the_tokenizer_decodes_them(ids: list[int]) -> None:
    assert streamed(BYTE_LEVEL.detokenizer(), ids) == BYTE_LEVEL.decode(ids, True)


@every_tokenizer
def test_text_is_released_as_soon_as_its_characters_are_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the fox")
    detokenizer = tokenizer.detokenizer()
    for length, token_id in enumerate(ids, 1):
        assert detokenizer.feed(token_id) or not tokenizer.decode(ids[:length])
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SPM])
def test_an_incomplete_character_waits_and_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    ids = [i for i in tokenizer.encode("𝄞") if tokenizer.token_bytes(i) != b" "]
    assert len(ids) == 4
    detokenizer = tokenizer.detokenizer(tokenizer.encode("the"))
    assert [detokenizer.feed(i) for i in ids] == ["", "", "", "𝄞"]
    assert [detokenizer.feed(i) for i in ids[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("tokenizer", [SPM, METASPACE])
def test_a_reply_keeps_its_first_space_unless_the_prompt_shows_nothing(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode("the")
    assert streamed(tokenizer.detokenizer(), ids) == "the"
    assert streamed(tokenizer.detokenizer(tokenizer.encode("fox")), ids) == " the"
    assert streamed(tokenizer.detokenizer([tokenizer.encode("<|end|>")[-1]]), ids) == "the"


@every_tokenizer
def test_special_tokens_are_shown_only_where_asked_for(tokenizer: Tokenizer) -> None:
    end = next(iter(tokenizer.special_token_ids))
    prompt, ids = tokenizer.encode("fox"), [end, *tokenizer.encode("fox")]
    assert "<|end|>" not in streamed(tokenizer.detokenizer(prompt), ids)
    shown = streamed(tokenizer.detokenizer(prompt, skip_special=False), ids)
    assert shown.lstrip().startswith("<|end|>")


@every_tokenizer
def test_ids_outside_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox")
    strange = [tokenizer.vocab_size + 7, *ids, 10**9]
    assert streamed(tokenizer.detokenizer(), strange) == streamed(tokenizer.detokenizer(), ids)


def test_a_window_decodes_a_bounded_number_of_tokens() -> None:
    sizes: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return "\ufffd" * len(ids)

    detokenizer = WindowDetokenizer(decode, prompt_ids=range(1_000))
    text = streamed(detokenizer, range(1_000))
    assert len(text) == pytest.approx(1_000, abs=WindowDetokenizer.CONTEXT)
    assert max(sizes) <= WindowDetokenizer.CONTEXT + WindowDetokenizer.MAX_WAIT


def test_the_byte_alphabet_is_that_of_tokenizers() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.skipif(not MODELS.is_dir(), reason="no shared models beside the checkout")
@pytest.mark.parametrize("name", ["base", "chat", "dragon", "moon"])
def test_golden_texts(name: str) -> None:
    golden = json.loads((MODELS / f"golden/{name}.json").read_text(encoding="utf-8"))
    folder = MODELS / golden["model"]
    tokenizer = Tokenizer.load(folder)
    for entry in golden["prompts"]:
        assert streamed(tokenizer.detokenizer(entry["prompt_ids"]), entry["ids"]) == entry["text"]


def test_a_tokenizer_written_in_python() -> None:
    tokenizer = Tokenizer(ByT5Tokenizer())
    ids = tokenizer.encode("naïve 日本 👩", add_special_tokens=False)
    assert tokenizer.decode(ids) == "naïve 日本 👩"
    assert isinstance(tokenizer.detokenizer(), WindowDetokenizer)
    for cut in range(len(ids)):
        known = "".join(map(tokenizer.detokenizer().feed, ids[:cut]))
        assert known + streamed(tokenizer.detokenizer(ids[:cut]), ids[cut:]) == "naïve 日本 👩"
