"""Packages of Node against the running server: openai and the AI SDK. Skipped where they are not
installed: `.ci/clients FOLDER node` does that, and MLX_SERVER_TEST_CLIENTS=FOLDER has
them tested.

The scripts in tests/clients do what programs do and tell what they got, which is judged here.
What a model would decide is decided for it, by a grammar or by `tool_choice`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from client_programs import SCRIPTS, blocks, need, run, surroundings
from model_folders import THINKING_TEMPLATE, write_random

from mlx_server.server.http import HttpServer

KEY = "sesame"
MODEL = "mlx-community/Quick-4bit"
FORCED = re.compile("(left|right) [0-9]{2}")
CITIES = {"Bern", "Rome"}
CONTEXT = 24576

# ---------------------------------------------------------------- servers, and Node


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> str:
    return str(write_random(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def settings(random_model: str) -> dict[str, Any]:
    return {"model": random_model, "alias": (MODEL,), "api_key": (KEY,), "ctx_size": CONTEXT}


@pytest.fixture(scope="module")
def server(serve, settings: dict[str, Any]) -> HttpServer:
    return serve(**settings, strict_model_names=True)


@pytest.fixture(scope="module")
def narrow(serve, settings: dict[str, Any]) -> HttpServer:
    """One row, and one place to wait."""
    return serve(**settings, max_batch_size=1, max_queue=1)


@pytest.fixture(scope="module")
def thinking(serve, settings: dict[str, Any]) -> HttpServer:
    return serve(**settings, chat_template=THINKING_TEMPLATE)


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Path:
    """A folder with the scripts, in which Node finds the packages."""
    if shutil.which("node") is None:
        pytest.skip("there is no Node")
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(need("node") / "node_modules")
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder


def in_node(folder: Path, *words: str, server: HttpServer, **more: str) -> str:
    env = surroundings(
        folder,
        OPENAI_BASE_URL=f"{server.url}/v1",
        OPENAI_API_KEY=KEY,
        MODEL=MODEL,
        AI_SDK_LOG_WARNINGS="false",
        **more,
    )
    return run(["node", *words], cwd=folder, env=env)


class Outcomes:
    """What a script's functions returned, by their names."""

    def __init__(self, said: str) -> None:
        self.told = json.loads(said.splitlines()[-1])

    def __getitem__(self, name: str) -> Any:
        outcome = self.told[name]
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]


@pytest.fixture(scope="module")
def openai(node: Path, server: HttpServer, narrow: HttpServer) -> Outcomes:
    more = {"NARROW_URL": f"{narrow.url}/v1"}
    return Outcomes(in_node(node, "openai_calls.mjs", server=server, **more))


@pytest.fixture(scope="module")
def ai_sdk(node: Path, server: HttpServer, thinking: HttpServer) -> Outcomes:
    more = {"THINKING_URL": f"{thinking.url}/v1"}
    return Outcomes(in_node(node, "ai_sdk_calls.mjs", server=server, **more))


# ---------------------------------------------------------------- openai


def test_openai_chat(openai: Outcomes) -> None:
    chat = openai["chat"]
    assert FORCED.fullmatch(chat["content"])
    assert (chat["role"], chat["finish_reason"], chat["model"]) == ("assistant", "stop", MODEL)
    usage = chat["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_openai_streamed_equals_whole(openai: Outcomes) -> None:
    streamed = openai["streamed"]
    assert streamed["pieces"] == streamed["summed"] == streamed["whole"]
    assert streamed["pieces"][0] and streamed["tokens"][0] == streamed["tokens"][1] > 0


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_openai_runs_tools(openai: Outcomes, way: str) -> None:
    ran = openai["tools"][way]
    assert FORCED.fullmatch(ran["answer"])
    (city,) = ran["cities"]
    assert city in CITIES and ran["results"] == [f"sunny in {city}"]
    assert ran["asked"] == [["user"], ["user", "assistant", "tool"]]


def test_openai_parses_a_reply_of_a_schema(openai: Outcomes) -> None:
    parsed = openai["parse"]
    assert parsed["side"] in ("left", "right") and parsed["metres"] in (1, 2)


def test_openai_embeddings_as_base64_and_as_numbers(openai: Outcomes) -> None:
    found = openai["embeddings"]
    assert found["sent"] == ["base64", "float"]
    assert found["default"] == found["float"]
    left, right, again = found["default"]
    assert left == again != right and len(left) == len(right) > 1


def test_openai_models_with_a_slash_in_the_name(openai: Outcomes, random_model: str) -> None:
    models = openai["models"]
    assert random_model in models["listed"]
    assert models["retrieved"] in (MODEL, random_model)


def test_openai_aborting_a_stream_frees_its_row(openai: Outcomes) -> None:
    assert openai["abort"] == {"running": 1, "aborted": True, "left": True}


OPENAI_ERRORS = {
    "key": ("AuthenticationError", 401, None),
    "name": ("NotFoundError", 404, "model"),
    "retrieve": ("NotFoundError", 404, None),
    "field": ("BadRequestError", 400, "temperature"),
    "regex": ("BadRequestError", 400, "regex"),
    "length": ("BadRequestError", 400, None),
}


@pytest.mark.parametrize("name", OPENAI_ERRORS)
def test_openai_errors(openai: Outcomes, name: str) -> None:
    found = openai["errors"][name]
    kind, status, param = OPENAI_ERRORS[name]
    assert (found["kind"], found["status"]) == (kind, status), found
    if param is not None:
        assert found["param"] == param
    if name == "length":
        assert found["code"] == "context_length_exceeded" and str(CONTEXT) in found["message"]
    assert found["type"] and found["message"]


def test_openai_asks_a_full_server_again(openai: Outcomes) -> None:
    retries = openai["retries"]
    assert FORCED.fullmatch(retries["text"])
    *refused, last = retries["statuses"]
    assert refused and set(refused) == {503} and last == 200
    assert set(retries["waits"][:-1]) == {"1"}


# ---------------------------------------------------------------- AI SDK


def test_ai_sdk_text(ai_sdk: Outcomes) -> None:
    text = ai_sdk["text"]
    assert FORCED.fullmatch(text["text"]) and text["reason"] == "stop"
    assert all(count > 0 for count in text["tokens"])


def test_ai_sdk_streamed_equals_whole(ai_sdk: Outcomes) -> None:
    streamed = ai_sdk["streamed"]
    assert streamed["streamed"] == streamed["whole"] and streamed["whole"][0]


def test_ai_sdk_objects(ai_sdk: Outcomes) -> None:
    found = ai_sdk["object"]
    for step in (found["object"], found["output"]):
        assert step.keys() == {"side", "metres"}
        assert step["side"] in ("left", "right") and step["metres"] in ("1", "2")
    assert found["choice"] in ("a", "b")


@pytest.mark.parametrize("way", ["tools", "streamedTools"])
def test_ai_sdk_tools_in_several_steps(ai_sdk: Outcomes, way: str) -> None:
    found = ai_sdk[way]
    assert FORCED.fullmatch(found["answer"])
    first, second = found["steps"]
    ((name, given),) = first["calls"]
    assert name == "weather" and given["city"] in CITIES
    assert first["reason"] == "tool-calls"
    assert first["results"] == [f"sunny in {given['city']}"]
    assert second == {"reason": "stop", "calls": [], "results": []}
    roles = [[role for role, _ in messages] for messages in found["sent"]]
    assert roles == [["user"], ["user", "assistant", "tool"]]
    assert found["sent"][1][1] == ["assistant", True]  # its content is null
    if way == "streamedTools":
        assert {"tool-input-delta", "tool-call", "tool-result", "text-delta"} <= {*found["kinds"]}


def test_ai_sdk_aborting_a_stream_frees_its_row(ai_sdk: Outcomes) -> None:
    abort = ai_sdk["abort"]
    assert (abort["running"], abort["last"], abort["idle"]) == (1, "abort", True)


def test_ai_sdk_embeddings(ai_sdk: Outcomes, openai: Outcomes) -> None:
    found = ai_sdk["vectors"]
    assert found["embeddings"] == openai["embeddings"]["float"]
    assert found["tokens"] > 0


def test_ai_sdk_reasoning(ai_sdk: Outcomes) -> None:
    found = ai_sdk["reasoning"]
    thought, answer = found["whole"]
    assert found["streamed"] == [thought, answer]
    assert thought and FORCED.fullmatch(answer) and found["tokens"] > 0
    assert found["sent"] == thought and FORCED.fullmatch(found["next"])


AI_SDK_ERRORS = {
    "key": (401, None),
    "name": (404, "model"),
    "field": (400, "regex"),
    "length": (400, None),
}


@pytest.mark.parametrize("name", AI_SDK_ERRORS)
def test_ai_sdk_errors(ai_sdk: Outcomes, name: str) -> None:
    found = ai_sdk["errors"][name]
    status, param = AI_SDK_ERRORS[name]
    assert (found["status"], found["isRetryable"]) == (status, False), found
    assert found["message"] == found["error"]["message"]
    if param is not None:
        assert found["error"]["param"] == param


# ---------------------------------------------------------------- the pages' programs

ANSWERED = FORCED.pattern
OBJECT = r"\{ mood: '(good|bad|mixed)', urgent: (true|false) \}"
SHOWS = {
    "openai-node.md": [
        ANSWERED,
        ANSWERED,
        rf"(?s)user .+\nassistant \[.+'weather'.+\]\ntool sunny in .*\nassistant {ANSWERED}",
        OBJECT,
        r"\d+ numbers, -?\d+\.\d+",
    ],
    "ai-sdk.md": [ANSWERED, f"2 steps: {ANSWERED}", OBJECT, "(yes|no), [a-z ]{3,40} 2 vectors"],
}
"""By page: what each of its programs prints."""


@pytest.mark.parametrize("page", SHOWS)
def test_the_programs_of_a_page(node: Path, server: HttpServer, page: str) -> None:
    programs = blocks(page, "js")
    assert len(programs) == len(SHOWS[page])
    for number, (program, shows) in enumerate(zip(programs, SHOWS[page], strict=True)):
        script = node / f"{page}.{number}.mjs"
        script.write_text(program.replace("default_model", MODEL))
        said = in_node(node, "--import", "./decided.mjs", script.name, server=server).strip()
        assert re.fullmatch(shows, said), said
