"""Handler: one connection, its requests one after the other.

TLS handshake ─> head ─> router ─> key ─> body ─> Dialect's endpoint ─> JsonReply | StreamReply
                           └─> static file
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from mlx_server.api.account import Account
from mlx_server.api.base import HttpRequest, JsonReply, RawReply, Reply, StreamReply
from mlx_server.deltas import Lull
from mlx_server.errors import (
    AuthenticationError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    RequestTimeout,
    ServerError,
)
from mlx_server.server import access, tls, wire
from mlx_server.server.pump import Flow
from mlx_server.server.router import decode
from mlx_server.server.security import OPEN_PATHS, check_key
from mlx_server.server.static import FileReply
from mlx_server.server.watcher import Presence
from mlx_server.server.wire import Disconnected

if TYPE_CHECKING:
    from mlx_server.server.http import HttpServer

log = logging.getLogger(__name__)

_KEEP_ALIVE = 5.0
"""Seconds that an idle connection keeps its place where they are few (`threads_http`)."""


class Handler(BaseHTTPRequestHandler):
    """Runs in the connection's own thread until the connection ends."""

    protocol_version = "HTTP/1.1"
    server: HttpServer

    def setup(self) -> None:
        self.connection: socket.socket = self.request
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.silence = self.server.config.read_timeout
        self.source = wire.TimedSocket(self.connection)
        self.reader = io.BufferedReader(self.source, 64 * 1024)

    def handle(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket) and not tls.handshake(
            self.connection, self.silence
        ):
            return
        self.patience = self.silence
        super().handle()

    def finish(self) -> None:
        self.reader.close()

    def handle_one_request(self) -> None:
        self.close_connection = True  # unless the request says otherwise and is read to its end
        self.unread = True
        self.command, self.path, self.request_version = "", "", "HTTP/1.1"
        self.cors = self.server.cors.headers(None)
        self.dialect = self.server.dialects[0]
        self.status = self.bytes_sent = 0
        self.tells_nothing = False  # a file or a probe: one of many in the log
        self.ended = gone = False
        self.source.deadline = time.monotonic() + self.patience
        if self.server.config.threads_http is not None:
            self.patience = min(self.silence, _KEEP_ALIVE)
        try:
            if not self.reader.peek(1):
                return
        except RequestTimeout:
            return  # an idle connection is closed silently
        self.account = Account()
        self.source.deadline = self.account.started + self.silence
        try:
            with self.server.running(self.connection) as presence:
                self._exchange(presence)
        except Disconnected:
            self.close_connection = gone = True
            if not self.ended:
                self.status = access.CLIENT_GONE
        if self.server.stopping:  # maybe only since the reply's head was sent
            self.close_connection = True
        self._log_access()
        if self.close_connection and not gone:
            tls.say_goodbye(self.connection)
            seconds = wire.LINGER_SECONDS if self.unread else wire.SHORT_LINGER_SECONDS
            wire.linger(self.connection, seconds)

    def _log_access(self) -> None:
        """Behind a stream's end, wherever it was sent from: its figures are whole."""
        line = access.Access(
            _printable(self.command) or "-",
            _printable(self.path.partition("?")[0]) or "-",  # a query may hold secrets
            self.status,
            time.monotonic() - self.account.started,
            self.bytes_sent,
            self.account.figures(),
        )
        access.write(line, self.server.default_model, quiet=self.tells_nothing)

    def _exchange(self, presence: Presence) -> None:
        """Read a request, have it answered, and send the reply."""
        try:
            self._read_head()
            reply = self._respond(presence)
        except Disconnected:
            presence.lose()
            raise
        except ServerError as error:
            reply = self._error_reply(error)
        except Exception:
            log.exception(
                "%s %s failed",
                _printable(self.command),
                _printable(self.path.partition("?")[0]),
            )
            reply = self._error_reply(ServerError("The server failed to answer the request."))
        try:
            self._send_reply(reply, presence)
        except Disconnected:
            presence.lose()
            raise
        finally:
            if isinstance(reply, StreamReply) and hasattr(reply.events, "close"):
                reply.events.close()
            elif isinstance(reply, FileReply):
                reply.file.close()

    # ---- the request

    def _read_head(self) -> None:
        self.raw_requestline, headers = wire.read_head(self.reader)
        self.rfile = io.BytesIO(headers)  # what parse_request() reads: the head, already checked
        if not self.parse_request() or self.request_version == "HTTP/0.9":
            raise RequestError("Malformed request line.")
        tokens = self.headers.get("Connection", "").lower().split(",")
        if "close" in (token.strip() for token in tokens):
            self.close_connection = True
        self.cors = self.server.cors.headers(self.headers.get("Origin"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """How parse_request() reports; raised, so that it is answered like any other error."""
        self.close_connection = True
        error = RequestError(message or "Malformed request.")
        error.status = int(code)
        raise error

    def handle_expect_100(self) -> bool:
        return True  # parse_request() is too early: _read_body() answers, after the checks

    def _respond(self, presence: Presence) -> Reply | FileReply:
        server = self.server
        raw_path, query = wire.split_target(self.path)
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value

        frame = wire.framing(self.request_version, self.headers)
        self.unread = frame.has_body
        if self.command == "OPTIONS":
            return self._options(raw_path, headers)
        page = self._static(raw_path)
        if page is not None:
            self.tells_nothing = True
            return page
        self.dialect, route, params = server.router.match(self.command, raw_path)
        self.tells_nothing = route.path in access.PROBES
        if route.path not in OPEN_PATHS:
            check_key(headers, server.config.api_key)
        request = HttpRequest(
            method=self.command,
            path=decode(raw_path),
            query=parse_qs(query, keep_blank_values=True),
            headers=headers,
            body=self._read_body(frame),
            params=params,
            on_disconnect=presence.on_disconnect,
            account=self.account,
        )
        return route.endpoint(request, server.pool)

    def _static(self, raw_path: str) -> RawReply | FileReply | None:
        """A file, which needs no key: the page that asks for the key is one.

        The routes come first, but for "/", where a front end has its page.
        """
        if self.command not in ("GET", "HEAD"):
            return None
        if raw_path.strip("/") and self.server.router.allowed(raw_path):
            return None
        return self.server.static.reply(raw_path, self.headers.get("If-None-Match"))

    def _read_body(self, frame: wire.Framing) -> bytes:
        limit = self.server.config.max_request_bytes
        wire.check_body(frame, self.headers, limit)
        if not frame.has_body:
            return b""
        expect = self.headers.get("Expect", "").lower()
        if expect == "100-continue" and self.request_version == "HTTP/1.1":
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = wire.read_body(self.reader, frame, limit)
        self.unread = False
        return body

    def _options(self, raw_path: str, headers: Mapping[str, str]) -> JsonReply:
        allow = self.server.router.allowed(raw_path)
        if "access-control-request-method" in headers:
            methods = allow or ("GET", "HEAD", "OPTIONS", "POST")
            cors = self.server.cors.preflight(headers, methods)
            return JsonReply(None, 204, cors)
        if not allow and raw_path != "*":
            raise NotFound(f"There is nothing at {decode(raw_path)}.")
        return JsonReply(None, 204, {"Allow": ", ".join(allow or ("GET", "OPTIONS", "POST"))})

    # ---- the reply

    def _error_reply(self, error: ServerError) -> JsonReply:
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = ", ".join(error.allow)
        if isinstance(error, AuthenticationError):
            headers["WWW-Authenticate"] = "Bearer"
        return JsonReply(self.dialect.error(error), error.status, headers)

    def _send_reply(self, reply: Reply | FileReply, presence: Presence) -> None:
        if presence.lost:
            raise Disconnected
        if isinstance(reply, FileReply):
            self._send_file(reply)
            return
        if isinstance(reply, StreamReply):
            self._send_stream(reply, presence)
            return
        content_type = "application/json"
        if isinstance(reply, RawReply):
            body, content_type = reply.body, reply.content_type
        else:
            try:
                body = b"" if reply.status == 204 else wire.encode_json(reply.body)
            except Exception:
                log.exception("a reply is no JSON")
                reply = self._error_reply(ServerError("The server failed to write the reply."))
                body = wire.encode_json(reply.body)
        headers = {}
        if reply.status not in (204, 304):
            headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
        head = self._head(reply.status, {**headers, **reply.headers})
        self._send(head if self.command == "HEAD" else head + body)

    def _send_file(self, reply: FileReply) -> None:
        headers = {"Content-Type": reply.content_type, "Content-Length": str(reply.size)}
        self._send(self._head(reply.status, {**headers, **reply.headers}))
        if self.command == "HEAD":
            return
        before = self.bytes_sent
        for piece in reply.pieces():
            self._send(piece)
        if self.bytes_sent - before < reply.size:
            raise Disconnected  # it has become shorter: only the end of the connection can tell

    def _send_stream(self, reply: StreamReply, presence: Presence) -> None:
        chunked = self.request_version == "HTTP/1.1"
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            self.close_connection = True
        self._send(self._head(200, {**headers, **reply.headers}))
        if self.command == "HEAD":
            presence.lose()  # nobody waits for the events, so nothing need make them
            return
        pieces = self._pieces(reply, chunked)
        if reply.source is None:
            for piece in pieces:
                if presence.lost:
                    raise Disconnected
                assert not isinstance(piece, Lull)  # only a source that is listened to gives one
                self._send(piece)
        else:
            self._send_by_pump(Flow(self.connection, presence, pieces, reply.source))

    def _send_by_pump(self, flow: Flow) -> None:
        try:
            while not flow.over:
                self.server.pump.carry(flow)
                if flow.unsent:
                    self._send(flow.unsent)
        finally:
            self.bytes_sent += flow.bytes_sent

    def _pieces(self, reply: StreamReply, chunked: bool) -> Iterator[bytes | Lull]:
        """What is sent of a stream, event by event."""
        for event in self._events(reply):
            if chunked and not isinstance(event, Lull):
                event = wire.encode_chunk(event)
            yield event
        self.ended = True  # many a client closes the connection on its last event
        if chunked:
            yield wire.LAST_CHUNK

    def _events(self, reply: StreamReply) -> Iterator[bytes | Lull]:
        """The reply's events, encoded; whatever it raises becomes the last one."""
        try:
            for payload in reply.events:
                yield payload if isinstance(payload, Lull) else wire.encode_event(payload)
        except ServerError as error:
            yield wire.encode_event(self.dialect.error(error))
        except Exception:
            log.exception("a stream failed")
            failure = ServerError("The server failed while sending the reply.")
            yield wire.encode_event(self.dialect.error(failure))

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        if self.unread or self.server.stopping or self.server.crowded():
            self.close_connection = True
        connection = {}
        if self.close_connection:
            connection["Connection"] = "close"
        elif self.request_version == "HTTP/1.0":
            connection["Connection"] = "keep-alive"
        self.status = status
        common = {"Server": "mlx_server", "Date": self.date_time_string()}
        return wire.reply_head("HTTP/1.1", status, {**common, **connection, **self.cors, **headers})

    def _send(self, data: bytes | memoryview) -> None:
        wire.send(self.connection, data, self.silence)
        self.bytes_sent += len(data)


def _printable(text: str | None) -> str:
    """For a log: the bytes from 0x80 on, which may steer a terminal, as escapes.

    Args:
        text: None where http.server could make nothing of it.
    """
    return (text or "").encode("ascii", "backslashreplace").decode("ascii")
