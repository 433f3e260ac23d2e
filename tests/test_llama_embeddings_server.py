"""Embeddings and reranking over HTTP: beside running streams, and with models made for them."""

from __future__ import annotations

import base64
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from encoder_folders import HIDDEN, write_encoder
from llama_asking import GREEDY, ONCE, ask, complete, essence, events, get, post, refused

from mlx_server.server.http import HttpServer

CAT, RAIN = "the cat sat on a mat", "the dog ran in the rain"
DOCUMENTS = [CAT, RAIN, "the sun is in the rain", "a dog"]


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    """A model that generates, with an adapter that is not applied."""
    return serve(
        model=str(stories / "stories260k"),
        lora=(str(stories / "adapters" / "dragon"),),
        lora_init_without_apply=True,
    )


@pytest.fixture(scope="module")
def encoder(serve, tmp_path_factory: pytest.TempPathFactory) -> HttpServer:
    pytest.importorskip("mlx_embeddings")
    folder = tmp_path_factory.mktemp("encoders")
    return serve(model=str(write_encoder(folder / "encoder", "bert")), metrics=True)


@pytest.fixture(scope="module")
def ranker(serve, tmp_path_factory: pytest.TempPathFactory) -> HttpServer:
    pytest.importorskip("mlx_embeddings")
    folder = tmp_path_factory.mktemp("encoders")
    return serve(model=str(write_encoder(folder / "ranker", "xlm-roberta", head=True)))


@pytest.fixture(params=["server", "encoder"])
def either(request: pytest.FixtureRequest) -> HttpServer:
    return request.getfixturevalue(request.param)


def client_of(server: HttpServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def embed(server: HttpServer, text: Any, **fields: Any) -> np.ndarray:
    """float64 [n, d]."""
    data = post(server, "/v1/embeddings", {"input": text, **fields})["data"]
    return np.array([entry["embedding"] for entry in data])


def close(one: Any, other: Any) -> bool:
    return np.allclose(one, other, atol=2e-5)


# ---------------------------------------------------------------- every form


def test_all_forms_of_one_text_are_one_vector(either: HttpServer) -> None:
    (vector,) = embed(either, CAT)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    ids = post(either, "/tokenize", {"content": CAT, "add_special": True})["tokens"]
    for form in ([CAT], ids, [ids], [{"prompt_string": CAT}]):
        assert close(embed(either, form)[0], vector)
    (coded,) = post(either, "/v1/embeddings", {"input": CAT, "encoding_format": "base64"})["data"]
    assert close(np.frombuffer(base64.b64decode(coded["embedding"]), "<f4"), vector)
    assert close(post(either, "/embedding", {"content": CAT})["embedding"], vector)
    (entry,) = post(either, "/embedding", {"content": [CAT]})
    assert entry["index"] == 0 and close(entry["embedding"][0], vector)
    assert close(post(either, "/embeddings", {"content": CAT})["embedding"], vector)
    raw = np.array(post(either, "/embedding", {"content": CAT, "embd_normalize": -1})["embedding"])
    assert close(raw / np.linalg.norm(raw), vector)


def test_the_official_client(either: HttpServer) -> None:
    texts = [CAT, RAIN, ONCE]
    reply = client_of(either).embeddings.create(model="m", input=texts)
    assert [item.index for item in reply.data] == [0, 1, 2] and reply.model == "m"
    size = sum(
        len(post(either, "/tokenize", {"content": text, "add_special": True})["tokens"])
        for text in texts
    )
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == size
    alone = [embed(either, text)[0] for text in texts]
    assert close([item.embedding for item in reply.data], alone)
    short = client_of(either).embeddings.create(model="m", input=CAT, dimensions=8)
    vector = np.array(short.data[0].embedding)
    cut = alone[0][:8] / np.linalg.norm(alone[0][:8])
    assert len(vector) == 8 and close(vector, cut)


def test_texts_apart_are_apart(either: HttpServer, server: HttpServer) -> None:
    one, other = embed(either, [CAT, RAIN])
    assert float(one @ other) < 0.9999
    assert one.shape == ((64,) if either is server else (HIDDEN,))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_poolings_differ(serve, stories: Path, server: HttpServer, pooling: str) -> None:
    pooled = serve(model=str(stories / "stories260k"), pooling=pooling)
    assert close(embed(pooled, CAT), embed(server, CAT)) == (pooling == "mean")


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/v1/embeddings", {}, 400, "input"),
        ("/v1/embeddings", {"input": []}, 400, "`input`"),
        ("/v1/embeddings", {"input": [[1, "a"], 2.5]}, 400, "input"),
        ("/v1/embeddings", {"input": [99999]}, 400, "99999"),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "the cat " * 600}, 400, "tokens"),
        ("/embedding", {}, 400, "content"),
        ("/embedding", {"content": "the cat " * 600}, 400, "`content` has"),
        ("/embedding", {"content": ["a", [1, 99999]]}, 400, "`content[1]`"),
        ("/embedding", {"content": "a", "image_data": [{"id": 1}]}, 501, "image_data"),
    ],
    ids=str,
)
def test_what_is_refused(
    either: HttpServer, path: str, body: dict[str, Any], status: int, named: str
) -> None:
    found = ask(either, path, body)
    assert found.status_code == status, found.text
    assert named in found.text


# ---------------------------------------------------------------- beside generation


def test_beside_a_running_stream(server: HttpServer) -> None:
    body = {"prompt": ONCE, "n_predict": 150, "ignore_eos": True, **GREEDY}
    alone, vectors = complete(server, **body), embed(server, [CAT, RAIN])
    found: list[list[dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: found.append(events(server, "/completion", body)))
    thread.start()
    while thread.is_alive():
        assert close(embed(server, [CAT, RAIN]), vectors)
    assert "".join(event["content"] for event in found[0]) == alone["content"]
    assert essence(complete(server, **body)) == essence(alone)


def test_under_an_adapter(server: HttpServer) -> None:
    plain = embed(server, CAT)
    try:
        post(server, "/lora-adapters", [{"id": 0, "scale": 1.0}])
        assert not close(embed(server, CAT), plain)
    finally:
        post(server, "/lora-adapters", [])
    assert close(embed(server, CAT), plain)


# ---------------------------------------------------------------- models made for it


def test_an_encoder_has_the_documents_metrics(encoder: HttpServer) -> None:
    text = ask(encoder, "/metrics", method="GET").text
    for name in (
        "prompt_tokens_total", "tokens_predicted_total", "prompt_tokens_seconds",
        "predicted_tokens_seconds", "kv_cache_usage_ratio", "kv_cache_tokens",
        "requests_processing", "requests_deferred",
    ):  # fmt: skip
        assert f"\nllamacpp:{name} 0.0\n" in text


@pytest.mark.parametrize("model", ["encoder", "ranker"])
def test_an_encoder_generates_nothing(request: pytest.FixtureRequest, model: str) -> None:
    server = request.getfixturevalue(model)
    for path, body in (
        ("/completion", {"prompt": "the"}),
        ("/infill", {"input_prefix": "the"}),
        ("/v1/completions", {"prompt": "the"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ):
        error = refused(server, 501, path, body)
        assert error["type"] == "not_supported_error" and "/v1/embeddings" in error["message"]
    assert get(server, "/health") == {"status": "ok"}
    props = get(server, "/props")
    assert props["total_slots"] == 0 and props["n_ctx"] in (62, 64)
    assert get(server, "/slots") == [] and get(server, "/lora-adapters") == []
    refused(server, 501, "/slots/0?action=erase")


def test_an_encoders_vectors(encoder: HttpServer) -> None:
    vectors = embed(encoder, DOCUMENTS)
    assert vectors.shape == (len(DOCUMENTS), HIDDEN)
    error = refused(encoder, 501, "/rerank", {"query": CAT, "documents": DOCUMENTS})
    assert error["type"] == "not_supported_error" and "cross-encoder" in error["message"]


def test_documents_in_order(ranker: HttpServer) -> None:
    body = {"query": CAT, "documents": DOCUMENTS}
    for path in ("/rerank", "/v1/rerank", "/reranking", "/v1/reranking"):
        reply = post(ranker, path, body)
        results = reply["results"]
        scores = [entry["relevance_score"] for entry in results]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(DOCUMENTS)
        assert sorted(entry["index"] for entry in results) == [0, 1, 2, 3]
        assert reply["usage"]["prompt_tokens"] > 4 * 8
    for entry in results:
        alone = post(ranker, "/rerank", {**body, "documents": [DOCUMENTS[entry["index"]]]})
        assert alone["results"][0]["relevance_score"] == pytest.approx(
            entry["relevance_score"], abs=1e-4
        )
    best = post(ranker, "/rerank", {**body, "top_n": 2, "return_documents": True})["results"]
    assert [entry["index"] for entry in best] == [entry["index"] for entry in results[:2]]
    assert best[0]["document"] == {"text": DOCUMENTS[best[0]["index"]]}
    tei = post(ranker, "/rerank", {"query": CAT, "texts": DOCUMENTS})
    assert [entry["index"] for entry in tei] == [entry["index"] for entry in results]
    for entry, raw in zip(tei, results, strict=True):
        sigmoid = 1 / (1 + math.exp(-raw["relevance_score"]))
        assert entry["score"] == pytest.approx(sigmoid, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"documents": ["a"]}, "`query`"),
        ({"query": "a"}, "`documents`"),
        ({"query": "a", "documents": []}, "`documents`"),
        ({"query": "a", "documents": ["a", 5]}, "`documents[1]`"),
        ({"query": "a", "documents": ["a"], "top_n": 0}, "`top_n`"),
        ({"query": "a", "documents": ["the cat " * 99]}, "documents[0]"),
    ],
    ids=str,
)
def test_what_cannot_be_ranked(ranker: HttpServer, body: dict[str, Any], named: str) -> None:
    error = refused(ranker, 400, "/rerank", body)
    assert named in error["message"] and error["code"] == 400


def test_a_model_that_generates_ranks_nothing(server: HttpServer) -> None:
    error = refused(server, 501, "/rerank", {"query": "a", "documents": ["b"]})
    assert (error["code"], error["type"]) == (501, "not_supported_error")
