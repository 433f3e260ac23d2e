"""Which module serves a model_type: ours first, else mlx_lm.models.

A new architecture is its file in `models/` and a line in `OURS`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import resource
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

from mlx_server.errors import ModelLoadError

ModuleKind = Literal["ours", "zoo"]

OURS: Mapping[str, str] = {
    "llama": "mlx_server.models.llama",
    "mistral": "mlx_server.models.llama",
    # Plain Llamas under another name.
    "iquestcoder": "mlx_server.models.llama",
    "xverse": "mlx_server.models.llama",
}
"""model_type → module with `Model` and `ModelArgs`."""

ENCODERS: Mapping[str, str] = {
    "bert": "bert",
    # RoBERTa is XLM-R with another vocabulary.
    "camembert": "xlm_roberta",
    "roberta": "xlm_roberta",
    "xlm-roberta": "xlm_roberta",
    "modernbert": "modernbert",
    "gemma3_text": "gemma3_text",
    "llama_bidirec": "llama_bidirec",
}
"""model_type of an encoder → its module in the optional package mlx-embeddings."""


def mlx_lm_utils() -> ModuleType:
    """`mlx_lm.utils`, imported without losing open files.

    Importing it sets the process's limit of open files to 2,048 (4,096 at
    most), fewer than a server may have been given for its connections; the
    higher of the two is kept. Only a privileged process may raise the hard
    limit again; elsewhere the soft limit goes as far as that allows.

    Raises:
        ModelLoadError: The hard limit is lower than the one mlx_lm sets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        module = importlib.import_module("mlx_lm.utils")
    except ValueError as error:
        if "limit" not in str(error):
            raise
        raise ModelLoadError(
            f"mlx-lm needs a hard limit of 4096 open files, this process has {hard}; "
            "raise it with `ulimit -Hn 4096`."
        ) from error
    new_soft, new_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limits = _higher(soft, new_soft), _higher(hard, new_hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    except (ValueError, OSError):
        if _higher(soft, new_hard) == soft:
            soft = new_hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (_higher(soft, new_soft), new_hard))
    return module


def _higher(a: int, b: int) -> int:
    return resource.RLIM_INFINITY if resource.RLIM_INFINITY in (a, b) else max(a, b)


def check_known(config: Mapping[str, Any]) -> None:
    """See that somebody serves the model_type of a config.json. Imports no architecture.

    Raises:
        ModelLoadError: The model_type is missing or nobody knows it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelLoadError("config.json names no model_type; is this a language model's folder?")
    if model_type not in OURS and not _is_architecture(_remapped(model_type, config)):
        raise _unknown(model_type)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model that embeds or ranks and generates nothing
    (`encoder.py` loads it)."""
    model_type = config.get("model_type")
    if model_type == "gemma3_text":  # EmbeddingGemma; the others generate
        return config.get("use_bidirectional_attention") is True
    return isinstance(model_type, str) and model_type in ENCODERS


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether somebody serves the model_type of a config.json."""
    try:
        check_known(config)
    except ModelLoadError:
        return False
    return True


def resolve_classes(config: Mapping[str, Any]) -> tuple[type, type, ModuleKind]:
    """The module class, its arguments' class and whose they are, for a config.json.

    Raises:
        ModelLoadError: The model_type is missing or nobody knows it, or its module
            cannot be imported.
    """
    check_known(config)
    if (module := OURS.get(config["model_type"])) is not None:
        arch = importlib.import_module(module)
        return arch.Model, arch.ModelArgs, "ours"
    try:
        model_class, args_class = mlx_lm_utils()._get_classes(dict(config))
    except (ValueError, AttributeError) as error:
        raise _unknown(config["model_type"]) from error
    except SystemExit as error:  # so mlx_lm's OLMo ends where its package is not installed
        raise ModelLoadError(
            f"mlx-lm's module for model_type {config['model_type']!r} needs a package that is "
            "not installed; see what it prints when it is imported."
        ) from error
    return model_class, args_class, "zoo"


def _remapped(model_type: str, config: Mapping[str, Any]) -> str:
    """The name of mlx_lm's module for a model_type, as `mlx_lm.utils._get_classes` finds it."""
    utils = mlx_lm_utils()
    architectures = config.get("architectures") or ()
    if isinstance(architectures, str):
        architectures = (architectures,)
    by_architecture = getattr(utils, "MODEL_ARCHITECTURE_REMAPPING", {})
    for architecture in architectures:
        if (name := by_architecture.get((model_type, architecture))) is not None:
            return name
    return utils.MODEL_REMAPPING.get(model_type, model_type)


@lru_cache(maxsize=256)
def _is_architecture(name: str) -> bool:
    """Whether mlx_lm.models has a model of that name.

    A model_type is a file name there: helpers such as `cache` lie beside the
    models but define none, and dots would lead elsewhere. The source is read
    and not run: a listing asks about many.
    """
    if re.fullmatch(r"[\w-]+", name) is None:
        return False
    spec = importlib.util.find_spec(f"mlx_lm.models.{name}")
    if spec is None or spec.loader is None:
        return False
    loader: Any = spec.loader
    source = loader.get_source(spec.name)
    return (
        re.search(r"^(class|from \S+ import\b.*) Model\b", source or "", re.MULTILINE) is not None
    )


def _unknown(model_type: str) -> ModelLoadError:
    version = importlib.import_module("mlx_lm").__version__
    return ModelLoadError(
        f"model_type {model_type!r} is unknown to mlx_server and to mlx-lm {version}; "
        "a newer mlx-lm may know it (pip install -U mlx-lm)."
    )
