"""What programs ask through litellm: whole, streamed, tools, schemas, vectors, many at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import litellm
from outcomes import BASE, KEY, MODEL, kind_of, tell
from pydantic import BaseModel

NAME = f"openai/{MODEL}"
THERE = {"model": NAME, "api_base": BASE, "api_key": KEY, "max_retries": 0}
ASK = [{"role": "user", "content": "Which is it?"}]
SEEDED = {"messages": ASK, "seed": 3, "temperature": 1.0, "max_tokens": 80}
LONG = SEEDED | {"max_tokens": 24, "extra_body": {"ignore_eos": True}}
FORCED = {"messages": ASK, "temperature": 0, "extra_body": {"regex": "(left|right) [0-9]{2}"}}

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
REQUIRED = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}


class Step(BaseModel):
    side: Literal["left", "right"]
    metres: Literal[1, 2, 3]


def completion() -> dict[str, Any]:
    reply = litellm.completion(**THERE, **FORCED)
    return {"text": reply.choices[0].message.content, "usage": dict(reply.usage)}


def streamed() -> dict[str, Any]:
    """The fold of a seeded stream, and the same reply asked for whole."""
    chunks = list(
        litellm.completion(**THERE, **LONG, stream=True, stream_options={"include_usage": True})
    )
    fold = litellm.stream_chunk_builder(chunks, messages=ASK)
    whole = litellm.completion(**THERE, **LONG)
    return {
        "chunks": len(chunks),
        "streamed": [fold.choices[0].message.content, fold.choices[0].finish_reason],
        "whole": [whole.choices[0].message.content, whole.choices[0].finish_reason],
        "tokens": [r.usage.completion_tokens for r in (fold, whole)],
    }


def tools() -> dict[str, Any]:
    """A call, and the answer once its result is there."""
    reply = litellm.completion(**THERE, **SEEDED, **REQUIRED)
    choice = reply.choices[0]
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*ASK, choice.message, result]
    answer = litellm.completion(**THERE, **FORCED | {"messages": turns}, tools=TOOLS)
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "answer": answer.choices[0].message.content,
    }


def streamed_tools() -> list[Any]:
    fields = SEEDED | REQUIRED
    fold = litellm.stream_chunk_builder(list(litellm.completion(**THERE, **fields, stream=True)))
    whole = litellm.completion(**THERE, **fields)
    calls = [r.choices[0].message.tool_calls[0].function for r in (fold, whole)]
    return [[c.name, json.loads(c.arguments)] for c in calls]


def schema() -> dict[str, Any]:
    reply = litellm.completion(**THERE, messages=ASK, temperature=1, response_format=Step)
    return Step.model_validate_json(reply.choices[0].message.content).model_dump()


def text_completion() -> dict[str, Any]:
    reply = litellm.text_completion(**THERE, prompt="Once", max_tokens=5, temperature=0)
    return {"object": reply.object, "tokens": reply.usage.completion_tokens}


def embedding() -> list[list[float]]:
    reply = litellm.embedding(**THERE, input=["left", "right", "left"])
    return [item["embedding"] for item in reply.data]


def at_once() -> list[str]:
    """Eight seeded replies, asked for together and then one by one."""

    def fields(seed: int) -> dict[str, Any]:
        return THERE | LONG | {"seed": seed}

    async def ask() -> list[Any]:
        return await asyncio.gather(*(litellm.acompletion(**fields(i)) for i in range(8)))

    together = [reply.choices[0].message.content for reply in asyncio.run(ask())]
    alone = [litellm.completion(**fields(i)).choices[0].message.content for i in range(8)]
    return ["same" if a == b else f"{a!r} != {b!r}" for a, b in zip(together, alone, strict=True)]


def errors() -> dict[str, list[str]]:
    long = [{"role": "user", "content": "left right " * 4_000}]
    wrong = {
        "key": {"api_key": "wrong"},
        "name": {"model": "openai/nobody/nothing"},
        "length": {"messages": long},
        "field": {"extra_body": {"regex": "("}},
    }
    return {
        what: kind_of(lambda fields=fields: litellm.completion(**THERE | FORCED | fields))
        for what, fields in wrong.items()
    }


if __name__ == "__main__":
    tell(
        completion,
        streamed,
        tools,
        streamed_tools,
        schema,
        text_completion,
        embedding,
        at_once,
        errors,
    )
