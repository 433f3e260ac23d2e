"""The scripts in examples/ run against a server of the bundled model, and show what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_server.server.http import HttpServer

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWS = {
    "openai_client.py": r"(?s)# whole reply.*# the same, streamed.*# log-probabilities",
    "streaming.py": r"\d+ chunks in 6 streams",
    "embeddings.py": r"(?m)^-?[01]\.\d{3}  .+\n(.+\n){2}\d+ numbers each",
    "llama_server.py": r'(?s)slots, context.*streamed: the same\nby a schema: \{"steps": -?\d+\}',
    "tools.py": r"\A(calculate|clock)\(\{.*\}\) -> .+\n.",
    "structured.py": r"(?s)Meeting\(people=\[.*\d\d:\d\d.*\b(yes|no|cannot be told)\n\Z",
    "curl.sh": r'(?s)"content":"(yes|no), [a-z]{3,12}\..*"name":"greet"',
}


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(api_key=("sesame",))


@pytest.mark.parametrize("name", SHOWS)
def test_it_runs(server: HttpServer, name: str) -> None:
    runner = sys.executable if name.endswith(".py") else shutil.which("bash")
    if name.endswith(".sh") and (runner is None or shutil.which("curl") is None):
        pytest.skip("bash or curl is not installed")
    found = subprocess.run(
        [runner, str(EXAMPLES / name)],
        env={**os.environ, "MLX_SERVER_URL": server.url, "OPENAI_API_KEY": "sesame"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert re.search(SHOWS[name], found.stdout), found.stdout
