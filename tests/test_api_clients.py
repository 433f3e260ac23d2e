"""Bodies captured from real clients go in; the official client's types take what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_fakes import FakePool, call, reply_body, reply_events, token, whole_run
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_server.api.base import to_json
from mlx_server.deltas import Delta, Text
from mlx_server.errors import RequestError

CLIENTS = Path(__file__).parents[1] / "../shared/clients"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def captured(*paths: str) -> list[Any]:
    """(path, body) of every captured request to one of the paths."""
    cases = []
    for file in sorted(CLIENTS.glob("*.json")):
        for number, request in enumerate(json.loads(file.read_text())["requests"]):
            path = request["request_line"].split()[1]
            if path in paths:
                cases.append(pytest.param(path, request["body"], id=f"{file.stem}-{number}"))
    return cases


def refused_field(body: dict[str, Any]) -> str | None:
    """The field of a captured body that cannot be served, in the order it is told."""
    for i, message in enumerate(body.get("messages", ())):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] == "image_url":
                return f"messages[{i}].content[{j}]"
    return next((name for name in ("tools", "response_format") if body.get(name)), None)


def run() -> list[Delta]:
    tokens = (token("Hel", alternatives=2), token("lo", alternatives=2))
    return whole_run({0: [Text(0, "Hel", tokens[:1]), Text(0, "lo", tokens[1:])]}, {0: "stop"})


@pytest.mark.skipif(not CLIENTS.is_dir(), reason="captured requests are not here")
@pytest.mark.parametrize(("path", "body"), captured(CHAT, COMPLETIONS))
def test_captured_bodies(path: str, body: dict[str, Any]) -> None:
    field = refused_field(body)
    if field is not None:
        with pytest.raises(RequestError) as caught:
            call(FakePool(run()), "POST", path, body)
        assert (caught.value.status, caught.value.param) == (400, field)
    elif body.get("stream"):
        *events, done = reply_events(FakePool(run()), path, body)
        assert done == "[DONE]"
        assert "".join(_text_of(event) for event in events) == "Hello"
        asked = bool(body.get("stream_options", {}).get("include_usage"))
        assert ["usage" in event for event in events] == [False] * (len(events) - 1) + [asked]
    else:
        kind = ChatCompletion if path == CHAT else Completion
        reply = kind.model_validate(reply_body(FakePool(run()), path, body), strict=True)
        assert reply.model == body["model"]
        assert reply.usage.total_tokens == 8


def _text_of(event: dict[str, Any]) -> str:
    choices = event["choices"]
    if event["object"] == "chat.completion.chunk":
        choices = ChatCompletionChunk.model_validate(event, strict=True).choices
        return "".join(choice.delta.content or "" for choice in choices)
    return "".join(choice["text"] for choice in choices)


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_the_official_types_take_whole_chat_replies(logprobs: dict) -> None:
    body = reply_body(FakePool(run()), CHAT, {**HI, **logprobs})
    reply = ChatCompletion.model_validate(body, strict=True)
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello"
    assert reply.usage.prompt_tokens_details.cached_tokens == 2
    if logprobs:
        first, second = choice.logprobs.content
        assert (first.token, second.token) == ("Hel", "lo")
        assert bytes(first.bytes) == b"Hel"
        assert [top.token for top in first.top_logprobs] == ["Hel", "Hel1"]


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_the_official_types_take_chat_chunks(logprobs: dict) -> None:
    fields = {**HI, **logprobs, "stream_options": {"include_usage": True}}
    *events, _ = reply_events(FakePool(run()), CHAT, fields)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].usage.completion_tokens == 3
    tokens = [t.token for c in chunks[:-1] if c.choices[0].logprobs
              for t in c.choices[0].logprobs.content]  # fmt: skip
    assert tokens == (["Hel", "lo"] if logprobs else [])


def test_the_official_types_take_legacy_replies() -> None:
    body = reply_body(FakePool(run()), COMPLETIONS, {"prompt": "a", "logprobs": 2})
    (choice,) = Completion.model_validate(body, strict=True).choices
    assert choice.text == "Hello"
    assert choice.logprobs.tokens == ["Hel", "lo"]
    assert len(choice.logprobs.text_offset) == 2


def test_the_official_types_take_models() -> None:
    for body in call(FakePool(), "GET", "/v1/models").body["data"]:
        assert Model.model_validate(body, strict=True).object == "model"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("model", ["m", 'a "text" \\', "größe 😀"])
def test_a_chunk_written_as_text_is_what_json_makes_of_it(path: str, model: str) -> None:
    texts = ["Hel", '"text"', "\n\t\\\x00", "größer 😀", "\ud83d", '"}]}']
    deltas = whole_run(
        {i: [Text(i, text) for text in texts] for i in range(2)}, {0: "stop", 1: "stop"}
    )
    body = {**(HI if path == CHAT else {"prompt": "hi"}), "n": 2, "model": model, "stream": True}
    events = list(call(FakePool(deltas), "POST", path, body).events)
    written = [event for event in events if isinstance(event, str) and event != "[DONE]"]
    chunks = [json.loads(event) for event in written]
    assert [to_json(chunk) for chunk in chunks] == written
    choices = [chunk["choices"][0] for chunk in chunks]
    shown = [c["delta"]["content"] if path == CHAT else c["text"] for c in choices]
    assert [(c["index"], text) for c, text in zip(choices, shown, strict=True)] == [
        (i, text) for i in range(2) for text in texts
    ]
    plain = next(e for e in events if isinstance(e, dict) and e["choices"][0]["finish_reason"])
    assert all(list(chunk) == list(plain) for chunk in chunks)
    assert all(list(c) == list(plain["choices"][0]) for c in choices)
    assert {chunk["model"] for chunk in chunks} == {model}
