"""What a reply on the chat page may hold: attacks, reasoning, calls, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chat_page import Page, fixtures, sse, words

chat_server, open_page, chat = fixtures()

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]


ATTACKS = {
    "img": "<img src=x onerror=ran.push(1)>",
    "script": "<script>ran.push(1)</script>",
    "link": "[click](javascript:ran.push(1))",
    "svg": "<svg onload=ran.push(1)><script>ran.push(1)</script></svg>",
    "data": "[click](data:text/html;base64,PHNjcmlwdD5yYW4ucHVzaCgxKTwvc2NyaXB0Pg==)",
    "frame": "<iframe srcdoc='<script>parent.ran.push(1)</script>'></iframe>",
    "style": "<style>#composer{display:none}</style><div style='position:fixed;inset:0'>x</div>",
    "form": "<form action=/shutdown id=composer><input name=x autofocus onfocus=ran.push(1)>",
    "image": "![x](http://127.0.0.1:9/pixel.png)",
    "code": '```html"><img src=x onerror=ran.push(1)>\n<script>ran.push(1)</script>\n```',
}
OUTLINE = """() => [document.body.children.length, document.querySelectorAll('form').length,
  document.querySelectorAll('script, style, iframe, img, object, embed').length,
  getComputedStyle(document.getElementById('composer')).display]"""


@pytest.mark.parametrize("name", ATTACKS)
def test_a_reply_runs_nothing(chat: Page, name: str) -> None:
    attack = ATTACKS[name]
    before = chat.page.evaluate(OUTLINE)
    grammar = f"root ::= {json.dumps(attack)}"
    chat.set(more=json.dumps({"grammar": grammar}), max_tokens="200")
    chat.send(attack)
    assert chat.stored()[0]["messages"][1]["content"] == attack
    assert chat.page.evaluate(OUTLINE) == before
    assert chat.page.locator(".bubble").inner_text() == attack
    links = chat.reply.locator(".prose a")
    for link in links.all():
        href = link.get_attribute("href")
        assert href is None or href.startswith("http://127.0.0.1:9/")
        if href is None:
            link.click()
    if name in ("img", "script", "svg", "frame", "style", "form"):
        assert attack in chat.prose()  # shown as what it is
    chat.page.reload()  # kept, and read again
    chat.reply.wait_for()
    chat.page.locator(".reply .prose > *").first.wait_for()
    assert chat.page.evaluate("ran") == []


def test_titles_names_and_calls_are_text(chat: Page) -> None:
    attack = ATTACKS["img"]
    call = {"index": 0, "id": "c", "function": {"name": attack, "arguments": attack}}
    chat.answer(
        sse({"delta": {"reasoning_content": attack}}, {"delta": {"tool_calls": [call]}}),
        (400, {"error": {"message": attack, "type": "invalid_request_error"}}),
    )
    chat.send(attack)
    chat.page.get_by_role("textbox", name=f"Result of {attack}").fill(attack)
    chat.button("Send result").click()
    chat.page.locator(".error").wait_for()
    assert attack in chat.page.locator(".error").inner_text()
    assert chat.page.locator("#page img").count() == 0
    assert attack in chat.page.locator(".conversations .title").inner_text()


def test_links_open_elsewhere_and_cannot_reach_back(chat: Page) -> None:
    chat.answer(sse(words("[a](https://example.org/x) and https://example.org/y")))
    chat.send("links")
    links = chat.reply.locator(".prose a")
    assert links.count() == 2
    for link in links.all():
        assert link.get_attribute("target") == "_blank"
        assert "noopener" in link.get_attribute("rel")


@pytest.mark.parametrize("mark", ["1. ", "> "])
def test_a_reply_that_nests_without_end_is_shown_as_it_is(chat: Page, mark: str) -> None:
    """A model that repeats itself writes such; reading it takes more than the stack holds."""
    chat.answer(sse(words("Once:\n\n"), words(mark * 20_000)), sse(words("*Better*.")))
    chat.send("Go")
    assert chat.reply.locator(".plain").text_content() == f"Once:\n\n{mark * 20_000}"
    chat.page.reload()  # the page opens with it
    chat.reply.locator(".plain").wait_for()
    chat.reply.get_by_role("button", name="Regenerate").click()
    chat.says("Better")
    chat.done()
    assert chat.reply.locator("em").count() == 1


# ---------------------------------------------------------------- reasoning, calls, errors


def test_reasoning_is_folded(chat: Page) -> None:
    thought = {"delta": {"reasoning_content": "Hm, <b>well</b>."}}
    chat.answer(sse(thought, words("Yes.")), sse(words("ok")))
    chat.send("Think")
    fold = chat.reply.locator(".reasoning")
    assert fold.locator("summary").inner_text().startswith("Thought")
    assert not fold.locator(".thought-text").is_visible()
    fold.locator("summary").click()
    assert fold.locator(".thought-text").inner_text() == "Hm, <b>well</b>."
    assert chat.prose() == "Yes."
    chat.send("Go on")
    assert chat.bodies[1]["messages"][1]["reasoning_content"] == "Hm, <b>well</b>."


def test_calls_are_shown_and_their_results_sent(chat: Page) -> None:
    pieces = [
        {"delta": {"tool_calls": [{"index": i, "id": f"c{i}", "function": {"name": name}}]}}
        for i, name in enumerate(("get_weather", "get_weather"))
    ]
    for i, text in ((0, '{"city":'), (1, '{"city":"Rome"}'), (0, '"Bonn"}')):
        piece = {"index": i, "function": {"arguments": text}}
        pieces.append({"delta": {"tool_calls": [piece]}})
    chat.answer(sse(*pieces, finish="tool_calls"), sse(words("Rain.")))
    chat.set(tools=json.dumps(TOOLS))
    chat.send("Weather?")
    assert chat.bodies[0]["tools"] == TOOLS
    calls = chat.reply.locator("details.call")
    assert calls.count() == 2
    calls.first.locator("summary").click()
    assert calls.first.locator("pre").inner_text() == '{\n  "city": "Bonn"\n}'
    areas = chat.page.get_by_role("textbox", name="Result of get_weather")
    areas.nth(0).fill("rain")
    areas.nth(1).fill('{"sun": true}')
    chat.button("Send results").click()
    chat.says("Rain.")
    sent = chat.bodies[1]["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
    assert [c["id"] for c in sent[1]["tool_calls"]] == ["c0", "c1"]
    assert sent[2] == {"role": "tool", "tool_call_id": "c0", "content": "rain"}
    assert sent[3] == {"role": "tool", "tool_call_id": "c1", "content": '{"sun": true}'}
    # Results are shown with their calls, and there is nothing left to type.
    assert chat.page.locator("details.result").count() == 2
    assert areas.count() == 0


def test_the_model_itself_calls(chat: Page) -> None:
    chat.set(tools=json.dumps(TOOLS), more='{"tool_choice": "required"}', max_tokens="100")
    chat.send("What is the weather in Bonn?")
    calls = chat.reply.locator("details.call")
    assert "get_weather" in calls.first.locator("summary").inner_text()
    chat.set(more="", max_tokens="8")
    for area in chat.page.get_by_role("textbox", name="Result of get_weather").all():
        area.fill("rain")
    chat.button("Send result", exact=False).click()
    chat.page.locator(".message.reply").nth(1).wait_for()
    chat.done()
    assert chat.page.locator(".error").count() == 0
    assert chat.bodies[1]["messages"][2]["role"] == "tool"


def test_an_error_is_told_in_the_servers_words_and_tried_again(chat: Page) -> None:
    chat.set(more='{"grammar": "root ::= ("}')
    chat.send("Hello")
    box = chat.page.locator(".error")
    assert "400" in box.inner_text() and "grammar" in box.inner_text()
    chat.set(more="")
    chat.button("Retry").click()
    chat.done()
    assert box.count() == 0
    assert chat.prose()
    assert [m["role"] for m in chat.bodies[1]["messages"]] == ["user"]


def test_a_stream_that_breaks_off_is_an_error(chat: Page) -> None:
    broken = sse(words("half a")).split("data: [DONE]")[0]
    failed = 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    chat.answer(broken, failed)
    chat.send("one")
    assert "broke off" in chat.page.locator(".error").inner_text()
    assert chat.prose() == "half a"
    chat.button("Retry").click()
    chat.page.get_by_text("out of memory").wait_for()


def test_it_waits_while_the_model_loads(chat: Page) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    looks: list[str] = []

    def health(route: Any) -> None:
        looks.append(route.request.url)
        ready = len(looks) > 2
        route.fulfill(status=200 if ready else 503, json={} if ready else loading)

    chat.page.route("**/health", health)
    chat.answer((503, loading), sse(words("Here I am.")))
    chat.send("Hello", wait=False)
    chat.page.get_by_text("The model is being loaded").wait_for()
    chat.says("Here I am.")
    chat.done()
    assert len(looks) == 3
    assert chat.page.locator(".error").count() == 0


def test_a_key_is_asked_for_and_kept(open_page: Callable[..., Page], serve: Any) -> None:
    chat = open_page(serve(api_key=("sesame",), max_tokens=8))
    dialog = chat.page.get_by_role("dialog", name="API key")
    chat.page.get_by_label("Key", exact=True).fill("wrong")
    chat.button("Use this key").click()
    chat.page.wait_for_function("() => sessionStorage['mlx_server.key'] === 'wrong'")
    dialog.wait_for()
    chat.page.get_by_label("Key", exact=True).fill("sesame")
    chat.page.keyboard.press("Enter")
    chat.page.locator("#model:enabled").wait_for()
    chat.send("Hello")
    assert chat.prose()
    assert chat.page.evaluate("localStorage['mlx_server.key']") is None
    # In this tab it stays, and it can be forgotten; then a message asks for it, and goes on.
    chat.open()
    assert dialog.count() == 0
    chat.page.evaluate("sessionStorage.clear()")
    chat.send("Again", wait=False)
    chat.page.get_by_label("Key", exact=True).fill("sesame")
    chat.page.get_by_label("Remember it here").last.check()
    chat.button("Use this key").click()
    chat.done()
    assert chat.prose()
    assert chat.page.evaluate("localStorage['mlx_server.key']") == "sesame"
    assert chat.page.evaluate("sessionStorage['mlx_server.key']") is None
