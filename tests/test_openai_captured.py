"""The requests of real assistants, as they were captured, answered by a running server.

Prompts of 20,000 tokens and tools by the dozen: the model is a random one that can take them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
from model_folders import write_random
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_server import demo
from mlx_server.server.http import HttpServer
from mlx_server.text.tokenizer import Tokenizer

CLIENTS = Path(__file__).parents[1] / "../shared/clients"
HOP = {"host", "content-length", "connection", "transfer-encoding", "accept-encoding"}
"""Headers that belong to the recorded connection."""

pytestmark = pytest.mark.skipif(not CLIENTS.is_dir(), reason="captured requests are not here")


def captured(*, tools: bool = False) -> list[Any]:
    """Every captured chat request: its target, headers and body."""
    cases = []
    for file in sorted(CLIENTS.glob("*.json")):
        for number, sent in enumerate(json.loads(file.read_text())["requests"]):
            target = sent["request_line"].split()[1]
            if target.endswith("/chat/completions") and (sent["body"].get("tools") or not tools):
                headers = {k: v for k, v in sent["headers"] if k.lower() not in HOP}
                case = (target, headers, sent["body"])
                cases.append(pytest.param(*case, id=f"{file.stem}-{number}"))
    return cases


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory) -> HttpServer:
    return serve(model=str(write_random(tmp_path_factory.mktemp("random"))))


@pytest.fixture(scope="module")
def quote() -> dict[str, int]:
    """A bias that keeps texts short: towards the quotation mark that ends them."""
    (token,) = Tokenizer.load(demo.path()).encode_within('"')
    return {str(token): 4}


def ask(server: HttpServer, target: str, headers: dict, body: dict) -> ChatCompletion:
    """The reply, read with the official client's types; a stream is folded with them."""
    response = requests.post(server.url + target, headers=headers, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return ChatCompletion.model_validate(response.json(), strict=True)
    lines = response.content.decode().split("\n")
    *events, done = (line[6:] for line in lines if line.startswith("data: "))
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event, strict=True) for event in events]
    asked = (body.get("stream_options") or {}).get("include_usage")
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [bool(asked)]
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(chunk)
    return state.current_completion_snapshot


@pytest.mark.parametrize(("target", "headers", "body"), captured())
def test_each_is_answered_in_the_form_its_client_parses(
    server: HttpServer, target: str, headers: dict, body: dict
) -> None:
    body = {**body, "max_tokens": 4, "seed": 1}
    if "image_url" in json.dumps(body["messages"]):
        response = requests.post(server.url + target, headers=headers, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (501, "messages[0].content[1]")
        return
    reply = ask(server, target, headers, body)
    (choice,) = reply.choices
    assert choice.message.role == "assistant" and reply.model == body["model"]
    assert choice.finish_reason in ("stop", "length")


@pytest.mark.parametrize(("target", "headers", "body"), captured(tools=True))
def test_each_that_has_tools_gets_a_valid_call_where_one_is_required(
    server: HttpServer, quote: dict[str, int], target: str, headers: dict, body: dict
) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}
    limits = {"max_tokens": 1200, "max_completion_tokens": None, "seed": 1, "temperature": 1}
    one = {"tool_choice": "required", "parallel_tool_calls": False, "logit_bias": quote}
    (choice,) = ask(server, target, headers, {**body, **limits, **one}).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


def test_the_captured_requests_hold_what_is_tested() -> None:
    bodies = [case.values[2] for case in captured(tools=True)]
    assert max(len(body["tools"]) for body in bodies) == 10  # opencode's
    assert {bool(body.get("stream")) for body in bodies} == {True, False}
