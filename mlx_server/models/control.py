"""Control vectors: directions that are added to the hidden state behind layers.

The files are llama.cpp's (`llama-cvector-generator`, repeng): a .gguf with tensors
`direction.N`, F32 [hidden_size]. As there, layers count from 0 and `direction.N` is added
to what layer N gives; there is none for layer 0, and one for a layer that the model does
not have is left out (llama.cpp, `common_control_vector_load` and `llama_adapter_cvec`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.gguf import Header, read_header
from mlx_server.models.gguf_arrays import read_arrays
from mlx_server.models.registry import OURS

PathAndScale = tuple[Path, float]

_TYPE = "controlvector"


def control_vectors_of(config: Config) -> list[PathAndScale]:
    """The files that --control-vector and --control-vector-scaled name, with their scales."""
    given = [*((path, 1.0) for path in config.control_vector), *config.control_vector_scaled]
    return [(Path(os.path.expanduser(path)), scale) for path, scale in given]


def load_control(
    paths_and_scales: Sequence[PathAndScale],
    layer_range: tuple[int, int] | None,
    hidden_size: int,
    num_layers: int,
    model_type: str = "llama",
) -> dict[int, mx.array]:
    """The sum of some control vectors, each times its scale.

    Args:
        layer_range: First and last layer that are changed, from 1; 0 or less stands for the
            model's first or last. None changes all.
        hidden_size, num_layers: The model's shape.
        model_type: The model's, as in config.json.

    Returns:
        float32 [hidden_size] by layer, 1 to num_layers - 1; no entry where nothing is added.

    Raises:
        ModelLoadError: A file is no control vector, or none of such a model; or the range is
            empty.
    """
    first, last = layer_range or (0, 0)
    first, last = (first if first > 0 else 1), (last if last > 0 else num_layers)
    if first > last:
        raise ModelLoadError(
            f"--control-vector-layer-range {first} {last}: the first layer is behind the last."
        )
    total: dict[int, mx.array] = {}
    for path, scale in paths_and_scales:
        for layer, direction in _read(path, hidden_size, model_type).items():
            if scale and first <= layer <= min(last, num_layers - 1):
                total[layer] = total.get(layer, 0) + scale * direction
    mx.eval(total)
    return total


def refuse_control(model_type: str) -> ModelLoadError:
    """What to raise where a model's layers cannot be reached."""
    return ModelLoadError(
        f"control vectors cannot be added to model_type {model_type!r}; mlx_server's own modules "
        f"take them ({', '.join(OURS)}). Start without --control-vector."
    )


def _read(path: Path, hidden_size: int, model_type: str) -> dict[int, mx.array]:
    """A file's directions by layer."""
    if not path.is_file():
        raise ModelLoadError(f"the control vector {path} is missing.")
    header = read_header(path)  # not mx.load, which a damaged file makes crash
    _check_kind(header, model_type)
    directions = {}
    for name, tensor in header.tensors.items():
        match = re.fullmatch(r"direction\.(\d+)", name)
        if match is None or not int(match[1]):
            raise ModelLoadError(
                f"{path} is no control vector: it holds {name}, not just direction.1, direction.2 "
                "and so on."
            )
        if tensor.type_name != "F32" or len(tensor.shape) != 1:
            raise ModelLoadError(
                f"{path} is no control vector: {name} is {tensor.type_name} {list(tensor.shape)}, "
                f"not F32 [{hidden_size}]."
            )
        if tensor.shape[0] != hidden_size:
            raise ModelLoadError(
                f"{path} belongs to another model: {name} has {tensor.shape[0]} numbers, this "
                f"model's hidden state {hidden_size}."
            )
        directions[int(match[1])] = read_arrays(path, tensor)["weight"]
    if not directions:
        raise ModelLoadError(f"{path} is no control vector: it holds no tensors direction.N.")
    return directions


def _check_kind(header: Header, model_type: str) -> None:
    path, kind = header.path, header.architecture
    if kind not in (_TYPE, None):
        raise ModelLoadError(
            f"{path} is no control vector, but a file of architecture {kind!r}; to load a model or "
            "an adapter use --model or --lora."
        )
    # llama.cpp calls all of ours "llama", others name the model_type.
    hint = header.text(f"{_TYPE}.model_hint")
    if hint not in (None, model_type, "llama" if model_type in OURS else model_type):
        raise ModelLoadError(
            f"{path} belongs to another model: it was made for {hint!r}, this one is "
            f"{model_type!r}."
        )
