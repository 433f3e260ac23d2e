"""GET /engine/figures: it tells what runs, adds up, asks no one and shows nobody's text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from encoder_folders import write_encoder
from models import request

from mlx_server import __version__
from mlx_server.config import Config
from mlx_server.deltas import Finished, Usage
from mlx_server.engine import reports
from mlx_server.engine.sequence import Sequence
from mlx_server.engine.worker import Worker
from mlx_server.errors import ModelLoadError
from mlx_server.metrics import Observer
from mlx_server.pool import ModelPool
from mlx_server.server.http import HttpServer

WAIT = 20.0  # an upper bound for things that happen within some steps
CHUNK = 16
STORY = "Once upon a time there was a curious otter who sailed"


class Gate:
    """Holds every engine before its next step, and lets so many steps through."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._arrivals = 0
        self._allowed: float = 0

    def install(self, engines: dict[str, Any]) -> None:
        """On the engine thread."""
        for engine in engines.values():

            def step(step: Callable[[], Any] = engine.step) -> Any:
                with self._state:
                    self._arrivals += 1
                    self._state.notify_all()
                    # Longer than whoever looks meanwhile has patience.
                    assert self._state.wait_for(lambda: self._allowed > 0, 6 * WAIT)
                    self._allowed -= 1
                return step()

            engine.step = step

    def wait(self) -> None:
        """Until an engine with work stands before a step that it may not take."""
        with self._state:
            assert self._state.wait_for(lambda: self._arrivals and not self._allowed, WAIT)

    def allow(self, steps: int) -> None:
        """Let so many steps run, and wait until the engine stands before the next."""
        with self._state:
            wanted = self._arrivals + steps
            self._allowed += steps
            self._state.notify_all()
            assert self._state.wait_for(lambda: self._arrivals >= wanted, WAIT)

    def open(self) -> None:
        with self._state:
            self._allowed = float("inf")
            self._state.notify_all()

    def close(self) -> None:
        with self._state:
            self._allowed, self._arrivals = 0, 0


@contextmanager
def gated(server: HttpServer) -> Iterator[Gate]:
    gate = Gate()
    server.pool.worker.call(gate.install)
    try:
        yield gate
    finally:
        gate.open()


def read(server: HttpServer, key: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    reply = requests.get(f"{server.url}/engine/figures", headers=headers, timeout=WAIT)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Cache-Control"] == "no-store"
    return reply.json()


@pytest.fixture(scope="module")
def server(serve: Callable[..., HttpServer], stories: Path) -> HttpServer:
    model = str(stories / "stories260k")
    return serve(model=model, max_batch_size=4, prefill_chunk_size=CHUNK, slots=False)


@pytest.fixture(scope="module")
def gate(server: HttpServer) -> Iterator[Gate]:
    with gated(server) as gate:
        yield gate


@pytest.fixture
def threads(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads
        gate.open()
    gate.close()


def ask(threads: ThreadPoolExecutor, server: HttpServer, prompt: Any, size: int) -> Future[Any]:
    body = {"prompt": prompt, "n_predict": size, "ignore_eos": True, "temperature": 0}
    return threads.submit(requests.post, f"{server.url}/completion", json=body, timeout=60)


def arrived(server: HttpServer, count: int) -> None:
    """Wait until so many requests stand before the engine thread, which is held."""
    worker, deadline = server.pool.worker, time.monotonic() + WAIT
    while worker._num_in_inbox < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def numbered(first: int, size: int) -> list[int]:
    """A prompt of so many tokens that shares nothing with another one."""
    return [1, first, *[300 + first] * (size - 2)]


# ---------------------------------------------------------------- while rows run


def test_rows_are_told_while_the_engine_is_busy(
    server: HttpServer, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    """The engine thread stands still in a step all the while, so nothing can be asked of it."""
    before = read(server)
    assert before["rows"] == []
    ask(threads, server, numbered(10, 7), 30)
    gate.wait()
    gate.allow(8)
    ask(threads, server, numbered(20, 12 * CHUNK), 5)
    arrived(server, 1)
    gate.allow(4)
    found = read(server)
    first, second = found["rows"]
    (model,) = found["models"]
    assert first["model"] == second["model"] == model["id"] == server.config.model
    assert first["slot"] != second["slot"]
    assert (first["state"], second["state"]) == ("decode", "prefill")
    assert (first["prompt_tokens"], first["prompt_tokens_done"]) == (7, 7)
    assert second["prompt_tokens"] == 12 * CHUNK
    assert 0 < second["prompt_tokens_done"] < 12 * CHUNK
    assert second["prompt_tokens_done"] % CHUNK == 0
    assert first["decoded_tokens"] > 2
    assert first["decoded_tokens"] + first["tokens_left"] == 30
    assert (second["decoded_tokens"], second["tokens_left"]) == (0, 5)
    assert first["seconds"] > second["seconds"] > 0
    assert first["tokens_per_second"] > 0
    assert second["tokens_per_second"] is None
    # What is on its way is counted already, and told of a row when it is there.
    grown = {name: found["engine"][name] - before["engine"][name] for name in before["engine"]}
    done = sum(row["prompt_tokens_done"] for row in found["rows"])
    assert done <= grown["prompt_tokens_computed"] <= done + CHUNK
    assert 0 <= grown["generated_tokens"] - first["decoded_tokens"] <= 1
    assert (found["engine"]["running"], found["engine"]["waiting"]) == (2, 0)
    assert found["uptime"] > before["uptime"]


def test_who_finds_no_slot_waits(
    server: HttpServer, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    replies = [ask(threads, server, numbered(30, 5), 9)]
    gate.wait()
    replies += [ask(threads, server, numbered(31 + i, 5), 9) for i in range(5)]
    arrived(server, 5)
    gate.allow(2)
    found = read(server)
    assert [row["slot"] for row in found["rows"]] == [0, 1, 2, 3]
    assert (found["engine"]["running"], found["engine"]["waiting"]) == (4, 2)
    gate.open()
    assert [reply.result().status_code for reply in replies] == [200] * 6
    assert read(server)["rows"] == []


def test_what_has_ended_is_counted(
    server: HttpServer, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    gate.open()
    before = read(server)
    prompt = numbered(50, 40)
    first = ask(threads, server, prompt, 6).result().json()
    second = ask(threads, server, prompt, 6).result().json()
    assert first["content"] == second["content"]
    found = read(server)
    grown = {name: found["engine"][name] - before["engine"][name] for name in before["engine"]}
    told = {key: n - before["outcomes"].get(key, 0) for key, n in found["outcomes"].items()}
    assert {key: n for key, n in told.items() if n} == {"length": 2}
    assert (grown["prefix_hits"], grown["prefix_misses"]) == (1, 1)
    assert grown["prompt_tokens_cached"] + grown["prompt_tokens_computed"] == 2 * len(prompt)
    assert grown["generated_tokens"] >= 12
    assert found["engine"]["kv_bytes"] >= found["engine"]["prefix_bytes"] > 0


def test_a_row_tells_what_it_found_in_the_cache(
    server: HttpServer, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    prompt = numbered(60, 3 * CHUNK)
    gate.open()
    ask(threads, server, prompt, 3).result()
    gate.close()
    ask(threads, server, [*prompt, *[400] * 8 * CHUNK], 3)
    gate.wait()
    gate.allow(1)
    (row,) = read(server)["rows"]
    assert row["cached_tokens"] >= len(prompt)
    assert row["cached_tokens"] <= row["prompt_tokens_done"] <= row["prompt_tokens"]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_nobodys_text_is_shown(server: HttpServer, gate: Gate, threads: ThreadPoolExecutor) -> None:
    quiet = set(strings(read(server)))
    ask(threads, server, STORY, 20)
    gate.wait()
    gate.allow(12)
    found = read(server)
    assert found["rows"][0]["decoded_tokens"] > 5
    names = {*found["rows"][0], "decode", "prefill", server.config.model}
    assert set(strings(found)) <= quiet | names
    assert not [word for word in STORY.split() if len(word) > 4 and word in json.dumps(found)]


# ---------------------------------------------------------------- who may ask, and when


def test_it_needs_the_key(serve: Callable[..., HttpServer], stories: Path) -> None:
    server = serve(model=str(stories / "stories260k"), api_key=("k1",))
    for headers in (None, {"Authorization": "Bearer k2"}):
        refused = requests.get(f"{server.url}/engine/figures", headers=headers, timeout=WAIT)
        assert refused.status_code == 401
        assert "engine" not in refused.json()
    assert read(server, "k1")["status"] == "ready"


def test_other_methods_are_refused(server: HttpServer) -> None:
    refused = requests.post(f"{server.url}/engine/figures", json={}, timeout=WAIT)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    head = requests.head(f"{server.url}/engine/figures", timeout=WAIT)
    assert (head.status_code, head.content) == (200, b"")


def test_it_answers_before_there_is_a_model() -> None:
    worker = Worker(max_waiting=1)
    worker.start()
    try:
        pool = ModelPool(Config(model="no/such-model"), worker)
        found = pool.figures()
        assert (found.status, found.models, found.rows) == ("Loading model", (), ())
        assert found.engine["active_memory"] >= 0
        with pytest.raises(ModelLoadError) as failed:
            pool.residence.inspect = raising(ModelLoadError("There is no such model."))
            pool.load_default()
        assert pool.figures().status == failed.value.message
    finally:
        worker.stop()


def raising(error: Exception) -> Callable[..., Any]:
    def act(*args: Any) -> Any:
        raise error

    return act


def test_it_tells_the_server_and_its_models(server: HttpServer, stories: Path) -> None:
    found = read(server)
    config = json.loads((stories / "stories260k" / "config.json").read_text())
    assert (found["version"], found["status"]) == (__version__, "ready")
    assert found["device"].endswith(("(CPU)", "(GPU)"))
    (model,) = found["models"]
    info = server.pool.residence.entries()[server.config.model].info
    assert model == {
        "id": server.config.model,
        "kind": "text",
        "parameters": info.num_parameters,
        "bytes": info.nbytes,
        "context_length": config["max_position_embeddings"],
        "slots": 4,
        "adapters": [],
    }
    assert 0 < model["parameters"] < model["bytes"]


def test_it_tells_the_adapters(serve: Callable[..., HttpServer], stories: Path) -> None:
    folders = {name: str(stories / "adapters" / name) for name in ("dragon", "moon")}
    lora = (f"lizard={folders['dragon']}", (folders["moon"], 0.5))
    server = serve(model=str(stories / "stories260k"), lora=lora)
    (model,) = read(server)["models"]
    told = {adapter.pop("path"): adapter for adapter in model["adapters"]}
    assert told == {
        folders["dragon"]: {"id": 0, "name": "lizard", "scale": 0.0},
        folders["moon"]: {"id": 1, "name": None, "scale": 0.5},
    }
    body = [{"id": 0, "scale": 0.25}]
    requests.post(f"{server.url}/lora-adapters", json=body, timeout=WAIT)
    (model,) = read(server)["models"]
    assert [adapter["scale"] for adapter in model["adapters"]] == [0.25, 0.0]


def test_an_encoder_has_no_rows(serve: Callable[..., HttpServer], tmp_path: Path) -> None:
    pytest.importorskip("mlx_embeddings")
    found = read(serve(model=str(write_encoder(tmp_path / "bert", "bert"))))
    (model,) = found["models"]
    assert (model["kind"], model["slots"], found["rows"]) == ("embedding", 0, [])


def test_outcomes_are_those_of_the_metrics() -> None:
    observer = Observer()
    assert observer.outcomes() == {}
    for reason in ("stop", "length", "stop"):
        observer.observe(Finished(0, reason, None, Usage()))
    assert observer.outcomes() == {"stop": 2, "length": 1}


# ---------------------------------------------------------------- a row's numbers

PROMPT = 100


@pytest.mark.parametrize(
    ("case", "changes", "seat", "expected"),
    [
        ("not begun", {}, None, ("prefill", 0, 0)),
        ("some of it known", {"num_cached_tokens": 60}, 60, ("prefill", 60, 0)),
        ("a chunk on its way", {"num_cached_tokens": 60}, 90, ("prefill", 60, 0)),
        ("a chunk there", {"num_prompt_done": 90}, 90, ("prefill", 90, 0)),
        ("the last chunk on its way", {"num_prompt_done": 90}, 100, ("prefill", 90, 0)),
        ("all there", {"num_prompt_done": 100}, 101, ("decode", 100, 3)),
        ("computed once more", {"num_prompt_done": 100}, 40, ("prefill", 40, 3)),
        ("out of its seat", {"num_prompt_done": 100}, None, ("prefill", 0, 3)),
        ("context shifted", {"num_prompt_done": 100, "truncated": True, "num_given": 50}, 20,
         ("prefill", 100, 3)),
        ("and computed", {"num_prompt_done": 100, "truncated": True, "num_given": 50}, 51,
         ("decode", 100, 3)),
    ],
)  # fmt: skip
def test_how_far_a_row_is(case: str, changes: dict[str, Any], seat: int | None, expected) -> None:
    state, done, decoded = expected
    sequence = Sequence(request("r", [5] * PROMPT), 0, 0, np.full(PROMPT, 5, np.int32))
    for name, value in changes.items():
        setattr(sequence, name, value)
    for _ in range(decoded):
        sequence.tokens.append(7)
    sequence.seat = None if seat is None else SimpleNamespace(length=seat)
    (row,) = reports.rows(SimpleNamespace(running=[sequence]), "m")
    assert (row.state, row.num_prompt_done, row.num_decoded) == (state, done, decoded), case
    assert row.num_left == 12 - decoded
    assert row.seconds == 0 and row.speed is None
