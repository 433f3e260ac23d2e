"""Adapters in mlx-lm's format or llama.cpp's: read, checked, and held as low-rank factors.

    adapter_config.json     fine_tune_type, lora_parameters {rank, scale, …}
    adapters.safetensors    <module path>.lora_a, .lora_b and, for DoRA, .m

A .gguf adapter (`gguf_adapter.py`) is brought into the same form.

For a linear layer of weight W [O, D] the factors are A [D, R] and B [R, O]; for
a mixture-of-experts layer [E, O, D] they are A [E, R, D] and B [E, O, R]; for an
embedding W [V, D] they are A [V, R] and B [R, D], which is a linear layer's pair
turned round: W as an output head has the factors Bᵀ and Aᵀ.

LoRA (arXiv:2106.09685)    y = x Wᵀ + s (x A) B
DoRA (arXiv:2402.09353)    y = m / ‖W + s (A B)ᵀ‖ ⊙ (x Wᵀ + s (x A) B)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_server.errors import ModelLoadError
from mlx_server.models.model_files import check_safetensors, first_names, read_json

NORM_ROWS = 8192
"""Rows of a weight that are dequantised at a time: an output head has 100,000 and more."""


@dataclass(frozen=True, slots=True)
class Magnitude:
    """DoRA's magnitude of one layer, ready for any scale.

    ‖W + s (A B)ᵀ‖² = ‖W‖² + 2 s ⟨W, (A B)ᵀ⟩ + s² ‖A B‖², row by row: three
    vectors [O] take the place of the weight, whose dequantised form is not kept.

    Attributes:
        m: The trained magnitudes.
        weight, cross, product: The three terms, without s.
    """

    m: mx.array
    weight: mx.array
    cross: mx.array
    product: mx.array

    def gain(self, scale: float) -> mx.array:
        """m / ‖W + scale (A B)ᵀ‖, float32 [O]."""
        return self.m * mx.rsqrt(
            self.weight + (2 * scale) * self.cross + (scale * scale) * self.product
        )

    @classmethod
    def of(cls, linear: nn.Module, a: mx.array, b: mx.array, m: mx.array) -> Magnitude:
        """Of a layer W [O, D], plain or quantised, with the factors A [D, R] and B [R, O] and the
        trained magnitudes [O]. Evaluated before it returns, so that no graph holds on to the
        weight."""
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        parts = []
        for start in range(0, linear.weight.shape[0], NORM_ROWS):
            rows = slice(start, start + NORM_ROWS)
            w = _dequantised(linear, rows).astype(mx.float32)
            part = mx.stack([(w * w).sum(axis=1), ((w @ a) * b.T[rows]).sum(axis=1)])
            mx.eval(part)
            parts.append(part)
        weight, cross = mx.concatenate(parts, axis=1)
        product = (b * (a.T @ a @ b)).sum(axis=0)
        magnitude = cls(m.astype(mx.float32), weight, cross, product)
        mx.eval(magnitude.m, weight, cross, product)
        return magnitude


def _dequantised(linear: nn.Module, rows: slice) -> mx.array:
    if "scales" not in linear:
        return linear.weight[rows]
    biases = linear.get("biases")
    return mx.dequantize(
        linear.weight[rows],
        linear.scales[rows],
        None if biases is None else biases[rows],
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter's share of one layer. `scale` is the adapter's own; a row's multiplies it.

    An embedding's are those of the output head with its weight, A [D, R] and B [R, V].
    """

    a: mx.array
    b: mx.array
    scale: float
    magnitude: Magnitude | None = None


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as it lies on disk.

    Attributes:
        rank: As the config says, or None.
        tensors: Module path → leaf ("lora_a", "lora_b", "m") → array, lazy.
    """

    path: Path
    dora: bool
    scale: float
    rank: int | None
    tensors: Mapping[str, Mapping[str, mx.array]]


def read_adapter(path: Path) -> AdapterFile:
    """Read the adapter in the folder `path`.

    Raises:
        ModelLoadError: It is not a LoRA or DoRA adapter in mlx-lm's format.
    """
    if not path.is_dir():
        raise ModelLoadError(f"there is no adapter folder or .gguf file {path}.")
    config_file, weights_file = path / "adapter_config.json", path / "adapters.safetensors"
    if not config_file.is_file():
        raise ModelLoadError(f"{path} holds no adapter_config.json; give an mlx-lm adapter folder.")
    config = read_json(config_file)
    if "peft_type" in config:
        raise ModelLoadError(f"{path} is a PEFT adapter; convert it to mlx-lm's format first.")
    if not weights_file.is_file():
        raise ModelLoadError(f"{path} holds no adapters.safetensors; is the training finished?")
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelLoadError(
            f"{path} has fine_tune_type {kind!r}; only lora and dora can be applied beside a base "
            "model (fuse the others into it with `mlx_lm.fuse`)."
        )
    check_safetensors(weights_file)
    scale, rank = _parameters(config, config_file)
    arrays: Any = mx.load(str(weights_file))
    tensors = _by_module(arrays, dora=kind == "dora", path=weights_file)
    return AdapterFile(path, kind == "dora", scale, rank, tensors)


def _parameters(config: Mapping[str, Any], path: Path) -> tuple[float, int | None]:
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, Mapping):
        raise ModelLoadError(f"{path} has no lora_parameters.")
    scale, rank = parameters.get("scale"), parameters.get("rank")
    if type(scale) not in (int, float):
        hint = "; it has alpha, and scale is alpha / rank" if "alpha" in parameters else ""
        raise ModelLoadError(f"{path} has no number for lora_parameters.scale{hint}.")
    return float(scale), rank if type(rank) is int else None


def _by_module(
    tensors: Mapping[str, mx.array], *, dora: bool, path: Path
) -> dict[str, dict[str, mx.array]]:
    leaves = {"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}
    modules: dict[str, dict[str, mx.array]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in leaves:
            raise ModelLoadError(
                f"{path} holds {name}, which is no tensor of a {'DoRA' if dora else 'LoRA'} "
                "adapter; check fine_tune_type in adapter_config.json."
            )
        modules.setdefault(module, {})[leaf] = tensor
    if not modules:
        raise ModelLoadError(f"{path} holds no tensors.")
    lacking = [f"{m}.{leaf}" for m, t in modules.items() for leaf in sorted(leaves - t.keys())]
    if lacking:
        raise ModelLoadError(f"{path} lacks {first_names(lacking)}.")
    return modules


def check_shapes(
    module: str,
    tensors: Mapping[str, mx.array],
    base: tuple[int, ...],
    rank: int | None,
    *,
    embedding: bool = False,
) -> None:
    """See that an adapter's tensors fit the layer they are for.

    Args:
        base: Shape of the layer's unpacked weight, (O, D) or (E, O, D); (V, D) of an embedding.

    Raises:
        ModelLoadError: One does not; the message names it and both shapes.
    """
    *experts, rows, columns = base
    inputs, outputs = (rows, columns) if embedding else (columns, rows)
    a = tensors["lora_a"]
    r = rank if rank is not None else a.shape[-2 if experts else -1]
    expected = {
        "lora_a": (*experts, r, inputs) if experts else (inputs, r),
        "lora_b": (*experts, outputs, r) if experts else (r, outputs),
        "m": (rows,),
    }
    for leaf, tensor in tensors.items():
        if tensor.shape != expected[leaf]:
            raise ModelLoadError(
                f"{module}.{leaf} has shape {tensor.shape} where the model calls for "
                f"{expected[leaf]}; the adapter belongs to another model."
            )
