"""Reranking: the wire forms, and a cross-encoder behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_server.api.base import HttpRequest
from mlx_server.api.rerank import PATHS, Rerank, sigmoid
from mlx_server.embedder import Embedder
from mlx_server.engine.encoders import EncoderInfo, load_encoder
from mlx_server.engine.worker import Worker
from mlx_server.errors import ContextLengthExceeded, NotSupported, RequestError
from mlx_server.services import EmbeddingRequest, RerankRequest, Scores

SCORES = {"wrong": -3.5, "good": 2.0, "so so": 0.25, "as good": 2.0}
DOCUMENTS = list(SCORES)


class RankingPool:
    def __init__(self) -> None:
        self.request: RerankRequest | None = None

    def current_model(self) -> str:
        return "org/ranker"

    def rerank(self, request: RerankRequest, cancelled: Callable[[], bool]) -> Scores:
        assert not cancelled()
        self.request = request
        return Scores(tuple(SCORES[document] for document in request.documents), 21)


def ask(pool: RankingPool, body: Any, path: str = "/rerank") -> Any:
    (endpoint,) = (route.endpoint for route in Rerank().routes if route.path == path)
    http = HttpRequest("POST", path, {}, {}, json.dumps(body).encode())
    return json.loads(json.dumps(endpoint(http, pool).body))


# ---------------------------------------------------------------- on the wire


@pytest.mark.parametrize("path", PATHS)
def test_jinas_form(path: str) -> None:
    body = {"model": "m", "query": "q", "documents": DOCUMENTS}
    assert ask(RankingPool(), body, path) == {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
        "results": [
            {"index": 1, "relevance_score": 2.0},
            {"index": 3, "relevance_score": 2.0},
            {"index": 2, "relevance_score": 0.25},
            {"index": 0, "relevance_score": -3.5},
        ],
    }


@pytest.mark.parametrize("shows", ["return_documents", "return_text"])
def test_the_best_few_with_their_texts(shows: str) -> None:
    pool = RankingPool()
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 2, shows: True}
    reply = ask(pool, body)
    assert reply["model"] == "org/ranker"
    assert [entry["document"] for entry in reply["results"]] == [
        {"text": "good"},
        {"text": "as good"},
    ]
    assert pool.request == RerankRequest(None, "q", tuple(DOCUMENTS))


def test_documents_may_be_objects() -> None:
    pool = RankingPool()
    ask(pool, {"query": "q", "documents": [{"text": "good"}, "wrong"]})
    assert pool.request.documents == ("good", "wrong")


def test_teis_form() -> None:
    body = {"query": "q", "texts": ["wrong", "good"]}
    assert ask(RankingPool(), body) == [
        {"index": 1, "score": sigmoid(2.0)},
        {"index": 0, "score": sigmoid(-3.5)},
    ]
    raw = ask(RankingPool(), {**body, "raw_scores": True, "return_text": True})
    assert raw == [
        {"index": 1, "score": 2.0, "text": "good"},
        {"index": 0, "score": -3.5, "text": "wrong"},
    ]


@pytest.mark.parametrize("logit", [-1000.0, -2.0, 0.0, 3.0, 1000.0])
def test_sigmoid_of_any_number(logit: float) -> None:
    assert sigmoid(logit) == pytest.approx(0.5 * (1 + np.tanh(logit / 2)))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": 3, "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a", 5]}, "documents[1]"),
        ({"query": "q", "documents": [{"text": 5}]}, "documents[0].text"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents"),
        ({"query": "q", "texts": [None]}, "texts[0]"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a"], "return_text": "yes"}, "return_text"),
    ],
)
def test_a_wrong_field_is_named(body: dict, param: str) -> None:
    with pytest.raises(RequestError) as failure:
        ask(RankingPool(), body)
    assert failure.value.param == param


# ---------------------------------------------------------------- a cross-encoder behind it

TEXTS = ("the cat sat on a mat", "rain", "the dog ran in the rain and the sun is on the cat")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(100)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def open_encoder(
    worker: Worker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Embedder]:
    pytest.importorskip("mlx_embeddings")
    from encoder_folders import write_encoder

    from mlx_server.text.tokenizer import Tokenizer

    def load(kind: str, chunk_size: int = 192, **settings: Any) -> Embedder:
        folder: Path = write_encoder(tmp_path_factory.mktemp("e") / kind, kind, **settings)
        info: EncoderInfo = worker.call(
            lambda engines: load_encoder(engines, folder, name=str(folder), chunk_size=chunk_size)
        )
        return Embedder.of_encoder(str(folder), worker, Tokenizer.load(folder), info)

    return load


def never() -> bool:
    return False


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_scores_do_not_hang_on_the_neighbours(
    open_encoder: Callable[..., Embedder], kind: str
) -> None:
    embedder = open_encoder(kind, head=True)
    together = embedder.rerank(RerankRequest(None, "is the cat in", TEXTS), never)
    alone = [
        embedder.rerank(RerankRequest(None, "is the cat in", (text,)), never) for text in TEXTS
    ]
    np.testing.assert_allclose(together.values, [one.values[0] for one in alone], atol=1e-5)
    assert together.num_tokens == sum(one.num_tokens for one in alone)
    assert len(set(together.values)) == len(TEXTS)


def test_small_batches_and_large_ones_score_alike(open_encoder: Callable[..., Embedder]) -> None:
    request = RerankRequest(None, "the sun", TEXTS * 4)
    few, many = (open_encoder("bert", chunk_size=size, head=True) for size in (1, 500))
    np.testing.assert_allclose(
        few.rerank(request, never).values, many.rerank(request, never).values, atol=1e-5
    )


def test_an_encoder_embeds(open_encoder: Callable[..., Embedder]) -> None:
    from mlx_server.core import TextPrompt

    embedder = open_encoder("modernbert")
    prompts = tuple(TextPrompt(text) for text in TEXTS)
    together = embedder.embed(EmbeddingRequest(None, prompts), never)
    alone = [embedder.embed(EmbeddingRequest(None, (prompt,)), never) for prompt in prompts]
    np.testing.assert_allclose(together.vectors, [one.vectors[0] for one in alone], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-6)


def test_what_cannot_rank_says_so(open_encoder: Callable[..., Embedder]) -> None:
    with pytest.raises(NotSupported, match="cross-encoder"):
        open_encoder("bert").rerank(RerankRequest(None, "q", ("a",)), never)


def test_a_document_that_is_too_long_is_named(open_encoder: Callable[..., Embedder]) -> None:
    embedder = open_encoder("bert", head=True)
    with pytest.raises(ContextLengthExceeded) as failure:
        embedder.rerank(RerankRequest(None, "the cat", ("rain", "sun " * 80)), never)
    assert failure.value.param == "documents[1]"
    assert "documents[1]" in failure.value.message


def test_an_encoder_generates_nothing(
    open_encoder: Callable[..., Embedder], worker: Worker
) -> None:
    import queue

    from models import request

    embedder = open_encoder("bert")
    outbox: queue.SimpleQueue = queue.SimpleQueue()
    worker.submit(embedder.name, [request("r", [1, 2])], outbox)
    error = outbox.get(timeout=10).error
    assert isinstance(error, NotSupported) and error.status == 501
    assert "embedding model" in error.message
