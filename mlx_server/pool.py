"""ModelPool: the models as the dialects see them. A request finds its model here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from mlx_server.arrival import Arrival
from mlx_server.config import Config
from mlx_server.core import GenerationRequest, ModelCard
from mlx_server.deltas import Finished
from mlx_server.engine import device
from mlx_server.engine.worker import Worker
from mlx_server.entry import Entry
from mlx_server.errors import ModelLoadError, Unavailable
from mlx_server.generation import Generation
from mlx_server.metrics import Observer
from mlx_server.models import hub
from mlx_server.names import Names, unknown
from mlx_server.pool_services import PoolServices, read_system_prompt, refused
from mlx_server.progress import UNTOLD, Progress
from mlx_server.recent import Recent
from mlx_server.residence import Residence
from mlx_server.services import SystemPrompt


class ModelPool(PoolServices):
    """Thread-safe; `load_default` comes first. What it does beside generation is in
    `pool_services.py`.

    Args:
        start_dir: Where relative paths in requests begin, and end.
        progress: Is told how far downloads and loading are.
    """

    def __init__(
        self,
        config: Config,
        worker: Worker,
        start_dir: Path | None = None,
        progress: Progress = UNTOLD,
    ) -> None:
        self.config = config
        self.worker = worker
        self.names = Names(config, start_dir or Path.cwd())
        self.observer = Observer()
        self.recent = Recent()
        self.residence = Residence(config, worker, self.names, self._observe, progress)
        self.system_prompt = SystemPrompt()
        self._created = int(time.time())
        self.began = time.monotonic()
        self._ready = False
        self._failure: ModelLoadError | None = None

    def load_default(self) -> Entry:
        """Load what the command line names. Raises ModelLoadError."""
        name = self.names.default
        try:
            self.worker.call(lambda engines: device.choose(self.config.device))
            self.system_prompt = read_system_prompt(self.config.system_prompt_file)
            entry = self.residence.load(name, self.residence.inspect(name))
        except ModelLoadError as error:
            self._failure = error
            raise
        self._ready = True
        return entry

    def check_ready(self) -> None:
        """Raises Unavailable while the model is loading or the engine has stopped,
        ModelLoadError if loading failed."""
        if self._failure is not None:
            raise self._failure
        if not self._ready:
            raise Unavailable("Loading model", retry_after=1)
        if self.worker.stopped:
            raise Unavailable("The server is stopping.", retry_after=5)

    # ------------------------------------------------------------ requests

    def generate(self, request: GenerationRequest) -> Generation | Arrival:
        """Accept the request, or raise what is wrong with it or with us."""
        name, adapter = self._resolve(request.model)
        if request.timeout is None:
            request = replace(request, timeout=self.config.request_timeout)
        generation = self._start(name, adapter, request)
        if generation is not None:
            return generation
        if self.names.find(name) is not None:
            # Known to be broken without a download: told before the stream begins.
            try:
                self.residence.inspect(name)
            except ModelLoadError as error:
                raise refused(error) from error
        return Arrival(self, name, adapter, request)

    def bring(self, arrival: Arrival) -> Generation | None:
        """Have an arrival's model loaded and its request queued there; None if it gave up.

        Raises:
            RequestError: The model cannot be loaded, or the request is refused there.
        """
        try:
            with self.residence.bringing(arrival) as there:
                if not there:
                    return None
                return self._start(arrival.name, arrival.adapter, arrival.request())
        except ModelLoadError as error:
            # Not lost: whoever asks for another model has that one loaded again.
            raise refused(error) from error

    def _start(
        self, name: str, adapter: str | None, request: GenerationRequest
    ) -> Generation | None:
        """Queue the request; None while its model is not in memory."""
        with self.residence.entering(name) as entry:
            if entry is None:
                return None
            llm = entry.generator
            own = None if request.adapter_scales is None else dict(request.adapter_scales)
            adapters = self.adapter_scales(entry, adapter, request.adapters, own)
            return llm.generate(request, adapters)

    def _observe(self, finished: Finished) -> None:
        self.observer.observe(finished)
        self.recent.add(finished)

    # ------------------------------------------------------------ listings

    def current_model(self) -> str:
        """The id of the model that a request without a name gets."""
        return self.residence.current()

    def cards(self) -> list[ModelCard]:
        """The command line's model, by its aliases too, the others in memory, the adapters,
        and what lies in the local cache."""
        entries = self.residence.entries()
        default = self.names.default
        names = [default, *sorted(entries.keys() - {default})]
        cards = [self._card(name, entries.get(name)) for name in names]
        cards[1:1] = [replace(cards[0], id=alias) for alias in self.config.alias]
        cards += [
            ModelCard(id=name, created=self._created, parent=default, root=str(path))
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
        """Raises ModelNotFound."""
        cards = {card.id: card for card in self.cards()}
        if name not in cards and self.names.is_default(name):  # its short name
            name = self.names.default
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
            context_length=entry.context_length if entry else None,
        )
