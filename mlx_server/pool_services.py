"""What the pool does beside generation: text, vectors, adapters, figures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_server import __version__, metrics
from mlx_server.core import AdapterScale, ChatPrompt, Prompt
from mlx_server.engine import device
from mlx_server.engine.encoders import EncoderInfo
from mlx_server.entry import Entry
from mlx_server.errors import (
    DeadlineExceeded,
    ModelLoadError,
    NotSupported,
    RequestError,
    ServerError,
    Unavailable,
)
from mlx_server.pool_slots import PoolSlots
from mlx_server.services import (
    AdapterInfo,
    EmbeddingRequest,
    Embeddings,
    LoadedAdapter,
    LoadedModel,
    ModelProps,
    RerankRequest,
    Runtime,
    Scores,
    ServerFigures,
    SystemPrompt,
    TokenPiece,
)


class _Caller:
    """Who waits for a model to embed with, `timeout` seconds at most; see `residence.Visitor`."""

    def __init__(self, name: str, gone: Callable[[], bool], timeout: float | None) -> None:
        self.name = name
        self.gone = gone
        self._deadline = None if timeout is None else time.monotonic() + timeout

    @property
    def left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        return self.gone() or self.left == 0.0


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
        if isinstance(info, EncoderInfo):
            trained, size, template = info.context_length, info.embedding_size, ""
        else:
            trained, size = info.trained_length, info.hidden_size
            template = tokenizer.template.source
        return ModelProps(
            name=entry.name,
            path=str(entry.path),
            alias=self.config.alias[0] if self.config.alias else entry.name,
            num_slots=0 if llm is None else llm.num_slots,
            context_length=info.context_length,
            trained_length=trained,
            chat_template=template,
            bos_token=_written(tokenizer, tokenizer.bos_token_id),
            eos_token=_written(tokenizer, tokenizer.eos_token_id),
            vocab_size=info.vocab_size,
            num_parameters=info.num_parameters,
            nbytes=info.nbytes,
            embedding_size=size,
            defaults={} if llm is None else llm.defaults.flags,
        )

    # ------------------------------------------------------------ vectors

    def embed(self, request: EmbeddingRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Have the model loaded if need be, and embed.

        Raises:
            NotSupported: The model has no embeddings.
            RequestError: It cannot be loaded, or the request is refused there.
        """
        with self._kept(request, cancelled) as (entry, adapters, left):
            return entry.embedder.embed(replace(request, timeout=left), cancelled, adapters)

    def rerank(self, request: RerankRequest, cancelled: Callable[[], bool]) -> Scores:
        """As `embed`; NotSupported with a model that cannot."""
        with self._kept(request, cancelled) as (entry, _, left):
            return entry.embedder.rerank(replace(request, timeout=left), cancelled)

    @contextmanager
    def _kept(
        self, request: EmbeddingRequest | RerankRequest, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Entry, tuple[AdapterScale, ...], float | None]]:
        """The request's model, not to be unloaded meanwhile, the adapters that apply, and the
        seconds that are left."""
        name, adapter = self._resolve(request.model)
        caller = _Caller(name, cancelled, request.timeout or self.config.request_timeout)
        with ExitStack() as stack:
            entry = stack.enter_context(self.residence.entering(name))
            if entry is None:
                entry = self._brought(caller, stack)
            adapters = () if entry.llm is None else self.adapter_scales(entry, adapter)
            yield entry, adapters, caller.left

    def _brought(self, caller: _Caller, stack: ExitStack) -> Entry:
        try:
            with self.residence.bringing(caller) as there:
                entry = stack.enter_context(self.residence.entering(caller.name))
        except ModelLoadError as error:
            raise refused(error) from error
        if there and entry is not None:
            return entry
        if caller.gone():
            raise Unavailable("The request was cancelled.")
        raise DeadlineExceeded("The request ran out of the time it was given.")

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

    def figures(self) -> ServerFigures:
        """What runs now, in numbers. The engine thread is not asked, so it is not held up."""
        try:
            self.check_ready()
            status = "ready"
        except ServerError as error:
            status = error.message
        return ServerFigures(
            version=__version__,
            uptime=time.monotonic() - self.began,
            status=status,
            device=device.name(self.config.device),
            models=tuple(self._loaded(entry) for entry in self.residence.entries().values()),
            engine=self.worker.stats(),
            outcomes=self.observer.outcomes(),
            rows=tuple(self.worker.rows()),
        )

    def _loaded(self, entry: Entry) -> LoadedModel:
        numbered = {_folder(adapter.path): adapter for adapter in self.adapters()}
        return LoadedModel(
            id=entry.name,
            kind="embedding" if entry.llm is None else "text",
            num_parameters=entry.info.num_parameters,
            nbytes=entry.info.nbytes,
            context_length=entry.context_length,
            num_slots=0 if entry.llm is None else entry.llm.num_slots,
            adapters=tuple(_adapter(path, numbered.get(path)) for path in list(entry.adapters)),
        )

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


def _folder(path: str) -> Path:
    """As `Residence.adapter` knows it."""
    return Path(os.path.expanduser(path)).resolve()


def _adapter(path: Path, numbered: AdapterInfo | None) -> LoadedAdapter:
    if numbered is None:
        return LoadedAdapter(str(path))
    return LoadedAdapter(str(path), numbered.id, numbered.name, numbered.scale)


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


def refused(error: ModelLoadError) -> RequestError:
    """What a request is told whose model cannot be loaded."""
    return RequestError(error.message, param="model")
