"""Residence: the models in memory. Loads them, makes room, and knows their adapters.

The engine thread reads the weights, because it owns the arrays; streams of other
models pause meanwhile. Everything that can fail before, the download and a look
at the files, happens before anything is unloaded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from mlx_server import demo
from mlx_server.config import Config
from mlx_server.deltas import Finished
from mlx_server.engine.engine import Engine
from mlx_server.engine.engines import Engines
from mlx_server.engine.loading import unload
from mlx_server.engine.worker import Worker
from mlx_server.entry import Entry, check_files, open_entry
from mlx_server.errors import ModelLoadError
from mlx_server.models import hub
from mlx_server.names import Names
from mlx_server.progress import UNTOLD, Progress

log = logging.getLogger(__name__)


class Visitor(Protocol):
    """Who waits for a model."""

    name: str

    @property
    def cancelled(self) -> bool:
        """Whether it has given up."""
        ...


class Residence:
    """Thread-safe.

    Args:
        names: What the command line calls its model and adapters.
        observe: Is told of every reply that ends.
        progress: Is told how far downloads and loading are.
    """

    def __init__(
        self,
        config: Config,
        worker: Worker,
        names: Names,
        observe: Callable[[Finished], None] = lambda finished: None,
        progress: Progress = UNTOLD,
    ) -> None:
        self.config = config
        self.worker = worker
        self.names = names
        self._observe = observe
        self._progress = progress
        self._entries: dict[str, Entry] = {}
        self._visitors: list[Visitor] = []
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
            coming = [visitor.name for visitor in self._visitors]
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
            file=config.hf_file if is_default else None,
            token=config.hf_token,
            local=is_default,
            progress=self._progress,
        )
        check_files(config, name, path, is_default=is_default)
        return path

    @contextmanager
    def bringing(self, visitor: Visitor) -> Iterator[bool]:
        """Have the visitor's model in memory while the block runs; False if it gave up.

        Nobody can have it unloaded before the block has queued its request, so that
        models in turn for one place each get served.

        Raises:
            ModelLoadError: It cannot be loaded.
        """
        with self._state:
            self._visitors.append(visitor)
        try:
            path = self.inspect(visitor.name)
            with self._loading:
                yield self._bring(visitor, path)
        finally:
            with self._state:
                self._visitors.remove(visitor)

    def _bring(self, visitor: Visitor, path: Path) -> bool:
        if visitor.cancelled:
            return False
        if visitor.name not in self.entries():
            if not self._make_room(visitor):
                return False
            log.info("loading %s for a request", visitor.name)
            self.load(visitor.name, path)
        return True

    def _make_room(self, visitor: Visitor) -> bool:
        """Unload the least recently used models, each when its rows are done; False, and
        nothing is unloaded, if the visitor gives up meanwhile."""
        while len(self._entries) >= self.config.max_models:
            with self._state:
                name, entry = min(self._entries.items(), key=lambda item: item[1].used)
                entry.draining = True
                self._state.wait_for(partial(_nobody_enters, entry))

            def leave(engines: Engines, name: str = name) -> bool:
                if not visitor.cancelled:
                    unload(engines, name)
                return not visitor.cancelled

            gone = False
            try:
                gone = self.worker.call(leave, idle=name, unless=lambda: visitor.cancelled)
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
        entry = open_entry(
            self.config,
            self.worker,
            name,
            path,
            is_default=name == self.names.default,
            observe=self._observe,
            progress=self._progress,
        )
        try:
            if name == self.names.default:
                for folder in self.names.configured():
                    self.adapter(entry, folder)
        except Exception:
            self.worker.call(lambda engines: unload(engines, name))
            raise
        with self._state:
            self._entries[name] = entry
        return entry

    def adapter(self, entry: Entry, folder: Path) -> str:
        """The engine's name for the adapter in `folder`, loaded if need be.

        Raises:
            ModelLoadError: It cannot be loaded, or does not fit the model.
        """
        if entry.llm is None:
            raise ModelLoadError(f"{entry.name} is an embedding model, which takes no adapters.")
        folder = Path(os.path.expanduser(folder)).resolve()
        with self._adapting:
            if folder not in entry.adapters:
                name = str(folder)
                self.worker.call(lambda engines: _load_adapter(engines[entry.name], name, folder))
                entry.adapters[folder] = name
            return entry.adapters[folder]


def _nobody_enters(entry: Entry) -> bool:
    return entry.num_entering == 0


def _load_adapter(engine: Engine, name: str, folder: Path) -> None:
    bank = engine.model.bank
    if bank is None:
        raise ModelLoadError("This model's architecture takes no adapters.")
    bank.load(name, folder)
