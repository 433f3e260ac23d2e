"""Markup in a reply: however a model's tokens have it, it is read, and the client never sees it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from family_models import (
    BOS,
    EOS,
    NAMES,
    Answer,
    Reply,
    make_tokenizer,
    tags_of,
    written,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_server.deltas import Usage
from mlx_server.exchange import EngineRequest
from mlx_server.replies import ReplyForm
from mlx_server.sampling_params import SamplingParams
from mlx_server.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not NAMES, reason="needs the templates in shared")
FAMILIES = pytest.mark.parametrize("name", NAMES)
UNTIMED = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], database=None
)

WAYS = ("special", "added", "plain")


@cache
def tokenizer_of(name: str, way: str) -> Tokenizer:
    """The tags of a template's family as special tokens, as other added ones, or spelled."""
    tags: Mapping[str, bool] = {} if way == "plain" else tags_of(name)
    return make_tokenizer(name, dict.fromkeys(tags, way == "special"))


def read(name: str, tokenizer: Tokenizer, tokens: list[int], reason: str = "length") -> Reply:
    """What a client gets of the tokens, their number aside."""
    found = written(name)
    rules = found[0] if found else ()
    format_ = tokenizer.format
    form = ReplyForm(parser=lambda: format_.parser(rules), shown=tokenizer.visible(format_.markup))
    request = EngineRequest("r", (0,), SamplingParams(), eos_token_ids=tokenizer.eos_token_ids)
    return replace(Answer(tokenizer, request, form, tokens, reason).read(), usage=Usage())


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text with its tags as tokens, where it has them."""
    return tokenizer.encode(text, add_special_tokens=False)


@cache
def emissions(name: str) -> tuple[str, ...]:
    """What the family writes: reasoning, content before a call or an answer, calls."""
    thinking, found = tokenizer_of(name, "plain").format.thinking, written(name)
    known = found is not None and not tokenizer_of(name, "plain").format.generic
    turns = found[1] if known else ["Just an answer, with a ü and a 😀."]
    if thinking is None:
        return tuple(turns)
    thought = f"{thinking.opening}{thinking.lead}Hm, é?{thinking.closing}{thinking.tail}"
    return tuple(thought + turn for turn in turns)


# ---------------------------------------------------------------- which tokens are shown


@FAMILIES
def test_the_familys_marks_are_shown_to_its_reader_and_other_special_tokens_are_not(
    name: str,
) -> None:
    tokenizer = tokenizer_of(name, "special")
    markup = tokenizer.format.markup
    shown = tokenizer.visible(markup)
    assert shown <= tokenizer.special_token_ids
    for mark in markup:
        spelled = tokenizer.detokenizer(shown=shown)
        assert "".join(map(spelled.feed, encode(tokenizer, mark))) == mark
    hidden = tokenizer.special_token_ids - shown
    assert {tokenizer.encode(BOS)[0], tokenizer.encode(EOS)[0]} <= hidden


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("Qwen-Qwen3-0.6B", "<|im_start|>"),
        ("Qwen-Qwen3-0.6B", "<|im_end|>"),
        ("google-gemma-4-31B-it", "<|turn>"),
        ("meta-llama-Llama-3.1-8B-Instruct", "<|start_header_id|>"),
        ("Kimi-K2-Thinking", "<|im_middle|>"),
        ("deepseek-ai-DeepSeek-V3.2", "<｜Assistant｜>"),
        ("unsloth-mistral-Devstral-Small-2507", "[INST]"),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "<|CHATBOT_TOKEN|>"),
    ],
)
def test_role_tokens_are_not_shown(name: str, token: str) -> None:
    tokenizer = tokenizer_of(name, "special")
    (token_id,) = encode(tokenizer, token)
    assert token_id not in tokenizer.visible(tokenizer.format.markup)
    ids = [token_id, *encode(tokenizer, "An answer."), token_id]
    assert read(name, tokenizer, ids).content == "An answer."


# ---------------------------------------------------------------- one text, many tokens


@FAMILIES
def test_a_reply_reads_alike_whatever_its_tags_are(name: str) -> None:
    for text in emissions(name):
        replies = [
            read(name, tokenizer_of(name, way), encode(tokenizer_of(name, way), text))
            for way in WAYS
        ]
        assert replies[0] == replies[1] == replies[2], text
        assert replies[0].calls or replies[0].content
        tags = {tag for tag in tags_of(name) if tag in text}
        assert not any(tag in replies[0].content + replies[0].reasoning for tag in tags)
        assert bool(replies[0].reasoning) == ("Hm, é?" in text)


def cut(tokenizer: Tokenizer, text: str, seed: int, others: list[int]) -> list[int]:
    """The text in tokens chosen at random: tags as one token or spelled, words whole or in
    bytes; with some of the others between them."""
    rng, data, ids = random.Random(seed), text.encode(), []
    at = 0
    shown = tokenizer.visible(tokenizer.format.markup)
    usable = [
        (i, token)
        for i, token in enumerate(tokenizer.table)
        if token and (i not in tokenizer.special_token_ids or i in shown)
    ]
    while at < len(data):
        token_id, token = rng.choice([t for t in usable if data.startswith(t[1], at)])
        if others and rng.random() < 0.2:
            ids.append(rng.choice(others))
        ids.append(token_id)
        at += len(token)
    return ids


VARIED = (
    "Apertus-8B-Instruct",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GigaChat3-10B-A1.8B",
    "Kimi-K3",
    "MiniMax-M3",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-V3.2",
    "google-gemma-4-31B-it",
    "meetkai-functionary-medium-v3.2",
    "muse-glimmer",
    "openai-gpt-oss-120b",
    "upstage-Solar-Open-100B",
)


@pytest.mark.parametrize("name", VARIED)
@UNTIMED
@given(seed=st.integers(0, 10**6), way=st.sampled_from(WAYS), mixed=st.booleans())
def test_how_a_text_is_cut_into_tokens_never_matters(
    name: str, seed: int, way: str, mixed: bool
) -> None:
    tokenizer, plain = tokenizer_of(name, way), tokenizer_of(name, "plain")
    hidden = tokenizer.special_token_ids - tokenizer.visible(tokenizer.format.markup)
    others = sorted(hidden - tokenizer.eos_token_ids) if mixed else []
    for text in emissions(name):
        expected = read(name, plain, encode(plain, text))
        assert read(name, tokenizer, cut(tokenizer, text, seed, others)) == expected
