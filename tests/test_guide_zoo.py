"""Guided rows on mlx-lm's architectures, with every kind of cache: sliding windows, recurrent
states, latent attention, experts. Together = alone, and forced at once = one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jsonschema
import mlx.nn as nn
import pytest
from guiding import PERSON, lark, schema
from mlx_lm.models import deepseek_v2
from models import Collected, make_engine, random_prompts, request, run
from zoo_models import CONTEXT, MODELS, SHAPE, VOCAB, seeded

from mlx_server.exchange import EngineRequest
from mlx_server.models.zoo import ZooModel
from mlx_server.sampling.grammar import Grammars, Vocabulary
from mlx_server.sampling.guide import Plan, Reasoning, Trigger

EOS = VOCAB - 1
TOKENS = [bytes([32 + i]) for i in range(VOCAB - 2)] + [b"\n", b"<end>"]
"""The printable characters, so that the tiny models can write JSON."""


def _deepseek() -> nn.Module:
    """Latent attention: what is kept of a token are not its keys and values."""
    return deepseek_v2.Model(
        deepseek_v2.ModelArgs(
            **{**SHAPE, "num_key_value_heads": 4}, num_hidden_layers=3, moe_intermediate_size=16,
            n_shared_experts=1, n_routed_experts=4, kv_lora_rank=8, q_lora_rank=8, n_group=1,
            topk_group=1, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
            num_experts_per_tok=2, first_k_dense_replace=1, rope_scaling={"factor": 1.0},
        )
    )  # fmt: skip


CACHES: dict[str, Callable[[], nn.Module]] = {
    name: MODELS[name] for name in ("gemma3", "mixtral", "mamba", "jamba")
} | {"deepseek_v2": _deepseek}
EACH = pytest.mark.parametrize("name", CACHES)


@cache
def model_of(name: str) -> ZooModel:
    return ZooModel(seeded(CACHES[name]), {"model_type": name}, CONTEXT)


def encode(text: str) -> list[int]:
    return [TOKENS.index(bytes([byte])) for byte in text.encode()]


def decode(ids: list[int]) -> str:
    return b"".join(TOKENS[i] for i in ids if i != EOS).decode()


GRAMMARS = Grammars(Vocabulary(TOKENS, {}, frozenset({EOS}), VOCAB, encode))
CALLS = Trigger("a", lark('start: "a" /[0-9]{4}/ ": nothing more than that!"'))
THINKING = Reasoning("<why>", "</why>", "\n", inside=True, budget=4)
PLANS = {
    "person": Plan(GRAMMARS, schema(PERSON)),
    "enum": Plan(GRAMMARS, schema({"enum": ["red", "green", "blue"]})),
    "pattern": Plan(GRAMMARS, lark('start: "a long beginning, then " /[a-f]{3,9}/')),
    "thinks": Plan(GRAMMARS, schema(PERSON), reasoning=THINKING),
    "calls": Plan(GRAMMARS, triggers=(CALLS,)),
}


def requests_of(**settings: object) -> list[EngineRequest]:
    """Every plan and two free rows, on prompts shorter and longer than a window."""
    prompts = random_prompts([3, 30, 9, 21, 14, 25, 5], vocab=VOCAB - 1)
    names = [*PLANS, "free", "free too"]
    return [
        replace(
            request(name, prompt, eos=frozenset({EOS}), max_tokens=90, seed=i, **settings),
            guide=PLANS.get(name),
        )
        for i, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]


def check(name: str, found: Collected) -> None:
    text, reason = decode(found.tokens(name)), found.reason(name)
    if name in ("person", "thinks"):
        assert reason == "stop"
        jsonschema.validate(json.loads(text.rpartition("</why>\n")[2]), PERSON)
        # The last of the thoughts may be what the mark begins with.
        assert text.find("</why>\n") in ((3, 4) if name == "thinks" else (-1,))
    elif name == "enum":
        assert reason == "stop" and json.loads(text) in ("red", "green", "blue")
    elif name == "pattern":
        assert reason == "stop" and re.fullmatch("a long beginning, then [a-f]{3,9}", text)


@EACH
def test_rows_with_and_without_guides_together_equal_each_alone(name: str) -> None:
    requests = requests_of(temperature=0.8)
    together = run(make_engine(model_of(name)), *requests)
    for r in requests:
        check(r.id, together)
        alone = run(make_engine(model_of(name)), r)
        assert together.tokens(r.id) == alone.tokens(r.id), r.id
        assert together.reason(r.id) == alone.reason(r.id)


@EACH
def test_forced_tokens_leave_the_state_that_sampling_them_leaves(name: str) -> None:
    # Where log-probabilities are asked for nothing is forced: all tokens are sampled.
    at_once, engine = requests_of(), make_engine(model_of(name))
    forced = run(engine, *at_once)
    assert engine.counters.forced_tokens > 50
    stepping = make_engine(model_of(name))
    sampled = run(stepping, *requests_of(logprobs=0))
    assert stepping.counters.forced_tokens == 0
    for r in at_once:
        assert forced.tokens(r.id) == sampled.tokens(r.id), r.id
        assert len(sampled.logprobs(r.id)) == len(sampled.tokens(r.id))


@EACH
def test_a_guided_conversation_that_goes_on_gets_what_it_would_get_cold(name: str) -> None:
    engine = make_engine(model_of(name), prefix_bytes=None)
    first = requests_of()[0]
    reply = run(engine, first).tokens(first.id)
    longer = replace(first, id="next", token_ids=(*first.token_ids, *reply, *encode(" And?")))
    warm = run(engine, longer)
    cold = run(make_engine(model_of(name)), longer)
    assert warm.tokens("next") == cold.tokens("next")
    check("person", run(engine, replace(longer, id="person")))
