"""ModelPool: which model a request's `model` means, and which models are in memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_server import demo
from mlx_server.config import Config
from mlx_server.core import AdapterScale, GenerationRequest, ModelCard
from mlx_server.engine.engine import Engine, Limits
from mlx_server.engine.loading import EngineInfo, load_engine, unload
from mlx_server.engine.worker import Worker
from mlx_server.errors import ModelLoadError, ModelNotFound, RequestError, Unavailable
from mlx_server.llm import LLM, Generation
from mlx_server.models import hub
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_NAME = "default_model"
"""What mlx_lm's clients call the model the server was started with."""

DEMO_NAME = "demo"


@dataclass(eq=False)
class Entry:
    """A model in memory.

    Attributes:
        adapters: Adapter names in the engine, by their folder.
        num_active: Requests that run on it; it is not unloaded before they end.
        used: When it was last asked for, for choosing what to unload.
    """

    llm: LLM
    info: EngineInfo
    path: Path
    adapters: dict[Path, str] = field(default_factory=dict)
    num_active: int = 0
    used: float = 0.0


class Lease:
    """Keeps a model in memory until `release`, which may be called again without harm."""

    def __init__(self, entry: Entry, state: threading.Condition) -> None:
        self.entry = entry
        self._state = state
        self._held = True
        entry.num_active += 1

    def release(self) -> None:
        with self._state:
            if self._held:
                self._held = False
                self.entry.num_active -= 1
                self._state.notify_all()


class ModelPool:
    """Loads, finds and unloads models. Thread-safe; `load_default` comes first.

    Args:
        start_dir: Where relative paths in requests begin, and end.
    """

    def __init__(self, config: Config, worker: Worker, start_dir: Path | None = None) -> None:
        self.config = config
        self.worker = worker
        self.start_dir = start_dir or Path.cwd()
        self.default_name = config.model or DEMO_NAME
        self._named, self._global = _lora_arguments(config.lora)
        self._entries: dict[str, Entry] = {}
        self._created = int(time.time())
        self._ready = False
        self._failure: ModelLoadError | None = None
        self._state = threading.Condition(threading.RLock())
        # Held while a model is loaded or unloaded; requests for others go on.
        self._loading = threading.Lock()
        self._adapting = threading.Lock()

    # ------------------------------------------------------------ for the dialects

    def check_ready(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._ready:
            raise Unavailable("Loading model", retry_after=1)

    def generate(self, request: GenerationRequest) -> Generation:
        """Accept the request, or raise what is wrong with it or with us."""
        self.check_ready()
        if request.timeout is None:
            request = replace(request, timeout=self.config.request_timeout)
        name, adapter = self._resolve(request.model)
        lease = self._lease(name)
        try:
            adapters = self._adapters(lease.entry, adapter, request.adapters)
            return lease.entry.llm.generate(request, adapters, lease.release)
        except BaseException:
            lease.release()
            raise

    def cards(self) -> list[ModelCard]:
        """The model a request without a name gets, the other loaded ones, the adapters,
        and what lies in the local cache."""
        current = self._current()
        loaded = sorted(self._entries.values(), key=lambda e: (e.llm.name != current, e.llm.name))
        cards = [self._card(entry) for entry in loaded]
        cards += [
            ModelCard(id=name, created=self._created, parent=self.default_name, root=str(path))
            for name, path in self._named.items()
        ]
        known = {card.id for card in cards}
        cards += [
            ModelCard(id=m.repo_id, created=int(m.last_modified), root=str(m.path))
            for m in hub.cached_models()
            if m.repo_id not in known
        ]
        return cards

    def card(self, name: str) -> ModelCard:
        for card in self.cards():
            if card.id == name:
                return card
        entry = self._entries.get(self._loaded_name(name) or "")
        if entry is not None:
            return self._card(entry)
        raise ModelNotFound(f"There is no model {name!r}; GET /v1/models lists them.")

    def _card(self, entry: Entry) -> ModelCard:
        return ModelCard(
            id=entry.llm.name,
            created=self._created,
            loaded=True,
            root=str(entry.path),
            context_length=entry.llm.context_length,
        )

    # ------------------------------------------------------------ names

    def _current(self) -> str:
        """The loaded model that a request without a name gets."""
        if self.default_name in self._entries or not self._entries:
            return self.default_name
        return max(self._entries, key=lambda name: self._entries[name].used)

    def _loaded_name(self, name: str | None) -> str | None:
        """The loaded model that `name` is an id, path, short name or alias of."""
        if name is None or name == DEFAULT_NAME:
            return self._current()
        if name in self.config.alias and self.default_name in self._entries:
            return self.default_name
        for key, entry in list(self._entries.items()):
            if name in (key, str(entry.path), Path(key).name):
                return key
        return None

    def _resolve(self, name: str | None) -> tuple[str, str | None]:
        """(model, adapter) that a request's `model` asks for.

        Raises:
            ModelNotFound: With --strict-model-names, for a name nobody knows.
        """
        loaded = self._loaded_name(name)
        if loaded is not None:
            return loaded, None
        assert name is not None
        if name in self._named:
            return self.default_name, name
        if name == self.default_name or name in self.config.alias:
            return self.default_name, None
        if self._find(name) is not None:
            return name, None
        if self.config.strict_model_names:
            raise ModelNotFound(
                f"There is no model {name!r}; GET /v1/models lists them.", param="model"
            )
        if self.config.allow_download and "/" in name and hub.is_repo_id(name):
            return name, None
        return self._current(), None

    def _find(self, name: str) -> Path | None:
        """Where a model lies that a request may have loaded, without the network."""
        return hub.local_folder(name, self.start_dir) or hub.find_cached(name)

    # ------------------------------------------------------------ models in memory

    def _lease(self, name: str) -> Lease:
        """The loaded model, loaded first if need be; it stays until the lease is released."""
        while True:
            with self._state:
                entry = self._entries.get(name)
                if entry is not None:
                    entry.used = time.monotonic()
                    return Lease(entry, self._state)
            self._load_on_request(name)

    def load_default(self) -> Entry:
        """Load what the command line names. Raises ModelLoadError."""
        try:
            entry = self._load(self.default_name)
        except ModelLoadError as error:
            self._failure = error
            raise
        self._ready = True
        return entry

    def _load_on_request(self, name: str) -> None:
        with self._loading:
            if name in self._entries:
                return
            log.info("loading %s for a request", name)
            self._make_room()
            try:
                self._load(name)
            except ModelLoadError as error:
                # Not lost: the next request without a name loads the default again.
                raise RequestError(error.message, param="model") from error

    def _make_room(self) -> None:
        """Unload the least recently used models, each when its requests have ended."""
        while len(self._entries) >= self.config.max_models:
            with self._state:
                name, entry = min(self._entries.items(), key=lambda item: item[1].used)
                # Whoever asks for it now waits and has it loaded again.
                del self._entries[name]
                self._state.wait_for(lambda entry=entry: entry.num_active == 0)
            log.info("unloading %s", name)
            self.worker.call(lambda engines, name=name: unload(engines, name))

    def _load(self, name: str) -> Entry:
        config = self.config
        is_default = name == self.default_name
        if name == DEMO_NAME and config.model is None:
            path = demo.path()
        elif is_default:
            path = hub.resolve(
                name, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        else:
            path = self._find(name) or hub.resolve(name, allow_download=config.allow_download)
        limits = Limits(
            config.max_batch_size,
            config.prefill_chunk_size,
            config.max_kv_bytes and config.max_kv_bytes // config.max_models,
        )

        def load(engines: dict[str, Engine]) -> EngineInfo:
            engine, info = load_engine(
                path, name=name, limits=limits, trust_remote_code=config.trust_remote_code
            )
            engines[name] = engine
            return info

        info = self.worker.call(load)
        try:
            entry = self._entry(name, path, info)
            if is_default:
                self._load_configured_adapters(entry)
        except Exception:
            self.worker.call(lambda engines: unload(engines, name))
            raise
        with self._state:
            self._entries[name] = entry
        return entry

    def _entry(self, name: str, path: Path, info: EngineInfo) -> Entry:
        config = self.config
        tokenizer = Tokenizer.load(
            path,
            trust_remote_code=config.trust_remote_code,
            chat_template=config.chat_template if name == self.default_name else None,
            use_default_chat_template=config.use_default_chat_template,
            template_args=config.chat_template_args or {},
            eos_token_ids=info.eos_token_ids,
        )
        llm = LLM(
            name=name,
            worker=self.worker,
            tokenizer=tokenizer,
            vocab_size=info.vocab_size,
            context_length=info.context_length,
            defaults={**info.sampling, **_flag_defaults(config)},
        )
        return Entry(llm, info, path, used=time.monotonic())

    # ------------------------------------------------------------ adapters

    def _load_configured_adapters(self, entry: Entry) -> None:
        paths = [*self._global, *self._named.values()]
        if self.config.adapter_path is not None:
            paths.append(Path(self.config.adapter_path))
        for path in paths:
            self._adapter(entry, path.expanduser().resolve())

    def _adapter(self, entry: Entry, folder: Path) -> str:
        """The engine's name for the adapter in `folder`, loaded if need be."""
        with self._adapting:
            if folder not in entry.adapters:
                name = str(folder)
                self.worker.call(
                    lambda engines: engines[entry.llm.name].model.bank.load(name, folder)
                )
                entry.adapters[folder] = name
            return entry.adapters[folder]

    def _adapters(
        self, entry: Entry, named: str | None, requested: str | None
    ) -> tuple[AdapterScale, ...]:
        """The sorted (adapter, scale) pairs of a request's rows.

        The request's own adapter, or the one its `model` names, takes the place
        of --adapter-path; those of --lora PATH apply to every request.
        """
        is_default = entry.llm.name == self.default_name
        folders = list(self._global) if is_default else []
        if requested is not None:
            folder = hub.local_folder(requested, self.start_dir, marker="adapter_config.json")
            if folder is None:
                raise RequestError(
                    f"There is no adapter {requested!r} under the directory the server was "
                    "started in (a relative path to a folder with adapter_config.json).",
                    param="adapters",
                )
            folders.append(folder)
        elif named is not None:
            folders.append(self._named[named])
        elif self.config.adapter_path is not None and is_default:
            folders.append(Path(self.config.adapter_path))
        try:
            names = [self._adapter(entry, f.expanduser().resolve()) for f in folders]
        except ModelLoadError as error:
            raise RequestError(error.message, param="adapters") from error
        scales: dict[str, float] = {}
        for name in names:
            scales[name] = scales.get(name, 0.0) + 1.0
        return tuple(sorted(scales.items()))


def _lora_arguments(values: tuple[str, ...]) -> tuple[dict[str, Path], list[Path]]:
    """--lora NAME=PATH → ids of their own; --lora PATH → adapters of every request."""
    named: dict[str, Path] = {}
    everywhere: list[Path] = []
    for value in values:
        name, equals, path = value.partition("=")
        if equals:
            named[name] = Path(path)
        else:
            everywhere.append(Path(value))
    return named, everywhere


def _flag_defaults(config: Config) -> Mapping[str, Any]:
    given = {
        "max_tokens": config.max_tokens,
        "temperature": config.temp,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
    }
    return {name: value for name, value in given.items() if value is not None}
