"""Tools: which the request names, which calls they allow, and how calls come back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from api_fakes import FakePool, reply_body, reply_events, runs, token, whole_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_server.api.constraints import MAX_GRAMMAR_BYTES
from mlx_server.api.fields import MAX_DEPTH
from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.api.openai_tools import MAX_TOOLS
from mlx_server.core import GenerationRequest, Tool, ToolUse
from mlx_server.deltas import CallArguments, CallStarted, Delta, Reasoning, Text
from mlx_server.errors import RequestError

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


def parse(**fields: Any) -> GenerationRequest:
    return OpenAIChat().parse({**HI, **fields})


def tool(name: str, **function: Any) -> dict:
    return {"type": "function", "function": {"name": name, **function}}


def named(name: Any) -> dict:
    return {"type": "function", "function": {"name": name}}


F, G, H = Tool("f"), Tool("g"), Tool("h")
TOOLS = [tool("f"), tool("g"), tool("h")]


def allowed(mode: str, *names: str, flat: bool = False) -> dict:
    if flat:
        tools = [{"type": "function", "name": name} for name in names]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


# ---------------------------------------------------------------- what may be called


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tool("f"), F),
        ({"function": {"name": "f"}}, F),
        (tool("f", description=None, parameters=None, strict=None), F),
        (tool("a.b-c_D9", description=""), Tool("a.b-c_D9", "")),
        (tool("x" * 64, parameters={}), Tool("x" * 64, None, {})),
        (
            tool("f", description="d", parameters=OBJECT, strict=True),
            Tool("f", "d", OBJECT),
        ),
    ],
)
def test_a_tool(given: dict, expected: Tool) -> None:
    request = parse(tools=[given])
    assert request.prompts[0].tools == (expected,)
    assert request.tool_use == ToolUse((expected,))
    assert request.format.legacy_calls is False


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        (None, ToolUse((F, G, H))),
        ("auto", ToolUse((F, G, H))),
        ("required", ToolUse((F, G, H), required=True)),
        (named("g"), ToolUse((G,), required=True, parallel=False)),
        ({"type": "function", "name": "g"}, ToolUse((G,), required=True, parallel=False)),
        (allowed("auto", "h", "f", "h"), ToolUse((F, H))),
        (allowed("required", "g"), ToolUse((G,), required=True)),
        (allowed("auto", "g", flat=True), ToolUse((G,))),
        (allowed("required", "f", "g", flat=True), ToolUse((F, G), required=True)),
    ],
)
def test_every_choice_tells_of_all_tools_and_allows_its_own(choice: Any, use: ToolUse) -> None:
    request = parse(tools=TOOLS, tool_choice=choice)
    assert request.prompts[0].tools == (F, G, H)
    assert request.tool_use == use
    single = parse(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert single.tool_use == replace(use, parallel=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": True},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"functions": [], "function_call": "auto"},
    ],
)
def test_without_calls_the_model_is_told_of_no_tools(fields: dict) -> None:
    request = parse(**fields)
    assert (request.prompts[0].tools, request.tool_use) == ((), None)


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        (None, ToolUse((F, G), parallel=False)),
        ("auto", ToolUse((F, G), parallel=False)),
        ({"name": "g"}, ToolUse((G,), required=True, parallel=False)),
    ],
)
def test_functions_are_tools_of_which_one_is_called(choice: Any, use: ToolUse) -> None:
    request = parse(functions=[{"name": "f"}, {"name": "g"}], function_call=choice)
    assert request.prompts[0].tools == (F, G)
    assert request.tool_use == use
    assert request.format.legacy_calls is True


def deep(levels: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [1]}, "tools[0]", "must be an object"),
        ({"tools": [TOOLS[0], {}]}, "tools[1].function", "is required"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function", "is required"),
        ({"tools": [tool("")]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool("ä")]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool(7)]}, "tools[0].function.name", "must be a name"),
        ({"tools": [tool("f", description=1)]}, "tools[0].function.description", "a string"),
        ({"tools": [tool("f", strict="x")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", "an object"),
        ({"tools": [tool("f", parameters=True)]}, "tools[0].function.parameters", "an object"),
        (
            {"tools": [tool("f", parameters={"minimum": math.inf})]},
            "tools[0].function.parameters",
            "finite numbers",
        ),
        (
            {"tools": [tool("f", parameters={"title": "\ud800"})]},
            "tools[0].function.parameters",
            "valid Unicode",
        ),
        (
            {"tools": [tool("f", parameters=deep(MAX_DEPTH + 1))]},
            "tools[0].function.parameters",
            "nested too deeply",
        ),
        (
            {"tools": [tool("f", parameters={"title": "x" * MAX_GRAMMAR_BYTES})]},
            "tools[0].function.parameters",
            f"at most {MAX_GRAMMAR_BYTES} bytes",
        ),
        ({"tools": [{"type": "namespace"}]}, "tools[0].type", 'must be "function"'),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", 'must be "function"'),
        (
            {"tools": [TOOLS[0], {"type": "custom", "custom": {"name": "c"}}]},
            "tools[1].type",
            'must be "function", but got "custom"',
        ),
        (
            {"tools": [*TOOLS, tool("g")]},
            "tools[3].function.name",
            "must differ from `tools[1].function.name`",
        ),
        (
            {"functions": [{"name": "f"}, {"name": "f"}]},
            "functions[1].name",
            "must differ from `functions[0].name`",
        ),
        ({"functions": [{}]}, "functions[0].name", "is required"),
        ({"tool_choice": "required"}, "tool_choice", "`tools` has none"),
        ({"tool_choice": named("f"), "tools": []}, "tool_choice", "`tools` has none"),
        ({"tool_choice": allowed("auto", "f")}, "tool_choice", "`tools` has none"),
        ({"function_call": {"name": "f"}}, "function_call", "`functions` has none"),
        (
            {"functions": [{"name": "f"}], "function_call": {"name": "x"}},
            "function_call.name",
            'must be a name in `functions` ("f"), but got "x"',
        ),
        ({"tools": TOOLS, "functions": [{"name": "f"}]}, "functions", "beside `tools`"),
        ({"tools": TOOLS, "function_call": "auto"}, "function_call", "beside `tools`"),
        ({"tool_choice": "auto", "functions": [{"name": "f"}]}, "functions", "`tool_choice`"),
    ],
)  # fmt: skip
def test_a_wrong_tool_is_named_by_its_path(fields: dict, param: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert f"`{param}`" in caught.value.message and said in caught.value.message


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({}, "tool_choice.type"),
        ({"type": "any"}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": "f"}, "tool_choice.function"),
        (named("x"), "tool_choice.function.name"),
        (named(["f"]), "tool_choice.function.name"),
        ({"type": "function", "name": "x"}, "tool_choice.name"),
        ({"type": "allowed_tools"}, "tool_choice.mode"),
        ({"type": "allowed_tools", "allowed_tools": []}, "tool_choice.allowed_tools"),
        (allowed("none", "f"), "tool_choice.allowed_tools.mode"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("auto", *"f" * (MAX_TOOLS + 1)), "tool_choice.allowed_tools.tools"),
        (allowed("auto", "f", "x"), "tool_choice.allowed_tools.tools[1].function.name"),
        (allowed("auto", "f", "x", flat=True), "tool_choice.tools[1].name"),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["f"]}, "tool_choice.tools[0]"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]},
            "tool_choice.tools[0].type",
        ),
    ],
)
def test_a_wrong_choice_is_named_by_its_path(choice: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(tools=TOOLS, tool_choice=choice)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert f"`{param}`" in caught.value.message


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r'in `tools` \("f", "g", "h"\), but got "x"'):
        parse(tools=TOOLS, tool_choice=named("x"))
    many = [tool(f"t{i}") for i in range(MAX_TOOLS)]
    assert len(parse(tools=many).tool_use.tools) == MAX_TOOLS
    with pytest.raises(RequestError, match=r'"t19", …\)'):
        parse(tools=many, tool_choice=named("x"))


# ---------------------------------------------------------------- calls in replies


def calling() -> list[Delta]:
    return whole_run(
        {
            0: [
                Reasoning(0, "Let me "), Reasoning(0, "see"), CallStarted(0, 0, "call_a", "f"),
                CallArguments(0, 0, '{"a":'), CallArguments(0, 0, " 1}"),
                CallStarted(0, 1, "call_b", "g"), CallArguments(0, 1, "{}"),
            ]
        },
        {0: "tool_calls"},
    )  # fmt: skip


def test_whole_reply_with_calls() -> None:
    (choice,) = reply_body(FakePool(calling()), CHAT, {**HI, "tools": TOOLS})["choices"]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "Let me see",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'},
                },
                {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def fragment(number: int, arguments: str, **head: Any) -> dict:
    name = {"name": head.pop("name")} if head else {}
    return {"index": number, **head, "function": {**name, "arguments": arguments}}


def test_streamed_reply_with_calls() -> None:
    *events, _ = reply_events(FakePool(calling()), CHAT, {**HI, "tools": TOOLS})
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Let me "},
        {"reasoning_content": "see"},
        {"tool_calls": [fragment(0, "", id="call_a", type="function", name="f")]},
        {"tool_calls": [fragment(0, '{"a":')]},
        {"tool_calls": [fragment(0, " 1}")]},
        {"tool_calls": [fragment(1, "", id="call_b", type="function", name="g")]},
        {"tool_calls": [fragment(1, "{}")]},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 8 + ["tool_calls"]


def test_a_call_of_functions_comes_back_in_the_older_form() -> None:
    pieces = [
        Text(0, "So: "), CallStarted(0, 0, "call_a", "f"), CallArguments(0, 0, '{"a"'),
        CallArguments(0, 0, ": 1}"),
    ]  # fmt: skip
    deltas = whole_run({0: pieces}, {0: "tool_calls"})
    body = {**HI, "functions": [{"name": "f"}]}
    (whole,) = reply_body(FakePool(deltas), CHAT, body)["choices"]
    assert whole["finish_reason"] == "function_call"
    assert whole["message"] == {
        "role": "assistant",
        "content": "So: ",
        "refusal": None,
        "function_call": {"name": "f", "arguments": '{"a": 1}'},
    }
    *events, _ = reply_events(FakePool(deltas), CHAT, body)
    assert [event["choices"][0]["delta"] for event in events[2:]] == [
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a"'}},
        {"function_call": {"arguments": ": 1}"}},
        {},
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], {"content": ""}),
        ([Reasoning(0, "hm")], {"content": "", "reasoning_content": "hm"}),
        ([Reasoning(0, ""), Text(0, "a")], {"content": "a"}),
        ([Reasoning(0, "hm"), Text(0, "a")], {"content": "a", "reasoning_content": "hm"}),
    ],
)
def test_content_is_a_string_where_there_are_no_calls(pieces: list, message: dict) -> None:
    body = reply_body(FakePool(whole_run({0: pieces}, {0: "stop"})), CHAT, HI)
    expected = {"role": "assistant", "refusal": None, **message}
    assert body["choices"][0]["message"] == expected


@pytest.mark.parametrize("form", [True, 2])
def test_every_token_has_its_log_probability_wherever_it_went(form: Any) -> None:
    words = ("hm", "f", "{", "}", "a")
    made = [(token(word),) for word in words]
    pieces = [
        Reasoning(0, "hm", made[0]), CallStarted(0, 0, "c", "f", made[1]),
        CallArguments(0, 0, "{", made[2]), CallArguments(0, 0, "}", made[3]), Text(0, "a", made[4]),
    ]  # fmt: skip
    deltas = whole_run({0: pieces}, {0: "stop"})
    body = {**HI, "tools": TOOLS, "logprobs": form}
    field = "content" if form is True else "tokens"
    expected = list(words) if form is True else [sum(word.encode()) for word in words]

    def told(choice: dict) -> list:
        entries = (choice["logprobs"] or {field: []})[field]
        return [entry["token"] if form is True else entry for entry in entries]

    assert told(reply_body(FakePool(deltas), CHAT, body)["choices"][0]) == expected
    *events, _ = reply_events(FakePool(deltas), CHAT, body)
    streamed = [told(event["choices"][0]) for event in events]
    assert streamed == [[], *([word] for word in expected), []]


# ---------------------------------------------------------------- a stream's fold is the reply


def official_fold(events: list[Any]) -> dict:
    """What the official client makes of a stream, as its own types write it."""
    state = ChatCompletionStreamState()
    *chunks, done = (event for event in events if event is not None)
    assert done == "[DONE]"
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    return state.current_completion_snapshot.to_dict()


def message_of(folded: dict) -> dict:
    """A folded message in the form of a whole one: without the fields that the client's types
    add, and with null instead of an empty content beside calls."""
    message = {name: value for name, value in folded.items() if value is not None}
    if "tool_calls" in message:
        message["tool_calls"] = [
            {"id": made["id"], "type": made["type"], "function": _function_of(made["function"])}
            for made in message["tool_calls"]
        ]
    if {"tool_calls", "function_call"} & set(message):
        message["content"] = message["content"] or None
    return {"refusal": None, **message}


def _function_of(made: dict) -> dict:
    return {name: made[name] for name in ("name", "arguments")}


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize(
    ("fields", "calls"), [({"tools": TOOLS}, 3), ({"functions": [{"name": "f"}]}, 1)]
)
@UNTIMED
@given(data=st.data(), n=st.integers(1, 3))
def test_the_official_fold_of_a_stream_is_the_whole_reply(
    fields: dict, calls: int, logprobs: bool, data: st.DataObject, n: int
) -> None:
    deltas = data.draw(runs(n, calls))
    body = {**HI, **fields, "n": n, "logprobs": logprobs}
    body["stream_options"] = {"include_usage": True}
    streamed = official_fold(reply_events(FakePool(deltas), CHAT, body))
    whole = reply_body(FakePool(deltas), CHAT, body)
    ChatCompletion.model_validate(whole, strict=True)
    assert streamed["usage"] == whole["usage"]
    choices = sorted(streamed["choices"], key=lambda choice: choice["index"])
    for choice, collected in zip(choices, whole["choices"], strict=True):
        assert message_of(choice["message"]) == collected["message"]
        assert choice["finish_reason"] == collected["finish_reason"]
        told, expected = (
            (entry["logprobs"] or {}).get("content") or [] for entry in (choice, collected)
        )
        assert told == expected
