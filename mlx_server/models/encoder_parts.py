"""What encoders are put together from: the layers of mlx-embeddings, the heads of
cross-encoders, and weights under the names of every checkpoint form."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_server.errors import ModelLoadError
from mlx_server.models.model_files import first_names
from mlx_server.models.registry import mlx_lm_utils

INSTALL = "pip install 'mlx_server[embeddings]'"

Weights = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Family:
    """How a kind of encoder is put together.

    Attributes:
        roots: First parts of the names of the weights that make up its layers.
        prefixes: What checkpoints with a head put before these.
        norm: A norm of it, whose type is the one it computes in.
        takes_types: Whether it has embeddings for token types.
        behind_pad: Positions are counted from the padding's id on.
        dense, dense_norm, out: Names of its cross-encoder's head.
        tanh: The head's activation; else GELU.
    """

    roots: tuple[str, ...]
    prefixes: tuple[str, ...]
    norm: str
    takes_types: bool = False
    behind_pad: bool = False
    dense: str = ""
    dense_norm: str = ""
    out: str = ""
    tanh: bool = True


_DECODER_LIKE = Family(("embed_tokens", "layers", "norm"), ("model.",), "norm")

FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        ("embeddings", "encoder"), ("bert.",), "embeddings.LayerNorm",
        takes_types=True, dense="pooler.dense", out="classifier",
    ),
    "xlm_roberta": Family(
        ("embeddings", "encoder"), ("roberta.", "xlm_roberta."), "embeddings.LayerNorm",
        behind_pad=True, dense="classifier.dense", out="classifier.out_proj",
    ),
    "modernbert": Family(
        ("embeddings", "layers", "final_norm"), ("model.",), "embeddings.norm",
        dense="head.dense", dense_norm="head.norm", out="classifier", tanh=False,
    ),
    "gemma3_text": _DECODER_LIKE,
    "llama_bidirec": _DECODER_LIKE,
}  # fmt: skip
"""By the name of their module in mlx-embeddings."""


class Head(nn.Module):
    """A cross-encoder's: dense, activation, norm where there is one, projection to a score.

    Args:
        dense: [hidden] → [hidden].
        norm: Of its output; None: there is none.
        out: [hidden] → [labels].
        tanh: The activation; else GELU.
    """

    def __init__(self, dense: nn.Linear, norm: nn.LayerNorm | None, out: nn.Linear, tanh: bool):
        super().__init__()
        self.dense = dense
        self.norm = norm if norm is not None else nn.Identity()
        self.out = out
        self._tanh = tanh

    def __call__(self, x: mx.array) -> mx.array:
        """[B, hidden] → [B, labels]"""
        x = self.dense(x)
        return self.out(self.norm(mx.tanh(x) if self._tanh else nn.gelu(x)))


def architecture_module(name: str) -> ModuleType:
    """mlx-embeddings' module of that name.

    Raises:
        ModelLoadError: The package is not installed, or does not know it.
    """
    mlx_lm_utils()  # before mlx-embeddings imports it, which would cost open files
    try:
        return importlib.import_module(f"mlx_embeddings.models.{name}")
    except ImportError as error:
        if getattr(error, "name", "") == f"mlx_embeddings.models.{name}":
            raise ModelLoadError(
                f"this version of mlx-embeddings has no {name}; update it (pip install -U "
                "mlx-embeddings)."
            ) from error
        raise ModelLoadError(
            f"it is an embedding model, which needs the package mlx-embeddings ({error}): {INSTALL}"
        ) from error


def own_name(name: str, family: Family) -> str:
    """A weight's name without the prefix that checkpoints with a head have."""
    for prefix in family.prefixes:
        name = name.removeprefix(prefix)
    if name.endswith((".gamma", ".beta")):  # the first BERTs
        name = name.removesuffix(".gamma").removesuffix(".beta") + (
            ".weight" if name.endswith(".gamma") else ".bias"
        )
    return name


def renamed(weights: Weights, prefix: str, name: str) -> Weights:
    """The tensors of one layer, under another name."""
    start = f"{prefix}."
    return {f"{name}.{k.removeprefix(start)}": v for k, v in weights.items() if k.startswith(start)}


def fill(module: nn.Module, weights: Weights, config: Mapping[str, Any]) -> None:
    """Fill a module; what its config.json says to be quantised is.

    Raises:
        ModelLoadError: A tensor is missing or has another shape.
    """
    quantization = config.get("quantization")
    if isinstance(quantization, Mapping):
        nn.quantize(
            module,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=lambda path, _: f"{path}.scales" in weights,
        )
    wanted = dict(tree_flatten(module.parameters()))
    if missing := sorted(wanted.keys() - weights.keys()):
        raise ModelLoadError(
            f"the weights lack {len(missing)} tensors that config.json calls for "
            f"({first_names(missing)}); fetch them again, or use the matching config.json."
        )
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            raise ModelLoadError(
                f"the tensor {name} has shape {weights[name].shape} where config.json calls for "
                f"{value.shape}; use the config.json that belongs to the weights."
            )
    module.load_weights([(name, weights[name]) for name in wanted], strict=True)
    module.eval()


def part_of(module: nn.Module, name: str) -> nn.Module:
    """A part of a module by its dotted name, as in "encoder.layer"."""
    for step in name.split("."):
        module = getattr(module, step)
    return module
