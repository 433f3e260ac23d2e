"""Quantised keys and values: in a batch = alone, chunked = whole, prefix hit = cold."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from models import CONFIG, make_engine, make_pair, random_prompts, request, run

from mlx_server.cache.storage import Plain, Quantization, Quantized, quantization_of
from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.models.llama import LlamaModel

WIDE = CONFIG | {"head_dim": 64}
WINDOWED = WIDE | {
    "sliding_window": 40,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
LENGTHS = [30, 7, 150, 280, 99, 1]

# Sums in another order differ in the last bit, and that can move a value to the next of
# 256 (or 16) steps.
STEP = {8: 0.02, 4: 0.2}


@pytest.fixture(scope="module")
def modules():
    return {name: make_pair(config) for name, config in (("full", WIDE), ("window", WINDOWED))}


def served(pair, bits: int = 8, group: int = 64, start: int = 0) -> LlamaModel:
    return LlamaModel(pair[1].module, 2048, quantization=Quantization(bits, group, start))


def requests(prompts: list[list[int]], **params):
    return [request(f"r{i}", p, logprobs=2, **params) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("kind", ["full", "window"])
@pytest.mark.parametrize("bits, group, start", [(8, 64, 0), (4, 32, 0), (8, 32, 100)])
def test_in_a_batch_equals_alone(modules, kind: str, bits: int, group: int, start: int) -> None:
    model = served(modules[kind], bits, group, start)
    rows = requests(random_prompts(LENGTHS), max_tokens=20)
    together = run(make_engine(model), *rows)
    for r in rows:
        alone = run(make_engine(model), r)
        assert together.tokens(r.id) == alone.tokens(r.id)
        for a, b in zip(together.logprobs(r.id), alone.logprobs(r.id), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=STEP[bits])
    assert model.cache.nbytes == 0


@pytest.mark.parametrize("kind", ["full", "window"])
@pytest.mark.parametrize("start", [0, 64, 100, 290])
@pytest.mark.parametrize("chunk", [7, 64])
def test_a_chunked_prompt_equals_a_whole_one(modules, kind: str, start: int, chunk: int) -> None:
    model = served(modules[kind], start=start)
    rows = requests(random_prompts(LENGTHS))
    chunked = run(make_engine(model, chunk=chunk), *rows)
    whole = run(make_engine(model, chunk=2000), *rows)
    for r in rows:
        assert chunked.tokens(r.id) == whole.tokens(r.id)
        for a, b in zip(chunked.logprobs(r.id), whole.logprobs(r.id), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=STEP[8])


@pytest.mark.parametrize("start", [0, 100, 1000])
def test_a_prefix_hit_equals_a_cold_start(modules, start: int) -> None:
    model = served(modules["full"], start=start)
    engine = make_engine(model, prefix_bytes=None)
    (prompt,) = random_prompts([400])
    run(engine, request("a", prompt, max_tokens=30))
    for i, length in enumerate((50, 99, 100, 101, 250, 400)):
        changed = prompt[:length] + [1, 2, 3, 4 + i]
        r = request(f"b{i}", changed, logprobs=1)
        before = engine.stats()["prompt_tokens_computed"]
        hit, cold = run(engine, r), run(make_engine(model), r)
        computed = engine.stats()["prompt_tokens_computed"] - before
        assert hit.tokens(r.id) == cold.tokens(r.id)
        for a, b in zip(hit.logprobs(r.id), cold.logprobs(r.id), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=STEP[8])
        # What was computed plain cannot be had from what is quantised by now.
        assert computed <= (4 if length >= start or start == 1000 else length + 4)
    engine.drop_all()
    assert model.cache.nbytes == 0


@pytest.mark.parametrize("bits, tolerance", [(8, 0.05), (4, 0.5)])
def test_it_is_close_to_plain_and_to_mlx_lm(modules, bits: int, tolerance: float) -> None:
    theirs, ours = modules["full"]
    (prompt,) = random_prompts([120])
    options = {"logprobs": 0, "max_tokens": 1}
    found = run(make_engine(served(modules["full"], bits)), request("r", prompt, **options))
    plain = run(make_engine(ours), request("r", prompt, **options))
    (q,), (p,) = found.logprobs("r"), plain.logprobs("r")
    assert q.logprob == pytest.approx(p.logprob, abs=tolerance)
    if bits == 8:
        steps = generate_step(mx.array(prompt), theirs, max_tokens=6, kv_bits=8, kv_group_size=64)
        ours_tokens = run(make_engine(served(modules["full"])), request("r", prompt, max_tokens=6))
        assert ours_tokens.tokens("r") == [int(token) for token, _ in steps]


def test_preempted_rows_equal_undisturbed_ones(modules) -> None:
    model = served(modules["full"])
    rows = requests(random_prompts([180, 185, 188, 190]), max_tokens=90)
    expected = {r.id: run(make_engine(model), r).tokens(r.id) for r in rows}
    engine = make_engine(model, kv_bytes=int(4.4 * model.cache.cost(256)), prefix_bytes=None)
    found = run(engine, *rows)
    assert engine.scheduler.num_preemptions > 0
    assert {r.id: found.tokens(r.id) for r in rows} == expected
    engine.drop_all()


@pytest.mark.parametrize("bits, share", [(8, 0.3), (4, 0.17)])
def test_it_takes_less_memory(modules, bits: int, share: float) -> None:
    plain, small = modules["full"][1].cache, served(modules["full"], bits).cache
    assert small.cost(1000) <= share * plain.cost(1000)
    seat = small.open(1000)
    assert small.nbytes == small.cost(1000)
    small.close(seat)


def test_a_group_that_does_not_divide_the_heads_is_refused(modules) -> None:
    with pytest.raises(ValueError, match=r"heads of 64 .* groups of 128; --kv-group-size"):
        served(modules["full"], group=128)


@pytest.mark.parametrize("tokens, columns", [(1, 9), (5, 9), (1, 3000), (300, 800)])
@pytest.mark.parametrize("mask", [None, "causal", "rows", "tokens"])
def test_attention_equals_that_over_unpacked_values(tokens, columns, mask) -> None:
    rng = np.random.default_rng(0)

    def draw(heads: int, length: int) -> mx.array:
        return mx.array(rng.standard_normal((2, heads, length, 64)).astype(np.float32))

    q, k, v = draw(6, tokens), draw(2, columns), draw(2, columns)
    if mask == "rows":
        mask = mx.arange(columns) < mx.array([columns // 2, columns]).reshape(2, 1, 1, 1)
    elif mask == "tokens":
        mask = mx.array(rng.random((tokens, columns)) < 0.5)
    quantized, plain = Quantized(64, mx.float32, 8, 32), Plain(64, mx.float32)
    stored = quantized.encode(k, v)
    unpacked = [mx.dequantize(*part, group_size=32, bits=8) for part in (stored[:3], stored[3:])]
    expected = mx.fast.scaled_dot_product_attention(q, *unpacked, scale=0.3, mask=mask)
    np.testing.assert_allclose(plain.attend(q, unpacked, 0.3, mask), expected, atol=1e-5)
    np.testing.assert_allclose(quantized.attend(q, stored, 0.3, mask), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("head_dims", "group"), [([64], 64), ([128, 64], 64), ([96], 32), ([128, 32], 32)]
)
def test_the_group_fits_the_heads_unless_it_is_given(head_dims: list[int], group: int) -> None:
    assert Quantization(8).fitted(head_dims) == Quantization(8, group)
    for wrong in ([48], [64, 80]):
        with pytest.raises(ValueError, match=f"heads of {wrong[-1]} .* groups of 32"):
            Quantization(8).fitted(wrong)


# ---------------------------------------------------------------- what the flags ask for


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"kv_bits": 4}, Quantization(4)),
        ({"cache_type_k": "f16"}, None),
        ({"cache_type_k": "f16", "cache_type_v": "bf16"}, None),
        ({"cache_type_v": "F32"}, None),
        ({"cache_type_k": "q8_0"}, Quantization(8)),
        ({"cache_type_v": "q4_0", "kv_group_size": 32}, Quantization(4, 32)),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0", "kv_bits": 8}, Quantization(8)),
        ({"cache_type_k": "q8_0", "quantized_kv_start": 9}, Quantization(8, None, 9)),
    ],
)
def test_llama_cpp_s_cache_types_are_bits(given: dict, expected: Quantization | None) -> None:
    assert quantization_of(Config(**given)) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(({"cache_type_k": name}, f"--cache-type-k {name} is not known here.*q8_0.*q4_0")
          for name in ("q4_1", "q5_0", "q5_1", "iq4_nl", "int8")),
        ({"cache_type_v": "q5_1"}, "--cache-type-v q5_1"),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "must agree.*not q8_0 and q4_0"),
        ({"cache_type_k": "f16", "cache_type_v": "q4_0"}, "must agree.*not f16 and q4_0"),
        ({"cache_type_k": "q8_0", "kv_bits": 4}, "q8_0 contradicts --kv-bits 4"),
        ({"cache_type_v": "f16", "kv_bits": 8}, "f16 contradicts --kv-bits 8"),
    ],
)  # fmt: skip
def test_types_that_there_are_not_or_that_differ_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        quantization_of(Config(**given))
