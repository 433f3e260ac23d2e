"""Asking a running server with the official client, and what is common to two replies."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
from model_folders import EOS, MARK_IDS
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion

from mlx_server.server.http import HttpServer

ASKED = [{"role": "user", "content": "What is 1 and 2 in Bern?"}]

ADD = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "b": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SCHEMAS = {"add": ADD, "get_weather": WEATHER}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ADD_ALONE = {"type": "function", "function": {"name": "add"}}


def allowed(mode: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [ADD_ALONE]}}


CHOICES = {
    "none": ("none", set()),
    "auto": ("auto", set(SCHEMAS)),
    "required": ("required", set(SCHEMAS)),
    "named": (ADD_ALONE, {"add"}),
    "allowed, auto": (allowed("auto"), {"add"}),
    "allowed, required": (allowed("required"), {"add"}),
}
"""By name: the field, and the tools that may then be called."""


def client_of(server: HttpServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-local", max_retries=0)


def body(**fields: Any) -> dict[str, Any]:
    settings = {"model": "x", "messages": ASKED, "temperature": 1, "seed": 1, "max_tokens": 120}
    return settings | fields


def whole(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**body(**fields))


def streamed(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    """The official fold of the streamed reply."""
    state = ChatCompletionStreamState()
    for chunk in client.chat.completions.create(
        **body(**fields), stream=True, stream_options={"include_usage": True}
    ):
        state.handle_chunk(chunk)
    return state.current_completion_snapshot


def calls_of(choice: Any) -> list[tuple[str, str]]:
    calls = [call.function for call in choice.message.tool_calls or ()]
    calls += [choice.message.function_call] if choice.message.function_call else []
    return [(call.name, call.arguments) for call in calls]


def outline(reply: ChatCompletion) -> tuple:
    """All that two replies to one request have in common."""
    choices = [
        (
            c.message.content or "",
            getattr(c.message, "reasoning_content", None) or "",
            calls_of(c),
            c.finish_reason,
            [entry.token for entry in (c.logprobs.content or ())] if c.logprobs else [],
        )
        for c in sorted(reply.choices, key=lambda c: c.index)
    ]
    usage = reply.usage
    return choices, usage.prompt_tokens, usage.completion_tokens, usage.completion_tokens_details


def both(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    """The reply, which is the same streamed and not."""
    reply = whole(client, **fields)
    assert outline(streamed(client, **fields)) == outline(reply)
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return reply


def check_calls(reply: ChatCompletion, names: set[str]) -> list[list[tuple[str, str]]]:
    """Every choice's calls, all of them valid, but for one that was cut off."""
    ids = [call.id for c in reply.choices for call in c.message.tool_calls or ()]
    assert len(set(ids)) == len(ids) and all(ids)
    found = []
    for choice in reply.choices:
        calls = calls_of(choice)
        finished = calls[:-1] if choice.finish_reason == "length" else calls
        assert choice.finish_reason in ("tool_calls", "length") if calls else ("stop", "length")
        for name, arguments in finished:
            assert name in names
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        found.append(calls)
    return found


def bias(*texts: str, by: int = 100) -> dict[str, int]:
    return {str(MARK_IDS[text]): by for text in texts}


ENDS = {str(EOS): 100}
"""A bias with which a reply ends where it may."""
