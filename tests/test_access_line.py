"""One line of the log for each request, with what the reply itself says it took."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from api_fakes import FakePool

from mlx_server.api.account import Account, Figures
from mlx_server.api.base import HttpRequest
from mlx_server.api.openai_completions import OpenAICompletions
from mlx_server.deltas import Done, Finished, Heartbeat, Started, Text, Timings, Usage
from mlx_server.errors import DeadlineExceeded, RequestError
from mlx_server.server import wire
from mlx_server.server.access import Access
from mlx_server.server.http import HttpServer

WAIT = 20.0  # an upper bound for things that happen at once
_numbers = count(100)


class Lines(logging.Handler):
    """The access lines of a server, waited for: each comes behind its reply."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def next(self) -> logging.LogRecord:
        deadline = time.monotonic() + WAIT
        while not self.records and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.records.pop(0)

    def fields(self) -> dict[str, Any]:
        return self.next().fields


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("mlx_server.server.access")
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260k-chat"), metrics=True)


def fresh() -> list[int]:
    """A prompt that no prefix cache knows."""
    return [1, next(_numbers), 300, 301, 302]


# ---------------------------------------------------------------- how it reads

USAGE = Usage(812, 768, 96, 10)
WHOLE = Figures("m", None, USAGE, True, 0.18, 90.5678, ("stop",))


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (
            Access("POST", "/v1/chat/completions", 200, 1.2412, 5000, WHOLE),
            "POST /v1/chat/completions 200 1.24s  812 prompt (768 cached), 96 reply tokens, first "
            "after 0.18s, 90.6 tok/s, stop",
        ),
        (
            Access("POST", "/p", 200, 0.05, 1, Figures("m", None, Usage(5, 0, 9), True, 0.01, 3.0,
                                                       ("stop", "length", "stop"))),
            "POST /p 200 0.050s  5 prompt, 9 reply tokens, first after 0.010s, 3.0 tok/s, 2 stop, "
            "1 length",
        ),
        (
            Access("POST", "/p", 499, 0.5, 1, Figures("m", None, Usage(5, 0, 0))),
            "POST /p 499 0.50s  5 prompt, 0 reply tokens, the client left",
        ),
        (
            Access("POST", "/p", 200, 0.5, 1, Figures("m", None, Usage(5, 0, 1), error="timeout")),
            "POST /p 200 0.50s  5 prompt, 1 reply token, broken off: timeout",
        ),
        (
            Access("POST", "/e", 200, 0.004, 1, Figures("other", None, Usage(7), False)),
            "POST /e 200 0.004s  7 tokens, other",
        ),
        (Access("GET", "/v1/models", 200, 0.0012, 512), "GET /v1/models 200 0.001s  512 B"),
    ],
)  # fmt: skip
def test_it_is_read_at_a_glance(access: Access, text: str) -> None:
    assert access.text(default_model="m") == text


def test_its_fields_are_all_there_is_to_say() -> None:
    whole = Access("POST", "/p", 200, 1.5, 10, WHOLE).fields()
    assert whole == {
        "method": "POST", "path": "/p", "status": 200, "seconds": 1.5, "bytes": 10, "model": "m",
        "prompt_tokens": 812, "cached_tokens": 768, "completion_tokens": 96,
        "reasoning_tokens": 10, "finish_reasons": ["stop"], "first_token_seconds": 0.18,
        "tokens_per_second": 90.57,
    }  # fmt: skip
    asked = Access("POST", "/p", 200, 1, 1, Figures("m", "gpt-4", Usage(3))).fields()
    assert asked["asked_model"] == "gpt-4"
    assert "asked_model" not in Access("", "", 1, 1, 1, Figures("m", "m", Usage(3))).fields()
    assert set(Access("GET", "/", 200, 1, 1).fields()) == {
        "method", "path", "status", "seconds", "bytes",
    }  # fmt: skip


# ---------------------------------------------------------------- what an account makes of deltas


class Broken:
    """A generation that knows what it has used when its deltas stop."""

    model = "m"
    usage = Usage(5, 2, 3)

    def __init__(self, *timings: Timings) -> None:
        self.timings = timings


def watched(account: Account, items: list, *timings: Timings) -> list:
    return list(account.watch(Broken(*timings), items, asked=None))


def test_deltas_pass_as_they_are() -> None:
    usage = Usage(5, 2, 1)
    items = [Started(Usage(5)), Heartbeat(), Text(0, "a"), Finished(0, "stop", None, usage)]
    items.append(Done(usage))
    account = Account()
    assert watched(account, items, Timings(3, 4.0, 1, 0.0, 2, first_at=7.0)) == items
    found = account.figures()
    assert (found.model, found.usage, found.finish_reasons) == ("m", Usage(5, 2, 1), ("stop",))
    assert found.tokens_per_second is None  # one token comes with the prompt


def test_the_first_piece_counts_and_no_heartbeat() -> None:
    account = Account(started=time.monotonic() - 100)
    watched(account, [Started(Usage(5)), Heartbeat()])
    assert account.figures().first_token_seconds is None
    watched(account, [Text(0, "a")])
    assert 100 <= account.figures().first_token_seconds < 100 + WAIT


def took(first_at: float | None, tokens: int, milliseconds: float) -> Timings:
    return Timings(5, 1.0, tokens, milliseconds, first_at=first_at)


@pytest.mark.parametrize(
    ("timings", "speed"),
    [
        ([took(7.0, 11, 500)], 20),
        ([took(7.0, 11, 500)] * 3, 60),  # together
        ([took(7.0, 11, 500), took(7.5, 11, 500)], 20),  # in turns
        ([took(7.0, 11, 500), took(None, 0, 0)], 20),  # the second has not begun
        ([took(7.0, 1, 0), took(9.0, 1, 0)], None),
        ([took(7.0, 11, 0)], None),  # of one step: it took no time of its own
        ([], None),
    ],
)
def test_the_speed_is_the_engines_and_not_the_readers(timings: list, speed: float | None) -> None:
    """All of it is read in one piece here, and the replies are broken off."""
    account = Account()
    watched(account, [Text(0, "a"), Text(1, "b")], *timings)
    assert account.figures().tokens_per_second == (speed and pytest.approx(speed))


def test_what_is_broken_off_has_used_what_its_generation_says() -> None:
    account = Account()
    passed = account.watch(Broken(), iter([Text(0, "a"), Text(0, "b")]), asked=None)
    next(passed)
    passed.close()
    found = account.figures()
    assert (found.usage, found.finish_reasons, found.error) == (Broken.usage, (), None)


@pytest.mark.parametrize(
    ("error", "kind"), [(DeadlineExceeded("late"), "timeout"), (KeyError("x"), "server_error")]
)
def test_an_error_is_named_and_goes_on(error: Exception, kind: str) -> None:
    def deltas() -> Iterator[Text]:
        yield Text(0, "a")
        raise error

    account = Account()
    with pytest.raises(type(error)):
        list(account.watch(Broken(), deltas(), asked=None))
    assert account.figures().error == kind


def test_a_request_that_is_refused_has_no_figures() -> None:
    http = HttpRequest("POST", "/v1/completions", {}, {}, b'{"prompt": "a"}')
    pool = FakePool(refuse=RequestError("no"))
    with pytest.raises(RequestError):
        OpenAICompletions().create(http, pool)
    assert http.account.figures() is None


def test_no_request_writes_into_anothers_account() -> None:
    first, second = (HttpRequest("GET", "/", {}, {}, b"") for _ in range(2))
    first.account.embedded("m", 3, asked=None)
    assert second.account.figures() is None


# ---------------------------------------------------------------- a running server


def last_usage(reply: requests.Response) -> dict[str, Any]:
    """The usage that the client got, streamed or not."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json()["usage"]
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    return [e for e in map(json.loads, events) if e.get("usage")][-1]["usage"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ({"max_tokens": 7}, ["length"]),
        ({"max_tokens": 7, "n": 3}, ["length"] * 3),
        ({"max_tokens": 7, "prompts": 2}, ["length"] * 2),
        ({"max_tokens": 7, "prompts": 2, "n": 2}, ["length"] * 4),
        ({"max_tokens": 1}, ["length"]),
        ({"max_tokens": 0, "echo": True}, ["length"]),
        ({"max_tokens": 5, "echo": True}, ["length"]),
        ({"max_tokens": 200, "n_indent": 1}, None),  # ended by what the text is, not the engine
    ],
)
def test_it_says_what_the_client_is_told(
    server: HttpServer, lines: Lines, body: dict, reasons: list | None, stream: bool
) -> None:
    body = {"ignore_eos": True, "temperature": 0, "return_progress": False} | body
    prompts = [fresh() for _ in range(body.pop("prompts", 1))]
    body |= {"prompt": prompts, "stream": stream, "stream_options": {"include_usage": True}}
    if not stream:
        del body["stream_options"]
    reply = requests.post(f"{server.url}/v1/completions", json=body, timeout=WAIT)
    usage, fields = last_usage(reply), lines.fields()
    assert fields["prompt_tokens"] == usage["prompt_tokens"] == sum(map(len, prompts))
    assert fields["completion_tokens"] == usage["completion_tokens"]
    assert fields["status"] == 200 and fields["path"] == "/v1/completions"
    assert fields["bytes"] > len(reply.content)
    if reasons is not None:
        assert fields["finish_reasons"] == reasons
    if body["max_tokens"]:
        assert 0 < fields["first_token_seconds"] <= fields["seconds"]
    assert ("tokens_per_second" in fields) == (usage["completion_tokens"] > len(prompts) *
                                               body.get("n", 1))  # fmt: skip


def test_known_tokens_are_told(server: HttpServer, lines: Lines) -> None:
    body = {"prompt": fresh() * 8, "max_tokens": 1}
    for _ in range(2):
        requests.post(f"{server.url}/v1/completions", json=body, timeout=WAIT)
    cold, warm = lines.fields(), lines.fields()
    assert (cold["cached_tokens"], warm["cached_tokens"]) == (0, len(body["prompt"]) - 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Once"}]}),
        ("/completion", {"prompt": "Once"}),
        ("/v1/completions", {"prompt": "Once"}),
    ],
)
def test_every_dialect_has_its_figures(
    server: HttpServer, lines: Lines, path: str, body: dict, stream: bool
) -> None:
    body = body | {"max_tokens": 6, "n_predict": 6, "ignore_eos": True, "stream": stream}
    assert requests.post(server.url + path, json=body, timeout=WAIT).ok
    fields = lines.fields()
    assert (fields["model"], fields["completion_tokens"]) == (server.pool.config.model, 6)
    assert fields["finish_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["Once", "upon a time"]}),
        ("/embedding", {"content": "Once upon a time"}),
        ("/embeddings", {"content": "Once upon a time"}),
    ],
)
def test_vectors_have_tokens(server: HttpServer, lines: Lines, path: str, body: dict) -> None:
    body = body | {"model": "gpt-4o"}
    reply = requests.post(server.url + path, json=body, timeout=WAIT).json()
    fields = lines.fields()
    assert fields["prompt_tokens"] > 0 and "completion_tokens" not in fields
    assert (fields["model"], fields["asked_model"]) == (server.pool.config.model, "gpt-4o")
    if isinstance(reply, dict) and "usage" in reply:
        assert fields["prompt_tokens"] == reply["usage"]["prompt_tokens"]


def test_a_client_that_leaves_has_a_line_with_what_was_made(
    server: HttpServer, lines: Lines
) -> None:
    body = json.dumps({"prompt": [fresh()] * 2, "max_tokens": 480, "ignore_eos": True,
                       "stream": True}).encode()  # fmt: skip
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    received = b""
    while received.count(b"data: ") < 6:
        received += sock.recv(4096)
    sock.close()
    fields = lines.fields()
    assert (fields["status"], fields["prompt_tokens"]) == (499, 10)
    assert 4 <= fields["completion_tokens"] < 960
    assert "error" not in fields


@pytest.mark.parametrize(("goes_at", "status"), [(wire.LAST_CHUNK, 200), (b"[DONE]", 499)])
def test_a_client_that_closes_on_the_last_event_has_not_left(
    server: HttpServer, lines: Lines, monkeypatch, goes_at: bytes, status: int
) -> None:
    def send(sock: socket.socket, data: bytes, send: Callable = wire.send_now) -> int:
        if goes_at in data:
            raise wire.Disconnected
        return send(sock, data)

    monkeypatch.setattr(wire, "send_now", send)
    body = {"prompt": fresh(), "max_tokens": 3, "ignore_eos": True, "stream": True}
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(f"{server.url}/v1/completions", json=body, timeout=WAIT)
    fields = lines.fields()
    assert (fields["status"], fields["finish_reasons"]) == (status, ["length"])


def test_a_reply_that_runs_out_of_time_says_so(serve, stories: Path, lines: Lines) -> None:
    server = serve(model=str(stories / "stories260k"), request_timeout=0.1)
    server.pool.worker.call(slow_down)
    body = {"prompt": fresh(), "max_tokens": 400, "ignore_eos": True}
    whole = requests.post(f"{server.url}/v1/completions", json=body, timeout=WAIT)
    requests.post(f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=WAIT)
    first, second = lines.fields(), lines.fields()
    assert (first["status"], second["status"]) == (whole.status_code, 200)
    assert first["error"] == second["error"] == whole.json()["error"]["type"].removesuffix("_error")


def slow_down(engines: dict) -> None:
    for engine in engines.values():

        def step(step: Callable = engine.step) -> Any:
            time.sleep(0.01)
            return step()

        engine.step = step


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("GET", "/health", logging.DEBUG),
        ("GET", "/v1/health", logging.DEBUG),
        ("GET", "/metrics", logging.DEBUG),
        ("GET", "/engine/figures", logging.DEBUG),
        ("GET", "/completion.js", logging.DEBUG),
        ("HEAD", "/health", logging.DEBUG),
        ("GET", "/v1/models", logging.INFO),
        ("GET", "/nowhere.js", logging.INFO),
        ("POST", "/health", logging.INFO),
        ("POST", "/v1/completions", logging.INFO),
    ],
)
def test_probes_and_files_do_not_flood_the_log(
    server: HttpServer, lines: Lines, method: str, path: str, level: int
) -> None:
    requests.request(method, server.url + path, timeout=WAIT)
    record = lines.next()
    assert (record.levelno, record.fields["path"]) == (level, path)


def test_a_line_comes_behind_each_of_many_streams(server: HttpServer, lines: Lines) -> None:
    """The pump sends them all; each handler still logs its own figures, whole."""
    sessions = []
    for tokens in range(2, 14):
        body = {"prompt": fresh(), "max_tokens": tokens, "ignore_eos": True, "stream": True}
        url = f"{server.url}/v1/completions"
        sessions.append(requests.post(url, json=body, stream=True, timeout=WAIT))
    for session in sessions:
        assert session.text.rstrip().endswith("[DONE]")
    found = sorted(lines.fields()["completion_tokens"] for _ in sessions)
    assert found == list(range(2, 14))
