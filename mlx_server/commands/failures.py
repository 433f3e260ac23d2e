"""What can go wrong between the chat command and a server, as one line for the user."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any

MAX_SHOWN = 600
"""Characters of a server's own message."""


class ChatError(Exception):
    """No reply, or none to its end. Args: message: one sentence that names the mend."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def explain(error: Exception, url: str, host: str, port: int) -> ChatError:
    """A connection that failed, or broke before the reply began."""
    if isinstance(error, ConnectionRefusedError):
        return ChatError(f"No server answers at {url}; {_how_to_start(host, port)}")
    if isinstance(error, socket.gaierror | UnicodeError):  # the latter: it can be no name
        return ChatError(f"There is no host {host!r}; check --url.")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ChatError(
            f"The certificate of {url} is not trusted ({error.verify_message}); give its "
            "authority with --cacert FILE, or do without the check by --insecure."
        )
    if isinstance(error, ssl.SSLError):
        return ChatError(f"{url} does not speak HTTPS ({error.reason}); is it --url http://… ?")
    if isinstance(error, TimeoutError):
        return ChatError(f"{url} does not answer in time; check --url, or wait longer (--timeout).")
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError):
        return ChatError(
            f"{url} closed the connection without an answer; is it a server, and not --url "
            "https://… ?"
        )
    if isinstance(error, http.client.HTTPException):
        return ChatError(f"{url} does not speak HTTP; check --url.")
    return ChatError(f"{url} cannot be reached: {getattr(error, 'strerror', None) or error}.")


def _how_to_start(host: str, port: int) -> str:
    if host not in ("127.0.0.1", "localhost", "::1"):
        return "check --url, and that the server there listens on that address (--host)."
    flags = "" if port == 8080 else f" --port {port}"
    return f"start one with `mlx_server{flags}`, or name another with --url."


def broken_off(error: Exception | None = None) -> ChatError:
    """The reply's stream ended too early."""
    if isinstance(error, TimeoutError):
        return ChatError("Nothing more of the reply came in time; wait longer with --timeout.")
    return ChatError("The connection ended in the middle of the reply.")


def answered(status: int, content_type: str, body: bytes, url: str, has_key: bool) -> ChatError:
    """A status that is no success.

    Args:
        body: What came with it, or its beginning.
        has_key: A key was sent.
    """
    message = error_message(decoded(body))
    if status in (401, 403):
        said = f" ({message.rstrip('.')})" if message else ""
        if has_key:
            return ChatError(f"The server does not accept the key{said}; check --api-key.")
        return ChatError(f"The server asks for a key{said}: give it with --api-key KEY.")
    if message:
        return ChatError(f"{message[:MAX_SHOWN]} (HTTP {status})")
    return ChatError(not_a_server(status, content_type, url))


def not_a_server(status: int, content_type: str, url: str) -> str:
    kind = content_type.partition(";")[0].strip() or "nothing"
    phrase = http.client.responses.get(status, "")
    return (
        f"{url} answered {' '.join([str(status), phrase]).strip()} with {kind}, which is no reply "
        "of an LLM server; check --url."
    )


def decoded(body: bytes | str) -> Any:
    """The JSON value of `body`; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def error_message(value: Any) -> str | None:
    """The message in the forms that servers have: {"error": {"message": …}}, {"error": "…"},
    {"detail": "…"}, {"message": "…"}."""
    if not isinstance(value, dict):
        return None
    for key in ("error", "detail", "message"):
        found = value.get(key)
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str) and found:
            return found
    return None
