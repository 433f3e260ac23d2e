"""The chat page's modules, each by itself in a real browser: two ways to one result agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_page import Page, fixtures

chat_server, open_page, chat = fixtures()

DOCUMENTS = {
    "paragraphs": "One *two*\nthree.\n\nFour `five` **six**.\n\nSeven",
    "lists": "1. a\n\n2. b\n   - c\n   - d\n\n   e\n10. f\n\ng\n\n- [ ] h\n- [x] i\n* j",
    "code": "A\n\n```python\ndef f():\n    return '```'\n\n```\n\n~~~\nx\n~~~\n\n    four\n\nend",
    "open code": "```js\nconst x = `<b>`\n\nlet y",
    "code in a list": "- a\n\n  ```sh\n  ls -l\n  ```\n\n- b",
    "table": "| a | b |\n|---|--:|\n| 1 | `2` |\n| 3 |\n\nafter",
    "headings": "# A\n\nB\n===\n\n## C\nD\n---\n\n---\n> e\n> > f\n\ng",
    "late link": "See [here][x].\n\nA\n\nB\n\nC\n\n[x]: https://example.org 'title'",
    "markup": "a <b>c</b> <br> d &amp; <script>x</script>\n\n<div>\n\n*e*\n\n</div>\n\n&lt;",
    "line ends": "a\r\n\r\nb\r\n\r\n- c\r\n- d\r\n\r\ne",
    "blank": "\n\n \n",
    "math": "$a_1 * b_2 * c$ and a\\*b\n\n\\(x\\)",
}
STREAMED = """async ([source, step]) => {
  const { MarkdownView, showMarkdown } = await import('/app/markdown.js')
  const [streamed, whole] = [document.createElement('div'), document.createElement('div')]
  const view = new MarkdownView(streamed)
  for (let i = step; i < source.length; i += step) view.update(source.slice(0, i), { done: false })
  view.update(source, { done: true })
  showMarkdown(whole, source)
  return [streamed.innerHTML, whole.innerHTML]
}"""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_streamed_is_whole(chat: Page, name: str) -> None:
    for step in (1, 3, 8):
        streamed, whole = chat.page.evaluate(STREAMED, [DOCUMENTS[name], step])
        assert streamed == whole


def test_what_was_said_is_not_drawn_again(chat: Page) -> None:
    """However long a reply is, a piece of it costs the blocks that are still open."""
    kept, drawn, open_at_end = chat.page.evaluate(
        """async () => {
          const { MarkdownView } = await import('/app/markdown.js')
          const host = document.createElement('div')
          const view = new MarkdownView(host)
          let drawn = 0
          const watch = new MutationObserver(() => {})
          watch.observe(host, { childList: true })
          let source = ''
          let first = null
          for (let i = 0; i < 300; i++) {
            source += `Paragraph *${i}*.\\n\\n`
            view.update(source, { done: false })
            drawn += watch.takeRecords().length
            first ??= host.firstChild
          }
          view.update(source, { done: true })
          drawn += watch.takeRecords().length
          return [host.firstChild === first, drawn, source.length - view.settled]
        }"""
    )
    assert kept
    assert drawn == 300
    assert open_at_end > 0


def test_a_long_block_of_code_grows_by_what_comes(chat: Page) -> None:
    nodes = chat.page.evaluate(
        """async () => {
          const { MarkdownView } = await import('/app/markdown.js')
          const host = document.createElement('div')
          const view = new MarkdownView(host)
          let source = '```\\n'
          const seen = new Set()
          for (let i = 0; i < 50; i++) {
            source += 'line of code\\n'
            view.update(source, { done: false })
            seen.add(host.querySelector('code').firstChild)
          }
          return seen.size
        }"""
    )
    assert nodes == 1


EVENTS = (
    ': ping\n\ndata: {"a": "ü🐔"}\n\nevent: x\ndata:one\ndata: two\r\n\r\n'
    "id: 3\n\ndata:\rdata:  x\r\rdata: cut off"
)
READ = """async ([bytes, at]) => {
  const { events } = await import('/app/sse.js')
  const all = new Uint8Array(bytes)
  const pieces = [all.slice(0, at), all.slice(at)]
  const body = new ReadableStream({
    start(controller) {
      pieces.forEach((piece) => controller.enqueue(piece))
      controller.close()
    },
  })
  const found = []
  for await (const data of events(body)) found.push(data)
  return found
}"""


def test_events_are_the_same_at_any_split(chat: Page) -> None:
    sent = list(EVENTS.encode())
    for at in range(len(sent) + 1):
        found = chat.page.evaluate(READ, [sent, at])
        assert found == ['{"a": "ü🐔"}', "one\ntwo", "\n x"], at


def test_who_stops_reading_ends_the_request(chat: Page) -> None:
    assert chat.page.evaluate(
        """async () => {
          const { events } = await import('/app/sse.js')
          let cancelled = false
          const body = new ReadableStream({
            pull(c) { c.enqueue(new TextEncoder().encode('data: x\\n\\n')) },
            cancel() { cancelled = true },
          })
          for await (const _ of events(body)) break
          await new Promise((r) => setTimeout(r))
          return cancelled
        }"""
    )


FOLD = """async ([steps, message]) => {
  const { replyInto } = await import('/app/reply.js')
  let now = 0
  const reply = replyInto(message, () => now)
  for (const [at, choice, more] of steps) {
    now = at
    reply.add({ choices: choice ? [choice] : [], ...more })
  }
  reply.end()
  return message
}"""


def fold(chat: Page, *steps: Any, **message: Any) -> dict[str, Any]:
    start = {"id": "m", "role": "assistant", "content": "", **message}
    return chat.page.evaluate(FOLD, [json.loads(json.dumps(steps)), start])


def test_the_times_of_a_reply(chat: Page) -> None:
    message = fold(
        chat,
        (100, {"delta": {"role": "assistant", "content": ""}}),
        (200, {"delta": {"reasoning_content": "a"}}),
        (700, {"delta": {"content": "b"}}),
        (1200, {"delta": {"content": "c"}}),
        (1200, {"delta": {}, "finish_reason": "length"}),
    )
    assert (message["reasoning"], message["content"], message["finish"]) == ("a", "bc", "length")
    assert message["thought"] == 500
    # Without a usage the pieces are counted, and said to be.
    assert message["stats"] == {"first": 200, "completion": 3, "counted": True, "speed": 2}


def test_the_servers_figures_come_first(chat: Page) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    timings = {"predicted_per_second": 55.5}
    message = fold(
        chat,
        (10, {"delta": {"content": "b"}}),
        (20, {"delta": {"content": "c"}, "finish_reason": "stop"}),
        (30, None, {"usage": usage, "timings": timings}),
        # the rest of a reply: what was there counts
        content="a",
        stats={"completion": 7},
    )
    assert message["content"] == "abc"
    assert message["stats"] == {
        "first": 10, "prompt": 9, "cached": 0, "completion": 11, "speed": 55.5,
    }  # fmt: skip


def test_tokens_that_are_no_whole_characters(chat: Page) -> None:
    half = {"token": "\ufffd", "bytes": [0xF0, 0x9F], "logprob": -1.23456, "top_logprobs": []}
    whole = {"token": "\ufffd", "bytes": None, "logprob": 0, "top_logprobs": [half]}
    message = fold(chat, (1, {"delta": {"content": "x"}, "logprobs": {"content": [half, whole]}}))
    assert message["tokens"] == [
        {"t": "\\xf0\\x9f", "p": -1.2346, "top": []},
        {"t": "\ufffd", "p": 0, "top": [["\\xf0\\x9f", -1.2346]]},
    ]


def test_old_conversations_give_way_to_their_tokens_first(chat: Page) -> None:
    """Where storage is full, probabilities go, and not the words."""
    kept = chat.page.evaluate(
        """async () => {
          const storage = await import('/app/storage.js')
          const tokens = Array(2000).fill({ t: 'x', p: -1, top: [['x', -1]] })
          const make = (id) => ({ id, title: id, updated: id.length,
            messages: [{ id, role: 'assistant', content: id, tokens }] })
          const written = []
          for (let i = 1; i < 80; i++) written.push(storage.writeConversation(make('c'.repeat(i))))
          const found = storage.readConversations()
          return [written.every(Boolean), found.length,
            found.filter(({ messages }) => messages[0].tokens).length]
        }"""
    )
    assert kept[:2] == [True, 79]
    assert 0 < kept[2] < 79
