"""/openapi.json describes what there is, and odd bodies made from it break nothing."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin

import jsonschema
import pytest
import requests

from mlx_server.api import DIALECTS, embeddings, rerank
from mlx_server.api.fields import at_most, checked
from mlx_server.api.llama_text import TokenizeBody
from mlx_server.api.prompts import read_prompts
from mlx_server.api.schema import validate
from mlx_server.errors import RequestError
from mlx_server.server.http import HttpServer

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
strategies = hypothesis.strategies
GenerationMode = schemathesis.GenerationMode


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(max_tokens=4, request_timeout=20.0, metrics=True, props=True, enable_tracing=True)


@pytest.fixture(scope="module")
def description(server: HttpServer) -> dict:
    reply = requests.get(f"{server.url}/openapi.json", timeout=30)
    assert reply.status_code == 200
    return reply.json()


def test_every_route_is_described(description: dict) -> None:
    described = {
        (method.upper(), path)
        for path, operations in description["paths"].items()
        for method in operations
    }
    routes = {
        (route.method, route.path.replace(":path}", "}"))
        for dialect in DIALECTS
        for route in dialect.routes
    }
    own = {("GET", "/docs"), ("GET", "/docs/{file}"), ("GET", "/openapi.json")}
    assert routes - described == own
    assert described <= routes


def test_bodies_tell_their_fields(description: dict) -> None:
    schemas = description["components"]["schemas"]
    chat = schemas["ChatBody"]["properties"]
    assert {"messages", "temperature", "tools", "mirostat", "grammar"} <= chat.keys()
    told = {key: chat["temperature"][key] for key in ("type", "minimum", "maximum", "nullable")}
    assert told == {"type": "number", "minimum": 0, "maximum": 100, "nullable": True}
    assert chat["tool_choice"]["anyOf"][0]["enum"] == ["none", "auto", "required"]
    assert schemas["ChatBody"]["required"] == ["messages"]
    for name, schema in schemas.items():
        for field, kind in schema.get("properties", {}).items():
            assert kind.keys() & {"type", "anyOf", "allOf", "$ref"}, (name, field)


def test_the_description_is_openapi(description: dict) -> None:
    schemathesis.openapi.from_dict(description).validate()
    # Words of JSON Schema that version 3.0 has not.
    words = json.dumps(description)
    assert description["openapi"].startswith("3.0.")
    assert not re.search(r'"(const|prefixItems|\$defs|examples)":|"type": ("null"|\[)', words)


BODIES = sorted(
    {route.body for dialect in DIALECTS for route in dialect.routes if route.body},
    key=lambda body: body.__name__,
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_examples_are_valid(body) -> None:
    """What the page fills in is described by the schema, and accepted."""
    schema = body.model_json_schema()
    if "example" in schema:
        jsonschema.validate(schema["example"], schema)
        validate(body, schema["example"])
    else:
        assert body.__name__ in ("AdapterScales", "AnyEmbeddingBody", "PropsBody", "SlotFileBody")


PROBES = (
    *(None, True, False, 0, 1, -1, -2, 2, 11, 21, 101, 129, 2**31, 2**40, 16.0, 0.5, -0.5, 1e7),
    *("", "a", "none", "auto", "base64", "function", "e;k", "k" * 99),
    *([], ["a"], [1], [[1]], [True], ["", 1], [[1, 2.5]], [[1, False]], [["a", 5]], [{}]),
    *({}, {"type": "text"}, {"prompt_string": "a"}, {"5": 1}, {"5": False}, {"effort": "low"}),
    *({"include_usage": True}, {"prompt": "a"}, {"regex": "a"}, [{"id": 0, "scale": 1}]),
)
SCALARS = {"boolean", "integer", "number"}
BY_HAND = {
    ("CompletionBody", "prompt"): read_prompts,
    ("LlamaBody", "prompt"): read_prompts,
    "input": lambda value: embeddings.read_inputs(value, "input"),
    "content": lambda value: embeddings.read_inputs(value, "content"),
    "documents": lambda value: rerank.read_documents(value, "documents"),
    "texts": lambda value: rerank.read_documents(value, "texts"),
    "image_data": lambda value: checked(at_most(9), value, "image_data"),
}
"""Fields that are read after the body was checked, where they are not null."""


def accepts(body, whole: dict, field: str, value: object) -> bool:
    """Whether nothing is wrong with the field, whatever else is wrong with the body."""
    read = BY_HAND.get((body.__name__, field)) or BY_HAND.get(field)
    if body is TokenizeBody:
        read = None
    try:
        validate(body, {**whole, field: value})
        if read is not None and (value is not None or body.model_fields[field].is_required()):
            read(value)
    except RequestError as error:
        return error.param is None or not error.param.startswith(field)
    return True


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_the_description_is_that_of_the_checks(body) -> None:
    """A value that a field accepts is described; of numbers and flags no other is."""
    schema = body.model_json_schema()
    whole = schema.get("example", {})
    for field, described in schema.get("properties", {}).items():
        described = {**described, "$defs": schema.get("$defs", {})}
        judge = jsonschema.Draft202012Validator(described)
        kinds = {option.get("type") for option in described.get("anyOf", [described])} - {"null"}
        for value in PROBES:
            accepted = accepts(body, whole, field, value)
            if accepted or kinds <= SCALARS:
                assert judge.is_valid(value) == accepted, (field, value, described)


EXAMPLES = {
    (route.method, route.path): route.body.model_json_schema().get("example")
    for dialect in DIALECTS
    for route in dialect.routes
    if route.body
}
MODES = {GenerationMode.POSITIVE: 15, GenerationMode.NEGATIVE: 8}
"""How many requests are made of each operation, by whether they are to fit its description."""


@pytest.mark.parametrize("mode", MODES)
def test_no_body_is_a_server_error(
    server: HttpServer, description: dict, caplog, mode: GenerationMode
) -> None:
    """What schemathesis makes of the description, right and wrong, is answered below 500, or
    with 501 or 503, and the server lives on."""
    schema = schemathesis.openapi.from_dict(description)
    caplog.set_level(logging.ERROR)
    seen: Counter[int] = Counter()

    def try_one(operation) -> None:
        example = {}
        if mode is GenerationMode.POSITIVE:
            example = EXAMPLES.get((operation.method.upper(), operation.path)) or {}

        # All fields at once nearly always contradict one another: mostly a few are kept.
        @hypothesis.given(
            case=operation.as_strategy(generation_mode=mode),
            kept=strategies.sets(strategies.integers(0, 99), max_size=4),
        )
        @hypothesis.settings(
            max_examples=MODES[mode],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        def run(case, kept: set[int]) -> None:
            if isinstance(case.body, dict):
                case.body = example | {
                    name: value
                    for i, (name, value) in enumerate(sorted(case.body.items()))
                    if i in kept or not kept or (name in example and value is not None)
                }
            reply = case.call(base_url=server.url, timeout=60)
            seen[reply.status_code] += 1
            told = f"{case.body!r:.2000} got {reply.status_code} {reply.text[:500]}"
            assert reply.status_code < 500 or reply.status_code in (501, 503), told
            if reply.status_code >= 400:
                assert reply.json()["error"]["message"], told

        with suppress(hypothesis.errors.Unsatisfiable):  # nothing of it can be wrong
            run()

    for result in schema.get_all_operations():
        try_one(result.ok())
    assert sum(seen.values()) > 150, seen
    assert {200, 400} <= seen.keys(), seen
    assert not [r for r in caplog.records if r.exc_info], "a traceback was logged"
    health = requests.get(f"{server.url}/health", timeout=30)
    assert health.json() == {"status": "ok"}
    body = {"prompt": "Hello", "n_predict": 2}
    assert requests.post(f"{server.url}/completion", json=body, timeout=30).status_code == 200


def test_a_slot_is_erased_without_a_body(server: HttpServer) -> None:
    paths = requests.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]
    described = {
        path: operation["post"]["requestBody"]["required"]
        for path, operation in paths.items()
        if "requestBody" in operation.get("post", {})
    }
    assert [path for path, required in described.items() if not required] == ["/slots/{id_slot}"]
    url = f"{server.url}/slots/0?action=erase"
    assert requests.post(url, timeout=30).json().keys() == {"id_slot", "n_erased"}


def test_the_page_finds_its_files_behind_a_slash_too(server: HttpServer) -> None:
    reply = requests.get(f"{server.url}/docs/", timeout=30)
    assert (reply.status_code, reply.url) == (200, f"{server.url}/docs")
    links = re.findall(r'(?:src|href|url)(?:=|: )"([^"]+)"', reply.text)
    files = [link for link in links if not link.startswith("data:")]
    assert len(files) == 3
    for file in files:
        assert requests.get(urljoin(reply.url, file), timeout=30).status_code == 200


def test_docs_in_a_browser(server: HttpServer, browser: Any) -> None:
    """The page shows the routes and tries them, and asks no other host for anything."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    page.get_by_text("/v1/chat/completions").first.wait_for(timeout=20_000)
    # A request is filled in from its example, sent and answered.
    block = page.locator("#operations-LlamaText-post_tokenize")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    shown = block.locator(".live-responses-table .response")
    shown.wait_for(timeout=20_000)
    assert shown.locator(".response-col_status").inner_text().strip() == "200"
    assert '"piece"' in shown.inner_text()
    page.close()
    outside = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []
