"""What lies in the Hugging Face cache, and which of it this server can run. No MLX.

hub/models--owner--name/  refs/main          → a commit
                          snapshots/COMMIT/  links into …
                          blobs/             … these; *.incomplete while they are fetched
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_server import demo
from mlx_server.commands.known import is_servable
from mlx_server.commands.weights import Facts, folder_facts, gguf_facts
from mlx_server.errors import ModelLoadError
from mlx_server.gguf import model_files, split_files
from mlx_server.models.model_files import read_json, weight_files
from mlx_server.models.places import is_repo_id
from mlx_server.models.registry import is_encoder

Kind = Literal["model", "embeddings", "adapter", "demo"]
FINE_TUNE_TYPES = ("lora", "dora")
"""The kinds of mlx-lm's adapters that are applied beside a base model."""


@dataclass(frozen=True, slots=True)
class Row:
    """A model or an adapter.

    Args:
        id: As --model or --lora takes it: owner/name, or owner/name/file.gguf.
        size: Bytes on disk, with what has come of unfinished files.
        last_used: Unix seconds; None for the bundled demo.
        revision: The one that is there, where it is not main and --revision has to name it.
        base_model: Of an adapter, where it says so.
        complete: False where files are missing: a download that was broken off.
    """

    id: str
    kind: Kind
    path: Path
    size: int
    facts: Facts | None = None
    last_used: float | None = None
    revision: str | None = None
    base_model: str | None = None
    complete: bool = True


@dataclass(slots=True)
class Listing:
    """
    Args:
        rows: The last used first.
        left_out: Why → how many repos were left out.
    """

    cache: Path
    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def bundled() -> Row:
    """The demo model."""
    folder = demo.path()
    facts = folder_facts(folder, read_json(folder / "config.json"))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Row("demo", "demo", folder, size, facts)


def scan(cache: Path | None = None) -> Listing:
    """Look through the cache.

    Args:
        cache: Instead of the usual one (HF_HUB_CACHE, HF_HOME).
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = (Path(HF_HUB_CACHE) if cache is None else cache).expanduser()
    listing = Listing(cache)
    try:
        found = scan_cache_dir(cache)
    except (CacheNotFound, ValueError, OSError):  # none, or a file
        return listing
    sound = {repo.repo_path: repo for repo in found.repos}
    for entry in sorted(cache.iterdir()):
        repo = sound.get(entry)
        kind = entry.name.partition("--")[0]
        if kind in ("datasets", "spaces"):
            listing.left_out[kind] += 1
        elif kind == "models" and entry.is_dir():
            # The library skips a repo with a broken link, which is what an unfinished
            # download may leave.
            size = repo.size_on_disk if repo is not None else _blobs_size(entry)
            size += _blobs_size(entry, "*.incomplete")
            used = max(repo.last_accessed, repo.last_modified) if repo else _touched(entry)
            rows = _repo_rows(entry, size, used)
            listing.rows += [row for row in rows if isinstance(row, Row)]
            listing.left_out.update(row for row in rows if isinstance(row, str))
    listing.rows.sort(key=lambda row: (-(row.last_used or 0), row.id))
    return listing


def _blobs_size(entry: Path, pattern: str = "*") -> int:
    return sum(_size(file) for file in (entry / "blobs").glob(pattern))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _touched(entry: Path) -> float:
    return max(_mtime(path) for path in (entry, *(entry / "blobs").glob("*")))


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


# ---------------------------------------------------------------- one repo


def _repo_rows(entry: Path, size: int, used: float) -> list[Row | str]:
    """Its rows, or the one reason why it has none."""
    repo_id = entry.name.removeprefix("models--").replace("--", "/")
    if not is_repo_id(repo_id):
        return ["broken entries"]
    unfinished = any((entry / "blobs").glob("*.incomplete"))
    common: dict[str, Any] = {"size": size, "last_used": used}
    try:
        folder, revision = _snapshot(entry)
        if folder is None:
            unknown = Row(repo_id, "model", entry, complete=False, **common)
            return [unknown if unfinished else "without any file"]
        common["revision"] = revision
        if (folder / "adapter_config.json").is_file():
            return [_adapter(repo_id, folder, unfinished, common)]
        if (folder / "config.json").is_file():
            row = _folder_row(repo_id, folder, unfinished, common)
            if isinstance(row, Row):
                return [row]
            return list(_gguf_rows(repo_id, folder, used, revision)) or [row]
        unknown = Row(repo_id, "model", folder, complete=False, **common)
        files = list(_gguf_rows(repo_id, folder, used, revision))
        return files or [unknown if unfinished else "without config.json"]
    except (OSError, ValueError, ModelLoadError):
        return ["broken entries"]


def _snapshot(entry: Path) -> tuple[Path | None, str | None]:
    """The files of `main`, or else of the newest revision, and that one's name."""
    names = {}
    for ref in (entry / "refs").rglob("*"):
        if ref.is_file():
            names[ref.read_text("utf-8").strip()] = ref.relative_to(entry / "refs").as_posix()
    main = [commit for commit, name in names.items() if name == "main"]
    snapshots = entry / "snapshots"
    if main and (snapshots / main[0]).is_dir():
        return snapshots / main[0], None
    folders = [f for f in snapshots.glob("*") if f.is_dir()]
    if not folders:
        return None, None
    newest = max(folders, key=lambda folder: folder.stat().st_mtime)
    return newest, names.get(newest.name, newest.name)


def _folder_row(repo_id: str, folder: Path, unfinished: bool, common: dict[str, Any]) -> Row | str:
    """A repo with a config.json, or why it is none that can be run."""
    config = read_json(folder / "config.json")
    if not is_servable(config):
        return "of an unknown architecture"
    complete = True
    try:
        weight_files(folder)
    except ModelLoadError:
        # Some shards are there, or one is on its way; else it has no weights that are read.
        complete = False
        if not unfinished and not any(folder.glob("*.safetensors*")):
            return "without weights"
    kind: Kind = "embeddings" if is_encoder(config) else "model"
    facts = folder_facts(folder, config)
    return Row(repo_id, kind, folder, facts=facts, complete=complete, **common)


def _adapter(repo_id: str, folder: Path, unfinished: bool, common: dict[str, Any]) -> Row | str:
    config = read_json(folder / "adapter_config.json")
    if "peft_type" in config or config.get("fine_tune_type", "lora") not in FINE_TUNE_TYPES:
        return "adapters in another format than mlx-lm's LoRA and DoRA"
    base = config.get("model")
    complete = (folder / "adapters.safetensors").is_file()
    if not complete and not unfinished:
        return "without weights"
    return Row(
        repo_id, "adapter", folder,
        base_model=base if isinstance(base, str) else None,
        complete=complete,
        **common,
    )  # fmt: skip


def _gguf_rows(
    repo_id: str, folder: Path, used: float, revision: str | None
) -> Iterator[Row | str]:
    """Its .gguf files one by one, for a request names one of them."""
    if any(folder.glob("*.safetensors")):
        return
    for name in model_files([str(f.relative_to(folder)) for f in folder.rglob("*.gguf")]):
        path = folder / name
        try:
            parts = split_files(path)
        except ModelLoadError:
            yield Row(f"{repo_id}/{name}", "model", path, path.stat().st_size, None, used,
                      revision, complete=False)  # fmt: skip
            continue
        try:
            facts = gguf_facts(path)
        except ModelLoadError:
            yield "a .gguf of another architecture or type"
            continue
        size = sum(part.stat().st_size for part in parts)
        yield Row(f"{repo_id}/{name}", "model", path, size, facts, used, revision)
