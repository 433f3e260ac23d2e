"""Whatever is sent to it, the server lives, tells no 500 and logs no traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_http import Client, serving

from mlx_server.server.http import HttpServer

WAIT = 20.0


class Failures(logging.Handler):
    """Collects what was logged with an exception, and errors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(self.format(record))


@contextlib.contextmanager
def no_failures() -> Iterator[None]:
    handler = Failures()
    root = logging.getLogger("mlx_server")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
    assert handler.found == []


@contextlib.contextmanager
def a_closed_end_is_no_error() -> Iterator[None]:
    """The server may end the connection while pieces are still coming: a half-close then finds
    none (ENOTCONN), where a send would have found it reset."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def exchange(port: int, pieces: list[bytes], end: str) -> bytes:
    """Send the pieces one by one, end in some way, and give all that comes back."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), WAIT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError), a_closed_end_is_no_error():
            for piece in pieces:
                sock.sendall(piece)
            if end == "vanish":
                return b""
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                received += data
    return bytes(received)


def check_alive(port: int) -> None:
    client = Client(port)
    assert client.send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").answer().status == 200
    client.close()


def statuses(received: bytes) -> list[int]:
    return [int(s) for s in re.findall(rb"^HTTP/1\.1 (\d{3}) ", received, re.MULTILINE)]


# ---------------------------------------------------------------- raw bytes

WORDS = [
    b"GET", b"POST", b"OPTIONS", b"HEAD", b"PUT", b" ", b"/", b"/echo", b"/stream", b"/health",
    b"/v1/models/x", b"*", b"?a=b", b"%00", b"%2e%2e", b"..", b" HTTP/1.1", b" HTTP/1.0",
    b" HTTP/0.9", b" HTTP/9", b"\r\n", b"\n", b"\r", b"\0", b":", b"Host: x", b"Connection: close",
    b"Connection: keep-alive", b"Content-Length: ", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity", b"Expect: 100-continue", b"Origin: null", b"0", b"2", b"{}",
    b"a" * 5000, b"ffffffffff", b"0\r\n\r\n", b"2\r\n{}\r\n", b"\x16\x03\x01", b"\xff\xfe",
]  # fmt: skip
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE", b"get", b"P\xd6ST"])
TARGETS = st.sampled_from(
    [b"/", b"/echo", b"/stream", b"/fail?x=1", b"/v1/models/a%2Fb", b"http://h/health", b"*",
     b"//", b"/completion.js", b"/%ff/..%2f", b"/stream?fail=known"]
)  # fmt: skip
HEADERS = st.sampled_from(
    [b"Host: x", b"Connection: close", b"Expect: 100-continue", b"Origin: http://a",
     b"Content-Length: 2", b"Content-Length: 0", b"Content-Length: 99", b"Content-Length: +2",
     b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked", b"X: \xff",
     b"Access-Control-Request-Method: x", b"Content-Encoding: gzip", b"A" * 300 + b": b", b" x: y"]
)  # fmt: skip
BODIES = st.one_of(
    st.sampled_from([b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\nT: x\r\n\r\n",
                     b"-1\r\n", b"busy", b"2;x=y\r\n{}\r\n0\r\n\r\n", b"2\r\n{}"]),
    st.binary(max_size=50),
)  # fmt: skip


@st.composite
def nearly_requests(draw: Callable[..., Any]) -> bytes:
    lines = [
        draw(METHODS) + b" " + draw(TARGETS) + b" HTTP/1.1",
        *draw(st.lists(HEADERS, max_size=4)),
    ]
    return b"\r\n".join([*lines, b"", b""]) + draw(BODIES)


STREAMS = st.one_of(
    st.lists(nearly_requests(), max_size=4).map(b"".join),
    st.lists(st.sampled_from(WORDS), max_size=30).map(b"".join),
    st.binary(max_size=300),
)
ENDS = st.sampled_from(["half-close", "half-close", "vanish"])


@st.composite
def in_pieces(draw: Callable[..., Any]) -> list[bytes]:
    data = draw(STREAMS)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.fixture(scope="module")
def plain() -> Iterator[int]:
    with serving(max_request_bytes=1000, read_timeout=2.0) as running:
        yield running.server.port


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=in_pieces(), end=ENDS)
def test_raw_bytes(plain: int, pieces: list[bytes], end: str) -> None:
    with no_failures() if b"/fail" not in b"".join(pieces) else contextlib.nullcontext():
        received = exchange(plain, pieces, end)
        check_alive(plain)
    # FakeDialect's /fail raises on purpose; nothing else may.
    if b"/fail" not in b"".join(pieces):
        assert 500 not in statuses(received)
    assert received == b"" or received.startswith(b"HTTP/1.1 ")


def test_the_net_would_catch_one(plain: int) -> None:
    with pytest.raises(AssertionError, match="KeyError"), no_failures():
        received = exchange(plain, [b"POST /fail HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"], "")
    assert statuses(received) == [500]


# ---------------------------------------------------------------- odd JSON, to everything there is

FIELDS = re.findall(
    r"\w+",
    "prompt messages model stream max_tokens max_completion_tokens n_predict temperature top_p "
    "top_k min_p seed stop n logprobs top_logprobs logit_bias tools tool_choice response_format "
    "grammar json_schema n_probs samplers mirostat repeat_penalty repeat_last_n penalize_nl "
    "ignore_eos id_slot cache_prompt system_prompt lora image_data input input_prefix "
    "input_suffix input_extra content tokens add_special with_pieces query documents "
    "encoding_format dimensions stream_options chat_template_kwargs response_fields echo suffix "
    "best_of user dry_sequence_breakers n_keep dynatemp_range typical_p return_tokens "
    "timings_per_token top_n adapters action filename id scale",
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, -2, 1, 2, 2**31, 2**63, 1e308, -0.0, 0.5]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "Once upon", "\ud83d", "\0", "user", "assistant", "auto", "json_object",
                     "root ::= \"a\"", "top_k", "base64", "[img-1]"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "function", "name", "text", *FIELDS[:6]]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.just("Once"),
        "messages": st.just([{"role": "user", "content": "Once"}]),
        "content": st.just("Once"),
        "input": st.just("Once"),
    },
)
TEXTS = st.one_of(
    st.builds(lambda likely, odd: json.dumps(likely | odd), LIKELY, OBJECTS),
    VALUES.map(json.dumps),
    st.sampled_from(["", "{", "[" * 5000, '{"prompt":' * 3000, "NaN", '{"prompt": "\\ud83d"}',
                     '{"a": 1, "a": 2}', "\ufeff{}", '{"n_predict": 1e999, "prompt": "a"}',
                     '{"prompt": 1' + "0" * 5000 + "}"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def real(serve: Callable[..., HttpServer], stories: Path) -> HttpServer:
    return serve(
        model=str(stories / "stories260k-chat"),
        max_request_bytes=100_000,
        max_tokens=3,
        request_timeout=5.0,
        metrics=True,
        props=True,
    )


def endpoints(server: HttpServer) -> list[tuple[str, str]]:
    routes = {(route.method, route.path) for d in server.dialects for route in d.routes}
    return sorted((method, re.sub(r"\{\w+(:path)?\}", "0", path)) for method, path in routes)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_odd_bodies(real: HttpServer, data: st.DataObject) -> None:
    method, path = data.draw(st.sampled_from(endpoints(real)))
    body = data.draw(TEXTS).encode("utf-8", "surrogatepass")
    head = f"{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with no_failures():
        client = Client(real.port)
        client.sock.settimeout(WAIT)
        answer = client.send(head.encode() + body).answer(has_body=method != "HEAD")
        client.close()
        assert answer.status != 500, answer.body
        check_alive(real.port)
    if answer.status >= 400 and method != "HEAD":
        assert "error" in json.loads(answer.body)


def test_in_the_end_nothing_runs_and_it_answers(real: HttpServer) -> None:
    body = json.dumps({"prompt": "Once", "max_tokens": 3, "ignore_eos": True}).encode()
    answer = Client(real.port).post("/v1/completions", body).answer()
    assert answer.json()["usage"]["completion_tokens"] == 3
    stats = real.pool.worker.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
