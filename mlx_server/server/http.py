"""HttpServer: the stdlib's threading HTTP server. Accepts, bounds, stops.

threads_http are served: wait ─> accept ── more than max_connections ──> 503
                                   └─> Handler: a thread per connection (handler.py)
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

from mlx_server.api.base import Dialect, Pool
from mlx_server.config import Config
from mlx_server.errors import Unavailable
from mlx_server.server import tls, wire
from mlx_server.server.handler import Handler
from mlx_server.server.pump import Pump
from mlx_server.server.router import Router
from mlx_server.server.security import Cors
from mlx_server.server.static import FileReply, StaticFiles
from mlx_server.server.tls import SetupError
from mlx_server.server.watcher import DisconnectWatcher, Presence
from mlx_server.server.wire import Disconnected

__all__ = ["HttpServer", "SetupError", "describe_bind_error"]

log = logging.getLogger(__name__)

_LAST_WORDS = 1.0  # seconds for what before_cut() makes the handlers say


class HttpServer(ThreadingHTTPServer):
    """Serves dialects over HTTP/1.1. Listens as soon as it is constructed.

    Raises:
        OSError: The address cannot be listened on; `describe_bind_error` words it.
        SetupError: The certificate or the folder of static files is not there or not right.
        ValueError: Two dialects claim the same route.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, config: Config, dialects: Sequence[Dialect], pool: Pool) -> None:
        self.config = config
        self.dialects = tuple(dialects)
        self.pool = pool
        self.router = Router(dialects)
        self.cors = Cors(
            config.allowed_origins,
            config.allow_credentials,
            config.allowed_methods,
            config.allowed_headers,
        )
        # What pool.Names calls it; to be left out of the log's lines.
        self.default_model = config.model or "demo"
        self.static = StaticFiles(config.path, webui=config.webui)
        self.tls = None
        if config.ssl_key_file or config.ssl_cert_file:
            if not (config.ssl_key_file and config.ssl_cert_file):
                raise SetupError("TLS takes both --ssl-key-file and --ssl-cert-file")
            self.tls = tls.context(config.ssl_key_file, config.ssl_cert_file)
        self.stopping = False
        self._serving = False
        self._state = threading.Condition()
        self._open: set[socket.socket] = set()
        self._running: dict[socket.socket, Presence] = {}
        self._refused: deque[tuple[float, socket.socket]] = deque()
        found = socket.getaddrinfo(
            config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # "localhost" has two addresses; more clients try the IPv4 one first.
        self.address_family, _, _, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)
        super().__init__(cast(tuple[str, int], address), Handler)
        self.watcher = DisconnectWatcher()
        self.pump = Pump()

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):  # "::" then takes IPv4 clients too
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's: it asks the name service for our own name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.config.host, self.server_address[1]

    @property
    def port(self) -> int:
        return self.server_port

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = self.config.host
        if self.listens_everywhere:
            host = "::1" if self.address_family == socket.AF_INET6 else "127.0.0.1"
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{_with_port(host, self.port)}"

    @property
    def listens_everywhere(self) -> bool:
        """Whether it takes connections on every address of this machine."""
        host = str(self.server_address[0]).partition("%")[0]
        return ipaddress.ip_address(host).is_unspecified

    @property
    def listening(self) -> str | None:
        """The address and port it listens on, where that is not what `url` says."""
        if not self.listens_everywhere:
            return None
        return (
            f"{_with_port(str(self.server_address[0]), self.port)}, all addresses of this machine"
        )

    @property
    def has_page(self) -> bool:
        """Whether a browser finds a page at /."""
        page = self.static.reply("/")
        if isinstance(page, FileReply):
            page.file.close()
        return page is not None

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        with self._state:
            if self.stopping:
                return
            self._serving = True
        try:
            super().serve_forever(poll_interval)
        finally:
            self._serving = False

    def stop(self, grace: float, before_cut: Callable[[], object] = lambda: None) -> None:
        """Stop accepting, let running requests end for `grace` seconds, cut the others, return.

        To be called from another thread than the one in `serve_forever`, or after that
        has returned (as it does on KeyboardInterrupt).

        Args:
            before_cut: Called once after the grace, also when nothing runs any more. It
                ends what the handlers wait for (`Worker.stop` does, with Unavailable), so
                that each can still tell its client; then they are cut.
        """
        with self._state:
            self.stopping = True
            serving = self._serving
            self._state.notify_all()  # the accepting thread may wait for a place
        if serving:
            self.shutdown()
        self.server_close()
        with self._state:
            for sock in self._open - self._running.keys():
                _cut(sock)
            self._state.wait_for(lambda: not self._running, grace)
        try:
            before_cut()
        except Exception:
            log.exception("the running requests could not be ended")
        with self._state:
            self._state.wait_for(lambda: not self._open, _LAST_WORDS)
            for sock in self._open:
                _cut(sock)
            late = list(self._running.values())
        for presence in late:
            presence.lose()
        with self._state:  # the cut ones notice at once, unless something is stuck
            self._state.wait_for(lambda: not self._open, 1.0)
        self.pump.stop()
        self.watcher.stop()

    # ---- connections

    def get_request(self) -> tuple[socket.socket, Any]:
        """Raises OSError (which the loop passes over): none came, or the server stops."""
        self._wait_for_a_place()
        try:
            sock, address = super().get_request()
            if self.tls is not None:
                # The handshake is for the handler's thread: here it would hold up everybody.
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            return sock, address
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.warning("out of file descriptors: raise `ulimit -n`")
                time.sleep(0.1)  # the waiting connection would be reported again at once
            raise

    def _wait_for_a_place(self) -> None:
        """Until fewer than `threads_http` connections are open; others queue in the system."""
        limit = self.config.threads_http
        if limit is None:
            return
        with self._state:
            self._state.wait_for(lambda: self.stopping or len(self._open) < limit)
            if self.stopping:
                raise OSError("the server stops")

    def crowded(self) -> bool:
        """Whether somebody waits for a place that an open connection holds."""
        limit = self.config.threads_http
        if limit is None or len(self._open) < limit:
            return False
        waiting = select.poll()
        try:
            waiting.register(self.socket, select.POLLIN)
        except ValueError:  # closed: the server stops
            return True
        return bool(waiting.poll(0))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._state:
            full = len(self._open) >= self.config.max_connections
            if not full:
                self._open.add(request)
        if full:
            self._refuse(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Called in the connection's own thread at its end."""
        tls.say_goodbye(request)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_WR)
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        with self._state:
            self._open.discard(request)
            self._state.notify_all()

    def _refuse(self, sock: socket.socket) -> None:
        """Answer 503 on the accepting thread, without ever waiting for the client."""
        error = Unavailable("Too many connections; try again.", retry_after=1)
        body = wire.encode_json(self.dialects[0].error(error))
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Retry-After": "1",
            "Connection": "close",
            **self.cors.headers(None),
        }
        sock.setblocking(False)
        if self.tls is not None:
            sock.close()  # there was no handshake, so nothing can be said
            return
        with contextlib.suppress(OSError):
            sock.send(wire.reply_head("HTTP/1.1", error.status, headers) + body)
            sock.shutdown(socket.SHUT_WR)
        # Closed a little later, so that a reset does not overtake the reply.
        self._refused.append((time.monotonic() + 1.0, sock))

    def service_actions(self) -> None:
        """Called by `serve_forever` between connections."""
        now = time.monotonic()
        while self._refused and (self._refused[0][0] <= now or len(self._refused) > 64):
            _, sock = self._refused.popleft()
            with contextlib.suppress(OSError):
                sock.recv(64 * 1024)
            sock.close()

    def server_close(self) -> None:
        super().server_close()
        while self._refused:
            self._refused.popleft()[1].close()

    @contextlib.contextmanager
    def running(self, sock: socket.socket) -> Iterator[Presence]:
        """Marks a connection as busy with a request. Raises Disconnected while stopping."""
        presence = Presence(self.watcher, sock)
        with self._state:
            if self.stopping:
                raise Disconnected
            self._running[sock] = presence
        try:
            yield presence
        finally:
            presence.close()
            with self._state:
                del self._running[sock]
                self._state.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a connection failed")


def describe_bind_error(config: Config, error: OSError) -> str:
    """One line for the user about why the server cannot listen."""
    where = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program; choose another port with --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to listen on {where}; ports above 1023 need none (--port)"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{config.host!r} is not an address of this machine; see --host"
    return f"cannot listen on {where}: {error.strerror or error}"


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cut(sock: socket.socket) -> None:
    # Not close(): the handler's thread still has it, and is woken by this.
    # With TLS, SSLSocket's own shutdown() would have that thread go on in clear.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
