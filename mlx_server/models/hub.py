"""From a model's name to its place on disk: local folders, the Hugging Face cache, downloads.

    name ──is a folder──────────────────────────────> that folder
         ──is a repo id──> cached and complete? ────> its snapshot
                           else download ───────────> its snapshot

A .gguf file is a place like a folder: by its path, as the only one in a folder, or as a
file of a repo, owner/name/file.gguf.

No MLX here: these functions run on any thread. Whatever fails raises a
`ModelLoadError` of one line that names the mend.
"""

from __future__ import annotations

import errno
import logging
from functools import partial
from pathlib import Path
from typing import Any

from mlx_server.amounts import size
from mlx_server.errors import ModelLoadError
from mlx_server.gguf import split_files, split_patterns
from mlx_server.models.cached import CachedModel, cached_models
from mlx_server.models.hub_bytes import counting, missing_bytes
from mlx_server.models.model_files import weight_files
from mlx_server.models.places import (
    existing,
    is_complete,
    is_repo_id,
    local_folder,
    only_gguf,
    repo_file,
    whole,
)
from mlx_server.progress import UNTOLD, Progress

__all__ = ["CachedModel", "cached_models", "find_cached", "is_repo_id", "local_folder", "resolve"]

log = logging.getLogger(__name__)

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


def find_cached(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
) -> Path | None:
    """The snapshot of repo `name` in the local cache, if it is there and complete, or its
    .gguf file (`name` is owner/name/file.gguf, or the snapshot holds one and nothing else).

    With `trust_remote_code`, the Python files that its configs name belong to it.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, file = repo_file(name)
    if not is_repo_id(name):
        return None
    try:
        if file is not None:
            folder = _fetch(name, revision, cache_dir, (file,), local_files_only=True)
            return whole(folder / file)
        # The hub library knows which files a snapshot it fetched should have.
        # Only metadata is asked about: another program may have fetched its own
        # choice of weight files, and those we can check ourselves.
        patterns = METADATA_PATTERNS + (CODE_PATTERNS if trust_remote_code else ())
        folder = _fetch(name, revision, cache_dir, patterns, local_files_only=True)
        if is_complete(folder, trust_remote_code):
            return folder
        only = only_gguf(folder)
        return None if only is None else whole(only)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def resolve(
    name: str,
    *,
    revision: str | None = None,
    allow_download: bool = True,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
    file: str | None = None,
    token: str | None = None,
    local: bool = True,
    progress: Progress = UNTOLD,
) -> Path:
    """The folder or .gguf file of the model called `name`, downloaded first if need be.

    Args:
        name: A local folder or .gguf file, a Hugging Face repo id, or a repo id and a file
            of it, owner/name/file.gguf.
        revision: Branch, tag or commit of the repo.
        allow_download: Whether the network may be used.
        trust_remote_code: Also fetch the repo's Python files.
        cache_dir: Instead of the usual cache (HF_HUB_CACHE, HF_HOME).
        file: A .gguf file of the folder or repo.
        token: Hugging Face access token, instead of the one that is logged in.
        local: `name` may be any folder or file of this machine.
        progress: Is told how far a download is.

    Raises:
        ModelLoadError: There is no such folder or repo, or it cannot be fetched.
    """
    if local and (folder := existing(name, file)) is not None:
        return folder
    if local and file is None and name.count("/") != 2 and name.lower().endswith(".gguf"):
        raise ModelLoadError(f"There is no file {name!r}.")
    if file is not None:
        if not file.lower().endswith(".gguf"):
            raise ModelLoadError(f"--hf-file {file}: give the name of a .gguf file in the repo.")
        name = f"{name}/{file}"
    repo, file = repo_file(name)
    if file is not None:
        return _resolve_file(repo, file, revision, allow_download, cache_dir, token, progress)
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
    return _download(name, revision, trust_remote_code, cache_dir, token, progress)


def _resolve_file(
    repo: str,
    file: str,
    revision: str | None,
    allow_download: bool,
    cache_dir: Path | None,
    token: str | None,
    progress: Progress,
) -> Path:
    name = f"{repo}/{file}"
    if not is_repo_id(repo):
        raise ModelLoadError(f"There is no file {name!r}, and {repo!r} is no Hugging Face repo id.")
    cached = find_cached(name, revision=revision, cache_dir=cache_dir)
    if cached is not None:
        return cached
    if not allow_download:
        raise ModelLoadError(
            f"{name!r} is not in the local cache, or not complete; fetch it with "
            f"`hf download {repo} {file}`, or start the server with --allow-download."
        )
    try:
        folder = _fetch_told(repo, revision, cache_dir, (split_patterns(file),), token, progress)
    except Exception as error:
        raise ModelLoadError(_explain(error, repo, revision, False)) from error
    if not (folder / file).is_file():
        raise ModelLoadError(f"The repo {repo!r} has no file {file!r}; check --hf-file.")
    split_files(folder / file)
    return folder / file


# ---------------------------------------------------------------- download


def _fetch(
    name: str,
    revision: str | None,
    cache_dir: Path | None,
    patterns: tuple[str, ...],
    **options: Any,
) -> Path:
    """The repo's files that match, in the cache; raises what the hub library does."""
    return Path(_snapshot(name, revision, cache_dir, patterns, **options))


def _snapshot(
    name: str,
    revision: str | None,
    cache_dir: Path | None,
    patterns: tuple[str, ...],
    **options: Any,
) -> Any:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        name,
        revision=revision,
        cache_dir=cache_dir,
        allow_patterns=list(patterns),
        ignore_patterns=list(IGNORE_PATTERNS),
        **options,
    )


def _fetch_told(
    name: str,
    revision: str | None,
    cache_dir: Path | None,
    patterns: tuple[str, ...],
    token: str | None,
    progress: Progress,
) -> Path:
    """As `_fetch`, from the network, and tell how far it is."""
    snapshot = partial(_snapshot, name, revision, cache_dir, patterns, token=token)
    if progress is UNTOLD:
        return Path(snapshot())
    total = missing_bytes(snapshot)
    log.info("downloading %s%s", name, "" if total is None else f", {size(total)}")
    with progress.begin(f"downloading {name}", total) as task:
        return Path(snapshot(tqdm_class=counting(task)))


def _download(
    name: str,
    revision: str | None,
    trust_remote_code: bool,
    cache_dir: Path | None,
    token: str | None,
    progress: Progress,
) -> Path:
    from huggingface_hub import is_offline_mode

    patterns = METADATA_PATTERNS + WEIGHT_PATTERNS + (CODE_PATTERNS if trust_remote_code else ())
    try:
        folder = _fetch_told(name, revision, cache_dir, patterns, token, progress)
    except Exception as error:
        # The hub library lets its HTTP client's exceptions through, so no
        # narrower class covers them all.
        raise ModelLoadError(_explain(error, name, revision, trust_remote_code)) from error
    if is_offline_mode() and not is_complete(folder, trust_remote_code):
        raise ModelLoadError(_offline(name, trust_remote_code))
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"The repo {name!r} holds no config.json; choose one with safetensors weights in "
            "MLX or Hugging Face layout, or name one of its .gguf files with --hf-file."
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
