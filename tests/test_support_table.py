"""docs/coming-from.md knows every endpoint, field, metric and error that the documents of the other
servers name, and the tests that it names exist; docs/settings.md has their flags, and docs/api.md
with it every route. (What flags mean: `test_config.py`.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlx_server.api import DIALECTS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text("utf-8")
API = (ROOT / "docs" / "api.md").read_text("utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text("utf-8")


@pytest.fixture(scope="module")
def documents(shared: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in (shared / "reference").glob("*.txt")}


def between(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


TOLD = "\n".join(re.findall(r"`([^`\n]+)`", PAGE))
"""What stands there as code: most fields' names are words of the prose as well."""


def known(name: str) -> bool:
    return re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", TOLD) is not None


def rows(table: str) -> list[list[str]]:
    """The cells of each row of the first table under a heading; no heading and no rule."""
    lines = between(PAGE + "\n## ", f"## {table}\n", "\n## ").splitlines()
    return [line.strip("|").split("|") for line in lines if line.startswith("|")][2:]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def endpoints(table: str) -> set[str]:
    """As in "GET /health", of the first cells: there a method goes on until the next one, and
    "`GET` and `POST /stats`" is both."""
    found = set()
    for first, *_ in rows(table):
        methods: list[str] = []
        used = False
        for method, path in (re.match(r"([A-Z]*) ?(.*)", span).groups() for span in spans(first)):
            if method:
                methods, used = ([] if used else methods) + [method], False
            if path:
                found |= {f"{method} {path}" for method in methods}
                used = True
    return found


def missing(names: set[str]) -> list[str]:
    return sorted(name for name in names if not known(name))


def test_llama_endpoints(documents) -> None:
    document = documents["llama-cpp-server"]
    found = set(re.findall(r"(?:GET|POST) /[\w/{}.?=-]+", document))
    found |= {f"GET {file}" for file in re.findall(r"/\w+\.js", document)}
    assert len(found) > 16
    assert sorted(found - endpoints("llama.cpp: endpoints")) == []


def test_llama_options(documents) -> None:
    options = between(
        documents["llama-cpp-server"], "POST /completion: Given", "POST /tokenize: Tokenize"
    )
    names = set(re.findall(r"^`(\w+)`:", options, re.MULTILINE))
    assert {"prompt", "mirostat", "samplers", "id_slot"} <= names
    told = rows("llama.cpp: options of /completion")
    assert sorted(names - {name for first, *_ in told for name in spans(first)}) == []


def test_llama_reply(documents) -> None:
    reply = between(documents["llama-cpp-server"], "• Note: When using streaming", "POST /tokenize")
    names = set(re.findall(r"^  • (\w+): ", reply, re.MULTILINE))
    names |= set(re.findall(r'"(\w+)":', reply))
    assert {"content", "stopped_eos", "tok_str"} <= names
    assert missing(names) == []


def test_llama_other_fields(documents) -> None:
    document = documents["llama-cpp-server"]
    rest = between(document, "POST /tokenize: Tokenize", "GET /slots: Returns")
    rest += between(document, "POST /slots/{id_slot}?action=save", "More examples")
    names = set(re.findall(r"^`(\w+)`:", rest, re.MULTILINE))
    names |= set(re.findall(r'^ +"(\w+)":', rest, re.MULTILINE)) - {"messages", "role", "content"}
    shown = {"tokens", "model", "id", "piece", "type", "minLength", "maxLength"}
    assert missing(names - shown) == []


def test_llama_metrics_and_errors(documents) -> None:
    document = documents["llama-cpp-server"]
    names = set(re.findall(r"llamacpp:\w+", document))
    names |= set(re.findall(r'"type": "(\w+_error)"', document))
    names |= set(re.findall(r'"message": "([^"]+)"', document))
    assert len(names) > 12
    assert missing(names) == []


def test_mlc(documents) -> None:
    document = documents["mlc-llm-rest"]
    request = between(document, "Request Object", "Returns")
    fields = set(re.findall(r"^ *[•-] (\w+) \(", request, re.MULTILINE))
    assert {"messages", "ignore_eos", "response_format", "tool_call_id"} <= fields
    assert missing(fields) == []
    flags = set(re.findall(r"\[(--[\w-]+)", document))
    assert {flag for flag in flags if f"`{flag}`" not in SETTINGS} == set()
    found = {f"GET {path}" for path in re.findall(r"http:get:: (/\S+)", documents["mlc-chat-rest"])}
    assert len(found) == 5
    found |= {f"GET {path}" for path in re.findall(r"GET (/v1/\S+)", document)} | {"GET /docs"}
    assert sorted(found - endpoints("MLC")) == []


def test_every_endpoint_names_a_test() -> None:
    told = rows("llama.cpp: endpoints") + rows("MLC")
    assert [cells[0] for cells in told if "test_" not in cells[-1]] == []


def test_the_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"\btest_\w+", PAGE))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "tests" / f"{name}.py").is_file()] == []


def test_every_endpoint_is_a_route() -> None:
    routes = {f"{route.method} {route.path}" for dialect in DIALECTS for route in dialect.routes}
    files = {"GET /", "GET /completion.js"}
    told = {name.split("?")[0] for name in endpoints("llama.cpp: endpoints") | endpoints("MLC")}
    assert sorted(told - routes - files) == []


def test_every_route_is_in_a_document() -> None:
    told = set(re.findall(r"/[\w/{}:.-]+", (API + PAGE).replace("{id}", "{model:path}")))
    plain = {"/v1/health", "/docs/{file}"}
    paths = {route.path for dialect in DIALECTS for route in dialect.routes} - plain
    lost = [p for p in sorted(paths) if p not in told and f"/v1{p}" not in told]
    assert lost == []
