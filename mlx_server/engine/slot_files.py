"""Slots as files: what a slot has computed is saved, restored and erased. Engine thread only.

What a slot's last sequence left lies in the prefix cache, so saving writes that entry,
and restoring makes one: a request that begins with its tokens goes on from there, in
whatever slot it runs.

    file    safetensors: `tokens` int32 [n], the seat's arrays under "state."
            metadata     version, model, cache layout, adapters
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import mlx.core as mx
import numpy as np

from mlx_server.cache.base import Seat
from mlx_server.cache.prefix import Adapters
from mlx_server.engine.limits import check_slot
from mlx_server.errors import ModelLoadError, RequestError, ServerError, Unavailable
from mlx_server.models.fingerprint import adapter_fingerprint, fingerprint
from mlx_server.models.model_files import check_safetensors

if TYPE_CHECKING:
    from mlx_server.engine.engine import Engine
    from mlx_server.engine.slots import Slot

VERSION = "1"

STATE = "state."
"""What the names of the seat's arrays begin with in a file."""

ROUNDING = 63
"""Tokens by which a cache may round a seat's room up."""


@dataclass(frozen=True, slots=True)
class Saved:
    """
    Args:
        num_tokens: Whose state the file holds.
        num_bytes: Of the file.
    """

    num_tokens: int
    num_bytes: int


# ---------------------------------------------------------------- the three commands


def save(engine: Engine, slot_id: int, path: Path) -> Saved:
    """Write what a slot has computed, as far as it has, to the file `path`.

    The file is there whole or not at all: it is written beside and renamed.

    Raises:
        RequestError: There is no such slot, or nothing is known of it.
        ServerError: The file cannot be written.
    """
    slot = _slot(engine, slot_id)
    seat, tokens, adapters = _state_of(engine, slot, slot_id)
    try:
        arrays, layout = engine.model.cache.export(seat, len(tokens))
    except ValueError as error:
        raise ServerError(f"This model's state cannot be written to a file: {error}.") from error
    content = {STATE + name: array for name, array in arrays.items()}
    content["tokens"] = mx.array(tokens)
    metadata = {
        "format": "mlx_server.slot",
        "version": VERSION,
        "model": fingerprint(engine.model.module),
        "layout": json.dumps(layout),
        "adapters": json.dumps(_described(engine, adapters)),
    }
    return Saved(len(tokens), _write(path, content, metadata))


def restore(engine: Engine, slot_id: int, path: Path) -> Saved:
    """Read a saved slot into the prefix cache and into the slot's memory.

    Raises:
        RequestError: There is no such slot or file, the file is none of this model's or is
            damaged, or its state does not fit the memory for keys and values.
        Unavailable: The slot is processing, or running requests hold that memory.
    """
    slot = _idle(engine, slot_id, "restored")
    arrays, metadata = _read(path)
    tokens, adapters, layout = _check(engine, path, arrays, metadata)
    state = {
        name.removeprefix(STATE): array for name, array in arrays.items() if name.startswith(STATE)
    }
    _make_room(engine, path, sum(array.nbytes for array in state.values()), len(tokens))
    try:
        # MLX reads lazily: here it shows whether all of it is there.
        mx.eval(list(state.values()))
        seat = engine.model.cache.adopt(state, layout, len(tokens))
    except (ValueError, RuntimeError) as error:
        raise _unfit(path, f"{error}") from error
    engine.prefixes.store(tokens, adapters, seat)
    slot.remember(tokens, adapters)
    return Saved(len(tokens), path.stat().st_size)


def erase(engine: Engine, slot_id: int) -> int:
    """Forget what a slot has computed, in the prefix cache as well; returns its tokens.

    Raises:
        RequestError: There is no such slot.
        Unavailable: The slot is processing.
    """
    slot = _idle(engine, slot_id, "erased")
    tokens, adapters = slot.tokens, slot.adapters
    match = engine.prefixes.holding(tokens, adapters)
    engine.prefixes.drop_along(tokens, adapters)
    slot.forget()
    return match.length if match is not None else 0


# ---------------------------------------------------------------- slots


def _slot(engine: Engine, slot_id: int) -> Slot:
    check_slot(slot_id, len(engine.slots))
    return engine.slots[slot_id]


def _idle(engine: Engine, slot_id: int, done: str) -> Slot:
    slot = _slot(engine, slot_id)
    if slot.sequence is not None:
        raise Unavailable(
            f"Slot {slot_id} is processing a request; it can be {done} when that is done.",
            retry_after=1,
        )
    return slot


def _state_of(engine: Engine, slot: Slot, slot_id: int) -> tuple[Seat, np.ndarray, Adapters]:
    """The seat that has the most of a slot's tokens, those tokens, and their adapters."""
    cache, sequence = engine.model.cache, slot.sequence
    tokens, adapters = slot.tokens, slot.adapters
    if sequence is not None and sequence.seat is not None:
        # What is on its way counts: MLX computes it before the copy is written.
        known = min(sequence.seat.length, len(tokens))
        if known and cache.reusable(sequence.seat, known) == known:
            return sequence.seat, tokens[:known].copy(), adapters
    match = engine.prefixes.holding(tokens, adapters)
    if match is None:
        raise RequestError(
            f"Slot {slot_id} holds nothing that could be saved: no request has run in it, or what "
            "it left has been dropped to make room.",
            param="id_slot",
        )
    engine.prefixes.touch(match.prefix)
    return match.prefix.seat, tokens[: match.length].copy(), adapters


def _described(engine: Engine, adapters: Adapters) -> list[list[Any]]:
    """Each adapter's name, scale and fingerprint."""
    module = engine.model.module
    return [[name, scale, adapter_fingerprint(module, name)] for name, scale in adapters]


# ---------------------------------------------------------------- files


def _write(path: Path, content: Mapping[str, mx.array], metadata: dict[str, str]) -> int:
    """Returns the file's bytes."""
    beside = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".slot-", suffix=".part", delete=False
        ) as file:
            beside = Path(file.name)
            mx.save_safetensors(cast(BinaryIO, file), dict(content), metadata)
        size = beside.stat().st_size
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"{path.name} cannot be written: {reason}.") from error
    return size


def _read(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Lazily, the file's header apart."""
    if not path.is_file():
        raise RequestError(f"There is no saved slot {path.name}.", param="filename")
    try:
        check_safetensors(path)
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
    except (ModelLoadError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"{path.name} is no saved slot, or only a part of one; save it again.",
            param="filename",
        ) from error
    return arrays, metadata


def _unfit(path: Path, reason: str) -> RequestError:
    return RequestError(f"{path.name} cannot be restored: {reason}.", param="filename")


def _check(
    engine: Engine, path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]
) -> tuple[np.ndarray, Adapters, dict[str, str]]:
    """The tokens int32 [n], adapters and cache layout of a file that is this model's."""
    if metadata.get("format") != "mlx_server.slot":
        raise _unfit(path, "it is no saved slot")
    if metadata.get("version") != VERSION:
        raise _unfit(path, f"its version is {metadata.get('version')}, this server reads {VERSION}")
    if metadata.get("model") != fingerprint(engine.model.module):
        raise _unfit(path, "it is of another model, or of this one with other weights or settings")
    tokens = arrays.get("tokens")
    if tokens is None or tokens.dtype != mx.int32 or tokens.ndim != 1 or not tokens.size:
        raise _unfit(path, "it names no tokens")
    ids = np.array(tokens)
    if ids.min() < 0 or ids.max() >= engine.model.vocab_size:
        raise _unfit(path, "it has tokens that the model does not have")
    if len(ids) > engine.max_tokens:
        raise _unfit(path, f"it holds {len(ids)} tokens, a sequence here {engine.max_tokens}")
    try:
        saved = json.loads(metadata["adapters"])
        adapters = tuple((str(name), float(scale)) for name, scale, _ in saved)
    except (KeyError, ValueError, TypeError) as error:
        raise _unfit(path, "it does not say under which adapters it was computed") from error
    try:
        layout = {key: str(value) for key, value in json.loads(metadata["layout"]).items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise _unfit(path, "it does not say how its state is laid out") from error
    for (name, _, known), (_, _, here) in zip(saved, _described(engine, adapters), strict=True):
        if here is None:
            raise _unfit(
                path,
                f"it was computed under the adapter {name}, which is not loaded; name it with "
                "--lora or send a request under it first",
            )
        if here != known:
            raise _unfit(path, f"the adapter {name} has changed since it was saved")
    return ids, adapters, layout


def _make_room(engine: Engine, path: Path, num_bytes: int, num_tokens: int) -> None:
    """Drop entries of the prefix cache until a seat of so many bytes fits."""
    cache, prefixes = engine.model.cache, engine.prefixes
    needed = num_bytes + num_bytes * ROUNDING // num_tokens
    if not prefixes.max_entries or needed > min(prefixes.max_bytes, cache.max_bytes):
        raise _unfit(
            path,
            f"it needs {needed / 2**20:.3g} MiB of the memory for what ended requests have "
            "computed (--prompt-cache-bytes, --prompt-cache-size, --max-kv-bytes)",
        )
    while cache.nbytes + needed > cache.max_bytes:
        if not prefixes.evict():
            raise Unavailable(
                f"Running requests hold the memory that {path.name} needs; try again later.",
                retry_after=1,
            )
