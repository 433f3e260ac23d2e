"""The page at /engine/ in headless Chromium: it follows what runs, and asks nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from test_api_engine import Gate, arrived, ask, gated, numbered

from mlx_server.server.http import HttpServer

KEY = "sk-page"
WAIT = 30_000  # milliseconds; an upper bound for things that happen within one or two polls
WATCH = """
    window.violations = []
    addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective))
    // Polls that have begun, and that the page has the answers of.
    window.polls = { begun: 0, over: 0 }
    const real = window.fetch
    window.fetch = async (...words) => {
        polls.begun++
        try {
            const reply = await real(...words)
            const body = await reply.text()
            return new Response(body, { status: reply.status })
        } finally {
            polls.over++
        }
    }
"""
TURNS = """async () => {
    for (let i = 0; i < 5; i++)
        await new Promise((done) => {
            const { port1, port2 } = new MessageChannel()
            port1.onmessage = done
            port2.postMessage(0)
        })
}"""  # of the event loop, whatever clock the page has
NOON = 1_800_000_000  # some second, for clocks that stand still
HIDE = """(state) => {
    Object.defineProperty(document, 'visibilityState', { value: state, configurable: true })
    document.dispatchEvent(new Event('visibilitychange'))
}"""


@pytest.fixture(scope="module")
def server(serve: Callable[..., HttpServer], stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260k"), max_batch_size=4, prefill_chunk_size=16)


@pytest.fixture(scope="module")
def locked(serve: Callable[..., HttpServer], stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260k"), api_key=(KEY,))


class Visit:
    """A page of its own storage, and all that went wrong or out of it."""

    def __init__(self, browser: Any, server: HttpServer) -> None:
        self.server = server
        self.context = browser.new_context(color_scheme="light")
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.add_init_script(WATCH)
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.expected: tuple[str, ...] = ()
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _told(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def settle(self) -> None:
        """Until every poll has its answer, and the page has read it."""
        self.page.wait_for_function("() => polls.over === polls.begun")
        self.page.evaluate(TURNS)

    def open(self, path: str = "/engine/", *, frozen: bool = False) -> Any:
        """
        Args:
            frozen: The page's clock stands still, but for `page.clock.run_for`.
        """
        if frozen:
            self.page.clock.install(time=NOON)
            self.page.clock.pause_at(NOON + 1)
        self.page.goto(self.server.url + path)
        return self.page

    def polls(self) -> int:
        return self.page.evaluate("polls.begun")

    def check(self) -> None:
        assert self.page.evaluate("window.violations") == []
        problems = [p for p in self.problems if not any(e in p for e in self.expected)]
        assert problems == []
        own = urlsplit(self.server.url).netloc
        assert {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")} == {own}


@pytest.fixture
def visit(browser: Any, server: HttpServer) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.check()
    visit.context.close()


def figures(uptime: float, **changes: Any) -> dict[str, Any]:
    """What the server could answer; `engine` is changed key by key."""
    engine = {
        "running": 0, "waiting": 0, "prompt_tokens_computed": 0, "generated_tokens": 0,
        "prompt_tokens_cached": 0, "prefix_hits": 0, "prefix_misses": 0, "kv_bytes": 2e6,
        "kv_budget_bytes": 1e9, "prefix_bytes": 1e6, "active_memory": 5e6, "peak_memory": 6e6,
    } | changes.pop("engine", {})  # fmt: skip
    body = {
        "version": "9.9", "uptime": uptime, "status": "ready", "device": "Abacus (CPU)",
        "models": [], "outcomes": {}, "rows": [], "engine": engine,
    }  # fmt: skip
    return body | changes


def row(slot: int | None = 0, **changes: Any) -> dict[str, Any]:
    return {
        "slot": slot, "model": "m", "state": "decode", "prompt_tokens": 100, "cached_tokens": 0,
        "prompt_tokens_done": 100, "decoded_tokens": 5, "tokens_left": 15, "seconds": 2.5,
        "tokens_per_second": 12.34,
    } | changes  # fmt: skip


class Answers:
    """Stands for the server: gives one answer after the other, and the last one again and again,
    a second later each time."""

    def __init__(self, page: Any, *bodies: dict[str, Any]) -> None:
        self.bodies = list(bodies)
        self.given = 0
        self.failing = False
        self.page = page
        self.restore()

    def restore(self) -> None:
        """Answer, again."""
        self.page.route("**/engine/figures", self._answer)

    def _answer(self, route: Any) -> None:
        if self.failing:
            route.abort()
            return
        body = self.bodies[min(self.given, len(self.bodies) - 1)]
        late = max(0, self.given - len(self.bodies) + 1)
        self.given += 1
        route.fulfill(json=body | {"uptime": body["uptime"] + late})


def big(page: Any, name: str) -> str:
    return page.locator(f"#tile-{name} .big").inner_text()


def has_text(page: Any, selector: str, text: str) -> None:
    """Wait until it has."""
    found = "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)"
    page.wait_for_function(found, arg=[selector, text])


# ---------------------------------------------------------------- with the real server


@pytest.fixture(scope="module")
def gate(server: HttpServer) -> Iterator[Gate]:
    with gated(server) as gate:
        yield gate


def test_it_follows_what_runs(visit: Visit, server: HttpServer, gate: Gate) -> None:
    page = visit.open()
    has_text(page, "#status", "Live")
    has_text(page, "#rows-none", "Nothing runs")
    assert (big(page, "running"), big(page, "waiting")) == ("0", "0")
    assert server.config.model in page.locator("#models").inner_text()
    assert page.locator("#server").inner_text().startswith("mlx_server ")
    with ThreadPoolExecutor(8) as threads:
        ask(threads, server, numbered(10, 7), 30)
        gate.wait()
        gate.allow(8)
        replies = [ask(threads, server, numbered(20 + i, 300), 5) for i in range(5)]
        arrived(server, 5)
        gate.allow(3)
        has_text(page, "#tile-running .big", "4")
        has_text(page, "#tile-waiting .big", "2")
        states = page.locator("#rows .state").all_inner_texts()
        assert states == ["decode", "prefill", "prefill", "prefill"]
        first = page.locator("#rows tbody tr").first
        assert "7 / 7" in first.inner_text() and " / 30" in first.inner_text()
        bars = page.locator("#rows progress")
        assert bars.count() == 8
        assert 0 < bars.nth(1).evaluate("bar => bar.value / bar.max") < 1
        gate.open()
        assert [reply.result().status_code for reply in replies] == [200] * 5
    has_text(page, "#tile-running .big", "0")
    has_text(page, "#outcomes", "Reached their limit of tokens")
    # Of two polls around them: what was computed is seen as a speed, and in the chart's table.
    total = server.pool.worker.stats()["generated_tokens"]
    assert page.locator("#tile-reply dd").nth(1).inner_text() == f"{total} in all"
    page.locator("#chart-rows summary").click()
    cells = page.locator("#chart-rows tbody tr").first.locator("td").all_inner_texts()
    assert cells == ["0", "0"]


def test_a_key_is_asked_for(browser: Any, locked: HttpServer) -> None:
    visit = Visit(browser, locked)
    visit.expected = ("401",)
    page = visit.open()
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_label("Key", exact=True)
    field.fill("wrong")
    field.press("Enter")
    has_text(page, "dialog", "Invalid API Key")
    dialog.get_by_role("button", name="Cancel").click()
    has_text(page, "#status", "asks for a key")
    quiet = visit.polls()
    page.wait_for_timeout(1500)
    assert visit.polls() == quiet  # who gave none is left alone
    page.get_by_role("button", name="Give a key").click()
    field.fill(KEY)
    dialog.get_by_role("button", name="Use this key").click()
    has_text(page, "#status", "Live")
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    page.reload()
    has_text(page, "#status", "Live")
    visit.check()
    visit.context.close()


def test_a_reload_sends_nothing_again(visit: Visit) -> None:
    page = visit.open()
    has_text(page, "#status", "Live")
    page.reload()
    has_text(page, "#status", "Live")
    sizes = page.evaluate(
        """['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))
            .map((entry) => [new URL(entry.name).pathname, entry.transferSize])"""
    )
    sent = {path: moved for path, moved in sizes if path != "/engine/figures"}
    assert {"/engine/", "/engine/page.js", "/vendor/uplot.esm.js", "/app/theme.css"} <= sent.keys()
    # A head that says "as you have it" counts for 300 bytes, however long it is.
    assert {path: moved for path, moved in sent.items() if moved > 300} == {}


# ---------------------------------------------------------------- with answers that are given


def test_speeds_and_shares_are_differences(visit: Visit) -> None:
    first = figures(100, engine={"prefix_misses": 10, "prompt_tokens_computed": 1000})
    grown = {"prefix_misses": 11, "prefix_hits": 3, "prompt_tokens_computed": 1800}
    more = {"generated_tokens": 50, "prompt_tokens_cached": 1234}
    Answers(visit.page, first, figures(104, engine=grown | more))
    page = visit.open()
    has_text(page, "#tile-prompt .big", "200")
    assert big(page, "reply") == "12.5"
    assert big(page, "hits") == "21 %"  # since the server began: 3 of 14
    values = page.locator("#chart-prefix .legend dd").all_inner_texts()
    assert values == ["75 %", "1,234"]  # of the last minute: 3 of 4
    assert big(page, "memory") == "5 MB"
    assert "at most 1 GB" in page.locator("#tile-memory").inner_text()
    has_text(page, "#tile-prompt .big", "0")  # nothing more came


def test_another_server_begins_anew(visit: Visit) -> None:
    Answers(visit.page, figures(500, engine={"generated_tokens": 900}), figures(3))
    page = visit.open()
    has_text(page, "#announcer", "started anew")
    page.locator("#chart-speed summary").click()
    has_text(page, "#server", "up 4")
    assert page.locator("#chart-speed tbody tr").count() == 1
    assert "-" not in big(page, "reply")


def test_another_server_is_known_by_its_counters_too(visit: Visit) -> None:
    """One that has been up for longer, as nobody looked meanwhile."""
    before = figures(20, engine={"generated_tokens": 900, "prefix_hits": 9})
    Answers(visit.page, before, figures(80, engine={"generated_tokens": 30}))
    page = visit.open()
    has_text(page, "#announcer", "started anew")
    page.locator("#chart-prefix summary").click()
    assert "-" not in page.locator("#chart-prefix").inner_text()


def test_a_new_start_is_told_after_a_failure(visit: Visit) -> None:
    visit.expected = ("ERR_FAILED",)
    answers = Answers(visit.page, figures(500))
    page = visit.open()
    has_text(page, "#status", "Live")
    answers.failing = True
    has_text(page, "#status", "cannot be reached")
    answers.bodies, answers.given = [figures(3)], 0
    answers.failing = False
    has_text(page, "#announcer", "started anew")


COLORED = """([id, index]) => {
    const canvas = document.querySelector(`#chart-${id} canvas`)
    const swatch = document.querySelectorAll(`#chart-${id} .swatch`)[index]
    const wanted = getComputedStyle(swatch).color.match(/\\d+/g).map(Number)
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    let found = 0
    for (let i = 0; i < data.length; i += 4)
        if (data[i + 3] === 255 && wanted.every((value, k) => Math.abs(data[i + k] - value) < 6))
            found++
    return [getComputedStyle(swatch).color, found]
}"""


def busy(start: float) -> list[dict[str, Any]]:
    """Answers in which everything moves."""
    return [
        figures(
            start + 5 * i,
            engine={
                "running": i % 4, "waiting": 2 + i % 3, "prompt_tokens_computed": 300 * i * i,
                "generated_tokens": 90 * i * i, "prompt_tokens_cached": 70 * i,
                "kv_bytes": 1e6 * (3 + i), "prefix_bytes": 1e6 * (1 + i),
                "prefix_hits": 2 * i, "prefix_misses": i,
                "active_memory": 9e6 + 1e6 * i, "peak_memory": 30e6,
            },
        )
        for i in range(6)
    ]  # fmt: skip


def test_charts_are_drawn_in_the_themes_colors(visit: Visit) -> None:
    visit.expected = ("willReadFrequently",)  # a hint to the test, which reads the pixels
    answers = Answers(visit.page, *busy(100))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    while answers.given < 6:
        page.clock.run_for(1000)
        visit.settle()
    page.clock.run_for(100)
    seen: dict[str, set[str]] = {}
    for theme, act in {
        "light": lambda: None,
        "the system's dark": lambda: page.emulate_media(color_scheme="dark"),
        "chosen light": lambda: page.click("#theme"),
        "chosen dark": lambda: page.click("#theme"),
    }.items():
        act()
        page.clock.run_for(100)
        colors = set()
        for chart, count in {"speed": 2, "rows": 2, "prefix": 2, "memory": 4}.items():
            for index in range(count):
                # The system's theme is told of with the next frame.
                page.wait_for_function(f"(of) => ({COLORED})(of)[1] > 15", arg=[chart, index])
                colors.add(page.evaluate(COLORED, [chart, index])[0])
        seen[theme] = colors
    assert seen["light"] == seen["chosen light"]
    assert seen["the system's dark"] == seen["chosen dark"]
    assert not seen["light"] & seen["chosen dark"]


def test_a_pointed_at_time_is_told_in_every_legend(visit: Visit) -> None:
    answers = Answers(visit.page, *busy(100))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    while answers.given < 6:
        page.clock.run_for(1000)
        visit.settle()
    area = page.locator("#chart-rows .u-over")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    # 25 seconds before now, where 60 are shown: the first answer.
    x = box["x"] + box["width"] * 35 / 60
    page.mouse.move(x, box["y"] + 50)
    page.mouse.move(x + 1, box["y"] + 50)
    page.clock.run_for(200)
    assert page.locator(".when").all_inner_texts() == ["25 s ago"] * 4
    assert page.locator("#chart-memory .legend dd").nth(0).inner_text() == "9 MB"
    page.mouse.move(5, 5)
    page.clock.run_for(200)
    assert page.locator(".when").all_inner_texts() == ["now"] * 4


def test_charts_can_be_read_without_seeing_them(visit: Visit) -> None:
    Answers(visit.page, *[figures(100 + 30 * i, engine={"waiting": i}) for i in range(4)])
    page = visit.open()
    has_text(page, "#tile-waiting .big", "3")
    plot = page.get_by_role("img", name="Rows, now: Running 0, Waiting 3")
    assert plot.count() == 1
    summary = page.locator("#chart-rows summary")
    summary.focus()
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Rows, as a table")
    assert table.locator("thead th").all_inner_texts() == ["Time", "Running", "Waiting"]
    times = table.locator("tbody th").all_inner_texts()
    assert times[:3] == ["now", "30 s ago", "1 min ago"]
    waiting = table.locator("tbody td:last-child").all_inner_texts()
    assert waiting[:3] == ["3", "2", "1"] or waiting[1:3] == ["3", "2"]


def test_rows_tell_how_far_they_are(visit: Visit) -> None:
    rows = [
        row(0, state="prefill", prompt_tokens_done=40, cached_tokens=30, decoded_tokens=0,
            tokens_left=20, tokens_per_second=None),
        row(1, tokens_left=2_000_000_000),
        row(3, model="other"),
    ]  # fmt: skip
    answers = Answers(visit.page, figures(1, rows=rows), figures(2, rows=rows[2:]))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    cells = [
        [cell.inner_text() for cell in line.locator("th, td").all()]
        for line in page.locator("#rows tbody tr").all()
    ]
    assert cells == [
        ["0", "m", "prefill", "40 / 100, 30 cached", "0 / 20", "2.5 s", "–"],
        ["1", "m", "decode", "100 / 100", "5", "2.5 s", "12.3"],
        ["3", "other", "decode", "100 / 100", "5 / 20", "2.5 s", "12.3"],
    ]
    assert page.get_by_role("progressbar", name="Prompt of slot 0").get_attribute("max") == "100"
    assert page.get_by_role("progressbar", name="Reply of slot 1").count() == 0
    kept = page.locator("#rows tbody tr").nth(2).element_handle()
    page.clock.run_for(1000)
    visit.settle()
    assert (answers.given, page.locator("#rows tbody tr").count()) == (2, 1)
    # The row that stays is the same element: whoever reads it keeps their place.
    assert kept.evaluate("node => node === document.querySelector('#rows tbody tr')")


def test_rows_without_a_slot_come_and_go(visit: Visit) -> None:
    without = [row(None, decoded_tokens=i) for i in (1, 2)]
    answers = Answers(visit.page, figures(1, rows=without), figures(2, rows=[row(0)]))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    lines = page.locator("#rows tbody tr")
    assert lines.count() == 2
    page.clock.run_for(1000)
    visit.settle()
    assert (answers.given, lines.count()) == (2, 1)
    assert lines.first.locator("th").inner_text() == "0"


def test_nothing_that_is_told_becomes_markup(visit: Visit) -> None:
    act = "document.title='owned'"
    hostile = f'<img src=x onerror="{act}"><script>{act}</script>'
    adapter = {"id": 0, "name": hostile, "path": hostile, "scale": 1.0}
    model = {"id": hostile, "kind": "text", "parameters": 1, "bytes": 1, "context_length": 1,
             "slots": 1, "adapters": [adapter]}  # fmt: skip
    body = figures(1, models=[model], rows=[row(model=hostile, state=hostile)],
                   outcomes={hostile: 1}, device=hostile, version=hostile)  # fmt: skip
    Answers(visit.page, body, body | {"status": hostile})
    page = visit.open()
    has_text(page, "#status", "onerror")
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Engine · mlx_server"
    assert hostile in page.locator("#models tbody th").inner_text()


# ---------------------------------------------------------------- how often it asks


def spent(page: Any, visit: Visit, seconds: int) -> int:
    """Polls within so many seconds of the page's clock."""
    before = visit.polls()
    for _ in range(seconds):
        page.clock.run_for(1000)
        visit.settle()
    return visit.polls() - before


def test_a_hidden_page_asks_seldom(visit: Visit) -> None:
    Answers(visit.page, figures(1))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    assert 19 <= spent(page, visit, 20) <= 20
    page.evaluate(HIDE, "hidden")
    spent(page, visit, 1)
    assert 2 <= spent(page, visit, 45) <= 3
    before = visit.polls()
    page.evaluate(HIDE, "visible")
    visit.settle()
    assert visit.polls() == before + 1  # at once, for whoever comes back
    assert 19 <= spent(page, visit, 20) <= 20


def test_a_server_that_is_gone_is_asked_ever_more_seldom(visit: Visit) -> None:
    visit.expected = ("ERR_FAILED",)
    answers = Answers(visit.page, figures(1))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    answers.failing = True
    spent(page, visit, 2)
    has_text(page, "#status", "cannot be reached")
    assert 3 <= spent(page, visit, 60) <= 6
    assert "Trying again in 30 s" in page.locator("#status").inner_text()
    answers.failing = False
    spent(page, visit, 31)
    has_text(page, "#status", "Live")
    assert 11 <= spent(page, visit, 12) <= 12


def test_it_can_be_paused(visit: Visit) -> None:
    Answers(visit.page, figures(1))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    page.get_by_role("button", name="Pause").press("Enter")
    assert spent(page, visit, 10) == 0
    has_text(page, "#status", "Paused")
    page.get_by_role("button", name="Go on").press("Enter")
    assert spent(page, visit, 5) >= 3
    has_text(page, "#status", "Live")


def test_a_failure_while_it_is_paused_is_not_told(visit: Visit) -> None:
    """The question was on its way; whoever paused is not asked for a key."""
    visit.expected = ("ERR_FAILED",)
    answers = Answers(visit.page, figures(1))
    page = visit.open(frozen=True)
    has_text(page, "#status", "Live")
    held: list[Any] = []
    page.route("**/engine/figures", lambda route: held.append(route))
    page.clock.run_for(1000)
    page.wait_for_function("() => polls.begun > polls.over")
    page.get_by_role("button", name="Pause").click()
    held.pop().abort()
    visit.settle()
    has_text(page, "#status", "Paused")
    page.unroute("**/engine/figures")
    answers.restore()
    given = answers.given
    page.get_by_role("button", name="Go on").click()
    has_text(page, "#status", "Live")
    assert answers.given > given


# ---------------------------------------------------------------- how it is written and laid out


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_the_screen(visit: Visit, width: int) -> None:
    model = {"id": "organisation/a-rather-long-name-of-a-model-8bit", "kind": "text",
             "parameters": 7e9, "bytes": 8e9, "context_length": 131072, "slots": 64,
             "adapters": []}  # fmt: skip
    rows = [row(i, model=model["id"]) for i in range(3)]
    visit.page.set_viewport_size({"width": width, "height": 800})
    Answers(visit.page, figures(1e6, rows=rows, models=[model], outcomes={"stop": 123456}))
    page = visit.open()
    has_text(page, "#status", "Live")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for canvas in page.locator(".plot canvas").all():
        box = canvas.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


FORMATS = {
    "whole": [(0, "0"), (1234567.4, "1,234,567"), (None, "–")],
    "rate": [(0, "0"), (0.04, "0.0"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1,235")],
    "percent": [(0, "0 %"), (66.6, "67 %"), (None, "–")],
    "bytes": [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (17.7e9, "17.7 GB"),
              (1.234e6, "1.23 MB")],
    "short": [(999, "999"), (999.6, "1k"), (7_080, "7.08k"), (7e9, "7B"), (260_032, "260k")],
    "duration": [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (60, "1 min"), (125, "2 min 5 s"),
                 (3600, "1 h"), (7320, "2 h 2 min"), (90000, "1 d 1 h"), (None, "–")],
    "ago": [(0, "now"), (1, "1 s ago"), (30, "30 s ago"), (600, "10 min ago")],
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_are_written_for_people(visit: Visit, name: str) -> None:
    page = visit.open()
    values = [value for value, _ in FORMATS[name]]
    found = page.evaluate(
        "async ([name, values]) => (await import('/engine/format.js'))[name] && "
        "values.map((await import('/engine/format.js'))[name])",
        [name, values],
    )
    assert found == [text for _, text in FORMATS[name]]


def test_no_more_is_kept_than_is_shown(visit: Visit) -> None:
    page = visit.open()
    kept = page.evaluate(
        """async () => {
            const { History } = await import('/engine/history.js')
            const history = new History()
            for (let uptime = 0; uptime < 5000; uptime += 0.5) history.add({ uptime, engine: {} })
            const [times] = history.columns([])
            return [times.length, times[0], times.at(-1), history.readings.length]
        }"""
    )
    assert kept[0] <= 1202 and -600.5 <= kept[1] <= -600 and kept[2] == 0
    assert kept[3] <= 122
