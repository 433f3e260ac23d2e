"""A client that costs little: raw sockets, a time stamp per packet, all parsed afterwards."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT = 120.0
"""Seconds without a byte after which a request has failed."""

POLL = 0.1
"""Seconds after which a silent stream looks at `watch` again."""

Watch = Callable[[int], bool]
"""Gets the number of events so far; true means: close the connection now."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int
    model: str = "default_model"
    prefix: str = "/v1"


@dataclass(frozen=True, slots=True)
class Raw:
    """What came over the socket: (time, bytes) per packet, times of `time.perf_counter`."""

    started: float
    packets: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One request as the client saw it. Times are seconds of one clock.

    Attributes:
        times: When each piece of text arrived.
        tokens: The usage's completion tokens, else the number of pieces.
        cached_tokens: None where the server does not say.
        logprobs: Whether the reply brought log-probabilities.
        error: None, or what went wrong: refused, reset, timeout, cut, "http 503", ...
    """

    started: float
    ended: float
    times: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    text: str = ""
    finish_reason: str | None = None
    logprobs: bool = False
    error: str | None = None

    @property
    def first_after(self) -> float | None:
        """Seconds to the first token."""
        return self.times[0] - self.started if self.times else None


def exchange(endpoint: Endpoint, body: dict[str, Any], watch: Watch | None = None) -> Raw:
    """Send one chat request and read until the end of its reply. Never raises."""
    payload = json.dumps({"model": endpoint.model} | body).encode()
    head = (
        f"POST {endpoint.prefix}/chat/completions HTTP/1.1\r\nHost: {endpoint.host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    started = time.perf_counter()
    packets: list[tuple[float, bytes]] = []
    error, left = None, False
    try:
        with socket.create_connection((endpoint.host, endpoint.port), TIMEOUT) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(head + payload)
            left = _receive(sock, packets, watch)
    except ConnectionRefusedError:
        error = "refused"
    except (ConnectionResetError, BrokenPipeError, ConnectionAbortedError):
        error = "reset"
    except TimeoutError:
        error = "timeout"
    except OSError as problem:
        error = f"os {problem.errno}"
    return Raw(started, packets, error, left)


def _receive(sock: socket.socket, packets: list[tuple[float, bytes]], watch: Watch | None) -> bool:
    """Returns whether `watch` ended it."""
    if watch:
        sock.settimeout(POLL)
    events, silent_since = 0, time.perf_counter()
    while True:
        try:
            data = sock.recv(65536)
        except TimeoutError:
            if watch is None or time.perf_counter() - silent_since > TIMEOUT:
                raise
            if watch(events):
                return True
            continue
        silent_since = time.perf_counter()
        if not data:
            return False
        packets.append((silent_since, data))
        if watch:
            events += data.count(b"data: ")
            if watch(events):
                return True
        if b"data: [DONE]" in data:
            return False


# ---------------------------------------------------------------- parsing, after the clock


def parse(raw: Raw) -> Reply:
    ended = raw.packets[-1][0] if raw.packets else raw.started
    failed = Reply(raw.started, ended, error=raw.error or "cut")
    split = _split_head(raw.packets)
    if split is None:
        return failed
    status, chunked, packets = split
    body = _dechunk(packets) if chunked else iter(packets)
    if status != 200:
        return Reply(raw.started, ended, error=f"http {status}")
    found = _Fold()
    pieces = list(body)
    text = b"".join(data for _, data in pieces)
    if text.lstrip().startswith(b"{"):
        found.take(ended, json.loads(text), whole=True)
    else:
        for when, event in _events(pieces):
            found.take(when, event)
    error = raw.error
    if error is None and found.finish_reason is None and not raw.left:
        error = "cut"
    return Reply(
        raw.started,
        ended,
        times=tuple(found.times),
        tokens=found.usage.get("completion_tokens", len(found.times)),
        prompt_tokens=found.usage.get("prompt_tokens", 0),
        cached_tokens=(found.usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        text="".join(found.text),
        finish_reason=found.finish_reason,
        logprobs=found.logprobs,
        error=error,
    )


class _Fold:
    """Gathers what the events of one reply say."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.text: list[str] = []
        self.usage: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.logprobs = False

    def take(self, when: float, event: dict[str, Any], whole: bool = False) -> None:
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            part = choice.get("message" if whole else "delta") or {}
            text = (part.get("reasoning") or "") + (part.get("content") or "")
            if text:
                self.text.append(text)
                self.times.append(when)
            self.logprobs |= bool(choice.get("logprobs"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def _split_head(
    packets: list[tuple[float, bytes]],
) -> tuple[int, bool, list[tuple[float, bytes]]] | None:
    """Status, whether the body is chunked, and the body's packets; None without a whole head."""
    seen = b""
    for i, (when, data) in enumerate(packets):
        seen += data
        head, end, rest = seen.partition(b"\r\n\r\n")
        if end:
            lines = head.decode("latin-1").split("\r\n")
            chunked = any(
                line.lower().replace(" ", "") == "transfer-encoding:chunked" for line in lines
            )
            return int(lines[0].split()[1]), chunked, [(when, rest), *packets[i + 1 :]]
    return None


def _dechunk(packets: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The chunks, each with the time when its last byte came."""
    buffer = b""
    for when, data in packets:
        buffer += data
        while True:
            size, end, rest = buffer.partition(b"\r\n")
            if not end or len(rest) < int(size, 16) + 2:
                break
            length = int(size, 16)
            yield when, rest[:length]
            buffer = rest[length + 2 :]


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    buffer = b""
    for when, data in pieces:
        buffer = (buffer + data).replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                    yield when, json.loads(line[5:])


# ---------------------------------------------------------------- several at once


def together(
    endpoint: Endpoint, bodies: Sequence[dict[str, Any]], watch: Watch | None = None
) -> list[Raw]:
    """One client per body; all connect at the same moment."""
    gate = threading.Barrier(len(bodies))

    def client(body: dict[str, Any]) -> Raw:
        gate.wait()
        return exchange(endpoint, body, watch)

    return in_threads([lambda body=body: client(body) for body in bodies])


def in_threads(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all at once and return their results in order."""
    results: list[Any] = [None] * len(tasks)

    def run(i: int) -> None:
        results[i] = tasks[i]()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
