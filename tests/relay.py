"""A relay between a program and the server: it keeps what was sent, and can change or refuse it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"host", "content-length", "connection", "transfer-encoding", "accept-encoding"}
"""Headers that belong to one connection."""


@dataclass
class Relay:
    """Where to ask instead of the server, and what was asked.

    Args:
        url: The relay's own address.
        sent: The bodies of all POST requests, in their order, as the program sent them.
        headers: The headers of the same requests, by their names in small letters.
        statuses: Those of the server's replies to all requests.
    """

    url: str
    sent: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


Change = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def relay_to(
    url: str,
    change: Change = lambda body: body,
    seen: Callable[[int], None] = lambda status: None,
) -> Iterator[Relay]:
    """Pass each request on to the server at the url and its reply back, piece by piece.

    Args:
        change: Gives the body that is passed on for the one that the program sent.
        seen: Called with each reply's status, before the program has it.
    """
    target = urlsplit(url)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            relay.sent.append(body)
            relay.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.pass_on(json.dumps(change(dict(body))).encode())

        def pass_on(self, body: bytes | None) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            server = http.client.HTTPConnection(target.hostname, target.port)
            server.request(self.command, self.path, body, headers)
            reply = server.getresponse()
            relay.statuses.append(reply.status)
            seen(reply.status)
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.end_headers()  # the end of the connection ends the reply: this is HTTP/1.0
            while piece := reply.read1():
                self.wfile.write(piece)
                self.wfile.flush()
            server.close()

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        relay = Relay(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            listener.shutdown()
            thread.join(5)
