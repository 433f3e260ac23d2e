"""Which module serves a model_type: ours first, else mlx_lm.models.

A new architecture is its file in `models/` and a line in `OURS`.
"""

from __future__ import annotations

import importlib
import re
import resource
from collections.abc import Mapping
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


def resolve_classes(config: Mapping[str, Any]) -> tuple[type, type, ModuleKind]:
    """The module class, its arguments' class and whose they are, for a config.json.

    Raises:
        ModelLoadError: The model_type is missing or nobody knows it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelLoadError("config.json names no model_type; is this a language model's folder?")
    if (module := OURS.get(model_type)) is not None:
        arch = importlib.import_module(module)
        return arch.Model, arch.ModelArgs, "ours"

    utils = mlx_lm_utils()
    try:
        # A model_type is a file name there: helpers such as `cache` import as
        # well but define no model, and dots would lead elsewhere.
        if re.fullmatch(r"[\w-]+", model_type) is None:
            raise ValueError(model_type)
        model_class, args_class = utils._get_classes(dict(config))
    except (ValueError, AttributeError) as error:
        version = importlib.import_module("mlx_lm").__version__
        raise ModelLoadError(
            f"model_type {model_type!r} is unknown to mlx_server and to mlx-lm {version}; "
            "a newer mlx-lm may know it (pip install -U mlx-lm)."
        ) from error
    return model_class, args_class, "zoo"
