"""From a model folder to a module with its weights in memory.

mlx_lm.utils.load_model does the work (MLX quantisation of every kind, AWQ,
GPTQ, sanitising); what is added here is our own modules, weight files under any
name, and failures told in one line that names the mend.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_server.errors import ModelLoadError
from mlx_server.models.model_config import eos_token_ids, sampling_defaults
from mlx_server.models.model_files import (
    check_safetensors,
    first_names,
    missing_code,
    read_json,
    weight_files,
)
from mlx_server.models.registry import (
    OURS,
    ModuleKind,
    check_known,
    mlx_lm_utils,
    resolve_classes,
)

MAX_REASON = 200
"""Characters of another library's message that are passed on."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory.

    Attributes:
        model: The bare module, in evaluation mode.
        config: config.json as mlx_lm understood it (`quantization` resolved).
        module_kind: Whose module it is: "ours" or mlx_lm's ("zoo").
        generation_config: Sampling defaults the model came with, by their
            `SamplingParams` names.
        eos_token_ids: End tokens of generation_config.json and config.json, sorted.
        nbytes: Bytes of all parameters.
        num_parameters: Weights, a packed one counted as the weights it holds.
    """

    model: nn.Module
    config: dict[str, Any]
    module_kind: ModuleKind
    path: Path
    generation_config: dict[str, float]
    eos_token_ids: tuple[int, ...]
    nbytes: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class _Folder:
    """A model's folder that passed all checks short of its weights' values."""

    config: dict[str, Any]
    generation: dict[str, Any]
    weights: list[Path]


def check(path: Path, *, name: str, trust_remote_code: bool = False) -> None:
    """See whether the model in the folder `path` can be loaded, as far as that shows
    without its weights. Makes no arrays; any thread may call it.

    Raises:
        ModelLoadError: As `load` would.
    """
    with _named(name):
        _inspect(path, trust_remote_code)


def load(path: Path, *, name: str, trust_remote_code: bool = False) -> Loaded:
    """Load the model in the folder `path`; the thread that calls owns its arrays.

    Args:
        name: What error messages call the model.
        trust_remote_code: Run the folder's own `model_file`, if config.json names one.

    Raises:
        ModelLoadError: One line that says what is wrong and how to mend it.
    """
    with _named(name):
        return _load(path, trust_remote_code)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"Cannot load {name}: {error.message}") from error.__cause__


def _inspect(path: Path, trust_remote_code: bool) -> _Folder:
    config = read_json(path / "config.json")
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    code = config.get("model_file")
    if code is None:
        check_known(config)
        if config["model_type"] in OURS:
            _Builder(config).from_dict(config)
    elif not trust_remote_code:
        raise ModelLoadError(
            f"it runs Python code of its own ({code}); add --trust-remote-code if you trust it."
        )
    elif code in missing_code(path):
        raise ModelLoadError(
            f"{path} lacks {code}, the Python code that config.json names; fetch the model again."
        )
    _check_quantization(config.get("quantization"))
    weights = weight_files(path)
    for file in weights:
        check_safetensors(file)
    return _Folder(config, generation, weights)


def _check_quantization(quantization: Any) -> None:
    if quantization is None:
        return
    for key in ("group_size", "bits"):
        value = quantization.get(key) if isinstance(quantization, Mapping) else None
        if type(value) is not int:
            raise ModelLoadError(
                f"config.json's quantization has no whole number for {key}; give group_size and "
                "bits as the weights were quantised."
            )


def _load(path: Path, trust_remote_code: bool) -> Loaded:
    inspected = _inspect(path, trust_remote_code)
    config, generation = inspected.config, inspected.generation
    utils = mlx_lm_utils()
    builder = _Builder(config)
    with _model_view(path, inspected.weights) as folder:
        try:
            model, resolved = utils.load_model(
                folder,
                get_model_classes=lambda config: (builder, builder),
                trust_remote_code=trust_remote_code,
            )
        except ModelLoadError:
            raise
        except Exception as error:
            # load_model and the modules' sanitize() raise whatever a folder
            # that does not fit makes them stumble over.
            raise ModelLoadError(_explain(error)) from error
    return Loaded(
        model=model,
        config=resolved,
        module_kind=builder.kind,
        path=path,
        generation_config=sampling_defaults(generation),
        eos_token_ids=eos_token_ids(config, generation),
        nbytes=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
        num_parameters=utils.get_total_parameters(model),
    )


class _Builder:
    """Stands in for the model's and the arguments' class while mlx_lm loads, so that
    a config.json that does not fit is told from weights that do not."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model_type = config.get("model_type")
        self.kind: ModuleKind = "zoo"
        if config.get("model_file") is None:
            self.model_class, self.args_class, self.kind = resolve_classes(config)

    def from_dict(self, config: dict[str, Any]) -> Any:
        return self._call(self.args_class.from_dict, config)

    def __call__(self, args: Any) -> nn.Module:
        return self._call(self.model_class, args)

    def _call(self, build: Any, value: Any) -> Any:
        try:
            return build(value)
        except KeyError as error:
            reason = f"{error} is missing"
        except TypeError as error:
            missing = re.search(r"missing \d+ required .*arguments?: (.+)", str(error))
            reason = f"a value has the wrong type ({_short(error)})"
            if missing:
                reason = f"{missing[1]} is missing"
        except Exception as error:
            reason = _short(error)
        raise ModelLoadError(
            f"config.json does not fit model_type {self.model_type!r}: {reason}; "
            "fetch it again or mend it."
        )


@contextmanager
def _model_view(path: Path, files: list[Path]) -> Iterator[Path]:
    """`path`, or a folder of links where mlx_lm's pattern would load other files than `files`."""
    if set(path.glob("model*.safetensors")) == set(files):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlx_server-") as folder:
        view = Path(folder)
        for number, file in enumerate(files):
            (view / f"model-{number:05d}.safetensors").symlink_to(file.resolve())
        for file in path.iterdir():
            if file.suffix in (".json", ".py"):
                (view / file.name).symlink_to(file.resolve())
        yield view


# ---------------------------------------------------------------- failures in one line


def _explain(error: Exception) -> str:
    text = str(error)
    listing = re.match(r"(Missing|Received) \d+ parameters.*?: *\n(.*)\.$", text, re.DOTALL)
    if listing:
        names = [name.strip() for name in listing[2].split(",")]
        if listing[1] == "Missing":
            return (
                f"the weights lack {len(names)} tensors that config.json calls for "
                f"({first_names(names)}); fetch them again, or use the matching config.json."
            )
        return (
            f"the weights hold {len(names)} tensors that config.json has no place for "
            f"({first_names(names)}); use the config.json that belongs to them."
        )
    shapes = re.match(r"Expected shape (\(.*?\)) but received shape (\(.*?\)) for .* (\S+)$", text)
    if shapes:
        return (
            f"the tensor {shapes[3]} has shape {shapes[2]} where config.json calls for "
            f"{shapes[1]}; use the config.json that belongs to the weights."
        )
    if isinstance(error, KeyError):
        return (
            f"a tensor or setting named {text} is missing; mend config.json or fetch the model "
            "again."
        )
    if isinstance(error, MemoryError) or "allocate" in text:
        return "it does not fit into memory; choose a smaller or a quantised model."
    return f"{type(error).__name__}: {_short(error)}"


def _short(error: Exception) -> str:
    """The first line of an error's message, at a bearable length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(lines[0].split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"
