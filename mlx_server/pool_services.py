"""What the pool does beside generation: text, vectors, adapters, figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_server import metrics
from mlx_server.core import AdapterScale, ChatPrompt, Prompt
from mlx_server.engine.encoders import EncoderInfo
from mlx_server.entry import Entry
from mlx_server.errors import ModelLoadError, NotSupported, RequestError, Unavailable
from mlx_server.pool_slots import PoolSlots
from mlx_server.services import (
    AdapterInfo,
    EmbeddingRequest,
    Embeddings,
    ModelProps,
    RerankRequest,
    Runtime,
    Scores,
    SystemPrompt,
    TokenPiece,
)


class PoolServices(PoolSlots):
    """The part of `pool.ModelPool` that is not about requests for text."""

    # ------------------------------------------------------------ text

    def encode(self, model: str | None, prompt: Prompt) -> list[int]:
        """The prompt's token ids, as a request would have them."""
        entry = self._entry(model)
        return entry.tokenizer.encode_prompt(prompt, context_length=entry.context_length)

    def pieces(
        self, model: str | None, parts: Sequence[str | int], *, add_special: bool, markup: bool
    ) -> list[TokenPiece]:
        """Texts and token ids as tokens."""
        entry = self._entry(model)
        entry.check_ids([part for part in parts if isinstance(part, int)], "content")
        return entry.tokenizer.pieces(parts, add_special=add_special, markup=markup)

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str:
        entry = self._entry(model)
        entry.check_ids(token_ids, "tokens")
        return entry.tokenizer.decode(token_ids)

    def render(self, model: str | None, prompt: ChatPrompt) -> str:
        """The conversation as the chat template writes it."""
        return self._entry(model).tokenizer.render(prompt)

    # ------------------------------------------------------------ the model

    def props(self) -> ModelProps:
        entry = self._entry()
        info, tokenizer, llm = entry.info, entry.tokenizer, entry.llm
        encoder = isinstance(info, EncoderInfo)
        return ModelProps(
            name=entry.name,
            path=str(entry.path),
            alias=self.config.alias[0] if self.config.alias else entry.name,
            num_slots=0 if llm is None else llm.num_slots,
            context_length=info.context_length,
            trained_length=info.context_length if encoder else info.trained_length,
            chat_template="" if encoder else tokenizer.template.source,
            bos_token=_written(tokenizer, tokenizer.bos_token_id),
            eos_token=_written(tokenizer, tokenizer.eos_token_id),
            vocab_size=info.vocab_size,
            num_parameters=info.num_parameters,
            nbytes=info.nbytes,
            embedding_size=info.embedding_size if encoder else info.hidden_size,
            defaults={} if llm is None else llm.defaults.flags,
        )

    # ------------------------------------------------------------ vectors

    def embed(self, request: EmbeddingRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Raises NotSupported where the model has none."""
        request = replace(request, timeout=request.timeout or self.config.request_timeout)
        with self._kept(request.model) as (entry, adapters):
            return entry.embedder.embed(request, cancelled, adapters)

    def rerank(self, request: RerankRequest, cancelled: Callable[[], bool]) -> Scores:
        """Raises NotSupported with a model that cannot."""
        request = replace(request, timeout=request.timeout or self.config.request_timeout)
        with self._kept(request.model) as (entry, _):
            return entry.embedder.rerank(request, cancelled)

    @contextmanager
    def _kept(self, model: str | None) -> Iterator[tuple[Entry, tuple[AdapterScale, ...]]]:
        """The model in memory that a name means, not to be unloaded meanwhile, and the adapters
        that apply. Raises Unavailable, ModelNotFound."""
        name, adapter = self._resolve(model)
        with self.residence.entering(name) as entry:
            if entry is None:
                raise Unavailable(
                    f"The model {name!r} is not in memory; load it with a request for text.",
                    retry_after=5,
                )
            yield entry, () if entry.llm is None else self.adapter_scales(entry, adapter)

    def adapter_scales(
        self,
        entry: Entry,
        named: str | None,
        requested: str | None = None,
        own: Mapping[int, float] | None = None,
    ) -> tuple[AdapterScale, ...]:
        """The sorted (adapter, scale) pairs of a request's rows.

        Args:
            named: The adapter that its `model` names.
            requested: The one that its `adapters` names.
            own: Its own scales of the numbered ones.
        """
        scales: dict[str, float] = {}
        for folder, scale in self.names.applied(entry.name, named, requested, own):
            try:
                name = self.residence.adapter(entry, folder)
            except ModelLoadError as error:
                raise RequestError(error.message, param="adapters") from error
            scales[name] = scales.get(name, 0.0) + scale
        return tuple(sorted(scales.items()))

    # ------------------------------------------------------------ adapters

    def adapters(self) -> list[AdapterInfo]:
        pairs = zip(self.names.numbered, self.names.scales, strict=True)
        return [
            AdapterInfo(i, str(adapter.path), scale, adapter.name)
            for i, (adapter, scale) in enumerate(pairs)
        ]

    def set_adapter_scales(self, scales: Mapping[int, float]) -> None:
        """For requests that come from now on; adapters that are not named get 0."""
        self.names.set_scales(scales)

    # ------------------------------------------------------------ figures

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
        return metrics.render(self.worker.stats(), self.observer)

    def runtime(self) -> Runtime:
        return self.recent.runtime()

    def reset(self) -> None:
        """Begin with the figures of `runtime()` anew."""
        self.recent.clear()

    def trace(self) -> list[dict[str, Any]]:
        """Chrome trace events. Raises NotSupported without --enable-tracing."""
        if not (self.config.enable_tracing or self.config.trace_file):
            raise NotSupported("This server keeps no trace; start it with --enable-tracing.")
        return self.worker.trace()


def _written(tokenizer: Any, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token_text(token_id)


def read_system_prompt(file: str | None) -> SystemPrompt:
    """A text, or llama.cpp's JSON with `system_prompt`. Raises ModelLoadError."""
    if file is None:
        return SystemPrompt()
    try:
        text = Path(os.path.expanduser(file)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"--system-prompt-file {file}: {reason}") from None
    try:
        value = json.loads(text)
    except ValueError:
        return SystemPrompt(prompt=text)
    if isinstance(value, dict):
        value = value.get("system_prompt", value)
    names = ("prompt", "anti_prompt", "assistant_name")
    if not isinstance(value, dict) or not all(isinstance(value.get(n, ""), str) for n in names):
        raise ModelLoadError(
            f"--system-prompt-file {file}: expected a text, or a JSON object with `system_prompt`: "
            "an object with `prompt`, `anti_prompt` and `assistant_name`."
        )
    return SystemPrompt(**{name: value.get(name, "") for name in names})
