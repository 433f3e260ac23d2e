"""GGUF files for tests, written with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mlx_server.gguf import read_header

Types = gguf.GGMLQuantizationType


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case np.ndarray():
            writer.add_array(key, value.tolist())
        case list():
            writer.add_array(key, value)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    types: Mapping[str, Types] | None = None,
) -> Path:
    """Args: tensors: float32; types: how those named are stored, F32 without."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            add_value(writer, key, value)
    for name, tensor in tensors.items():
        kind = (types or {}).get(name, Types.F32)
        data = tensor if kind == Types.F32 else gguf.quants.quantize(tensor, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and float32 tensors of a file, as `write_gguf` takes them."""
    header = read_header(path)
    tensors = {
        name: np.array(tensor.raw(path)).view("<f4") for name, tensor in header.tensors.items()
    }
    return dict(header.metadata), tensors


def dequantised(tensor: np.ndarray, kind: Types) -> np.ndarray:
    return gguf.quants.dequantize(gguf.quants.quantize(tensor, kind), kind)


@pytest.fixture(scope="module")
def story(stories: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return read_gguf(stories / "stories260K.gguf")
