"""Takes README's pictures: the chat page, light and dark, and the engine page.

    python docs/screenshots.py [--url http://127.0.0.1:8080] [--chromium /usr/bin/chromium]

Without `--url` it starts a server of the bundled demo for them. Needs `pip install '.[test]'`
and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 800}
QUESTIONS = ("What is mlx_server?", "How do I stream a reply with curl?")
STREAMS = 6


@contextmanager
def serving(url: str | None) -> Iterator[str]:
    """The server's address; one of our own that ends with the block, if none is given."""
    if url is not None:
        yield url.rstrip("/")
        return
    command = [sys.executable, "-m", "mlx_server", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = None
        for line in server.stderr or ():
            found = found or re.search(r"http://127\.0\.0\.1:\d+", line)
            if found and " is ready" in line:
                break
        threading.Thread(target=server.stderr.read, daemon=True).start()  # so that it can log
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)


def chat(browser: Browser, url: str) -> None:
    page = browser.new_context(viewport=SIZE).new_page()
    page.goto(url)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_role("button", name="Settings", exact=True).click()
    for question in QUESTIONS:
        page.get_by_role("textbox", name="Message").fill(question)
        page.keyboard.press("Enter")
        page.locator(".message.reply").last.locator(".stats").wait_for(timeout=120_000)
    for theme in ("light", "dark"):
        shoot(page, theme, f"chat-{theme}.png")


def engine(browser: Browser, url: str) -> None:
    """While some replies run."""
    for number in range(STREAMS):
        threading.Thread(target=talk, args=(url, number), daemon=True).start()
    page = browser.new_context(viewport=SIZE).new_page()
    page.goto(f"{url}/engine/")
    page.wait_for_timeout(20_000)  # for the charts to have something to show
    shoot(page, "light", "engine.png")


def talk(url: str, number: int) -> None:
    """A few replies of different lengths, one after the other."""
    for turn in range(8):
        body = {
            "messages": [{"role": "user", "content": f"Tell me story {number}."}],
            "max_tokens": 150 + 60 * ((number + turn) % 5),
            "ignore_eos": True,
        }
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        try:
            urllib.request.urlopen(request, timeout=120).read()
        except OSError:
            return  # the pictures are taken


def shoot(page: Page, theme: str, name: str) -> None:
    page.emulate_media(color_scheme=theme)
    page.mouse.move(640, 5)
    page.screenshot(path=IMAGES / name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take README's pictures.")
    parser.add_argument("--url", help="a running server; one of the demo is started without")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    without = {name: v for name, v in os.environ.items() if name != "LD_PRELOAD"}
    with serving(options.url) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox"], env=without
        )
        chat(browser, url)
        engine(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
