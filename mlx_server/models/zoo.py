"""Every other architecture of mlx-lm, behind the engine's contract.

mlx-lm's modules take [batch, tokens] and a list of caches. A prompt chunk is
one call with its sequence's own caches: recurrent layers take no mask, so rows
of different lengths must not be padded into one prefill. Rows that decode run
together where their caches have batch forms, one call per group of similar
lengths (`cache/zoo.py`), and one by one where they have none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import ArraysCache, BatchKVCache, KVCache, make_prompt_cache

from mlx_server.cache.storage import Quantization
from mlx_server.cache.zoo import ZooCache, ZooSeat
from mlx_server.cache.zoo_quantized import RowQuantizedKVCache, quantised
from mlx_server.cache.zoo_state import leaves, reach, state_arrays
from mlx_server.core import AdapterScale
from mlx_server.errors import NotSupported
from mlx_server.models.base import Row, ServedModel
from mlx_server.models.parameters import parameters
from mlx_server.models.zoo_cost import cost_function, quantised_cost

if TYPE_CHECKING:
    from mlx_server.models.lora import AdapterBank

log = logging.getLogger(__name__)

PROBE_TOKENS = 2
"""Length of the probe's prompt."""

PROBE_ROWS = 11
"""Rows of the probe's batch: as many as no model has heads, so that a mask that
is broadcast over the wrong axis (Gemma 2's) does not pass for right."""

TRUNKS = ("language_model", "model", "backbone", "transformer")
"""What mlx-lm's modules call the part that they consist of but for the output head."""

SPLIT_FROM = 64
"""Positions without logits that are worth a call of their own."""


class ZooModel(ServedModel):
    """An mlx-lm module behind the engine's contract.

    Args:
        module: With its weights loaded; `module(tokens [B, T], cache=…)` gives
            logits [B, T, V].
        config: Its config.json.
        context_length: Tokens that fit.
        bank: Its adapters; None serves the bare weights.
        quantization: Of the keys and values of layers that see all tokens; windows and
            recurrent states stay as they are.

    Raises:
        ValueError: No layer's keys and values can be quantised so.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        context_length: int,
        bank: AdapterBank | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.module = module
        self.bank = bank
        self.context_length = context_length
        self.model_type = str(config.get("model_type"))
        self.nbytes = sum(value.nbytes for _, value in parameters(module))
        # Shapes and types are known before anything is evaluated, so a lazy pass
        # tells what a cache will cost and whether the batch forms work.
        caches = make_prompt_cache(module)
        logits = self._probe(caches)
        self.vocab_size = logits.shape[-1]
        self.dtype = logits.dtype
        found = leaves(caches)
        batchable = self._batchable(caches)
        cost = cost_function(found, PROBE_TOKENS)
        if quantization is not None:
            quantization = self._fitted(found, quantization)
            caches = self._quantised_probe(quantization)
            batchable = batchable and self._batchable(caches)
            cost = quantised_cost(found, leaves(caches), PROBE_TOKENS, quantization.start)
        self.cache: ZooCache = ZooCache(
            lambda: make_prompt_cache(module),
            cost,
            batchable=batchable,
            padded=not all(isinstance(leaf, ArraysCache) for leaf in found),
            can_truncate=all(reach(leaf) >= context_length for leaf in found),
            reach=min(map(reach, found)),
            quantization=quantization,
        )

    # ------------------------------------------------------------ what the caches can do

    def _probe(self, caches: list[Any]) -> mx.array:
        return self._call(mx.zeros((1, PROBE_TOKENS), mx.int32), caches, [()])

    def _fitted(self, plain: Sequence[Any], quantization: Quantization) -> Quantization:
        """The quantisation for heads of these sizes; `plain` are leaves that a pass has filled."""
        kept = [leaf for leaf in plain if isinstance(leaf, KVCache)]
        if not kept:
            raise ValueError(
                f"--kv-bits: {self.model_type} has no layer whose keys and values are quantised "
                "(windows and recurrent states are not)"
            )
        return quantization.fitted({a.shape[-1] for leaf in kept for a in (leaf.keys, leaf.values)})

    def _quantised_probe(self, quantization: Quantization) -> list[Any]:
        """Caches that a pass with quantised keys and values has filled."""
        caches = quantised(make_prompt_cache(self.module), quantization)
        converted = [isinstance(leaf, RowQuantizedKVCache) for leaf in leaves(caches)]
        try:
            self._probe(caches)
        except Exception as error:
            raise ValueError(
                f"--kv-bits: {self.model_type} does not attend to quantised keys and values "
                f"({error})"
            ) from error
        rest = len(converted) - sum(converted)
        if rest:
            log.info(
                "%s: keys and values of %d layers are quantised; %d windows, recurrent states "
                "or others stay as they are",
                self.model_type,
                sum(converted),
                rest,
            )
        return caches

    def _batchable(self, caches: list[Any]) -> bool:
        """Whether rows can decode in one call.

        Some modules compute with a cache's offset as if it were one number, or
        shape the mask for one row, although the cache has a batch form: that
        shows when the pass is built.
        """
        if not all(_has_batch_form(leaf) for leaf in leaves(caches)):
            return False
        try:
            merged = [cache.merge([cache] * PROBE_ROWS) for cache in caches]
            tokens = mx.zeros((PROBE_ROWS, 1), mx.int32)
            logits = self._call(tokens, merged, [()] * PROBE_ROWS)
        except Exception as error:
            log.info("%s decodes row by row, its module takes no batch: %r", self.model_type, error)
            return False
        return logits.shape[:2] == (PROBE_ROWS, 1)

    # ------------------------------------------------------------ one step

    def forward(self, tokens: mx.array, rows: Sequence[Row]) -> tuple[mx.array, list[mx.array]]:
        starts = np.cumsum([0] + [row.num_tokens for row in rows]).tolist()
        # A prompt of one token has no state to decode from: it is a chunk.
        decoding = {
            _seat(row): i for i, row in enumerate(rows) if row.num_tokens == 1 and row.seat.length
        }
        pieces: list[mx.array] = []
        places: list[int] = []
        pending: list[mx.array] = []
        for group in self.cache.arrange(list(decoding)) if decoding else ():
            members = [decoding[seat] for seat in group.seats]
            inputs = _take(tokens, [starts[i] for i in members])
            adapters = [rows[i].adapters for i in members]
            logits = self._call(inputs[:, None], group.caches, adapters)[:, -1]
            wanted = [at for at, i in enumerate(members) if rows[i].num_logits]
            pieces.append(_take(logits, wanted))
            places += [members[at] for at in wanted]
            pending += _side_arrays(group.caches) if wanted else [_completed(group.caches)]
        for i, row in enumerate(rows):
            if row.seat not in decoding:
                logits, completed = self._chunk(tokens[starts[i] : starts[i + 1]], row)
                pieces.append(logits)
                places += [i] * row.num_logits
                pending.append(completed)
        for row in rows:
            row.seat.length += row.num_tokens
        return self._in_row_order(pieces, places), pending

    def _chunk(self, tokens: mx.array, row: Row) -> tuple[mx.array, mx.array]:
        """A row's tokens [T] → its last logits [num_logits, V], and what completes the pass.

        The modules project all positions to the vocabulary. MLX computes only
        what is asked for, so where no logits are wanted none are computed, and
        a long chunk that wants few is two calls.
        """
        caches = self.cache.alone(_seat(row)).caches
        silent = row.num_tokens - row.num_logits
        if silent >= SPLIT_FROM:
            logits = self._call(tokens[None, :silent], caches, [row.adapters])
            tokens = tokens[silent:]
        if len(tokens):
            logits = self._call(tokens[None], caches, [row.adapters])
        return logits[0, logits.shape[1] - row.num_logits :], _completed(caches)

    def _call(
        self, tokens: mx.array, caches: list[Any], adapters: Sequence[tuple[AdapterScale, ...]]
    ) -> mx.array:
        return self._apply(self.module, tokens, caches, adapters)

    def _apply(
        self,
        module: nn.Module,
        tokens: mx.array,
        caches: list[Any],
        adapters: Sequence[tuple[AdapterScale, ...]],
    ) -> mx.array:
        """What the module, or a part of it, makes of rows that run under these adapters."""
        if self.bank is not None:
            self.bank.select([(1, pairs) for pairs in adapters])
        return module(tokens, cache=caches)

    def hidden(self, tokens: mx.array, rows: Sequence[Row]) -> mx.array:
        states, at = [], 0
        for row in rows:
            # Alone, as a prompt chunk: recurrent layers take no padded rows.
            caches = self.cache.alone(_seat(row)).caches
            chunk = tokens[None, at : at + row.num_tokens]
            found = self._apply(self._trunk, chunk, caches, [row.adapters])[0]
            states.append(mx.depends(found, state_arrays(caches)))
            at += row.num_tokens
            row.seat.length += row.num_tokens
        return states[0] if len(states) == 1 else mx.concatenate(states)

    @cached_property
    def _trunk(self) -> nn.Module:
        """The module without its output head: tokens [B, T] → [B, T, hidden], normed.

        Raises:
            NotSupported: It has none that is called like the module itself.
        """
        module = self.module
        tokens = mx.zeros((1, PROBE_TOKENS), mx.int32)
        while (module := _inner(module)) is not None:
            try:
                found = self._apply(module, tokens, make_prompt_cache(self.module), [()])
            except Exception as error:
                log.info("%s shows no hidden states: %r", self.model_type, error)
                break
            # What contains the whole model, as those with vision do, gives logits.
            fits = isinstance(found, mx.array) and found.shape[:2] == (1, PROBE_TOKENS)
            if fits and (found.shape[-1] != self.vocab_size or _inner(module) is None):
                return module
        raise NotSupported(
            f"{self.model_type} gives no embeddings: its module in mlx-lm does not show its "
            "hidden states. Load another model."
        )

    def _in_row_order(self, pieces: list[mx.array], places: list[int]) -> mx.array:
        """Logits [M, V] by row, `places` naming the row of each line of the pieces."""
        pieces = [piece for piece in pieces if len(piece)]
        if not pieces:
            return mx.zeros((0, self.vocab_size), self.dtype)
        logits = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        return _take(logits, np.argsort(places, kind="stable").tolist())


def _inner(module: nn.Module) -> nn.Module | None:
    """The module's trunk, by its usual names."""
    found = (getattr(module, name, None) for name in TRUNKS)
    return next((inner for inner in found if isinstance(inner, nn.Module)), None)


def _seat(row: Row) -> ZooSeat:
    assert isinstance(row.seat, ZooSeat)
    return row.seat


def _take(array: mx.array, indices: Sequence[int]) -> mx.array:
    """Rows of an array: itself or a slice where they follow each other."""
    if not indices:
        return array[:0]
    indices = list(indices)
    first, size = indices[0], len(indices)
    if indices != list(range(first, first + size)):
        return array[mx.array(indices)]
    return array if size == len(array) else array[first : first + size]


# ---------------------------------------------------------------- about mlx-lm's caches


def _has_batch_form(leaf: Any) -> bool:
    # The batch form of RotatingKVCache has no tokens that it keeps for good.
    return hasattr(leaf, "merge") and not getattr(leaf, "keep", 0)


def _completed(caches: Sequence[Any]) -> mx.array:
    """A small array that is there when all of the caches' state is.

    The state itself is no output: whoever held it would turn the next in-place
    write into a copy.
    """
    return mx.depends(mx.zeros(1), state_arrays(caches))


def _side_arrays(caches: Sequence[Any]) -> list[mx.array]:
    """State that a step's logits need not depend on: convolution states, and the
    offsets of batches whose layers have no positions. Left lazy, they would
    chain one step to the next. None of them is written in place."""
    arrays: list[mx.array] = []
    for leaf in leaves(caches):
        if isinstance(leaf, ArraysCache):
            arrays += [state for state in leaf.cache if state is not None]
        elif isinstance(leaf, BatchKVCache):
            arrays.append(leaf.offset)
    return arrays
