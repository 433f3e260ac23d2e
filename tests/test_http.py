from __future__ import annotations

import contextlib
import http.client
import json
import logging
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import requests

from mlx_server.api.base import (
    Dialect,
    HttpRequest,
    Json,
    JsonReply,
    Route,
    StreamReply,
    to_json,
)
from mlx_server.config import Config
from mlx_server.core import GenerationRequest, ModelCard
from mlx_server.errors import RequestError, ServerError, Unavailable
from mlx_server.server import wire
from mlx_server.server.http import HttpServer, describe_bind_error
from mlx_server.server.watcher import DisconnectWatcher

WAIT = 10.0  # an upper bound for things that happen at once


class FakePool:
    """Counts the requests that run, and lets tests hold them."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.release = threading.Event()
        self.cancelled = threading.Event()
        self.closed = threading.Event()
        self.stopped = False

    def generate(self, request: GenerationRequest) -> None:
        raise NotImplementedError

    def cards(self) -> list[ModelCard]:
        return []

    def card(self, name: str) -> ModelCard:
        raise NotImplementedError

    def check_ready(self) -> None: ...

    def hold(self, http: HttpRequest) -> None:
        """As a generation does: wait for tokens, or for `cancel()`."""

        def cancel() -> None:
            self.cancelled.set()
            self.release.set()

        http.on_disconnect(cancel)
        self.started.release()
        self.release.wait(WAIT)
        if self.stopped:
            raise Unavailable("The server is stopping.", retry_after=5)

    def stop(self) -> None:
        """As a worker does: end what runs with an error."""
        self.stopped = True
        self.release.set()


class FakeDialect(Dialect):
    def __init__(self) -> None:
        self.routes = (
            Route("GET", "/", self.health),
            Route("GET", "/health", self.health),
            Route("GET", "/v1/models/{model:path}", self.echo),
            Route("POST", "/echo", self.echo),
            Route("POST", "/stream", self.stream),
            Route("POST", "/hold", self.hold),
            Route("POST", "/hold-stream", self.hold_stream),
            Route("POST", "/endless", self.endless),
            Route("POST", "/fail", self.fail),
            Route("POST", "/no-json", self.no_json),
            Route("POST", "/v1/chat/completions", self.chat),
        )

    def error(self, error: ServerError) -> Json:
        return {"error": {"message": error.message, "kind": error.kind}}

    def health(self, http: HttpRequest, pool: FakePool) -> JsonReply:
        return JsonReply({"status": "ok"})

    def echo(self, http: HttpRequest, pool: FakePool) -> JsonReply:
        return JsonReply(
            {
                "path": http.path,
                "query": http.query,
                "body": http.body.decode("latin-1"),
                **http.params,
            }
        )

    def stream(self, http: HttpRequest, pool: FakePool) -> StreamReply:
        failure = http.query.get("fail", [""])[0]

        def events() -> Iterator[Json | str | None]:
            yield {"n": 0, "text": "größer\n"}
            yield None
            if failure:
                raise {"known": RequestError("told"), "unknown": KeyError("secret")}[failure]
            yield {"n": 1}
            yield "[DONE]"

        return StreamReply(events())

    def hold(self, http: HttpRequest, pool: FakePool) -> JsonReply:
        pool.hold(http)
        return JsonReply({"held": True})

    def hold_stream(self, http: HttpRequest, pool: FakePool) -> StreamReply:
        def events() -> Iterator[Json | str | None]:
            try:
                pool.hold(http)
                yield "[DONE]"
            finally:
                pool.closed.set()

        return StreamReply(events())

    def endless(self, http: HttpRequest, pool: FakePool) -> StreamReply:
        def events() -> Iterator[Json | str | None]:
            try:
                while True:
                    yield {"text": "x" * 50_000}
            finally:
                pool.closed.set()

        return StreamReply(events())

    def fail(self, http: HttpRequest, pool: FakePool) -> JsonReply:
        if b"busy" in http.body:
            raise Unavailable("full", retry_after=7)
        if b"surrogate" in http.body:
            raise RequestError("half a pair: \ud83d")
        raise KeyError("secret")

    def no_json(self, http: HttpRequest, pool: FakePool) -> JsonReply | StreamReply:
        value: Json = {"secret": object()}
        if b"deep" in http.body:
            value = {}
            for _ in range(100_000):
                value = {"secret": value}
        if b"stream" in http.body:
            return StreamReply(iter([{"n": 0}, value, {"n": 1}]))
        return JsonReply(value)

    def chat(self, http: HttpRequest, pool: FakePool) -> StreamReply:
        deltas = [{"role": "assistant", "content": ""}, None, {"content": "Hel"}, None, None,
                  {"content": "lo"}, {}]  # fmt: skip
        chunks = [
            None if delta is None else {"choices": [{"index": 0, "delta": delta}]}
            for delta in deltas
        ]
        return StreamReply(iter([*chunks, "[DONE]"]))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Json:
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)


class Client:
    """A raw socket, or a TLS one, that keeps each HTTP chunk apart."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        if tls is not None:
            # With an end that is not announced as an error, as clients of HTTP/1.0 need it.
            self.sock = tls.wrap_socket(
                self.sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
        self.file = self.sock.makefile("rb")

    def send(self, text: str | bytes) -> Client:
        self.sock.sendall(text.encode() if isinstance(text, str) else text)
        return self

    def post(self, path: str, body: bytes = b"{}", *headers: str) -> Client:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
        return self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def head(self) -> Answer:
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline()) != b"\r\n":
            assert line, "the connection was closed in the middle of the headers"
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers)

    def chunk(self) -> bytes:
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        assert self.file.readline() == b"\r\n"
        return data

    def answer(self, *, has_body: bool = True) -> Answer:
        answer = self.head()
        if not has_body or answer.status in (100, 204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while data := self.chunk():
                answer.chunks.append(data)
        elif "content-length" in answer.headers:
            answer.chunks.append(self.file.read(int(answer.headers["content-length"])))
        else:
            answer.chunks.append(self.file.read())
        return answer

    def at_end(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def reset(self) -> None:
        """Vanish with a reset instead of a friendly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


@dataclass
class Running:
    server: HttpServer
    pool: FakePool
    clients: list[Client] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def client(self) -> Client:
        self.clients.append(Client(self.server.port, self.tls))
        return self.clients[-1]


@contextlib.contextmanager
def serving(
    dialect: Dialect | None = None, *, tls: ssl.SSLContext | None = None, **settings: object
) -> Iterator[Running]:
    pool = FakePool()
    server = HttpServer(Config(port=0, **settings), [dialect or FakeDialect()], pool)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    running = Running(server, pool, tls=tls)
    try:
        yield running
    finally:
        pool.release.set()
        for client in running.clients:
            client.close()
        server.stop(0.0)
        thread.join(WAIT)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with serving(max_request_bytes=1000, webui=False) as running:
        yield running


@pytest.fixture
def client(shared: Running) -> Iterator[Client]:
    made = Client(shared.server.port)
    yield made
    made.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# ---------------------------------------------------------------- requests and replies


def test_a_connection_serves_many_requests(client: Client) -> None:
    for i in range(3):
        answer = client.post(f"/echo?q={i}&q=%20", b"\xffbody").answer()
        assert answer.status == 200
        assert answer.headers["server"] == "mlx_server"
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"path": "/echo", "query": {"q": [str(i), " "]}, "body": "ÿbody"}


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(
        b"POST /stream HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
        b"\r\nGET /v1/models/a%2Fb HTTP/1.1\r\n\r\n"
        b"GET http://host/health?x HTTP/1.1\r\nConnection: keep-alive, close\r\n\r\n"
    )
    assert client.answer().body.endswith(b"[DONE]\n\n")
    assert client.answer().json()["model"] == "a/b"
    last = client.answer()
    assert last.json() == {"status": "ok"}
    assert last.headers["connection"] == "close"
    assert client.at_end()


@pytest.mark.parametrize("path", ["/v1/models/org/name", "/v1/models/org%2Fname"])
def test_a_model_id_may_hold_a_slash(client: Client, path: str) -> None:
    answer = client.send(f"GET {path} HTTP/1.1\r\n\r\n").answer().json()
    assert answer["model"] == "org/name"
    assert answer["path"] == "/v1/models/org/name"


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/health", 200), ("/no", 404)])
def test_head_is_get_without_the_body(client: Client, path: str, status: int) -> None:
    head = client.send(f"HEAD {path} HTTP/1.1\r\n\r\n").answer(has_body=False)
    get = client.send(f"GET {path} HTTP/1.1\r\n\r\n").answer()
    assert head.status == get.status == status
    assert head.headers["content-length"] == get.headers["content-length"]


def test_http_1_0_is_closed_unless_it_asks_otherwise(shared: Running) -> None:
    client = shared.client().send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert client.answer().headers["connection"] == "keep-alive"
    assert client.send("GET / HTTP/1.0\r\n\r\n").answer().headers["connection"] == "close"
    assert client.at_end()


def test_a_chunked_body_is_decoded(client: Client) -> None:
    head = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n"
    client.send(head + b"3\r\nabc\r\n").send(b"0a;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")
    assert client.answer().json()["body"] == "abc0123456789"
    assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


def test_an_empty_body_reaches_the_dialect(client: Client) -> None:
    assert client.post("/echo", b"").answer().json()["body"] == ""


# ---------------------------------------------------------------- refusals


def test_refusals_that_leave_the_connection_open(client: Client) -> None:
    assert client.send("GET /nowhere HTTP/1.1\r\n\r\n").answer().status == 404
    wrong = client.send("GET /echo HTTP/1.1\r\n\r\n").answer()
    assert (wrong.status, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    assert client.send("BREW / HTTP/1.1\r\n\r\n").answer().status == 405
    busy = client.post("/fail", b"busy").answer()
    assert (busy.status, busy.headers["retry-after"]) == (503, "7")
    assert busy.json()["error"] == {"message": "full", "kind": "unavailable"}
    half = client.post("/fail", b"surrogate").answer()
    assert (half.status, half.json()["error"]["message"]) == (400, "half a pair: \ud83d")
    assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


def test_an_unexpected_failure_is_logged_and_not_told(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    failed = client.post("/fail").answer()
    assert failed.status == 500
    assert b"secret" not in failed.body
    assert "KeyError" in caplog.text
    assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


@pytest.mark.parametrize("body", [b"flat", b"deep"])
def test_a_reply_that_is_no_json_is_a_failure_and_not_told(
    client: Client, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    failed = client.post("/no-json", body).answer()
    assert failed.status == 500
    assert failed.json()["error"]["kind"] == "server_error"
    stream = client.post("/no-json", body + b"stream").answer()
    assert stream.chunks[0] == b'data: {"n":0}\n\n'
    assert len(stream.chunks) == 2
    assert b"server_error" in stream.chunks[1]
    assert b"secret" not in failed.body + stream.body
    assert "Traceback" in caplog.text
    assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


POST = b"POST /echo HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / some where HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTQ/1.1\r\n\r\n", 400),
        (b"GET / HTTP/one\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nName : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: nul\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: x\rB: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: ten\r\n\r\n", 400),
        (POST + b"Content-Length: \xb2\r\n\r\n", 400),
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabcd\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000, 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
        (POST + b"Content-Length: 1001\r\n\r\n", 413),
        (POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n", 413),
        (POST + b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}", 400),
        (b"POST /no HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 404),
    ],
)
def test_what_is_not_http_gets_an_error_and_is_closed(
    client: Client, request_bytes: bytes, status: int
) -> None:
    answer = client.send(request_bytes).answer()
    assert answer.status == status
    assert answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
    assert client.at_end()


def test_a_post_without_a_length_has_no_body(client: Client) -> None:
    for _ in range(2):  # and the connection goes on
        assert client.send(POST + b"\r\n").answer().json()["body"] == ""


def test_equal_content_lengths_are_one(client: Client) -> None:
    head = POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n"
    assert client.send(head + b"{}").answer().json()["body"] == "{}"


def test_a_client_that_sends_too_much_still_sees_the_answer(shared: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.server.port, timeout=WAIT)
    connection.request("POST", "/echo", b"x" * 8_000_000)  # all of it, before it reads
    assert connection.getresponse().status == 413
    connection.close()


def test_100_continue_comes_before_the_body(client: Client) -> None:
    client.send(POST + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert client.head().status == 100
    assert client.send("body").answer().json()["body"] == "body"


@pytest.mark.parametrize(
    "piece",
    [b"", b"GET", b"GET / HTTP/1.1\r\nA: b", POST + b"Content-Length: 10\r\n\r\nabc"],
)
def test_a_truncated_request_is_dropped_quietly(
    client: Client, piece: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client.send(piece).sock.shutdown(socket.SHUT_WR)
    assert client.at_end()
    assert "Traceback" not in caplog.text


# ---------------------------------------------------------------- slow and silent clients


def test_slow_clients_are_timed_out() -> None:
    with serving(read_timeout=0.5) as running:
        silent = running.client()
        body = running.client().send(POST + b"Content-Length: 10\r\n\r\nabc")
        dripping = running.client().send("GET / HTTP/1.1\r\nX-Slow: ")
        deadline = time.monotonic() + WAIT
        while not select.select([dripping.sock], [], [], 0.05)[0]:
            assert time.monotonic() < deadline  # each byte is in time, the whole never is
            dripping.send("a")
        for client in (dripping, body):
            answer = client.answer()
            assert answer.status == 408
            assert answer.headers["connection"] == "close"
        assert silent.at_end()


def test_an_idle_connection_is_closed_silently_after_its_reply() -> None:
    with serving(read_timeout=0.3) as running:
        client = running.client()
        assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        assert client.at_end()


def test_a_client_that_does_not_read_is_given_up() -> None:
    with serving(read_timeout=0.3) as running:
        client = running.client().post("/endless")
        assert running.pool.closed.wait(WAIT)
        client.close()


# ---------------------------------------------------------------- streams

EVENTS = [
    'data: {"n":0,"text":"größer\\n"}\n\n'.encode(),
    wire.KEEP_ALIVE,
    b'data: {"n":1}\n\n',
    b"data: [DONE]\n\n",
]


def test_each_event_is_one_http_chunk(client: Client) -> None:
    for _ in range(2):  # the connection stays usable
        answer = client.post("/stream").answer()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.chunks == EVENTS


def test_half_a_surrogate_pair_is_sent_as_its_escape() -> None:
    value = {"text": "é\ud83d"}
    expected = 'data: {"text":"é\\ud83d"}\n\n'.encode()
    assert wire.encode_event(value) == wire.encode_event(to_json(value)) == expected
    assert json.loads(expected[6:]) == value


def test_a_keep_alive_is_a_comment_of_one_line() -> None:
    line, *rest = wire.KEEP_ALIVE.split(b"\n")
    assert line.startswith(b":")
    assert rest == [b"", b""]


def test_the_documented_client_of_mlc_llm_reads_over_keep_alives(shared: Running) -> None:
    contents = []
    payload = {"messages": [{"role": "user", "content": "Write a haiku"}], "stream": True}
    # The loop is theirs, word for word (docs/deploy/rest.rst), but for what it does with the text.
    with requests.post(f"{shared.server.url}/v1/chat/completions", json=payload, stream=True) as r:
        for chunk in r.iter_content(chunk_size=None):
            chunk = chunk.decode("utf-8")
            if "[DONE]" in chunk[6:]:
                break
            response = json.loads(chunk[6:])
            content = response["choices"][0]["delta"].get("content", "")
            contents.append(content)
    assert contents == ["", "", "Hel", "", "", "lo", ""]


def test_http_1_0_gets_the_same_stream_unchunked(client: Client) -> None:
    answer = client.send("POST /stream HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}").answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body == b"".join(EVENTS)


def test_the_headers_of_a_stream_do_not_wait_for_its_first_event() -> None:
    with serving() as running:
        client = running.client().post("/hold-stream")
        assert client.head().status == 200
        assert not running.pool.release.is_set()
        running.pool.release.set()
        assert client.chunk() == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("kind", "message"),
    [("known", b"told"), ("unknown", b"The server failed")],
)
def test_a_stream_that_fails_ends_with_an_error_event(
    client: Client, kind: str, message: bytes
) -> None:
    answer = client.post(f"/stream?fail={kind}").answer()
    assert answer.chunks[:2] == EVENTS[:2]
    assert len(answer.chunks) == 3
    assert message in answer.chunks[2]
    assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


def test_what_comes_after_the_last_request_does_not_cost_its_reply(shared: Running) -> None:
    for _ in range(20):  # a reset would be as quick as the reply only sometimes
        client = shared.client().send("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert client.sock.recv(1, socket.MSG_PEEK)
        for _ in range(3):
            client.send("GET / HTTP/1.1\r\n\r\n")
        answer = client.answer()
        assert answer.json() == {"status": "ok"}
        assert client.at_end()
        client.close()


# ---------------------------------------------------------------- vanished clients


@pytest.mark.parametrize("path", ["/hold", "/hold-stream"])
@pytest.mark.parametrize("leave", [Client.close, Client.reset])
def test_a_gone_client_is_noticed_while_its_request_waits(
    path: str, leave: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as running:
        client = running.client().post(path)
        assert running.pool.started.acquire(timeout=WAIT)
        leave(client)
        assert running.pool.cancelled.wait(WAIT)
        assert not running.pool.closed.is_set() or path == "/hold-stream"
        assert eventually(lambda: not running.server._running)
    assert "Traceback" not in caplog.text


def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as running:
        client = running.client().post("/endless")
        client.head()
        client.chunk()
        client.close()
        assert running.pool.closed.wait(WAIT)
    assert "Traceback" not in caplog.text


def test_a_waiting_pipelined_request_is_no_disconnect() -> None:
    with serving() as running:
        client = running.client().post("/hold")
        assert running.pool.started.acquire(timeout=WAIT)
        client.send("GET /health HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        assert not running.pool.cancelled.is_set()
        running.pool.release.set()
        assert client.answer().json() == {"held": True}
        assert client.answer().json() == {"status": "ok"}


def test_the_watcher_tells_once_and_forgets() -> None:
    watcher = DisconnectWatcher()
    calls: list[str] = []
    pairs = [socket.socketpair() for _ in range(3)]
    watches = [watcher.watch(near, lambda i=i: calls.append(str(i)))
               for i, (near, _) in enumerate(pairs)]  # fmt: skip
    watcher.unwatch(watches[1])
    pairs[1][1].close()
    pairs[0][1].close()
    assert eventually(lambda: calls == ["0"])
    pairs[2][0].close()  # closed on this side while it is watched
    watcher.unwatch(watches[2])
    near, far = socket.socketpair()  # has one of the old numbers
    watcher.watch(near, lambda: calls.append("new"))
    far.close()
    assert eventually(lambda: calls == ["0", "new"])
    watcher.stop()
    near.close()
    for pair in pairs:
        for sock in pair:
            sock.close()


# ---------------------------------------------------------------- keys and origins


def test_a_key_is_asked_for_everywhere_but_at_the_door() -> None:
    with serving(api_key=("k1", "k2")) as running:
        client = running.client()
        for path in ("/", "/health"):
            assert client.send(f"GET {path} HTTP/1.1\r\n\r\n").answer().status == 200
        assert client.send("OPTIONS /echo HTTP/1.1\r\n\r\n").answer().status == 204
        assert client.post("/echo", b"{}", "Authorization: Bearer k2").answer().status == 200
        assert client.post("/echo", b"{}", "X-Api-Key: k1").answer().status == 200
        refused = client.post("/echo", b"{}", "Authorization: Bearer no").answer()
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["message"] == "Invalid API Key"
        assert running.client().post("/echo").answer().status == 401
        assert refused.json()["error"]["kind"] == "authentication"


def test_cors_headers_are_on_every_reply() -> None:
    with serving(allowed_origins=("https://a.example",), allow_credentials=True) as running:
        client = running.client()
        origin = "Origin: https://a.example"
        replies = [
            client.post("/stream", b"{}", origin).answer(),
            client.post("/fail", b"{}", origin).answer(),
            client.send(f"GET /nowhere HTTP/1.1\r\n{origin}\r\n\r\n").answer(),
        ]
        for reply in replies:
            assert reply.headers["access-control-allow-origin"] == "https://a.example"
            assert reply.headers["access-control-allow-credentials"] == "true"
        other = client.post("/echo", b"{}", "Origin: https://evil.example").answer()
        assert "access-control-allow-origin" not in other.headers


def test_a_preflight_is_answered_without_a_body(client: Client) -> None:
    answer = client.send(
        "OPTIONS /echo HTTP/1.1\r\nOrigin: https://a.example\r\n"
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-a, x-b\r\n\r\n"
    ).answer()
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "OPTIONS, POST"
    assert answer.headers["access-control-allow-headers"] == "x-a, x-b"
    plain = client.send("OPTIONS /health HTTP/1.1\r\n\r\n").answer()
    assert (plain.status, plain.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert client.send("OPTIONS * HTTP/1.1\r\n\r\n").answer().status == 204


def test_a_preflight_tells_only_what_is_allowed() -> None:
    settings = {
        "allowed_origins": ("https://a.example",),
        "allowed_methods": ("post",),
        "allowed_headers": ("Content-Type", "X-A"),
    }
    with serving(**settings) as running:
        client = running.client()

        def preflight(origin: str) -> dict[str, str]:
            answer = client.send(
                f"OPTIONS /health HTTP/1.1\r\nOrigin: {origin}\r\n"
                "Access-Control-Request-Method: GET\r\n"
                "Access-Control-Request-Headers: x-a, x-b\r\n\r\n"
                f"OPTIONS /echo HTTP/1.1\r\nOrigin: {origin}\r\n"
                "Access-Control-Request-Method: POST\r\n\r\n"
            )
            get, post = answer.answer(), answer.answer()
            assert (get.status, post.status) == (204, 204)
            return get.headers, post.headers

        get, post = preflight("https://a.example")
        assert get["access-control-allow-methods"] == ""
        assert post["access-control-allow-methods"] == "POST"
        assert get["access-control-allow-headers"] == "x-a"
        assert get["access-control-allow-origin"] == "https://a.example"
        for headers in preflight("https://evil.example"):
            assert not [name for name in headers if name.startswith("access-control")]
            assert "Origin" in headers["vary"]


def test_the_access_line_keeps_the_query_to_itself(
    shared: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mlx_server.server"):
        shared.client().post("/echo?key=hunter2").answer()
        assert eventually(lambda: "POST /echo 200" in caplog.text)
    assert "hunter2" not in caplog.text


def test_the_access_line_steers_no_terminal(
    shared: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mlx_server.server"):
        with socket.create_connection(("127.0.0.1", shared.server.port)) as raw:
            raw.sendall(b"G\x9b1mT /\x9b2J HTTP/1.1\r\n\r\n")
        assert eventually(lambda: r"G\x9b1mT /\x9b2J 404" in caplog.text)


# ---------------------------------------------------------------- many connections, start and stop


def test_a_hundred_connections_at_once_are_all_served() -> None:
    with serving() as running:
        clients = [running.client() for _ in range(100)]
        for client in clients:
            client.post("/hold")
        for _ in clients:
            assert running.pool.started.acquire(timeout=WAIT)
        running.pool.release.set()
        assert [client.answer().status for client in clients] == [200] * 100


def test_one_connection_too_many_gets_503_until_one_leaves() -> None:
    with serving(max_connections=2) as running:
        first, second = running.client(), running.client()
        for client in (first, second):
            assert client.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        third = running.client().post("/echo")
        refused = third.answer()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["kind"] == "unavailable"
        assert third.at_end()
        assert second.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        first.close()
        assert eventually(lambda: len(running.server._open) == 1)
        assert running.client().send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


def test_connections_beyond_the_http_threads_wait_their_turn() -> None:
    with serving(threads_http=2) as running:
        held = [running.client().post("/hold") for _ in range(2)]
        for _ in held:
            assert running.pool.started.acquire(timeout=WAIT)
        waiting = [running.client().send("GET / HTTP/1.1\r\n\r\n") for _ in range(3)]
        assert not select.select([client.sock for client in waiting], [], [], 0.2)[0]
        running.pool.release.set()
        # Who holds a place that others wait for has to leave it.
        assert held[0].answer().headers["connection"] == "close"
        assert [client.answer().status for client in waiting] == [200] * 3
        assert len(running.server._open) <= 2


def test_where_nobody_waits_connections_stay() -> None:
    with serving(threads_http=1) as running:
        client = running.client()
        for _ in range(2):
            answer = client.send("GET / HTTP/1.1\r\n\r\n").answer()
            assert answer.status == 200 and "connection" not in answer.headers


def test_stop_ends_the_wait_for_a_place() -> None:
    with serving(threads_http=1) as running:
        first = running.client()
        assert first.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        running.client()
        time.sleep(0.1)  # the accepting thread waits for the first one to leave
        running.server.stop(0.0)
        assert first.at_end()


def test_the_port_answers_before_it_is_served() -> None:
    server = HttpServer(Config(port=0), [FakeDialect()], FakePool())
    client = Client(server.port).send("GET / HTTP/1.1\r\n\r\n")  # waits in the backlog
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert client.answer().status == 200
    client.close()
    server.stop(0.0)


def test_a_server_that_never_served_can_be_stopped() -> None:
    server = HttpServer(Config(port=0), [FakeDialect()], FakePool())
    server.stop(0.0)
    server.serve_forever()
    with pytest.raises(OSError):
        Client(server.port)


def test_stop_lets_a_running_request_finish() -> None:
    with serving() as running:
        idle, client = running.client(), running.client().post("/hold")
        assert running.pool.started.acquire(timeout=WAIT)
        stopper = threading.Thread(target=running.server.stop, args=(WAIT,))
        stopper.start()
        assert idle.at_end()
        assert stopper.is_alive()
        running.pool.release.set()
        answer = client.answer()
        assert answer.json() == {"held": True}
        assert answer.headers["connection"] == "close"
        stopper.join(WAIT)
        assert not stopper.is_alive()
        assert not running.pool.cancelled.is_set()


def test_stop_lets_what_runs_tell_why_it_ends() -> None:
    with serving() as running:
        stream, whole = running.client().post("/hold-stream"), running.client().post("/hold")
        head = stream.head()
        for _ in range(2):
            assert running.pool.started.acquire(timeout=WAIT)
        calls: list[bool] = []

        def before_cut() -> None:
            calls.append(running.server.stopping)
            running.pool.stop()

        running.server.stop(0.05, before_cut)
        assert calls == [True]
        assert head.headers["transfer-encoding"] == "chunked"
        assert b"The server is stopping." in stream.chunk()
        assert stream.chunk() == b""  # the last one: the stream ends as it should
        assert stream.at_end()
        answer = whole.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["connection"] == "close"
        assert answer.json()["error"]["message"] == "The server is stopping."
        assert not running.server._open
        assert not running.pool.cancelled.is_set()


def test_stop_without_anything_running_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as running:
        idle = running.client()
        assert idle.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        calls: list[str] = []

        def fail() -> None:
            calls.append("called")
            raise OSError("cannot be stopped")

        stopper = threading.Thread(target=running.server.stop, args=(1e6, fail))
        stopper.start()
        stopper.join(WAIT)
        assert not stopper.is_alive()
        assert idle.at_end()
        assert calls == ["called"]
    assert "cannot be stopped" in caplog.text


def test_a_stream_that_began_before_stop_does_not_keep_its_connection() -> None:
    with serving() as running:
        idle, client = running.client(), running.client().post("/hold-stream")
        assert "connection" not in client.head().headers
        ended = threading.Event()
        in_time: list[bool] = []

        def before_cut() -> None:
            in_time.append(ended.wait(WAIT / 2))

        stopper = threading.Thread(target=running.server.stop, args=(WAIT, before_cut))
        stopper.start()
        assert idle.at_end()  # so stop() waits for the stream by now
        running.pool.release.set()
        assert client.chunk() == b"data: [DONE]\n\n"
        assert client.chunk() == b""
        assert client.at_end()
        ended.set()
        stopper.join(WAIT)
        assert in_time == [True]


@pytest.mark.parametrize("path", ["/hold", "/hold-stream", "/endless"])
def test_stop_cuts_what_does_not_finish(path: str) -> None:
    with serving() as running:
        client = running.client().post(path)
        if path == "/endless":
            client.head()
        else:
            assert running.pool.started.acquire(timeout=WAIT)
        running.server.stop(0.1)
        assert (running.pool.closed if path == "/endless" else running.pool.cancelled).wait(WAIT)
        assert not running.server._running


def test_a_port_in_use_is_one_clear_line(shared: Running) -> None:
    config = Config(port=shared.server.port)
    with pytest.raises(OSError) as caught:
        HttpServer(config, [FakeDialect()], FakePool())
    line = describe_bind_error(config, caught.value)
    assert f"127.0.0.1:{shared.server.port} is in use" in line
    assert "\n" not in line


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::1", "::"])
def test_hosts_of_both_families(host: str) -> None:
    try:
        server = HttpServer(Config(host=host, port=0), [FakeDialect()], FakePool())
    except OSError:
        if ":" not in host:
            raise
        pytest.skip("no IPv6 here")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=WAIT)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    server.stop(0.0)
