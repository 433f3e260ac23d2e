"""Model folders: what loads, equal to mlx_lm, and what each broken one says."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_server.errors import ModelLoadError
from mlx_server.models.loader import check, load
from mlx_server.models.model_config import context_length, eos_token_ids, sampling_defaults
from mlx_server.models.registry import OURS, is_known, mlx_lm_utils, resolve_classes

CONFIG = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "vocab_size": 64, "max_position_embeddings": 128, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip
LLAMA = {k: v for k, v in CONFIG.items() if k != "head_dim"} | {"model_type": "llama"}
TOKENS = mx.array([[5, 9, 2, 31, 7, 40]])


def reference(config: dict[str, Any]) -> nn.Module:
    model_class, args_class = mlx_lm_utils()._get_classes(config)
    mx.random.seed(0)
    model = model_class(args_class.from_dict(config))
    mx.eval(model.parameters())
    return model


def write_model(
    folder: Path,
    config: dict[str, Any] = CONFIG,
    *,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    names: tuple[str, ...] = ("model.safetensors",),
    index: bool = False,
) -> nn.Module:
    """A random model in `folder`, its tensors dealt out to the files `names`."""
    model = reference(config)
    model.set_dtype(dtype)
    if bits is not None:
        model, config = mlx_lm_utils().quantize_model(model, dict(config), 32, bits)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(tree_flatten(model.parameters()))
    weight_map = {name: names[i % len(names)] for i, name in enumerate(tensors)}
    for file in names:
        part = {n: t for n, t in tensors.items() if weight_map[n] == file}
        mx.save_safetensors(str(folder / file), part)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return model


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(TOKENS).astype(mx.float32))


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"dtype": mx.bfloat16},
        {"dtype": mx.float16},
        {"bits": 4},
        {"bits": 8, "dtype": mx.bfloat16},
        {"names": SHARDS, "index": True},
        {"names": SHARDS},
        {"names": ("weights.safetensors",)},
        {"names": ("pytorch_model-00001-of-00001.safetensors",)},
        {"names": ("consolidated.safetensors",)},
    ],
    ids=str,
)
def test_every_layout_loads_the_same_model(tmp_path: Path, layout: dict[str, Any]) -> None:
    written = write_model(tmp_path, **layout)
    loaded = load(tmp_path, name="m")
    assert loaded.module_kind == "zoo"
    assert loaded.path == tmp_path
    np.testing.assert_array_equal(logits(loaded.model), logits(written))
    assert loaded.nbytes == sum(p.nbytes for _, p in tree_flatten(written.parameters()))
    plain = sum(p.size for _, p in tree_flatten(reference(CONFIG).parameters()))
    assert loaded.num_parameters == plain


def test_a_second_copy_in_the_folder_is_not_loaded(tmp_path: Path) -> None:
    written = write_model(tmp_path, names=SHARDS, index=True)
    mx.save_safetensors(str(tmp_path / "consolidated.safetensors"), {"x": mx.ones(2)})
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"y": mx.ones(2)})
    np.testing.assert_array_equal(logits(load(tmp_path, name="m").model), logits(written))


def test_an_index_left_from_before_a_merge_is_passed_over(tmp_path: Path) -> None:
    written = write_model(tmp_path, names=SHARDS, index=True)
    for shard in SHARDS:
        (tmp_path / shard).unlink()
    write_model(tmp_path)
    np.testing.assert_array_equal(logits(load(tmp_path, name="m").model), logits(written))


def test_models_we_have_a_module_for_are_ours(tmp_path: Path) -> None:
    written = write_model(tmp_path, LLAMA, bits=4)
    loaded = load(tmp_path, name="m")
    assert loaded.module_kind == "ours"
    assert type(loaded.model).__module__ == OURS["llama"]
    ours, theirs = (dict(tree_flatten(m.parameters())) for m in (loaded.model, written))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    assert loaded.config["quantization"]["bits"] == 4


def test_ours_covers_only_names_that_mlx_lm_serves_with_llama() -> None:
    remapped = mlx_lm_utils().MODEL_REMAPPING
    assert all(remapped.get(name, name) == "llama" for name in OURS)


# ---------------------------------------------------------------- what cannot be loaded


def set_config(path: Path, **values: Any) -> None:
    """Change config.json; None removes a key."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def rewrite(path: Path, **tensors: mx.array | None) -> None:
    """Change tensors by name ("__" for "."); None removes one."""
    file = str(path / "model.safetensors")
    content = mx.load(file)
    mx.eval(content)
    for name, tensor in tensors.items():
        content[name.replace("__", ".")] = tensor
    mx.save_safetensors(file, {k: v for k, v in content.items() if v is not None})


def truncate(path: Path, size: int) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def only(path: Path, name: str) -> None:
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(b"weights")


NORM = "model__layers__1__input_layernorm__weight"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "not JSON": (lambda p: (p / "config.json").write_text("{,"), "config.json is not valid JSON"),
    "a list": (lambda p: (p / "config.json").write_text("[]"), "must hold a JSON object"),
    "generation config": (
        lambda p: (p / "generation_config.json").write_text("?"),
        "generation_config.json is not valid JSON",
    ),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "holds no weights"),
    "gguf": (lambda p: only(p, "m.gguf"), "holds m.gguf but no safetensors"),
    "torch": (lambda p: only(p, "pytorch_model.bin"), "mlx_lm.convert"),
    "header cut": (lambda p: truncate(p, 100), "model.safetensors is truncated or corrupt"),
    "data cut": (lambda p: truncate(p, 50_000), "model.safetensors is truncated or corrupt"),
    "empty": (lambda p: truncate(p, 0), "model.safetensors is truncated or corrupt"),
    "git lfs": (
        lambda p: (p / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        "git lfs pull",
    ),
    "no model_type": (lambda p: set_config(p, model_type=None), "names no model_type"),
    "model_type": (lambda p: set_config(p, model_type="qwen99"), "'qwen99' is unknown to"),
    "helper": (lambda p: set_config(p, model_type="rope_utils"), "'rope_utils' is unknown"),
    "dots": (lambda p: set_config(p, model_type="..utils"), "'..utils' is unknown"),
    "missing tensor": (
        lambda p: rewrite(p, **{NORM: None}),
        "the weights lack 1 tensors that config.json calls for (model.layers.1.input_layernorm",
    ),
    "missing tensors": (lambda p: set_config(p, num_hidden_layers=3), "and 8 more)"),
    "extra tensor": (lambda p: rewrite(p, model__x=mx.ones(1)), "no place for (model.x)"),
    "shape": (
        lambda p: rewrite(p, **{NORM: mx.ones(32)}),
        "model.layers.1.input_layernorm.weight has shape (32,) where config.json calls for (64,)",
    ),
    "field": (
        lambda p: set_config(p, hidden_size=None, vocab_size=None),
        "does not fit model_type 'qwen3': 'hidden_size' and 'vocab_size' is missing",
    ),
    "rope": (
        lambda p: set_config(p, rope_scaling={"rope_type": "llama3"}),
        "does not fit model_type 'qwen3': 'factor' is missing",
    ),
    "own code": (lambda p: set_config(p, model_file="m.py"), "add --trust-remote-code"),
    "type": (lambda p: set_config(p, hidden_size="wide"), "a value has the wrong type ("),
    "group size": (
        lambda p: set_config(p, quantization={"bits": 4}),
        "config.json's quantization has no whole number for group_size; give group_size and bits",
    ),
    "bits": (
        lambda p: set_config(p, quantization={"bits": "4", "group_size": 64}),
        "no whole number for bits",
    ),
    "quantization": (lambda p: set_config(p, quantization=True), "quantization has no whole"),
    "quantization method": (
        lambda p: set_config(p, quantization_config={"bits": 4}),
        "'quant_method' is missing; mend config.json or fetch the model again",
    ),
}

NEED_THE_WEIGHTS = {
    "missing tensor", "missing tensors", "extra tensor", "shape", "field", "type", "rope",
    "quantization method",
}  # fmt: skip
"""Faults that show when the model is built, mlx_lm's arguments among them."""


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_with_the_mend(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    write_model(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelLoadError) as error:
        load(tmp_path, name="tiny")
    assert error.value.message.startswith("Cannot load tiny: ")
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert len(error.value.message) < 500 + len(str(tmp_path))
    if fault in NEED_THE_WEIGHTS:
        check(tmp_path, name="tiny")
    else:
        with pytest.raises(ModelLoadError) as found:
            check(tmp_path, name="tiny")
        assert found.value.message == error.value.message


@pytest.mark.parametrize("config", [CONFIG, LLAMA], ids=["zoo", "ours"])
def test_a_sound_folder_passes_the_check_without_mlx_arrays(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, config, bits=4)
    monkeypatch.setattr(mx, "load", None)
    monkeypatch.setattr(mlx_lm_utils(), "load_model", None)
    check(tmp_path, name="m")


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    write_model(tmp_path, names=SHARDS, index=index)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(ModelLoadError, match=rf"lacks 1 of its 2 weight files \({SHARDS[1]}\)"):
        load(tmp_path, name="tiny")


def test_our_own_modules_arguments_are_told_the_same_way(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    set_config(tmp_path, rms_norm_eps=None)
    with pytest.raises(ModelLoadError, match="model_type 'llama': 'rms_norm_eps' is missing"):
        load(tmp_path, name="tiny")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": "four"}, "num_attention_heads must be a whole number above 0"),
        ({"layer_types": ["full_attention"]}, "layer_types must name a kind for each"),
    ],
)
def test_what_our_own_arguments_refuse_shows_in_the_check(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, LLAMA)
    set_config(tmp_path, **values)
    for find in (check, load):
        with pytest.raises(ModelLoadError, match=f"model_type 'llama': {message}.*mend it"):
            find(tmp_path, name="tiny")


def test_trusted_code_that_is_not_there(tmp_path: Path) -> None:
    write_model(tmp_path)
    set_config(tmp_path, model_file="mine.py")
    for find in (check, load):
        with pytest.raises(ModelLoadError, match=r"lacks mine\.py, the Python code"):
            find(tmp_path, name="tiny", trust_remote_code=True)


@pytest.mark.skipif(importlib.util.find_spec("hf_olmo") is not None, reason="hf_olmo is here")
def test_a_module_that_ends_the_program_when_imported_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelLoadError, match="'olmo' needs a package"):
        resolve_classes({"model_type": "olmo"})


def test_trusted_code_builds_the_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "mine.py").write_text("from mlx_lm.models.qwen3 import Model, ModelArgs\n")
    set_config(tmp_path, model_file="mine.py", model_type="mine")
    loaded = load(tmp_path, name="m", trust_remote_code=True)
    assert loaded.module_kind == "zoo"
    assert type(loaded.model).__module__ == "mlx_lm.models.qwen3"


# ---------------------------------------------------------------- what the configs say


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({}, {}, ()),
        ({"eos_token_id": 2}, {}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 3]}, (2, 3, 7)),
        ({"eos_token_id": None, "text_config": {"eos_token_id": [5]}}, {"eos_token_id": 0}, (0, 5)),
    ],
)
def test_end_tokens_are_those_of_both_files(
    config: dict[str, Any], generation: dict[str, Any], ids: tuple[int, ...]
) -> None:
    assert eos_token_ids(config, generation) == ids


@pytest.mark.parametrize(
    ("generation", "values"),
    [
        ({"temperature": 0.6, "top_k": 20, "max_length": 9}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": True, "top_p": 0.9, "min_p": None}, {"top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6}, {}),
    ],
)
def test_sampling_defaults(
    generation: dict[str, Any], values: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling_defaults(generation) == values
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", math.nan),
        ("temperature", "0.6"),
        ("temperature", True),
        ("top_p", 1.5),
        ("top_p", -math.inf),
        ("min_p", 2),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", math.inf),
        ("top_k", 10**400),
        ("repetition_penalty", 0),
        ("repetition_penalty", 100.5),
    ],
)
def test_a_sampling_default_out_of_range_is_left_out_with_a_warning(
    key: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    others = {"temperature": 0.6, "top_p": 0.9}
    others.pop(key, None)
    with caplog.at_level(logging.WARNING):
        assert sampling_defaults({**others, key: value}) == others
    (record,) = caplog.records
    assert f"generation_config.json says {key} is {repr(value)[:40]}, " in record.getMessage()


def test_a_count_is_an_integer() -> None:
    (top_k,) = sampling_defaults({"top_k": 50.0}).values()
    assert (top_k, type(top_k)) == (50, int)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"n_positions": 1024, "n_head": 12}, 1024),
        ({"num_attention_heads": 8}, 8192),
        ({"model_type": "mamba", "state_size": 16}, 1 << 20),
    ],
)
def test_context_length(config: dict[str, Any], length: int) -> None:
    assert context_length(config) == length


def test_generation_config_reaches_the_loaded_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [9, 1], "temperature": 0.7})
    )
    loaded = load(tmp_path, name="m")
    assert loaded.eos_token_ids == (1, 2, 9)
    assert loaded.generation_config == {"temperature": 0.7}


@pytest.mark.parametrize(("before", "after"), [(3000, 3000), (500, 2048)])
def test_importing_mlx_lm_keeps_the_limit_of_open_files(before: int, after: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("mlx_lm cannot be imported under so low a hard limit")
    script = (
        "import resource\n"
        "from mlx_server.models.registry import mlx_lm_utils\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({before}, {hard}))\n"
        "mlx_lm_utils()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) == after


@pytest.mark.parametrize(
    ("model_type", "known"),
    [
        ("llama", True),
        ("qwen3", True),
        ("solar_open", True),  # takes its Model from another module
        ("bert", False),
        ("cache", False),
        ("rope_utils", False),
        ("..utils", False),
        ("", False),
        (None, False),
        (["llama"], False),
    ],
)
def test_known_architectures(model_type: object, known: bool) -> None:
    assert is_known({"model_type": model_type}) is known


def test_names_that_mlx_lm_maps_to_others_are_known() -> None:
    utils = mlx_lm_utils()
    assert all(is_known({"model_type": name}) for name in utils.MODEL_REMAPPING)
    for model_type, architecture in utils.MODEL_ARCHITECTURE_REMAPPING:
        assert is_known({"model_type": model_type, "architectures": [architecture]})


def test_to_know_an_architecture_is_not_to_import_it() -> None:
    script = (
        "import sys\n"
        "from mlx_server.models.registry import is_known\n"
        "assert is_known({'model_type': 'mamba2'}) and is_known({'model_type': 'llama'})\n"
        "assert 'mlx_lm.models.mamba2' not in sys.modules\n"
        "assert 'mlx_server.models.llama' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_resolve_classes_prefers_ours() -> None:
    assert resolve_classes(LLAMA)[2] == "ours"
    assert resolve_classes(CONFIG)[2] == "zoo"
