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
from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.core import Grammar, Tool, ToolUse
from mlx_server.deltas import CallArguments, CallStarted, Delta, Reasoning, Text
from mlx_server.errors import NotSupported

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


def image_field(body: dict[str, Any]) -> str | None:
    """Where a captured body has an image, which is all that cannot be served."""
    for i, message in enumerate(body.get("messages", ())):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] == "image_url":
                return f"messages[{i}].content[{j}]"
    return None


def without_images(cases: list[Any]) -> list[Any]:
    return [case for case in cases if image_field(case.values[1]) is None]


def run() -> list[Delta]:
    tokens = (token("Hel", alternatives=2), token("lo", alternatives=2))
    return whole_run({0: [Text(0, "Hel", tokens[:1]), Text(0, "lo", tokens[1:])]}, {0: "stop"})


@pytest.mark.skipif(not CLIENTS.is_dir(), reason="captured requests are not here")
@pytest.mark.parametrize(("path", "body"), captured(CHAT, COMPLETIONS))
def test_captured_bodies(path: str, body: dict[str, Any]) -> None:
    field = image_field(body)
    if field is not None:
        with pytest.raises(NotSupported) as caught:
            call(FakePool(run()), "POST", path, body)
        assert (caught.value.status, caught.value.param) == (501, field)
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


@pytest.mark.skipif(not CLIENTS.is_dir(), reason="captured requests are not here")
@pytest.mark.parametrize(("path", "body"), without_images(captured(CHAT)))
def test_captured_tools_calls_and_formats_reach_the_request(
    path: str, body: dict[str, Any]
) -> None:
    request = OpenAIChat().parse(body)
    prompt = request.prompts[0]
    tools = tuple(
        Tool(f["name"], f.get("description"), f.get("parameters"))
        for f in (tool["function"] for tool in body.get("tools", ()))
    )
    assert prompt.tools == tools
    forced = isinstance(body.get("tool_choice"), dict)  # langchain's, with its only tool
    parallel = body.get("parallel_tool_calls", True)
    assert request.tool_use == (ToolUse(tools, forced, parallel) if tools else None)

    assert len(prompt.messages) == len(body["messages"])
    for message, sent in zip(prompt.messages, body["messages"], strict=True):
        calls = [(c.id, c.name, json.loads(c.arguments)) for c in message.tool_calls]
        assert calls == [
            (c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
            for c in sent.get("tool_calls", ())
        ]
        assert (message.role, message.tool_call_id) == (sent["role"], sent.get("tool_call_id"))

    asked = body.get("response_format")
    if asked is None:
        assert request.grammar is None
    elif asked["type"] == "json_object":
        assert request.grammar == Grammar("json_schema", '{"type":"object"}', "response_format")
    else:
        param = "response_format.json_schema.schema"
        assert (request.grammar.kind, request.grammar.param) == ("json_schema", param)
        assert json.loads(request.grammar.text) == asked["json_schema"]["schema"]


@pytest.mark.skipif(not CLIENTS.is_dir(), reason="captured requests are not here")
def test_captured_bodies_hold_what_is_tested() -> None:
    """Else the test above would say nothing of tools and formats."""
    requests = [OpenAIChat().parse(case.values[1]) for case in without_images(captured(CHAT))]
    assert max(len(request.prompts[0].tools) for request in requests) == 10  # opencode
    assert any(request.tool_use and request.tool_use.required for request in requests)
    assert len({request.grammar.text for request in requests if request.grammar}) >= 3
    assert any(m.tool_calls for request in requests for m in request.prompts[0].messages)


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


ODD_TEXTS = ["Hel", '"text"', "\n\t\\\x00", "größer 😀", "\ud83d", '"}]}']


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("model", ["m", 'a "text" \\', "größe 😀"])
def test_a_chunk_written_as_text_is_what_json_makes_of_it(path: str, model: str) -> None:
    deltas = whole_run(
        {i: [Text(i, text) for text in ODD_TEXTS] for i in range(2)}, {0: "stop", 1: "stop"}
    )
    body = {**(HI if path == CHAT else {"prompt": "hi"}), "n": 2, "model": model, "stream": True}
    events = list(call(FakePool(deltas), "POST", path, body).events)
    written = [event for event in events if isinstance(event, str) and event != "[DONE]"]
    chunks = [json.loads(event) for event in written]
    assert [to_json(chunk) for chunk in chunks] == written
    choices = [chunk["choices"][0] for chunk in chunks]
    shown = [c["delta"]["content"] if path == CHAT else c["text"] for c in choices]
    assert [(c["index"], text) for c, text in zip(choices, shown, strict=True)] == [
        (i, text) for i in range(2) for text in ODD_TEXTS
    ]
    plain = next(e for e in events if isinstance(e, dict) and e["choices"][0]["finish_reason"])
    assert all([*chunk, "timings"] == list(plain) for chunk in chunks)
    assert all(list(c) == list(plain["choices"][0]) for c in choices)
    assert {chunk["model"] for chunk in chunks} == {model}


def test_reasoning_and_arguments_are_written_as_text_too() -> None:
    places = [(i, number) for i in range(2) for number in range(2)]
    deltas: list[Delta] = []
    for i, number in places:
        deltas.append(CallStarted(i, number, f"c{number}", "f"))
        for text in ODD_TEXTS:  # the kinds in turn, so that each frame has to be found again
            deltas += [Reasoning(i, text), CallArguments(i, number, text), Text(i, text)]
    events = call(FakePool(deltas), "POST", CHAT, {**HI, "stream": True}).events
    written = [event for event in events if isinstance(event, str) and event != "[DONE]"]
    chunks = [json.loads(event) for event in written]
    assert [to_json(chunk) for chunk in chunks] == written
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(choice["index"], choice["delta"]) for choice in choices] == [
        (i, delta)
        for i, number in places
        for text in ODD_TEXTS
        for delta in (
            {"reasoning_content": text},
            {"tool_calls": [{"index": number, "function": {"arguments": text}}]},
            {"content": text},
        )
    ]
