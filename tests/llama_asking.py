"""Asking a running server what llama.cpp's clients ask theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from mlx_server.server.http import HttpServer

GREEDY = {"temperature": 0, "repeat_penalty": 1}
ONCE = "Once upon a time"
TIMES = ("timings", "prompt_ms", "predicted_ms")


def ask(
    server: HttpServer, path: str, body: Any = None, method: str = "POST", **headers: str
) -> requests.Response:
    return requests.request(
        method, f"{server.url}{path}", json=body, headers=headers or None, timeout=120
    )


def get(server: HttpServer, path: str) -> Any:
    found = ask(server, path, method="GET")
    assert found.status_code == 200, found.text
    return found.json()


def post(server: HttpServer, path: str, body: Any) -> Any:
    found = ask(server, path, body)
    assert found.status_code == 200, found.text
    return found.json()


def complete(server: HttpServer, prompt: Any = ONCE, **fields: Any) -> Any:
    return post(server, "/completion", {"prompt": prompt, **fields})


def refused(
    server: HttpServer, status: int, path: str, body: Any = None, method: str = "POST"
) -> dict[str, Any]:
    """The error that the server answers with."""
    found = ask(server, path, body, method)
    assert found.status_code == status, found.text
    return found.json()["error"]


def events(server: HttpServer, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A stream's events, `[DONE]` apart."""
    with requests.post(
        f"{server.url}{path}", json={**body, "stream": True}, timeout=120, stream=True
    ) as found:
        assert found.status_code == 200, found.text
        lines = [line for line in found.iter_lines() if line.startswith(b"data: ")]
    return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]


def together(server: HttpServer, bodies: Sequence[dict[str, Any]]) -> list[Any]:
    """The replies of /completion to requests that run at the same time."""
    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(lambda body: complete(server, **body), bodies))


def essence(reply: dict[str, Any]) -> dict[str, Any]:
    """What of a reply does not depend on when, where and how it was made."""
    left = {"timings", "id_slot", "tokens_cached", "generation_settings"}
    return {name: value for name, value in reply.items() if name not in left}
