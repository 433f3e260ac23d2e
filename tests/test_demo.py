"""The bundled demo model: it loads with plain mlx_lm, knows its dialogues and ends its turns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step

from mlx_server import demo
from mlx_server.demo import train

CORPUS = train.read_corpus(Path(demo.__file__).with_name("dialogues.txt"))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load(str(demo.path()))


def reply(loaded: tuple[Any, Any], messages: list[dict[str, str]], limit: int = 80) -> str:
    """The greedy reply. Fails if the model does not end its turn by itself."""
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=limit):
        if token in tokenizer.eos_token_ids:
            return tokenizer.decode(ids)
        ids.append(token)
    raise AssertionError(f"no end of turn after {tokenizer.decode(ids)!r}")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "question",
    ["Hello", "What is mlx_server?", "How do I start the server?", "Which port is used?"],
)
def test_answers_what_it_was_taught(loaded: tuple[Any, Any], question: str) -> None:
    assert reply(loaded, [user(question)]) == dict(CORPUS.pairs)[question]


def test_system_messages_anywhere_do_not_disturb_it(loaded: tuple[Any, Any]) -> None:
    brief = {"role": "system", "content": "Be brief."}
    polite = {"role": "developer", "content": "Always be polite."}
    alone = reply(loaded, [user("Hello")])
    assert reply(loaded, [brief, polite, user("Hello")]) == alone
    turn = [brief, user("Thank you"), {"role": "assistant", "content": "You are welcome!"}]
    assert reply(loaded, [*turn, user("Hello")]) == alone


def test_admits_what_it_does_not_know(loaded: tuple[Any, Any]) -> None:
    unknown = dict(CORPUS.pairs)["What is a {}?"]
    assert reply(loaded, [user("What is a castle?")]) == unknown


def test_end_tokens_are_named_in_every_file(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    ends = {tokenizer.convert_tokens_to_ids(t) for t in (train.TURN_END, train.END_OF_TEXT)}
    assert tokenizer.eos_token == train.TURN_END
    assert set(tokenizer.eos_token_ids) == ends


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂", "a\n\n  b\tc", "x = {'y': 1}"])
def test_tokenizer_keeps_any_text(loaded: tuple[Any, Any], text: str) -> None:
    tokenizer = loaded[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_renders_chats_as_the_template_does(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    rng = random.Random(1)
    backend = tokenizer._tokenizer.backend_tokenizer
    for _ in range(20):
        ids, learn = train.conversation(CORPUS, backend, rng)
        turns = tokenizer.decode(ids).split(train.TURN_START)[1:]
        pairs = [turn.removesuffix(f"{train.TURN_END}\n").split("\n", 1) for turn in turns]
        messages = [{"role": role, "content": content} for role, content in pairs]
        assert tokenizer.apply_chat_template(messages) == ids
        assert sum(learn) == sum(
            len(tokenizer.encode(m["content"] + train.TURN_END))
            for m in messages
            if m["role"] == "assistant"
        )


def test_model_file_is_small() -> None:
    assert (demo.path() / "model.safetensors").stat().st_size < 3_000_000
