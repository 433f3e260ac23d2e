"""What the server does beside generation: the data of its other endpoints. Standard library only.

Frozen, like `core.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_server.core import Prompt

Pooling = Literal["mean", "last", "cls"]


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A token and its exact bytes within a text."""

    id: int
    bytes: bytes


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """
    Args:
        inputs: `TextPrompt`, `TokenPrompt` or `MixedPrompt`, at least one.
        pooling: None: the command line's, else the model's own.
        normalize: Give vectors of length 1.
        dimensions: Keep so many of the first numbers, before they are normalised.
        param: Where the client wrote the inputs, for errors.
    """

    model: str | None
    inputs: tuple[Prompt, ...]
    pooling: Pooling | None = None
    normalize: bool = True
    dimensions: int | None = None
    timeout: float | None = None
    param: str = "input"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """
    Args:
        vectors: One for each input.
        num_tokens: Of all inputs together.
        model: The id of the model that made them.
    """

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class RerankRequest:
    model: str | None
    query: str
    documents: tuple[str, ...]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """How well each document answers the query, in the order of the documents; higher is better.

    Args:
        num_tokens: Of the query with each document.
        model: The id of the model that gave them.
    """

    values: tuple[float, ...]
    num_tokens: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot for display.

    Args:
        settings: The last request's sampling parameters (`SamplingParams` by field); empty
            before there was one.
        prompt: Its prompt as text.
        text: Its reply so far.
    """

    id: int
    context_length: int
    processing: bool
    model: str
    settings: Any = None
    prompt: str = ""
    text: str = ""
    num_prompt_tokens: int = 0
    num_decoded: int = 0
    num_left: int = -1
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class SlotFile:
    """What was saved, restored or erased of a slot.

    Args:
        num_tokens: Tokens of its prefix.
        num_bytes: Of the file.
    """

    slot: int
    num_tokens: int
    filename: str = ""
    num_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter of the command line, by its place there, and the scale it is applied at."""

    id: int
    path: str
    scale: float
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """llama.cpp's system prompt: every /completion prompt begins with it."""

    prompt: str = ""
    anti_prompt: str = ""
    assistant_name: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """The model that answers a request, and what it makes of what the request left open.

    Args:
        context_length: Tokens that fit one.
        grammar: What its replies follow; empty: nothing.
        dry_breakers: See `core.TextOptions`.
    """

    path: str
    context_length: int
    grammar: str = ""
    dry_breakers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelProps:
    """What /props tells of the loaded model.

    Args:
        defaults: The sampling fields that the command line or the model sets.
        context_length: Tokens that fit a request; `trained_length`: what the model was made for.
    """

    name: str
    path: str
    alias: str
    num_slots: int
    context_length: int
    trained_length: int
    chat_template: str
    bos_token: str
    eos_token: str
    vocab_size: int
    num_parameters: int
    nbytes: int
    embedding_size: int
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowInfo:
    """A sequence that runs just now, in numbers: nothing of what was asked or answered.

    Args:
        slot: Where it runs; None for a moment while it changes its place.
        model: The id of the model that runs it.
        state: "prefill" while its prompt is computed, "decode" behind that.
        num_prompt_tokens: Tokens of its prompt; `num_prompt_done`: those that need no computing
            any more, the `num_cached_tokens` that were known from others among them.
        num_decoded: Tokens of its reply so far; `num_left`: those it may still get.
        seconds: Since its first step began.
        speed: Tokens of the reply per second from its first one on; None before the second.
    """

    slot: int | None
    model: str
    state: Literal["prefill", "decode"]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_prompt_done: int
    num_decoded: int
    num_left: int
    seconds: float
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in memory.

    Args:
        path: Its folder or file.
        id: Its number on the command line, as in /lora-adapters; None: a request named it.
        name: The model id that it has (--lora NAME=PATH).
        scale: What requests that name none get it at; None: a request named it.
    """

    path: str
    id: int | None = None
    name: str | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Args:
        kind: "text" generates, "embedding" only makes vectors and scores.
        nbytes: Of its weights.
        context_length: Tokens that fit a request.
        num_slots: Sequences that run at the same time; 0 of an encoder.
        adapters: Those that are loaded for it.
    """

    id: str
    kind: Literal["text", "embedding"]
    num_parameters: int
    nbytes: int
    context_length: int
    num_slots: int
    adapters: tuple[LoadedAdapter, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What runs now, in numbers.

    Args:
        uptime: Seconds since the server began; a clock that is never set.
        status: "ready", or why requests are refused now.
        device: What is computed on.
        engine: What the engines have counted and hold, summed over them, and the device's
            memory in bytes (`Worker.stats`).
        outcomes: Replies that have ended, by how.
    """

    version: str
    uptime: float
    status: str
    device: str
    models: tuple[LoadedModel, ...]
    engine: Mapping[str, float]
    outcomes: Mapping[str, int]
    rows: tuple[RowInfo, ...]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Real figures of the last requests (MLC-Chat's /stats), in tokens and seconds."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_tokens: int = 0
    completion_seconds: float = 0.0
    requests: int = 0
    total_seconds: float = 0.0
