"""An HTTP client of one server: JSON and event streams, on the standard library.

Every request has a connection of its own, so closing it is what cancels the request.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlx_server import __version__
from mlx_server.commands.failures import (
    ChatError,
    answered,
    broken_off,
    decoded,
    error_message,
    explain,
    not_a_server,
)
from mlx_server.commands.sse import Event, EventReader

Json = dict[str, Any]
Notice = Callable[[str], None]
"""Tells the user, in a line, why it takes longer."""

CONNECT_SECONDS = 10.0
LOADING_SECONDS = 1.0
BUSY_TRIES = 5
MAX_WAIT_SECONDS = 30.0
MAX_ERROR_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 26
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """
    Args:
        prefix: The path before /v1, without a slash at its end.
    """

    secure: bool
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def read(cls, url: str) -> Address:
        """Of http://host:port, host:port, or either with a path; a /v1 at its end, as
        OPENAI_BASE_URL has it, says nothing new.

        Raises:
            ValueError: It is no such address.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address as in http://127.0.0.1:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("expected no more than a host, a port and a path; a key is --api-key")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        if not prefix.isascii() or not prefix.isprintable() or " " in prefix:
            raise ValueError("write its path in ASCII, other characters as %XX")
        return cls(parts.scheme == "https", parts.hostname, port, prefix)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.secure else 80)
        port = "" if usual else f":{self.port}"
        return f"http{'s' if self.secure else ''}://{host}{port}{self.prefix}"


class Client:
    """
    Args:
        key: Sent as a bearer token.
        context: For https.
        timeout: Seconds in which something has to come; None waits for ever.
    """

    def __init__(
        self,
        address: Address,
        key: str | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float | None = None,
    ) -> None:
        self.address = address
        self._key = key
        self._context = context
        self._timeout = timeout

    def get(self, path: str) -> Json:
        """The JSON object at `path`, as in /v1/models.

        Raises:
            ChatError: It cannot be had.
        """
        with ExitStack() as stack:
            response = self._send(stack, "GET", path, None)
            if response.status != 200:
                raise self._answered(response)
            return self._object(response)

    def chat(self, body: Json, notice: Notice) -> Generator[Json, None, None]:
        """The chunks of a reply, or its one body where `body` does not ask for a stream.

        Closing the generator closes the connection, which the server takes for the end of
        the request. While the server loads its model or is full, it waits.

        Raises:
            ChatError: There is no reply, or it breaks off.
        """
        with ExitStack() as stack:
            response = self._accepted(stack, body, notice)
            kind = response.headers.get_content_type()
            if kind == "text/event-stream":
                yield from self._chunks(response)
            elif kind == "application/json":
                yield _checked(self._object(response))
            else:
                raise ChatError(not_a_server(200, kind, self.address.url))

    # ------------------------------------------------------------ requests

    def _accepted(self, stack: ExitStack, body: Json, notice: Notice) -> http.client.HTTPResponse:
        """The reply to a chat that the server is ready for."""
        busy = 0
        while True:
            attempt = stack.enter_context(ExitStack())
            response = self._send(attempt, "POST", "/v1/chat/completions", body)
            if response.status == 200:
                return response
            error = self._answered(response)
            wait = _seconds(response.headers.get("Retry-After"))
            attempt.close()
            if response.status != 503:
                raise error
            if self._is_loading():
                notice("the model is loading, waiting …")
                self._wait_until_loaded()
                continue
            busy += 1
            if busy > BUSY_TRIES:
                raise error
            notice("the server is busy, trying again …")
            time.sleep(wait)

    def _is_loading(self) -> bool:
        """What /health says with a 503, here as in llama-server."""
        with ExitStack() as stack:
            return self._send(stack, "GET", "/health", None).status == 503

    def _wait_until_loaded(self) -> None:
        while self._is_loading():
            time.sleep(LOADING_SECONDS)

    def _send(
        self, stack: ExitStack, method: str, path: str, body: Json | None
    ) -> http.client.HTTPResponse:
        """The head of the reply. The stack closes the connection, and does so at once where
        this fails or Ctrl-C is pressed meanwhile."""
        headers = {"User-Agent": f"mlx_server-chat/{__version__}", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            connection = stack.enter_context(closing(self._connection()))
            connection.connect()
            connection.sock.settimeout(self._timeout)
            connection.request(method, self.address.prefix + path, data, headers)
            return stack.enter_context(closing(connection.getresponse()))
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            address = self.address
            raise explain(error, address.url, address.host, address.port) from error

    def _connection(self) -> http.client.HTTPConnection:
        address = self.address
        if address.secure:
            return http.client.HTTPSConnection(
                address.host, address.port, timeout=CONNECT_SECONDS, context=self._context
            )
        return http.client.HTTPConnection(address.host, address.port, timeout=CONNECT_SECONDS)

    # ------------------------------------------------------------ replies

    def _answered(self, response: http.client.HTTPResponse) -> ChatError:
        location = response.headers.get("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return ChatError(f"{self.address.url} leads to {location}; give that as --url.")
        kind = response.headers.get("Content-Type", "")
        try:
            body = response.read(MAX_ERROR_BYTES)
        except (OSError, http.client.HTTPException):
            body = b""
        return answered(response.status, kind, body, self.address.url, self._key is not None)

    def _object(self, response: http.client.HTTPResponse) -> Json:
        try:
            value = decoded(response.read(MAX_BODY_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise broken_off(error) from error
        if response.length:  # read() gives what there is where the rest does not come
            raise broken_off()
        if not isinstance(value, dict):
            kind = response.headers.get("Content-Type", "")
            raise ChatError(not_a_server(response.status, kind, self.address.url))
        return value

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[Json]:
        ended = False
        for event in _events(response):
            if event.data == "[DONE]":
                return
            chunk = decoded(event.data)
            if event.name == "error" or not isinstance(chunk, dict):
                message = error_message(chunk) or event.data[:200]
                raise ChatError(f"The server broke the reply off: {message}")
            yield _checked(chunk)
            ended = ended or _has_reason(chunk)
        if not ended:
            raise broken_off()


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    reader = EventReader()
    while True:
        try:
            data = response.read1(READ_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise broken_off(error) from error
        if not data:
            yield from reader.flush()
            return
        yield from reader.feed(data)


def _checked(chunk: Json) -> Json:
    """Raises ChatError where an error came instead of a piece of the reply."""
    if chunk.get("error"):
        message = error_message(chunk) or json.dumps(chunk["error"])[:200]
        raise ChatError(f"The server broke the reply off: {message}")
    return chunk


def _has_reason(chunk: Json) -> bool:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return False
    return any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices)


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.1), MAX_WAIT_SECONDS)
    except ValueError:  # a date
        return 1.0
