"""What a model's name can be, and the folders and .gguf files that are there already. No MLX."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import is_gguf, model_files, split_files
from mlx_server.models.model_files import first_names, missing_code, weight_files

_REPO_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_REPO_PART}(?:/{_REPO_PART})?")


def is_repo_id(name: str) -> bool:
    """Whether `name` can be a Hugging Face repo id: `name` or `owner/name`."""
    return (
        _REPO_ID.fullmatch(name) is not None
        and ".." not in name
        and "--" not in name
        and not name.endswith(".git")
    )


def repo_file(name: str) -> tuple[str, str | None]:
    """owner/name/file.gguf as the repo and its file; any other name as itself and None."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    inside = ".." not in Path(file).parts and not file.startswith("/")
    if file.lower().endswith(".gguf") and inside:
        return f"{owner}/{repo}", file
    return name, None


def local_folder(name: str, start_dir: Path, marker: str = "config.json") -> Path | None:
    """The folder or .gguf file that a request's relative path names inside `start_dir`, if
    there is one.

    Symbolic links are followed before the check, so nothing outside `start_dir`
    is ever returned. A folder must hold `marker`, or one .gguf model.
    """
    try:
        root = start_dir.resolve()
        folder = (root / name).resolve()
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if inside and folder.is_relative_to(root):
            if (folder / marker).is_file() or (folder.is_file() and is_gguf(folder)):
                return folder
            if marker == "config.json" and folder.is_dir():
                only = only_gguf(folder)
                if only is not None and only.resolve().is_relative_to(root):
                    return only
    except (OSError, ValueError):  # too long, a NUL, a loop of links
        pass
    return None


def only_gguf(folder: Path) -> Path | None:
    """The .gguf model in a folder that holds exactly one, and no other weights."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    found = model_files(names)
    if len(found) != 1 or any(name.endswith(".safetensors") for name in names):
        return None
    return folder / found[0]


def existing(name: str, file: str | None) -> Path | None:
    """The folder, or a .gguf file by its path or as `file` in the folder; links to files are
    not followed, since what they lead to in the cache has no name."""
    try:
        path = Path(os.path.expanduser(name))
        if not name:
            return None
        if path.is_file():
            if is_gguf(path) and file is None:
                return Path(os.path.abspath(path))
            raise ModelLoadError(
                f"{name!r} is a file and no .gguf; give the folder of a model instead."
                if file is None
                else f"{name!r} is a file; leave out --hf-file."
            )
        if not path.is_dir():
            return None
        if file is not None:
            return _file_in(path.resolve(), file)
        if (only := only_gguf(path)) is not None:
            return path.resolve() / only.name
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such user's home
        return None
    if (path / "config.json").is_file():
        return path.resolve()
    if (path / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{name!r} holds an adapter, not a model; give its base model as --model "
            f"and --lora {name} beside it."
        )
    found = model_files(os.listdir(path))
    if found:
        raise ModelLoadError(
            f"The folder {name!r} holds {len(found)} .gguf models ({first_names(found)}); give "
            "the path of one of them."
        )
    raise ModelLoadError(
        f"The folder {name!r} holds no config.json; give the folder of an MLX or "
        "Hugging Face model."
    )


def _file_in(folder: Path, file: str) -> Path:
    path = folder / file
    if not path.is_file():
        raise ModelLoadError(f"{folder} holds no file {file!r}; check --hf-file.")
    return path


def whole(path: Path) -> Path | None:
    """A .gguf file that is there with all its parts."""
    try:
        return path if all(part.is_file() for part in split_files(path)) else None
    except ModelLoadError:
        return None


def is_complete(folder: Path, trust_remote_code: bool = False) -> bool:
    """Whether a folder has its config.json and weights, and the code that is to be run."""
    if not (folder / "config.json").is_file():
        return False
    try:
        weight_files(folder)
    except ModelLoadError:
        return False
    return not (trust_remote_code and missing_code(folder))
