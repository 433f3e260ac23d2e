"""From a model folder, or a .gguf file, to a module with its weights in memory.

mlx_lm.utils.load_model does the work for a folder (MLX quantisation of every kind,
AWQ, GPTQ, sanitising); what is added here is our own modules, weight files under any
name, and failures told in one line that names the mend. `gguf_files.py` reads the
other kind.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import is_gguf
from mlx_server.models.control import PathAndScale, load_control, refuse_control
from mlx_server.models.gguf_files import GGUFModel, load_weights
from mlx_server.models.gguf_files import inspect as inspect_gguf
from mlx_server.models.load_errors import explain, short
from mlx_server.models.model_config import eos_token_ids, sampling_defaults
from mlx_server.models.model_files import (
    check_safetensors,
    missing_code,
    read_json,
    weight_files,
)
from mlx_server.models.overrides import RopeOverrides, apply
from mlx_server.models.parameters import parameters
from mlx_server.models.read_in import read_in
from mlx_server.models.registry import (
    OURS,
    ModuleKind,
    check_known,
    mlx_lm_utils,
    resolve_classes,
)
from mlx_server.progress import UNTOLD, Progress

Control = tuple[Sequence[PathAndScale], tuple[int, int] | None]
"""Control vectors and their scales, and the layers they change: `load_control`'s arguments."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory.

    Attributes:
        model: The bare module, in evaluation mode.
        config: config.json as mlx_lm understood it (`quantization` resolved), or what a
            .gguf file's metadata says in the same words.
        module_kind: Whose module it is: "ours" or mlx_lm's ("zoo").
        path: Its folder or .gguf file.
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


def check(
    path: Path,
    *,
    name: str,
    trust_remote_code: bool = False,
    rope: RopeOverrides | None = None,
) -> None:
    """See whether the model in `path` can be loaded, as far as that shows without its
    weights. Makes no arrays; any thread may call it.

    Args:
        path: A folder or a .gguf file.
        rope: As in `load`.

    Raises:
        ModelLoadError: As `load` would.
    """
    with _named(name):
        if is_gguf(path):
            _inspect_gguf(path, rope)
        else:
            _inspect(path, trust_remote_code, rope)


def load(
    path: Path,
    *,
    name: str,
    trust_remote_code: bool = False,
    rope: RopeOverrides | None = None,
    control: Control | None = None,
    progress: Progress = UNTOLD,
) -> Loaded:
    """Load the model in `path`; the thread that calls owns its arrays.

    Args:
        path: A folder or a .gguf file.
        name: What error messages call the model.
        trust_remote_code: Run the folder's own `model_file`, if config.json names one.
        rope: Rotary positions other than the model's own.
        control: Control vectors to add.
        progress: Is told how many bytes of the weights are there.

    Raises:
        ModelLoadError: One line that says what is wrong and how to mend it.
    """
    with _named(name):
        try:
            if is_gguf(path):
                loaded = _load_gguf(path, rope, name, progress)
            else:
                loaded = _load(path, trust_remote_code, rope, name, progress)
            if control is not None and control[0]:
                _add_control(loaded, control)
            return loaded
        except ModelLoadError:
            raise
        except Exception as error:
            # load_model and the modules' sanitize() raise whatever a folder
            # that does not fit makes them stumble over.
            raise ModelLoadError(explain(error)) from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"Cannot load {name}: {error.message}") from error.__cause__


def _inspect(path: Path, trust_remote_code: bool, rope: RopeOverrides | None) -> _Folder:
    config = read_json(path / "config.json")
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    code = config.get("model_file")
    if code is None:
        check_known(config)
    elif not trust_remote_code:
        raise ModelLoadError(
            f"it runs Python code of its own ({code}); add --trust-remote-code if you trust it."
        )
    elif code in missing_code(path):
        raise ModelLoadError(
            f"{path} lacks {code}, the Python code that config.json names; fetch the model again."
        )
    config = _with_rope(config, rope)
    if code is None and config["model_type"] in OURS:
        _Builder(config).from_dict(config)
    _check_quantization(config.get("quantization"))
    weights = weight_files(path)
    for file in weights:
        check_safetensors(file)
    return _Folder(config, generation, weights)


def _inspect_gguf(path: Path, rope: RopeOverrides | None) -> tuple[GGUFModel, _Builder]:
    given = inspect_gguf(path)
    given = replace(given, config=_with_rope(given.config, rope))
    builder = _Builder(given.config, source="its metadata")
    builder.from_dict(given.config)
    return given, builder


def _with_rope(config: dict[str, Any], rope: RopeOverrides | None) -> dict[str, Any]:
    """The final config: whatever is built, or asked about its length, reads this one."""
    return config if rope is None else apply(config, rope)


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


def _load(
    path: Path, trust_remote_code: bool, rope: RopeOverrides | None, name: str, progress: Progress
) -> Loaded:
    inspected = _inspect(path, trust_remote_code, rope)
    config, generation = inspected.config, inspected.generation
    utils = mlx_lm_utils()
    builder = _Builder(config)
    with _model_view(path, inspected.weights) as folder:
        model, resolved = utils.load_model(
            folder,
            lazy=True,
            model_config=None if rope is None else config,
            get_model_classes=lambda config: (builder, builder),
            trust_remote_code=trust_remote_code,
        )
        # Here, while there is a folder to read from.
        read_in(_arrays(model), f"loading {name}", progress)
    eos = eos_token_ids(config, generation)
    return _loaded(model, resolved, builder.kind, path, generation, eos)


def _load_gguf(path: Path, rope: RopeOverrides | None, name: str, progress: Progress) -> Loaded:
    given, builder = _inspect_gguf(path, rope)
    model = builder(builder.from_dict(given.config))
    with progress.begin(f"loading {name}", given.nbytes) as task:
        load_weights(given, model, task)
    eos = eos_token_ids(given.config, {})
    return _loaded(model, given.config, builder.kind, path, given.generation, eos)


def _add_control(loaded: Loaded, control: Control) -> None:
    config, (vectors, layers) = loaded.config, control
    if loaded.module_kind != "ours":
        raise refuse_control(config["model_type"])
    size, depth = config["hidden_size"], config["num_hidden_layers"]
    loaded.model.set_control(load_control(vectors, layers, size, depth, config["model_type"]))


def _loaded(
    model: nn.Module,
    config: dict[str, Any],
    kind: ModuleKind,
    path: Path,
    generation: Mapping[str, Any],
    eos: tuple[int, ...],
) -> Loaded:
    return Loaded(
        model=model,
        config=config,
        module_kind=kind,
        path=path,
        generation_config=sampling_defaults(generation),
        eos_token_ids=eos,
        nbytes=sum(array.nbytes for array in _arrays(model)),
        num_parameters=mlx_lm_utils().get_total_parameters(model),
    )


def _arrays(model: nn.Module) -> list[mx.array]:
    return [array for _, array in parameters(model)]


class _Builder:
    """Stands in for the model's and the arguments' class while mlx_lm loads, so that
    a config.json that does not fit is told from weights that do not.

    Args:
        source: What the config was read from.
    """

    def __init__(self, config: Mapping[str, Any], source: str = "config.json") -> None:
        self.source = source
        self.model_type = config.get("model_type")
        self.kind: ModuleKind = "zoo"
        if config.get("model_file") is None:
            self.model_class, self.args_class, self.kind = resolve_classes(config)

    def from_dict(self, config: dict[str, Any]) -> Any:
        made: Any = self.args_class
        return self._call(made.from_dict, config)

    def __call__(self, args: Any) -> nn.Module:
        return self._call(self.model_class, args)

    def _call(self, build: Any, value: Any) -> Any:
        try:
            return build(value)
        except KeyError as error:
            reason = f"{error} is missing"
        except TypeError as error:
            missing = re.search(r"missing \d+ required .*arguments?: (.+)", str(error))
            reason = f"a value has the wrong type ({short(error)})"
            if missing:
                reason = f"{missing[1]} is missing"
        except Exception as error:
            reason = short(error)
        raise ModelLoadError(
            f"{self.source} does not fit model_type {self.model_type!r}: {reason}; "
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
