"""Formats and reasoning as the official client gets them from a running server.

The models here are too small to mean what they write: what a reply says is left to chance
(seeded), and what form it has is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from asking import (
    ADD,
    ADD_ALONE,
    CHOICES,
    ENDS,
    SCHEMAS,
    TOOLS,
    WEATHER,
    bias,
    body,
    both,
    calls_of,
    check_calls,
    client_of,
    outline,
    streamed,
)
from model_folders import write_marked
from pydantic import BaseModel, Field


class Pet(BaseModel):
    name: Annotated[str, Field(max_length=6)]
    kind: Literal["cat", "dog"]
    age: Annotated[int, Field(ge=0, le=30)]


class Feed(BaseModel):
    """Give a pet something to eat."""

    food: Literal["fish", "milk"]
    spoons: Annotated[int, Field(ge=1, le=9)]


@pytest.fixture(scope="module")
def marked(serve, stories: Path, tmp_path_factory) -> openai.OpenAI:
    """The model for which "<tool_call>" is a token; "dragon" is an adapter."""
    folder = write_marked(tmp_path_factory.mktemp("marked"), stories / "stories260k-chat")
    return client_of(serve(model=str(folder), lora=(f"dragon={stories / 'adapters/dragon'}",)))


@pytest.fixture(scope="module")
def thinker(stories: Path, tmp_path_factory) -> Path:
    """The folder of the one whose prompts end within the reasoning."""
    folder = tmp_path_factory.mktemp("thinker")
    return write_marked(folder, stories / "stories260k-chat", thinks=True)


@pytest.fixture(scope="module")
def thinking(serve, thinker: Path) -> openai.OpenAI:
    return client_of(serve(model=str(thinker)))


@pytest.fixture(scope="module")
def demo(serve) -> openai.OpenAI:
    return client_of(serve())


@pytest.fixture(params=["demo", "marked"])
def client(request: pytest.FixtureRequest) -> openai.OpenAI:
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------- formats


def test_parsed_replies(client: openai.OpenAI) -> None:
    fields = body(response_format=Pet)
    reply = client.chat.completions.parse(**fields)
    assert isinstance(reply.choices[0].message.parsed, Pet)
    assert reply.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        events = list(stream)
    final = stream.get_final_completion()
    assert outline(final) == outline(reply)
    assert final.choices[0].message.parsed == reply.choices[0].message.parsed
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in events}


def test_parsed_calls(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Feed)]
    fields = body(tools=tools, tool_choice="required", parallel_tool_calls=False)
    reply = client.chat.completions.parse(**fields)
    (call,) = reply.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Feed)
    with client.chat.completions.stream(**fields) as stream:
        events = list(stream)
    (done,) = (e for e in events if e.type == "tool_calls.function.arguments.done")
    assert done.parsed_arguments == call.function.parsed_arguments and done.name == "Feed"
    pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert len(pieces) > 2
    assert "".join(e.arguments_delta for e in pieces) == call.function.arguments


def json_of(schema: dict[str, Any]) -> Callable[[str], None]:
    return lambda text: jsonschema.validate(json.loads(text), schema)


def matching(pattern: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


GBNF = 'root ::= "move " (side | number)\nside ::= "left" | "right"\nnumber ::= [0-9] [0-9]?'
NAMED = {"name": "add", "schema": ADD}
FORMATS = {
    "schema": ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, json_of(ADD)),
    "object": ({"response_format": {"type": "json_object"}}, json_of({"type": "object"})),
    "MLC's schema": (
        {"response_format": {"type": "json_object", "schema": json.dumps(ADD)}},
        json_of(ADD),
    ),
    "json_schema": ({"json_schema": WEATHER}, json_of(WEATHER)),
    "grammar": ({"grammar": GBNF}, matching(r"move (left|right|\d\d?)")),
    "regex": ({"regex": "(cat|dog)s? [0-9]{2}/[a-c]+!"}, matching(r"(cat|dog)s? \d\d/[a-c]+!")),
    "choice": ({"guided_choice": ["red", "green"]}, matching("red|green")),
}


@pytest.mark.parametrize(
    ("model", "name"),
    # The stories' model has no end to an object in which it may write what it likes.
    [(model, name) for model in ("demo", "marked") for name in FORMATS if name != "object"]
    + [("demo", "object")],
)
def test_replies_follow_their_format(request: pytest.FixtureRequest, model: str, name: str) -> None:
    client, (fields, check) = request.getfixturevalue(model), FORMATS[name]
    reply = both(client, extra_body=fields, logit_bias=ENDS, n=3)
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)


@pytest.mark.parametrize("name", ["schema", "grammar"])
def test_an_adapter_follows_the_same_grammar(marked: openai.OpenAI, name: str) -> None:
    fields, check = FORMATS[name]
    texts = []
    for model in ("x", "dragon"):
        reply = both(marked, model=model, extra_body=fields, n=4)
        texts.append([choice.message.content for choice in reply.choices])
        for text in texts[-1]:
            check(text)
    assert texts[0] != texts[1]


def test_with_a_grammar_and_tools_a_reply_is_an_answer_or_a_call(marked: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "parallel_tool_calls": False, "extra_body": {"regex": "[0-9]{3}"}}
    answer = both(marked, **fields, logit_bias=bias("<tool_call>", by=-100))
    assert calls_of(answer.choices[0]) == []
    assert re.fullmatch(r"\d{3}", answer.choices[0].message.content)
    (calls,) = check_calls(both(marked, **fields, logit_bias=bias("<tool_call>")), set(SCHEMAS))
    assert len(calls) == 1


# ---------------------------------------------------------------- reasoning


ANSWERS = {
    "free": ({}, lambda choice: None),
    "regex": ({"regex": "[0-9]{3}"}, lambda c: matching(r"\d{3}")(c.message.content)),
    "call": (
        {"tools": TOOLS, "tool_choice": ADD_ALONE},
        lambda c: json_of(ADD)(c.message.tool_calls[0].function.arguments),
    ),
}
"""What follows the reasoning: the request's fields, and a check of the choice."""


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("limit", [0, 1, 7])
def test_reasoning_ends_at_its_limit(thinking: openai.OpenAI, answer: str, limit: int) -> None:
    fields, check = ANSWERS[answer]
    reply = both(thinking, extra_body={**fields, "max_thinking_tokens": limit})
    (choice,) = reply.choices
    check(choice)
    # The token that ends it is counted with it, where there is any.
    assert reply.usage.completion_tokens_details.reasoning_tokens == (limit + 1 if limit else 0)
    assert bool(getattr(choice.message, "reasoning_content", None)) == bool(limit)
    assert "think>" not in str(choice.message)


def test_reasoning_ends_by_itself_and_the_answer_follows(thinking: openai.OpenAI) -> None:
    fields = {"logit_bias": bias("</think>", by=30), "extra_body": {"regex": "[0-9]{3}"}}
    reply = both(thinking, **fields, logprobs=True)
    matching(r"\d{3}")(reply.choices[0].message.content)
    tokens = [entry.token for entry in reply.choices[0].logprobs.content]
    assert len(tokens) == reply.usage.completion_tokens and "</think>" in tokens


def test_reasoning_that_is_cut_is_all_reasoning(thinking: openai.OpenAI) -> None:
    reply = both(thinking, max_tokens=20)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 20
    assert reply.choices[0].message.reasoning_content and not reply.choices[0].message.content


def test_reasoning_stays_in_the_content_where_the_server_is_told_so(
    serve, thinker: Path, thinking: openai.OpenAI
) -> None:
    plain = client_of(serve(model=str(thinker), reasoning_format="none", max_thinking_tokens=6))
    fields = {"tools": TOOLS, "tool_choice": ADD_ALONE}
    split = both(thinking, **fields, extra_body={"max_thinking_tokens": 6})
    reply = both(plain, **fields)
    message = reply.choices[0].message
    assert getattr(message, "reasoning_content", None) is None
    assert split.choices[0].message.reasoning_content in message.content
    assert "</think>" in message.content
    assert calls_of(reply.choices[0]) == calls_of(split.choices[0])
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0
    own = {"max_thinking_tokens": 6, "reasoning_format": "none"}
    assert both(thinking, **fields, extra_body=own).choices[0].message.content == message.content


# ---------------------------------------------------------------- at once, and errors


def test_many_at_once_get_what_each_gets_alone(marked: openai.OpenAI) -> None:
    asked = [fields for fields, _ in FORMATS.values() if fields != FORMATS["object"][0]]
    asked += [{"tools": TOOLS, "tool_choice": value} for value, _ in CHOICES.values()]
    asked += [{}, {"tools": TOOLS, "logit_bias": bias("<tool_call>")}]

    def ask(i: int) -> tuple:
        return outline(streamed(marked, extra_body=asked[i], seed=i, max_tokens=48))

    alone = [ask(i) for i in range(len(asked))]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(len(asked)))) == alone


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "root ::= ("}, "grammar"),
        ({"regex": "("}, "regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"json_schema": {"type": "nothing"}}, "json_schema"),
        ({"regex": "a", "grammar": GBNF}, None),
        ({"regex": "a", "tools": TOOLS, "tool_choice": "required"}, "regex"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}},
         "tool_choice.function.name"),
        ({"max_thinking_tokens": -2}, "max_thinking_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_held_to_is_refused(
    demo: openai.OpenAI, fields: dict[str, Any], param: str | None, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        demo.chat.completions.create(**body(extra_body=fields), stream=stream)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == (param or "grammar") or param is None
