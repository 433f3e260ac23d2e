"""litellm, llm and langchain-openai themselves, and what their pages say, on a real server.

`.ci/clients FOLDER python` installs them; with MLX_SERVER_TEST_CLIENTS=FOLDER they are tested.
The model is too small to mean what it writes: patterns, schemas and seeds force what matters.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_programs import SCRIPTS, blocks, need, run, surroundings
from relay import Relay, relay_to

from mlx_server.server.http import HttpServer

NAME = "mlx-community/Demo-4bit"
KEY = "not-needed"  # as in the pages, and here it is needed
SIDE = r"(left|right) \d\d"

TOKENIZERS = "lib/python*/site-packages/litellm/litellm_core_utils/tokenizers"
"""Where litellm has OpenAI's tokenizer, which langchain would fetch from the network."""


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(api_key=(KEY,), alias=(NAME,), strict_model_names=True, ctx_size=4096)


@pytest.fixture(scope="module")
def lenient(serve) -> HttpServer:
    """Any name will do; a model that does not come to an end is stopped."""
    return serve(api_key=(KEY,), max_tokens=100)


@pytest.fixture(scope="module", params=["litellm", "langchain"])
def told(request, server: HttpServer, tmp_path_factory) -> dict[str, Any]:
    """What came of each function of the program's script; a failed one has an "error"."""
    python = need("python")
    (tokenizers,) = python.glob(TOKENIZERS)
    home = tmp_path_factory.mktemp("home")
    env = surroundings(
        home,
        OPENAI_BASE_URL=f"{server.url}/v1",
        OPENAI_API_KEY=KEY,
        MODEL=NAME,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        TIKTOKEN_CACHE_DIR=str(tokenizers),
    )
    script = SCRIPTS / f"{request.param}_calls.py"
    said = run([python / "bin/python", script], cwd=home, env=env)
    return json.loads(said.splitlines()[-1])


def value(told: dict[str, Any], *names: str) -> Any:
    """The value of that of the functions which the program's script has."""
    (name,) = [name for name in names if name in told]
    assert "value" in told[name], told[name]
    return told[name]["value"]


# ---------------------------------------------------------------- litellm and langchain


def test_a_reply(told: dict[str, Any]) -> None:
    reply = value(told, "completion", "invoke")
    assert re.fullmatch(SIDE, reply["text"])
    read, written = (
        reply["usage"].get(a, reply["usage"].get(b))
        for a, b in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    assert read > 3 and written > 1 and reply["usage"]["total_tokens"] == read + written


def test_streamed_is_whole(told: dict[str, Any]) -> None:
    reply = value(told, "streamed")
    assert reply["streamed"] == reply["whole"] and reply["whole"][1] == "length"
    assert reply["tokens"] == [24, 24] and reply["chunks"] > 4


def test_a_call_its_result_and_the_answer(told: dict[str, Any]) -> None:
    reply = value(told, "tools")
    assert reply["name"] == "weather" and reply["arguments"]["city"] in ("Bern", "Rome")
    assert re.fullmatch(SIDE, reply["answer"])


def test_a_streamed_call_is_the_whole_one(told: dict[str, Any]) -> None:
    streamed, whole = value(told, "streamed_tools")
    assert streamed == whole and streamed[0] == "weather"


def test_structured_replies(told: dict[str, Any]) -> None:
    names = {"schema", "json_schema", "json_schema_strict", "function_calling"} & told.keys()
    assert names
    for name in names:
        step = value(told, name)
        assert step["side"] in ("left", "right") and step["metres"] in (1, 2, 3)


def test_eight_at_once_get_what_each_gets_alone(told: dict[str, Any]) -> None:
    assert value(told, "at_once", "batch") == ["same"] * 8


def test_vectors(told: dict[str, Any]) -> None:
    left, right, *again = value(told, "embedding", "embeddings")
    assert len(left) == len(right) > 10 and again and left != right
    for other in again:
        assert math.dist(other, left) < 1e-3
    assert all(math.isclose(math.hypot(*v), 1, abs_tol=1e-3) for v in (left, right))


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("key", "AuthenticationError", "Invalid API Key"),
        ("name", "NotFoundError", "nobody/nothing"),
        ("field", "BadRequestError", "regex"),
        ("length", "BadRequestError", "4096 tokens"),
    ],
)
def test_errors_are_of_the_kind_that_programs_catch(
    told: dict[str, Any], fault: str, kind: str, says: str
) -> None:
    *kinds, text = value(told, "errors")[fault]
    assert kind in kinds and says in text, (kinds, text)
    if fault == "length":
        assert {"ContextWindowExceededError", "ContextOverflowError"} & set(kinds)


def test_what_only_one_of_them_has(told: dict[str, Any]) -> None:
    if "text_completion" in told:
        assert value(told, "text_completion") == {"object": "text_completion", "tokens": 5}
        return
    assert re.fullmatch(SIDE, value(told, "asynchronous"))
    *kinds, text = value(told, "embeddings_of_token_ids")
    assert "BadRequestError" in kinds and "not in the vocabulary" in text


# ---------------------------------------------------------------- the pages


def run_python_page(page: str, python: Path | str, server: HttpServer, home: Path) -> str:
    """What all the Python of a page prints, run as one program."""
    program = home / "page.py"
    program.write_text("\n".join(blocks(page, "python", server.url)))
    env = surroundings(home, LITELLM_LOCAL_MODEL_COST_MAP="True")
    return run([python, program], cwd=home, env=env)


VECTORS = r"2 vectors of \d+ numbers"
PRINTS = {
    "litellm.md": r"verdict='(yes|no|unclear)'\nweather \{'city': '(Bern|Rome)'\}\n" + VECTORS,
    "langchain.md": r"(?s)verdict='(yes|no|unclear)'\n\[.*\]\n\d+ numbers\nsunny in (Bern|Rome)\n",
}
OPENAI_PRINTS = (
    r"verdict='(yes|no|unclear)' certainty='(low|high)'\ncity='(Bern|Rome|Oslo)'\n"
    r"(yes|no), [a-z]{3,9}\ntemperature is wrong: .*`temperature`.*\n" + VECTORS
)


@pytest.mark.parametrize("page", PRINTS)
def test_a_pages_python_runs(lenient: HttpServer, tmp_path: Path, page: str) -> None:
    said = run_python_page(page, need("python") / "bin/python", lenient, tmp_path)
    assert re.search(PRINTS[page], said), said


@pytest.mark.parametrize("part", [None, "python"])
def test_the_openai_page_runs(lenient: HttpServer, tmp_path: Path, part: str | None) -> None:
    """With the tests' own version of the package, and with that of litellm and langchain."""
    python = sys.executable if part is None else need(part) / "bin/python"
    said = run_python_page("openai-python.md", python, lenient, tmp_path)
    assert re.search(OPENAI_PRINTS, said), said


# ---------------------------------------------------------------- llm


def force(body: dict[str, Any]) -> dict[str, Any]:
    """A call first where there are tools, and short answers: llm cannot ask for them itself."""
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        return body | {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    if "response_format" in body or "messages" not in body:
        return body
    return body | {"regex": "(left|right) [0-9]{2}", "tool_choice": "none"}


@pytest.fixture(scope="module")
def llm_page(lenient: HttpServer, tmp_path_factory) -> Iterator[tuple[list[str], Relay]]:
    """What each command on llm's page prints, and what they asked."""
    programs = need("python") / "bin"
    home = tmp_path_factory.mktemp("home")
    with relay_to(lenient.url, force) as relay:
        env = surroundings(home, programs, LLM_USER_PATH=str(home))
        script = "\necho ----\n".join(
            # One command prints what comes before the next mark.
            re.sub(r"^(?=llm )", "echo ----\n", block, flags=re.MULTILINE)
            for block in blocks("llm.md", "bash", relay.url)
        )
        said = run(["bash", "-euo", "pipefail", "-c", script], cwd=home, env=env)
        yield [part.strip() for part in said.split("----\n") if part.strip()], relay


def test_the_llm_page_runs(llm_page: tuple[list[str], Relay]) -> None:
    said, _ = llm_page
    first, whole, again, answer, tool, models, endpoint, vector = said
    for text in (first, whole, again, endpoint):
        assert re.fullmatch(SIDE, text)
    assert json.loads(answer)["verdict"] in ("yes", "no", "unclear")
    assert re.search(SIDE + r"$", tool)
    assert models.split() == ["demo"]
    assert len(json.loads(vector)) > 10


def test_llm_asks_as_its_page_says(llm_page: tuple[list[str], Relay]) -> None:
    _, relay = llm_page
    assert set(relay.statuses) == {200}
    assert {headers["authorization"] for headers in relay.headers} == {f"Bearer {KEY}"}
    _, whole, again, answer, call, result, *_ = relay.sent
    assert [body["stream"] for body in relay.sent[:6]] == [True, False] + [True] * 4
    assert [m["role"] for m in whole["messages"]] == ["system", "user"]
    assert (whole["temperature"], whole["max_tokens"]) == (0, 200)
    assert [m["role"] for m in again["messages"]] == ["system", "user", "assistant", "user"]
    assert re.fullmatch(SIDE, again["messages"][2]["content"])
    assert answer["response_format"]["type"] == "json_schema"
    assert call["tools"][0]["function"]["name"] == "weather"
    made, returned = result["messages"][-2:]
    assert made["tool_calls"][0]["function"]["name"] == "weather"
    assert returned["role"] == "tool" and returned["content"].startswith("sunny in ")


def test_llm_says_what_is_wrong_with_its_key(lenient: HttpServer, tmp_path: Path) -> None:
    llm = need("python") / "bin/llm"
    ask = [llm, "openai", "endpoint", f"{lenient.url}/v1", "-m", "x", "--key", "wrong", "Hello"]
    env = surroundings(tmp_path, LLM_USER_PATH=str(tmp_path))
    assert run(ask, cwd=tmp_path, env=env, code=1) == ""
