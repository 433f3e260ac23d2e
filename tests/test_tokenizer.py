"""Tokenizer: loading, prompts to ids, bytes of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_server.core import (
    ChatPrompt,
    Message,
    MixedPrompt,
    TextOptions,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from mlx_server.errors import ModelLoadError, RequestError
from mlx_server.services import TokenPiece
from mlx_server.text.text_options import find_breakers
from mlx_server.text.tokenizer import Tokenizer

MODELS = Path(__file__).parents[1] / "../shared/models"
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason="no shared models beside")

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ mood }}"
HELLO = (Message("user", (TextPart("hello"),)),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer that begins a text with <s>."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(["hello there, hello world"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    backend.add_tokens(["<tool é>"])
    # Settings that the transformers wrapper undoes on its first call.
    backend.enable_truncation(4)
    backend.enable_padding(length=16, pad_id=1, pad_token="</s>")
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    hf.save_pretrained(tmp_path)
    return tmp_path


def with_template(folder: Path, template: Any) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(config))
    return folder


def test_what_it_knows(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder, eos_token_ids=[7])
    assert tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_ids == {1, 7}
    assert tokenizer.special_token_ids == {0, 1}
    assert tokenizer.vocab_size == len(AutoTokenizer.from_pretrained(folder))


def test_texts_are_encoded_and_decoded_as_transformers_does(folder: Path) -> None:
    tokenizer, hf = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("", "hello", "hello world, hello there </s> <tool é> 日本", "a\x00b"):
        ids = tokenizer.encode(text)
        assert ids == hf.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
        assert tokenizer.decode(ids[1:], skip_special_tokens=False) == hf.decode(ids[1:])


def test_half_a_surrogate_pair_is_replaced(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a\ud83dz") == tokenizer.encode("a\ufffdz")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_many_threads_get_what_one_gets(folder: Path) -> None:
    tokenizer = Tokenizer.load(with_template(folder, TEMPLATE))
    texts = [f"hello {'there ' * n}" for n in range(40)]
    prompts = [ChatPrompt((Message("user", (TextPart(text),)),)) for text in texts]

    def work(prompt: ChatPrompt) -> tuple[list[int], str, str]:
        ids = tokenizer.encode_prompt(prompt)
        detokenizer = tokenizer.detokenizer()
        return ids, tokenizer.decode(ids), "".join(map(detokenizer.feed, ids))

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(work, prompts * 5))
    assert together == [work(prompt) for prompt in prompts] * 5


# ---------------------------------------------------------------- bytes


def test_token_bytes(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    added = tokenizer.encode("<tool é>", add_special_tokens=False)
    assert len(added) == 1
    assert tokenizer.token_bytes(added[0]) == "<tool é>".encode()
    assert tokenizer.token_bytes(1) == b"</s>"
    for strange in (-1, tokenizer.vocab_size, 10**9):
        assert (tokenizer.token_bytes(strange), tokenizer.token_text(strange)) == (b"", "")
    text = "hello é 日本 😀\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    half = next(i for i in ids if tokenizer.token_bytes(i) == "é".encode()[:1])
    assert tokenizer.token_text(half) == "\ufffd"


@needs_models
def test_token_bytes_of_sentencepiece() -> None:
    tokenizer = Tokenizer.load(MODELS / "stories260k")
    ids = tokenizer.encode("Once 日本\n", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == " Once 日本\n".encode()
    assert tokenizer.token_bytes(3 + 0xFF) == b"\xff"


def test_token_bytes_behind_another_word() -> None:
    pieces = ["[UNK]", "a", "fox", "##es"]
    backend = Backend(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [tokenizer.token_bytes(i) for i in (2, 3)] == [b" fox", b"es"]


# ---------------------------------------------------------------- prompts


def test_a_plain_text_gets_the_start_token_and_ids_stay_as_they_are(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_prompt(TextPrompt("hello")) == [0, *tokenizer.encode("hello", False)]
    assert tokenizer.encode_prompt(TokenPrompt((5, 6))) == [5, 6]


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{% for m in messages %}{{ m.content }}{% endfor %}"]
)
def test_a_chat_is_what_apply_chat_template_gives(folder: Path, template: str) -> None:
    tokenizer = Tokenizer.load(with_template(folder, template))
    hf = AutoTokenizer.from_pretrained(folder)
    wire = [{"role": "user", "content": "hello"}]
    expected = hf.apply_chat_template(wire, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_prompt(ChatPrompt(HELLO)) == expected


@pytest.mark.parametrize("role_mapping", [None, {"user": "", "assistant": "", "stop": "|"}])
def test_a_prompt_says_how_it_ends(folder: Path, role_mapping: Mapping[str, str] | None) -> None:
    template = None if role_mapping else "{% for m in messages %}{{ m.content }}|{% endfor %}"
    if role_mapping is None:
        folder = with_template(folder, template + "{% if add_generation_prompt %}>{% endif %}")
    tokenizer = Tokenizer.load(folder)
    begun = (*HELLO, Message("assistant", (TextPart("so "),)))

    def rendered(messages: tuple[Message, ...], **fields: bool) -> str:
        return tokenizer.render(ChatPrompt(messages, role_mapping=role_mapping, **fields))

    assert rendered(HELLO, add_generation_prompt=False) == "hello|"
    assert rendered(begun, continue_final=True) == "hello|so "
    with pytest.raises(RequestError, match="continue_final_message"):
        rendered(HELLO, continue_final=True)


@needs_models
def test_golden_prompts() -> None:
    golden = json.loads((MODELS / "golden/chat.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(MODELS / golden["model"])
    for entry in golden["prompts"]:
        messages = tuple(Message(m["role"], (TextPart(m["content"]),)) for m in entry["messages"])
        assert tokenizer.render(ChatPrompt(messages)) == entry["prompt"]
        assert tokenizer.encode_prompt(ChatPrompt(messages)) == entry["prompt_ids"]


CHATML = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("own", "settings", "rendered"),
    [
        (None, {}, CHATML),
        (TEMPLATE, {}, "<s>[hello]"),
        (TEMPLATE, {"use_default_chat_template": True}, CHATML),
        (TEMPLATE, {"chat_template": "{{ bos_token }}!"}, "<s>!"),
        (TEMPLATE, {"chat_template": "{{ 1 }}", "use_default_chat_template": True}, "1"),
        (TEMPLATE, {"template_args": {"mood": "calm"}}, "<s>[hello]calm"),
        ([{"name": "default", "template": "{{ 2 }}"}, {"name": "rag", "template": ""}], {}, "2"),
    ],
)
def test_which_template_is_used(
    folder: Path, own: Any, settings: Mapping[str, Any], rendered: str
) -> None:
    tokenizer = Tokenizer.load(with_template(folder, own), **settings)
    assert tokenizer.render(ChatPrompt(HELLO)) == rendered


def test_templates_from_files(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "own"}))
    assert Tokenizer.load(folder).render(ChatPrompt(HELLO)) == "own"
    (folder / "given.jinja").write_text("given")
    tokenizer = Tokenizer.load(folder, chat_template=str(folder / "given.jinja"))
    assert tokenizer.render(ChatPrompt(HELLO)) == "given"


def test_a_requests_variables_come_before_the_servers(folder: Path) -> None:
    tokenizer = Tokenizer.load(with_template(folder, TEMPLATE), template_args={"mood": "calm"})
    assert tokenizer.render(ChatPrompt(HELLO, {"mood": "keen"})) == "<s>[hello]keen"


def test_role_mapping_is_for_models_without_a_template(folder: Path) -> None:
    prompt = ChatPrompt(HELLO, role_mapping={"user": "Q: ", "assistant": "A:", "stop": "\n"})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.render(prompt) == "Q: hello\nA:"
    assert tokenizer.encode_prompt(prompt) == tokenizer.encode("Q: hello\nA:")
    assert tokenizer.encode_prompt(prompt)[0] == tokenizer.bos_token_id
    assert Tokenizer.load(with_template(folder, TEMPLATE)).render(prompt) == "<s>[hello]"


def test_a_template_that_refuses_is_the_requests_error(folder: Path) -> None:
    tokenizer = Tokenizer.load(with_template(folder, "{{ raise_exception('no such role') }}"))
    with pytest.raises(RequestError, match="no such role"):
        tokenizer.encode_prompt(ChatPrompt(HELLO))


# ---------------------------------------------------------------- what cannot be loaded


def remote_code(folder: Path) -> None:
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("")


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), {}, "no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text('{"version": '), {}, "damaged"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": {}}'), {}, "damaged"),
        (remote_code, {}, "--trust-remote-code"),
        (lambda f: None, {"chat_template": "no/such.jinja"}, "no/such.jinja"),
        (lambda f: None, {"chat_template": "{% if %}"}, "does not compile"),
        (lambda f: None, {"template_args": {"messages": []}}, "--chat-template-args"),
        (lambda f: (f / "chat_template.json").write_text("{"), {}, "chat_template.json"),
    ],
)
def test_load_errors_are_one_line_with_the_mend(
    folder: Path, spoil: Any, settings: Mapping[str, Any], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelLoadError, match=message) as caught:
        Tokenizer.load(folder, **settings)
    assert "\n" not in caught.value.message


# ---------------------------------------------------------------- texts and ids in turns


def test_mixed_parts(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    hello, world = (tokenizer.encode(text, False) for text in ("hello", " world"))
    for parts, ids in (
        (("hello",), [0, *hello]),
        (("hello", 7, " world"), [0, *hello, 7, *world]),
        ((7, "hello"), [7, *hello]),
        ((7, 8), [7, 8]),
        (("", 7), [0, 7]),
        ((), []),
    ):
        assert tokenizer.encode_prompt(MixedPrompt(parts)) == ids


def test_special_tokens_are_text_where_they_shall_be(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    text = "hello </s> there <tool é>"
    assert 1 in tokenizer.encode(text)
    ids = tokenizer.encode(text, False, markup=False)
    assert 1 not in ids and tokenizer.decode(ids) == text
    # Added tokens that are not special stay tokens, as in llama.cpp.
    assert ids[-1] == tokenizer.encode("<tool é>", False)[0]
    assert tokenizer.encode("hello", markup=False) == tokenizer.encode("hello")
    assert 1 in tokenizer.encode(text)


def test_pieces_are_the_bytes_of_the_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    pieces = tokenizer.pieces(["hello é", 1, "</s>", 10**6], add_special=True, markup=False)
    assert pieces[0] == TokenPiece(0, b"<s>")
    assert pieces[-1] == TokenPiece(10**6, b"")
    assert b"".join(piece.bytes for piece in pieces) == "<s>hello é</s></s>".encode()
    plain = tokenizer.pieces(["</s>"], add_special=False, markup=True)
    assert plain == [TokenPiece(1, b"</s>")]


def test_a_python_tokenizer_takes_special_tokens_for_text(folder: Path) -> None:
    class Slow:
        """What of a tokenizer without a Rust backend is used here."""

        def __init__(self, hf: Any) -> None:
            self._fast = hf

        def __getattr__(self, name: str) -> Any:
            if name in ("backend_tokenizer", "byte_decoder"):
                raise AttributeError(name)
            return getattr(self._fast, name)

        def __len__(self) -> int:
            return len(self._fast)

    fast = Tokenizer.load(folder)
    slow = Tokenizer(Slow(AutoTokenizer.from_pretrained(folder)))
    for markup in (True, False):
        text = "hello </s>"
        assert slow.encode(text, markup=markup) == fast.encode(text, markup=markup)


# ---------------------------------------------------------------- options that are text


def test_a_texts_bias_is_that_of_its_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(" world", False)
    options = TextOptions(logit_bias=((" world", 1.5), ("</s>", -math.inf)))
    biases = tokenizer.resolve(options)["logit_bias"]
    assert biases[: len(ids)] == tuple((i, 1.5) for i in ids)
    # A special token that is written out is text.
    assert 1 not in {i for i, _ in biases}


@pytest.mark.parametrize(("penalize", "free"), [(None, False), (True, False), (False, True)])
def test_newlines_can_go_unpenalized(folder: Path, penalize: bool | None, free: bool) -> None:
    tokenizer = Tokenizer.load(folder)
    newline = tokenizer.encode("\n", False)
    assert tokenizer.newline_ids == tuple(newline)
    resolved = tokenizer.resolve(TextOptions(penalize_nl=penalize))
    assert resolved["unpenalized"] == (tuple(newline) if free else ())
    assert (resolved["logit_bias"], resolved["dry_breakers"]) == ((), ())


def test_breakers_are_every_way_in_which_tokens_hold_a_text() -> None:
    table = [b"a", b":", b"x:\n", b"y:", b"\n", b":\nz", b"b:\nc", b"", b"\n:"]

    def spell(text: bytes) -> list[int]:
        return [table.index(text[i : i + 1]) for i in range(len(text))]

    # Within 2, 5 and 6; begun by 1, 3 and 8 and ended by 4.
    found = find_breakers(table, spell, ":\n")
    assert sorted(found) == [(1, 4), (2,), (3, 4), (5,), (6,), (8, 4)]
    assert find_breakers(table, spell, "a") == ((0,),)
    assert find_breakers(table, spell, "") == ()
    # A token that ends with several beginnings of the text is one way for each.
    letters = [b"a", b"aa", b"b"]
    assert sorted(find_breakers(letters, lambda t: [2 if t == b"b" else 0] * len(t), "aab")) == [
        (0, 0, 0), (1, 0, 0), (1, 2),
    ]  # fmt: skip


def test_breakers_spell_the_text_in_any_split(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for text in ("hello", "\n", ": é"):
        sequences = tokenizer.breakers(text)
        assert sequences and tokenizer.breakers(text) is sequences
        for sequence in sequences:
            assert text.encode() in b"".join(map(tokenizer.token_bytes, sequence))
        ids = tuple(tokenizer.encode_within(text))
        assert any(ids[: len(s)] == s or s == ids for s in sequences)
    long = tokenizer.breakers("\n" * 200)
    assert max(map(len, long)) <= 1 + 20
    both = tokenizer.resolve(TextOptions(dry_breakers=("\n", ":", "\n")))["dry_breakers"]
    assert both == tokenizer.breakers("\n") + tokenizer.breakers(":")


# ---------------------------------------------------------------- llama.cpp's names of templates


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("chatml", "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"),
        ("llama2", "<s>[INST] hello [/INST]"),
        ("gigachat", "<s>user<|role_sep|>hello<|message_sep|>available functions<|role_sep|>[]"
         "<|message_sep|>assistant<|role_sep|>"),
    ],
)  # fmt: skip
def test_a_name_stands_for_a_template(folder: Path, name: str, rendered: str) -> None:
    tokenizer = Tokenizer.load(with_template(folder, TEMPLATE), chat_template=name)
    assert tokenizer.render(ChatPrompt(HELLO)) == rendered
    assert tokenizer.encode_prompt(ChatPrompt(HELLO))[:2].count(0) == 1


def test_no_start_token_where_the_tokenizer_puts_none(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    tokenizer = Tokenizer.load(folder, chat_template="llama2")
    assert tokenizer.render(ChatPrompt(HELLO)) == "[INST] hello [/INST]"
