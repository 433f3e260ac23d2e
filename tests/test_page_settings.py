"""The chat page's settings, its list of conversations, and its models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_page import Page, fixtures, sse, words

chat_server, open_page, chat = fixtures()


def test_settings_become_a_body(chat: Page) -> None:
    chat.answer(sse(words("ok")))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    chat.set(
        system="Be brief.",
        temperature="0,5",
        top_p="0.9",
        top_k="40",
        min_p="0.05",
        repetition_penalty="1.1",
        presence_penalty="-1",
        frequency_penalty="0.5",
        seed="7",
        max_tokens="30",
        stop="END\\n\nstop here",
        response_format="json_schema",
        schema=json.dumps(schema),
        more='{"top_n_sigma": 2, "seed": 8}',
    )
    chat.send("Hello")
    body = chat.bodies[0]
    for name in ("stream", "stream_options", "return_progress", "model"):
        del body[name]
    assert body == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "seed": 8,
        "max_tokens": 30,
        "stop": ["END\n", "stop here"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": schema},
        },
        "top_n_sigma": 2,
    }
    chat.page.reload()
    chat.button("Settings").click()
    assert chat.page.locator("#set-stop").input_value() == "END\\n\nstop here"
    chat.button("Reset settings").click()
    chat.answer(sse(words("ok")))
    chat.send("Hello")
    own = {"messages", "model", "return_progress", "stream", "stream_options"}
    assert chat.bodies[1].keys() == own


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("more", "{", "not JSON"),
        ("more", "[1]", "object"),
        ("more", '{"stream": false}', '"stream"'),
        ("tools", "{}", "array"),
        ("temperature", "warm", "a number"),
        ("temperature", "-1", "at least 0|between 0"),
        ("top_p", "1.5", "between 0 and 1"),
        ("top_k", "2.5", "whole number"),
    ],
)
def test_what_cannot_be_sent_is_named_at_its_field(
    chat: Page, field: str, value: str, told: str
) -> None:
    chat.set(**{field: value})
    chat.box.fill("Hello")
    chat.box.press("Enter")
    wrong = chat.page.locator(f"#set-{field}-wrong")
    assert re.search(told, wrong.inner_text())
    entry = chat.page.locator(f"#set-{field}")
    assert entry.get_attribute("aria-invalid") == "true"
    assert entry.evaluate("e => e === document.activeElement")
    assert chat.bodies == []
    assert chat.box.input_value() == "Hello"  # not lost
    entry.fill("")
    assert wrong.inner_text() == ""


def test_conversations_survive_a_reload(chat: Page, tmp_path: Path) -> None:
    chat.answer(*(sse(words(text)) for text in ("**bold** reply", "second reply")))
    chat.send("A question about apples")
    chat.button("New conversation").click()
    assert chat.page.locator(".message").count() == 0
    chat.send("Pears, perhaps")
    chat.page.reload()
    chat.says("second reply")
    titles = chat.page.locator(".conversations .title")
    assert titles.all_inner_texts() == ["Pears, perhaps", "A question about apples"]
    titles.nth(1).click()
    assert chat.reply.locator("strong").inner_text() == "bold"

    search = chat.page.get_by_role("searchbox")
    search.fill("SECOND")
    assert titles.all_inner_texts() == ["Pears, perhaps"]
    search.fill("")

    chat.page.locator(".conversations li").nth(1).hover()
    chat.button("Rename “A question about apples”").click()
    chat.page.get_by_role("textbox", name="Title").fill("Fruit")
    chat.page.keyboard.press("Enter")
    assert "Fruit" in titles.all_inner_texts()

    with chat.page.expect_download() as download:
        chat.button("Export all conversations").click()
    file = tmp_path / "export.json"
    download.value.save_as(file)
    before = sorted(chat.stored(), key=lambda item: item["id"])
    chat.button("Delete all conversations").click()
    chat.button("Delete all").click()
    titles.first.wait_for(state="detached")  # a dialog tells a moment later that it is closed
    assert titles.count() == 0 and chat.stored() == []
    chat.page.locator("input[type=file]").set_input_files(file)
    chat.page.get_by_text("2 conversations imported").wait_for()
    assert sorted(chat.stored(), key=lambda item: item["id"]) == before

    chat.page.locator(".conversations li").first.hover()
    chat.page.get_by_role("button", name=re.compile("^Delete “")).first.click()
    assert titles.count() == 1
    chat.button("Undo").click()
    assert titles.count() == 2


def test_the_list_keeps_the_focus(chat: Page) -> None:
    chat.answer(*(sse(words("ok")) for _ in range(2)))
    for text in ("older", "newer"):
        chat.button("New conversation").click()
        chat.send(text)
    focused = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
    chat.button("Rename “newer”").press("Enter")
    chat.page.get_by_role("textbox", name="Title").fill("Changed")
    chat.page.keyboard.press("Enter")
    assert chat.page.evaluate(focused) == "Changed"
    chat.button("Delete “Changed”").press("Enter")
    assert chat.page.evaluate(focused) == "older"
    chat.button("Delete “older”").press("Enter")
    assert chat.page.evaluate(focused) == "New conversation"


def test_two_tabs(chat: Page) -> None:
    chat.answer(sse(words("one")))
    chat.send("Mine")
    chat.box.press("ArrowUp")
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    editor.fill("Mine, and more of it")
    titles = chat.page.locator(".conversations .title")
    other = chat.context.new_page()
    other.goto(chat.url)
    other.locator("#model:enabled").wait_for()
    # What the other one does is seen here, and disturbs nothing.
    other.get_by_role("button", name="New conversation").click()
    other.get_by_role("textbox", name="Message", exact=True).fill("Theirs")
    other.keyboard.press("Enter")
    titles.nth(1).wait_for()
    assert titles.all_inner_texts() == ["Theirs", "Mine"]
    assert editor.input_value() == "Mine, and more of it"
    # What this one has not changed, it does not write when it goes.
    other.locator(".message.reply:not(.running)").wait_for()
    other.get_by_role("button", name="Settings", exact=True).click()
    other.locator("#set-temperature").fill("0.5")
    kept = "() => localStorage['mlx_server.settings']?.includes('0.5')"
    other.wait_for_function(kept)
    chat.page.reload()
    chat.page.locator("#model:enabled").wait_for()
    assert chat.page.locator("#set-temperature").input_value() == "0.5"


def test_what_another_tab_did_meanwhile_is_seen_at_the_end(chat: Page) -> None:
    chat.set(more='{"ignore_eos": true}', max_tokens="12000")
    chat.send("Mine", wait=False)
    other = chat.context.new_page()
    other.goto(chat.url)
    other.locator("#model:enabled").wait_for()
    other.get_by_role("button", name="New conversation").click()
    other.get_by_role("textbox", name="Message", exact=True).fill("Theirs")
    other.keyboard.press("Enter")
    other.locator(".title", has_text="Theirs").wait_for()
    chat.page.bring_to_front()
    chat.button("Stop (Escape)").click()
    chat.page.locator(".title", has_text="Theirs").wait_for()


FAST = {"id": "m", "role": "assistant", "content": "x", "stats": {"speed": "fast"}}


def exported(item: dict[str, Any]) -> str:
    return json.dumps({"format": "mlx_server.conversations.1", "conversations": [item]})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no", "not JSON"),
        ("{}", "format"),
        (exported({"id": 1}), r"\[0\]"),
        # What would be in the way of all that is shown, from then on.
        (exported({"id": "c", "title": "t", "updated": 1, "messages": [FAST]}), r"\[0\]"),
    ],
)
def test_a_wrong_import_is_refused(chat: Page, text: str, told: str) -> None:
    file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    chat.page.locator("input[type=file]").set_input_files(file)
    toast = chat.page.locator(".toast")
    toast.wait_for()
    assert re.search(told, toast.inner_text())
    assert chat.stored() == []


def test_full_storage_is_told(chat: Page) -> None:
    chat.page.evaluate(
        "() => { Storage.prototype.setItem = () => {"
        " throw new DOMException('', 'QuotaExceededError') } }"
    )
    chat.answer(sse(words("still here")))
    chat.send("Hello")
    assert chat.prose() == "still here"
    assert "storage is full" in chat.page.locator(".toast").inner_text()


def test_models_and_adapters_are_chosen(chat: Page) -> None:
    cards = [
        {"id": "org/base", "max_model_len": 8192},
        {"id": "tuned", "parent": "org/base"},
        {"id": "other"},
    ]
    chat.page.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    chat.page.reload()
    chat.page.locator("option[value=tuned]").wait_for(state="attached")
    options = chat.page.locator("#model option").all_inner_texts()
    assert options == ["base · 8k", "↳ tuned (adapter)", "other"]
    assert "base" in chat.page.title()
    chat.page.locator("#model").select_option("tuned")
    assert "tuned" in chat.page.title()
    chat.answer(sse(words("ok")))
    chat.send("Hello")
    assert chat.bodies[0]["model"] == "tuned"
    chat.page.reload()
    chat.page.wait_for_function("() => document.getElementById('model').value === 'tuned'")


def test_whoever_answers_after_a_broken_connection_is_asked_for_its_models(chat: Page) -> None:
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    cards = [{"id": "org/another"}]
    chat.page.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    chat.send("Hello")
    assert "cannot be reached" in chat.page.locator(".error").inner_text()
    chat.page.wait_for_function("() => document.getElementById('model').value === 'org/another'")
