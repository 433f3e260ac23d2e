"""What docs/architecture.md and docs/decisions.md name is there: files, classes, methods."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from pages import ROOT, Page

PACKAGE = ROOT / "mlx_server"
PAGES = ["docs/architecture.md", "docs/decisions.md", "docs/extending.md", "docs/benchmarks.md"]
PAGES.append("CONTRIBUTING.md")
MADE_UP = {"qwen3.py", "count.py", "brackets.py"}
"""Files that the page on extending adds."""


@cache
def defined() -> dict[str, set[str]]:
    """Class → what its body and its methods define, with what its bases in the package do."""
    found: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = found.setdefault(node.name, set())
                bases.setdefault(node.name, []).extend(
                    base.id for base in node.bases if isinstance(base, ast.Name)
                )
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef | ast.ClassDef):
                        names.add(part.name)
                    elif isinstance(part, ast.Name | ast.Attribute):
                        names.add(part.id if isinstance(part, ast.Name) else part.attr)
    for _ in range(3):
        for name, above in bases.items():
            for base in above:
                found[name] |= found.get(base, set())
    return found


def spoken(page: str) -> set[str]:
    """What stands there as code, outside of blocks."""
    return set(re.findall(r"`([^`\n]+)`", Page.read(ROOT / page).prose))


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    names = {name for name in spoken(page) if re.fullmatch(r"[\w/.]+\.(py|md|yaml)", name)}
    everywhere = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.*")]
    for folder in ("mlx_server", "tests", "benchmarks", "docs"):
        everywhere += [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.*")]
    missing = {
        name
        for name in names - MADE_UP
        if not any(f"/{path}".endswith(f"/{name}") for path in everywhere)
    }
    assert {name for name in missing if Path(name).name not in MADE_UP} == set()


@pytest.mark.parametrize("page", PAGES)
def test_methods_that_are_named_exist(page: str) -> None:
    pairs = {
        found.groups()
        for name in spoken(page)
        if (found := re.match(r"([A-Z]\w+)\.(\w+)(?:\(|$)", name))
    }
    known = defined()
    assert {f"{c}.{m}" for c, m in pairs if c in known and m not in known[c]} == set()
    libraries = {"None", "MLX", "README", "CHANGELOG", "CONTRIBUTING", "NAME"}
    assert {f"{c}.{m}" for c, m in pairs if c not in known} - {
        f"{c}.{m}" for c, m in pairs if c in libraries
    } == set()
