"""Embedder: texts in, vectors or scores out, of one loaded model.

    request ── encode, check ──> Job ── a chunk at a time ──> worker
    worker ── numbers ──> pooled, cut, normalised ──> Embeddings

Everything here runs on the thread of whoever asks (`engine/embedding.py` and
`engine/encoders.py` have the other side).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from mlx_server.core import AdapterScale, MixedPrompt, Prompt, TokenPrompt
from mlx_server.engine.embedding import DecoderJob, Job
from mlx_server.engine.encoders import EncoderInfo, EncoderJob
from mlx_server.engine.worker import Worker
from mlx_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    NotSupported,
    RequestError,
    ServerError,
    Unavailable,
)
from mlx_server.models.encoder import EncoderRow
from mlx_server.services import (
    EmbeddingRequest,
    Embeddings,
    Pooling,
    RerankRequest,
    Scores,
)
from mlx_server.text.tokenizer import Tokenizer, check_ids

PATIENCE = 30.0
"""Seconds that a request waits for room for keys and values."""

PAUSE = 0.1
"""Seconds between two looks for it."""


@dataclass(frozen=True)
class Embedder:
    """
    Args:
        name: The engine's key in the worker.
        vocab_size: Token ids are below it.
        context_length: Tokens that fit an input.
        pooling: What a request gets that names none.
        kv_tokens: The longest input that the memory for keys and values holds; None with an
            encoder, which has none.
        can_rank: Whether it is a cross-encoder.
    """

    name: str
    worker: Worker
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    pooling: Pooling = "mean"
    kv_tokens: int | None = None
    can_rank: bool = False
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of_encoder(
        cls,
        name: str,
        worker: Worker,
        tokenizer: Tokenizer,
        info: EncoderInfo,
        pooling: Pooling | None = None,
    ) -> Embedder:
        """
        Args:
            info: What `load_encoder` said of it.
            pooling: The command line's; None: the model's own, else mean.
        """
        return cls(
            name,
            worker,
            tokenizer,
            info.vocab_size,
            info.context_length,
            pooling or info.pooling or "mean",
            can_rank=info.can_rank,
        )

    @property
    def is_encoder(self) -> bool:
        return self.kv_tokens is None

    def embed(
        self,
        request: EmbeddingRequest,
        cancelled: Callable[[], bool],
        adapters: tuple[AdapterScale, ...] = (),
    ) -> Embeddings:
        """The inputs' vectors, in their order.

        Args:
            cancelled: Asked between two chunks; when it says so, the work ends.
            adapters: Sorted (adapter, scale) pairs that a model that generates runs under.

        Raises:
            RequestError: An input is empty, too long or not in the vocabulary, or
                `dimensions` is more than there are.
            NotSupported: The architecture gives no embeddings.
            DeadlineExceeded: The request's timeout passed.
            Unavailable: There was no room for keys and values, the model is gone, or the
                client is.
        """
        many = len(request.inputs) > 1
        inputs = [
            self._encode(prompt, f"{request.param}[{i}]" if many else request.param)
            for i, prompt in enumerate(request.inputs)
        ]
        pooling = request.pooling or self.pooling
        job: Job
        if self.is_encoder:
            job = EncoderJob(self.name, [EncoderRow(tuple(ids)) for ids in inputs], pooling)
        else:
            job = DecoderJob(self.name, inputs, pooling, adapters)
        vectors = np.stack(self._run(job, cancelled, request.timeout))
        vectors = self._cut(vectors, request.dimensions)
        if request.normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return Embeddings(tuple(map(tuple, vectors.tolist())), sum(map(len, inputs)), self.name)

    def rerank(self, request: RerankRequest, cancelled: Callable[[], bool]) -> Scores:
        """The logits that a cross-encoder gives each document for the query.

        Raises:
            NotSupported: The model is no cross-encoder.
            RequestError: A document and the query do not fit the context together.
        """
        if not self.can_rank:
            raise NotSupported(
                f"{self.name} cannot rank documents: that takes a cross-encoder with one label, "
                "such as a …ForSequenceClassification of BERT, XLM-R or ModernBERT."
            )
        rows = []
        for i, document in enumerate(request.documents):
            ids, types = self.tokenizer.encode_pair(request.query, document)
            self._check_length(ids, f"documents[{i}]")
            rows.append(EncoderRow(tuple(ids), tuple(types)))
        found = self._run(EncoderJob(self.name, rows, None), cancelled, request.timeout)
        num_tokens = sum(len(row.token_ids) for row in rows)
        return Scores(tuple(map(float, found)), num_tokens, self.name)

    # ------------------------------------------------------------ inputs

    def _encode(self, prompt: Prompt, param: str) -> list[int]:
        ids = self.tokenizer.encode_prompt(prompt)
        if isinstance(prompt, TokenPrompt | MixedPrompt):
            check_ids(ids, self.vocab_size, param)
        if not ids:
            raise RequestError(f"`{param}` is empty; give a text or token ids.", param=param)
        self._check_length(ids, param)
        return ids

    def _check_length(self, ids: Sequence[int], param: str) -> None:
        size = len(ids)
        if size > self.context_length:
            error = ContextLengthExceeded(size, self.context_length, param=param)
            error.message = (
                f"`{param}` has {size} tokens, but this model takes {self.context_length} at "
                "most. Shorten it, or cut it into pieces."
            )
            raise error
        if self.kv_tokens is not None and size > self.kv_tokens:
            raise RequestError(
                f"`{param}` has {size} tokens, but the memory for keys and values holds "
                f"{self.kv_tokens}. Shorten it, or start the server with a larger "
                "--max-kv-bytes.",
                param=param,
            )

    # ------------------------------------------------------------ the work

    def _run(
        self, job: Job, cancelled: Callable[[], bool], timeout: float | None
    ) -> list[np.ndarray]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waited = 0.0
        try:
            while not job.done:
                if cancelled():
                    raise Unavailable("The request was cancelled.")
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineExceeded(f"The request took longer than {timeout:g} s.")
                # One chunk in the engine's inbox, however many ask: streams come between.
                with self._turn:
                    moved = self.worker.call(job.advance)
                if moved:
                    waited = 0.0
                    continue
                if waited >= PATIENCE:
                    raise Unavailable(
                        "Running requests hold all of the memory for keys and values; try again "
                        "soon.",
                        retry_after=1,
                    )
                time.sleep(PAUSE)
                waited += PAUSE
        finally:
            with suppress(Unavailable):  # stopping: the engines are dropped
                self.worker.call(job.close)
        results = [result for result in job.results if result is not None]
        if not all(np.isfinite(result).all() for result in results):
            raise ServerError("The model gave numbers that are not finite for an input.")
        return results

    def _cut(self, vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
        """The first `dimensions` numbers of vectors [B, size]."""
        size = vectors.shape[1]
        if dimensions is None:
            return vectors
        if not 1 <= dimensions <= size:
            raise RequestError(
                f"`dimensions` must be between 1 and {size}, the size of this model's vectors, "
                f"but got {dimensions}.",
                param="dimensions",
            )
        return vectors[:, :dimensions]
