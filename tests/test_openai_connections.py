"""The official client's connections: keys, names, waiting, giving up, many at once.

What it gets to read is in test_openai_client.py, _tools.py and _structured.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import openai
import pytest
from asking import ASKED
from relay import relay_to

from mlx_server.server.http import HttpServer

KEY = "sesame"
NAME = "mlx-community/Demo-4bit"
ENDLESS = {"messages": ASKED, "model": NAME, "extra_body": {"ignore_eos": True}}
SHORT = {"messages": ASKED, "model": NAME, "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    """It has one place and room for one that waits."""
    return serve(
        api_key=(KEY,), alias=(NAME,), strict_model_names=True, max_batch_size=1, max_queue=1
    )


@pytest.fixture(scope="module")
def client(server: HttpServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def idle(server: HttpServer) -> bool:
    """Whether the engines come to have no rows within some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not any(server.pool.worker.call(lambda engines: [e.busy for e in engines.values()])):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def full(client: openai.OpenAI, server: HttpServer) -> Iterator[list[openai.Stream]]:
    """Two streams that do not end, one running and one waiting; the next request is refused."""
    streams = [client.chat.completions.create(**ENDLESS, stream=True)]
    next(iter(streams[0]))
    streams.append(client.chat.completions.create(**ENDLESS, stream=True))
    yield streams
    for stream in streams:
        stream.close()
    assert idle(server)


# ---------------------------------------------------------------- keys and names


@pytest.mark.parametrize("key", ["wrong", "sesam", "sesame2"])
def test_a_wrong_key(client: openai.OpenAI, key: str) -> None:
    for ask in (
        lambda c: c.chat.completions.create(**SHORT),
        lambda c: c.chat.completions.create(**SHORT, stream=True),
        lambda c: c.embeddings.create(model=NAME, input="x"),
        lambda c: c.models.list(),
    ):
        with pytest.raises(openai.AuthenticationError) as error:
            ask(client.with_options(api_key=key))
        assert error.value.code == "invalid_api_key" and error.value.status_code == 401


def test_names_are_strict(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.chat.completions.create(**SHORT | {"model": "nobody/nothing"}),
        lambda: client.completions.create(model="nobody/nothing", prompt="x"),
        lambda: client.embeddings.create(model="nobody/nothing", input="x"),
        lambda: client.models.retrieve("nobody/nothing"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            ask()
        assert error.value.code == "model_not_found"
        assert "nobody/nothing" in error.value.message
    assert client.chat.completions.create(**SHORT).model == NAME


def test_a_name_with_a_slash(client: openai.OpenAI) -> None:
    """The client sends it as one segment of the path, with %2F."""
    assert NAME in [model.id for model in client.models.list()]
    assert client.models.retrieve(NAME).id == NAME


# ---------------------------------------------------------------- waiting and giving up


def test_a_full_server_says_when_to_come_again(
    client: openai.OpenAI, full: list[openai.Stream]
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(**SHORT, stream=stream)
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"] == "1"


def test_the_client_comes_again_by_itself(
    client: openai.OpenAI, server: HttpServer, full: list[openai.Stream]
) -> None:
    """The first reply is the 503; before the client has it, both streams leave."""

    def seen(status: int) -> None:
        for stream in full:
            stream.close()
        assert idle(server)

    with relay_to(server.url, seen=seen) as relay:
        again = openai.OpenAI(base_url=f"{relay.url}/v1", api_key=KEY, max_retries=1)
        reply = again.chat.completions.create(**SHORT)
    assert relay.statuses == [503, 200] and reply.usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_while_it_waits_frees_its_place(
    client: openai.OpenAI, server: HttpServer, stream: bool
) -> None:
    """Whole, the time is over before the reply; streamed, another has the only row."""
    if not stream:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(**ENDLESS)
        assert idle(server)
        return
    running = client.chat.completions.create(**ENDLESS, stream=True)
    next(iter(running))
    impatient = client.with_options(timeout=openai.Timeout(30, read=0.3))
    with pytest.raises(Exception, match="timed out") as error:
        list(impatient.chat.completions.create(**ENDLESS, stream=True))
    assert "Timeout" in type(error.value).__name__
    running.close()
    assert idle(server)


def test_leaving_a_stream_in_its_middle_frees_the_row(
    client: openai.OpenAI, server: HttpServer
) -> None:
    with client.chat.completions.create(**ENDLESS, stream=True) as stream:
        for _, _chunk in zip(range(5), stream, strict=False):
            assert not idle_now(server)
    assert idle(server)
    assert client.chat.completions.create(**SHORT).usage.completion_tokens > 0


def idle_now(server: HttpServer) -> bool:
    return not any(server.pool.worker.call(lambda engines: [e.busy for e in engines.values()]))


# ---------------------------------------------------------------- many at once, raw replies


def test_eight_asynchronous_requests_get_what_each_gets_alone(serve) -> None:
    server = serve(api_key=(KEY,))

    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        fields = ENDLESS | {"max_tokens": 16, "temperature": 1, "seed": seed}
        stream = await client.chat.completions.create(**fields, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def both() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            together = await asyncio.gather(*(ask(client, seed) for seed in range(8)))
            alone = [await ask(client, seed) for seed in range(8)]
        return together, alone

    together, alone = asyncio.run(both())
    assert together == alone and len(set(alone)) > 1


def test_a_cancelled_task_frees_its_row(server: HttpServer) -> None:
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            whole = asyncio.create_task(client.chat.completions.create(**ENDLESS))
            while idle_now(server):
                await asyncio.sleep(0.01)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole

    asyncio.run(leave())
    assert idle(server)


def test_raw_replies_have_their_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**SHORT)
    assert raw.headers["content-type"].startswith("application/json")
    assert int(raw.headers["content-length"]) == len(raw.content)
    assert raw.parse().choices[0].message.role == "assistant"
    assert json.loads(raw.text)["object"] == "chat.completion"
    with client.chat.completions.with_streaming_response.create(**SHORT, stream=True) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]" and len(lines) > 2


def test_a_field_that_is_wrong_is_named(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(**SHORT | {"temperature": -1}, stream=stream)
        assert error.value.param == "temperature" and error.value.status_code == 400
