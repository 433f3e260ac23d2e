"""Architectures of mlx-lm from a folder to replies: loaded, batched, under adapters."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models import gemma3_text, mamba, mixtral, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_server.core import GenerationRequest, TokenPrompt
from mlx_server.deltas import Delta, Done, Text
from mlx_server.errors import ModelLoadError
from mlx_server.pool import ModelPool

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "qwen3": (
        qwen3,
        SHAPE | HEADS | {
            "rms_norm_eps": 1e-5, "head_dim": 8, "max_position_embeddings": 512,
            "tie_word_embeddings": True, "rope_theta": 1e4,
        },
    ),
    "gemma3_text": (
        gemma3_text,
        SHAPE | HEADS | {
            "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
            "sliding_window_pattern": 2, "max_position_embeddings": 512,
        },
    ),
    "mixtral": (mixtral, SHAPE | HEADS | {"num_local_experts": 4}),
    "mamba": (
        mamba,
        SHAPE | {
            "intermediate_size": 64, "state_size": 4, "conv_kernel": 4, "use_bias": False,
            "use_conv_bias": True, "time_step_rank": 4,
        },
    ),
}  # fmt: skip
PROMPTS = [[1, *range(300, 300 + n)] for n in (3, 40, 17, 90, 6)]


def make_folder(folder: Path, name: str, stories: Path, **changes: object) -> Path:
    """A random model with the stories' tokenizer."""
    module, shape = CONFIGS[name]
    config = {"model_type": name, **shape, **changes}
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(
        tree_map(lambda p: mx.random.normal(p.shape) * 0.25 + (p.ndim == 1), model.parameters())
    )
    for file in (stories / "stories260k").glob("*token*"):
        shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def make_adapter(folder: Path, model_folder: Path) -> Path:
    model, _ = mlx_lm.load(str(model_folder))
    parameters = {"rank": 4, "scale": 8.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, parameters)
    leaves = {
        name: mx.random.normal(value.shape, key=mx.random.key(i)) * 0.3
        for i, (name, value) in enumerate(tree_flatten(model.parameters()))
        if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b")
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), leaves)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def expected(
    folder: Path, prompt: list[int], adapter: Path | None = None, **options: int
) -> list[int]:
    model, _ = mlx_lm.load(str(folder), adapter_path=adapter and str(adapter))
    steps = generate_step(mx.array(prompt), model, max_tokens=14, **options)
    return [int(token) for token, _ in steps]


def deltas_of(pool: ModelPool, name: str, prompt: list[int], model: str | None) -> list[Delta]:
    options = {"temperature": 0.0, "max_tokens": 14, "ignore_eos": True, "logprobs": 0}
    request = GenerationRequest(name, model, (TokenPrompt(tuple(prompt)),), options)
    return list(pool.generate(request))


def ask(pool: ModelPool, name: str, prompt: list[int], model: str | None = None) -> list[int]:
    deltas = deltas_of(pool, name, prompt, model)
    return [t.id for d in deltas if isinstance(d, Text) for t in d.tokens]


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_one_batch_equal_mlx_lm(
    open_pool, stories: Path, tmp_path: Path, name: str
) -> None:
    folder = make_folder(tmp_path, name, stories)
    pool = open_pool(model=str(folder), prefill_chunk_size=32)
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        found = list(threads.map(lambda i: ask(pool, f"r{i}", PROMPTS[i]), range(len(PROMPTS))))
    assert found == [expected(folder, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_adapters_and_bare_rows_in_one_batch(
    open_pool, stories: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "model").mkdir()
    folder = make_folder(tmp_path / "model", name, stories)
    adapter = make_adapter(tmp_path / "adapter", folder)
    pool = open_pool(model=str(folder), lora=(f"tuned={adapter}",))
    jobs = [(p, m) for p in PROMPTS[:3] for m in (None, "tuned")]
    with ThreadPoolExecutor(len(jobs)) as threads:
        found = list(
            threads.map(lambda i: ask(pool, f"r{i}", jobs[i][0], jobs[i][1]), range(len(jobs)))
        )
    wanted = [expected(folder, p, adapter if m else None) for p, m in jobs]
    assert found == wanted
    assert wanted[0] != wanted[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_second_turn_is_found(open_pool, stories: Path, tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, name, stories)
    pool = open_pool(model=str(folder), prefill_chunk_size=32)
    first = PROMPTS[3]
    reply = ask(pool, "one", first)
    second = [*first, *reply, *range(400, 410)]
    deltas = deltas_of(pool, "two", second, None)
    (usage,) = [d.usage for d in deltas if isinstance(d, Done)]
    # All but the reply's last token, which nobody computed.
    assert usage.cached_tokens == len(first) + len(reply) - 1
    found = [t.id for d in deltas if isinstance(d, Text) for t in d.tokens]
    assert found == expected(folder, second)


@pytest.mark.parametrize(("name", "changes"), [
    ("qwen3", {"head_dim": 32}),
    ("mixtral", {"hidden_size": 128}),
])  # fmt: skip
def test_quantised_rows_of_one_batch_equal_mlx_lm(
    open_pool, stories: Path, tmp_path: Path, name: str, changes: dict[str, int]
) -> None:
    folder = make_folder(tmp_path, name, stories, **changes)
    pool = open_pool(model=str(folder), kv_bits=8, kv_group_size=32)
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        found = list(threads.map(lambda i: ask(pool, f"r{i}", PROMPTS[i]), range(len(PROMPTS))))
    # A token at a time: mlx-lm would attend to the first chunk's keys and values as they were.
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0, "prefill_step_size": 1}
    wanted = [expected(folder, prompt, **options) for prompt in PROMPTS]
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= len(PROMPTS) - 1


@pytest.mark.parametrize(("name", "message"), [
    ("mamba", "--kv-bits: mamba has no layer"),
    ("qwen3", "--kv-group-size must divide 8"),
])  # fmt: skip
def test_what_cannot_be_quantised_is_refused_at_the_start(
    open_pool, stories: Path, tmp_path: Path, name: str, message: str
) -> None:
    folder = make_folder(tmp_path, name, stories)
    with pytest.raises(ModelLoadError, match=message):
        open_pool(model=str(folder), kv_bits=8, kv_group_size=32)
