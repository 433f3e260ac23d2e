"""What the names in a request mean: its `model` and its `adapters`. Nothing is loaded here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_server.config import Config
from mlx_server.errors import ModelNotFound, RequestError
from mlx_server.models import hub
from mlx_server.models.places import repo_file

DEFAULT_NAME = "default_model"
"""What mlx_lm's clients call the model the server was started with."""

DEMO_NAME = "demo"


@dataclass(frozen=True, slots=True)
class NumberedAdapter:
    """An adapter of the command line, and the scale it is applied at to begin with."""

    path: Path
    scale: float
    name: str | None = None


class Names:
    """
    Args:
        start_dir: Where relative paths in requests begin, and end.

    Attributes:
        default: The id of the model that the command line names.
        adapters: Adapters that are model ids of their own (--lora NAME=PATH).
        numbered: The adapters of --lora and --lora-scaled as the command line lists them.
    """

    def __init__(self, config: Config, start_dir: Path) -> None:
        self.default = config.model or DEMO_NAME
        self.adapters: dict[str, Path] = {}
        self._config = config
        self._start_dir = start_dir
        self.numbered: list[NumberedAdapter] = []
        applied = 0.0 if config.lora_init_without_apply else 1.0
        for value in config.lora:
            if isinstance(value, tuple):
                self.numbered.append(NumberedAdapter(Path(value[0]), applied * value[1]))
                continue
            name, equals, path = value.partition("=")
            if equals:
                self.adapters[name] = Path(path)
                self.numbered.append(NumberedAdapter(Path(path), 0.0, name))
            else:
                self.numbered.append(NumberedAdapter(Path(value), applied))
        self._scales = [adapter.scale for adapter in self.numbered]
        self._folder = Path(os.path.expanduser(self.default)).resolve()
        self._usual = None if config.adapter_path is None else Path(config.adapter_path)

    # ------------------------------------------------------------ models

    def loaded(self, name: str | None, paths: Mapping[str, Path], current: str) -> str | None:
        """The loaded model that `name` is an id, path, short name or alias of.

        Args:
            paths: The loaded models and their folders.
            current: The one that a request without a name gets.
        """
        if name is None or name == DEFAULT_NAME:
            return current
        if self.is_default(name) and self.default in paths:
            return self.default
        for key, path in paths.items():
            if name in (key, str(path), Path(key).name):
                return key
        return None

    def resolve(
        self, name: str | None, paths: Mapping[str, Path], current: str
    ) -> tuple[str, str | None]:
        """(model, adapter) that a request's `model` asks for; the model may still have
        to be loaded.

        Raises:
            ModelNotFound: With --strict-model-names, for a name nobody knows.
        """
        loaded = self.loaded(name, paths, current)
        if loaded is not None:
            return loaded, None
        assert name is not None
        if name in self.adapters:
            return self.default, name
        if self.is_default(name):
            return self.default, None
        folder = self.find(name)
        if folder is not None:
            # Another spelling of a path is no other model.
            known = {path: key for key, path in paths.items()}
            return known.get(folder, self.default if folder == self._folder else name), None
        if self._config.allow_download and "/" in name and hub.is_repo_id(repo_file(name)[0]):
            return name, None
        if self._config.strict_model_names:
            raise unknown(name)
        return current, None

    def is_default(self, name: str) -> bool:
        """Whether `name` is the id, short name or alias of the command line's model."""
        return name in (self.default, Path(self.default).name, *self._config.alias)

    def find(self, name: str) -> Path | None:
        """Where a model lies that a request may have loaded, without the network."""
        return hub.local_folder(name, self._start_dir) or hub.find_cached(
            name, trust_remote_code=self._config.trust_remote_code
        )

    # ------------------------------------------------------------ adapters

    def configured(self) -> list[Path]:
        """Every adapter of the command line."""
        usual = [] if self._usual is None else [self._usual]
        return [*(adapter.path for adapter in self.numbered), *usual]

    @property
    def scales(self) -> tuple[float, ...]:
        """At which the numbered adapters apply to requests that come now."""
        return tuple(self._scales)

    def set_scales(self, scales: Mapping[int, float]) -> None:
        """Those that are not named get 0. Raises RequestError for one there is not."""
        self._scales = self._numbers(scales, "id")

    def _numbers(self, scales: Mapping[int, float], param: str) -> list[float]:
        found = [0.0] * len(self.numbered)
        for number, scale in scales.items():
            if not 0 <= number < len(found):
                raise RequestError(
                    f"There is no adapter {number}; GET /lora-adapters lists those there are.",
                    param=param,
                )
            found[number] = scale
        return found

    def applied(
        self,
        model: str,
        named: str | None,
        requested: str | None,
        scales: Mapping[int, float] | None = None,
    ) -> list[tuple[Path, float]]:
        """The adapters a request's rows run under, and their scales.

        Those of --lora PATH apply to every request. The request's own adapter, or
        the one its `model` names, takes the place of --adapter-path.

        Args:
            scales: The request's own, for the numbered adapters.

        Raises:
            RequestError: `requested` is not an adapter inside the start directory, or there
                is none of a number in `scales`.
        """
        is_default = model == self.default
        current = self._scales if scales is None else self._numbers(scales, "lora")
        found: list[tuple[Path, float]] = []
        if is_default:
            pairs = zip(self.numbered, current, strict=True)
            found = [(adapter.path, scale) for adapter, scale in pairs if scale]
        if requested is not None:
            folder = hub.local_folder(requested, self._start_dir, marker="adapter_config.json")
            if folder is None:
                raise RequestError(
                    f"There is no adapter {requested!r} under the directory the server was "
                    "started in (a relative path to a folder with adapter_config.json, or to a "
                    ".gguf file).",
                    param="adapters",
                )
            found.append((folder, 1.0))
        elif named is not None:
            found.append((self.adapters[named], 1.0))
        elif self._usual is not None and is_default:
            found.append((self._usual, 1.0))
        return found


def unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"There is no model {name!r}; GET /v1/models lists them.", param="model")
