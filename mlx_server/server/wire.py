"""HTTP/1.1 on the wire: strict reading under a deadline, writing of replies and events.

Nothing here knows routes or dialects. Message framing follows RFC 9112: what is
ambiguous there is refused, so that no proxy in front can read it in another way.
"""

from __future__ import annotations

import contextlib
import io
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Any

from mlx_server.api.base import to_json
from mlx_server.errors import PayloadTooLarge, RequestError, RequestTimeout

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 4096
"""The longest chunk-size or trailer line."""

LINGER_SECONDS = 2.0
SHORT_LINGER_SECONDS = 0.25
"""Where nothing more is announced: a client that was told of the end closes at once, and what
another pipelined is dropped in that time."""

_SEND_PIECE = 256 * 1024
_TLS_PIECE = 16 * 1024
"""What OpenSSL makes one record of. It wants a piece that it could not send again as it was."""

_REQUEST_LINE = re.compile(rb"[^\x00-\x1f\x7f]+\r?\n")
_HEADER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_DIGITS = re.compile(r"[0-9]{1,18}")


class Disconnected(Exception):
    """The client is gone, or does not take what it is sent."""


class HeadTooLarge(RequestError):
    status = 431


# ---------------------------------------------------------------- reading


class TimedSocket(io.RawIOBase):
    """A socket's bytes, until a deadline that covers all reads together.

    A timeout for each read would let a client hold its thread for ever with one
    byte a second. After the deadline (`time.monotonic` seconds) reads raise
    RequestTimeout; a connection that breaks reads as its end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining = self.deadline - time.monotonic()
        try:
            if remaining > 0:
                self._sock.settimeout(remaining)
                return self._sock.recv_into(buffer)
        except TimeoutError:
            pass
        except (OSError, ValueError):
            return 0
        raise RequestTimeout("The request did not arrive in time.")


def read_head(reader: io.BufferedReader[Any]) -> tuple[bytes, bytes]:
    """The request line, and the header lines with the empty line that ends them.

    Raises:
        RequestError: A line that is no request line or no header (folded lines and
            control characters among them).
        HeadTooLarge: More than MAX_HEAD_BYTES.
        Disconnected: The client closed before the end.
    """
    lines: list[bytes] = []
    size = 0
    while True:
        line = reader.readline(MAX_HEAD_BYTES + 1 - size)
        size += len(line)
        if size > MAX_HEAD_BYTES:
            raise HeadTooLarge(f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
        if not line.endswith(b"\n"):
            raise Disconnected
        if line in (b"\r\n", b"\n"):
            if lines:
                return lines[0], b"".join(lines[1:]) + b"\r\n"
            continue  # an empty line before the request: RFC 9112, section 2.2
        if not lines and not _REQUEST_LINE.fullmatch(line):
            raise RequestError("This is not HTTP: the request line has control characters.")
        if lines and not _HEADER_LINE.fullmatch(line):
            raise RequestError(f"Malformed header line: {line[:80].decode('latin-1')!r}")
        lines.append(line)


def split_target(target: str) -> tuple[str, str]:
    """The raw path and the query of a request target, also of one in absolute form."""
    if target.startswith(("http://", "https://")):
        target = "/" + "".join(target.split("/", 3)[3:])
    path, _, query = target.partition("?")
    return path, query


@dataclass(frozen=True, slots=True)
class Framing:
    """How a request's body is delimited: `length` bytes, or chunks."""

    length: int = 0
    chunked: bool = False

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length > 0


def framing(version: str, headers: Message) -> Framing:
    """Read the framing of the body from the headers.

    Raises:
        RequestError: The headers are wrong or contradict one another.
    """
    lengths = {
        part.strip() for value in headers.get_all("Content-Length", []) for part in value.split(",")
    }
    codings = ",".join(headers.get_all("Transfer-Encoding", [])).lower()
    if codings:
        if lengths or version != "HTTP/1.1":
            raise RequestError(
                "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0."
            )
        if codings.strip() != "chunked":
            raise RequestError(f"Transfer-Encoding {codings!r} is not supported; use chunked.")
        return Framing(chunked=True)
    if not lengths:
        return Framing()  # there is no body: RFC 9112, section 6.3
    length = lengths.pop()
    if lengths or not _DIGITS.fullmatch(length):
        raise RequestError("Content-Length must be one decimal number of bytes.")
    return Framing(int(length))


def check_body(frame: Framing, headers: Message, limit: int) -> None:
    """Refuse a body before it is read. Raises RequestError, PayloadTooLarge."""
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise RequestError(f"Content-Encoding {coding!r} is not supported; send the body as it is.")
    if frame.length > limit:
        raise PayloadTooLarge(
            f"The body has {frame.length} bytes; this server takes at most {limit}."
        )


def read_body(reader: io.BufferedReader[Any], frame: Framing, limit: int) -> bytes:
    """The whole body, decoded. Raises PayloadTooLarge, RequestError, Disconnected."""
    if not frame.chunked:
        return _exactly(reader, frame.length)
    body = bytearray()
    while True:
        line = _line(reader)
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise RequestError("Malformed chunk size in the body.")
        size = int(match[1], 16)
        if size == 0:
            break
        if len(body) + size > limit:
            raise PayloadTooLarge(f"The body has more than {limit} bytes.")
        body += _exactly(reader, size)
        if _line(reader) not in (b"\r\n", b"\n"):
            raise RequestError("A chunk of the body is longer than its size says.")
    trailer_bytes = 0
    while (line := _line(reader)) not in (b"\r\n", b"\n"):
        trailer_bytes += len(line)
        if trailer_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge("The trailers of the body are too long.")
    return bytes(body)


def _exactly(reader: io.BufferedReader[Any], size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise Disconnected
    return data


def _line(reader: io.BufferedReader[Any]) -> bytes:
    line = reader.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        if len(line) < MAX_LINE_BYTES:
            raise Disconnected
        raise RequestError("A line between the chunks of the body is too long.")
    return line


# ---------------------------------------------------------------- writing


def reply_head(version: str, status: int, headers: Mapping[str, str]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"{version} {status} {phrase}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")


def encode_json(value: Any) -> bytes:
    return _utf8(to_json(value))


def _utf8(text: str) -> bytes:
    # Half a surrogate pair, as JSON from a client may hold and an error may quote, becomes
    # its escape, which in a JSON string stands for the same.
    return text.encode("utf-8", "backslashreplace")


# For every SSE parser a comment. MLC LLM's documented client has none: it drops the first
# six characters of each chunk, reads the rest as JSON, and takes choices[0].delta from it.
KEEP_ALIVE = b': ping{"choices":[{"index":0,"delta":{}}]}\n\n'


def encode_event(payload: Any) -> bytes:
    """One server-sent event: a JSON value, a string as it is, or None for a comment."""
    if payload is None:
        return KEEP_ALIVE
    data = _utf8(payload) if isinstance(payload, str) else encode_json(payload)
    return b"data: %b\n\n" % data


def encode_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def send_now(sock: socket.socket, data: bytes | memoryview) -> int:
    """Send what the socket has room for; returns how many bytes. Raises Disconnected."""
    if isinstance(sock, ssl.SSLSocket):
        return _send_records(sock, data)
    try:
        # One system call. A timeout would make three of it (mode, poll, send), and the
        # interpreter lock would go out of hand and come back around each.
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        return sock.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        raise Disconnected from None


def _send_records(sock: ssl.SSLSocket, data: bytes | memoryview) -> int:
    view, sent = memoryview(data), 0
    try:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        while sent < len(view):
            sent += sock.send(view[sent : sent + _TLS_PIECE])
    except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
        pass
    except (OSError, ValueError):  # ValueError: the stream was ended
        raise Disconnected from None
    return sent


def send(sock: socket.socket, data: bytes | memoryview, timeout: float) -> None:
    """Send all of it. A client that takes nothing for `timeout` seconds counts as gone.

    Raises:
        Disconnected
    """
    sent = send_now(sock, data)
    if sent == len(data):
        return
    rest = memoryview(data)[sent:]
    try:
        sock.settimeout(timeout)
        step = _TLS_PIECE if isinstance(sock, ssl.SSLSocket) else _SEND_PIECE
        for start in range(0, len(rest), step):
            sock.sendall(rest[start : start + step])
    except (OSError, ValueError):
        raise Disconnected from None


def linger(sock: socket.socket, seconds: float = LINGER_SECONDS) -> None:
    """Take and drop what the client still sends, for a while, before the socket is closed.

    Closing with unread bytes resets the connection, and the reset can overtake
    the reply that says why (RFC 9112, 9.6: close in stages). It ends with the client's end.
    """
    deadline = time.monotonic() + seconds
    # socket.socket's own methods: what is dropped need not be decrypted.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while (remaining := deadline - time.monotonic()) > 0:
            sock.settimeout(remaining)
            if not socket.socket.recv(sock, 64 * 1024):
                return
