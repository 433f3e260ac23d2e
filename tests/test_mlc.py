"""MLC-LLM's and MLC-Chat's REST servers: their routes and fields, through the running server."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import requests

from mlx_server.server.http import HttpServer

ASKED = [{"role": "user", "content": "What is the default port?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "size": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(max_tokens=12)


def ask(server: HttpServer, method: str, path: str, body: Any = None) -> requests.Response:
    return requests.request(method, f"{server.url}{path}", json=body, timeout=60)


def chat(server: HttpServer, **fields: Any) -> dict[str, Any]:
    reply = ask(server, "POST", "/v1/chat/completions", {"messages": ASKED, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(server: HttpServer, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": ASKED, "stream": True, **fields}
    reply = ask(server, "POST", "/v1/chat/completions", body)
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def texts(reply: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]


# ---------------------------------------------------------------- figures


def generate(server: HttpServer, prompt: str, tokens: int) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
    return ask(server, "POST", "/completion", body).json()["timings"]


def figures(server: HttpServer) -> dict[str, float]:
    """The lines of /verbose_stats by name; the same name in both parts has the part's before."""
    part, found = "", {}
    for line in ask(server, "GET", "/verbose_stats").json().splitlines():
        title = re.fullmatch(r"-+ (\w+) -+", line)
        name, _, value = line.partition(": ")
        if title:
            part = title[1]
        else:
            found[f"{part} {name}"] = float(value.split()[0])
    return found


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_stats_are_those_of_the_requests_since_the_reset(server: HttpServer, method: str) -> None:
    generate(server, "Something before", 5)
    assert ask(server, method, "/chat/reset").status_code == 200
    assert ask(server, "GET", "/stats").json() == "prefill: 0.0 tok/s, decode: 0.0 tok/s"

    told = [generate(server, f"{word} and so on", 9) for word in ("One", "Another", "A third")]
    prompt = sum(timings["prompt_n"] for timings in told)
    # The first token of a reply comes with its prompt.
    decoded = sum(timings["predicted_n"] - 1 for timings in told)
    prompt_ms = sum(timings["prompt_ms"] for timings in told)
    decode_ms = sum(timings["predicted_ms"] for timings in told)
    assert decoded == 24

    found = figures(server)
    assert found["prefill total tokens"] == prompt
    assert found["decode total tokens"] == decoded
    assert found["decode requests"] == 3
    assert found["prefill total time"] == pytest.approx(prompt_ms / 1000, abs=0.002)
    assert found["decode total time"] == pytest.approx(decode_ms / 1000, abs=0.002)
    total = (prompt_ms + decode_ms) / 1000
    assert found["decode total runtime"] == pytest.approx(total, abs=0.002)

    speeds = re.findall(r"(\w+): ([\d.]+) tok/s", ask(server, "GET", "/stats").json())
    expected = {"prefill": prompt / prompt_ms, "decode": decoded / decode_ms}
    for name, speed in speeds:
        assert float(speed) == pytest.approx(expected.pop(name) * 1000, rel=0.02, abs=0.1)
    assert not expected


def test_every_route_counts(server: HttpServer) -> None:
    ask(server, "POST", "/chat/reset")
    chat(server, n=2)
    streamed(server)
    ask(server, "POST", "/v1/completions", {"prompt": "Hello"})
    ask(server, "POST", "/v1/completions", {"prompt": 5})
    assert figures(server)["decode requests"] == 4  # replies: a wrong request has none


def test_a_reset_may_have_a_body(server: HttpServer) -> None:
    # MLC-Chat's own example sends the last chat's.
    reply = ask(server, "POST", "/chat/reset", {"messages": ASKED})
    assert (reply.status_code, reply.json()) == (200, {})


# ---------------------------------------------------------------- traces


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_tracing_there_is_no_trace(server: HttpServer, method: str) -> None:
    reply = ask(server, method, "/debug/dump_event_trace")
    assert reply.status_code == 501
    error = reply.json()["error"]
    assert error["type"] == "not_supported_error"
    assert "--enable-tracing" in error["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_trace_has_the_way_of_each_request(serve, method: str) -> None:
    server = serve(max_tokens=12, enable_tracing=True)
    ids = {chat(server, max_tokens=3)["id"] for _ in range(2)}
    # MLC's own tool names the model; there is one trace for all.
    reply = ask(server, method, "/debug/dump_event_trace", {"model": "demo"})
    events = reply.json()
    assert isinstance(events, list)
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
        assert event["ph"] in ("M", "X", "i", "b", "e")
        assert event["ph"] != "X" or event["dur"] >= 0
    spans = [event for event in events if event["name"] == "request"]
    for id in ids:
        begins, ends = (
            [event["ts"] for event in spans if event["id"] == f"{id}/0[0]" and event["ph"] == phase]
            for phase in "be"
        )
        assert len(begins) == len(ends) == 1 and begins[0] < ends[0]
    assert {"step", "prefill", "decode", "finish"} <= {event["name"] for event in events}


# ---------------------------------------------------------------- completions with GET


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "Once upon"}),
        ("/v1/chat/completions", {"messages": ASKED}),
    ],
)
def test_get_with_a_body_is_post(server: HttpServer, path: str, prompt: dict[str, Any]) -> None:
    body = {**prompt, "temperature": 0, "max_tokens": 5}
    replies = [ask(server, method, path, body).json() for method in ("GET", "POST")]
    for reply in replies:
        reply.update(id="", created=0)
        del reply["timings"], reply["usage"]["prompt_tokens_details"]
    assert replies[0] == replies[1]

    streams = [ask(server, method, path, {**body, "stream": True}) for method in ("GET", "POST")]
    assert {s.headers["Content-Type"].split(";")[0] for s in streams} == {"text/event-stream"}
    assert len({s.text.count("data: ") for s in streams}) == 1

    refused = ask(server, "GET", path)
    assert refused.status_code == 405
    assert "POST" in refused.headers["Allow"]
    assert "POST" in refused.json()["error"]["message"]


# ---------------------------------------------------------------- ChatCompletionRequest


def test_the_reply_is_the_documents(server: HttpServer) -> None:
    reply = chat(server, model="./dist/Llama-2-7b-chat-hf-q4f16_1-MLC/", user="somebody", n=1)
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "./dist/Llama-2-7b-chat-hf-q4f16_1-MLC/"
    assert {"id", "choices", "created", "system_fingerprint", "usage"} <= reply.keys()
    (choice,) = reply["choices"]
    assert {"finish_reason", "index", "message", "logprobs"} <= choice.keys()
    assert choice["message"]["role"] == "assistant"

    chunks = streamed(server, model="any", temperature=0)
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert {"id", "choices", "created", "model", "system_fingerprint"} <= chunk.keys()
    joined = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert [joined] == texts(chat(server, temperature=0))


CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CONVERSATIONS = {
    "system": [{"role": "system", "content": "Be short."}, *ASKED],
    "a name": [{**ASKED[0], "name": "Ann"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}],
    "a tool's result": [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "a", "name": "weather"},
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages(server: HttpServer, name: str) -> None:
    reply = chat(server, messages=CONVERSATIONS[name])
    assert reply["usage"]["completion_tokens"] > 0


def test_the_same_seed_gives_the_same_replies(server: HttpServer) -> None:
    drawn = [texts(chat(server, seed=seed, n=3, temperature=1.5)) for seed in (4, 4, 5)]
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1] != drawn[2]
    # Every choice has a key of its own, and is the same without its neighbours.
    assert texts(chat(server, seed=4, temperature=1.5)) == drawn[0][:1]


def test_top_p_of_nothing_is_greedy(server: HttpServer) -> None:
    greedy = texts(chat(server, temperature=0))
    assert texts(chat(server, temperature=2, top_p=1e-6, seed=1)) == greedy


@pytest.mark.parametrize("field", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_changes_what_repeats_itself(server: HttpServer, field: str) -> None:
    settings = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    plain = texts(chat(server, **settings))
    assert texts(chat(server, **settings, **{field: 0.0})) == plain
    assert texts(chat(server, **settings, **{field: 2.0})) != plain


def test_a_bias_decides(server: HttpServer) -> None:
    pieces = {"content": "t", "with_pieces": True}
    (token,) = ask(server, "POST", "/tokenize", pieces).json()["tokens"]
    reply = chat(server, logit_bias={str(token["id"]): 100}, max_tokens=4, temperature=0)
    assert texts(reply) == [token["piece"] * 4]
    assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("top", [0, 1, 5])
def test_log_probabilities(server: HttpServer, top: int) -> None:
    (choice,) = chat(server, logprobs=True, top_logprobs=top, temperature=0)["choices"]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == top
        assert entry["logprob"] <= 0
        if top:
            assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # the likeliest


def test_ignore_eos_goes_on_to_the_limit(server: HttpServer) -> None:
    end = ask(server, "GET", "/props").json()["eos_token"]
    (token,) = ask(server, "POST", "/tokenize", {"content": end}).json()["tokens"]
    bias = {str(token): 100}
    for ignore, reason, used in ((False, "stop", 1), (True, "length", 7)):
        reply = chat(server, logit_bias=bias, ignore_eos=ignore, max_tokens=7, temperature=0)
        assert reply["choices"][0]["finish_reason"] == reason
        assert reply["usage"]["completion_tokens"] == used


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_strings(server: HttpServer, as_list: bool) -> None:
    (whole,) = texts(chat(server, temperature=0))
    word = whole.split()[2]
    (choice,) = chat(server, temperature=0, stop=[word, "xyz"] if as_list else word)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == whole[: whole.index(word)]


FORMATS = {
    "text": ({"type": "text"}, None),
    "json_object": ({"type": "json_object"}, {"type": "object"}),
    "a schema": ({"type": "json_object", "schema": CITY}, CITY),
    "a schema as text": ({"type": "json_object", "schema": json.dumps(CITY)}, CITY),
}


@pytest.mark.parametrize("name", FORMATS)
def test_response_formats(server: HttpServer, name: str) -> None:
    form, schema = FORMATS[name]
    ends = [['"', 6], ["}", 6]]  # the little model finds no end by itself
    reply = chat(
        server, response_format=form, max_tokens=150, seed=1, n=2, logit_bias=ends if schema else []
    )
    for choice in reply["choices"]:
        if schema is not None and choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    if name.startswith("a schema"):
        assert {choice["finish_reason"] for choice in reply["choices"]} == {"stop"}


@pytest.mark.parametrize(
    ("choice", "reasons"),
    [
        ("none", {"stop", "length"}),
        ("auto", {"stop", "length", "tool_calls"}),
        ({"type": "function", "function": {"name": "weather"}}, {"tool_calls"}),
    ],
)
def test_tools(server: HttpServer, choice: Any, reasons: set[str]) -> None:
    asked = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 60, "seed": 1}
    (reply,) = chat(server, **asked)["choices"]
    assert reply["finish_reason"] in reasons
    calls = reply["message"].get("tool_calls") or []
    assert bool(calls) == (reply["finish_reason"] == "tool_calls")
    for call in calls:
        assert call["function"]["name"] == "weather"
        jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)

    last = streamed(server, **asked)[-1]["choices"][0]
    assert last["finish_reason"] == reply["finish_reason"]


WRONG = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": "much"}, "presence_penalty"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"seed": 1.5}, "seed"),
    ({"stop": 5}, "stop"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"user": 5}, "user"),
    ({"ignore_eos": "yes"}, "ignore_eos"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_object", "schema": "{"}}, "response_format.schema"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(server: HttpServer, fields: dict[str, Any], param: str) -> None:
    reply = ask(server, "POST", "/v1/chat/completions", {"messages": ASKED, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert f"`{param}`" in error["message"]
