"""What the names in a request mean: its `model` and its `adapters`. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlx_server.config import Config
from mlx_server.errors import ModelNotFound, RequestError
from mlx_server.models import hub

DEFAULT_NAME = "default_model"
"""What mlx_lm's clients call the model the server was started with."""

DEMO_NAME = "demo"


class Names:
    """
    Args:
        start_dir: Where relative paths in requests begin, and end.

    Attributes:
        default: The id of the model that the command line names.
        adapters: Adapters that are model ids of their own (--lora NAME=PATH).
    """

    def __init__(self, config: Config, start_dir: Path) -> None:
        self.default = config.model or DEMO_NAME
        self.adapters: dict[str, Path] = {}
        self._config = config
        self._start_dir = start_dir
        self._everywhere: list[Path] = []
        for value in config.lora:
            name, equals, path = value.partition("=")
            if equals:
                self.adapters[name] = Path(path)
            else:
                self._everywhere.append(Path(value))
        self._folder = Path(self.default).expanduser().resolve()
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
        if self._config.allow_download and "/" in name and hub.is_repo_id(name):
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
        return [*self._everywhere, *self.adapters.values(), *usual]

    def adapter_folders(self, model: str, named: str | None, requested: str | None) -> list[Path]:
        """The adapters a request's rows run under, one entry for each time it applies.

        Those of --lora PATH apply to every request. The request's own adapter, or
        the one its `model` names, takes the place of --adapter-path.

        Raises:
            RequestError: `requested` is not an adapter inside the start directory.
        """
        is_default = model == self.default
        folders = list(self._everywhere) if is_default else []
        if requested is not None:
            folder = hub.local_folder(requested, self._start_dir, marker="adapter_config.json")
            if folder is None:
                raise RequestError(
                    f"There is no adapter {requested!r} under the directory the server was "
                    "started in (a relative path to a folder with adapter_config.json).",
                    param="adapters",
                )
            folders.append(folder)
        elif named is not None:
            folders.append(self.adapters[named])
        elif self._usual is not None and is_default:
            folders.append(self._usual)
        return folders


def unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"There is no model {name!r}; GET /v1/models lists them.", param="model")
