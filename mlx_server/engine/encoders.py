"""Encoders on the engine thread: they have no step to take, so they only stand among the engines
and are asked for chunks (`embedding.py` says how)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_server.engine.embedding import Job, chunk_budget, engine_of
from mlx_server.engine.engine import Outputs
from mlx_server.engine.recorder import Counters
from mlx_server.errors import NotSupported, Unavailable
from mlx_server.exchange import EngineRequest, SlotState
from mlx_server.models import encoder
from mlx_server.models.encoder import Encoder, EncoderRow
from mlx_server.progress import UNTOLD, Progress
from mlx_server.services import Pooling

_HELD = ("running", "waiting", "kv_tokens", "kv_bytes", "kv_budget_bytes")
"""Those of `reports.figures` that the metrics in llama.cpp's document are made of."""


class EncoderEngine:
    """Stands for an encoder among the engines: it never has a step to take.

    Args:
        chunk_size: Tokens of a batch beside other models' streams, padding included; a
            longer input runs alone.
    """

    busy = False
    num_free = 0
    num_running = 0
    num_waiting = 0
    num_steps = 0
    trace = None

    def __init__(self, model: Encoder, chunk_size: int) -> None:
        self.model = model
        self.chunk_size = chunk_size

    def add(self, request: EngineRequest) -> None:
        """Raises NotSupported: an encoder generates nothing."""
        raise NotSupported("This model is an embedding model; it generates no text.")

    def abort(self, request_id: str, index: int | None = None) -> None:
        """There is never anything to drop."""
        pass

    def holds(self, request_id: str) -> bool:
        """It never holds a request."""
        return False

    def drop_all(self) -> list[str]:
        """There is never anything to give up."""
        return []

    def stats(self) -> dict[str, float]:
        """Those of an engine that generates nothing: no metric is missing."""
        return self.counts() | dict.fromkeys(_HELD, 0)

    def counts(self) -> dict[str, float]:
        """Counters that stay at 0, so that sums over engines go through."""
        return asdict(Counters())

    def slot_states(self) -> list[SlotState]:
        """It has no slots."""
        return []

    def step(self) -> Outputs:
        """A step without rows."""
        return {}

    def launch(self) -> None:
        """There is never a pass on its way."""
        pass


class EncoderJob(Job):
    """Inputs through an encoder, those of similar length together.

    Args:
        pooling: None: the scores of pairs are wanted, not vectors.
    """

    def __init__(self, engine: str, inputs: Sequence[EncoderRow], pooling: Pooling | None) -> None:
        super().__init__(engine, len(inputs))
        self._inputs = inputs
        self._pooling = pooling
        # The longest last, where they are taken from.
        self._left = sorted(range(len(inputs)), key=lambda i: len(inputs[i].token_ids))

    def advance(self, engines: Mapping[str, Any]) -> bool:
        engine = engine_of(engines, self.engine)
        if not isinstance(engine, EncoderEngine):
            raise Unavailable("The model was loaded anew; try again.", retry_after=1)
        taken = self._batch(engine.model, chunk_budget(engine.chunk_size, engines))
        rows = [self._inputs[i] for i in taken]
        if self._pooling is None:
            found = engine.model.score(rows)
        else:
            found = engine.model.pool(rows, self._pooling)
        for index, result in zip(taken, np.array(found), strict=True):
            self.results[index] = result
        del self._left[-len(taken) :]
        return True

    def _batch(self, model: Encoder, budget: int) -> list[int]:
        """The next inputs that share a batch: one at least."""
        longest = len(self._inputs[self._left[-1]].token_ids)
        taken: list[int] = []
        for index in reversed(self._left):
            size = len(self._inputs[index].token_ids)
            if taken and ((len(taken) + 1) * longest > budget or 2 * size < longest):
                break
            if size < longest and not model.pads:
                break
            taken.append(index)
        return taken[::-1]


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What the other threads may know of a loaded encoder: no arrays.

    Attributes:
        pooling: How its folder says it is to be pooled; None: it does not.
        can_rank: Whether it is a cross-encoder with one score.
    """

    vocab_size: int
    context_length: int
    embedding_size: int
    num_parameters: int
    nbytes: int
    pooling: Pooling | None
    can_rank: bool


def load_encoder(
    engines: dict[str, Any],
    path: Path,
    *,
    name: str,
    chunk_size: int,
    progress: Progress = UNTOLD,
) -> EncoderInfo:
    """Load the encoder in `path` and put an engine for it into `engines`; on the engine thread.

    Args:
        chunk_size: --prefill-chunk-size.
        progress: Is told how far it is.

    Raises:
        ModelLoadError: One line that names the mend.
    """
    loaded = encoder.load(path, name=name, progress=progress)
    model = loaded.model
    engines[name] = EncoderEngine(model, chunk_size)
    return EncoderInfo(
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        embedding_size=model.embedding_size,
        num_parameters=model.num_parameters,
        nbytes=model.nbytes,
        pooling=loaded.pooling,
        can_rank=model.can_rank,
    )
