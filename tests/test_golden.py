"""The golden outputs of other programs: greedy ids, text and log-probabilities at every step."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlx_server.core import (
    ChatPrompt,
    GenerationRequest,
    Message,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from mlx_server.deltas import Finished, Text
from mlx_server.pool import ModelPool

TOLERANCE = 2e-3
"""The files hold five decimals; engines agree to 5.5e-5 with whole prompts."""


def golden(stories: Path, name: str) -> list[dict]:
    return json.loads((stories / "golden" / f"{name}.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def pool(open_pool, stories: Path) -> ModelPool:
    adapters = stories / "adapters"
    return open_pool(
        model=str(stories / "stories260k"),
        lora=(f"dragon={adapters / 'dragon'}", f"moon={adapters / 'moon'}"),
        start_dir=stories,
    )


@pytest.fixture(scope="module")
def chat_pool(open_pool, stories: Path) -> ModelPool:
    return open_pool(model=str(stories / "stories260k-chat"))


def prompt_of(entry: dict) -> TextPrompt | ChatPrompt:
    if "messages" not in entry:
        return TextPrompt(entry["prompt"])
    return ChatPrompt(
        tuple(Message(m["role"], (TextPart(m["content"]),)) for m in entry["messages"])
    )


def check(pool: ModelPool, entry: dict, model: str | None = None, **fields) -> None:
    """Generate as the file's makers did and compare every step."""
    options = {"temperature": 0.0, "max_tokens": entry["max_tokens"], "logprobs": 10}
    request = GenerationRequest(
        id=f"golden-{id(entry)}-{model}-{fields}",
        model=model,
        prompts=(prompt_of(entry),),
        options=options,
        **fields,
    )
    deltas = list(pool.generate(request))
    texts = [d for d in deltas if isinstance(d, Text)]
    tokens = [t for d in texts for t in d.tokens]
    (finished,) = [d for d in deltas if isinstance(d, Finished)]
    assert "".join(d.text for d in texts) == entry["text"]
    assert [t.id for t in tokens] == entry["ids"]
    assert finished.reason == entry["finish_reason"]
    assert finished.usage.prompt_tokens == len(entry["prompt_ids"])
    for token, expected in zip(tokens, entry["top_logprobs"], strict=True):
        found = {t.id: t.logprob for t in token.top}
        assert token.logprob == pytest.approx(expected[0][1], abs=TOLERANCE)
        # Neighbours in rank may change places within the tolerance.
        for token_id, value in expected[:9]:
            assert found.get(token_id, value) == pytest.approx(value, abs=TOLERANCE)


def test_base_prompts(pool: ModelPool, stories: Path) -> None:
    for entry in golden(stories, "base"):
        check(pool, entry)


def test_conversations(chat_pool: ModelPool, stories: Path) -> None:
    for entry in golden(stories, "chat"):
        check(chat_pool, entry)


@pytest.mark.parametrize("name", ["dragon", "moon"])
def test_adapters_by_model_name(pool: ModelPool, stories: Path, name: str) -> None:
    for entry in golden(stories, name):
        check(pool, entry, model=name)


def test_adapters_by_request_field(pool: ModelPool, stories: Path) -> None:
    for entry in golden(stories, "moon"):
        check(pool, entry, adapters="adapters/moon")


def test_all_of_them_at_once_in_one_batch(pool: ModelPool, stories: Path) -> None:
    jobs = [
        (entry, model)
        for model, name in ((None, "base"), ("dragon", "dragon"), ("moon", "moon"))
        for entry in golden(stories, name)
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        for future in [threads.submit(check, pool, *job) for job in jobs]:
            future.result()


def test_prompt_ids(pool: ModelPool, chat_pool: ModelPool, stories: Path) -> None:
    for name, where in (("base", pool), ("chat", chat_pool)):
        entry_point = next(iter(where.residence._entries.values())).llm
        for entry in golden(stories, name):
            assert entry_point.tokenizer.encode_prompt(prompt_of(entry)) == entry["prompt_ids"]
            tokens = TokenPrompt(tuple(entry["prompt_ids"]))
            assert entry_point.tokenizer.encode_prompt(tokens) == entry["prompt_ids"]
