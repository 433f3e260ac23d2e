"""POST /v1/chat/completions: bodies in, replies out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from api_fakes import (
    FakePool,
    add_logprobs,
    call,
    reply_body,
    reply_events,
    runs,
    token,
    whole_run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_server.api import DIALECTS
from mlx_server.api.base import HttpRequest
from mlx_server.api.fields import MAX_BIASED_TOKENS, MAX_DEPTH, got, mapping
from mlx_server.api.llama_reply import timings_body
from mlx_server.api.openai import OpenAIDialect
from mlx_server.api.openai_chat import ChatBody, OpenAIChat
from mlx_server.api.openai_reply import SYSTEM_FINGERPRINT
from mlx_server.api.openai_tools import MAX_TOOLS
from mlx_server.deltas import Delta, Text, Timings, TokenLogprob, TopLogprob
from mlx_server.errors import (
    AuthenticationError,
    ContextLengthExceeded,
    DeadlineExceeded,
    MethodNotAllowed,
    ModelLoadError,
    ModelNotFound,
    NotSupported,
    PayloadTooLarge,
    RequestError,
    ServerError,
    TooManyRequests,
    Unavailable,
)
from mlx_server.sampling_params import SAMPLING_FIELDS

CHAT = "/v1/chat/completions"
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HI = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def parse(**fields: Any) -> Any:
    return OpenAIChat().parse({**HI, **fields})


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 3.5}, {"temperature": 3.5}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"min_p": 0.05}, {"min_p": 0.05}),
        ({"top_k": 20}, {"top_k": 20}),
        ({"top_k": 20.0}, {"top_k": 20}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": 2**63 + 5}, {"seed": 5}),
        ({"seed": -2}, {"seed": 2**63 - 2}),
        ({"seed": -1}, {"seed": None}),
        ({"max_tokens": 16.0}, {"max_tokens": 16}),
        ({"max_tokens": -1}, {"max_tokens": None}),
        ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": -1}, {"max_tokens": None}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {"stop": ()}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"logit_bias": {"7": -100, "9": 1.5}}, {"logit_bias": ((7, -100.0), (9, 1.5))}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_context_size": 0}, {"repetition_context_size": 0}),
        ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
        ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
        ({"presence_context_size": 8}, {"penalty_context_size": 8}),
        ({"frequency_context_size": 8}, {"penalty_context_size": 8}),
        (
            {"presence_context_size": 8, "frequency_context_size": 8},
            {"penalty_context_size": 8},
        ),
        ({"logprobs": False}, {}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"top_logprobs": 0}, {}),
        ({"logprobs": 3}, {"logprobs": 3}),
        ({"user": "u", "metadata": {"a": 1}, "store": True, "service_tier": "auto"}, {}),
        ({"unheard_of": {"deep": [1]}, "timeout": "x"}, {}),
    ],
)
def test_options_hold_what_the_client_named(fields: dict, options: dict) -> None:
    request = parse(**fields)
    assert request.options == options
    assert set(request.options) <= SAMPLING_FIELDS
    assert request.defaults == {"temperature": 1.0, "top_p": 1.0}


def test_fields_outside_sampling_reach_the_request() -> None:
    request = parse(
        model="m", n=2, adapters="a/b", stream=True, stream_options={"include_usage": True},
        chat_template_kwargs={"enable_thinking": False}, role_mapping={"user": "U: "},
    )  # fmt: skip
    assert (request.model, request.n, request.adapters, request.stream) == ("m", 2, "a/b", True)
    assert request.format.include_usage
    (prompt,) = request.prompts
    assert prompt.template_args == {"enable_thinking": False}
    assert prompt.role_mapping == {"user": "U: "}


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"reasoning_effort": "xhigh"}, "xhigh"),
        ({"reasoning": {"effort": "minimal", "summary": "auto"}}, "minimal"),
        ({"reasoning_effort": "none", "reasoning": {"effort": "none"}}, "none"),
    ],
)
def test_the_effort_reaches_the_prompt(fields: dict, effort: str | None) -> None:
    assert parse(**fields).prompts[0].reasoning_effort == effort


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": None}, "enable_thinking": False},
    ],
)
def test_enable_thinking_is_a_variable_of_the_template(fields: dict) -> None:
    assert parse(**fields).prompts[0].template_args == {"enable_thinking": False}


@pytest.mark.parametrize(
    "name", ["max_thinking_tokens", "thinking_budget", "thinking_budget_tokens"]
)
@pytest.mark.parametrize("limit", [0, 512, -1])
def test_thinking_has_a_limit(name: str, limit: int) -> None:
    assert parse(**{name: limit}).max_thinking_tokens == limit


def test_ids_differ_between_requests() -> None:
    first, second = parse().id, parse().id
    assert first.startswith("chatcmpl-")
    assert first != second


@pytest.mark.parametrize("name", sorted(set(ChatBody.model_fields) - {"messages"}))
def test_null_is_absent(name: str) -> None:
    given, absent = parse(**{name: None}), parse()
    assert (given.options, given.prompts) == (absent.options, absent.prompts)
    assert (given.model, given.n, given.format) == (absent.model, absent.n, absent.format)


NUMBER_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "n", "seed", "max_tokens", "max_completion_tokens",
    "top_logprobs", "repetition_penalty", "repetition_context_size", "presence_penalty",
    "presence_context_size", "frequency_penalty", "frequency_context_size",
)  # fmt: skip
INTEGER_FIELDS = (
    "top_k", "n", "seed", "max_tokens", "max_completion_tokens", "top_logprobs",
    "repetition_context_size", "presence_context_size", "frequency_context_size", "logprobs",
)  # fmt: skip
OUT_OF_RANGE = {
    "temperature": (-0.1, 100.5, math.inf, math.nan, 10**400),
    "top_p": (-0.1, 1.01),
    "min_p": (-0.1, 1.01),
    "top_k": (-2, 2**40),
    "n": (0, 129),
    "max_tokens": (0, -2),
    "max_completion_tokens": (0, -2),
    "logprobs": (0, 11, "yes"),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1),
    "repetition_context_size": (-1,),
    "presence_context_size": (-1,),
    "frequency_context_size": (-1,),
    "stop": ("", ["a", ""], ["a"] * 17, [1], {}),
    "logit_bias": ({"": 1}, {"-1": 1}, {"x": -101}, {"1": 101}, {"1": "a"}, {"1": True}, [1]),
    "stream": (1, "true"),
    "stream_options": (True, []),
    "ignore_eos": ("no",),
    "model": (1, ["m"]),
    "adapters": (1, {}),
    "user": (1,),
    "chat_template_kwargs": ([], "{}", {"a": "\ud800"}),
    "role_mapping": ({"user": 1}, "x"),
    "tools": ("x", {}, [TOOL] * (MAX_TOOLS + 1)),
    "functions": ("x", {}),
    "tool_choice": ("maybe", 1, ["auto"]),
    "function_call": ("required", 1),
    "parallel_tool_calls": ("no",),
    "response_format": ("json", {}, {"type": 1}),
    "json_schema": ("x", 1, "[]", '{"a":}', {"minimum": math.inf}, {"x": "y" * 2**20}),
    "grammar": (1, "\ud800", "x" * (2**20 + 1)),
    "regex": (1,),
    "guided_choice": ([], "a", ["a", 1]),
    "structured_outputs": ([], {}, {"structural_tag": "x"}),
    "reasoning_effort": ("", 3, "very high", "x" * 17),
    "reasoning": ("high",),
    "enable_thinking": ("no",),
    "max_thinking_tokens": (-2, 1.5),
    "thinking_budget": (-2,),
    "messages": ("hi", [], None, {}),
}
WRONG = [
    *((name, "1") for name in NUMBER_FIELDS),
    *((name, True) for name in NUMBER_FIELDS),
    *((name, 16.5) for name in INTEGER_FIELDS),
    *((name, value) for name, values in OUT_OF_RANGE.items() for value in values),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_field_is_named_with_what_came(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**{"logprobs": True, name: value})
    assert caught.value.status == 400
    assert caught.value.param == name
    assert caught.value.message.startswith(f"`{name}` must ")
    assert name == "logit_bias" or got(value) in caught.value.message


def test_the_allowed_range_is_told() -> None:
    with pytest.raises(RequestError, match=r"must be a number between 0 and 1, but got 1\.5"):
        parse(top_p=1.5)


def test_logit_bias_has_a_most() -> None:
    bias = {str(i): 1 for i in range(MAX_BIASED_TOKENS)}
    assert len(parse(logit_bias=bias).options["logit_bias"]) == MAX_BIASED_TOKENS
    message = "`logit_bias` must have at most 1024 entries, but got an object of 1025"
    with pytest.raises(RequestError, match=message) as caught:
        parse(logit_bias={**bias, "5000": 1})
    assert (caught.value.status, caught.value.param) == (400, "logit_bias")


def test_messages_are_required() -> None:
    with pytest.raises(RequestError, match="`messages` is required") as caught:
        OpenAIChat().parse({"model": "m"})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_image", "image_url": "http://x/y.png"},
    ],
)
def test_an_image_is_refused_before_anything_else(part: dict) -> None:
    messages = [*HI["messages"], {"role": "user", "content": [text_part("a"), part]}]
    with pytest.raises(NotSupported, match="does not support images") as caught:
        parse(messages=messages, tools=[TOOL], response_format={"type": "json_object"})
    assert caught.value.param == "messages[1].content[1]"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"parallel_tool_calls": False},
        {"response_format": {"type": "text"}},
        {"grammar": "", "regex": "", "json_schema": "", "guided_json": ""},
        {"reasoning": {}},
    ],
)
def test_what_asks_for_nothing_changes_nothing(fields: dict) -> None:
    assert replace(parse(**fields), id="") == replace(parse(), id="")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": 5}, "top_logprobs"),
        ({"presence_context_size": 4, "frequency_context_size": 5}, "frequency_context_size"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"max_thinking_tokens": 0, "thinking_budget": 1}, "thinking_budget"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
            "enable_thinking",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


@UNTIMED
@given(
    st.dictionaries(
        st.sampled_from(sorted(ChatBody.model_fields)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "type", "1"]), inner, max_size=3
                )
            ),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_any_json_is_a_request_or_a_request_error(body: dict) -> None:
    try:
        request = OpenAIChat().parse(body)
    except (RequestError, NotSupported) as error:
        assert error.param.split("[")[0].split(".")[0] in ChatBody.model_fields
        json.dumps(OpenAIChat().error(error), allow_nan=False)
    else:
        assert set(request.options) <= SAMPLING_FIELDS


@pytest.mark.parametrize("depth", [65, 500, 900, 980, 5000, 100_000])
@pytest.mark.parametrize("name", [*sorted(ChatBody.model_fields), "metadata"])
def test_json_of_any_depth_is_a_request_or_a_request_error(name: str, depth: int) -> None:
    deep = "[" * (depth - 1) + "]" * (depth - 1)
    hi = json.dumps(HI["messages"])
    for value in (deep, f'{{"1": {deep}}}', f'[{{"type": "text", "role": {deep}}}]'):
        body = f'{{"messages": {hi}, "{name}": {value}}}'.encode()
        try:
            OpenAIChat().parse(HttpRequest("POST", CHAT, {}, {}, body).json())
        except (RequestError, NotSupported) as error:
            assert error.param is None or error.param.startswith(name)


@pytest.mark.parametrize(
    "name", ["chat_template_kwargs", "role_mapping", "json_schema", "guided_json"]
)
def test_an_object_that_is_passed_on_has_a_bounded_depth(name: str) -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = "inside"
        for level in range(levels):
            value = {"x": value} if level % 2 or level == levels - 1 else [value]
        return value

    with pytest.raises(RequestError, match=f"`{name}` must not be nested too deeply") as caught:
        parse(**{name: nested(MAX_DEPTH + 1)})
    assert caught.value.param == name
    assert mapping(nested(MAX_DEPTH)) == nested(MAX_DEPTH)


# ---------------------------------------------------------------- replies


def simple_run() -> list[Delta]:
    return whole_run({0: [Text(0, "Hel"), Text(0, "lo")]}, {0: "stop"})


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


@pytest.mark.parametrize("path", [CHAT, "/chat/completions"])
def test_whole_reply(path: str) -> None:
    pool = FakePool(simple_run())
    body = reply_body(pool, path, {**HI, "model": "gpt-3.5-turbo"})
    assert isinstance(body.pop("created"), int)
    assert body == {
        "id": pool.request.id,
        "object": "chat.completion",
        "model": "gpt-3.5-turbo",
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "timings": timings_body(Timings()),
    }


def chunk_choices(events: list[Any]) -> list[tuple[int, dict, str | None]]:
    return [
        (choice["index"], choice["delta"], choice["finish_reason"])
        for event in events
        for choice in event["choices"]
    ]


def test_streamed_reply() -> None:
    pool = FakePool(simple_run())
    *events, done = reply_events(pool, CHAT, HI)
    assert done == "[DONE]"
    assert {event["id"] for event in events} == {pool.request.id}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["model"] for event in events} == {"org/loaded"}
    assert {event["system_fingerprint"] for event in events} == {SYSTEM_FINGERPRINT}
    assert all("usage" not in event for event in events)
    assert chunk_choices(events) == [
        (0, {"role": "assistant", "content": ""}, None),
        (0, {"content": "Hel"}, None),
        (0, {"content": "lo"}, None),
        (0, {}, "stop"),
    ]


def test_usage_comes_once_and_last_when_asked_for() -> None:
    body = {**HI, "stream_options": {"include_usage": True}}
    *events, usage, done = reply_events(FakePool(simple_run()), CHAT, body)
    assert (usage["choices"], usage["usage"], done) == ([], USAGE, "[DONE]")
    assert all("usage" not in event for event in events)


def test_every_choice_opens_with_its_role_and_whole_choices_are_in_order() -> None:
    deltas = whole_run({1: [Text(1, "b")], 0: [Text(0, "a")]}, {0: "stop", 1: "length"})
    *events, _ = reply_events(FakePool(deltas), CHAT, {**HI, "n": 2})
    opened = [index for index, delta, _ in chunk_choices(events) if "role" in delta]
    assert opened == [0, 1]
    body = reply_body(FakePool(deltas), CHAT, {**HI, "n": 2})
    assert [
        (choice["index"], choice["message"]["content"], choice["finish_reason"])
        for choice in body["choices"]
    ] == [(0, "a", "stop"), (1, "b", "length")]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_broken_off_reply_does_not_pass_for_a_whole_one(reason: str) -> None:
    deltas = whole_run({0: [Text(0, "a")]}, {0: reason})
    assert reply_body(FakePool(deltas), CHAT, HI)["choices"][0]["finish_reason"] == "length"


def test_empty_pieces_send_nothing_unless_they_carry_tokens() -> None:
    deltas = whole_run({0: [Text(0, ""), Text(0, "", (token("a"),)), Text(0, "a")]}, {0: "stop"})
    *events, _ = reply_events(FakePool(deltas), CHAT, {**HI, "logprobs": True})
    contents = [event["choices"][0]["logprobs"] for event in events]
    assert [value and len(value["content"]) for value in contents] == [None, 1, 0, None]


ODD = TokenLogprob(7, "�", b"\xe2", -math.inf, (TopLogprob(8, "x", b"x", -math.inf),))


def test_openai_logprobs() -> None:
    deltas = whole_run({0: [Text(0, "a", (token("a", -0.25, 2), ODD))]}, {0: "stop"})
    body = reply_body(FakePool(deltas), CHAT, {**HI, "logprobs": True, "top_logprobs": 2})
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.25,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "a1", "logprob": -1.5, "bytes": [97, 49]},
                ],
            },
            {
                "token": "�",
                "logprob": -9999.0,
                "bytes": [0xE2],
                "top_logprobs": [{"token": "x", "logprob": -9999.0, "bytes": [120]}],
            },
        ]
    }


def test_an_integer_asks_for_mlx_lm_logprobs() -> None:
    deltas = whole_run({0: [Text(0, "a", (token("a", -0.25, 2), ODD))]}, {0: "stop"})
    body = reply_body(FakePool(deltas), CHAT, {**HI, "logprobs": 2})
    assert body["choices"][0]["logprobs"] == {
        "token_logprobs": [-0.25, -9999.0],
        "tokens": [97, 7],
        "top_logprobs": [
            [
                {"id": 97, "token": "a", "logprob": -0.5},
                {"id": 98, "token": "a1", "logprob": -1.5},
            ],
            [{"id": 8, "token": "x", "logprob": -9999.0}],
        ],
    }


def fold(events: list[Any]) -> dict:
    """What a client makes of a stream: the whole reply."""
    *chunks, usage, done = (event for event in events if event is not None)
    assert done == "[DONE]"
    choices: dict[int, dict] = {}
    for chunk in chunks:
        (piece,) = chunk["choices"]
        choice = choices.setdefault(
            piece["index"], {"content": "", "logprobs": None, "finish_reason": None}
        )
        choice["content"] += piece["delta"].get("content", "")
        choice["logprobs"] = add_logprobs(choice["logprobs"], piece["logprobs"])
        choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
    return {"choices": [choices[i] for i in sorted(choices)], "usage": usage["usage"]}


@pytest.mark.parametrize("logprobs", [False, True, 2])
@UNTIMED
@given(data=st.data(), n=st.integers(1, 3))
def test_streamed_equals_collected(logprobs: bool | int, data: st.DataObject, n: int) -> None:
    deltas = data.draw(runs(n))
    fields = {**HI, "n": n, "logprobs": logprobs, "stream_options": {"include_usage": True}}
    streamed = fold(reply_events(FakePool(deltas), CHAT, fields))
    whole = reply_body(FakePool(deltas), CHAT, fields)
    for choice, collected in zip(streamed["choices"], whole["choices"], strict=True):
        assert choice["content"] == collected["message"]["content"]
        assert choice["finish_reason"] == collected["finish_reason"]
        # A stream says nothing of pieces without text and tokens.
        said = {**(choice["logprobs"] or {})}
        assert said == {k: v for k, v in (collected["logprobs"] or {}).items() if k in said}
        assert said or not any((collected["logprobs"] or {}).values())
    assert streamed["usage"] == whole["usage"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError("m", param="p"), ("invalid_request_error", "p", None)),
        (
            ContextLengthExceeded(9, 8),
            ("exceed_context_size_error", "messages", "context_length_exceeded"),
        ),
        (AuthenticationError("m"), ("authentication_error", None, "invalid_api_key")),
        (ModelNotFound("m", param="model"), ("invalid_request_error", "model", "model_not_found")),
        (MethodNotAllowed("m", allow=("GET",)), ("invalid_request_error", None, None)),
        (PayloadTooLarge("m"), ("invalid_request_error", None, None)),
        (TooManyRequests("m"), ("rate_limit_error", None, "rate_limit_exceeded")),
        (NotSupported("m"), ("not_supported_error", None, None)),
        (Unavailable("m"), ("unavailable_error", None, 503)),
        (Unavailable("m", code="stopping"), ("unavailable_error", None, "stopping")),
        (DeadlineExceeded("m"), ("timeout_error", None, None)),
        (ModelLoadError("m"), ("server_error", None, None)),
        (ServerError("m"), ("server_error", None, None)),
    ],
)
def test_error_form(error: ServerError, expected: tuple) -> None:
    for dialect in (dialect for dialect in DIALECTS if isinstance(dialect, OpenAIDialect)):
        body = dialect.error(error)["error"]
        sizes = ["n_prompt_tokens", "n_ctx"] if isinstance(error, ContextLengthExceeded) else []
        assert list(body) == ["message", "type", "param", "code", *sizes]
        assert [body[name] for name in sizes] == [9, 8][: len(sizes)]
        assert body["message"] == error.message
        assert (body["type"], body["param"], body["code"]) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_delta_is_raised(stream: bool) -> None:
    pool = FakePool(refuse=ContextLengthExceeded(900, 512))
    with pytest.raises(ContextLengthExceeded, match=r"512 tokens.*900 tokens"):
        call(pool, "POST", CHAT, {**HI, "stream": stream})


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(DeadlineExceeded("late"), "timeout_error"), (OSError("x"), "server_error")],
)
def test_an_error_in_a_stream_is_an_event_and_the_end(failure: Exception, kind: str) -> None:
    pool = FakePool([*simple_run()[:3], failure])
    *_, last_piece, error = reply_events(pool, CHAT, HI)
    assert last_piece["choices"][0]["delta"] == {"content": "Hel"}
    assert error["error"]["type"] == kind
    assert pool.generation.cancelled


def test_a_failed_whole_reply_is_raised() -> None:
    pool = FakePool([*simple_run()[:3], DeadlineExceeded("late")])
    with pytest.raises(DeadlineExceeded):
        reply_body(pool, CHAT, HI)


def test_a_client_that_goes_away_cancels_its_request() -> None:
    callbacks: list = []
    pool = FakePool(simple_run())
    call(pool, "POST", CHAT, {**HI, "stream": True}, on_disconnect=callbacks.append)
    assert not pool.generation.cancelled
    (callback,) = callbacks
    callback()
    assert pool.generation.cancelled


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(RequestError, match="JSON object"):
        call(FakePool(), "POST", CHAT, [1])
