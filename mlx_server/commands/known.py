"""Which architectures this server can run, without importing what runs them.

`models/registry.py` asks mlx-lm itself; importing that brings MLX and takes seconds, so its
tables are read here from its source. A test holds the two together.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlx_server.models.registry import OURS, is_encoder


def is_servable(config: Mapping[str, Any]) -> bool:
    """Whether the model of a config.json can be run, to generate or to embed."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return False
    if is_encoder(config):
        return importlib.util.find_spec("mlx_embeddings") is not None
    return model_type in OURS or _has_model(_module(model_type, config))


def _module(model_type: str, config: Mapping[str, Any]) -> str:
    """The name of mlx-lm's module for a model_type."""
    tables = _tables()
    architectures = config.get("architectures") or ()
    for architecture in [architectures] if isinstance(architectures, str) else architectures:
        found = tables["MODEL_ARCHITECTURE_REMAPPING"].get((model_type, architecture))
        if found is not None:
            return found
    return tables["MODEL_REMAPPING"].get(model_type, model_type)


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, Mapping[Any, str]]:
    """The dictionaries in mlx_lm/utils.py; empty where there is none of a name."""
    tables: dict[str, Mapping[Any, str]] = {}
    for statement in ast.parse(_source("utils.py")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name in ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING"):
                tables[name] = ast.literal_eval(statement.value)
    return {"MODEL_REMAPPING": {}, "MODEL_ARCHITECTURE_REMAPPING": {}, **tables}


@lru_cache(maxsize=256)
def _has_model(name: str) -> bool:
    """As `registry._is_architecture`: helpers lie beside the models and define none."""
    if re.fullmatch(r"[\w-]+", name) is None:
        return False
    source = _source(f"models/{name}.py")
    return re.search(r"^(class|from \S+ import\b.*) Model\b", source, re.MULTILINE) is not None


def _source(file: str) -> str:
    """A file of the package mlx_lm; empty where there is none."""
    spec = importlib.util.find_spec("mlx_lm")  # does not import it
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / file
        if path.is_file():
            return path.read_text("utf-8")
    return ""
