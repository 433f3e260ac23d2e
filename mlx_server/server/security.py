"""Who may ask: API keys, and which web pages' scripts may read the answers (CORS)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from mlx_server.errors import AuthenticationError

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})
"""Answered without a key, so that probes need none."""

_PREFLIGHT_MAX_AGE = "600"


def check_key(headers: Mapping[str, str], keys: Sequence[str]) -> None:
    """Let a request pass that carries one of `keys`, or any request where there are none.

    Args:
        headers: Names in lower case, values decoded as Latin-1. The key is a bearer
            token (RFC 6750) or the value of `x-api-key`.

    Raises:
        AuthenticationError: No key, or a wrong one.
    """
    if not keys:
        return
    sent = []
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        sent.append(token.strip())
    if "x-api-key" in headers:
        sent.append(headers["x-api-key"].strip())
    if not any(sent):
        raise AuthenticationError(
            "This server asks for an API key: send it as 'Authorization: Bearer KEY'."
        )
    matched = False
    for token in sent:
        raw = token.encode("latin-1", "replace")
        for key in keys:
            # Every pair is compared, each in constant time: the time tells nothing.
            # (surrogateescape: a key from the environment need not be UTF-8)
            matched |= hmac.compare_digest(raw, key.encode("utf-8", "surrogateescape"))
    if not matched:
        raise AuthenticationError("The API key is not valid.")


class Cors:
    """The Access-Control headers for the settings `allowed_origins` and `allow_credentials`.

    Browsers refuse credentials together with the origin "*", so with credentials
    the origin is echoed (Fetch standard, "CORS protocol and credentials").
    """

    def __init__(self, allowed_origins: Sequence[str], allow_credentials: bool) -> None:
        self._any = "*" in allowed_origins
        self._origins = frozenset(origin.rstrip("/") for origin in allowed_origins)
        self._credentials = allow_credentials

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every reply carries.

        Args:
            origin: The request's Origin header.
        """
        if self._any and not self._credentials:
            return {"Access-Control-Allow-Origin": "*"}
        # Caches must know that the reply depends on the origin also where it was refused.
        headers = {"Vary": "Origin"}
        # "null" is the origin of every sandboxed page: only an explicit entry allows it.
        if origin and (origin in self._origins or (self._any and origin != "null")):
            headers["Access-Control-Allow-Origin"] = origin
            if self._credentials:
                headers["Access-Control-Allow-Credentials"] = "true"
        return headers

    def preflight(
        self, request_headers: Mapping[str, str], methods: Sequence[str]
    ) -> dict[str, str]:
        """What the reply to a preflight carries beside `headers()`."""
        return {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": request_headers.get(
                "access-control-request-headers", "Authorization, Content-Type"
            ),
            "Access-Control-Max-Age": _PREFLIGHT_MAX_AGE,
        }
