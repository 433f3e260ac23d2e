"""The page on extending, docs/extending.md: its setting, its dialect and its metrics."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from extending import BLOCKS, PAGE, run, value, with_fields
from model_folders import write_random

from mlx_server import config, flags, metrics
from mlx_server.api import APIS
from mlx_server.api.docs import Docs
from mlx_server.engine.worker import Worker
from mlx_server.pool import ModelPool
from mlx_server.server.http import HttpServer


def test_every_block_of_the_page_is_run() -> None:
    tests = sorted(Path(__file__).parent.glob("test_extending*.py"))
    source = "".join(path.read_text("utf-8") for path in tests)
    used = set(re.findall(r"""(?:run|with_fields|value)\((?:[\w.]+, )?"(\w+)\"""", source))
    assert used == set(BLOCKS)
    assert PAGE.read_text("utf-8").count("```python") == len(BLOCKS)


# ---------------------------------------------------------------- a setting


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> type[config.Config]:
    """Config with the page's setting."""
    found = with_fields(config.Config, "setting")
    monkeypatch.setattr(config, "Config", found)
    monkeypatch.setattr(flags, "Config", found)
    return found


@pytest.mark.parametrize(
    ("argv", "environ", "value"),
    [
        ([], {}, 1_000_000),
        (["--count-limit", "5"], {}, 5),
        ([], {"MLX_SERVER_COUNT_LIMIT": "6"}, 6),
        (["--count-limit=7"], {"MLX_SERVER_COUNT_LIMIT": "6"}, 7),
    ],
)
def test_a_setting_has_its_flag_and_its_variable(extended, argv, environ, value) -> None:
    found, ignored = flags.read_command(argv, environ)
    assert (found.count_limit, ignored) == (value, [])


def test_a_setting_has_its_help_its_row_and_its_error(extended, capsys) -> None:
    assert "--count-limit CHARACTERS" in flags.parser().format_help()
    assert "| `--count-limit` |  | `MLX_SERVER_COUNT_LIMIT` | 1000000 |" in config.table()
    with pytest.raises(SystemExit) as ended:
        flags.read_command(["--count-limit", "0"], {})
    assert ended.value.code == 2
    assert "--count-limit" in capsys.readouterr().err


# ---------------------------------------------------------------- a dialect, and the metrics


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[HttpServer]:
    """The page's dialect among the others, its setting and its observer, over HTTP."""
    dialect = run("dialect")["Count"]()
    observer = run("counter", metrics)["StopObserver"]()
    folder = write_random(tmp_path_factory.mktemp("model"))
    settings = with_fields(config.Config, "setting")(
        port=0, model=str(folder), ctx_size=256, metrics=True, count_limit=40
    )
    worker = Worker(settings.max_queue)
    worker.start()
    pool = ModelPool(settings, worker)
    pool.observer = observer
    apis = (*APIS, dialect)
    server = HttpServer(settings, (*apis, Docs(apis)), pool)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        pool.load_default()
        yield server
    finally:
        server.stop(0.5, worker.stop)
        thread.join(5)


def post(server: HttpServer, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("text", ["Hello world", "", "é✓"])
def test_the_dialect_counts(served: HttpServer, text: str) -> None:
    found = post(served, "/count", text=text).json()
    tokens = post(served, "/tokenize", content=text, add_special=True).json()["tokens"]
    assert found == {"characters": len(text), "tokens": len(tokens)}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "`text` is required."),
        ({"text": 5}, "`text` must be a string, but got 5."),
        ({"text": "x" * 41}, "`text` has 41 characters, and --count-limit allows 40."),
    ],
)
def test_the_dialect_words_its_errors(served: HttpServer, body: dict, told: str) -> None:
    reply = post(served, "/count", **body)
    expected = {"error": told, "kind": "invalid_request", "field": "text"}
    assert (reply.status_code, reply.json()) == (400, expected)


def test_a_reply_is_counted_alike_streamed_and_whole(served: HttpServer) -> None:
    body = {"text": "Hello", "max_tokens": 12}
    whole = post(served, "/count/reply", **body).json()
    lines = post(served, "/count/reply", **body, stream=True).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert whole["done"] and events[-1]["done"]
    counted = [event["characters"] for event in events]
    assert counted == sorted(counted) and len(counted) > 1
    assert counted[-2] == counted[-1]


def test_the_routes_are_in_the_documents(served: HttpServer) -> None:
    paths = requests.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]
    route = paths["/count"]["post"]
    assert route["summary"] == "Characters and tokens of a text"
    assert {"/count", "/count/reply"} <= paths.keys()


def test_the_metrics_are_told(served: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = value("figure", metrics)
    monkeypatch.setattr(metrics, "_FIGURES", (*metrics._FIGURES, figure))

    def told(name: str) -> float:
        text = requests.get(f"{served.url}/metrics", timeout=60).text
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    assert told("mlx_server_slots") == served.pool.residence.entries().popitem()[1].llm.num_slots
    before = told("mlx_server_stop_strings_total")
    ends = {"prompt": "a", "max_tokens": 8, "temperature": 0}
    text = post(served, "/v1/completions", **ends).json()["choices"][0]["text"]
    assert told("mlx_server_stop_strings_total") == before
    stopped = post(served, "/v1/completions", **ends, stop=[text[1:3]]).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert told("mlx_server_stop_strings_total") == before + 1
