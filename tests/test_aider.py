"""aider itself finishes a turn. Skipped where it is not installed.

It wants an environment of its own: `pip install aider-chat` there, and either put it on
the PATH or name it in MLX_SERVER_TEST_AIDER.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlx_server.server.http import HttpServer

AIDER = os.environ.get("MLX_SERVER_TEST_AIDER") or shutil.which("aider")
EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.skipif(AIDER is None, reason="aider is not installed")


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve()


def turn(server: HttpServer, **environ: str) -> str:
    """What examples/aider.sh says."""
    environ = {
        **os.environ,
        "MLX_SERVER_URL": server.url,
        "PATH": f"{Path(AIDER).parent}{os.pathsep}{os.environ['PATH']}",
        **environ,
    }
    found = subprocess.run(
        ["bash", str(EXAMPLES / "aider.sh")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    assert "token limit" not in said
    return said


def test_a_turn_ends_without_a_token_limit_report(server: HttpServer) -> None:
    assert "received." in turn(server)


def test_with_a_grammar_a_turn_ends_in_an_edit_and_a_commit(server: HttpServer) -> None:
    said = turn(server, GRAMMAR=str(EXAMPLES / "edit.gbnf"))
    assert "Applied edit to hello.py" in said
    _, file = said.split("--- hello.py\n")
    edited, commits = file.split("--- commits\n")
    assert re.fullmatch(r'print\("(Hello|Hi|Good morning), [a-z]{2,10}!"\)\n', edited)
    made, first = commits.splitlines()[:2]
    assert re.search(r"Fix [a-z ]+", made) and first == "Say hello"
