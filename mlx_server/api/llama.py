"""What llama.cpp's routes share: its form of errors, and its names for the reasons.

Wire forms: the document of llama.cpp's HTTP server ("API errors").
"""

from __future__ import annotations

from mlx_server.api.base import Json
from mlx_server.api.llama_limits import LimitedDialect, Limits
from mlx_server.core import GenerationRequest
from mlx_server.errors import ContextLengthExceeded, ServerError

BAD_GRAMMAR = "Failed to parse grammar"
"""What llama.cpp says of one; the reason follows here."""

CONTEXT_TYPE = "exceed_context_size_error"

_TYPES = {
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "model_not_found": "not_found_error",
    "not_supported": "not_supported_error",
    "unavailable": "unavailable_error",
    "context_length": CONTEXT_TYPE,
}

_GRAMMAR_PARAMS = ("grammar", "json_schema")


class LlamaDialect(LimitedDialect):
    """The error form of all llama.cpp routes. The `format` of its requests is a `LlamaView`."""

    def limits(self, request: GenerationRequest) -> Limits:
        return request.format.limits

    def error(self, error: ServerError) -> Json:
        usual = "invalid_request_error" if error.status < 500 else "server_error"
        body: Json = {
            "code": error.status,
            "message": message_of(error),
            "type": _TYPES.get(error.kind, usual),
        }
        return {"error": {**body, **context_sizes(error)}}


def message_of(error: ServerError) -> str:
    """The error's message; an invalid grammar's begins as llama.cpp's does."""
    if error.status == 400 and error.param in _GRAMMAR_PARAMS:
        return f"{BAD_GRAMMAR}: {error.message}"
    return error.message


def context_sizes(error: ServerError) -> Json:
    """How long a prompt that does not fit is, and what would fit; of others nothing."""
    if not isinstance(error, ContextLengthExceeded):
        return {}
    return {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.context_length}
