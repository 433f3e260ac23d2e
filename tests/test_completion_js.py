"""/completion.js in Node and in a real browser, and the page of llama.cpp's document with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_http import FakeDialect, FakePool, Running, eventually, serving

from mlx_server.api.base import HttpRequest, Json, JsonReply, Route, StreamReply
from mlx_server.errors import AuthenticationError, RequestError, ServerError
from mlx_server.server.static import BUILT_IN

PIECES = ["Why", " did", " the", " Hähnchen", "\ncross", " 🐔?"]
TEXT = "".join(PIECES)
SETTINGS = {"n_ctx": 512}


class CompletionDialect(FakeDialect):
    """POST /completion and GET /props, as llama.cpp's server answers them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.routes = (
            *self.routes,
            Route("POST", "/completion", self.completion),
            Route("GET", "/props", self.props),
        )

    def error(self, error: ServerError) -> Json:
        return {"error": {"code": error.status, "message": error.message, "type": error.kind}}

    def props(self, http: HttpRequest, pool: FakePool) -> JsonReply:
        return JsonReply({"default_generation_settings": SETTINGS})

    def completion(self, http: HttpRequest, pool: FakePool) -> StreamReply | JsonReply:
        body = http.json()
        self.asked.append(body | {"authorization": http.headers.get("authorization")})
        if body["prompt"] == "refused":
            raise RequestError("no such thing")
        if body["prompt"] == "locked":
            raise AuthenticationError("Invalid API Key")
        last = {"content": "", "stop": True, "generation_settings": SETTINGS, "timings": {"n": 1}}
        if not body["stream"]:
            return JsonReply(last | {"content": TEXT})

        def events() -> Iterator[Json | None]:
            yield None
            for piece in PIECES:
                yield {"content": piece, "stop": False}
                if body["prompt"] == "broken":
                    raise RequestError("in the middle")
                if body["prompt"] == "endless":
                    pool.hold(http)
            yield last

        return StreamReply(events())


@pytest.fixture
def dialect() -> CompletionDialect:
    return CompletionDialect()


@pytest.fixture
def running(dialect: CompletionDialect, tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "index.html").write_text("<html><body></body></html>")
    with serving(dialect, path=str(tmp_path)) as running:
        yield running


# What is run in both: a module body that has `m` (the module) and `url`, and returns a value.
COLLECT = """
    let text = '', stops = []
    for await (const chunk of m.llama('joke', {n_predict: 7}, {api_url: url + '/'})) {
        text += chunk.data.content
        stops.push(chunk.data.stop)
    }
    return [text, stops]
"""
RETURNED = """
    const run = m.default('joke', {api_url: url, api_key: 'k1'})
    let last
    do { last = await run.next() } while (!last.done)
    return last.value
"""
COMPLETE = """
    const chunks = []
    await m.llamaComplete({prompt: 'joke', api_url: url}, null, (c) => chunks.push(c.data.content))
    return chunks.join('')
"""
PROMISE = "return await m.llamaPromise('joke', {}, {api_url: url})"
WHOLE = "return await m.llamaPromise('joke', {stream: false}, {api_url: url})"
TARGET = """
    const seen = []
    const target = m.llamaEventTarget('joke', {}, {api_url: url})
    for (const type of ['message', 'generation_settings', 'timings'])
        target.addEventListener(type, (e) => seen.push(type))
    const done = await new Promise((resolve) => target.addEventListener('done', resolve))
    return [done.detail.content, seen.length, seen.at(-1), seen.includes('generation_settings')]
"""
TARGET_ERROR = """
    const target = m.llamaEventTarget('refused', {}, {api_url: url})
    return await new Promise((r) => target.addEventListener('error', (e) => r(e.detail.message)))
"""
INFO = "return [await m.llamaModelInfo({api_url: url}), await m.llamaModelInfo({api_url: url})]"
ABORT = """
    const controller = new AbortController()
    let text = ''
    for await (const chunk of m.llama('endless', {}, {api_url: url, controller})) {
        text += chunk.data.content
        controller.abort()
    }
    return text
"""
LEAVE = (
    "for await (const chunk of m.llama('endless', {}, {api_url: url})) return chunk.data.content"
)


def failing(prompt: str) -> str:
    return f"""
        try {{ await m.llamaPromise('{prompt}', {{}}, {{api_url: url}}) }}
        catch (error) {{ return [error.message, error.detail.code] }}
    """


SCRIPTS = {
    "chunks": (COLLECT, [TEXT, [False] * len(PIECES) + [True]]),
    "returned": (RETURNED, TEXT),
    "complete": (COMPLETE, TEXT),
    "promise": (PROMISE, TEXT),
    "not streamed": (WHOLE, TEXT),
    "events": (TARGET, [TEXT, len(PIECES) + 3, "timings", True]),
    "event of an error": (TARGET_ERROR, "llama: no such thing"),
    "model info": (INFO, [SETTINGS, SETTINGS]),
    "refused": (failing("refused"), ["llama: no such thing", 400]),
    "locked": (failing("locked"), ["llama: Invalid API Key", 401]),
    "broken off": (failing("broken"), ["llama: in the middle", 400]),
}


def in_node(running: Running, folder: Path, script: str) -> Any:
    shutil.copy(BUILT_IN / "completion.js", folder / "completion.mjs")
    (folder / "run.mjs").write_text(
        f"import * as m from './completion.mjs'\nconst url = '{running.server.url}'\n"
        f"console.log(JSON.stringify(await (async () => {{ {script} }})()))\n"
    )
    command = ["node", str(folder / "run.mjs")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture
def page(browser: Any, running: Running) -> Iterator[Any]:
    page = browser.new_page()
    page.goto(running.server.url)
    yield page
    page.close()


def in_page(page: Any, running: Running, script: str) -> Any:
    return page.evaluate(
        f"async (url) => {{ const m = await import('/completion.js'); {script} }}",
        running.server.url,
    )


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node here")


@needs_node
@pytest.mark.parametrize("name", SCRIPTS)
def test_in_node(running: Running, tmp_path: Path, name: str) -> None:
    script, expected = SCRIPTS[name]
    assert in_node(running, tmp_path, script) == expected


@pytest.mark.parametrize("name", SCRIPTS)
def test_in_a_browser(running: Running, page: Any, name: str) -> None:
    script, expected = SCRIPTS[name]
    assert in_page(page, running, script) == expected


@needs_node
def test_what_it_sends(running: Running, dialect: CompletionDialect, tmp_path: Path) -> None:
    in_node(running, tmp_path, COLLECT + ";")
    in_node(running, tmp_path, RETURNED)
    first, second = dialect.asked
    assert (first["prompt"], first["n_predict"], first["stream"]) == ("joke", 7, True)
    assert first["authorization"] is None
    assert second["authorization"] == "Bearer k1"
    assert not {"api_key", "api_url"} & second.keys()


@pytest.mark.parametrize("script", [ABORT, LEAVE])
def test_who_stops_reading_stops_the_generation(running: Running, page: Any, script: str) -> None:
    assert in_page(page, running, script) == PIECES[0]
    assert eventually(running.pool.cancelled.is_set)


def test_a_page_of_another_origin_may_use_it(running: Running, browser: Any) -> None:
    with serving(CompletionDialect()) as other:
        page = browser.new_page()
        page.goto(running.server.url)
        assert in_page(page, other, COLLECT)[0] == TEXT
        page.close()


def document_page(shared: Path) -> str:
    """The example of "Extending or building alternative Web Front End", as it stands there."""
    path = shared / "reference" / "llama-cpp-server.txt"
    if not path.exists():
        pytest.skip("the document is absent")
    text = path.read_text("utf-8")
    begin = text.rindex("<html>")
    return text[begin : text.index("</html>", begin) + len("</html>")]


def test_the_page_of_the_document(browser: Any, dialect: CompletionDialect, tmp_path: Path) -> None:
    shared = Path(__file__).parents[2] / "shared"
    (tmp_path / "index.html").write_text(document_page(shared), "utf-8")
    with serving(dialect, path=str(tmp_path)) as running:
        page = browser.new_page()
        failed: list[str] = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(running.server.url)
        page.wait_for_function("text => document.body.innerText.includes(text)", arg="🐔?")
        # The script writes after the page is loaded, so what it writes is the page.
        assert page.inner_text("body") == TEXT.replace("\n", " ")
        assert not failed
        page.close()
    assert "dad jokes" in dialect.asked[0]["prompt"]
