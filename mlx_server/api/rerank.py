"""POST /rerank and its other names: documents in the order in which they answer a query.

Jina's form (https://jina.ai/reranker), as llama-server has it, and that of Hugging Face's text
embeddings inference, which is meant where the body has `texts`.
"""

from __future__ import annotations

import math
import threading
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Reply, Route
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalFlag,
    OptionalText,
    checked,
    integer,
    optional,
    text,
    unchecked,
    wrong,
)
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.openai import reply_model
from mlx_server.api.schema import validate
from mlx_server.errors import RequestError
from mlx_server.services import RerankRequest, Scores

MAX_DOCUMENTS = 2048

PATHS = ("/rerank", "/v1/rerank", "/reranking", "/v1/reranking")


class _Document(BaseModel):
    text: str


Documents = Annotated[list[str | _Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class RerankBody(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "Where do pandas live?",
                "documents": ["Hello.", "Pandas live in China."],
            }
        }
    )

    model: OptionalText = None
    query: OptionalText = None
    documents: Annotated[Any, unchecked(Documents | None)] = None
    texts: Annotated[Any, unchecked(Documents | None)] = None
    top_n: Annotated[int | None, optional(integer(1, INT32_MAX))] = None
    return_documents: OptionalFlag = None
    return_text: OptionalFlag = None
    raw_scores: OptionalFlag = None


def read_documents(value: Any, name: str) -> tuple[str, ...]:
    """Texts, or objects with a `text`. Raises RequestError that names the one at fault."""
    if not isinstance(value, list) or not value:
        raise wrong(name, "must be a non-empty list of strings", value)
    if len(value) > MAX_DOCUMENTS:
        raise wrong(name, f"must have at most {MAX_DOCUMENTS} entries", value)
    found = []
    for i, item in enumerate(value):
        place: tuple[str | int, ...] = (name, i)
        if isinstance(item, dict) and "text" in item:
            item, place = item["text"], (name, i, "text")
        found.append(checked(text, item, *place))
    return tuple(found)


class Rerank(LlamaDialect):
    def __init__(self) -> None:
        summary = "Order documents by how well they answer a query"
        self.routes = tuple(Route("POST", path, self.create, summary, RerankBody) for path in PATHS)

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        fields = validate(RerankBody, http.json())
        if fields.query is None:
            raise RequestError("`query` is required.", param="query")
        name = "texts" if fields.documents is None and fields.texts is not None else "documents"
        given = getattr(fields, name)
        if given is None:
            raise RequestError("`documents` is required: a list of strings.", param="documents")
        request = RerankRequest(fields.model or None, fields.query, read_documents(given, name))
        gone = threading.Event()
        http.on_disconnect(gone.set)
        scores = pool.rerank(request, gone.is_set)
        model = reply_model(request, pool)
        http.account.embedded(scores.model, scores.num_tokens, asked=request.model)
        if name == "texts":
            return JsonReply(_tei_results(fields, request, scores))
        usage = {"prompt_tokens": scores.num_tokens, "total_tokens": scores.num_tokens}
        results = _jina_results(fields, request, scores)
        return JsonReply({"model": model, "object": "list", "usage": usage, "results": results})


def _order(scores: Scores, limit: int | None) -> list[int]:
    """Places of the documents, the best first, those that are equal as they came."""
    order = sorted(range(len(scores.values)), key=lambda i: -scores.values[i])
    return order[:limit]


def _jina_results(fields: RerankBody, request: RerankRequest, scores: Scores) -> list[Json]:
    shows = fields.return_documents or fields.return_text
    return [
        {"index": i, "relevance_score": scores.values[i]}
        | ({"document": {"text": request.documents[i]}} if shows else {})
        for i in _order(scores, fields.top_n)
    ]


def _tei_results(fields: RerankBody, request: RerankRequest, scores: Scores) -> list[Json]:
    """There the scores are between 0 and 1 unless `raw_scores` asks for the logits."""
    shows = fields.return_text or fields.return_documents
    return [
        {"index": i, "score": scores.values[i] if fields.raw_scores else sigmoid(scores.values[i])}
        | ({"text": request.documents[i]} if shows else {})
        for i in _order(scores, fields.top_n)
    ]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), of any number."""
    smaller = math.exp(-abs(logit))
    return (1 if logit >= 0 else smaller) / (1 + smaller)
