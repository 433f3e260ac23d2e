"""Residence: the models in memory. Loads them, makes room, and knows their adapters.

The engine thread reads the weights, because it owns the arrays; streams of other
models pause meanwhile. Everything that can fail before, the download and a look
at the files, happens before anything is unloaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_server import demo
from mlx_server.arrival import Arrival
from mlx_server.config import Config
from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.loading import EngineInfo, load_engine, unload
from mlx_server.engine.worker import Worker
from mlx_server.llm import LLM
from mlx_server.models import hub, loader
from mlx_server.names import Names
from mlx_server.replies import ReplyForms
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


class Residence:
    """Thread-safe.

    Args:
        names: What the command line calls its model and adapters.
    """

    def __init__(self, config: Config, worker: Worker, names: Names) -> None:
        self.config = config
        self.worker = worker
        self.names = names
        self._entries: dict[str, Entry] = {}
        self._arrivals: list[Arrival] = []
        self._state = threading.Condition()
        # One model is loaded or unloaded at a time, and one adapter.
        self._loading = threading.Lock()
        self._adapting = threading.Lock()

    # ------------------------------------------------------------ what is there

    def entries(self) -> dict[str, Entry]:
        """A snapshot, models that are about to go included."""
        with self._state:
            return dict(self._entries)

    def current(self) -> str:
        """The model a request without a name gets: the default if it is in memory, else
        the one used last, or on its way."""
        with self._state:
            staying = {name: e for name, e in self._entries.items() if not e.draining}
            coming = [arrival.name for arrival in self._arrivals]
        if self.names.default in staying:
            return self.names.default
        if staying:
            return max(staying, key=lambda name: staying[name].used)
        return coming[0] if coming else self.names.default

    @contextmanager
    def entering(self, name: str) -> Iterator[Entry | None]:
        """The model, kept while a request is queued there; None if it is not in memory."""
        with self._state:
            entry = self._entries.get(name)
            if entry is not None and entry.draining:
                entry = None
            if entry is not None:
                entry.used = time.monotonic()
                entry.num_entering += 1
        try:
            yield entry
        finally:
            if entry is not None:
                with self._state:
                    entry.num_entering -= 1
                    self._state.notify_all()

    # ------------------------------------------------------------ coming and going

    def inspect(self, name: str) -> Path:
        """Where the model lies, downloaded if need be and allowed, and sound as far as
        that can be told without loading it. Raises ModelLoadError."""
        config = self.config
        is_default = name == self.names.default
        if not config.model and is_default:
            return demo.path()
        path = (None if is_default else self.names.find(name)) or hub.resolve(
            name,
            revision=config.revision if is_default else None,
            allow_download=is_default or config.allow_download,
            trust_remote_code=config.trust_remote_code,
        )
        loader.check(path, name=name, trust_remote_code=config.trust_remote_code)
        return path

    @contextmanager
    def bringing(self, arrival: Arrival) -> Iterator[bool]:
        """Have the arrival's model in memory while the block runs; False if it gave up.

        Nobody can have it unloaded before the block has queued its request, so that
        models in turn for one place each get served.

        Raises:
            ModelLoadError: It cannot be loaded.
        """
        with self._state:
            self._arrivals.append(arrival)
        try:
            path = self.inspect(arrival.name)
            with self._loading:
                yield self._bring(arrival, path)
        finally:
            with self._state:
                self._arrivals.remove(arrival)

    def _bring(self, arrival: Arrival, path: Path) -> bool:
        if arrival.cancelled:
            return False
        if arrival.name not in self.entries():
            if not self._make_room(arrival):
                return False
            log.info("loading %s for a request", arrival.name)
            self.load(arrival.name, path)
        return True

    def _make_room(self, arrival: Arrival) -> bool:
        """Unload the least recently used models, each when its rows are done; False, and
        nothing is unloaded, if the arrival gives up meanwhile."""
        while len(self._entries) >= self.config.max_models:
            with self._state:
                name, entry = min(self._entries.items(), key=lambda item: item[1].used)
                entry.draining = True
                self._state.wait_for(lambda entry=entry: entry.num_entering == 0)

            def leave(engines: dict[str, Engine], name: str = name) -> bool:
                if not arrival.cancelled:
                    unload(engines, name)
                return not arrival.cancelled

            gone = False
            try:
                gone = self.worker.call(leave, idle=name, unless=lambda: arrival.cancelled)
            finally:
                with self._state:
                    entry.draining = False
                    if gone:
                        del self._entries[name]
            if not gone:
                return False
            log.info("unloaded %s", name)
        return True

    def load(self, name: str, path: Path) -> Entry:
        """Load the model in `path`. Raises ModelLoadError."""
        config = self.config
        limits = Limits.of(config)

        def load(engines: dict[str, Engine]) -> EngineInfo:
            return load_engine(
                engines,
                path,
                name=name,
                limits=limits,
                max_models=config.max_models,
                trust_remote_code=config.trust_remote_code,
            )

        info = self.worker.call(load)
        try:
            entry = self._entry(name, path, info)
            if name == self.names.default:
                for folder in self.names.configured():
                    self.adapter(entry, folder)
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
            chat_template=config.chat_template if name == self.names.default else None,
            use_default_chat_template=config.use_default_chat_template,
            template_args=config.chat_template_args or {},
            eos_token_ids=info.eos_token_ids,
        )
        replies = ReplyForms(
            tokenizer,
            info.vocab_size,
            reasoning_format=config.reasoning_format,
            max_thinking_tokens=config.max_thinking_tokens,
        )
        replies.grammars.prepare()
        llm = LLM(
            name=name,
            worker=self.worker,
            tokenizer=tokenizer,
            vocab_size=info.vocab_size,
            replies=replies,
            context_length=info.context_length,
            kv_tokens=info.kv_tokens,
            defaults={**info.sampling, **_flag_defaults(config)},
        )
        return Entry(llm, info, path, used=time.monotonic())

    def adapter(self, entry: Entry, folder: Path) -> str:
        """The engine's name for the adapter in `folder`, loaded if need be.

        Raises:
            ModelLoadError: It cannot be loaded, or does not fit the model.
        """
        folder = folder.expanduser().resolve()
        with self._adapting:
            if folder not in entry.adapters:
                name = str(folder)
                self.worker.call(
                    lambda engines: engines[entry.llm.name].model.bank.load(name, folder)
                )
                entry.adapters[folder] = name
            return entry.adapters[folder]


def _flag_defaults(config: Config) -> Mapping[str, Any]:
    given = {
        "max_tokens": config.max_tokens,
        "temperature": config.temp,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
    }
    return {name: value for name, value in given.items() if value is not None}
