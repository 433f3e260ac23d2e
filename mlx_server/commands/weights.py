"""What a model's files say of it without loading it: parameters, bits, context. No MLX."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import Header, read_header, split_files
from mlx_server.models.gguf_config import ARCHITECTURE, check_kind
from mlx_server.models.model_config import CONTEXT_KEYS, context_length
from mlx_server.models.model_files import MAX_HEADER_BYTES, weight_files

PACKED_BITS = 32
"""MLX stores quantised weights in uint32 words."""

DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8"}


@dataclass(frozen=True, slots=True)
class Facts:
    """
    Args:
        quantization: As in "4-bit", "mxfp4", "bf16" or "Q4_0"; None where nothing says.
        bits: Of a weight, where it is a number of bits.
        parameters: How many numbers the model has, unpacked.
        context: Tokens; None where nothing says.
    """

    model_type: str
    quantization: str | None
    bits: int | None
    parameters: int | None
    context: int | None


def folder_facts(folder: Path, config: Mapping[str, Any]) -> Facts:
    """Of safetensors weights and their config.json. Only the files' headers are read."""
    given = config.get("quantization", config.get("quantization_config"))
    given = given if isinstance(given, Mapping) else {}
    tensors = list(_tensors(folder))
    bits = _bits(given)
    quantization = f"{bits}-bit" if bits is not None else _method(given)
    mode = given.get("mode", "affine")
    if isinstance(mode, str) and mode != "affine":
        quantization = mode
    return Facts(
        model_type=str(config.get("model_type")),
        quantization=quantization or _dtype(tensors),
        bits=bits,
        parameters=_parameters(tensors, given) or None,
        context=context_length(config) if _says_context(config) else None,
    )


def gguf_facts(path: Path) -> Facts:
    """Of a .gguf file, with all its parts.

    Raises:
        ModelLoadError: It is none that this server runs, or not all there.
    """
    headers = [read_header(part) for part in split_files(path)]
    check_kind(headers[0])
    sizes: Counter[str] = Counter()
    for tensor in _gguf_tensors(headers):
        if tensor.readable is None:
            raise ModelLoadError(f"{path} has tensors of the type {tensor.type_name}.")
        sizes[tensor.type_name] += math.prod(tensor.shape)
    context = headers[0].metadata.get(f"{ARCHITECTURE}.context_length")
    common = sizes.most_common(1)[0][0] if sizes else None
    bits = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}.get(common or "")
    return Facts(
        model_type=ARCHITECTURE,
        quantization=common if bits else DTYPES.get(common or "", common),
        bits=bits,
        parameters=sizes.total() or None,
        context=context if isinstance(context, int) else None,
    )


def _gguf_tensors(headers: list[Header]) -> Iterator[Any]:
    for header in headers:
        yield from header.tensors.values()


# ---------------------------------------------------------------- safetensors


def _tensors(folder: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every tensor; those of a file that cannot be read are left out."""
    try:
        files = weight_files(folder)
    except ModelLoadError:
        return
    for file in files:
        try:
            for name, entry in _header(file).items():
                if name != "__metadata__":
                    yield name, entry["dtype"], tuple(map(int, entry["shape"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue


def _header(path: Path) -> dict[str, Any]:
    """Format: https://huggingface.co/docs/safetensors, a length of 8 bytes and JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else {}


def _parameters(tensors: list[Any], given: Mapping[str, Any]) -> int:
    """Quantised layers count as what they unpack to, without their scales and biases."""
    names = {name for name, _, _ in tensors}
    total = 0
    for name, dtype, shape in tensors:
        layer, _, leaf = name.rpartition(".")
        packed = f"{layer}.weight" in names and f"{layer}.scales" in names
        if packed and leaf in ("scales", "biases"):
            continue
        count = math.prod(shape)
        if packed and leaf == "weight" and dtype == "U32":
            own = given.get(layer)
            bits = _bits(own) if isinstance(own, Mapping) else None
            count = count * PACKED_BITS // (bits or _bits(given) or PACKED_BITS)
        total += count
    return total


def _bits(given: Mapping[str, Any]) -> int | None:
    bits = given.get("bits")
    return bits if type(bits) is int and 1 <= bits <= 16 else None


def _method(given: Mapping[str, Any]) -> str | None:
    method = given.get("quant_method")
    return method if isinstance(method, str) else None


def _dtype(tensors: list[Any]) -> str | None:
    """The type that most of the numbers have."""
    sizes: Counter[str] = Counter()
    for _, dtype, shape in tensors:
        sizes[dtype] += math.prod(shape)
    if not sizes:
        return None
    common = sizes.most_common(1)[0][0]
    return DTYPES.get(common, common.lower())


def _says_context(config: Mapping[str, Any]) -> bool:
    nested = config.get("text_config")
    sources = (config, nested if isinstance(nested, Mapping) else {})
    return any(type(source.get(key)) is int for source in sources for key in CONTEXT_KEYS)
