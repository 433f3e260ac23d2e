"""A server that sends what a test tells it to, byte for byte, and notes what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n"


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return f"data: {json.dumps({'model': 'canned', 'choices': [choice], **more})}\n\n"


def text(*pieces: str) -> str:
    """A whole stream that says these pieces."""
    return "".join(chunk({"content": p}) for p in pieces) + chunk(reason="stop") + DONE


DONE = "data: [DONE]\n\n"


@dataclass
class Answer:
    """
    Args:
        body: What is sent; a list has each piece as a chunk of chunked encoding.
        ends: Send what ends the body.
        stays: Keep the connection open behind it until the client is gone.
    """

    body: str | list[str] = ""
    status: int = 200
    kind: str = "text/event-stream"
    headers: tuple[str, ...] = ()
    ends: bool = True
    stays: bool = False

    def encoded(self) -> bytes:
        head = HEAD.format(status=self.status, kind=self.kind)
        head += "".join(f"{line}\r\n" for line in self.headers)
        if isinstance(self.body, list):
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(p.encode()), p.encode()) for p in self.body)
            end = b"0\r\n\r\n" if self.ends else b""
            return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + end
        return f"{head}\r\n{self.body}".encode()


MODELS = Answer('{"data": [{"id": "canned", "max_model_len": 100}]}', kind="application/json")


@dataclass
class Canned:
    """
    Attributes:
        answers: Path → what it is answered, in turn; the last one stays.
        requests: Path, headers in small letters and body, in the order in which they came.
    """

    url: str
    answers: dict[str, list[Answer]]
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def chats(self) -> list[Any]:
        """The bodies of the chats."""
        return [body for path, _, body in self.requests if path.endswith("/chat/completions")]


@contextmanager
def serving(chat: Answer | list[Answer], **others: Answer | list[Answer]) -> Iterator[Canned]:
    """Args: others: Name of the last part of a path → its answers; /v1/models has one."""
    given = {"completions": chat, "models": MODELS, **others}
    answers = {name: a if isinstance(a, list) else [a] for name, a in given.items()}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Canned(f"http://127.0.0.1:{listener.getsockname()[1]}", answers)
        stop = threading.Event()
        thread = threading.Thread(target=_accept, args=(listener, found, stop), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            # accept() does not end by itself where another thread closes its socket
            socket.create_connection(listener.getsockname(), 1).close()
            thread.join(5)


def _accept(listener: socket.socket, canned: Canned, stop: threading.Event) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            if stop.is_set():
                return
            connection.settimeout(10)
            try:
                _answer(connection, canned)
            except OSError:
                canned.gone.set()


def _answer(connection: socket.socket, canned: Canned) -> None:
    with connection.makefile("rb") as reader:
        path = reader.readline().decode().split()[1]
        headers = {}
        while line := reader.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = json.loads(reader.read(int(headers.get("content-length", 0))) or "null")
    canned.requests.append((path, headers, body))
    answers = canned.answers.get(path.rpartition("/")[2], [Answer("{}", 404, "application/json")])
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    connection.sendall(answer.encoded())
    if answer.stays and not connection.recv(1):
        canned.gone.set()
