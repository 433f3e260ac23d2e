"""curl itself against the running server: the page's and README's commands, large bodies, keys."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client_programs import ADDRESS, blocks
from model_folders import write_random
from pages import ROOT, SHELLS, Page, commands
from test_openai_client import idle

from mlx_server.server.http import HttpServer

KEY = "sesame"
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> str:
    return str(write_random(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def server(serve, random_model: str) -> HttpServer:
    return serve(model=random_model, max_tokens=24)


@pytest.fixture(scope="module")
def strict(serve, random_model: str) -> HttpServer:
    """Wants a key, and takes no large bodies."""
    return serve(model=random_model, api_key=(KEY,), max_request_bytes=100_000)


def curl(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["curl", *words], cwd=folder, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- commands of the pages

CHATTED = r'(?s)\{"id":.*"object":"chat\.completion".*\}'
SHOWS = [
    r'\{"object":"list","data":\[\{.*\}\]\}',
    CHATTED,
    r'(?s)data: \{.*"delta":\{"role":"assistant".*"usage":\{.*data: \[DONE\]\s*',
    r"(?s).+",
    r'(?s).*"content":"(yes|no), [a-z]{3,12}".*"name":"greet".*',
    r'(?s)\{"object":"list",.*"embedding":\[.*\}',
    CHATTED,
    r'(?s)\{"id":.*"object":"text_completion".*\}',
]
"""What the page's blocks print, in their order."""


def test_the_page_has_so_many_blocks() -> None:
    assert len(blocks("curl.md", "sh")) == len(SHOWS)


@pytest.mark.parametrize("number", range(len(SHOWS)))
def test_the_blocks_of_the_page(server: HttpServer, tmp_path: Path, number: int) -> None:
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks("curl.md", "sh", server.url)[number]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(SHOWS[number], found.stdout), found.stdout


@pytest.mark.parametrize(("path", "body"), [("/v1/nothing", "{}"), (CHAT, "{messages: hi}")])
def test_what_the_page_shows_of_errors_is_what_is_said(
    server: HttpServer, path: str, body: str
) -> None:
    text = (ROOT / "examples/assistants/curl.md").read_text("utf-8")
    shown = re.findall(r"^\| (4\d\d), `(.+?) …`", text, re.MULTILINE)
    found = curl("-sS", "-w", "\n%{http_code}", server.url + path, "-d", body)
    said, code = found.stdout.rsplit("\n", 1)
    message = json.loads(said)["error"]["message"]
    assert any(code == status and message.startswith(words) for status, words in shown), message


def test_the_commands_of_the_readme(server: HttpServer) -> None:
    page = Page.read(ROOT / "README.md")
    found = [call for block in page.code("text", *SHELLS) for call in commands(block, "curl")]
    assert found
    for call in found:
        words = [word.replace(ADDRESS, server.url) for word in call.words]
        reply = curl(*words[1:], "--fail-with-body")
        assert reply.returncode == 0 and "choices" in json.loads(reply.stdout), reply.stdout


# ---------------------------------------------------------------- streams, bodies, keys


def test_pieces_come_as_they_are_made_and_leaving_frees_the_row(serve, random_model: str) -> None:
    server = serve(model=random_model)
    body = json.dumps(HI | {"stream": True, "ignore_eos": True})
    command = ["curl", "-sSN", server.url + CHAT, "-d", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        pieces = [line for line, _ in zip(running.stdout, range(8), strict=False)]
        # The reply is far from its end: there are tens of thousands of tokens to come.
        assert running.poll() is None and not idle(server, within=0.001)
        running.kill()
    assert [bool(line.strip()) for line in pieces] == [True, False] * 4
    assert all(json.loads(line.removeprefix("data: ")) for line in pieces[::2])
    assert idle(server)


def write_body(folder: Path, **fields: Any) -> str:
    """A body of more than a million bytes, the size from which on curl asks before it sends."""
    (folder / "body.json").write_text(json.dumps(HI | {"unknown": "x" * 1_100_000} | fields))
    return "@body.json"


@pytest.mark.parametrize("option", ["-d", "--json", "--data-binary"])
def test_a_large_body_from_a_file(server: HttpServer, tmp_path: Path, option: str) -> None:
    body = write_body(tmp_path, regex="left|right")
    found = curl("-sSv", server.url + CHAT, option, body, folder=tmp_path)
    assert "> Expect: 100-continue" in found.stderr
    assert "< HTTP/1.1 100 Continue" in found.stderr
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] in ("left", "right")


def test_a_body_that_is_too_large_is_not_sent(strict: HttpServer, tmp_path: Path) -> None:
    asked = ["-sSv", "--fail-with-body", "-w", "\n%{http_code} %{size_upload}"]
    words = [*asked, "-H", f"Authorization: Bearer {KEY}", strict.url + CHAT]
    found = curl(*words, "-d", write_body(tmp_path), folder=tmp_path)
    said, figures = found.stdout.rsplit("\n", 1)
    assert (found.returncode, figures) == (22, "413 0")
    assert "100 Continue" not in found.stderr
    assert "100000" in json.loads(said)["error"]["message"].replace(",", "")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Authorization: Bearer wrong", 401),
        (f"Authorization: Bearer {KEY}", 200),
        (f"X-Api-Key: {KEY}", 200),
    ],
)
def test_keys(strict: HttpServer, header: str | None, status: int) -> None:
    words = ["-sS", "--fail-with-body", "-w", "\n%{http_code}", f"{strict.url}/v1/models"]
    found = curl(*words, *(("-H", header) if header else ()))
    said, code = found.stdout.rsplit("\n", 1)
    assert (int(code), found.returncode) == (status, 22 if status >= 400 else 0)
    reply = json.loads(said)
    assert reply["error"]["type"] == "authentication_error" if status == 401 else reply["data"]


def test_one_connection_serves_several_requests(server: HttpServer) -> None:
    body = json.dumps(HI | {"regex": "left|right"})
    found = curl("-sSv", *[server.url + CHAT] * 3, "-d", body)
    assert found.stdout.count('"chat.completion"') == 3
    assert found.stderr.count("* Connected to") == 1
