"""POST /v1/embeddings (OpenAI) and POST /embedding (llama.cpp).

https://platform.openai.com/docs/api-reference/embeddings, and the document of llama.cpp's
server. /embeddings takes either body: `input` makes it OpenAI's, `content` llama.cpp's.
"""

from __future__ import annotations

import base64
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Reply, Route
from mlx_server.api.described import PromptType
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalText,
    integer,
    one_of,
    optional,
    unchecked,
    wrong,
)
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.openai import OpenAIDialect, reply_model
from mlx_server.api.prompts import is_single, read_prompts
from mlx_server.api.schema import validate
from mlx_server.core import Prompt
from mlx_server.errors import NotSupported, RequestError
from mlx_server.services import EmbeddingRequest, Embeddings

MAX_INPUTS = 2048
"""OpenAI's limit."""

Vector = Sequence[float]

# ---------------------------------------------------------------- inputs


def read_inputs(value: Any, name: str) -> tuple[Prompt, ...]:
    """One input or several; `name` is the field, for errors.

    Raises:
        RequestError: It is no prompt and no list of them, or a list of too many.
        NotSupported: It has images or sounds.
    """
    if not is_single(value) and len(value) > MAX_INPUTS:
        raise wrong(name, f"must have at most {MAX_INPUTS} entries", value)
    return read_prompts(value, name)


def embed(http: HttpRequest, pool: Pool, request: EmbeddingRequest) -> Embeddings:
    """Have the pool embed; a client that goes away ends it."""
    gone = threading.Event()
    http.on_disconnect(gone.set)
    found = pool.embed(request, gone.is_set)
    http.account.embedded(found.model, found.num_tokens, asked=request.model)
    return found


# ---------------------------------------------------------------- OpenAI's


Inputs = PromptType | Annotated[list[PromptType], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingBody(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={"example": {"input": ["A first text", "A second one"]}}
    )

    input: Annotated[Any, unchecked(Inputs | None)] = None
    model: OptionalText = None
    encoding_format: Annotated[str | None, optional(one_of("float", "base64"))] = None
    dimensions: Annotated[int | None, optional(integer(1, INT32_MAX))] = None
    user: OptionalText = None  # without a meaning: no accounts are kept here


class LlamaEmbeddingBody(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"content": "A text"}})

    content: Annotated[Any, unchecked(Inputs | None)] = None
    input: Annotated[Any, unchecked(Inputs | None)] = None
    model: OptionalText = None
    image_data: Annotated[Any, unchecked(list[Any] | None)] = None
    embd_normalize: Annotated[int | None, optional(integer(-1, 64))] = None
    dimensions: Annotated[int | None, optional(integer(1, INT32_MAX))] = None


class AnyEmbeddingBody(EmbeddingBody, LlamaEmbeddingBody):
    """OpenAI's fields and llama.cpp's, for the description."""


def little_endian(vector: Vector) -> str:
    """The numbers as float32, low byte first, in base64."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


class OpenAIEmbeddings(OpenAIDialect):
    def __init__(self) -> None:
        self.routes = (
            Route("POST", "/v1/embeddings", self.create, "Embed texts (OpenAI)", EmbeddingBody),
            Route(
                "POST",
                "/embeddings",
                self.either,
                "Embed texts: OpenAI's body with `input`, llama.cpp's with `content`",
                AnyEmbeddingBody,
            ),
        )

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        return self._answer(http, pool, http.json())

    def either(self, http: HttpRequest, pool: Pool) -> Reply:
        body = http.json()
        if "input" not in body and "content" in body:
            return llama_reply(http, pool, body)
        return self._answer(http, pool, body)

    def parse(self, body: Json) -> tuple[EmbeddingRequest, EmbeddingBody]:
        """Raises RequestError that names the field at fault."""
        fields = validate(EmbeddingBody, body)
        if fields.input is None:
            raise RequestError("`input` is required.", param="input")
        request = EmbeddingRequest(
            model=fields.model or None,
            inputs=read_inputs(fields.input, "input"),
            dimensions=fields.dimensions,
        )
        return request, fields

    def _answer(self, http: HttpRequest, pool: Pool, body: Json) -> Reply:
        request, fields = self.parse(body)
        found = embed(http, pool, request)
        form: Callable[[Vector], Any] = list
        if fields.encoding_format == "base64":
            form = little_endian
        entries = [
            {"object": "embedding", "index": index, "embedding": form(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
        model = reply_model(request, pool)
        return JsonReply({"object": "list", "data": entries, "model": model, "usage": usage})


# ---------------------------------------------------------------- llama.cpp's


class LlamaEmbedding(LlamaDialect):
    def __init__(self) -> None:
        summary = "Embed a text (llama.cpp)"
        self.routes = (Route("POST", "/embedding", self.create, summary, LlamaEmbeddingBody),)

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        return llama_reply(http, pool, http.json())


def llama_reply(http: HttpRequest, pool: Pool, body: Json) -> Reply:
    """A single string in `content` is answered as the document has it, everything else as
    today's llama-server answers: a list, with a list of vectors in each place."""
    fields = validate(LlamaEmbeddingBody, body)
    if fields.image_data:
        raise NotSupported(
            "`image_data` is not supported: only texts are embedded. Leave it out.",
            param="image_data",
        )
    name = "content" if fields.input is None else "input"
    given = fields.content if fields.input is None else fields.input
    if given is None:
        raise RequestError("`content` is required.", param="content")
    kind = 2 if fields.embd_normalize is None else fields.embd_normalize
    request = EmbeddingRequest(
        model=fields.model or None,
        inputs=read_inputs(given, name),
        normalize=kind == 2,
        dimensions=fields.dimensions,
        param=name,
    )
    vectors = [scaled(vector, kind) for vector in embed(http, pool, request).vectors]
    if name == "content" and isinstance(given, str):
        return JsonReply({"embedding": vectors[0]})
    return JsonReply([{"index": i, "embedding": [v]} for i, v in enumerate(vectors)])


def scaled(vector: Vector, kind: int) -> list[float]:
    """A vector scaled as llama.cpp's `embd_normalize` says: -1 as it is, 0 to int16's range by
    its largest number, 1 taxicab, 2 Euclidean (it comes so), p the p-norm."""
    if kind in (-1, 2):
        return list(vector)
    largest = max(map(abs, vector), default=0.0)
    if largest == 0:
        return list(vector)
    if kind == 0:
        return [value / largest * 32760 for value in vector]
    # By the largest first: a high power of a small number would vanish.
    norm = largest * sum((abs(value) / largest) ** kind for value in vector) ** (1 / kind)
    return [value / norm for value in vector]
