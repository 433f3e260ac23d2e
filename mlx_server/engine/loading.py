"""From a model folder to an engine. Runs on the engine thread, which owns the arrays."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_server.cache.storage import Quantization
from mlx_server.engine import device
from mlx_server.engine.engine import Engine
from mlx_server.engine.engines import Engines
from mlx_server.engine.limits import Limits
from mlx_server.errors import ModelLoadError
from mlx_server.models import loader
from mlx_server.models.base import ServedModel
from mlx_server.models.lora import AdapterBank
from mlx_server.models.model_config import context_length, hidden_size
from mlx_server.models.overrides import RopeOverrides
from mlx_server.progress import UNTOLD, Progress


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the other threads may know of a loaded model: no arrays.

    Attributes:
        context_length: Tokens that fit a request; `trained_length`: what it was made for.
        kv_tokens: The longest sequence that `kv_bytes` hold.
        sampling: Defaults of its generation_config.json.
        bits: Of a quantised weight, as most layers have it; None: they are not quantised.
    """

    vocab_size: int
    context_length: int
    trained_length: int
    hidden_size: int
    num_parameters: int
    nbytes: int
    kv_bytes: int
    kv_tokens: int
    eos_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    bits: int | None = None


def load_engine(
    engines: Engines,
    path: Path,
    *,
    name: str,
    limits: Limits,
    max_models: int,
    trust_remote_code: bool,
    rope: RopeOverrides | None = None,
    control: loader.Control | None = None,
    progress: Progress = UNTOLD,
) -> EngineInfo:
    """Load the model in `path` and put an engine for it into `engines`.

    Args:
        limits: Its memory budget, given or automatic, is shared by `max_models` models.
        rope: Rotary positions other than the model's own.
        control: Control vectors to add.
        progress: Is told how far it is.

    Raises:
        ModelLoadError: One line that names the mend.
    """
    loaded = loader.load(
        path,
        name=name,
        trust_remote_code=trust_remote_code,
        rope=rope,
        control=control,
        progress=progress,
    )
    bank = AdapterBank(loaded.model)
    try:
        model = _served(loaded, bank, limits.quantization)
    except ValueError as error:
        raise ModelLoadError(f"Cannot load {name}: {error}.") from error
    kv_bytes = limits.max_kv_bytes
    if kv_bytes is None:
        others = sum(engine.model.nbytes for engine in engines.values())
        kv_bytes = device.kv_budget(loaded.nbytes + others)
    kv_bytes //= max_models
    engine = Engine(model, replace(limits, max_kv_bytes=kv_bytes))
    if limits.longest(model.context_length) < 2:
        raise ModelLoadError(
            f"Cannot load {name}: a prompt and its reply have 2 tokens at least. Raise --ctx-size "
            "or --max-total-seq-length, or lower --parallel, which divides the context."
        )
    if engine.max_tokens < 2:
        raise ModelLoadError(
            f"Cannot load {name}: one sequence needs {model.cache.cost(2) / 2**20:.3g} MiB for "
            f"keys and values, more than the {kv_bytes / 2**20:.3g} MiB of --max-kv-bytes."
        )
    engines[name] = engine
    return EngineInfo(
        vocab_size=model.vocab_size,
        context_length=limits.context_of(model.context_length),
        trained_length=model.context_length,
        hidden_size=hidden_size(loaded.config),
        num_parameters=loaded.num_parameters,
        nbytes=loaded.nbytes,
        kv_bytes=int(model.cache.max_bytes),
        kv_tokens=engine.max_tokens,
        eos_token_ids=loaded.eos_token_ids,
        sampling=loaded.generation_config,
        bits=(loaded.config.get("quantization") or {}).get("bits"),
    )


def _served(
    loaded: loader.Loaded, bank: AdapterBank, quantization: Quantization | None
) -> ServedModel:
    context = context_length(loaded.config)
    if loaded.module_kind == "ours":
        from mlx_server.models.llama import LlamaModel, Model

        return LlamaModel(cast(Model, loaded.model), context, bank, quantization)
    from mlx_server.models.zoo import ZooModel

    return ZooModel(loaded.model, loaded.config, context, bank, quantization)


def unload(engines: Engines, name: str) -> None:
    """Drop an engine and give its memory back."""
    engines.drop(name)
    gc.collect()
    mx.clear_cache()
