"""What the OpenAI routes share: the form of errors, and what a reply is called.

Wire forms: https://platform.openai.com/docs/api-reference (chat, completions).
"""

from __future__ import annotations

import uuid

from mlx_server.api.base import Json, Pool
from mlx_server.api.llama import CONTEXT_TYPE, context_sizes
from mlx_server.api.llama_limits import LimitedDialect, Limits
from mlx_server.core import GenerationRequest
from mlx_server.errors import ServerError
from mlx_server.services import EmbeddingRequest, RerankRequest

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""The API's own sampling defaults."""

_ERROR_TYPES = {
    "context_length": CONTEXT_TYPE,
    "authentication": "authentication_error",
    "rate_limit": "rate_limit_error",
    "timeout": "timeout_error",
    "not_supported": "not_supported_error",
    "unavailable": "unavailable_error",
    "server_error": "server_error",
    "model_load": "server_error",
}


class OpenAIDialect(LimitedDialect):
    """The error form of all OpenAI routes. The `format` of its requests is a `ReplyFormat`."""

    def limits(self, request: GenerationRequest) -> Limits:
        return request.format.view.limits

    def error(self, error: ServerError) -> Json:
        code: str | int | None = error.code
        if code is None and error.kind == "unavailable":
            code = error.status  # as llama-server has it, which clients wait for
        return {
            "error": {
                "message": error.message,
                "type": _ERROR_TYPES.get(error.kind, "invalid_request_error"),
                "param": error.param,
                "code": code,
                **context_sizes(error),
            }
        }


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def reply_model(request: GenerationRequest | EmbeddingRequest | RerankRequest, pool: Pool) -> str:
    """The name the client sent, else that of the model that answers."""
    return request.model if request.model is not None else pool.current_model()
