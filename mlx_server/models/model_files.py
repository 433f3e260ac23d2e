"""The files of a model's folder: found, checked, read. No MLX.

Every failure is a `ModelLoadError` of one line that names the file and the mend.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_server.errors import ModelLoadError

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own bound."""

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelLoadError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing.") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON ({error}); fetch it again.") from None
    if not isinstance(value, Mapping):
        raise ModelLoadError(f"{path} must hold a JSON object; fetch it again.")
    return dict(value)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`, sorted.

    The index decides where there is one, then `model*.safetensors`, then files
    of any other name.

    Raises:
        ModelLoadError: There are none, or a shard is missing.
    """
    present = {f.name for f in folder.glob("*.safetensors") if f.is_file()}
    usual = {n for n in present if n.startswith("model")}
    others = {n for n in present if not n.startswith("adapter")}
    others = {n for n in others if not n.startswith("consolidated")} or others
    names = usual or others

    listed: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index.json")):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise ModelLoadError(f"{index} has no weight_map; fetch it again.")
        if not index.name.startswith("consolidated"):
            listed |= {str(shard) for shard in weight_map.values()}
    # Converters that merge the shards leave the old index behind: then files
    # that it does not know are the model.
    if listed and (listed <= present or not usual - listed):
        names = listed
    else:
        for match in filter(None, map(_SHARD.fullmatch, sorted(names))):
            count = int(match["count"])
            names |= {
                f"{match['stem']}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
            }

    if missing := sorted(names - present):
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} of its {len(names)} weight files "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "the download is incomplete, fetch it again."
        )
    if not names:
        raise ModelLoadError(_no_weights(folder))
    return [folder / name for name in sorted(names)]


def _no_weights(folder: Path) -> str:
    if found := sorted(f for f in os.listdir(folder) if f.endswith(".gguf")):
        return (
            f"{folder} holds {found[0]} but no safetensors weights; give the path of that file, "
            "or a repo that has them."
        )
    for suffix in (".bin", ".pt", ".pth", ".npz", ".h5", ".msgpack"):
        if found := sorted(f for f in os.listdir(folder) if f.endswith(suffix)):
            return (
                f"{folder} holds {found[0]} but no safetensors weights; choose a repo that has "
                "them, or convert the original model with `mlx_lm.convert`."
            )
    return f"{folder} holds no weights (*.safetensors); the download may be incomplete."


def check_safetensors(path: Path) -> None:
    """Read the header and see that the data it announces is there.

    Raises:
        ModelLoadError: The file is truncated or is something else.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            header = file.read(length) if 2 <= length <= min(size - 8, MAX_HEADER_BYTES) else b""
        if start == b"version ":  # https://git-lfs.github.com/spec/v1
            raise ModelLoadError(
                f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`."
            )
        entries = json.loads(header)
        ends = [e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"]
        if max(ends, default=0) > size - 8 - length:
            raise ValueError("data missing")
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelLoadError(f"{path} is truncated or corrupt; fetch it again.") from None


def missing_code(folder: Path) -> list[str]:
    """Python files that a trusted model runs and the folder lacks.

    These are `model_file`, which builds the model, and the `auto_map` modules
    of configuration and tokenizer; the modelling code among them is for torch.
    """
    named: list[object] = []
    for file in ("config.json", "tokenizer_config.json"):
        try:
            config = read_json(folder / file)
        except ModelLoadError:
            continue  # whoever needs the file says what is wrong with it
        named.append(config.get("model_file"))
        auto_map = config.get("auto_map")
        if isinstance(auto_map, Mapping):
            for entry in ("AutoConfig", "AutoTokenizer"):
                classes = auto_map.get(entry)
                named += map(_module_file, classes if isinstance(classes, list) else [classes])
    files = sorted({name for name in named if isinstance(name, str)})
    return [name for name in files if not (folder / name).is_file()]


def _module_file(reference: object) -> str | None:
    """The file of `module.Class`; None for a class of another repo, `owner/name--module.Class`."""
    if not isinstance(reference, str) or "--" in reference or "." not in reference:
        return None
    return reference.partition(".")[0] + ".py"


def first_names(names: list[str], limit: int = 3) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
