"""GET /v1/models, /v1/models/{id} and /health, with and without /v1."""

from __future__ import annotations

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Route
from mlx_server.api.openai import OpenAIDialect
from mlx_server.core import ModelCard
from mlx_server.errors import Unavailable

LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
"""llama-server's body, to the letter: scripts that wait for a server compare it."""


class Admin(OpenAIDialect):
    def __init__(self) -> None:
        self.routes = tuple(
            Route("GET", prefix + path, endpoint, summary)
            for path, endpoint, summary in (
                ("/models", self.models, "The models that requests can name"),
                ("/models/{model:path}", self.model, "One model"),
                ("/health", self.health, "Whether the model is loaded"),
            )
            for prefix in ("/v1", "")
        )

    def models(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply({"object": "list", "data": [card_body(card) for card in pool.cards()]})

    def model(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply(card_body(pool.card(http.params["model"])))

    def health(self, http: HttpRequest, pool: Pool) -> JsonReply:
        try:
            pool.check_ready()
        except Unavailable:
            return JsonReply(LOADING, status=503)
        return JsonReply({"status": "ok"})


def card_body(card: ModelCard) -> Json:
    """OpenAI's fields, and what is known of vLLM's (root, parent, max_model_len)."""
    more = {"root": card.root, "parent": card.parent, "max_model_len": card.context_length}
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        **{name: value for name, value in more.items() if value is not None},
    }
