"""The import rule: rooms import leftward only, and heavy libraries stay in their rooms.

Read from the source with `ast`, so that imports inside functions count too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlx_server"
SHARED = {
    "settings_values",
    "sampling_params",
    "sampler_names",
    "core",
    "deltas",
    "exchange",
    "services",
    "errors",
    "config",
    "progress",
    "amounts",
}

ALLOWED = {
    "sampling_params": set(),
    "core": set(),
    "deltas": {"core", "sampling_params"},
    "exchange": {"core", "sampling_params"},
    "services": {"core", "sampling_params"},
    "errors": set(),
    "progress": set(),
    "amounts": set(),
    "sampler_names": {"sampling_params"},
    "settings_values": {"sampler_names"},
    "compat": {"settings_values", "sampler_names"},
    "config": {"settings_values", "compat", "core"},
    "flags": {"compat", "config", "settings_values", "errors"},
    "gguf": {"errors"},
    "commands": SHARED | {"flags", "gguf", "models", "demo"},
    "defaults": SHARED,
    "metrics": SHARED,
    "cache": SHARED,
    "models": SHARED | {"cache", "gguf"},
    "sampling": SHARED | {"cache"},
    "text": SHARED | {"gguf"},
    "engine": SHARED | {"cache", "models", "sampling"},
    "replies": SHARED | {"sampling", "text"},
    "generation": SHARED | {"engine", "replies", "text"},
    "llm": SHARED | {"defaults", "engine", "generation", "replies", "text"},
    "embedder": SHARED | {"engine", "text", "models"},
    "names": SHARED | {"models"},
    "arrival": SHARED | {"llm", "generation"},
    "entry": SHARED | {"llm", "embedder", "defaults", "replies", "engine", "text", "models"},
    "residence": SHARED | {"entry", "arrival", "names", "engine", "models", "demo"},
    "recent": SHARED,
    "pool_slots": SHARED | {"entry", "names", "residence", "engine", "metrics", "recent"},
    "pool_services": SHARED | {"pool_slots", "entry", "residence", "engine", "metrics"},
    "pool": SHARED
    | {"llm", "generation", "arrival", "names", "residence", "pool_services", "engine"}
    | {"entry", "models", "metrics", "recent"},
    "api": SHARED,
    "server": SHARED | {"api", "pool", "metrics"},
    "terminal": SHARED,
    "demo": set(),
    "cli": SHARED
    | {"flags", "commands", "server", "api", "pool", "entry", "engine"}
    | {"terminal"},
    "__main__": {"cli"},
    "__init__": SHARED | {"llm"},
}
"""What each room may import of the project, besides itself and the package's version."""

HOMES = {
    "mlx": {"cache", "models", "sampling", "engine", "demo/train.py"},
    "mlx_lm": {"models", "cache/zoo_state.py", "cache/zoo_quantized.py", "demo/train.py"},
    "pydantic": {"api"},
    "mlx_embeddings": {"models"},
    "llguidance": {"sampling"},
    "torch": set(),
}
"""The only rooms (or files) in which a library may be imported."""


def source_files() -> list[str]:
    return sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def imported_modules(source: str, file: str) -> Iterator[str]:
    """Absolute dotted names; for `from a import b` both a and a.b, as b may be a module."""
    package = ["mlx_server", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse(source, filename=file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(source: str, file: str) -> list[str]:
    room = room_of(file)
    found = set()
    for module in imported_modules(source, file):
        top, *rest = module.split(".")
        if top == "mlx_server" and rest:
            is_room = rest[0] in ALLOWED and rest[0] != "__init__"
            if is_room and rest[0] != room and rest[0] not in ALLOWED[room]:
                found.add(f"{file}: {room} may not import {rest[0]}")
        elif top in HOMES and not HOMES[top] & {room, file}:
            found.add(f"{file}: {top} may not be imported here")
    return sorted(found)


@pytest.mark.parametrize("file", source_files())
def test_imports_follow_the_rule(file: str) -> None:
    assert room_of(file) in ALLOWED, f"{file}: a new room needs its line in ALLOWED"
    assert violations((PACKAGE / file).read_text("utf-8"), file) == []


def test_the_rule_has_no_cycle() -> None:
    placed: set[str] = set()
    while rooms := {r for r in ALLOWED.keys() - placed if ALLOWED[r] - {r} <= placed}:
        placed |= rooms
    assert ALLOWED.keys() - placed == set()


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cache/kv.py", "from mlx_server.models.base import Row"),
        ("cache/kv.py", "from ..models import base"),
        ("engine/worker.py", "def f():\n    import mlx_server.llm"),
        ("api/openai_chat.py", "from mlx_server import pool"),
        ("api/openai_chat.py", "import mlx.core as mx"),
        ("llm.py", "from mlx import core"),
        ("pool.py", "from mlx_lm import load"),
        ("server/http.py", "from pydantic import BaseModel"),
        ("demo/__init__.py", "import mlx.core as mx"),
        ("core.py", "from .errors import ServerError"),
    ],
)
def test_a_forbidden_import_is_found(file: str, source: str) -> None:
    assert len(violations(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/llama.py", "import mlx.core as mx\nfrom mlx_server.cache.base import Seat"),
        ("engine/engine.py", "from .scheduler import Scheduler\nfrom ..core import Usage"),
        ("api/openai_chat.py", "from pydantic import BaseModel\nfrom . import base"),
        ("server/http.py", "from mlx_server import __version__, api"),
        ("demo/train.py", "import mlx.core\nfrom mlx_server import demo"),
    ],
)
def test_an_allowed_import_passes(file: str, source: str) -> None:
    assert violations(source, file) == []


def test_every_library_that_is_imported_is_declared() -> None:
    setup = (PACKAGE.parent / "setup.py").read_text("utf-8")
    install_requires = setup.split("install_requires=[")[1].split("extras_require")[0]
    names = re.findall(r"""^ +["']([A-Za-z0-9_-]+)""", install_requires, re.MULTILINE)
    declared = {name.replace("-", "_") for name in names}
    imported = {
        module.split(".")[0]
        for file in source_files()
        for module in imported_modules((PACKAGE / file).read_text("utf-8"), file)
    }
    assert imported - sys.stdlib_module_names - {"mlx_server"} <= declared
