"""The chat page for tests: a fresh browser window, and what is done on it.

Where a reply has to have a certain form (reasoning, calls, errors) `answer` answers the request;
what the server itself does with such requests is tested elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_server.server.http import HttpServer

CHAT = "**/v1/chat/completions"
WATCH = """
window.violations = []
document.addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective))
window.ran = []
"""
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 8},
}
WIDE = {"width": 1280, "height": 800}


def sse(*choices: dict[str, Any], finish: str = "stop") -> str:
    """A streamed reply of these choices' parts."""
    chunks = [{"model": "canned", "choices": [{"index": 0, **choice}]} for choice in choices]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": USAGE, "timings": {"predicted_per_second": 321.4}})
    events = [*map(json.dumps, chunks), "[DONE]"]
    return "".join(f"data: {event}\n\n" for event in events)


def words(text: str) -> dict[str, Any]:
    return {"delta": {"content": text}}


class Page:
    """A fresh browser's page, and what is done on it."""

    def __init__(self, browser: Any, server: HttpServer, viewport: dict[str, int] = WIDE) -> None:
        self.url = server.url
        self.context = browser.new_context(viewport=viewport)
        self.context.set_default_timeout(90_000)  # where other programs have the machine
        self.context.add_init_script(WATCH)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.url)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._requested)
        self.open()

    def _heard(self, message: Any) -> None:
        # Chromium itself reports replies with a status of 400 and more.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def _requested(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            self.bodies.append(request.post_data_json)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.locator("#model:enabled, dialog[open], #trouble:visible").first.wait_for()

    def set(self, **settings: str) -> None:
        """Type into the settings' fields, by the names that they have in a request."""
        panel = self.page.locator("#settings")
        if not panel.is_visible():
            self.button("Settings").click()
        for name, value in settings.items():
            field = panel.locator(f"#set-{name}")
            if name == "response_format":
                field.select_option(value)
            else:
                field.fill(value)
        self.button("Settings").click()

    def answer(self, *replies: str | tuple[int, dict[str, Any]]) -> None:
        """The next chat requests get these: streams, or a status and a body."""
        left = list(replies)

        def fulfil(route: Any) -> None:
            reply = left.pop(0)
            if isinstance(reply, str):
                route.fulfill(status=200, content_type="text/event-stream", body=reply)
            else:
                route.fulfill(status=reply[0], json=reply[1])

        self.page.route(CHAT, fulfil)

    def button(self, name: str, exact: bool = True) -> Any:
        return self.page.get_by_role("button", name=name, exact=exact)

    @property
    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def reply(self) -> Any:
        """The last one."""
        return self.page.locator(".message.reply").last

    def send(self, text: str, wait: bool = True) -> None:
        count = self.page.locator(".message.reply").count()
        self.box.fill(text)
        self.box.press("Enter")
        self.page.locator(".message.reply").nth(count).wait_for()
        if wait:
            self.done()

    def done(self) -> None:
        self.page.locator(".message.reply:not(.running)").last.wait_for(timeout=120_000)
        self.page.locator(".message.running").wait_for(state="detached", timeout=120_000)

    def says(self, text: str) -> None:
        """Wait until a reply has this text."""
        self.page.locator(".prose", has_text=text).first.wait_for()

    def prose(self) -> str:
        return self.reply.locator(".prose").inner_text()

    def stored(self) -> list[dict[str, Any]]:
        return self.page.evaluate(
            "Object.keys(localStorage).filter((k) => k.startsWith('mlx_server.conversation.'))"
            ".map((k) => JSON.parse(localStorage[k]))"
        )

    def close(self) -> None:
        """The promises that hold whatever was done on the page."""
        assert self.page.evaluate("violations") == []
        assert self.page.evaluate("ran") == []
        self.context.close()
        assert self.errors == []
        allowed = (self.url, "data:", "blob:")
        assert [url for url in self.asked if not url.startswith(allowed)] == []


def fixtures() -> tuple[Any, Any, Any]:
    """`chat_server`, `open_page` and `chat`, for a test module to have under these names."""

    @pytest.fixture(scope="module")
    def chat_server(serve: Callable[..., HttpServer]) -> HttpServer:
        return serve(max_tokens=24, temp=0.0)

    @pytest.fixture
    def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
        """Open a server's page; at the test's end its promises are checked."""
        pages: list[Page] = []

        def start(server: HttpServer, **more: Any) -> Page:
            pages.append(Page(browser, server, **more))
            return pages[-1]

        yield start
        for page in pages:
            page.close()

    @pytest.fixture
    def chat(open_page: Callable[..., Page], chat_server: HttpServer) -> Page:
        return open_page(chat_server)

    return chat_server, open_page, chat
