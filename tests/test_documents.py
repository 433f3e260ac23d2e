"""The examples of the documents of llama.cpp's and MLC's servers, word for word, against ours.

They are cut out of the documents themselves; only the port is another. MLC-Chat's loop over
pieces of 128 bytes can work with no server, so it reads lines here.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlx_server.server.http import HttpServer

LIMIT = 48
"""Tokens of a reply whose example sets no limit."""


@pytest.fixture(scope="module")
def documents(shared: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in (shared / "reference").glob("*.txt")}


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(max_tokens=LIMIT)


def cut(document: str, start: str, end: str, nth: int = 0) -> str:
    """The text from the nth `start` through the next `end`, its common indentation removed."""
    at = -1
    for _ in range(nth + 1):
        at = document.index(start, at + 1)
    text = document[at : document.index(end, at) + len(end)]
    indent = at - document.rindex("\n", 0, at) - 1
    return "\n".join(
        line[indent:] if not line[:indent].strip() else line for line in text.split("\n")
    )


def here(example: str, server: HttpServer) -> str:
    return re.sub(r"(localhost|127\.0\.0\.1):\d+", f"127.0.0.1:{server.port}", example)


def run(command: list[str], folder: Path) -> str:
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr + found.stdout
    return found.stdout


def run_python(example: str, server: HttpServer, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(here(example, server), "utf-8")
    return run([sys.executable, str(script)], folder)


# ---------------------------------------------------------------- llama.cpp

CURLS = {
    "completion": ("curl --request POST", "128}'", 0, ["content"]),
    "chat": ("curl http://localhost:8080/v1/chat/completions", "]\n}'", 0, ["choices"]),
    "embeddings": ("curl http://localhost:8080/v1/embeddings", "}'", 0, ["data"]),
    "embeddings, several": ("curl http://localhost:8080/v1/embeddings", "}'", 1, ["data"]),
}


@pytest.mark.parametrize("name", CURLS)
def test_curl(documents, server: HttpServer, tmp_path: Path, name: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    start, end, nth, keys = CURLS[name]
    example = here(cut(documents["llama-cpp-server"], start, end, nth), server)
    reply = json.loads(run(["bash", "-c", example.replace("curl ", "curl -sS ", 1)], tmp_path))
    assert set(keys) <= reply.keys(), reply
    if name == "embeddings, several":
        assert [item["index"] for item in reply["data"]] == [0, 1]


def test_the_openai_client(documents, server: HttpServer, tmp_path: Path) -> None:
    example = cut(documents["llama-cpp-server"], "import openai", "choices[0].message)")
    assert run_python(example, server, tmp_path).startswith("ChatCompletionMessage(content=")


def test_node(documents, server: HttpServer, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    example = cut(documents["llama-cpp-server"], "const prompt = `Building", "\nTest()")
    (tmp_path / "index.js").write_text(here(example, server), "utf-8")
    assert run([node, "index.js"], tmp_path).strip()


def test_the_system_prompt(documents, server: HttpServer) -> None:
    document = documents["llama-cpp-server"]
    body = json.loads(cut(document, '{\n    "system_prompt"', "\n}"))
    first = requests.post(
        f"{server.url}/completion", json={"prompt": " Hello", "n_predict": 4, **body}, timeout=60
    ).json()
    try:
        props = requests.get(f"{server.url}/props", timeout=60).json()
        assert props["assistant_name"] == "Assistant:"
        assert props["user_name"] == "User:"
        again = requests.post(
            f"{server.url}/completion", json={"prompt": " Hello", "n_predict": 4}, timeout=60
        ).json()
        assert again["tokens_evaluated"] == first["tokens_evaluated"] > 100
        assert "User:" in again["generation_settings"]["stop"]
    finally:
        requests.post(
            f"{server.url}/completion",
            json={"prompt": "a", "n_predict": 1, "system_prompt": {"prompt": ""}},
            timeout=60,
        )


# ---------------------------------------------------------------- MLC


def calling(server: HttpServer) -> dict[str, Any]:
    """Whether to call is a model's to decide: fields with which the little one does, and
    comes to the end of its strings and of its turn."""
    end = requests.get(f"{server.url}/props", timeout=60).json()["eos_token"]
    body = {"content": end}
    (token,) = requests.post(f"{server.url}/tokenize", json=body, timeout=60).json()["tokens"]
    bias = [['"', 20], [token, 20]]
    return {"tool_choice": "required", "seed": 1, "max_tokens": 200, "logit_bias": bias}


def check_weather(name: str, arguments: str) -> None:
    """The call is one that the document's schema allows."""
    assert name == "get_current_weather"
    found = json.loads(arguments)
    assert isinstance(found["location"], str)
    assert found.get("unit", "celsius") in ("celsius", "fahrenheit")
    assert found.keys() <= {"location", "unit"}


def streamed_choices(server: HttpServer, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    url = f"{server.url}/v1/chat/completions"
    with requests.post(url, json=payload, stream=True, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith(b"data: {"):
                yield from json.loads(line[6:])["choices"]


def test_mlc_whole(documents, server: HttpServer, tmp_path: Path) -> None:
    example = cut(documents["mlc-llm-rest"], "import requests", "['content']}\\n\")")
    assert run_python(example, server, tmp_path).strip()


def test_mlc_models(documents, server: HttpServer, tmp_path: Path) -> None:
    example = cut(documents["mlc-llm-rest"], "import requests\n\nurl = ", "response.status_code)")
    assert "'object': 'list'" in run_python(example, server, tmp_path)


def test_mlc_streamed(documents, server: HttpServer, tmp_path: Path) -> None:
    document = documents["mlc-llm-rest"]
    example = cut(document, "import requests\nimport json\n\n# Get", 'print("\\n")')
    assert run_python(example, server, tmp_path).strip()


def test_mlc_function_call(documents, server: HttpServer, tmp_path: Path) -> None:
    document = documents["mlc-llm-rest"]
    example = cut(document, "import requests\nimport json\n\ntools", "['function']}\\n\")")
    stream = '"stream": False,'
    assert stream in example
    example = example.replace(stream, f"{stream} **{calling(server)},")
    function = ast.literal_eval(run_python(example, server, tmp_path))
    check_weather(function["name"], function["arguments"])


def test_mlc_function_call_streamed(documents, server: HttpServer, tmp_path: Path) -> None:
    document = documents["mlc-llm-rest"]
    example = cut(document, "import requests\nimport json\n\ntools", 'print("\\n")', 1)
    run_python(example, server, tmp_path)

    # The script reads the content only: what a model that has to call streams to it.
    given: dict[str, Any] = {}
    exec(example[: example.index("with requests.post")], given)
    payload = {**given["payload"], **calling(server)}
    calls: dict[int, dict[str, str]] = {}
    reasons = []
    for choice in streamed_choices(server, payload):
        for piece in choice["delta"].get("tool_calls") or ():
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id") or ""
            for name, text in piece["function"].items():
                call[name] += text or ""
        reasons.append(choice["finish_reason"])
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}
    assert sorted(calls) == list(range(len(calls))) and calls
    assert len({call["id"] for call in calls.values()}) == len(calls)
    for call in calls.values():
        check_weather(call["name"], call["arguments"])


def test_mlc_chat(documents, server: HttpServer, tmp_path: Path) -> None:
    document = documents["mlc-chat-rest"]
    example = cut(document, "import requests\n   import json", '{r.json()}\\n")')
    loop = "for chunk in r:\n"
    assert loop in example
    lines = "for chunk in (line + b'\\n\\n' for line in r.iter_lines() if line):\n" + (
        " " * 6 + "if b'[DONE]' in chunk: break\n"
    )
    shown = run_python(example.replace(loop, lines), server, tmp_path)
    assert "Without streaming:" in shown
    assert "Reset chat: <Response [200]>" in shown
    assert re.search(r"Runtime stats: prefill: [\d.]+ tok/s, decode: [\d.]+ tok/s", shown), shown
