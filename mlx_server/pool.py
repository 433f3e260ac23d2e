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
from mlx_server.arrival import Arrival
from mlx_server.config import Config
from mlx_server.core import AdapterScale, GenerationRequest, ModelCard
from mlx_server.engine.engine import Engine, Limits
from mlx_server.engine.loading import EngineInfo, load_engine, unload
from mlx_server.engine.worker import Worker
from mlx_server.errors import ModelLoadError, RequestError, Unavailable
from mlx_server.llm import LLM, Generation
from mlx_server.models import hub, loader
from mlx_server.names import Names, unknown
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Entry:
    """A model in memory.

    Attributes:
        adapters: Adapter names in the engine, by their folder.
        num_entering: Requests that are being queued just now.
        draining: It goes when its rows are done; no request may join them.
        used: When it was last asked for, for choosing what to unload.
    """

    llm: LLM
    info: EngineInfo
    path: Path
    adapters: dict[Path, str] = field(default_factory=dict)
    num_entering: int = 0
    draining: bool = False
    used: float = 0.0


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
        self._arrivals: list[Arrival] = []
        self._created = int(time.time())
        self._ready = False
        self._failure: ModelLoadError | None = None
        self._state = threading.Condition()
        # Held while a model is loaded or unloaded; requests for others go on.
        self._loading = threading.Lock()
        self._adapting = threading.Lock()

    # ------------------------------------------------------------ for the dialects

    def check_ready(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._ready:
            raise Unavailable("Loading model", retry_after=1)

    def generate(self, request: GenerationRequest) -> Generation | Arrival:
        """Accept the request, or raise what is wrong with it or with us."""
        self.check_ready()
        if request.timeout is None:
            request = replace(request, timeout=self.config.request_timeout)
        name, adapter = self.names.resolve(request.model, self._paths(), self.current_model())
        generation = self.start(name, adapter, request)
        if generation is None:
            self._check(name)
            generation = Arrival(self, name, adapter, request)
        return generation

    def start(
        self, name: str, adapter: str | None, request: GenerationRequest
    ) -> Generation | None:
        """Queue the request at the model `name`; None while that is not in memory."""
        with self._state:
            entry = self._entries.get(name)
            if entry is None or entry.draining:
                return None
            entry.used = time.monotonic()
            entry.num_entering += 1
        try:
            return entry.llm.generate(request, self._adapters(entry, adapter, request.adapters))
        finally:
            with self._state:
                entry.num_entering -= 1
                self._state.notify_all()

    def current_model(self) -> str:
        """The default if it is in memory, else the model used last or on its way."""
        with self._state:
            entries = {name: e for name, e in self._entries.items() if not e.draining}
            coming = [arrival.name for arrival in self._arrivals]
        if self.default_name in entries:
            return self.default_name
        if entries:
            return max(entries, key=lambda name: entries[name].used)
        return coming[0] if coming else self.default_name

    def cards(self) -> list[ModelCard]:
        """The command line's model, the others in memory, the adapters, and what lies in
        the local cache."""
        with self._state:
            entries = dict(self._entries)
        names = [self.default_name, *sorted(entries.keys() - {self.default_name})]
        cards = [self._card(name, entries.get(name)) for name in names]
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
        cards = {card.id: card for card in self.cards()}
        if name not in cards and self.names.is_default(name):
            name = self.default_name
        key = name if name in cards else self.names.loaded(name, self._paths(), "")
        if not key or key not in cards:
            raise unknown(name)
        return cards[key]

    def _card(self, name: str, entry: Entry | None) -> ModelCard:
        return ModelCard(
            id=name,
            created=self._created,
            loaded=entry is not None,
            root=str(entry.path) if entry else None,
            context_length=entry.llm.context_length if entry else None,
        )

    def _paths(self) -> dict[str, Path]:
        with self._state:
            return {name: entry.path for name, entry in self._entries.items()}

    # ------------------------------------------------------------ models in memory

    def load_default(self) -> Entry:
        """Load what the command line names. Raises ModelLoadError."""
        try:
            entry = self._load(self.default_name)
        except ModelLoadError as error:
            self._failure = error
            raise
        self._ready = True
        return entry

    def _check(self, name: str) -> None:
        """Refuse a model that cannot be loaded before another makes room for it."""
        path = self.names.find(name)
        if path is not None:
            try:
                loader.check(path, name=name, trust_remote_code=self.config.trust_remote_code)
            except ModelLoadError as error:
                raise RequestError(error.message, param="model") from error

    def bring(self, arrival: Arrival) -> None:
        """Load the model of a request that waits for it, unless nobody waits any more.

        Raises:
            RequestError: It cannot be loaded.
        """
        with self._state:
            self._arrivals.append(arrival)
        try:
            with self._loading:
                with self._state:
                    entry = self._entries.get(arrival.name)
                if arrival.cancelled or (entry is not None and not entry.draining):
                    return
                log.info("loading %s for a request", arrival.name)
                if self._make_room(arrival):
                    self._load(arrival.name)
        except ModelLoadError as error:
            # Not lost: whoever asks for another model has that one loaded again.
            raise RequestError(error.message, param="model") from error
        finally:
            with self._state:
                self._arrivals.remove(arrival)

    def _make_room(self, arrival: Arrival) -> bool:
        """Unload the least recently used models, each when its rows are done; False, and
        no harm done, if the arrival gave up meanwhile."""
        while len(self._entries) >= self.config.max_models:
            with self._state:
                name, entry = min(self._entries.items(), key=lambda item: item[1].used)
                entry.draining = True
                self._state.wait_for(lambda entry=entry: entry.num_entering == 0)

            def leave(engines: dict[str, Engine], name: str = name) -> bool:
                if not arrival.cancelled:
                    unload(engines, name)
                return not arrival.cancelled

            gone = self.worker.call(leave, idle=name)
            with self._state:
                entry.draining = False
                if not gone:
                    return False
                del self._entries[name]
            log.info("unloaded %s", name)
        return True

    def _load(self, name: str) -> Entry:
        config = self.config
        is_default = name == self.default_name
        if not config.model and is_default:
            path = demo.path()
        else:
            path = (None if is_default else self.names.find(name)) or hub.resolve(
                name,
                revision=config.revision if is_default else None,
                allow_download=is_default or config.allow_download,
                trust_remote_code=config.trust_remote_code,
            )
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
            kv_tokens=info.kv_tokens,
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
