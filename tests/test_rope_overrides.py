"""llama.cpp's flags for rotary positions: as ggml computes them, whatever the model's own are."""

from __future__ import annotations

import math
from dataclasses import fields

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import rope_utils
from models import CONFIG, make_engine, make_pair, random_prompts, request, run

from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.models.llama import LlamaModel, Model, ModelArgs
from mlx_server.models.overrides import RopeOverrides, apply
from mlx_server.models.registry import resolve_classes
from mlx_server.models.rope import Rope, make_rope

DIMS, BASE, TRAINED = 32, 10000.0, 2048
POSITIONS = [0, 1, 17, 500, 2047, 9000]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}


def ggml_rope_yarn(
    positions: list[int], *, base: float = BASE, freq_scale: float = 1.0, ext_factor: float = 0.0,
    attn_factor: float = 1.0, beta_fast: float = 32.0, beta_slow: float = 1.0,
    orig_ctx: int = TRAINED, factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Cosines and sines [positions, DIMS / 2], magnitude included, as ggml defines them."""

    def corrected(rotations: float) -> float:
        return DIMS * math.log(orig_ctx / (rotations * 2 * math.pi)) / (2 * math.log(base))

    start = max(0.0, math.floor(corrected(beta_fast)))
    end = min(DIMS - 1.0, math.ceil(corrected(beta_slow)))
    cos, sin = np.zeros((2, len(positions), DIMS // 2))
    for row, position in enumerate(positions):
        for pair in range(DIMS // 2):
            extrapolated = position * base ** (-2 * pair / DIMS)
            if factors is not None:
                extrapolated /= factors[pair]
            interpolated = freq_scale * extrapolated
            theta, magnitude = interpolated, attn_factor
            if ext_factor != 0:
                y = (pair - start) / max(0.001, end - start)
                mix = (1 - min(1, max(0, y))) * ext_factor
                theta = interpolated * (1 - mix) + extrapolated * mix
                magnitude *= 1 + 0.1 * math.log(1 / freq_scale)
            cos[row, pair] = math.cos(theta) * magnitude
            sin[row, pair] = math.sin(theta) * magnitude
    return cos, sin


def check(rope: Rope, cos: np.ndarray, sin: np.ndarray, *, traditional: bool = False) -> None:
    """On both ways that a rotation is computed. Float32 angles of thousands cost three digits."""
    x = np.random.default_rng(0).normal(size=(len(POSITIONS), 2, 1, DIMS)).astype(np.float32)
    half = DIMS // 2
    first = np.s_[..., ::2] if traditional else np.s_[..., :half]
    second = np.s_[..., 1::2] if traditional else np.s_[..., half:]
    expected, c, s = np.zeros_like(x), cos[:, None, None], sin[:, None, None]
    expected[first] = x[first] * c - x[second] * s
    expected[second] = x[first] * s + x[second] * c
    for composed in (True, False):
        rotation = rope.rotation(mx.array(POSITIONS, dtype=mx.int32))
        rotation._composed = composed
        np.testing.assert_allclose(np.array(rotation(mx.array(x))), expected, atol=6e-3, rtol=0)


def rope_of(config: dict, *, traditional: bool = False) -> Rope:
    args = ModelArgs.from_dict(CONFIG | config)
    return make_rope(
        DIMS, args.rope_theta, traditional, args.rope_scaling, args.max_position_embeddings
    )


# ---------------------------------------------------------------- ggml's formula


@pytest.mark.parametrize(
    "given",
    [
        {"freq_base": 500.0},
        {"freq_scale": 0.25},
        {"freq_scale": 2.0},
        {"scaling": "yarn", "freq_scale": 0.25},
        {"scaling": "yarn", "freq_scale": 0.25, "freq_base": 77777.0},
        {"scaling": "yarn", "freq_scale": 0.25, "ext_factor": 0.0},
        {"scaling": "yarn", "freq_scale": 0.25, "ext_factor": -1.0},
        {"scaling": "yarn", "freq_scale": 0.5, "ext_factor": 0.5, "attn_factor": 1.3},
        {"scaling": "yarn", "freq_scale": 0.125, "beta_fast": 16.0, "beta_slow": 2.0},
        {"scaling": "yarn", "freq_scale": 0.125, "orig_ctx": 300},
        {"scaling": "yarn", "freq_scale": 2.0},
        {"scaling": "yarn"},
        {"scaling": "linear", "freq_scale": 0.5, "ext_factor": 0.25},
        {"scaling": "linear", "attn_factor": 0.8},
        {"scaling": "none", "freq_scale": 0.5},
    ],
)
@pytest.mark.parametrize("traditional", [False, True])
def test_flags_over_a_plain_model_are_ggml_s(given: dict, traditional: bool) -> None:
    numbers = {k: v for k, v in given.items() if k not in ("scaling", "freq_base")}
    if given.get("ext_factor", -1) < 0:
        numbers["ext_factor"] = float(given.get("scaling") == "yarn")
    if given.get("scaling") == "none":
        numbers["freq_scale"] = 1.0
    cos, sin = ggml_rope_yarn(POSITIONS, base=given.get("freq_base", BASE), **numbers)
    config = apply(CONFIG, RopeOverrides(**given))
    check(rope_of(config, traditional=traditional), cos, sin, traditional=traditional)


@pytest.mark.parametrize(
    ("own", "given", "numbers"),
    [
        ({"type": "linear", "factor": 4.0}, {"scaling": "yarn"},
         {"freq_scale": 0.25, "ext_factor": 1.0}),
        ({"type": "linear", "factor": 4.0}, {"freq_scale": 0.5}, {"freq_scale": 0.5}),
        ({"type": "linear", "factor": 4.0}, {"scaling": "none"}, {}),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
         {"freq_scale": 0.5}, {"freq_scale": 0.5, "ext_factor": 1.0, "orig_ctx": 512}),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 8},
         {"orig_ctx": 700}, {"freq_scale": 0.25, "ext_factor": 1.0, "orig_ctx": 700,
                             "beta_fast": 8.0}),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
         {"scaling": "linear"}, {"freq_scale": 0.25}),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 2},
         {"attn_factor": 0.5}, {
             "freq_scale": 0.25, "ext_factor": 1.0, "orig_ctx": 512,
             "attn_factor": 0.5 * (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4))}),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
         {"orig_ctx": 0}, {"freq_scale": 0.25, "ext_factor": 1.0, "orig_ctx": 512}),
    ],
)  # fmt: skip
def test_flags_replace_a_model_s_own_numbers_one_by_one(own, given: dict, numbers: dict) -> None:
    config = apply(CONFIG | {"rope_scaling": own}, RopeOverrides(**given))
    check(rope_of(config), *ggml_rope_yarn(POSITIONS, **numbers))


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"freq_scale": 0.5}, {"freq_scale": 0.5}),
        ({"scaling": "yarn", "freq_scale": 0.5},
         {"freq_scale": 0.5, "ext_factor": 1.0, "orig_ctx": 512}),
        ({"scaling": "none"}, {}),
        ({"freq_base": 500_000.0}, {}),
    ],
)  # fmt: skip
def test_llama_3_s_own_periods_stay_below_the_flags(given: dict, numbers: dict) -> None:
    """llama.cpp keeps them as factors on the periods, whatever the flags say."""
    config = CONFIG | {"rope_scaling": LLAMA3}
    base = given.get("freq_base", BASE)
    own = rope_utils.initialize_rope(DIMS, base, False, LLAMA3, TRAINED)._freqs
    factors = np.array(own) / base ** (np.arange(0, DIMS, 2) / DIMS)
    cos, sin = ggml_rope_yarn(POSITIONS, base=base, factors=factors, **numbers)
    check(rope_of(apply(config, RopeOverrides(**given))), cos, sin)


def test_transformers_5_s_form_is_overridden_as_well() -> None:
    parameters = {"rope_theta": 5e5, **LLAMA3}
    config = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    for given in (
        {"freq_base": 1e4}, {"freq_scale": 0.5}, {"scaling": "yarn", "freq_scale": 0.25},
    ):  # fmt: skip
        overrides = RopeOverrides(**given)
        old = apply(config | {"rope_theta": 5e5, "rope_scaling": LLAMA3}, overrides)
        new = apply(config | {"rope_parameters": parameters}, overrides)
        a, b = rope_of(old), rope_of(new)
        positions = mx.array(POSITIONS, dtype=mx.int32)
        np.testing.assert_allclose(a.angles(positions), b.angles(positions), rtol=1e-6)
        assert a.magnitude == b.magnitude


# ---------------------------------------------------------------- flags


def test_no_flag_changes_nothing() -> None:
    for config in (CONFIG, CONFIG | {"rope_scaling": LLAMA3}, {"model_type": "gpt2"}):
        assert apply(config, RopeOverrides.of(Config())) == config
    assert not RopeOverrides.of(Config()).given


def test_flags_are_read_from_the_settings() -> None:
    config = Config(
        rope_scaling="yarn", rope_scale=4.0, rope_freq_base=1e6, yarn_orig_ctx=0,
        yarn_ext_factor=-1.0, yarn_attn_factor=1.1, yarn_beta_slow=2.0, yarn_beta_fast=30.0,
    )  # fmt: skip
    found = RopeOverrides.of(config)
    assert found == RopeOverrides("yarn", 1e6, 0.25, 0, -1.0, 1.1, 2.0, 30.0)
    assert found.given and all(getattr(found, f.name) is not None for f in fields(found))
    assert RopeOverrides.of(Config(rope_freq_scale=0.25, rope_scale=4.0)).freq_scale == 0.25
    with pytest.raises(
        ModelLoadError, match=r"--rope-scale 4 is --rope-freq-scale 0\.25, not 0\.5"
    ):
        RopeOverrides.of(Config(rope_freq_scale=0.5, rope_scale=4.0))


def test_the_config_that_is_given_stays_as_it_is() -> None:
    config = CONFIG | {"rope_scaling": dict(LLAMA3), "rope_parameters": dict(LLAMA3)}
    before = repr(config)
    apply(config, RopeOverrides("yarn", 1e6, 0.5))
    assert repr(config) == before


def test_a_model_generates_under_the_flags() -> None:
    """Linear scaling by flags is linear scaling by config.json, from prompt to reply."""
    prompt = random_prompts([50])[0]
    by_flag = apply(CONFIG, RopeOverrides(freq_scale=0.25))
    by_config = CONFIG | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    replies = [
        run(make_engine(make_pair(c)[1]), request("r", prompt, logprobs=3))
        for c in (CONFIG, by_config)
    ]
    # mlx_lm's Llama, the other of a pair, does not know what the flags become.
    model = Model(ModelArgs.from_dict(by_flag))
    model.update(make_pair(CONFIG)[1].module.parameters())
    found = run(make_engine(LlamaModel(model, 2048)), request("r", prompt, logprobs=3))
    assert found.tokens("r") == replies[1].tokens("r")
    assert found.logprobs("r")[0] != replies[0].logprobs("r")[0]


# ---------------------------------------------------------------- mlx-lm's modules

QWEN2 = {
    "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": 64,
    "max_position_embeddings": TRAINED, "rope_theta": BASE,
}  # fmt: skip
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": DIMS, "tie_word_embeddings": True}
NESTED = {k: v for k, v in QWEN3.items() if k != "rope_theta"} | {
    "rope_parameters": {"rope_theta": BASE, "rope_type": "default"}
}
"""As transformers 5 writes it."""


def zoo_rope(config: dict):
    model_class, args_class, kind = resolve_classes(config)
    assert kind == "zoo"
    return model_class(args_class.from_dict(config)).layers[0].self_attn.rope


def check_zoo(config: dict, cos: np.ndarray, sin: np.ndarray) -> None:
    rope, half = zoo_rope(config), DIMS // 2
    x = np.random.default_rng(0).normal(size=(1, 1, 1, DIMS)).astype(np.float32)
    for row, position in enumerate(POSITIONS):
        found = np.array(rope(mx.array(x), offset=position))[0, 0, 0]
        a, b, c, s = x[0, 0, 0, :half], x[0, 0, 0, half:], cos[row], sin[row]
        expected = np.concatenate([a * c - b * s, a * s + b * c])
        np.testing.assert_allclose(found, expected, atol=6e-3, rtol=0)


@pytest.mark.parametrize("config", [QWEN2, QWEN3, NESTED], ids=["qwen2", "qwen3", "nested"])
@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"freq_base": 777.0}, {"base": 777.0}),
        ({"freq_scale": 0.25}, {"freq_scale": 0.25}),
        ({"scaling": "yarn", "freq_scale": 0.25}, {"freq_scale": 0.25, "ext_factor": 1.0}),
        ({"scaling": "yarn", "freq_scale": 0.5, "orig_ctx": 300, "attn_factor": 1.25,
          "beta_fast": 16.0},
         {"freq_scale": 0.5, "ext_factor": 1.0, "orig_ctx": 300, "attn_factor": 1.25,
          "beta_fast": 16.0}),
        ({"scaling": "none", "freq_base": 500.0}, {"base": 500.0}),
    ],
)  # fmt: skip
def test_the_zoo_takes_them_through_its_config(config: dict, given: dict, numbers: dict) -> None:
    check_zoo(apply(config, RopeOverrides(**given)), *ggml_rope_yarn(POSITIONS, **numbers))


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (QWEN2, {"scaling": "yarn", "freq_scale": 0.5, "ext_factor": 0.5}, "--yarn-ext-factor of"),
        (QWEN2, {"scaling": "yarn", "freq_scale": 2.0}, "--rope-scale above 1"),
        (QWEN2, {"attn_factor": 1.5}, "no factor on the magnitude"),
        (QWEN2 | {"rope_scaling": LLAMA3}, {"freq_scale": 0.5}, "llama3.* cannot be scaled"),
        (QWEN2 | {"max_position_embeddings": None}, {"scaling": "yarn", "freq_scale": 0.5},
         "give --yarn-orig-ctx"),
        ({"model_type": "gpt2"}, {"freq_base": 5.0}, "reads no rope_theta"),
        ({"model_type": "mamba"}, {"freq_scale": 0.5}, "reads no rope_scaling"),
        ({"model_type": "phi3"}, {"freq_scale": 0.5}, "rope_scaling of its own"),
        (QWEN2 | {"model_file": "m.py"}, {"freq_scale": 0.5}, "code of its own"),
        (QWEN3 | {"rope_parameters": {"full": {"rope_theta": 1.0}}}, {"freq_base": 5.0},
         "several kinds"),
        (CONFIG | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"freq_scale": 0.5},
         "dynamic"),
        (CONFIG | {"rope_scaling": {"type": "yarn"}}, {"freq_scale": 0.5}, "no usable factor"),
        (CONFIG | {"rope_scaling": "yarn"}, {"freq_scale": 0.5}, "is no object"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_one_clear_line(config: dict, given: dict, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said) as refused:
        apply(config, RopeOverrides(**given))
    assert repr(config["model_type"]) in str(refused.value) and "\n" not in str(refused.value)


def test_yarn_without_a_known_training_context_asks_for_it() -> None:
    config = {k: v for k, v in CONFIG.items() if k != "max_position_embeddings"}
    with pytest.raises(ModelLoadError, match="give --yarn-orig-ctx"):
        apply(config, RopeOverrides(scaling="yarn", freq_scale=0.5))
