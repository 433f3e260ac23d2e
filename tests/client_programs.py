"""Real programs as subprocesses: where they are, what surrounds them, what their pages say.

`.ci/clients FOLDER` installs them and MLX_SERVER_TEST_CLIENTS=FOLDER has them tested.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "examples/assistants"
SCRIPTS = Path(__file__).parent / "clients"
ADDRESS = "http://127.0.0.1:8080"
"""What stands in the pages for the server's."""

NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody is: who tries to reach another machine fails at once."""


def folder(part: str) -> Path | None:
    """Where `.ci/clients` has put that part, if it is there."""
    root = os.environ.get("MLX_SERVER_TEST_CLIENTS")
    found = Path(root).absolute() / part if root else None
    return found if found is not None and found.is_dir() else None


def need(part: str) -> Path:
    """The same; skips the test where it is not."""
    found = folder(part)
    if found is None:
        pytest.skip(f"MLX_SERVER_TEST_CLIENTS names no folder with {part} (see .ci/clients)")
    return found


def surroundings(home: Path, *programs: Path, **more: str) -> dict[str, str]:
    """An environment with a home of its own and no way out of this machine.

    Args:
        home: Becomes HOME, so that nobody's own settings are read or written.
        programs: Folders that come first in PATH.
        more: Further variables.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "LITELLM_"))}
    for name in ("LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV"):
        kept.pop(name, None)  # our BLAS and our packages are nothing for them
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    path = os.pathsep.join([*map(str, programs), kept["PATH"]])
    utf8 = {"PYTHONUTF8": "1"}
    return kept | proxies | local | utf8 | {"HOME": str(home), "PATH": path} | more


def run(
    command: Sequence[str | Path], *, cwd: Path, env: dict[str, str], code: int | None = 0
) -> str:
    """What the command writes to its standard output.

    Args:
        code: The exit status that it must have; with another the test fails, with all that
            was said. None allows any.
    """
    found = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,  # only a program that hangs takes that long
    )
    said = f"{' '.join(map(str, command))}\n{found.stdout}\n{found.stderr}"
    assert code is None or found.returncode == code, said
    return found.stdout


def blocks(page: str, language: str, url: str = ADDRESS) -> list[str]:
    """The fenced blocks of one language on a page of examples/assistants, in order.

    Args:
        url: Takes the place of the address that the page gives for the server.
    """
    text = (PAGES / page).read_text()
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no block of {language}"
    return [block.replace(ADDRESS, url) for block in found]
