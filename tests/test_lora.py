"""Adapters: each row as mlx_lm would compute it alone, whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from models import make_pair, random_prompts

from mlx_server.errors import ModelLoadError, NotFound
from mlx_server.models.base import Row
from mlx_server.models.lora import AdapterBank
from mlx_server.models.lora_layers import LoRAEmbedding, LoRALinear
from mlx_server.models.registry import mlx_lm_utils

SHARED = Path(__file__).parents[1] / "../shared/models"

mlx_lm_utils()
from mlx_lm.models import llama, mixtral  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters  # noqa: E402

TOKENS = mx.array([[5, 9, 2, 31, 7, 7, 40, 1, 3, 22], [8, 8, 1, 60, 4, 33, 12, 0, 2, 9]])
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]

Make = Callable[[], nn.Module]


def make_llama(
    bits: int | None = None,
    *,
    bias: bool = False,
    tied: bool = False,
    dtype: mx.Dtype = mx.float32,
) -> nn.Module:
    mx.random.seed(0)
    args = llama.ModelArgs(
        model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=64,
        attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied,
    )  # fmt: skip
    model = llama.Model(args)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape), model.parameters()))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def make_mixtral(bits: int | None = None, dtype: mx.Dtype = mx.float32) -> nn.Module:
    mx.random.seed(0)
    args = mixtral.ModelArgs(
        model_type="mixtral", hidden_size=32, num_hidden_layers=2, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=64, num_local_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    model = mixtral.Model(args)
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def write_adapter(
    folder: Path,
    make: Make,
    *,
    dora: bool = False,
    rank: int = 4,
    keys: list[str] | None = None,
    num_layers: int = 2,
    seed: int = 1,
    dtype: mx.Dtype = mx.float32,
) -> Path:
    """An adapter as mlx_lm's tuner saves it, with random factors instead of trained ones."""
    parameters = {"rank": rank, "scale": 2.0, "dropout": 0.0}
    if keys is not None:
        parameters["keys"] = keys
    model = make()
    model.freeze()
    linear_to_lora_layers(model, num_layers, parameters, use_dora=dora)
    mx.random.seed(seed)
    tensors = {
        name: (p * mx.random.uniform(0.7, 1.3, p.shape) + 0.2 * mx.random.normal(p.shape))
        for name, p in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {k: v.astype(dtype) for k, v in tensors.items()}
    )
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": num_layers,
        "lora_parameters": parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def expected(make: Make, adapter: Path, tokens: mx.array = TOKENS) -> np.ndarray:
    return np.array(load_adapters(make(), str(adapter))(tokens).astype(mx.float32))


def run(model: nn.Module, tokens: mx.array = TOKENS) -> np.ndarray:
    return np.array(model(tokens).astype(mx.float32))


def assert_near(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


BASES = {
    "plain": make_llama,
    "bias": lambda: make_llama(bias=True),
    "8-bit": lambda: make_llama(8),
    "4-bit": lambda: make_llama(4),
    "4-bit bias": lambda: make_llama(4, bias=True),
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
@pytest.mark.parametrize("keys", [None, ATTENTION], ids=["all", "attention"])
def test_one_adapter_equals_mlx_lm(
    tmp_path: Path, make: Make, dora: bool, keys: list[str] | None
) -> None:
    path = write_adapter(tmp_path / "a", make, dora=dora, keys=keys)
    model = make()
    base = run(model)
    bank = AdapterBank(model)
    bank.load("a", path)
    assert_near(run(model), base)
    bank.select([(2, (("a", 1.0),))])
    got = run(model)
    assert_near(got, expected(make, path))
    assert np.abs(got - base).max() > 0.1


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": write_adapter(tmp_path / "a", make_llama, seed=1),
        "b": write_adapter(
            tmp_path / "b", make_llama, rank=2, keys=ATTENTION, num_layers=1, seed=2
        ),
        "d": write_adapter(tmp_path / "d", make_llama, dora=True, rank=6, seed=3),
    }


def with_adapters(adapters: dict[str, Path]) -> tuple[nn.Module, AdapterBank]:
    model = make_llama()
    bank = AdapterBank(model)
    for name, path in adapters.items():
        bank.load(name, path)
    return model, bank


COMBINATIONS = [
    (("a", 1.0),),
    (),
    (("b", 0.5),),
    (("d", 1.0),),
    (("a", 0.5), ("b", 1.0), ("d", 0.25)),
    (("d", 0.5),),
    (("b", 0.5), ("d", 1.0)),
    (("a", 1.0),),
]


@pytest.mark.parametrize("repeat", [1, 9], ids=["gathered", "slices"])
def test_rows_under_different_adapters_equal_each_alone(
    three: dict[str, Path], repeat: int
) -> None:
    model, bank = with_adapters(three)
    rows = [pairs for pairs in COMBINATIONS for _ in range(repeat)]
    tokens = mx.random.randint(0, 64, (len(rows), 3), key=mx.random.key(3))
    bank.select([(1, pairs) for pairs in rows])
    mixed = run(model, tokens)
    for i in range(0, len(rows), repeat):
        bank.select([(1, rows[i])])
        assert_near(mixed[i : i + 1], run(model, tokens[i : i + 1]))


def test_packed_tokens_equal_each_row_alone(three: dict[str, Path]) -> None:
    """Decode rows and prompt chunks in one [N, D] array, through one layer."""
    model, bank = with_adapters(three)
    layer = model.layers[1].self_attn.q_proj
    assert isinstance(layer, LoRALinear)
    segments = [(1, p) for p in COMBINATIONS] + [(20, (("d", 1.0),)), (3, ()), (11, (("b", 2.0),))]
    x = mx.random.normal((sum(n for n, _ in segments), 64), key=mx.random.key(1))
    bank.select(segments)
    mixed, padded = np.array(layer(x)), np.array(layer(x[None]))
    assert_near(padded[0], mixed)
    start = 0
    for n, pairs in segments:
        bank.select([(n, pairs)])
        assert_near(mixed[start : start + n], np.array(layer(x[start : start + n])))
        start += n


def test_adapters_on_one_row_add_up(three: dict[str, Path]) -> None:
    model, bank = with_adapters(three)
    layer = model.layers[1].self_attn.q_proj
    x = mx.random.normal((5, 64), key=mx.random.key(2))
    base = np.array(layer(x))
    alone = {}
    for name in three:
        bank.select([(5, ((name, 1.0),))])
        alone[name] = np.array(layer(x))
    bank.select([(5, tuple((name, 1.0) for name in three))])
    assert_near(np.array(layer(x)), base + sum(y - base for y in alone.values()))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_rows_scale_multiplies_the_adapters(tmp_path: Path, dora: bool) -> None:
    path = write_adapter(tmp_path / "a", make_llama, dora=dora)
    model = make_llama()
    bank = AdapterBank(model)
    bank.load("a", path)
    bank.select([(2, (("a", 0.5),))])
    got = run(model)
    config = json.loads((path / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] *= 0.5
    (path / "adapter_config.json").write_text(json.dumps(config))
    assert_near(got, expected(make_llama, path))


def test_scale_zero_is_the_base_model(three: dict[str, Path]) -> None:
    model, bank = with_adapters(three)
    base = run(make_llama())
    bank.select([(2, (("a", 0.0), ("d", 0.0)))])
    np.testing.assert_array_equal(run(model), base)
    bank.select([(1, (("a", 0.0),)), (1, (("a", 1.0),))])
    assert_near(run(model)[0], base[0])


def assert_near_in_half_precision(a: np.ndarray, b: np.ndarray) -> None:
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("adapters", [mx.float32, None], ids=["float32", "same"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_rows_in_half_precision_equal_mlx_lm_and_stay_in_it(
    tmp_path: Path, dtype: mx.Dtype, adapters: mx.Dtype | None, bits: int | None
) -> None:
    def make() -> nn.Module:
        return make_llama(bits, dtype=dtype)

    adapters = adapters or dtype
    paths = {
        "a": write_adapter(tmp_path / "a", make, dtype=adapters),
        "b": write_adapter(tmp_path / "b", make, rank=2, seed=2, dtype=adapters),
        "d": write_adapter(tmp_path / "d", make, dora=True, dtype=adapters),
    }
    model = make()
    base = run(model)
    bank = AdapterBank(model)
    for name, path in paths.items():
        bank.load(name, path)
    tokens = mx.concatenate([TOKENS, TOKENS])
    bank.select([*((1, ((name, 1.0),)) for name in paths), (1, ())])
    mixed = model(tokens)
    assert mixed.dtype == dtype
    rows = np.array(mixed.astype(mx.float32))
    for row, path in enumerate(paths.values()):
        assert_near_in_half_precision(rows[row], expected(make, path, tokens)[row])
    assert_near_in_half_precision(rows[3], base[1])


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapters_on_embeddings_equal_mlx_lm(
    tmp_path: Path, tied: bool, dora: bool, bits: int | None
) -> None:
    if dora and bits:
        pytest.skip("mlx_lm has no DoRA on quantised embeddings")

    def make() -> nn.Module:
        return make_llama(bits, tied=tied)

    keys = ["model.embed_tokens", "self_attn.q_proj"]
    paths = {
        "e": write_adapter(tmp_path / "e", make, dora=dora, keys=keys, seed=1),
        "f": write_adapter(tmp_path / "f", make, dora=dora, keys=keys, rank=2, seed=2),
        "q": write_adapter(tmp_path / "q", make, keys=keys[1:], seed=3),
    }
    model = make()
    base = run(model)
    bank = AdapterBank(model)
    for name, path in paths.items():
        bank.load(name, path)
    assert isinstance(model.model.embed_tokens, LoRAEmbedding)
    bank.select([(2, (("e", 1.0),))])
    assert_near(run(model), expected(make, paths["e"]))

    rows = [(("f", 1.0),), (), (("e", 1.0),), (("q", 1.0),)]
    tokens = mx.concatenate([TOKENS, TOKENS])
    bank.select([(1, pairs) for pairs in rows])
    mixed = run(model, tokens)
    for row, name in ((0, "f"), (2, "e"), (3, "q")):
        assert_near(mixed[row], expected(make, paths[name], tokens)[row])
    assert_near(mixed[1], base[1])


def test_dora_on_a_quantised_embedding_is_that_of_its_weight(tmp_path: Path) -> None:
    keys = ["model.embed_tokens"]
    path = write_adapter(tmp_path / "e", lambda: make_llama(tied=True), dora=True, keys=keys)

    def make_dequantised() -> nn.Module:
        model = make_llama(tied=True)
        packed = make_llama(4, tied=True).model.embed_tokens
        weight = mx.dequantize(packed.weight, packed.scales, packed.biases, 32, 4)
        model.model.embed_tokens.weight = weight
        return model

    model = make_dequantised()
    model.model.embed_tokens = make_llama(4, tied=True).model.embed_tokens
    bank = AdapterBank(model)
    bank.load("e", path)
    bank.select([(2, (("e", 1.0),))])
    assert_near(run(model), expected(make_dequantised, path))


def test_packed_tokens_on_an_embedding_equal_each_row_alone(tmp_path: Path) -> None:
    """A flat array of ids, and a tied head that sees fewer rows than the embedding."""

    def make() -> nn.Module:
        return make_llama(tied=True)

    model = make()
    bank = AdapterBank(model)
    names = {"a": False, "b": True}
    for seed, (name, dora) in enumerate(names.items()):
        keys = ["model.embed_tokens"]
        bank.load(name, write_adapter(tmp_path / name, make, dora=dora, keys=keys, seed=seed))
    layer = model.model.embed_tokens
    rows = [(("a", 1.0),), (("a", 0.5), ("b", 1.0)), (), (("b", 0.5),)]
    segments = [(1, p) for p in rows] + [(20, (("b", 1.0),)), (3, ()), (11, (("a", 2.0),))]
    total = sum(n for n, _ in segments)
    ids = mx.random.randint(0, 64, (total,), key=mx.random.key(1))
    x = mx.random.normal((total, 64), key=mx.random.key(2))
    bank.select(segments)
    vectors, logits = np.array(layer(ids)), np.array(layer.as_linear(x))
    start = 0
    for n, pairs in segments:
        bank.select([(n, pairs)])
        assert_near(vectors[start : start + n], np.array(layer(ids[start : start + n])))
        assert_near(logits[start : start + n], np.array(layer.as_linear(x[start : start + n])))
        start += n


def test_an_adapter_comes_and_goes_while_others_stay(three: dict[str, Path]) -> None:
    model, bank = with_adapters({"a": three["a"]})
    bank.select([(1, (("a", 1.0),)), (1, ())])
    before = run(model)
    bank.load("d", three["d"])
    bank.select([(1, (("a", 1.0),)), (1, (("d", 1.0),))])
    run(model)
    bank.unload("d")
    bank.select([(1, (("a", 1.0),)), (1, ())])
    assert_near(run(model), before)
    assert bank.names == ("a",)


def test_unloading_the_last_adapter_restores_the_modules(three: dict[str, Path]) -> None:
    model = make_llama()
    modules, base = dict(model.named_modules()), run(model)
    bank = AdapterBank(model)
    for name, path in three.items():
        bank.load(name, path)
    bank.select([(2, (("a", 1.0),))])
    for name in three:
        bank.unload(name)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[path] is modules[path] for path in modules)
    np.testing.assert_array_equal(run(model), base)


@pytest.mark.parametrize("length", [3, 40], ids=["unsorted", "sorted"])
def test_experts_under_different_adapters_equal_mlx_lm(tmp_path: Path, length: int) -> None:
    paths = {
        name: write_adapter(tmp_path / name, make_mixtral, seed=seed)
        for seed, name in enumerate("ab", start=1)
    }
    model = make_mixtral()
    modules = dict(model.named_modules())
    tokens = mx.random.randint(0, 64, (3, length), key=mx.random.key(3))
    base = run(model, tokens)
    bank = AdapterBank(model)
    for name, path in paths.items():
        bank.load(name, path)
    bank.select([(1, (("a", 1.0),)), (1, ()), (1, (("b", 1.0),))])
    mixed = run(model, tokens)
    assert_near(mixed[0], expected(make_mixtral, paths["a"], tokens)[0])
    assert_near(mixed[1], base[1])
    assert_near(mixed[2], expected(make_mixtral, paths["b"], tokens)[2])
    bank.select([(3, (("b", 1.0),))])
    assert_near(run(model, tokens), expected(make_mixtral, paths["b"], tokens))
    for name in paths:
        bank.unload(name)
    assert dict(model.named_modules()).keys() == modules.keys()


@pytest.mark.parametrize("tile", [1, 16])
@pytest.mark.parametrize("bits", [None, 4])
def test_a_tied_head_under_adapters_sees_the_rows_it_is_given(
    tmp_path: Path, bits: int | None, tile: int
) -> None:
    """Our Llama: a prompt chunk wants its last logits only, so the head has fewer rows."""

    def make() -> nn.Module:
        return make_pair(bits=bits)[0]

    keys = ["model.embed_tokens", "self_attn.q_proj"]
    paths = {
        name: write_adapter(tmp_path / name, make, keys=keys, num_layers=3, seed=seed)
        for seed, name in enumerate("ab", start=1)
    }
    model = make_pair(bits=bits)[1]
    model.bank = AdapterBank(model.module)
    model.tile = tile
    for name, path in paths.items():
        model.bank.load(name, path)
    prompts = random_prompts([6, 5, 9, 4])
    adapters = [(("a", 1.0),), (), (("b", 1.0),), (("a", 1.0),)]
    seats = [model.cache.open(32) for _ in prompts]
    for seat, prompt in zip(seats, prompts, strict=True):
        model.cache.reserve(seat, len(prompt))
    wanted = [1, 2, 1, 0]
    rows = [
        Row(seat, len(prompt), n, pairs)
        for seat, prompt, n, pairs in zip(seats, prompts, wanted, adapters, strict=True)
    ]
    logits, _ = model.forward(mx.array([t for prompt in prompts for t in prompt]), rows)
    parts = np.split(np.array(logits), np.cumsum(wanted)[:-1])
    for part, prompt, n, pairs in zip(parts, prompts, wanted, adapters, strict=True):
        tokens = mx.array([prompt])
        reference = expected(make, paths[pairs[0][0]], tokens) if pairs else run(make(), tokens)
        np.testing.assert_allclose(part, reference[0, len(prompt) - n :], atol=1e-3)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_experts_in_half_precision_equal_those_in_float32(tmp_path: Path, dtype: mx.Dtype) -> None:
    """Packed experts: mlx_lm's plain ones do not run in half precision on the CPU."""

    def make(dtype: mx.Dtype = dtype) -> nn.Module:
        return make_mixtral(4, dtype)

    path = write_adapter(tmp_path / "a", make, dtype=dtype)
    x = mx.random.normal((2, 40, 32), key=mx.random.key(1))
    experts = mx.random.randint(0, 4, (2, 40, 2), key=mx.random.key(2))
    outputs = []
    for model in (make(), make(mx.float32)):
        bank = AdapterBank(model)
        bank.load("a", path)
        bank.select([(1, (("a", 1.0),)), (1, ())])
        block = model.layers[1].block_sparse_moe.switch_mlp
        y = block(x.astype(model.model.norm.weight.dtype), experts)
        outputs.append(np.array(y.astype(mx.float32)))
    assert_near_in_half_precision(*outputs)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_real_adapters_in_one_batch_equal_mlx_lm() -> None:
    def make() -> nn.Module:
        return mlx_lm_utils().load_model(SHARED / "stories260k")[0]

    tokens = mx.array([[1, 403, 407, 261, 378]] * 3)
    model = make()
    base = run(model, tokens)
    bank = AdapterBank(model)
    for name in ("dragon", "moon"):
        bank.load(name, SHARED / "adapters" / name)
    bank.select([(1, (("dragon", 1.0),)), (1, (("moon", 1.0),)), (1, ())])
    mixed = run(model, tokens)
    for row, name in enumerate(("dragon", "moon")):
        assert_near(mixed[row], expected(make, SHARED / "adapters" / name, tokens)[row])
    assert_near(mixed[2], base[2])


# ---------------------------------------------------------------- what cannot be loaded


def rewrite(path: Path, **tensors: mx.array | None) -> None:
    """Change tensors of an adapter by name ("__" for "."); None removes one."""
    file = str(path / "adapters.safetensors")
    content = mx.load(file)
    mx.eval(content)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del content[name]
        else:
            content[name] = tensor
    mx.save_safetensors(file, content)


def set_config(path: Path, **values: object) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


Q = "model__layers__0__self_attn__q_proj__"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "adapter_config.json").unlink(), "no adapter_config.json"),
    "not JSON": (lambda p: (p / "adapter_config.json").write_text("{"), "not valid JSON"),
    "no weights": (lambda p: (p / "adapters.safetensors").unlink(), "no adapters.safetensors"),
    "corrupt": (
        lambda p: (p / "adapters.safetensors").write_bytes(b"\1" * 40),
        "truncated or corrupt",
    ),
    "full": (lambda p: set_config(p, fine_tune_type="full"), "fine_tune_type 'full'"),
    "peft": (lambda p: set_config(p, peft_type="LORA"), "PEFT"),
    "no scale": (
        lambda p: set_config(p, lora_parameters={"rank": 4, "alpha": 8}),
        "scale is alpha / rank",
    ),
    "rank": (
        lambda p: set_config(p, lora_parameters={"rank": 5, "scale": 1.0}),
        "lora_a has shape (64, 4) where the model calls for (64, 5)",
    ),
    "lacks lora_b": (lambda p: rewrite(p, **{Q + "lora_b": None}), "lacks model.layers.0"),
    "m in LoRA": (lambda p: rewrite(p, **{Q + "m": mx.ones((64,))}), "check fine_tune_type"),
    "shape": (
        lambda p: rewrite(p, **{Q + "lora_b": mx.ones((4, 65))}),
        "q_proj.lora_b has shape (4, 65) where the model calls for (4, 64)",
    ),
    "no such layer": (
        lambda p: rewrite(
            p,
            model__layers__9__mlp__up_proj__lora_a=mx.ones((64, 4)),
            model__layers__9__mlp__up_proj__lora_b=mx.ones((4, 96)),
        ),
        "model.layers.9.mlp.up_proj, which the model does not have",
    ),
    "embedding": (
        lambda p: rewrite(
            p,
            model__embed_tokens__lora_a=mx.ones((65, 4)),
            model__embed_tokens__lora_b=mx.ones((4, 64)),
        ),
        "embed_tokens.lora_a has shape (65, 4) where the model calls for (64, 4)",
    ),
    "norm": (
        lambda p: rewrite(
            p,
            model__norm__lora_a=mx.ones((64, 4)),
            model__norm__lora_b=mx.ones((4, 64)),
        ),
        "changes model.norm, a RMSNorm; only linear, embedding",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("bits", [None, 4])
def test_faults_are_one_line_and_change_nothing(
    tmp_path: Path, fault: str, bits: int | None
) -> None:
    spoil, message = FAULTS[fault]
    path = write_adapter(tmp_path / "a", make_llama)
    spoil(path)
    model = make_llama(bits)
    modules = list(map(id, model.modules()))
    bank = AdapterBank(model)
    with pytest.raises(ModelLoadError) as error:
        bank.load("tale", path)
    assert "Cannot load the adapter 'tale': " in error.value.message
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert list(map(id, model.modules())) == modules
    assert bank.names == ()


def test_names_are_taken_once_and_must_be_known(three: dict[str, Path]) -> None:
    _, bank = with_adapters({"a": three["a"]})
    with pytest.raises(ModelLoadError, match="of that name"):
        bank.load("a", three["b"])
    with pytest.raises(ModelLoadError, match="no adapter folder"):
        bank.load("z", Path("no/such"))
    with pytest.raises(NotFound):
        bank.select([(1, (("z", 1.0),))])
    with pytest.raises(NotFound):
        bank.unload("z")
