"""How the chat page looks and is used: themes, contrast, keys, tokens, phones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_page import Page, fixtures, sse, words

from mlx_server.server.http import HttpServer

chat_server, open_page, chat = fixtures()

RICH = (
    "# Head\n\nText `code` [a](https://x.org)\n\n> said\n\n"
    "```python\ndef f(x):  # why\n    return 'a' + 1\n```"
)


def test_probabilities_of_tokens(chat: Page) -> None:
    chat.button("Probabilities of tokens").click()
    chat.set(max_tokens="12", more='{"ignore_eos": true}')
    chat.send("Hello")
    assert (chat.bodies[0]["logprobs"], chat.bodies[0]["top_logprobs"]) == (True, 5)
    tokens = chat.reply.locator(".tokens .token")
    kept = chat.stored()[0]["messages"][1]
    assert tokens.count() == len(kept["tokens"]) >= 10
    joined = "".join(tokens.all_text_contents()).replace("⏎", "")
    assert joined == kept["content"] or "\\x" in joined
    label = tokens.first.get_attribute("aria-label")
    assert label.count("%") >= 6
    card = chat.page.locator("#token-card")
    tokens.first.hover()
    assert card.locator("tr").count() == 5
    chat.page.mouse.move(2, 2)
    assert card.is_hidden()
    # The same by keys: one tab stop, arrows from token to token.
    assert chat.reply.locator(".token[tabindex='0']").count() == 1
    tokens.first.focus()
    chat.page.keyboard.press("ArrowRight")
    assert tokens.nth(1).evaluate("e => e === document.activeElement")
    assert card.is_visible()
    # Told apart by a line as well as by colour.
    lines = tokens.evaluate_all("all => all.map((e) => getComputedStyle(e).borderBottomStyle)")
    classes = tokens.evaluate_all("all => all.map((e) => e.className)")
    assert len(set(lines) | {"solid"}) >= len(set(classes) - {"token p-sure"})
    chat.button("Probabilities of tokens").click()
    assert tokens.count() == 0 and chat.prose()


def background(chat: Page) -> str:
    return chat.page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_theme_is_switched_and_kept(chat: Page) -> None:
    chat.page.emulate_media(color_scheme="light")
    light = background(chat)
    chat.page.emulate_media(color_scheme="dark")
    dark = background(chat)
    assert light != dark
    chat.button("Theme: as the system").click()
    assert background(chat) == light
    chat.button("Theme: light").click()
    chat.page.emulate_media(color_scheme="light")
    assert background(chat) == dark
    chat.page.reload()
    chat.button("Theme: dark").wait_for()
    assert background(chat) == dark
    chat.button("Theme: dark").click()
    assert background(chat) == light


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const rgb = (color, under) => {
    canvas.fillStyle = under ? `rgb(${under})` : '#fff'
    canvas.fillRect(0, 0, 1, 1)
    canvas.fillStyle = color
    canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    const [r, g, b] = color.map((v) => linear(v / 255))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const under = (e) => {
    const chain = []
    for (; e; e = e.parentElement) chain.unshift(getComputedStyle(e).backgroundColor)
    return chain.reduce((below, color) => rgb(color, below), [255, 255, 255])
  }
  const poor = []
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
    if (!own || !e.checkVisibility() || e.closest(':disabled, svg, .visually-hidden')) continue
    const below = under(e)
    const both = [light(rgb(getComputedStyle(e).color, below)), light(below)]
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)
    if (ratio < 4.5) poor.push([e.className, e.textContent.slice(0, 20), ratio])
  }
  return poor
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_names_and_order(chat: Page, theme: str) -> None:
    page = chat.page
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    tokens = [
        {"token": "x", "logprob": p, "top_logprobs": [{"token": "x", "logprob": p}]}
        for p in (0.0, -0.3, -0.9, -4.0)
    ]
    thought = {"delta": {"reasoning_content": "Hm"}, "logprobs": {"content": tokens}}
    error = (400, {"error": {"message": "wrong"}})
    chat.answer(sse(thought, words(RICH), finish="length"), error)
    chat.send("Show")
    chat.reply.locator("summary").click()
    chat.send("Fail")
    chat.set(more="{")
    chat.button("Settings").click()
    chat.button("Probabilities of tokens").click()
    assert page.locator(".hljs-keyword").count() > 0
    assert page.evaluate(CONTRAST) == []
    # Whoever listens is told what each control is.
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea, a, dialog')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.labels?.length ||"
        " (e.tagName !== 'INPUT' && e.textContent.trim()))).map((e) => e.outerHTML)"
    )
    assert nameless == []
    for role in ("banner", "main", "contentinfo", "complementary", "navigation"):
        expected = {"contentinfo": 0, "main": 1, "banner": 1, "complementary": 2, "navigation": 2}
        assert page.get_by_role(role).count() == expected[role], role
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = {"skip-link", "message", "model", "probabilities", "show-settings", "theme"}
    assert wanted <= reached
    page.locator(".skip-link").press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"


def test_shortcuts(chat: Page) -> None:
    page = chat.page
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    assert dialog.locator("tr").count() >= 12
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    assert page.locator("#settings").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    page.keyboard.press("/")
    assert chat.box.evaluate("e => e === document.activeElement")
    page.keyboard.type("s?")
    assert chat.box.input_value() == "s?"
    # Single keys can be switched off, as they disturb those who speak to their computer.
    chat.button("Keyboard shortcuts").click()
    page.get_by_label("Shortcuts of a single key").uncheck()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("s")
    assert page.locator("#settings").is_hidden()


def test_on_a_phone(open_page: Callable[..., Page], chat_server: HttpServer) -> None:
    chat = open_page(chat_server, viewport={"width": 360, "height": 640})
    chat.answer(sse(words(f"{RICH}\n\n| a | b |\n|---|---|\n| {'wide' * 40} | x |")))
    chat.send("Hello, " + "long" * 40)
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert chat.page.evaluate("document.getElementById('messages').scrollWidth") <= 360
    chat.button("Conversations").click()
    chat.page.locator(".conversations .title").click()
    assert chat.page.locator("#side").is_hidden()
    chat.button("Settings").click()
    box = chat.page.locator("#settings").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    chat.page.keyboard.press("Escape")
    assert chat.page.locator("#settings").is_hidden()


def test_a_panel_that_covers_the_page(open_page: Callable[..., Page], chat_server: Any) -> None:
    """While it does, the keys stay out of what lies under it; wider, nothing is covered."""
    chat = open_page(chat_server, viewport={"width": 360, "height": 640})
    page = chat.page
    chat.button("Conversations").click()
    for _ in range(30):
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.closest('main')")
    chat.button("Close the conversations").click()
    assert page.locator("#side").is_hidden()
    assert page.evaluate("document.activeElement.id") == "show-side"
    chat.button("Conversations").click()
    page.set_viewport_size({"width": 1000, "height": 640})
    page.locator("#veil").wait_for(state="hidden")
    chat.box.fill("Hello")


def test_columns_and_numbers_are_as_the_reply_says(chat: Page) -> None:
    chat.answer(sse(words("| a | b | c |\n|---|--:|:-:|\n| 1 | 2 | 3 |\n\n7. seven\n8. eight")))
    chat.send("A table")
    cells = chat.reply.locator("td").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).textAlign)"
    )
    assert cells == ["left", "right", "center"]
    assert chat.reply.locator("ol").evaluate("e => e.start") == 7
