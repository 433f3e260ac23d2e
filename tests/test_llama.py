"""Our Llama gives mlx_lm's logits for the same weights, however its tokens are packed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import BatchKVCache
from models import CONFIG, make_pair
from models import random_prompts as prompts

from mlx_server.models.base import Row
from mlx_server.models.llama import LlamaModel, ModelArgs
from mlx_server.models.rope import make_rope

BASE = CONFIG | {"max_position_embeddings": 512}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.3 * i for i in range(8)],
}
SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]
CONFIGS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "multi_head": {"num_key_value_heads": None},
    "wide_heads": {"head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False},
    "traditional": {"rope_traditional": True, "rope_theta": 500000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama3": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
    "yarn_mscale": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.3}},
    "longrope": {"rope_scaling": LONGROPE},
    "longrope_traditional": {"rope_scaling": LONGROPE, "rope_traditional": True},
    "yarn_traditional": {"rope_scaling": YARN, "rope_traditional": True},
    "llama3_traditional": {"rope_scaling": LLAMA3, "rope_traditional": True},
    "proportional": {"rope_scaling": {"type": "proportional", "partial_rotary_factor": 0.5}},
    "sliding": {"layer_types": SLIDING, "sliding_window": 7},
    "sliding_wide": {"layer_types": SLIDING, "sliding_window": 300},
}
LENGTHS = [5, 23, 40, 1]


def expected_logits(theirs, tokens: list[int]) -> np.ndarray:
    return np.array(theirs(mx.array([tokens]))[0])


class Driver:
    """Feeds rows to a model as the engine does, and keeps every position's logits."""

    def __init__(self, model: LlamaModel, tokens: list[list[int]], room: int = 0) -> None:
        self.model = model
        self.tokens = tokens
        self.seats = [model.cache.open(room or 1) for _ in tokens]
        self.logits: list[list[np.ndarray]] = [[] for _ in tokens]

    def step(self, counts: list[int]) -> None:
        """Compute the next `counts[i]` tokens of row i."""
        rows = [i for i, n in enumerate(counts) if n]
        for i in rows:
            self.model.cache.reserve(self.seats[i], self.seats[i].length + counts[i])
        rows.sort(key=lambda i: (counts[i] > 1, self.seats[i].order))
        flat = []
        for i in rows:
            start = self.seats[i].length
            flat += self.tokens[i][start : start + counts[i]]
        packed = [Row(self.seats[i], counts[i], counts[i]) for i in rows]
        logits, pending = self.model.forward(mx.array(flat), packed)
        mx.eval(logits, pending)
        values, at = np.array(logits), 0
        for i in rows:
            self.logits[i].extend(values[at : at + counts[i]])
            at += counts[i]

    def check(self, theirs, tolerance: float = 1e-4) -> None:
        for tokens, rows in zip(self.tokens, self.logits, strict=True):
            assert len(rows) == len(tokens)
            np.testing.assert_allclose(rows, expected_logits(theirs, tokens), atol=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_prompts_equal_mlx_lm(name: str) -> None:
    theirs, ours = make_pair(BASE | CONFIGS[name])
    driver = Driver(ours, prompts(LENGTHS))
    driver.step(LENGTHS)
    driver.check(theirs)


@pytest.mark.parametrize("name", ["plain", "llama3", "yarn", "sliding", "sliding_wide"])
@pytest.mark.parametrize("tile", [1, 16])
def test_chunks_and_decode_rows_in_one_pass_equal_whole_prompts(name: str, tile: int) -> None:
    """Also where the linear layers get spare rows up to a multiple of `tile`."""
    theirs, ours = make_pair(BASE | CONFIGS[name])
    ours.tile = tile
    driver = Driver(ours, prompts([30, 45, 12, 33]))
    rng = np.random.default_rng(0)
    left = np.array([30, 45, 12, 33])
    while left.any():
        counts = np.minimum(left, rng.choice([0, 1, 1, 1, 4, 9], 4))
        if counts.any():
            driver.step(counts.tolist())
            left -= counts
    driver.check(theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_equal_mlx_lm(bits: int) -> None:
    theirs, ours = make_pair(BASE | CONFIGS["llama3"], bits=bits)
    driver = Driver(ours, prompts([12, 7, 1]))
    driver.step([6, 7, 1])
    driver.step([6, 0, 0])
    driver.check(theirs)


def test_dynamic_scaling_equals_mlx_lm_token_by_token() -> None:
    # Past the trained length the base depends on the length so far, so mlx_lm's
    # result depends on the chunks; a token at a time both agree.
    config = BASE | {
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 16,
    }
    theirs, ours = make_pair(config)
    (tokens,) = prompts([40])
    cache = theirs.make_cache()
    expected = [np.array(theirs(mx.array([[t]]), cache=cache)[0, 0]) for t in tokens]
    driver = Driver(ours, [tokens])
    for _ in tokens:
        driver.step([1])
    np.testing.assert_allclose(driver.logits[0], expected, atol=1e-4)


def test_rope_settings_in_the_form_of_transformers_5() -> None:
    old = ModelArgs.from_dict(BASE | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = ModelArgs.from_dict(BASE | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    plain = ModelArgs.from_dict(BASE | {"rope_parameters": {"rope_theta": 5e5}})
    ropes = [
        make_rope(16, args.rope_theta, False, args.rope_scaling, 512) for args in (old, new, plain)
    ]
    x = mx.random.normal((3, 1, 1, 16), key=mx.random.key(0))
    turned = [np.array(rope.rotation(mx.array([0, 100, 400]))(x)) for rope in ropes]
    np.testing.assert_array_equal(turned[0], turned[1])
    assert not np.allclose(turned[0], turned[2])


FAULTS = {
    "text": ({"num_attention_heads": "four"}, "num_attention_heads must be a whole number above 0"),
    "zero": ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0"),
    "null": ({"hidden_size": None}, "hidden_size must be a whole number above 0, not None"),
    "fraction": ({"vocab_size": 101.5}, "vocab_size must be a whole number"),
    "true": ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
    "no groups": ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number above 0"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads"),
    "odd heads": ({"head_dim": 15}, "head_dim must be an even number above 0"),
    "narrow": ({"num_attention_heads": 128, "num_key_value_heads": None}, "head_dim must be"),
    "eps": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, not '1e-5'"),
    "theta": ({"rope_theta": -1}, "rope_theta must be a number above 0"),
    "flag": ({"attention_bias": "no"}, "attention_bias must be true or false"),
    "scaling": ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
    "short": ({"layer_types": ["full_attention"]}, "layer_types must name a kind for each"),
    "kind": ({"layer_types": ["full_attention"] * 2 + ["local"]}, "or sliding_attention, not 'loc"),
    "kinds": ({"layer_types": "full_attention"}, "layer_types must name a kind for each"),
    "window": ({"layer_types": SLIDING}, "sliding_window must be a whole number above 0 for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_values_that_make_no_model_are_named(fault: str) -> None:
    values, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        ModelArgs.from_dict(BASE | values)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "bogus"}, "rope scaling 'bogus' is not known"),
        ({"type": "linear"}, "'linear' needs 'factor'"),
        ({"type": "linear", "factor": 0}, "'linear' cannot use its settings"),
        ({"type": "llama3", "factor": "8"}, "'llama3' cannot use its settings"),
        (LONGROPE | {"long_factor": [1.0] * 5}, "'longrope' cannot use its settings"),
    ],
)
def test_rope_settings_that_cannot_be_used_are_named(scaling: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rope(16, 10000.0, False, scaling, 512)


def test_a_row_that_outgrows_its_slot_moves_and_disturbs_nobody() -> None:
    theirs, ours = make_pair(BASE)
    driver = Driver(ours, prompts([300, 280, 20]))
    driver.step([250, 250, 10])
    seats = [(seat.slab, seat.slot) for seat in driver.seats]
    driver.step([50, 1, 1])
    assert (driver.seats[0].slab, driver.seats[0].slot) != seats[0]
    assert [(s.slab, s.slot) for s in driver.seats[1:]] == seats[1:]
    driver.step([0, 29, 9])
    driver.check(theirs)


def test_free_slots_between_rows_do_no_harm() -> None:
    theirs, ours = make_pair(BASE)
    driver = Driver(ours, prompts([9] * 18))
    driver.step([4] * 18)
    for gone in (5, 13, 14, 15):
        ours.cache.close(driver.seats[gone])
    left = [4, 6, 7, 12, 16, 17]
    # A hole inside a run of rows, and one that splits them.
    assert [driver.seats[i].slot for i in left] == [0, 2, 3, 0, 4, 5]
    for _ in range(5):
        driver.step([int(i in left) for i in range(18)])
    for row in left:
        np.testing.assert_allclose(
            driver.logits[row], expected_logits(theirs, driver.tokens[row]), atol=1e-4
        )


def test_rows_decode_on_when_others_leave() -> None:
    theirs, ours = make_pair(BASE)
    driver = Driver(ours, prompts([9] * 18))
    driver.step([4] * 18)
    for gone in (12, 13, 14, 15, 5, 6, 7):
        ours.cache.close(driver.seats[gone])
    left = [4, 16, 17]
    for _ in range(5):
        driver.step([int(i in left) for i in range(18)])
    for row in left:
        np.testing.assert_allclose(
            driver.logits[row], expected_logits(theirs, driver.tokens[row]), atol=1e-4
        )


def test_packed_rows_equal_mlx_lms_padded_ones() -> None:
    theirs, ours = make_pair(BASE)
    tokens = prompts([30, 11, 23])
    longest = 30
    padding = [longest - len(t) for t in tokens]
    padded = mx.array([[0] * n + t for n, t in zip(padding, tokens, strict=True)])
    cache = [BatchKVCache(padding) for _ in theirs.layers]
    expected = np.array(theirs(padded, cache=cache))
    driver = Driver(ours, tokens)
    driver.step([29, 10, 22])
    driver.step([1, 1, 1])
    for row, logits in enumerate(driver.logits):
        np.testing.assert_allclose(logits, expected[row, padding[row] :], atol=1e-4)
