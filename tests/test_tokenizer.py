"""Tokenizer: loading, prompts to ids, bytes of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_server.core import ChatPrompt, Message, TextPart, TextPrompt, TokenPrompt
from mlx_server.errors import ModelLoadError, RequestError
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
