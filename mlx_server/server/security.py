"""Who may ask: API keys, and which web pages' scripts may read the answers (CORS)."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence

from mlx_server.errors import AuthenticationError

OPEN_PATHS = frozenset({"/", "/health", "/v1/health", "/docs", "/docs/{file}", "/openapi.json"})
"""Answered without a key: probes have none, and a browser sends none for a page."""

_PREFLIGHT_MAX_AGE = "600"
_USUAL_HEADERS = "Authorization, Content-Type"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


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
    matched = False
    for token in sent:
        raw = token.encode("latin-1", "replace")
        for key in keys:
            # Every pair is compared, each in constant time: the time tells nothing.
            # (surrogateescape: a key from the environment need not be UTF-8)
            matched |= hmac.compare_digest(raw, key.encode("utf-8", "surrogateescape"))
    if not matched:
        raise AuthenticationError("Invalid API Key")


class Cors:
    """The Access-Control headers for the settings `allowed_…` and `allow_credentials`.

    The origin `localhost` stands for any page of this machine, whatever its port.

    Browsers refuse credentials together with the origin "*", so with credentials
    the origin is echoed (Fetch standard, "CORS protocol and credentials").
    """

    def __init__(
        self,
        allowed_origins: Sequence[str],
        allow_credentials: bool,
        allowed_methods: Sequence[str] = ("*",),
        allowed_headers: Sequence[str] = ("*",),
    ) -> None:
        self._any = "*" in allowed_origins
        self._local = "localhost" in allowed_origins
        self._origins = frozenset(origin.rstrip("/") for origin in allowed_origins)
        self._credentials = allow_credentials
        self._methods = frozenset(method.upper() for method in allowed_methods)
        self._headers = frozenset(header.lower() for header in allowed_headers)

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every reply carries.

        Args:
            origin: The request's Origin header.
        """
        if self._any and not self._credentials:
            return {"Access-Control-Allow-Origin": "*"}
        # Caches must know that the reply depends on the origin also where it was refused.
        headers = {"Vary": "Origin"}
        if origin and self._allows(origin):
            headers["Access-Control-Allow-Origin"] = origin
            if self._credentials:
                headers["Access-Control-Allow-Credentials"] = "true"
        return headers

    def _allows(self, origin: str) -> bool:
        # "null" is the origin of every sandboxed page: only an explicit entry allows it.
        if origin in self._origins or (self._any and origin != "null"):
            return True
        return self._local and _LOCAL_ORIGIN.fullmatch(origin) is not None

    def preflight(
        self, request_headers: Mapping[str, str], methods: Sequence[str]
    ) -> dict[str, str]:
        """What the reply to a preflight carries beside `headers()`: of what it asks for, what
        is allowed.

        Args:
            methods: Those that the path answers.
        """
        vary = {"Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}
        origin = request_headers.get("origin")
        if not origin or not self._allows(origin):
            return vary
        if "*" not in self._methods:
            methods = [method for method in methods if method in self._methods]
        asked = request_headers.get("access-control-request-headers", _USUAL_HEADERS)
        headers = [
            name
            for name in (part.strip() for part in asked.split(","))
            # A name as HTTP has it: nothing else may get from a request into a reply's head.
            if _HEADER_NAME.fullmatch(name)
            and ("*" in self._headers or name.lower() in self._headers)
        ]
        return vary | {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": ", ".join(headers),
            "Access-Control-Max-Age": _PREFLIGHT_MAX_AGE,
        }
