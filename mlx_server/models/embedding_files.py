"""What a folder made for sentence-transformers says beside the model: how the tokens' states
become a vector, and the layers behind that.

Files: https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_server.errors import ModelLoadError
from mlx_server.models.model_files import read_json
from mlx_server.services import Pooling

log = logging.getLogger(__name__)

POOLING_KEYS: tuple[tuple[str, Pooling], ...] = (
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_lasttoken", "last"),
    ("pooling_mode_mean_tokens", "mean"),
)

ACTIVATIONS = ("Identity", "Tanh")


@dataclass(frozen=True, slots=True)
class DenseFiles:
    """A linear layer behind the pooling.

    Args:
        folder: With `config.json` and `model.safetensors`.
        tanh: Whether a tanh follows; else nothing does.
    """

    folder: Path
    tanh: bool


def own_pooling(path: Path) -> Pooling | None:
    """How the model in `path` is made to be pooled; None where its folder does not say.

    Raises:
        ModelLoadError: It is pooled in a way that is not known here.
    """
    folder = next(iter(_modules(path, "Pooling")), path / "1_Pooling")
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    mode = config.get("pooling_mode")  # newer files name it
    wanted = [name for key, name in POOLING_KEYS if config.get(key) is True]
    wanted = wanted or [name for _, name in POOLING_KEYS if mode in (name, f"{name}token")]
    others = [
        key
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True and key not in dict(POOLING_KEYS)
    ]
    if len(wanted) != 1 or others:
        raise ModelLoadError(
            f"{folder / 'config.json'} asks for a pooling that is not known here "
            f"({', '.join([*wanted, *others]) or mode or 'none'}); known are cls, last and mean."
        )
    return wanted[0]


def dense_files(path: Path) -> tuple[DenseFiles, ...]:
    """The linear layers behind the pooling, in their order.

    Raises:
        ModelLoadError: One has an activation that is not known here.
    """
    found = []
    for folder in _modules(path, "Dense"):
        name = str(read_json(folder / "config.json").get("activation_function") or "Identity")
        name = name.rpartition(".")[2]
        if name not in ACTIVATIONS:
            raise ModelLoadError(
                f"{folder / 'config.json'} has the activation {name}; known are "
                f"{' and '.join(ACTIVATIONS)}."
            )
        found.append(DenseFiles(folder, name == "Tanh"))
    return tuple(found)


def _modules(path: Path, kind: str) -> list[Path]:
    """The folders of sentence-transformers' modules of one kind, in the order they run."""
    file = path / "modules.json"
    if not file.is_file():
        return []
    try:
        entries: Any = json.loads(file.read_text(encoding="utf-8"))
        return [
            path / str(entry["path"])
            for entry in entries
            if str(entry["type"]).rpartition(".")[2] == kind
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{file} is damaged ({error}); fetch it again.") from None
