"""Quantised keys and values of mlx-lm's architectures: in a batch, in chunks, from a prefix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import deepseek_v3, falcon_h1, gemma2, gemma3_text, gpt_oss, jamba, qwen3
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache, make_prompt_cache
from models import make_engine, random_prompts, request, run
from zoo_models import (
    CONTEXT,
    SHAPE,
    VOCAB,
    Sequence_,
    module_of,
    plain_logits,
    seeded,
    step,
    tokens_of,
)
from zoo_models import (
    TOLERANCE as ACCURACY,
)

from mlx_server.cache.storage import Quantization
from mlx_server.cache.zoo_quantized import BatchQuantizedKVCache
from mlx_server.cache.zoo_state import leaves
from mlx_server.models.zoo import ZooModel

HEAD = 32
EIGHT = Quantization(8, 32)
FOUR = Quantization(4, 32)
FLIPPED = 0.25
"""Share of what quantisation changes in the logits by which two ways to them may differ:
a number on the border of two levels may be rounded up on the one and down on the other."""


def _qwen3() -> nn.Module:
    return qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3", num_hidden_layers=2, rms_norm_eps=1e-5, head_dim=HEAD,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True, rope_theta=1e4, **SHAPE,
        )
    )  # fmt: skip


def _gemma2() -> nn.Module:
    return gemma2.Model(
        gemma2.ModelArgs(
            model_type="gemma2", num_hidden_layers=2, head_dim=HEAD, rms_norm_eps=1e-5,
            query_pre_attn_scalar=HEAD, **SHAPE,
        )
    )  # fmt: skip


def _gemma3() -> nn.Module:
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text", num_hidden_layers=4, head_dim=HEAD, sliding_window=8,
            query_pre_attn_scalar=HEAD, sliding_window_pattern=2, **SHAPE,
        )
    )  # fmt: skip


def _jamba() -> nn.Module:
    return jamba.Model(
        jamba.ModelArgs(
            model_type="jamba", num_hidden_layers=4, attn_layer_offset=1, attn_layer_period=2,
            expert_layer_offset=1, expert_layer_period=2, mamba_d_conv=4, mamba_d_state=4,
            mamba_expand=2, num_experts=1, num_experts_per_tok=1, rms_norm_eps=1e-5,
            max_position_embeddings=CONTEXT, **SHAPE | {"hidden_size": 4 * HEAD},
        )
    )  # fmt: skip


def _falcon_h1() -> nn.Module:
    return falcon_h1.Model(
        falcon_h1.ModelArgs(
            num_hidden_layers=2, head_dim=HEAD, mamba_d_head=8, mamba_d_ssm=32, mamba_d_state=8,
            mamba_n_heads=4, mamba_chunk_size=16, lm_head_multiplier=1.0, **SHAPE,
        )
    )  # fmt: skip


def _gpt_oss() -> nn.Module:
    return gpt_oss.Model(
        gpt_oss.ModelArgs(
            num_hidden_layers=2, num_local_experts=4, head_dim=HEAD, sliding_window=8,
            rope_scaling=None, **SHAPE,
        )
    )  # fmt: skip


def _deepseek_v3() -> nn.Module:
    return deepseek_v3.Model(
        deepseek_v3.ModelArgs(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32,
            q_lora_rank=32, qk_rope_head_dim=32, v_head_dim=32, qk_nope_head_dim=32,
        )
    )  # fmt: skip


QUANTISED: dict[str, Callable[[], nn.Module]] = {
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "jamba": _jamba,
    "falcon_h1": _falcon_h1,
}
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "mamba": lambda: module_of("mamba"),
    "gemma2": _gemma2,
    "concatenating": lambda: module_of("concatenating"),
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
}


@cache
def module_with_heads(name: str) -> nn.Module:
    return seeded(QUANTISED[name])


def make_model(name: str, quantization: Quantization | None = EIGHT) -> ZooModel:
    return ZooModel(
        module_with_heads(name), {"model_type": name}, CONTEXT, quantization=quantization
    )


@pytest.fixture(params=QUANTISED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def row(model: ZooModel, tokens: list[int], prompt: int) -> Sequence_:
    return Sequence_(tokens, prompt, model.cache.open(len(tokens)))


def advance(model: ZooModel, rows: list[Sequence_], chunk: int = 10**6) -> None:
    """A step as the scheduler makes it: chunks end where the cache says, room is reserved."""
    for r in rows:
        end = min(len(r.tokens), r.seat.length + min(r.next_count, chunk))
        model.cache.reserve(r.seat, end)
    limits = {
        r: model.cache.chunk_end(r.seat.length, r.seat.length + min(r.next_count, chunk))
        for r in rows
    }
    for size in sorted({limits[r] - r.seat.length for r in rows}, reverse=True):
        part = [r for r in rows if limits[r] - r.seat.length == size]
        if part:
            step(model, part, chunk=size)


def finish(model: ZooModel, rows: list[Sequence_], chunk: int = 10**6) -> None:
    while unfinished := [r for r in rows if not r.done]:
        advance(model, unfinished, chunk)


def alone(name: str, tokens: list[int], prompt: int, quantization: Quantization) -> Sequence_:
    reference = row(model := make_model(name, quantization), tokens, prompt)
    finish(model, [reference])
    return reference


def differences(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> float:
    return max(np.abs(a[position] - b[position]).max() for position in a.keys() & b.keys())


def check_quantised(name: str, row: Sequence_, quantization: Quantization) -> None:
    """The row's logits are those of the sequence by itself, its prompt in one chunk."""
    single = alone(name, row.tokens, row.prompt, quantization)
    plain = dict(enumerate(plain_logits(module_with_heads(name), row.tokens, row.prompt)))
    effect = differences(single.logits, plain)
    assert len(row.logits.keys() & single.logits.keys()) > len(row.tokens) - row.prompt
    assert differences(row.logits, single.logits) < max(ACCURACY, FLIPPED * effect)


# ---------------------------------------------------------------- equivalences


@pytest.mark.parametrize("quantization", [EIGHT, FOUR])
def test_it_is_close_to_mlx_lm_and_differs_from_plain(name: str, quantization) -> None:
    tokens = tokens_of(3, 60)
    ours = alone(name, tokens, 1, quantization)
    module = module_with_heads(name)
    caches = [
        layer.to_quantized(32, quantization.bits) if _quantises(layer) else layer
        for layer in make_prompt_cache(module)
    ]
    if name == "falcon_h1":
        for layer in caches:
            layer.caches = (layer[0], layer[1].to_quantized(32, quantization.bits))
    theirs = {
        position: np.array(module(mx.array([[token]]), cache=caches)[0, 0])
        for position, token in enumerate(tokens)
    }
    plain = dict(enumerate(plain_logits(module, tokens, 1)))
    effect = differences(ours.logits, plain)
    assert differences(ours.logits, theirs) < FLIPPED * effect
    assert 1e-3 < effect < (0.3 if quantization is EIGHT else 3.0)


def _quantises(layer: object) -> bool:
    return hasattr(layer, "to_quantized") and not isinstance(layer, RotatingKVCache)


def test_mlx_lm_generates_the_same_tokens() -> None:
    prompt = tokens_of(5, 30)
    module = module_with_heads("qwen3")
    expected = generate_step(
        mx.array(prompt), module, max_tokens=12, kv_bits=8, kv_group_size=32,
        quantized_kv_start=0, prefill_step_size=8,
    )  # fmt: skip
    found = run(make_engine(make_model("qwen3")), request("a", prompt)).tokens("a")
    assert found == [int(token) for token, _ in expected]


@pytest.mark.parametrize("begin", [0, 17])
def test_batched_is_alone(name: str, begin: int) -> None:
    quantization = Quantization(8, 32, begin)
    model = make_model(name, quantization)
    lengths = (5, 23, 1, 40, 7)
    rows = [row(model, tokens_of(i, n + 14), n) for i, n in enumerate(lengths)]
    finish(model, rows)
    assert model.cache.batchable
    for r in rows:
        check_quantised(name, r, quantization)


def test_rows_of_both_kinds_share_no_group() -> None:
    model = make_model("qwen3", Quantization(8, 32, 12))
    rows = [row(model, tokens_of(i, n + 12), n) for i, n in enumerate((4, 11, 30, 31))]
    advance(model, rows)
    seen = set()
    while unfinished := [r for r in rows if not r.done]:
        advance(model, unfinished)
        for r in unfinished:
            group = r.seat.group
            # What was just computed from 12 tokens on was computed quantised.
            assert group.quantized == (r.seat.length - 1 >= 12)
            kinds = {type(leaf).__name__ for leaf in leaves(group.caches)}
            seen |= kinds
            assert len(kinds) == 1 and ("Quantized" in kinds.pop()) == group.quantized
    assert "BatchQuantizedKVCache" in seen and "BatchKVCache" in seen


@pytest.mark.parametrize("begin", [0, 17])
def test_chunked_is_whole(name: str, begin: int) -> None:
    quantization = Quantization(8, 32, begin)
    tokens = tokens_of(3, 44)
    model = make_model(name, quantization)
    chunked = row(model, tokens, 40)
    finish(model, [chunked], chunk=7)
    check_quantised(name, chunked, quantization)


@pytest.mark.parametrize("begin", [0, 17])
@pytest.mark.parametrize("seed", range(2))
def test_rows_come_and_go_at_random(name: str, begin: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    quantization = Quantization(8, 32, begin)
    model = make_model(name, quantization)
    waiting = [
        (tokens_of(i, int(p + n)), int(p))
        for i, (p, n) in enumerate(rng.integers((1, 3), (30, 22), (6, 2)))
    ]
    everyone: list[Sequence_] = []
    running: list[Sequence_] = []
    while waiting or running:
        if waiting and (not running or rng.random() < 0.4):
            running.append(row(model, *waiting.pop()))
            everyone.append(running[-1])
        chosen = [r for r in running if rng.random() < 0.85]
        if chosen:
            advance(model, chosen, chunk=9)
        for r in [r for r in running if r.done]:
            (model.cache.keep if rng.random() < 0.5 else model.cache.close)(r.seat)
            running.remove(r)
    for r in everyone:
        check_quantised(name, r, quantization)


# ---------------------------------------------------------------- prefixes


@pytest.mark.parametrize("begin", [0, 17])
@pytest.mark.parametrize("length", [9, 17, 40])
def test_forked_is_cold(name: str, begin: int, length: int) -> None:
    quantization = Quantization(8, 32, begin)
    model = make_model(name, quantization)
    source = row(model, tokens_of(1, length), length)
    finish(model, [source])
    for kept in (False, True):
        if kept:
            model.cache.keep(source.seat)
        for place in range(1, length + 1):
            if model.cache.reusable(source.seat, place) < place:
                continue
            tokens = source.tokens[:place] + tokens_of(place, 25)
            fork = Sequence_(tokens, place + 20, model.cache.fork(source.seat, place, place))
            finish(model, [fork])
            if place in (1, 5, 9, 16, 17, 18, 39, 40):
                check_quantised(name, fork, quantization)
            model.cache.close(fork.seat)


def test_a_quantised_seat_is_not_reused_below_the_start() -> None:
    model = make_model("qwen3", Quantization(8, 32, 17))
    source = row(model, tokens_of(1, 30), 30)
    advance(model, [source])
    assert source.seat.length == 17
    assert model.cache.reusable(source.seat, 9) == 9
    advance(model, [source])
    assert [model.cache.reusable(source.seat, n) for n in (9, 16, 17, 40)] == [0, 0, 17, 30]


@pytest.mark.parametrize("begin", [0, 70])
def test_a_prefix_hit_is_cold_in_the_engine(name: str, begin: int) -> None:
    model = make_model(name, Quantization(8, 32, begin))
    engine = make_engine(model, prefix_bytes=None, chunk=48)
    system, *users = random_prompts([100, 20, 40, 30, 45], vocab=VOCAB)
    requests = [request(f"r{i}", system + user, max_tokens=6) for i, user in enumerate(users)]
    found = run(engine, requests[0])
    run(engine, requests[1], into=found)
    run(engine, *requests[2:], into=found)
    more = request("m", [*requests[2].token_ids, *found.tokens("r2"), 3, 4, 5], max_tokens=6)
    run(engine, more, into=found)
    stats = engine.stats()
    assert stats["prompt_tokens_computed"] <= 200 + sum(map(len, users)) + 4
    for r in (*requests, more):
        assert found.tokens(r.id) == run(make_engine(model, chunk=48), r).tokens(r.id)
    engine.drop_all()
    assert model.cache.nbytes == 0


# ---------------------------------------------------------------- bytes, refusals


@pytest.mark.parametrize("begin", [0, 300])
@pytest.mark.parametrize("length", [10, 300, 500])
def test_cost_is_what_the_caches_hold(name: str, begin: int, length: int) -> None:
    model = make_model(name, Quantization(4, 32, begin))
    r = row(model, tokens_of(0, length), length - 1)
    finish(model, [r], chunk=64)
    held = sum(layer.nbytes for layer in r.seat.group.caches)
    assert held <= model.cache.cost(length)
    if not begin and name != "gemma3":
        assert held == model.cache.cost(length)
    model.cache.keep(r.seat)
    assert model.cache.nbytes == model.cache.held(r.seat) <= held


def test_quantised_is_smaller() -> None:
    plain, eight, four = (make_model("qwen3", q).cache.cost(256) for q in (None, EIGHT, FOUR))
    # float32: 8 bits and, for every 32 numbers, a scale and a bias.
    assert eight / plain == (8 + 2) / 32
    assert four / plain == (4 + 2) / 32


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_is_refused(name: str) -> None:
    module = REFUSED[name]()
    with pytest.raises(ValueError, match=f"--kv-bits.*{name}"):
        ZooModel(module, {"model_type": name}, CONTEXT, quantization=EIGHT)


def test_a_group_that_does_not_divide_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="--kv-group-size must divide 32"):
        make_model("qwen3", Quantization(8, 64))


def test_what_stays_plain_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mlx_server.models.zoo"):
        make_model("gemma3")
        make_model("qwen3")
    (message,) = [r.getMessage() for r in caplog.records if "quantised" in r.getMessage()]
    assert "2 layers are quantised; 2 windows" in message


def test_rows_are_taken_out_as_they_were_put_in() -> None:
    """`extract`, `filter` and `extend`, which mlx-lm's own batches would use."""

    def filled(length: int) -> QuantizedKVCache:
        single = QuantizedKVCache(32, 8)
        keys = mx.random.normal((1, 2, length, HEAD), key=mx.random.key(length))
        single.update_and_fetch(keys, keys + 1)
        return single

    lengths = (3, 300, 12)
    singles = [filled(n) for n in lengths]
    batch = BatchQuantizedKVCache.merge(singles[:2])
    batch.extend(BatchQuantizedKVCache.merge(singles[2:]))
    assert batch.offset.tolist() == list(lengths)
    batch.filter(mx.array([2, 0]))
    new = mx.random.normal((2, 2, 1, HEAD))
    (keys, _, _), _ = batch.update_and_fetch(new, new)
    assert keys.shape[2] == 301 and batch.make_mask(1).shape == (2, 1, 1, 302)
    for index, i in enumerate((2, 0)):
        found, expected = batch.extract(index), singles[i]
        expected.update_and_fetch(new[index : index + 1], new[index : index + 1])
        for a, b in zip(found.keys_and_values(), expected.keys_and_values(), strict=True):
            assert all(mx.array_equal(x, y) for x, y in zip(a, b, strict=True))
