"""/v1/embeddings and /embedding on the wire: what is read, what is answered, what is refused."""

from __future__ import annotations

import base64
import json
import math
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest

from mlx_server.api.base import HttpRequest, JsonReply
from mlx_server.api.embeddings import LlamaEmbedding, OpenAIEmbeddings, read_inputs, scaled
from mlx_server.config import Config
from mlx_server.core import MixedPrompt, TextPrompt, TokenPrompt
from mlx_server.errors import ContextLengthExceeded, NotSupported, RequestError, ServerError
from mlx_server.server.http import HttpServer
from mlx_server.services import EmbeddingRequest, Embeddings

SIZE = 6


class EmbeddingPool:
    """Gives every input a vector of its own; remembers what it was asked."""

    def __init__(self, refuse: ServerError | None = None) -> None:
        self.config = Config()
        self.refuse = refuse
        self.request: EmbeddingRequest | None = None
        self.cancelled: Callable[[], bool] | None = None

    def current_model(self) -> str:
        return "org/model"

    def check_ready(self) -> None:
        pass

    def embed(self, request: EmbeddingRequest, cancelled: Callable[[], bool]) -> Embeddings:
        if self.refuse is not None:
            raise self.refuse
        self.request, self.cancelled = request, cancelled
        return Embeddings(tuple(vector(i) for i in range(len(request.inputs))), 11)


def vector(index: int) -> tuple[float, ...]:
    return tuple(np.float32(np.sin(np.arange(1, SIZE + 1) * (index + 1))).tolist())


def ask(pool: EmbeddingPool, path: str, body: Any, **http: Any) -> Any:
    """The reply's body; errors are raised."""
    (endpoint,) = (
        route.endpoint
        for dialect in (OpenAIEmbeddings(), LlamaEmbedding())
        for route in dialect.routes
        if (route.method, route.path) == ("POST", path)
    )
    request = HttpRequest("POST", path, {}, {}, json.dumps(body).encode(), **http)
    reply = endpoint(request, pool)
    assert isinstance(reply, JsonReply) and reply.status == 200
    return json.loads(json.dumps(reply.body, allow_nan=False))


# ---------------------------------------------------------------- inputs

READ = [
    ("hello", (TextPrompt("hello"),)),
    (["hello"], (TextPrompt("hello"),)),
    (["hello", "world"], (TextPrompt("hello"), TextPrompt("world"))),
    ([1, 2, 3], (TokenPrompt((1, 2, 3)),)),
    ([[1, 2], [3]], (TokenPrompt((1, 2)), TokenPrompt((3,)))),
    (["a", [3, 4]], (TextPrompt("a"), TokenPrompt((3, 4)))),
    (["a", 3, "b"], (MixedPrompt(("a", 3, "b")),)),
    (["x", [1, "b"]], (TextPrompt("x"), MixedPrompt((1, "b")))),
    ([{"prompt_string": "a"}, "b"], (TextPrompt("a"), TextPrompt("b"))),
    ({"prompt_string": "a"}, (TextPrompt("a"),)),
]


@pytest.mark.parametrize(("value", "expected"), READ)
@pytest.mark.parametrize(("path", "field"), [
    ("/v1/embeddings", "input"), ("/embeddings", "input"), ("/embeddings", "content"),
    ("/embedding", "content"), ("/embedding", "input"),
])  # fmt: skip
def test_inputs_in_all_their_forms(value: Any, expected: tuple, path: str, field: str) -> None:
    pool = EmbeddingPool()
    ask(pool, path, {field: value})
    assert pool.request.inputs == expected


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "input"),
        (5, "input"),
        ({}, "input.prompt_string"),
        ([[]], "input[0]"),
        (["a", None], "input[1]"),
        ([1, -1], "input[1]"),
        ([1.5], "input[0]"),
        ([True, 1], "input[0]"),
        ([[1, 2**31]], "input[0][1]"),
        ([1, [2]], "input[1]"),
        (["\ud800"], "input[0]"),
        (["a"] * 2049, "input"),
    ],
)
def test_a_wrong_input_is_named(value: Any, param: str) -> None:
    with pytest.raises(RequestError) as failure:
        read_inputs(value, "input")
    assert failure.value.param == param


def test_other_media_are_not_supported() -> None:
    with pytest.raises(NotSupported, match="multimodal_data"):
        read_inputs([{"prompt_string": "a", "multimodal_data": ["…"]}], "content")
    with pytest.raises(NotSupported, match="image_data"):
        ask(EmbeddingPool(), "/embedding", {"content": "a", "image_data": [{"id": 1}]})


# ---------------------------------------------------------------- OpenAI's


def test_the_reply_of_v1_embeddings() -> None:
    body = {"input": ["a", "b"], "model": "GPT-4", "encoding_format": "float", "user": "me"}
    assert ask(EmbeddingPool(), "/v1/embeddings", body) == {
        "object": "list",
        "model": "GPT-4",
        "data": [
            {"object": "embedding", "index": i, "embedding": list(vector(i))} for i in range(2)
        ],
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    assert ask(EmbeddingPool(), "/v1/embeddings", {"input": "a"})["model"] == "org/model"


def test_base64_is_float32_with_the_low_byte_first() -> None:
    reply = ask(EmbeddingPool(), "/v1/embeddings", {"input": "a", "encoding_format": "base64"})
    raw = base64.b64decode(reply["data"][0]["embedding"])
    assert struct.unpack(f"<{SIZE}f", raw) == vector(0)


def test_dimensions_reach_the_pool() -> None:
    pool = EmbeddingPool()
    ask(pool, "/v1/embeddings", {"input": "a", "dimensions": 3})
    assert pool.request.dimensions == 3 and pool.request.normalize


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "model": 3}, "model"),
    ],
)
def test_a_wrong_field_of_v1_embeddings_is_named(body: dict, param: str) -> None:
    with pytest.raises(RequestError) as failure:
        ask(EmbeddingPool(), "/v1/embeddings", body)
    assert failure.value.param == param


def test_each_route_has_its_form_of_errors() -> None:
    error = ContextLengthExceeded(9, 4, param="input")
    theirs = OpenAIEmbeddings().error(error)["error"]
    assert theirs["code"] == "context_length_exceeded" and theirs["param"] == "input"
    llamas = LlamaEmbedding().error(error)["error"]
    assert (llamas["code"], llamas["n_prompt_tokens"], llamas["n_ctx"]) == (400, 9, 4)


def test_a_client_that_goes_away_ends_the_work() -> None:
    pool, callbacks = EmbeddingPool(), []
    ask(pool, "/v1/embeddings", {"input": "a"}, on_disconnect=callbacks.append)
    assert not pool.cancelled()
    callbacks[0]()
    assert pool.cancelled()


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """The official client, talking to a real server over a pool of made-up vectors."""
    pool = EmbeddingPool()
    server = HttpServer(Config(port=0), (OpenAIEmbeddings(),), pool)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-none", max_retries=0)
    server.stop(0.5)
    thread.join(5)


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_the_official_client_reads_the_vectors(client: openai.OpenAI, form: dict) -> None:
    """Left to itself it asks for base64."""
    reply = client.embeddings.create(model="m", input=["a", "b"], **form)
    assert [entry.index for entry in reply.data] == [0, 1]
    for index, entry in enumerate(reply.data):
        assert entry.embedding == pytest.approx(vector(index))
    assert reply.usage.total_tokens == 11


# ---------------------------------------------------------------- llama.cpp's


def test_one_text_is_answered_as_the_document_has_it() -> None:
    reply = ask(EmbeddingPool(), "/embedding", {"content": "a"})
    assert reply == {"embedding": list(vector(0))}
    assert ask(EmbeddingPool(), "/embeddings", {"content": "a"}) == reply


@pytest.mark.parametrize("body", [{"content": ["a", "b"]}, {"input": ["a", "b"]}])
def test_a_list_is_answered_as_todays_llama_server_does(body: dict) -> None:
    assert ask(EmbeddingPool(), "/embedding", body) == [
        {"index": i, "embedding": [list(vector(i))]} for i in range(2)
    ]


def test_a_text_in_input_is_a_list_of_one() -> None:
    reply = ask(EmbeddingPool(), "/embedding", {"input": "a"})
    assert reply == [{"index": 0, "embedding": [list(vector(0))]}]


def test_content_is_required() -> None:
    with pytest.raises(RequestError, match="content"):
        ask(EmbeddingPool(), "/embedding", {"model": "m"})


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        (0, lambda v: np.abs(v).max() / 32760),
        (1, lambda v: np.abs(v).sum()),
        (3, lambda v: (np.abs(v) ** 3).sum() ** (1 / 3)),
        (-1, lambda v: 1.0),
        (2, lambda v: 1.0),  # the pool has done it
        (None, lambda v: 1.0),
    ],
)
def test_embd_normalize(kind: int | None, norm: Callable[[np.ndarray], float]) -> None:
    pool = EmbeddingPool()
    reply = ask(pool, "/embedding", {"content": "a", "embd_normalize": kind})
    plain = np.array(vector(0))
    np.testing.assert_allclose(reply["embedding"], plain / norm(plain), rtol=1e-6)
    assert pool.request.normalize is (kind in (2, None))


@pytest.mark.parametrize("kind", [-1, 0, 1, 2, 64])
def test_a_vector_of_zeros_stays_one(kind: int) -> None:
    assert scaled([0.0, 0.0], kind) == [0.0, 0.0]


def test_small_numbers_survive_a_high_norm() -> None:
    assert scaled([1e-30, 1e-30], 64) == pytest.approx([math.pow(2, -1 / 64)] * 2)


@pytest.mark.parametrize("kind", [-2, 65, "2", 1.5])
def test_a_norm_that_is_none_is_named(kind: Any) -> None:
    with pytest.raises(RequestError) as failure:
        ask(EmbeddingPool(), "/embedding", {"content": "a", "embd_normalize": kind})
    assert failure.value.param == "embd_normalize"
