"""Tensors of GGUF files as MLX arrays.

Quantised blocks become MLX's groups of 32 as they are: the same numbers, packed anew.
Their layout is ggml's (ggml/src/ggml-common.h: block_q4_0, block_q4_1, block_q8_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import READABLE, Tensor

GROUP_SIZE = 32

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def check_readable(file: Path, tensor: Tensor) -> None:
    """
    Raises:
        ModelLoadError: The tensor is stored in a way that is not read here.
    """
    if tensor.readable is None:
        known = ", ".join(kind.name for kind in READABLE.values())
        raise ModelLoadError(
            f"{file} holds {tensor.name} as {tensor.type_name}, and only {known} can be read; "
            "choose a file of one of these types, or safetensors weights."
        )


def read_arrays(path: Path, tensor: Tensor) -> dict[str, mx.array]:
    """A tensor: `weight` [rows, columns], or for a quantised one MLX's packed `weight` (uint32)
    with `scales` and `biases` (float16 [rows, columns / 32]). Lazy."""
    raw = mx.array(tensor.raw(path))
    if (dtype := DTYPES.get(tensor.type_name)) is not None:
        return {"weight": raw.view(dtype)}
    rows, columns = tensor.shape
    blocks = raw.reshape(rows, columns // GROUP_SIZE, tensor.readable.nbytes)
    scales = _halves(blocks, 0)
    match tensor.type_name:
        case "Q4_0":  # w = s (q - 8)
            packed, biases = _nibbles(blocks[..., 2:]), scales * -8
        case "Q4_1":  # w = s q + m
            packed, biases = _nibbles(blocks[..., 4:]), _halves(blocks, 2)
        case _:  # Q8_0: w = s q with signed q
            packed, biases = blocks[..., 2:] ^ 0x80, scales * -128
    packed = mx.contiguous(packed).reshape(rows, -1).view(mx.uint32)
    return {"weight": packed, "scales": scales, "biases": biases}


def _halves(blocks: mx.array, at: int) -> mx.array:
    """The float16 at byte `at` of each block: [rows, blocks]."""
    return mx.contiguous(blocks[..., at : at + 2]).view(mx.float16).squeeze(-1)


def _nibbles(packed: mx.array) -> mx.array:
    """Blocks of 32 four-bit numbers: byte k holds the k-th and the (k + 16)-th in the file,
    the 2k-th and the (2k + 1)-th in MLX, the first of them in its lower half."""
    halves = mx.concatenate([packed & 15, packed >> 4], axis=-1)
    return halves[..., 0::2] | (halves[..., 1::2] << 4)


def rotary_heads(config: Mapping[str, Any]) -> dict[str, int]:
    """How many heads the rows of a projection belong to, for those whose order differs."""
    return {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}


def split_halves(rows: mx.array, heads: int) -> mx.array:
    """Rows [heads · head_dim, …] in llama.cpp's order → in a checkpoint's."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)
