"""Streams that one thread sends for all: what arrives is the same, and nobody waits for another."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

import pytest
from test_http import Client, FakePool, Running, eventually, serving

from mlx_server.api.base import Dialect, HttpRequest, Json, Route, StreamReply
from mlx_server.deltas import Lull
from mlx_server.errors import ServerError, Unavailable


class Source:
    """Events by hand: items are yielded, exceptions raised, the string "end" ends it."""

    def __init__(self, keep_alive: float = 100.0) -> None:
        self.items: queue.SimpleQueue[Json | str | Exception] = queue.SimpleQueue()
        self.keep_alive = keep_alive
        self.shown = time.monotonic()
        self.listener: Callable[[], None] | None = None
        self.closed = False

    def put(self, *items: Json | str | Exception) -> None:
        for item in items:
            self.items.put(item)
            if self.listener is not None:
                self.listener()

    def listen(self, listener: Callable[[], None] | None) -> None:
        self.listener = listener

    def patience(self) -> float:
        return self.shown + self.keep_alive - time.monotonic()

    def __iter__(self) -> Iterator[Json | str | Lull | None]:
        try:
            while True:
                if self.patience() <= 0:
                    self.shown = time.monotonic()
                    yield None
                try:
                    item = self.items.get_nowait()
                except queue.Empty:
                    yield Lull()
                    continue
                if isinstance(item, Exception):
                    raise item
                if item == "end":
                    return
                yield item
        finally:
            self.closed = True


class SourceDialect(Dialect):
    def __init__(self, sources: list[Source]) -> None:
        self.routes = (Route("POST", "/source/{number}", self.stream),)
        self.sources = sources

    def error(self, error: ServerError) -> Json:
        return {"error": error.message}

    def stream(self, http: HttpRequest, pool: FakePool) -> StreamReply:
        source = self.sources[int(http.params["number"])]
        http.on_disconnect(lambda: source.put(Unavailable("gone")))
        return StreamReply(iter(source), source=source)


@pytest.fixture
def sources() -> list[Source]:
    return [Source(), Source(), Source()]


@pytest.fixture
def running(sources: list[Source]) -> Iterator[Running]:
    with serving(SourceDialect(sources), read_timeout=1.0) as running:
        yield running


def begin(running: Running, number: int) -> Client:
    client = running.client().post(f"/source/{number}")
    assert client.head().status == 200
    return client


def test_each_event_is_one_chunk_sent_at_once(running: Running, sources: list[Source]) -> None:
    client = begin(running, 0)
    for n in range(3):
        sources[0].put({"n": n})
        assert client.chunk() == b'data: {"n":%d}\n\n' % n
    sources[0].put({"n": 3}, {"n": 4}, "[DONE]", "end")
    assert [client.chunk() for _ in range(4)] == [
        b'data: {"n":3}\n\n',
        b'data: {"n":4}\n\n',
        b"data: [DONE]\n\n",
        b"",
    ]
    assert eventually(lambda: sources[0].closed)


def test_the_connection_serves_the_next_stream(running: Running, sources: list[Source]) -> None:
    client = running.client()
    for number in range(3):
        sources[number].put({"n": number}, "end")
        assert client.post(f"/source/{number}").answer().body == b'data: {"n":%d}\n\n' % number


def test_http_1_0_gets_it_unchunked(running: Running, sources: list[Source]) -> None:
    client = running.client().send("POST /source/0 HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    sources[0].put("[DONE]", "end")
    answer = client.answer()
    assert answer.body == b"data: [DONE]\n\n"
    assert answer.headers["connection"] == "close"


def test_one_that_does_not_read_keeps_nobody_waiting(
    running: Running, sources: list[Source]
) -> None:
    slow, quick = begin(running, 0), begin(running, 1)
    sources[0].put(*({"n": n, "text": "x" * 100_000} for n in range(200)), "end")
    for n in range(20):
        sources[1].put({"n": n})
        assert quick.chunk() == b'data: {"n":%d}\n\n' % n
    # What it was owed is all there once it reads.
    events = [slow.chunk() for _ in range(200)]
    assert all(b'{"n":%d,' % n in event for n, event in enumerate(events))
    assert slow.chunk() == b""


def test_one_that_never_reads_is_given_up(running: Running, sources: list[Source]) -> None:
    begin(running, 0)
    sources[0].put(*({"text": "x" * 100_000} for _ in range(200)))
    assert eventually(lambda: sources[0].closed)


def test_silence_is_filled_with_keep_alives(running: Running, sources: list[Source]) -> None:
    sources[0].keep_alive = 0.05
    client = begin(running, 0)
    assert [client.chunk()[:1] for _ in range(3)] == [b":"] * 3
    sources[0].put("[DONE]", "end")
    chunks = list(iter(client.chunk, b""))
    assert chunks[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("friendly", [True, False])
def test_many_that_vanish_are_all_noticed(friendly: bool) -> None:
    many = [Source() for _ in range(64)]
    with serving(SourceDialect(many)) as running:
        clients = [begin(running, number) for number in range(64)]
        for source in many[:32]:
            source.put({"n": 0})
        for client in clients:
            client.close() if friendly else client.reset()
        assert eventually(lambda: all(source.closed for source in many))
        assert eventually(lambda: not running.server._running)


@pytest.mark.parametrize("error", [Unavailable("told"), KeyError("secret")])
def test_what_fails_ends_in_an_error_and_harms_no_other(
    running: Running, sources: list[Source], error: Exception
) -> None:
    broken, other = begin(running, 0), begin(running, 1)
    sources[0].put({"n": 0}, error)
    assert broken.chunk() == b'data: {"n":0}\n\n'
    last = broken.chunk()
    assert b'"error"' in last and b"secret" not in last
    assert broken.chunk() == b""
    sources[1].put({"n": 1}, "end")
    assert other.chunk() == b'data: {"n":1}\n\n'
    assert other.chunk() == b""


def test_a_stopping_server_lets_streams_end(sources: list[Source]) -> None:
    with serving(SourceDialect(sources)) as running:
        streams = [begin(running, number) for number in range(3)]

        def before_cut() -> None:
            for source in sources:
                source.put(Unavailable("stopping"))

        running.server.stop(0.0, before_cut)
        for stream in streams:
            assert b"stopping" in stream.chunk()
            assert stream.chunk() == b""
        assert all(source.closed for source in sources)


def test_a_stream_that_goes_on_is_cut_at_the_stop(sources: list[Source]) -> None:
    with serving(SourceDialect(sources)) as running:
        client = begin(running, 0)
        running.server.stop(0.0)
        assert eventually(lambda: sources[0].closed)
        assert client.at_end()
