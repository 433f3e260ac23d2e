"""Calls as the official client gets them from a running server.

The models here are too small to mean what they write: what a call says is left to chance
(seeded), and what form it has is not.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import openai
import pytest
from asking import (
    ADD,
    ADD_ALONE,
    ASKED,
    CHOICES,
    ENDS,
    SCHEMAS,
    TOOLS,
    bias,
    body,
    both,
    calls_of,
    check_calls,
    client_of,
    outline,
    whole,
)
from model_folders import write_marked


@pytest.fixture(scope="module")
def marked(serve, stories: Path, tmp_path_factory) -> openai.OpenAI:
    """The model for which "<tool_call>" is a token."""
    folder = write_marked(tmp_path_factory.mktemp("marked"), stories / "stories260k-chat")
    return client_of(serve(model=str(folder)))


@pytest.fixture(scope="module")
def demo(serve) -> openai.OpenAI:
    return client_of(serve())


@pytest.fixture(params=["demo", "marked"])
def client(request: pytest.FixtureRequest) -> openai.OpenAI:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("parallel", [None, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_calls_are_valid_whatever_the_choice(
    client: openai.OpenAI, choice: str, parallel: bool | None
) -> None:
    value, names = CHOICES[choice]
    fields = {} if parallel is None else {"parallel_tool_calls": parallel}
    reply = both(client, tools=TOOLS, tool_choice=value, **fields)
    (calls,) = check_calls(reply, names)
    if choice in ("required", "named", "allowed, required"):
        assert calls
        if choice == "named" or parallel is False:
            assert len(calls) == 1 and reply.choices[0].finish_reason == "tool_calls"
    if choice == "none":
        assert not calls and reply.choices[0].message.content


@pytest.mark.parametrize("choice", ["auto", "allowed, auto"])
def test_a_call_that_the_model_begins_itself_is_held_to_its_schema(
    marked: openai.OpenAI, choice: str
) -> None:
    value, names = CHOICES[choice]
    fields = {"tools": TOOLS, "tool_choice": value, "logit_bias": bias("<tool_call>")}
    (several,) = check_calls(both(marked, **fields, max_tokens=200), names)
    assert len(several) > 2
    reply = both(marked, **fields, parallel_tool_calls=False)
    (one,) = check_calls(reply, names)
    assert one == several[:1] and reply.choices[0].finish_reason == "tool_calls"


def test_a_stream_brings_each_call_in_order(marked: openai.OpenAI) -> None:
    chunks = marked.chat.completions.create(
        **body(tools=TOOLS, logit_bias=bias("<tool_call>"), max_tokens=150), stream=True
    )
    deltas = [c.choices[0].delta for c in chunks if not c.choices[0].finish_reason]
    assert deltas[0].role == "assistant" and not deltas[0].tool_calls
    heads, last = 0, -1
    for piece in (p for delta in deltas[1:] for p in delta.tool_calls or ()):
        assert piece.index in (last, last + 1)
        begins = piece.index > last
        assert bool(piece.id and piece.function.name and piece.type == "function") == begins
        assert (piece.id, piece.type) != (None, None) or piece.function.arguments
        heads, last = heads + begins, piece.index
    assert heads == last + 1 > 1


def test_n_replies_have_calls_of_their_own(client: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "n": 3, "logit_bias": ENDS}
    reply = both(client, **fields)
    calls = check_calls(reply, set(SCHEMAS))
    assert [c.finish_reason for c in reply.choices] == ["tool_calls"] * 3
    assert len({str(made) for made in calls}) > 1
    assert outline(reply)[0][0] == outline(whole(client, **fields | {"n": 1}))[0][0]
    assert reply.usage.completion_tokens > 3 * 10


def test_a_call_that_is_cut_is_given_as_far_as_it_came(client: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": ADD_ALONE}
    complete = both(client, **fields)
    ((name, arguments),) = calls_of(complete.choices[0])
    seen = set()
    for limit in range(1, complete.usage.completion_tokens, 4):
        reply = both(client, **fields, max_tokens=limit)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == limit
        for cut_name, cut in calls_of(reply.choices[0]):
            assert cut_name == name and arguments.startswith(cut)
            seen.add(cut)
    assert len(seen) > 2


def test_log_probabilities_of_calls(client: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": ADD_ALONE, "logprobs": True, "top_logprobs": 1}
    reply = both(client, **fields)
    entries = reply.choices[0].logprobs.content
    text = "".join(entry.token for entry in entries)
    assert len(entries) == reply.usage.completion_tokens
    assert text.startswith('<tool_call>\n{"name": "add"') and text.endswith("</tool_call>")


def test_stop_strings_mean_nothing_in_a_call(client: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": ADD_ALONE}
    plain = whole(client, **fields)
    stopped = both(client, **fields, stop=['"a"', "name", "tool_call"])
    assert outline(stopped) == outline(plain)


def test_the_older_form(client: openai.OpenAI) -> None:
    functions = [tool["function"] for tool in TOOLS]
    reply = both(client, functions=functions, function_call={"name": "add"})
    (choice,) = reply.choices
    assert choice.message.tool_calls is None and choice.finish_reason == "function_call"
    jsonschema.validate(json.loads(choice.message.function_call.arguments), ADD)
    new = whole(client, tools=TOOLS, tool_choice=ADD_ALONE)
    assert calls_of(new.choices[0]) == calls_of(choice)
    unasked = both(client, functions=functions, function_call="none")
    assert unasked.choices[0].message.function_call is None


def test_a_call_its_result_and_the_answer(client: openai.OpenAI) -> None:
    first = whole(client, tools=TOOLS, tool_choice=ADD_ALONE)
    made = first.choices[0].message
    result = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": "3"}
    turns = [*ASKED, made.model_dump(exclude_none=True), result]
    second = both(client, messages=turns, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert second.choices[0].message.content
    # "none" leaves the tools out of the prompt, "auto" goes on from where the call ended.
    third = whole(client, messages=turns, tools=TOOLS, max_tokens=8)
    usage = third.usage
    assert first.usage.prompt_tokens <= usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
