"""aider itself finishes a turn. Skipped where it is not installed.

It wants an environment of its own: `pip install aider-chat` there, and either put it on
the PATH or name it in MLX_SERVER_TEST_AIDER.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

AIDER = os.environ.get("MLX_SERVER_TEST_AIDER") or shutil.which("aider")
EXAMPLE = Path(__file__).parents[1] / "examples/aider.sh"


@pytest.mark.skipif(AIDER is None, reason="aider is not installed")
def test_a_turn_ends_without_a_token_limit_report(serve) -> None:
    server = serve()
    environ = {
        **os.environ,
        "MLX_SERVER_URL": server.url,
        "PATH": f"{Path(AIDER).parent}{os.pathsep}{os.environ['PATH']}",
    }
    found = subprocess.run(
        ["bash", str(EXAMPLE)], env=environ, capture_output=True, text=True, timeout=300
    )
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    assert "received." in said
    assert "token limit" not in said
