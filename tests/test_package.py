"""What is shipped: the wheel's content and metadata, and the documents' tables of flags."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest

from mlx_server import __version__, compat, config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built from a copy so that the checkout stays as it is."""
    pytest.importorskip("setuptools", minversion="77")
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mlx_server", source / "mlx_server", ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(work), str(source)]
    subprocess.run(command, check=True, timeout=120)
    (built,) = work.glob("*.whl")
    return zipfile.ZipFile(built)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_every_source_file_and_no_test(wheel: zipfile.ZipFile) -> None:
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mlx_server").rglob("*.py")}
    names = set(wheel.namelist())
    assert sources <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "examples/")) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "chat_template.jinja",
        "corpus/server.txt",
        "README.md",
    ],
)
def test_wheel_holds_the_demo_model(wheel: zipfile.ZipFile, name: str) -> None:
    shipped = wheel.read(f"mlx_server/demo/{name}")
    assert shipped == (ROOT / "mlx_server" / "demo" / name).read_bytes()


def test_wheel_holds_the_pages(wheel: zipfile.ZipFile) -> None:
    web = ROOT / "mlx_server" / "server" / "web"
    files = {p.relative_to(ROOT).as_posix() for p in web.rglob("*") if p.is_file()}
    assert "mlx_server/server/web/vendor/purify.es.js" in files
    assert files <= set(wheel.namelist())


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    data = metadata(wheel)
    assert data["Version"] == __version__
    assert data["Requires-Python"] == ">=3.11"
    requirements = data.get_all("Requires-Dist") or []
    assert not [r for r in requirements if re.match(r"torch\b", r)]
    mlx = sorted(r for r in requirements if re.match(r"mlx[\[<>=]", r))
    assert [bool(re.search(r"\bdarwin\b", r)) for r in mlx] == [True, False, False]
    assert [re.search(r"\[(\w+)\]", r).group(1) for r in mlx if "linux" in r] == ["cpu", "cuda13"]
    assert set(data.get_all("Provides-Extra") or []) == {"bench", "cuda", "embeddings", "test"}


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(name).decode())
    assert dict(entry_points["console_scripts"]) == {"mlx_server": "mlx_server.cli:main"}


@pytest.mark.parametrize(("mark", "module"), [("flags", config), ("compat", compat)])
def test_settings_md_shows_the_flags_as_they_are_printed(mark: str, module: ModuleType) -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    shown = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->", page, re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == module.table()


def test_changelog_names_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\]", changelog, re.MULTILINE)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_hides_no_library(example: Path) -> None:
    """A script's folder comes first on its import path."""
    assert importlib.util.find_spec(example.stem) is None
    compile(example.read_text("utf-8"), example.name, "exec")
