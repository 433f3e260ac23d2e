"""The exceptions of the server, and what each one means to a client.

    ServerError                      500  server_error
    ├── RequestError                 400  invalid_request      the request is wrong; see `param`
    │   ├── ContextLengthExceeded    400  context_length       the prompt does not fit
    │   ├── AuthenticationError      401  authentication
    │   ├── NotFound                 404  not_found
    │   │   └── ModelNotFound        404  model_not_found
    │   ├── MethodNotAllowed         405  method_not_allowed
    │   ├── RequestTimeout           408  timeout
    │   ├── PayloadTooLarge          413  too_large
    │   └── TooManyRequests          429  rate_limit
    ├── NotSupported                 501  not_supported        valid, but not done here
    ├── Unavailable                  503  unavailable          loading, full or stopping: try again
    ├── DeadlineExceeded             504  timeout              the request's own deadline passed
    └── ModelLoadError               500  model_load           at the start: one line, exit code 1

Every error knows its HTTP status and a neutral `kind`; each dialect in `api/`
renders the kind in its own words.
"""

from __future__ import annotations


class ServerError(Exception):
    """Something failed here, not in the request.

    Args:
        message: One sentence for the client, naming the mend where there is one.
        param: The request field at fault, in the client's spelling.
        code: A machine-readable code, where the OpenAI API has one.
        retry_after: Seconds after which trying again makes sense.
    """

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after = retry_after


class RequestError(ServerError):
    """The request is malformed or asks for something out of range."""

    status = 400
    kind = "invalid_request"


class ContextLengthExceeded(RequestError):
    """The prompt leaves no room for one generated token.

    Args:
        prompt_tokens: Length of the prompt in tokens.
        context_length: Tokens that fit, prompt and reply together.
    """

    kind = "context_length"
    code = "context_length_exceeded"

    def __init__(
        self, prompt_tokens: int, context_length: int, *, param: str | None = "messages"
    ) -> None:
        super().__init__(
            f"This model's maximum context length is {context_length} tokens, but the prompt has "
            f"{prompt_tokens} tokens and at least one more is needed for the reply. "
            "Shorten the prompt.",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class AuthenticationError(RequestError):
    status = 401
    kind = "authentication"
    code = "invalid_api_key"


class NotFound(RequestError):
    status = 404
    kind = "not_found"


class ModelNotFound(NotFound):
    kind = "model_not_found"
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """Args: allow: the methods this path has, for the Allow header."""

    status = 405
    kind = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(RequestError):
    status = 408
    kind = "timeout"


class PayloadTooLarge(RequestError):
    status = 413
    kind = "too_large"


class TooManyRequests(RequestError):
    status = 429
    kind = "rate_limit"
    code = "rate_limit_exceeded"


class NotSupported(ServerError):
    status = 501
    kind = "not_supported"


class Unavailable(ServerError):
    status = 503
    kind = "unavailable"


class DeadlineExceeded(ServerError):
    status = 504
    kind = "timeout"


class ModelLoadError(ServerError):
    kind = "model_load"
