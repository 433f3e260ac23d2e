"""The models in the local Hugging Face cache, for listings. No MLX."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import model_files, peek_architecture, split_files
from mlx_server.models.gguf_config import ARCHITECTURE
from mlx_server.models.model_files import read_json
from mlx_server.models.places import is_complete, is_repo_id, whole

LISTING_SECONDS = 5
"""How long a listing of the cache is good for: /v1/models may be polled."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A servable repo, or .gguf file of one, in the local cache.

    Attributes:
        repo_id: owner/name, or owner/name/file.gguf.
        path: The snapshot or the file.
        last_modified: Unix seconds.
        size: Bytes.
    """

    repo_id: str
    path: Path
    last_modified: float
    size: int


def cached_models(cache_dir: Path | None = None) -> list[CachedModel]:
    """The repos in the local cache that can be served, sorted by id; none without a cache.

    They are complete, and their architecture is one we or mlx-lm know. Of a repo without
    safetensors, its .gguf files are listed one by one.
    """
    if cache_dir is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache_dir = Path(HF_HUB_CACHE)
    return list(_scan(cache_dir.expanduser(), int(time.monotonic() // LISTING_SECONDS)))


@lru_cache(maxsize=2)
def _scan(cache_dir: Path, period: int) -> tuple[CachedModel, ...]:
    """`period` only ends the life of a remembered result."""
    from mlx_server.models.registry import is_known

    models = []
    try:
        entries = sorted(cache_dir.glob("models--*"))
    except OSError:
        return ()
    for entry in entries:
        repo_id = entry.name.removeprefix("models--").replace("--", "/")
        try:
            folder = _snapshot(entry)
            if folder is None or not is_repo_id(repo_id):
                continue
            if not is_complete(folder):
                models += _gguf_models(repo_id, folder)
            elif is_known(read_json(folder / "config.json")):
                files = [f for f in folder.iterdir() if f.is_file()]
                models.append(_listed(repo_id, folder, files))
        except (OSError, ValueError, ModelLoadError):
            continue  # a broken entry, or one that another program is deleting
    return tuple(models)


def _gguf_models(repo_id: str, folder: Path) -> list[CachedModel]:
    if any(folder.glob("*.safetensors")):
        return []
    models = []
    for name in model_files([str(f.relative_to(folder)) for f in folder.rglob("*.gguf")]):
        path = whole(folder / name)
        if path is not None and _architecture(path) == ARCHITECTURE:
            models.append(_listed(f"{repo_id}/{name}", path, split_files(path)))
    return models


def _architecture(path: Path) -> str | None:
    try:
        return peek_architecture(path)
    except ModelLoadError:
        return None


def _listed(name: str, path: Path, files: list[Path]) -> CachedModel:
    size = sum(file.stat().st_size for file in files)
    return CachedModel(name, path, path.stat().st_mtime, size)


def _snapshot(entry: Path) -> Path | None:
    """What `main` points to: requests name no revision."""
    ref = entry / "refs" / "main"
    if not ref.is_file():
        return None
    folder = entry / "snapshots" / ref.read_text().strip()
    return folder if folder.is_dir() else None
