"""The official client against the running server: texts, names, errors, clients that vanish."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from mlx_server.server.http import HttpServer

HEY = [{"role": "user", "content": "Hey"}]
GREEDY = {"temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    dragon = stories / "adapters/dragon"
    return serve(
        model=str(stories / "stories260k-chat"),
        lora=(f"dragon={dragon}",),
        alias=("stories",),
        start_dir=stories,
    )


@pytest.fixture(scope="module")
def client(server: HttpServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-local", max_retries=0)


def text_of(stream) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def idle(server: HttpServer, within: float = 5.0) -> bool:
    """Whether all rows are gone within so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        engines = server.pool.worker.call(lambda engines: [e.busy for e in engines.values()])
        if not any(engines):
            return True
        time.sleep(0.02)
    return False


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="stories", messages=HEY, **GREEDY)
    assert reply.object == "chat.completion"
    choice = reply.choices[0]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content.startswith('"He?" Annabyed.')
    usage = reply.usage
    assert (usage.completion_tokens, usage.prompt_tokens) == (16, 43)
    assert usage.total_tokens == 59 and usage.prompt_tokens_details.cached_tokens == 0


def test_streamed_equals_collected(client: openai.OpenAI) -> None:
    options = {"messages": HEY, "temperature": 1, "seed": 4, "max_tokens": 40, "n": 2}
    whole = client.chat.completions.create(model="x", **options)
    texts = {0: "", 1: ""}
    reasons = {}
    ids = set()
    for chunk in client.chat.completions.create(model="x", stream=True, **options):
        ids.add(chunk.id)
        assert chunk.object == "chat.completion.chunk" and chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert len(ids) == 1
    assert [c.message.content for c in whole.choices] == [texts[0], texts[1]]
    assert [c.finish_reason for c in whole.choices] == [reasons[0], reasons[1]]


def test_stream_with_usage_at_its_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="x", messages=HEY, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "length"


def test_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="x", messages=HEY, logprobs=True, top_logprobs=3, **GREEDY
    )
    content = reply.choices[0].logprobs.content
    assert len(content) == 16
    assert "".join(e.token for e in content) == reply.choices[0].message.content
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3


def test_stop_strings_never_leak(client: openai.OpenAI) -> None:
    full = client.chat.completions.create(model="x", messages=HEY, temperature=0, max_tokens=48)
    text = full.choices[0].message.content
    stop = text[20:26]
    for options in ({}, {"stream": True}):
        reply = client.chat.completions.create(
            model="x", messages=HEY, temperature=0, max_tokens=48, stop=[stop, "zzz"], **options
        )
        got = text_of(reply) if options else reply.choices[0].message.content
        assert got == text[: text.index(stop)]


def test_seed(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        reply = client.chat.completions.create(
            model="x", messages=HEY, seed=seed, temperature=1, max_tokens=20
        )
        return reply.choices[0].message.content

    with ThreadPoolExecutor(12) as threads:
        texts = list(threads.map(ask, [1, 2, 3] * 4))
    assert texts[:3] * 4 == texts
    assert len(set(texts)) == 3


def test_models(client: openai.OpenAI, stories: Path) -> None:
    listed = client.models.list().data
    assert listed[0].id == str(stories / "stories260k-chat")
    assert "dragon" in [m.id for m in listed]
    assert client.models.retrieve("dragon").object == "model"
    assert client.models.retrieve(listed[0].id).id == listed[0].id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")


@pytest.mark.parametrize("name", ["gpt-3.5-turbo", "./dist/Llama-2-7b-MLC/", "default_model"])
def test_unknown_names_are_answered_by_the_loaded_model(client: openai.OpenAI, name: str) -> None:
    reply = client.chat.completions.create(model=name, messages=HEY, **GREEDY)
    assert reply.choices[0].message.content.startswith('"He?" Annabyed.')


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="x", prompt="Once upon a time", **GREEDY)
    assert reply.object == "text_completion"
    assert reply.choices[0].text.startswith(", there was a little girl named Lily.")
    several = client.completions.create(
        model="x", prompt=["Once upon a time", "The cat"], n=2, temperature=1, seed=1, max_tokens=5
    )
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    tokens = client.completions.create(model="x", prompt=[1, 403, 407, 261, 378], **GREEDY)
    assert tokens.choices[0].text == reply.choices[0].text


def test_completions_echo_with_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="x", prompt="Once upon a time", echo=True, logprobs=2, max_tokens=0, temperature=0
    )
    choice = reply.choices[0]
    assert choice.text == "Once upon a time" and choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == 5
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


def test_a_prompt_that_is_too_long_tells_both_lengths(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "once upon a time " * 200}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="x", messages=long, stream=stream)
        assert error.value.code == "context_length_exceeded"
        assert "512" in error.value.message


def test_without_max_tokens_a_reply_runs_until_the_context_is_full(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="x", messages=HEY, temperature=0, extra_body={"ignore_eos": True}
    )
    assert reply.usage.total_tokens == 512
    assert reply.choices[0].finish_reason == "length"
    capped = client.chat.completions.create(
        model="x", messages=HEY, temperature=0, max_tokens=100_000, extra_body={"ignore_eos": True}
    )
    assert capped.usage.total_tokens == 512


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"adapters": "../outside"}, "adapters"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_errors_name_the_field(client: openai.OpenAI, body: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="x", messages=HEY, extra_body=body)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_a_client_that_closes_its_stream_frees_its_row(
    client: openai.OpenAI, server: HttpServer
) -> None:
    stream = client.chat.completions.create(
        model="x", messages=HEY, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert idle(server, within=2)


def test_a_client_that_vanishes_while_it_waits_frees_its_row(server: HttpServer) -> None:
    body = json.dumps({"messages": HEY, "n": 8, "ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        gone.sendall(head.encode() + body)
        deadline = time.monotonic() + 5
        while idle(server, within=0.001) and time.monotonic() < deadline:
            time.sleep(0.001)
    assert idle(server, within=1)


def test_many_clients_at_once_get_what_one_gets(client: openai.OpenAI) -> None:
    def ask(i: int) -> str:
        stream = client.chat.completions.create(
            model="dragon" if i % 3 == 0 else "x",
            messages=[{"role": "user", "content": f"Story {i % 6}"}],
            stream=True,
            **GREEDY,
        )
        return text_of(stream)

    alone = [ask(i) for i in range(6)]
    with ThreadPoolExecutor(24) as threads:
        crowd = list(threads.map(ask, range(24)))
    assert crowd == alone * 4
