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
from mlx_server.errors import ModelLoadError, RequestError, Unavailable
from mlx_server.llm import LLM, Generation
from mlx_server.models import hub
from mlx_server.names import Names, unknown
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


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
        self.names = Names(config, start_dir or Path.cwd())
        self.default_name = self.names.default
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
        name, adapter = self.names.resolve(request.model, self._paths(), self._current())
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
            for name, path in self.names.adapters.items()
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
        loaded = self.names.loaded(name, self._paths(), self._current())
        entry = self._entries.get(loaded or "")
        if entry is None:
            raise unknown(name)
        return self._card(entry)

    def _card(self, entry: Entry) -> ModelCard:
        return ModelCard(
            id=entry.llm.name,
            created=self._created,
            loaded=True,
            root=str(entry.path),
            context_length=entry.llm.context_length,
        )

    def _current(self) -> str:
        """The loaded model that a request without a name gets."""
        entries = dict(self._entries)
        if self.default_name in entries or not entries:
            return self.default_name
        return max(entries, key=lambda name: entries[name].used)

    def _paths(self) -> dict[str, Path]:
        return {name: entry.path for name, entry in list(self._entries.items())}

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
        if config.model is None and is_default:
            path = demo.path()
        elif is_default:
            path = hub.resolve(
                name, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        else:
            path = self.names.find(name) or hub.resolve(name, allow_download=config.allow_download)
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
                for folder in self.names.configured():
                    self._adapter(entry, folder)
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

    def _adapter(self, entry: Entry, folder: Path) -> str:
        """The engine's name for the adapter in `folder`, loaded if need be."""
        folder = folder.expanduser().resolve()
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
        """The sorted (adapter, scale) pairs of a request's rows."""
        scales: dict[str, float] = {}
        for folder in self.names.adapter_folders(entry.llm.name, named, requested):
            try:
                name = self._adapter(entry, folder)
            except ModelLoadError as error:
                raise RequestError(error.message, param="adapters") from error
            scales[name] = scales.get(name, 0.0) + 1.0
        return tuple(sorted(scales.items()))


def _flag_defaults(config: Config) -> Mapping[str, Any]:
    given = {
        "max_tokens": config.max_tokens,
        "temperature": config.temp,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
    }
    return {name: value for name, value in given.items() if value is not None}
