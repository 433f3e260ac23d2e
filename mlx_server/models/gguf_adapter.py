"""LoRA adapters in llama.cpp's GGUF files, in the form of `adapter_files.py`.

    general.type "adapter" · adapter.type "lora" · adapter.lora.alpha
    blk.N.attn_q.weight.lora_a [R, D] and .lora_b [O, R], …

They are transposed there, the scale is alpha / rank, and the rows of queries and keys
are in llama.cpp's order (`gguf_files.py`). An embedding's A is [V, R] as in mlx-lm.
Source: llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import Header, read_header
from mlx_server.models.adapter_files import AdapterFile
from mlx_server.models.gguf_arrays import (
    BITS,
    GROUP_SIZE,
    check_readable,
    read_arrays,
    rotary_heads,
    split_halves,
)
from mlx_server.models.gguf_config import ARCHITECTURE
from mlx_server.models.gguf_files import module_name
from mlx_server.models.llama import ModelArgs
from mlx_server.models.model_files import first_names

LEAVES = ("lora_a", "lora_b")


def read_gguf_adapter(path: Path, args: Any) -> AdapterFile:
    """Read the adapter in the file `path`.

    Args:
        args: Of the model that it is for, whose heads it must know.

    Raises:
        ModelLoadError: It is no LoRA adapter, or not of a Llama, or the model is none.
    """
    if not path.is_file():
        raise ModelLoadError(f"there is no adapter file {path}.")
    header = read_header(path)
    _check_kind(header)
    if not isinstance(args, ModelArgs):
        raise ModelLoadError(
            f"{path} is for Llama models, and this one is none; give an adapter folder in "
            "mlx-lm's format."
        )
    heads = {}
    if not args.rope_traditional:  # a model whose rows have llama.cpp's order themselves
        heads = rotary_heads(vars(args))
    alpha = header.metadata.get("adapter.lora.alpha")
    modules = {
        module: dict(_pair(header, stem, heads.get(module.rpartition(".")[2])))
        for module, stem in _modules(header).items()
    }
    ranks = {module: pair["lora_b"].shape[0] for module, pair in modules.items()}
    # Without alpha the factors count as they are, as in llama.cpp.
    first = next(iter(ranks.values()))
    scale = alpha / first if alpha else 1.0
    for module, rank in ranks.items():
        if alpha and rank != first:  # a rank pattern: one scale does not fit all
            modules[module]["lora_b"] = modules[module]["lora_b"] * (first / rank)
    return AdapterFile(path, dora=False, scale=scale, rank=None, tensors=modules)


def _check_kind(header: Header) -> None:
    path, metadata = header.path, header.metadata
    if header.text("general.type") != "adapter" and "adapter.type" not in metadata:
        raise ModelLoadError(f"{path} is no adapter (its general.type is not adapter).")
    kind = header.text("adapter.type")
    if kind != "lora" or "adapter.alora.invocation_tokens" in metadata:
        kind = "activated lora" if kind == "lora" else kind
        raise ModelLoadError(f"{path} has the adapter.type {kind!r}; only lora can be applied.")
    if header.architecture != ARCHITECTURE:
        raise ModelLoadError(
            f"{path} is for the architecture {header.architecture!r}; of .gguf adapters only "
            f"those for {ARCHITECTURE!r} can be applied."
        )
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if type(alpha) not in (int, float) or not 0 <= alpha < float("inf"):
        raise ModelLoadError(f"{path} has no number for adapter.lora.alpha; convert it again.")


def _modules(header: Header) -> dict[str, str]:
    """The model's module → how the file calls it."""
    path, found = header.path, {}
    for name in header.tensors:
        stem, _, leaf = name.rpartition(".")
        module = module_name(stem.removesuffix(".weight")) if leaf in LEAVES else None
        if module is None or not stem.endswith(".weight"):
            raise ModelLoadError(f"{path} holds {name}, which is no tensor of a Llama's adapter.")
        found[module] = stem
    lacking = [
        f"{s}.{a}" for s in found.values() for a in LEAVES if f"{s}.{a}" not in header.tensors
    ]
    if lacking or not found:
        what = f"lacks {first_names(lacking)}" if lacking else "holds no tensors"
        raise ModelLoadError(f"{path} {what}; convert it again.")
    return found


def _pair(header: Header, stem: str, heads: int | None) -> Mapping[str, mx.array]:
    a, b = (_matrix(header, f"{stem}.{leaf}") for leaf in LEAVES)
    if heads is not None:
        if b.shape[0] % (2 * heads):
            raise ModelLoadError(
                f"{header.path} holds {stem}.lora_b of {b.shape[0]} rows, which the model's "
                f"{heads} heads do not share; the adapter belongs to another model."
            )
        b = split_halves(b, heads)
    return {"lora_a": a if stem.startswith("token_embd.") else a.T, "lora_b": b.T}


def _matrix(header: Header, name: str) -> mx.array:
    tensor = header.tensors[name]
    check_readable(header.path, tensor)
    if len(tensor.shape) != 2:
        raise ModelLoadError(f"{header.path} holds {name}, which is no matrix; convert it again.")
    arrays = read_arrays(header.path, tensor)
    bits = BITS.get(tensor.type_name)
    if bits is None:
        return arrays["weight"]
    packed, scales, biases = arrays["weight"], arrays["scales"], arrays["biases"]
    return mx.dequantize(packed, scales, biases, group_size=GROUP_SIZE, bits=bits)
