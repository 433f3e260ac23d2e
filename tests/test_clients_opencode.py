"""opencode itself writes a file through its tools. Skipped where it is not installed:
`.ci/clients FOLDER node` does that, and MLX_SERVER_TEST_CLIENTS=FOLDER has it tested.

What the model would decide is decided for it: a relay asks for the call in its place.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from client_programs import blocks, need, run, surroundings
from model_folders import write_random
from relay import Change, relay_to

from mlx_server.server.http import HttpServer

KEY = "sesame"
TEXT = "Hello from [a-z]{3,8}"
ANSWER = "It is done, [a-z]{3,8}"
TOOLS = {"bash", "edit", "glob", "grep", "read", "skill", "task", "todowrite", "webfetch", "write"}


def held_to_writing(path: Path) -> Change:
    """Has the model write a file with opencode's tool, and then say so. The first two requests
    wait for each other: the one for the conversation's title and the first of its turn."""
    first_two = Barrier(2)

    def change(body: dict[str, Any]) -> dict[str, Any]:
        if "tools" not in body:
            first_two.wait(60)
            return body | {"regex": "Writing [a-z]{3,8}"}
        if body["messages"][-1]["role"] == "tool":
            return body | {"tool_choice": "none", "regex": ANSWER}
        first_two.wait(60)
        (write,) = (tool for tool in body["tools"] if tool["function"]["name"] == "write")
        given = write["function"]["parameters"]["properties"]
        given["filePath"] = {"const": str(path)}
        given["content"] = {"type": "string", "pattern": f"^{TEXT}$"}
        choice = {"type": "function", "function": {"name": "write"}}
        return body | {"tool_choice": choice, "parallel_tool_calls": False}

    return change


def run_opencode(project: Path, home: Path, url: str, *words: str) -> str:
    """What one turn says, set up as the page says."""
    (config,) = blocks("opencode.md", "json", url)
    (project / "opencode.json").write_text(config)
    xdg = {f"XDG_{name}_HOME": str(home / name) for name in ("CONFIG", "DATA", "STATE", "CACHE")}
    offline = dict.fromkeys(
        (f"OPENCODE_DISABLE_{what}" for what in ("MODELS_FETCH", "AUTOUPDATE", "LSP_DOWNLOAD")), "1"
    )
    here = {"PWD": str(project)}  # which it believes more than the folder that it is in
    env = surroundings(home, MLX_SERVER_API_KEY=KEY, **xdg, **offline, **here)
    command = [need("node") / "node_modules/.bin/opencode", "run", *words]
    return run(command, cwd=project, env=env)


@pytest.fixture(scope="module")
def quick(serve, tmp_path_factory) -> HttpServer:
    """A model with a long context: what opencode tells it of itself is long."""
    model = write_random(tmp_path_factory.mktemp("random"))
    return serve(model=str(model), api_key=(KEY,))


def test_opencode_writes_a_file(quick: HttpServer, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    note = project / "note.txt"
    with relay_to(quick.url, held_to_writing(note)) as relay:
        said = run_opencode(project, tmp_path / "home", relay.url, "Write a note")

    assert re.fullmatch(ANSWER, said.strip())
    assert re.fullmatch(TEXT, note.read_text())
    assert relay.statuses == [200] * 3
    title, *turn = sorted(relay.sent, key=lambda body: "tools" in body)
    assert "tools" not in title
    assert [{t["function"]["name"] for t in body["tools"]} for body in turn] == [TOOLS, TOOLS]
    last = turn[-1]["messages"]
    (call,) = last[-2]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {
        "filePath": str(note),
        "content": note.read_text(),
    }
    assert last[-1]["tool_call_id"] == call["id"] and "success" in last[-1]["content"]
    for body in relay.sent:  # what the page's opencode.json says
        assert (body["model"], body["min_p"], body["max_tokens"]) == ("default_model", 0.05, 8192)
    for headers in relay.headers:
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["x-session-id"] == relay.headers[0]["x-session-id"]
