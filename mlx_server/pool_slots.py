"""The slots as the dialects see them: what runs there, and its way to a file and back."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_server.config import Config
from mlx_server.engine import slot_files
from mlx_server.engine.engine import Engine
from mlx_server.engine.engines import Engines
from mlx_server.engine.limits import check_slot
from mlx_server.engine.worker import Worker
from mlx_server.entry import Entry
from mlx_server.errors import NotSupported, RequestError, Unavailable
from mlx_server.exchange import SlotState
from mlx_server.metrics import Observer
from mlx_server.names import Names
from mlx_server.recent import Recent
from mlx_server.residence import Residence
from mlx_server.services import (
    SlotFile,
    SlotInfo,
    SystemPrompt,
)

MAX_FILENAME = 255
"""Bytes of a saved slot's name, as file systems have it."""


class PoolBase(ABC):
    """What every part of `pool.ModelPool` has. Thread-safe."""

    config: Config
    worker: Worker
    names: Names
    residence: Residence
    observer: Observer
    recent: Recent
    system_prompt: SystemPrompt
    began: float
    """`time.monotonic()` when the server began."""

    @abstractmethod
    def check_ready(self) -> None:
        """Raises Unavailable while the model is loading, ModelLoadError if that failed."""

    @abstractmethod
    def current_model(self) -> str:
        """The id of the model that a request without a name gets."""

    def _entry(self, model: str | None = None) -> Entry:
        """The model in memory that a name means. Raises Unavailable, ModelNotFound."""
        name, _ = self._resolve(model)
        entry = self.residence.entries().get(name)
        if entry is None:
            raise Unavailable(f"The model {name!r} is not in memory.", retry_after=5)
        return entry

    def _resolve(self, model: str | None) -> tuple[str, str | None]:
        """(model, adapter) that a name means; see `Names.resolve`. Raises as `check_ready`."""
        self.check_ready()
        return self.names.resolve(model, self._paths(), self.current_model())

    def _paths(self) -> dict[str, Path]:
        return {name: entry.path for name, entry in self.residence.entries().items()}


class PoolSlots(PoolBase):
    """The slots of the model that answers."""

    def slots(self) -> list[SlotInfo]:
        entry = self._entry()
        name = entry.name

        def states(engines: Engines) -> list[SlotState]:
            return engines[name].slot_states() if name in engines else []

        return [_slot_info(entry, state) for state in self.worker.call(states)]

    def save_slot(self, slot: int, filename: str) -> SlotFile:
        """Write the slot's prefix below --slot-save-path. Raises RequestError, NotSupported."""
        return self._with_slot_file(slot, filename, slot_files.save)

    def restore_slot(self, slot: int, filename: str) -> SlotFile:
        """Raises RequestError: there is no such file, or it is another model's."""
        return self._with_slot_file(slot, filename, slot_files.restore)

    def _with_slot_file(self, slot: int, filename: str, act: Any) -> SlotFile:
        entry = self._slot_entry(slot)
        path = _slot_path(self.config.slot_save_path, filename)
        name, begun = entry.name, time.monotonic()
        done = self.worker.call(lambda engines: act(_engine(engines, name), slot, path))
        seconds = time.monotonic() - begun
        return SlotFile(slot, done.num_tokens, filename, done.num_bytes, seconds)

    def erase_slot(self, slot: int) -> SlotFile:
        name = self._slot_entry(slot).name
        erased = self.worker.call(lambda engines: slot_files.erase(_engine(engines, name), slot))
        return SlotFile(slot, erased)

    def _slot_entry(self, slot: int) -> Entry:
        entry = self._entry()
        check_slot(slot, entry.generator.num_slots)
        return entry


def _engine(engines: Mapping[str, Engine], name: str) -> Engine:
    """A model that was in memory when it was asked for. Raises Unavailable: it has gone since."""
    if name not in engines:
        raise Unavailable(f"The model {name!r} is not in memory.", retry_after=5)
    return engines[name]


def _continued(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """A reply's text, which begins with a blank where the prompt does not end with one."""
    detokenizer = tokenizer.detokenizer(prompt_ids)
    pieces = [detokenizer.feed(token_id) for token_id in token_ids]
    return "".join(pieces) + detokenizer.flush()


def _slot_info(entry: Entry, state: SlotState) -> SlotInfo:
    tokenizer = entry.tokenizer
    size = state.num_prompt_tokens
    return SlotInfo(
        id=state.id,
        context_length=entry.context_length,
        processing=state.processing,
        model=str(entry.path),
        settings=state.params,
        prompt=tokenizer.decode(state.token_ids[:size]),
        text=_continued(tokenizer, state.token_ids[:size], state.token_ids[size:]),
        num_prompt_tokens=size,
        num_decoded=state.num_decoded,
        num_left=state.num_left,
        finish_reason=state.finish_reason,
    )


def _slot_path(folder: str | None, filename: str) -> Path:
    """Where a slot is saved: a file of that name in the folder, and nowhere else.

    Raises:
        NotSupported: There is no folder. RequestError: It is no file's name.
    """
    if folder is None:
        raise NotSupported(
            "This server does not support slots action. Start it with `--slot-save-path`"
        )
    if len(filename.encode()) > MAX_FILENAME:
        raise RequestError(f"`filename` must have at most {MAX_FILENAME} bytes.", param="filename")
    if any(ord(c) < 32 or c in '/\\:*?"<>|' for c in filename) or not filename.strip(". "):
        raise RequestError("`filename` must be a file's name, without a path.", param="filename")
    root = Path(os.path.expanduser(folder)).resolve()
    path = root / filename
    # A link could lead out of the folder.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise RequestError(f"`filename` {filename!r} is no plain file.", param="filename")
    return path
