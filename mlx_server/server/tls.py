"""TLS: the context of the server's certificate, and what its sockets do differently.

A TLS socket holds state beside its file descriptor, which only one thread at a time may
touch: the handler's or the pump's. What other threads do (cut a connection, look whether
its client is gone) goes to the descriptor below (`socket.socket`'s own methods), where no
byte is decrypted and none can be sent in clear.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from mlx_server.server import wire

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""For the whole handshake, however slowly its bytes come."""

_PLAIN_HTTP = b"This port speaks TLS: use https:// instead of http://.\n"


class SetupError(Exception):
    """The server cannot be set up as its settings say; the message is one line for the user."""


def context(key_file: str, cert_file: str) -> ssl.SSLContext:
    """The context of a certificate (a chain is read too) and its private key, both PEM.

    Raises:
        SetupError: A file cannot be read, holds something else, or they do not match.
    """
    # (unlike Path's own, os.path's leaves ~nobody as it is)
    key_path, cert_path = os.path.expanduser(key_file), os.path.expanduser(cert_file)
    for flag, path in (("--ssl-key-file", key_path), ("--ssl-cert-file", cert_path)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise SetupError(f"{flag} {path}: {error.strerror or error}") from None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION  # a client could make the server compute for ever
    made.set_alpn_protocols(["http/1.1"])
    asked: list[bool] = []

    def password() -> str:  # without this, OpenSSL would ask on the terminal and wait
        asked.append(True)
        return ""

    try:
        made.load_cert_chain(cert_path, key_path, password=password)
    except (ssl.SSLError, ValueError) as error:
        raise SetupError(_what_is_wrong(error, bool(asked), key_file, cert_file)) from None
    return made


def _what_is_wrong(error: Exception, encrypted: bool, key_file: str, cert_file: str) -> str:
    reason = getattr(error, "reason", None)
    if encrypted:
        return f"--ssl-key-file {key_file}: the key is encrypted; give one without a passphrase"
    if reason == "KEY_VALUES_MISMATCH":
        return f"--ssl-key-file {key_file} is not the key of --ssl-cert-file {cert_file}"
    return (
        f"--ssl-key-file {key_file} and --ssl-cert-file {cert_file} must be PEM files, a private "
        f"key and its certificate ({(reason or str(error)).replace('_', ' ').lower()})"
    )


def handshake(sock: ssl.SSLSocket, seconds: float) -> bool:
    """Shake hands within a time. Whether it came about; why not is logged, and told to a
    client that speaks plain HTTP."""
    try:
        sock.settimeout(min(seconds, HANDSHAKE_SECONDS))
        sock.do_handshake()
        return True
    except ssl.SSLError as error:
        log.info("no TLS connection: %s", (error.reason or "failed").replace("_", " ").lower())
        if error.reason == "HTTP_REQUEST":
            _answer_in_clear(sock)
    except (OSError, ValueError):  # timed out, gone, or closed by a server that stops
        log.info("no TLS connection: the handshake was not finished")
    return False


def _answer_in_clear(sock: ssl.SSLSocket) -> None:
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(_PLAIN_HTTP)),
        "Connection": "close",
    }
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        socket.socket.send(sock, wire.reply_head("HTTP/1.1", 400, headers) + _PLAIN_HTTP)
        wire.linger(sock)


def say_goodbye(sock: socket.socket) -> None:
    """Send TLS's end of the stream (close_notify), without waiting for the client's.

    Without it a client cannot tell a whole reply that ends with the connection from one
    that was cut off. For the thread that owns the socket.
    """
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            sock.setblocking(False)
            sock.unwrap()


def quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(OSError, ValueError):
        act()
