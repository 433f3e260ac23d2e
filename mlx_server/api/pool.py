"""What a dialect is handed: the pool of models, and a running request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mlx_server.config import Config
from mlx_server.core import ChatPrompt, GenerationRequest, ModelCard, Prompt
from mlx_server.deltas import Delta, Timings, Usage
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import (
    AdapterInfo,
    EmbeddingRequest,
    Embeddings,
    ModelProps,
    RerankRequest,
    Runtime,
    Scores,
    Served,
    ServerFigures,
    SlotFile,
    SlotInfo,
    SystemPrompt,
    TokenPiece,
)


class Generation(Protocol):
    """A running request: iterate for its deltas, `cancel()` from any thread.

    Attributes:
        model: The id of the model that answers.
        params: How its tokens are chosen, everything resolved; None until its model is loaded.
        served: The model that answers; None until it is loaded.
    """

    @property
    def model(self) -> str: ...

    @property
    def params(self) -> SamplingParams | None: ...

    @property
    def served(self) -> Served | None: ...

    @property
    def usage(self) -> Usage:
        """What it has used so far, each prompt counted once. Asked by whoever iterates."""
        ...

    @property
    def timings(self) -> tuple[Timings, ...]:
        """Of each of its replies so far. Asked by whoever iterates."""
        ...

    def __iter__(self) -> Iterator[Delta]: ...

    def cancel(self) -> None: ...


@runtime_checkable
class Listenable(Protocol):
    """A generation that need not be waited for: it gives a Lull and tells of news."""

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called when there is more, from any thread; None: wait again."""
        ...

    def patience(self) -> float:
        """Seconds until there is something to say though nothing comes."""
        ...


class Pool(Protocol):
    """`pool.ModelPool` as the dialects see it."""

    def generate(self, request: GenerationRequest) -> Generation:
        """Accept the request, or raise: invalid, too long, no such model, full, loading."""
        ...

    def current_model(self) -> str:
        """The id of the model that a request without a name gets."""
        ...

    def cards(self) -> list[ModelCard]: ...

    def card(self, name: str) -> ModelCard:
        """Raises ModelNotFound."""
        ...

    def check_ready(self) -> None:
        """Raises Unavailable while the model is loading, ModelLoadError if that failed."""
        ...

    @property
    def config(self) -> Config: ...

    # ---- text, of the model that `model` names, which must be in memory

    def encode(self, model: str | None, prompt: Prompt) -> list[int]:
        """The prompt's token ids, as a request would have them."""
        ...

    def pieces(
        self, model: str | None, parts: Sequence[str | int], *, add_special: bool, markup: bool
    ) -> list[TokenPiece]:
        """Texts and token ids as tokens.

        Args:
            add_special: Put the tokenizer's own special tokens around them.
            markup: Take special tokens in the texts for such, not for text.
        """
        ...

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str: ...

    def render(self, model: str | None, prompt: ChatPrompt) -> str:
        """The conversation as the chat template writes it."""
        ...

    # ---- embeddings

    def embed(self, request: EmbeddingRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Raises NotSupported where the model has none."""
        ...

    def rerank(self, request: RerankRequest, cancelled: Callable[[], bool]) -> Scores:
        """Raises NotSupported with a model that cannot."""
        ...

    # ---- the running server

    def props(self) -> ModelProps: ...

    @property
    def system_prompt(self) -> SystemPrompt:
        """What every /completion prompt begins with."""
        ...

    @system_prompt.setter
    def system_prompt(self, value: SystemPrompt) -> None: ...

    def slots(self) -> list[SlotInfo]: ...

    def save_slot(self, slot: int, filename: str) -> SlotFile:
        """Write the slot's prefix below --slot-save-path. Raises RequestError, NotSupported."""
        ...

    def restore_slot(self, slot: int, filename: str) -> SlotFile:
        """Raises RequestError: there is no such file, or it is another model's."""
        ...

    def erase_slot(self, slot: int) -> SlotFile: ...

    def adapters(self) -> list[AdapterInfo]: ...

    def set_adapter_scales(self, scales: Mapping[int, float]) -> None:
        """For requests that come from now on; adapters that are not named get 0.

        Raises:
            RequestError: There is no such adapter.
        """
        ...

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
        ...

    def figures(self) -> ServerFigures:
        """What runs now, in numbers: no text of anybody's. Also while the model is loading."""
        ...

    def runtime(self) -> Runtime: ...

    def reset(self) -> None:
        """Begin with the figures of `runtime()` anew."""
        ...

    def trace(self) -> list[dict[str, Any]]:
        """Chrome trace events. Raises NotSupported without --enable-tracing."""
        ...
