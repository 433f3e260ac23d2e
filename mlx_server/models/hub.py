"""From a model's name to a folder on disk: local folders, the Hugging Face cache, downloads.

    name ──is a folder──────────────────────────────> that folder
         ──is a repo id──> cached and complete? ────> its snapshot
                           else download ───────────> its snapshot

No MLX here: these functions run on any thread. Whatever fails raises a
`ModelLoadError` of one line that names the mend.
"""

from __future__ import annotations

import errno
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlx_server.errors import ModelLoadError
from mlx_server.models.model_files import missing_code, read_json, weight_files

METADATA_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.tiktoken",
    "tokenizer.model",
    "tiktoken.model",
)
WEIGHT_PATTERNS = ("*.safetensors",)
CODE_PATTERNS = ("*.py",)

IGNORE_PATTERNS = (
    "*/*.json",
    "*/*.txt",
    "*/*.safetensors",
    "consolidated*.safetensors",
    "adapter*.safetensors",
)
"""Subfolders hold other formats of the same weights (onnx/, original/); Mistral's
consolidated file repeats the shards under other tensor names."""

LISTING_SECONDS = 5
"""How long a listing of the cache is good for: /v1/models may be polled."""

_REPO_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_REPO_PART}(?:/{_REPO_PART})?")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A servable repo in the local cache. `last_modified` in Unix seconds, `size` in bytes."""

    repo_id: str
    path: Path
    last_modified: float
    size: int


# ---------------------------------------------------------------- names


def is_repo_id(name: str) -> bool:
    """Whether `name` can be a Hugging Face repo id: `name` or `owner/name`."""
    return (
        _REPO_ID.fullmatch(name) is not None
        and ".." not in name
        and "--" not in name
        and not name.endswith(".git")
    )


def local_folder(name: str, start_dir: Path, marker: str = "config.json") -> Path | None:
    """The folder that a request's relative path names inside `start_dir`, if there is one.

    Symbolic links are followed before the check, so nothing outside `start_dir`
    is ever returned. The folder must hold `marker`.
    """
    try:
        root = start_dir.resolve()
        folder = (root / name).resolve()
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if inside and folder.is_relative_to(root) and (folder / marker).is_file():
            return folder
    except (OSError, ValueError):  # too long, a NUL, a loop of links
        pass
    return None


def find_cached(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
) -> Path | None:
    """The snapshot of repo `name` in the local cache, if it is there and complete.

    With `trust_remote_code`, the Python files that its configs name belong to it.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not is_repo_id(name):
        return None
    try:
        # The hub library knows which files a snapshot it fetched should have.
        # Only metadata is asked about: another program may have fetched its own
        # choice of weight files, and those we can check ourselves.
        patterns = METADATA_PATTERNS + (CODE_PATTERNS if trust_remote_code else ())
        folder = _fetch(name, revision, cache_dir, patterns, local_files_only=True)
        return folder if _is_complete(folder, trust_remote_code) else None
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def resolve(
    name: str,
    *,
    revision: str | None = None,
    allow_download: bool = True,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
) -> Path:
    """The folder of the model called `name`, downloaded first if need be.

    Args:
        name: A local folder or a Hugging Face repo id.
        revision: Branch, tag or commit of the repo.
        allow_download: Whether the network may be used.
        trust_remote_code: Also fetch the repo's Python files.
        cache_dir: Instead of the usual cache (HF_HUB_CACHE, HF_HOME).

    Raises:
        ModelLoadError: There is no such folder or repo, or it cannot be fetched.
    """
    if (folder := _existing_folder(name)) is not None:
        return folder
    if not is_repo_id(name):
        raise ModelLoadError(
            f"There is no folder {name!r}, and it is not a Hugging Face repo id (owner/name)."
        )
    cached = find_cached(
        name, revision=revision, trust_remote_code=trust_remote_code, cache_dir=cache_dir
    )
    if cached is not None:
        return cached
    if not allow_download:
        raise ModelLoadError(
            f"{name!r} is not in the local cache, or not complete; fetch it with "
            f"`hf download {name}`, or start the server with --allow-download."
        )
    return _download(name, revision, trust_remote_code, cache_dir)


def _existing_folder(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        if not name:
            return None
        if path.is_file():
            raise ModelLoadError(f"{name!r} is a file; give the folder of a model instead.")
        if not path.is_dir():
            return None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such user's home
        return None
    if (path / "config.json").is_file():
        return path.resolve()
    if (path / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{name!r} holds an adapter, not a model; give its base model as --model "
            f"and --lora {name} beside it."
        )
    raise ModelLoadError(
        f"The folder {name!r} holds no config.json; give the folder of an MLX or "
        "Hugging Face model."
    )


# ---------------------------------------------------------------- download


def _fetch(
    name: str,
    revision: str | None,
    cache_dir: Path | None,
    patterns: tuple[str, ...],
    local_files_only: bool = False,
) -> Path:
    """The repo's files that match, in the cache; raises what the hub library does."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(patterns),
            ignore_patterns=list(IGNORE_PATTERNS),
            local_files_only=local_files_only,
        )
    )


def _download(
    name: str, revision: str | None, trust_remote_code: bool, cache_dir: Path | None
) -> Path:
    from huggingface_hub import is_offline_mode

    patterns = METADATA_PATTERNS + WEIGHT_PATTERNS + (CODE_PATTERNS if trust_remote_code else ())
    try:
        folder = _fetch(name, revision, cache_dir, patterns)
    except Exception as error:
        # The hub library lets its HTTP client's exceptions through, so no
        # narrower class covers them all.
        raise ModelLoadError(_explain(error, name, revision, trust_remote_code)) from error
    if is_offline_mode() and not _is_complete(folder, trust_remote_code):
        raise ModelLoadError(_offline(name, trust_remote_code))
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"The repo {name!r} holds no config.json; choose one with safetensors weights in "
            "MLX or Hugging Face layout (GGUF-only repos cannot be served)."
        )
    weight_files(folder)  # without a network the hub library returns what there is
    return folder


def _explain(error: Exception, name: str, revision: str | None, trust_remote_code: bool) -> str:
    """One line for a download that failed, with the mend."""
    from huggingface_hub import errors, is_offline_mode

    if isinstance(error, errors.GatedRepoError):
        return (
            f"The repo {name!r} is gated: accept its licence at https://huggingface.co/{name} "
            "and set HF_TOKEN to a token of that account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The repo {name!r} has no revision {revision or 'main'!r}; check --revision."
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) == 401:
        return (
            f"There is neither a folder {name!r} nor such a repo on Hugging Face; check the "
            "spelling. Is it a private one? Then set HF_TOKEN."
        )
    if is_offline_mode():
        return _offline(name, trust_remote_code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space is left on the disk for {name!r}; free some or set HF_HUB_CACHE elsewhere."
        )
    if isinstance(error, errors.HfHubHTTPError) and _status(error) is not None:
        return f"Hugging Face answered {_status(error)} for {name!r}; try again later."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name!r} could not be stored: {error.strerror}; check the cache folder."
    return (
        f"{name!r} is neither a folder nor complete in the local cache, and huggingface.co "
        f"could not be reached ({type(error.__cause__ or error).__name__}); check the network "
        "and start again: what has arrived is kept."
    )


def _offline(name: str, trust_remote_code: bool) -> str:
    text = (
        f"{name!r} is neither a folder nor complete in the local cache, and HF_HUB_OFFLINE is "
        f"set; unset it, or fetch the repo first with `hf download {name}`"
    )
    if trust_remote_code:
        text += ", or start without --trust-remote-code, which calls for the repo's Python files"
    return text + "."


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


# ---------------------------------------------------------------- what lies in the cache


def cached_models(cache_dir: Path | None = None) -> list[CachedModel]:
    """The repos in the local cache that can be served, sorted by id; none without a cache.

    They are complete, and their architecture is one we or mlx-lm know.
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
            if folder is None or not is_repo_id(repo_id) or not _is_complete(folder):
                continue
            if not is_known(read_json(folder / "config.json")):
                continue
            sizes = [f.stat().st_size for f in folder.iterdir() if f.is_file()]
            models.append(CachedModel(repo_id, folder, folder.stat().st_mtime, sum(sizes)))
        except (OSError, ValueError, ModelLoadError):
            continue  # a broken entry, or one that another program is deleting
    return tuple(models)


def _snapshot(entry: Path) -> Path | None:
    """What `main` points to: requests name no revision."""
    ref = entry / "refs" / "main"
    if not ref.is_file():
        return None
    folder = entry / "snapshots" / ref.read_text().strip()
    return folder if folder.is_dir() else None


def _is_complete(folder: Path, trust_remote_code: bool = False) -> bool:
    if not (folder / "config.json").is_file():
        return False
    try:
        weight_files(folder)
    except ModelLoadError:
        return False
    return not (trust_remote_code and missing_code(folder))
