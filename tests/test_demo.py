"""The bundled demo model: it loads with plain mlx_lm, answers its questions in sentences, calls
the tool that a question asks for, and ends its turns."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step
from transformers import AutoConfig

from mlx_server import demo
from mlx_server.demo import corpus, train
from mlx_server.demo import tokenizer as bpe

if AutoConfig.from_pretrained(demo.path()).vocab_size != train.ARGS.vocab_size:
    pytest.skip("the bundled model is of an earlier recipe", allow_module_level=True)

SERVER, SETTINGS, TALK = corpus.load()
SOURCES = corpus.sources(SERVER, SETTINGS, TALK)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load(str(demo.path()))


def reply(
    loaded: tuple[Any, Any], messages: Any, tools: Any = None, limit: int = 160
) -> str | None:
    """The greedy reply; None if the model does not end its turn by itself."""
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
    ids: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=limit):
        if token in tokenizer.eos_token_ids:
            return tokenizer.decode(ids)
        ids.append(token)
    return None


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize(
    "question",
    ["Hello", "What is mlx_server?", "How do I start the server?", "Which port is used?"],
)
def test_answers_what_it_was_taught(loaded: tuple[Any, Any], question: str) -> None:
    known = dict([*SERVER.pairs, *TALK.pairs])
    assert reply(loaded, [user(question)]) == known[question]


def test_knows_most_of_what_it_was_taught(loaded: tuple[Any, Any]) -> None:
    rng = random.Random(3)
    asked = [(rng.choice(questions), answer) for answer, questions in SERVER.answers]
    sample = rng.sample(asked, 60)
    right = [reply(loaded, [user(question)]) == answer for question, answer in sample]
    assert sum(right) >= 45


def test_ends_its_turn_whatever_is_asked(loaded: tuple[Any, Any]) -> None:
    rng = random.Random(5)
    chats = islice(train.draw(SOURCES, rng), 40)
    asked = [(c.messages[: _first_user(c) + 1], list(c.tools) or None) for c in chats]
    odd = ["asdf qwer", "Why?", "日本語で話して", "{}", "write me a novel about whales"]
    asked += [((user(text),), None) for text in odd]
    ended = [reply(loaded, list(messages), tools, 400) is not None for messages, tools in asked]
    assert sum(ended) >= len(asked) - 1


def _first_user(chat: Any) -> int:
    return next(i for i, m in enumerate(chat.messages) if m["role"] == "user")


@pytest.mark.parametrize("city", ["Paris", "Tokyo", "Lisbon", "Zarnovia"])
def test_calls_the_tool_it_is_offered(loaded: tuple[Any, Any], city: str) -> None:
    text = reply(loaded, [user(f"What is the weather in {city}?")], [WEATHER])
    assert text is not None
    call = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(call) == {"name": "get_weather", "arguments": {"city": city}}


def test_calls_no_tool_where_none_is_wanted(loaded: tuple[Any, Any]) -> None:
    text = reply(loaded, [user("Hello")], [WEATHER])
    assert text is not None and "<tool_call>" not in text


def test_answers_with_a_tools_result(loaded: tuple[Any, Any]) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    messages = [
        user("What is the weather in Paris?"),
        {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
        {"role": "tool", "content": '{"temperature": 17, "condition": "cloudy"}'},
    ]
    text = reply(loaded, messages, [WEATHER])
    assert text is not None and "<tool_call>" not in text and "17" in text


def test_system_messages_anywhere_do_not_disturb_it(loaded: tuple[Any, Any]) -> None:
    brief = {"role": "system", "content": "Be brief."}
    polite = {"role": "developer", "content": "Always be polite."}
    alone = reply(loaded, [user("Hello")])
    assert reply(loaded, [brief, polite, user("Hello")]) == alone
    turn = [brief, user("Thank you"), {"role": "assistant", "content": "You are welcome!"}]
    assert reply(loaded, [*turn, user("Hello")]) == alone


def test_admits_what_it_does_not_know(loaded: tuple[Any, Any]) -> None:
    unknown = dict(TALK.pairs)["What is a {}?"]
    assert reply(loaded, [user("What is a castle?")]) == unknown


def test_end_tokens_are_named_in_every_file(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    ends = {tokenizer.convert_tokens_to_ids(t) for t in (bpe.TURN_END, bpe.END_OF_TEXT)}
    assert tokenizer.eos_token == bpe.TURN_END
    assert set(tokenizer.eos_token_ids) == ends


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語 🙂", "a\n\n  b\tc", "x = {'y': 1}", " 1 23"]
)
def test_tokenizer_keeps_any_text(loaded: tuple[Any, Any], text: str) -> None:
    tokenizer = loaded[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tag", [*bpe.TAGS, bpe.TURN_START, bpe.TURN_END])
def test_tags_are_one_token(loaded: tuple[Any, Any], tag: str) -> None:
    assert len(loaded[1].encode(tag)) == 1


def test_the_tokenizer_is_the_one_that_training_makes(loaded: tuple[Any, Any]) -> None:
    made, _ = train.prepare(train.ARGS.vocab_size)
    assert made.get_vocab() == loaded[1].get_vocab()


def test_training_learns_the_assistants_turns_as_the_template_writes_them(
    loaded: tuple[Any, Any],
) -> None:
    tokenizer = loaded[1]
    for chat in islice(train.draw(SOURCES, random.Random(1)), 60):
        ids, learn = train.encode(chat, tokenizer._tokenizer)
        messages, tools = list(chat.messages), list(chat.tools) or None
        assert tokenizer.apply_chat_template(messages, tools=tools) == ids
        learnt = tokenizer.decode([i for i, mark in zip(ids, learn, strict=True) if mark])
        turns = learnt.split(bpe.TURN_END)[:-1]
        said = [m for m in messages if m["role"] == "assistant"]
        assert [t for t in turns if "<tool_call>" not in t] == [
            m["content"] for m in said if not m.get("tool_calls")
        ]
        called = [c["function"] for m in said for c in m.get("tool_calls", ())]
        read = [json.loads(p.partition("</")[0]) for t in turns for p in t.split("<tool_call>")[1:]]
        assert read == [{"name": c["name"], "arguments": c["arguments"]} for c in called]


def test_a_seed_gives_the_same_batches() -> None:
    def some() -> list[tuple[Any, ...]]:
        tokenizer, choices = train.prepare(train.ARGS.vocab_size)
        rng = random.Random(train.SEED)
        made = islice(train.batches(train.draw(choices, rng), tokenizer, 2048, rng), 5)
        return [tuple(a.tolist() for a in batch) for batch in made]

    assert some() == some()


def test_training_learns_and_saves_what_loads(tmp_path: Any) -> None:
    args = train.ModelArgs(**{**vars(train.ARGS), "hidden_size": 32, "num_hidden_layers": 1,
                              "intermediate_size": 64, "num_attention_heads": 2,
                              "num_key_value_heads": 1})  # fmt: skip
    tokenizer, choices = train.prepare(args.vocab_size)
    rng = random.Random(train.SEED)
    stream = train.batches(train.draw(choices, rng), tokenizer, 256, rng)
    held = next(stream)
    model = train.new_model(args)
    before = train.loss_fn(model, *held).item()
    train.train(model, stream, train.Plan(tokens=256 * 30, batch_tokens=256))
    assert train.loss_fn(model, *held).item() < before - 0.5
    train.save(tmp_path / "made", model, tokenizer, args)
    loaded_model, loaded_tokenizer = load(str(tmp_path / "made"))
    ids = mx.array(loaded_tokenizer.apply_chat_template([user("Hi")], add_generation_prompt=True))
    assert mx.allclose(loaded_model(ids[None]), model(ids[None]), atol=2e-2, rtol=2e-2)


def test_model_is_small_enough_to_ship() -> None:
    size = sum(file.stat().st_size for file in demo.path().parent.rglob("*") if file.is_file())
    assert size < 8_000_000
