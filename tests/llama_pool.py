"""A pool that answers what llama.cpp's other endpoints ask, and remembers what it was told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_server.api.base import Dialect, HttpRequest, Reply
from mlx_server.config import Config
from mlx_server.core import ChatPrompt
from mlx_server.errors import RequestError, Unavailable
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import (
    AdapterInfo,
    ModelProps,
    SlotFile,
    SlotInfo,
    SystemPrompt,
    TokenPiece,
)

SETTINGS = SamplingParams(temperature=0.25, top_k=7, stop=("END",), seed=42, max_tokens=9)


class LlamaPool:
    def __init__(self, **settings: Any) -> None:
        self.config = Config(**settings)
        self.asked: list[Any] = []
        self.token_pieces: list[TokenPiece] = []
        self.system_prompt = SystemPrompt()
        self.slot_list = [
            SlotInfo(0, 512, True, "/m/loaded", SETTINGS, "Say", " hi\n", 2, 3, 6),
            SlotInfo(1, 512, False, "/m/loaded"),
        ]
        self.scales: Mapping[int, float] | None = None
        self.ready = True

    def check_ready(self) -> None:
        if not self.ready:
            raise Unavailable("Loading model")

    def pieces(
        self, model: str | None, parts: Sequence[str | int], *, add_special: bool, markup: bool
    ) -> list[TokenPiece]:
        self.asked.append((model, tuple(parts), add_special, markup))
        return self.token_pieces

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str:
        self.asked.append((model, tuple(token_ids)))
        return "text"

    def render(self, model: str | None, prompt: ChatPrompt) -> str:
        self.asked.append((model, prompt))
        return "rendered"

    def props(self) -> ModelProps:
        return ModelProps(
            name="org/loaded", path="/m/loaded", alias="nick", num_slots=2, context_length=512,
            trained_length=2048, chat_template="{{ messages }}", bos_token="<s>",
            eos_token="</s>", vocab_size=517, num_parameters=1, nbytes=4, embedding_size=8,
            defaults={"top_k": 3, "temperature": 0.5},
        )  # fmt: skip

    def slots(self) -> list[SlotInfo]:
        return self.slot_list

    def save_slot(self, slot: int, filename: str) -> SlotFile:
        return SlotFile(slot, 17, filename, 1234, 0.05)

    def restore_slot(self, slot: int, filename: str) -> SlotFile:
        if filename == "none.bin":
            raise RequestError("There is no file none.bin.", param="filename")
        return SlotFile(slot, 16, filename, 1233, 0.0401)

    def erase_slot(self, slot: int) -> SlotFile:
        return SlotFile(slot, 15)

    def adapters(self) -> list[AdapterInfo]:
        return [AdapterInfo(0, "/a/moon", 1.0, "moon"), AdapterInfo(1, "/a/dragon", 0.5)]

    def set_adapter_scales(self, scales: Mapping[int, float]) -> None:
        if unknown := scales.keys() - {0, 1}:
            raise RequestError(f"There is no adapter {min(unknown)}.", param="id")
        self.scales = scales

    def metrics(self) -> bytes:
        return b"llamacpp:requests_processing 1.0\n"


def ask(
    dialect: Dialect,
    pool: LlamaPool,
    method: str,
    route: str,
    body: Any = None,
    *,
    query: str = "",
    **params: str,
) -> Reply:
    """The reply of an endpoint.

    Args:
        body: Bytes are sent as they are.
        query: As in a URL; a parameter without a value is empty.
    """
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    http = HttpRequest(
        method=method, path=route.format(**params), query={k: [v] for k, _, v in pairs},
        headers={}, body=raw, params=params,
    )  # fmt: skip
    (endpoint,) = (r.endpoint for r in dialect.routes if (r.method, r.path) == (method, route))
    return endpoint(http, pool)
