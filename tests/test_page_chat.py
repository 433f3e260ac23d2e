"""The chat page in a real browser, on a real server: sent, streamed, stopped, changed."""

from __future__ import annotations

import json
import re

import pytest
from chat_page import Page, fixtures, sse, words

chat_server, open_page, chat = fixtures()


def test_a_message_is_sent_and_its_reply_streamed(chat: Page) -> None:
    chat.page.evaluate(
        "() => { window.lengths = new Set(); new MutationObserver(() => {"
        " const shown = document.querySelector('.reply.running .prose');"
        " if (shown) lengths.add(shown.textContent.length) })"
        ".observe(document.body, {subtree: true, childList: true, characterData: true}) }"
    )
    chat.set(temperature="0", max_tokens="600", more='{"ignore_eos": true}')
    chat.send("Hello there")
    assert chat.page.evaluate("lengths.size") > 1
    (body,) = chat.bodies
    assert body["messages"] == [{"role": "user", "content": "Hello there"}]
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["max_tokens"]) == (0, 600)
    assert body["model"] == chat.page.locator("#model").input_value()
    stats = chat.reply.locator(".stats").inner_text()
    assert re.search(r"\d+ prompt tokens", stats)
    assert re.search(r"600 in the reply\W+[\d.]+ s to the first\W+[\d.]+ tokens/s", stats)
    assert "Cut off" in chat.reply.inner_text()
    assert chat.page.locator("#announcer").inner_text().startswith("Reply finished.")
    assert body["model"] in chat.page.title()
    # Asked again, the prompt is found; what was answered goes along with what is asked next.
    chat.reply.get_by_role("button", name="Regenerate").click()
    chat.page.locator(".stats", has_text="cached").wait_for()
    assert re.search(r"\([1-9]\d* cached\)", chat.reply.locator(".stats").inner_text())
    chat.send("And now?")
    assert [m["role"] for m in chat.bodies[2]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_a_reply_is_stopped(chat: Page, how: str) -> None:
    chat.set(more='{"ignore_eos": true}', max_tokens="12000")
    chat.send("Count", wait=False)
    shown = "() => document.querySelector('.reply .prose').innerText.length"
    chat.page.wait_for_function(f"{shown} > 40")
    if how == "button":
        chat.button("Stop (Escape)").click()
    else:
        chat.page.keyboard.press("Escape")
    chat.done()
    assert "stopped" in chat.reply.locator(".stats").inner_text()
    assert chat.stored()[0]["messages"][1]["content"]
    assert chat.page.locator("#announcer").inner_text().startswith("Reply stopped.")
    # It goes on from there, in the same message.
    before = chat.stored()[0]["messages"][1]["content"]
    chat.set(more=json.dumps({"grammar": 'root ::= " and so on"'}))
    chat.button("Continue").click()
    chat.done()
    sent = chat.bodies[1]
    assert sent["continue_final_message"] is True
    assert sent["messages"][-1]["role"] == "assistant"
    assert chat.page.locator(".message.reply").count() == 1
    assert chat.stored()[0]["messages"][1]["content"] == f"{before} and so on"


def test_regenerate_edit_and_delete(chat: Page) -> None:
    chat.answer(*(sse(words(text)) for text in ("one", "two", "three", "four", "five")))
    chat.send("First")
    chat.reply.get_by_role("button", name="Regenerate").click()
    chat.says("two")
    assert chat.page.locator(".message.reply").count() == 1
    chat.send("Second")
    assert chat.prose() == "three"

    first = chat.page.locator(".message.user").first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    first.get_by_role("textbox").fill("First, but better")
    first.get_by_role("textbox").press("Enter")
    chat.says("four")
    chat.done()
    assert chat.bodies[3]["messages"] == [{"role": "user", "content": "First, but better"}]
    assert chat.page.locator(".message").count() == 2

    # The turns that went are not lost.
    chat.button("Undo").click()
    assert chat.page.locator(".message").count() == 4
    assert chat.prose() == "three"

    chat.reply.get_by_role("button", name="Delete").click()
    assert chat.page.locator(".message").count() == 3
    assert [m["content"] for m in chat.stored()[0]["messages"]] == ["First", "two", "Second"]


def test_an_empty_edit_and_escape_change_nothing(chat: Page) -> None:
    chat.answer(sse(words("one")))
    chat.send("First")
    chat.box.press("ArrowUp")
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    editor.fill("")
    editor.press("Enter")
    assert editor.is_visible()
    editor.press("Escape")
    assert chat.page.locator(".bubble").inner_text() == "First"
    assert len(chat.bodies) == 1


def test_a_reply_is_changed_and_copied(chat: Page) -> None:
    chat.answer(sse(words("Say **this**.")), sse(words("ok")))
    chat.send("First")
    chat.reply.get_by_role("button", name="Copy").click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "Say **this**."
    chat.reply.get_by_role("button", name="Edit").click()
    chat.page.get_by_role("textbox", name="Edit the reply").fill("Say *that*.")
    chat.button("Save").click()
    assert chat.reply.locator("em").inner_text() == "that"
    chat.send("Second")
    assert chat.bodies[1]["messages"][1]["content"] == "Say *that*."


COMPOSED = """(target, key) => target.dispatchEvent(new KeyboardEvent('keydown',
  { key, keyCode: 229, bubbles: true, cancelable: true }))"""


def test_keys_of_an_input_method_are_left_to_it(chat: Page) -> None:
    """Safari tells of the Enter that ends a composition with the code 229 only."""
    chat.answer(sse(words("one")))
    chat.send("First")
    chat.box.fill("か")
    assert chat.box.evaluate(COMPOSED, "Enter")  # not prevented
    assert chat.box.input_value() == "か"
    chat.box.fill("")
    chat.box.press("ArrowUp")
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    for key in ("Enter", "Escape"):
        editor.evaluate(COMPOSED, key)
    assert editor.is_visible()
    editor.press("Escape")
    chat.page.locator(".conversations li").hover()
    chat.button("Rename “First”").click()
    title = chat.page.get_by_role("textbox", name="Title")
    for key in ("Enter", "Escape"):
        title.evaluate(COMPOSED, key)
    assert title.is_visible()
    assert len(chat.bodies) == 1


def test_the_focus_is_not_lost(chat: Page) -> None:
    """Where what had it goes, it goes to where one acts next."""
    chat.answer(*(sse(words(text)) for text in ("one", "two", "three")))
    at_box = "() => document.activeElement.id === 'message'"
    chat.page.locator(".ideas button").first.press("Enter")
    chat.page.wait_for_function(at_box)
    chat.done()
    chat.reply.get_by_role("button", name="Regenerate").press("Enter")
    chat.page.wait_for_function(at_box)
    chat.says("two")
    chat.done()
    # What only looks different keeps it.
    copy = chat.reply.get_by_role("button", name="Copy")
    copy.focus()
    chat.page.keyboard.press("p")
    assert copy.evaluate("e => e === document.activeElement")
    chat.page.keyboard.press("p")
    chat.reply.get_by_role("button", name="Edit").press("Enter")
    chat.button("Save").press("Enter")
    assert copy.evaluate("e => e === document.activeElement")


def test_shift_enter_is_a_new_line(chat: Page) -> None:
    chat.box.press_sequentially("a")
    chat.box.press("Shift+Enter")
    chat.box.press_sequentially("b")
    assert chat.box.input_value() == "a\nb"
    assert chat.bodies == []


def test_scrolling_follows_only_at_the_end(chat: Page) -> None:
    lines = "\n\n".join(f"line {i}" for i in range(80))
    chat.answer(sse(words(lines)), sse(words(lines)))
    at_end = "() => { const s = document.getElementById('scroller');"
    at_end += " return s.scrollHeight - s.scrollTop - s.clientHeight < 48 }"
    chat.send("one")
    chat.page.wait_for_function(at_end)
    assert chat.button("To the end").is_hidden()
    chat.page.evaluate("document.getElementById('scroller').scrollTop = 200")
    chat.button("To the end").wait_for()
    assert not chat.page.evaluate(at_end)
    chat.button("To the end").click()
    chat.page.wait_for_function(at_end)
