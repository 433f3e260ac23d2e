"""Llamas in GGUF files: found, checked and read into the layout of Hugging Face checkpoints.

llama.cpp turns neighbouring features of queries and keys, checkpoints turn halves:
its files have the rows of those two projections in another order. It is undone
here, so that a model is the same model whatever file it came from, and adapters
of both kinds fit both:

    file    h₀: x₀ y₀ x₁ y₁ …      checkpoint    h₀: x₀ x₁ … y₀ y₁ …
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import Header, Tensor, read_header, split_files
from mlx_server.models.gguf_arrays import (
    BITS,
    DTYPES,
    GROUP_SIZE,
    check_readable,
    read_arrays,
    rotary_heads,
    split_halves,
)
from mlx_server.models.gguf_config import check_kind, generation_config, model_config
from mlx_server.models.model_files import first_names
from mlx_server.progress import Task

FREQS = "rope_freqs.weight"

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Modules of a layer, llama.cpp's name → the checkpoint's."""

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z_]+)")


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """A Llama in one or several files that passed all checks short of its weights' values.

    Attributes:
        config: As config.json would have it, `quantization` included.
        generation: As generation_config.json would have it.
        places: Parameter name → its tensor and the file that holds it.
    """

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    places: Mapping[str, tuple[Path, Tensor]]

    @property
    def nbytes(self) -> int:
        """Of all tensors, as the files hold them."""
        return sum(tensor.nbytes for _, tensor in self.places.values())


def inspect(path: Path) -> GGUFModel:
    """Look at the file `path`, and at the other parts of a split one. Makes no arrays.

    Raises:
        ModelLoadError: One line that says what is wrong with it.
    """
    headers = [read_header(part) for part in split_files(path)]
    first = headers[0]
    check_kind(first)
    found = _tensors(headers)
    for file, tensor in found.values():
        check_readable(file, tensor)
    tensors = {name: tensor for name, (_, tensor) in found.items()}
    freqs = _freqs(*found[FREQS]) if FREQS in found else None
    config = model_config(first, tensors, freqs)
    expected = _shapes(config)
    places = {}
    for name, (file, tensor) in found.items():
        if name == FREQS:
            continue
        parameter = _parameter(name)
        if parameter not in expected:
            raise ModelLoadError(
                f"{file} holds the tensor {name}, which no Llama has; choose a repo with "
                "safetensors weights of the same model."
            )
        _check_tensor(file, tensor, expected[parameter])
        places[parameter] = file, tensor
    missing = sorted(n for n in expected.keys() - places.keys() if not n.endswith(".bias"))
    if missing:
        raise ModelLoadError(
            f"{path} lacks {len(missing)} tensors that its metadata calls for "
            f"({first_names([gguf_name(name) for name in missing])}); fetch it again."
        )
    if (quantization := _quantization(places)) is not None:
        config["quantization"] = quantization
    return GGUFModel(path, config, generation_config(first.metadata), places)


def load_weights(given: GGUFModel, module: nn.Module, task: Task) -> None:
    """Fill `module`, built of the file's config, with the weights; its layers are quantised
    as the file's tensors are. Everything is evaluated: the file is not needed any more.

    Args:
        task: Is told of the file's bytes, tensor by tensor.
    """
    config = given.config
    heads = rotary_heads(config)
    dtype = _compute_dtype(given.places)
    weights: dict[str, mx.array] = {}
    for name, (path, tensor) in given.places.items():
        count = heads.get(name.split(".")[-2])
        arrays = read_arrays(path, tensor)
        if count is not None:
            arrays = {leaf: split_halves(array, count) for leaf, array in arrays.items()}
        stem, _, leaf = name.rpartition(".")
        arrays = {
            leaf if part == "weight" else part: _cast(array, dtype)
            for part, array in arrays.items()
        }
        # One tensor at a time: a model's bytes need not be there twice.
        mx.eval(list(arrays.values()))
        task.advance(tensor.nbytes)
        weights |= {f"{stem}.{part}": array for part, array in arrays.items()}
    for name, shape in _shapes(config).items():
        if name not in weights and name.endswith(".bias"):
            weights[name] = mx.zeros(shape, dtype)
    layers = config.get("quantization", {})

    def quantised(path: str, _: nn.Module) -> bool | dict[str, int]:
        return layers.get(path, False)

    if layers:
        nn.quantize(module, GROUP_SIZE, layers["bits"], class_predicate=quantised)
    module.load_weights(list(weights.items()))
    module.eval()
    mx.eval(module.parameters())


def module_name(name: str) -> str | None:
    """llama.cpp's name of a module ("blk.3.attn_q") as the checkpoint's; None if a Llama has
    no such module."""
    if name in OUTER:
        return OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in MODULES:
        return None
    return f"model.layers.{match[1]}.{MODULES[match[2]]}"


def gguf_name(parameter: str) -> str:
    """The other way round, for messages."""
    stem, _, leaf = parameter.rpartition(".")
    for theirs, ours in OUTER.items():
        if stem == ours:
            return f"{theirs}.{leaf}"
    _, _, layer, module = stem.split(".", 3)
    (theirs,) = (name for name, ours in MODULES.items() if ours == module)
    return f"blk.{layer}.{theirs}.{leaf}"


# ---------------------------------------------------------------- checks


def _tensors(headers: list[Header]) -> dict[str, tuple[Path, Tensor]]:
    found: dict[str, tuple[Path, Tensor]] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in found:
                raise ModelLoadError(
                    f"{header.path} and {found[name][0].name} both hold the tensor {name}; put "
                    "the parts of one model there."
                )
            found[name] = header.path, tensor
    announced = headers[0].metadata.get("split.tensors.count")
    if len(headers) > 1 and type(announced) is int and announced != len(found):
        raise ModelLoadError(
            f"The {len(headers)} parts of {headers[0].path} hold {len(found)} tensors and not "
            f"{announced}; put the parts of one model there."
        )
    return found


def _parameter(name: str) -> str | None:
    stem, _, leaf = name.rpartition(".")
    module = module_name(stem)
    return None if module is None else f"{module}.{leaf}"


def _check_tensor(file: Path, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ModelLoadError(
            f"{file} holds {tensor.name} of shape {tensor.shape} where its metadata calls for "
            f"{shape}; fetch it again."
        )
    if tensor.type_name in BITS and len(shape) != 2:
        raise ModelLoadError(
            f"{file} holds {tensor.name} as {tensor.type_name}, which is for matrices; convert "
            "the model again."
        )


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model and its shape, unpacked."""
    hidden, inner, vocab = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for name, shape in _layer_shapes(config, hidden, inner, queries, keys):
        shapes[name] = shape
    return shapes


def _layer_shapes(
    config: Mapping[str, Any], hidden: int, inner: int, queries: int, keys: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    linear = {
        "self_attn.q_proj": (queries, hidden, config["attention_bias"]),
        "self_attn.k_proj": (keys, hidden, config["attention_bias"]),
        "self_attn.v_proj": (keys, hidden, config["attention_bias"]),
        "self_attn.o_proj": (hidden, queries, config["attention_bias"]),
        "mlp.gate_proj": (inner, hidden, config["mlp_bias"]),
        "mlp.up_proj": (inner, hidden, config["mlp_bias"]),
        "mlp.down_proj": (hidden, inner, config["mlp_bias"]),
    }
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (hidden,)
        for module, (rows, columns, bias) in linear.items():
            yield f"model.layers.{layer}.{module}.weight", (rows, columns)
            if bias:
                yield f"model.layers.{layer}.{module}.bias", (rows,)


def _quantization(places: Mapping[str, tuple[Path, Tensor]]) -> dict[str, Any] | None:
    """As config.json writes it: what most layers have, and each quantised layer's own."""
    bits = {
        name.removesuffix(".weight"): BITS[tensor.type_name]
        for name, (_, tensor) in places.items()
        if tensor.type_name in BITS
    }
    if not bits:
        return None
    usual = Counter(bits.values()).most_common(1)[0][0]
    layers = {name: {"group_size": GROUP_SIZE, "bits": b} for name, b in bits.items()}
    return {"group_size": GROUP_SIZE, "bits": usual, **layers}


def _freqs(path: Path, tensor: Tensor) -> np.ndarray:
    if tensor.type_name != "F32" or len(tensor.shape) != 1:
        raise ModelLoadError(f"{path} holds {FREQS} that is no float32 vector; convert it again.")
    factors = tensor.raw(path).view("<f4")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelLoadError(f"{path} holds {FREQS} with values that are no factors above 0.")
    return factors


def _compute_dtype(places: Mapping[str, tuple[Path, Tensor]]) -> mx.Dtype:
    """What the model computes with: the type of most of its numbers, float16 for quantised ones."""
    sizes: Counter[mx.Dtype] = Counter()
    for _, tensor in places.values():
        sizes[DTYPES.get(tensor.type_name, mx.float16)] += int(np.prod(tensor.shape))
    return max(sizes, key=lambda dtype: sizes[dtype])


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array if array.dtype == mx.uint32 else array.astype(dtype)
