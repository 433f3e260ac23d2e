"""A client that vanishes frees its row, whatever the row is doing and however it goes."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from mlx_server.server.http import HttpServer

WAIT = 20.0  # an upper bound for things that happen within some steps
_numbers = count(100)


def long_prompt() -> list[int]:
    """One that no prefix cache knows."""
    return [1, next(_numbers), *[300] * 298]


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    server = serve(model=str(stories / "stories260k"), prefill_chunk_size=2, max_batch_size=1)
    server.pool.worker.call(slow_down)
    return server


def slow_down(engines: dict) -> None:
    """So that a row that is not given up is seen to run on, and one that is does not end before."""
    for engine in engines.values():

        def step(step=engine.step, **options):
            time.sleep(0.01)
            return step(**options)

        engine.step = step


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def since(server: HttpServer) -> Iterator[Callable[[str], int]]:
    """How much a number of the engine has grown since the test began, when all was quiet."""
    worker = server.pool.worker
    assert eventually(lambda: not any(worker.call(lambda e: [x.busy for x in e.values()])))
    before = worker.stats()
    yield lambda name: worker.stats()[name] - before[name]


def ask(server: HttpServer, stream: bool, prompt: list[int]) -> socket.socket:
    """Send a request on a connection that has served one already."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    client.sendall(b"HEAD /health HTTP/1.1\r\n\r\n")
    while not client.recv(4096).endswith(b"\r\n\r\n"):
        pass
    fields = {"prompt": prompt, "stream": stream, "ignore_eos": True}
    body = json.dumps(fields).encode()
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body))
    client.sendall(body)
    return client


def close(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def stop_sending(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def close_behind_another_request(client: socket.socket) -> None:
    client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    time.sleep(0.05)  # the watcher has seen these bytes
    client.close()


WAYS = [close, reset, stop_sending]
if hasattr(select, "POLLRDHUP"):  # elsewhere it is noticed with the next event
    WAYS.append(close_behind_another_request)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("vanish", WAYS)
def test_during_prefill(server: HttpServer, since, stream: bool, vanish: Callable) -> None:
    client = ask(server, stream, long_prompt())
    assert eventually(lambda: since("prompt_tokens_computed") > 2)
    vanish(client)
    assert eventually(lambda: since("running") == 0)
    assert since("prompt_tokens_computed") < 300
    assert since("generated_tokens") == 0
    client.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("vanish", WAYS)
def test_during_decode(server: HttpServer, since, stream: bool, vanish: Callable) -> None:
    client = ask(server, stream, [1, 2])
    assert eventually(lambda: since("generated_tokens") > 2)
    vanish(client)
    assert eventually(lambda: since("running") == 0)
    assert since("generated_tokens") < 400  # the context has room for 510
    client.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("vanish", WAYS)
def test_while_it_waits_for_a_place(
    server: HttpServer, since, stream: bool, vanish: Callable
) -> None:
    first = ask(server, True, [1, 2])
    assert eventually(lambda: since("running") == 1)
    second = ask(server, stream, long_prompt())
    assert eventually(lambda: since("waiting") == 1)
    vanish(second)
    assert eventually(lambda: since("waiting") == 0)
    assert since("running") == 1
    assert since("prompt_tokens_computed") < 10
    first.close()
    second.close()
