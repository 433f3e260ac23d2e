"""aider itself edits and commits. Skipped where it is not installed.

It wants an environment of its own: `.ci/clients FOLDER aider` makes one, and
MLX_SERVER_TEST_CLIENTS=FOLDER finds it there; or `pip install aider-chat` somewhere, and
either put it on the PATH or name it in MLX_SERVER_TEST_AIDER.

The bundled model does not know how to edit. A grammar has it write an edit; what aider, git
and the server make of that is what is tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from client_programs import PAGES, SCRIPTS, blocks, folder, run, surroundings
from model_folders import write_random
from relay import Relay, relay_to

from mlx_server.server.http import HttpServer

INSTALLED = folder("aider")
AIDER = (
    os.environ.get("MLX_SERVER_TEST_AIDER")
    or (INSTALLED and str(INSTALLED / "bin/aider"))
    or shutil.which("aider")
)
EXAMPLES = PAGES.parent
GRAMMARS = {"diff": EXAMPLES / "edit.gbnf", "whole": SCRIPTS / "whole.gbnf"}
"""By edit format: what holds a reply to it."""

MESSAGE = "Fix the greeting for [a-z]{3,8}"
KEY = "not-needed"  # as in the page, and here it is needed

pytestmark = pytest.mark.skipif(AIDER is None, reason="aider is not installed")


@pytest.fixture(scope="module")
def server(serve) -> HttpServer:
    return serve(api_key=(KEY,))


def turn(server: HttpServer, **environ: str) -> str:
    """What examples/aider.sh says."""
    environ = {
        **os.environ,
        "MLX_SERVER_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "PATH": f"{Path(AIDER).parent}{os.pathsep}{os.environ['PATH']}",
        **environ,
    }
    found = subprocess.run(
        ["bash", str(EXAMPLES / "aider.sh")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    assert "token limit" not in said
    return said


def test_a_turn_ends_without_a_token_limit_report(server: HttpServer) -> None:
    assert "received." in turn(server)


def test_with_a_grammar_a_turn_ends_in_an_edit_and_a_commit(server: HttpServer) -> None:
    said = turn(server, GRAMMAR=str(EXAMPLES / "edit.gbnf"))
    assert "Applied edit to hello.py" in said
    _, file = said.split("--- hello.py\n")
    edited, commits = file.split("--- commits\n")
    assert re.fullmatch(r'print\("(Hello|Hi|Good morning), [a-z]{2,10}!"\)\n', edited)
    made, first = commits.splitlines()[:2]
    assert re.search(r"Fix [a-z ]+", made) and first == "Say hello"


# ---------------------------------------------------------------- the page's settings


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> str:
    """A model that reads aider's long prompts in no time, and under a grammar writes as well."""
    return str(write_random(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def quick(serve, random_model: str) -> HttpServer:
    return serve(model=random_model, api_key=(KEY,))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit of a file with a typo, by somebody with a name."""
    found = tmp_path / "repository"
    found.mkdir()
    (found / "hello.py").write_text('print("Helo, world!")\n')
    (found / "other.py").write_text("x = 1\n")
    git(found, "init", "--quiet")
    git(found, "config", "user.name", "Ada Example")
    git(found, "config", "user.email", "ada@localhost")
    git(found, "add", ".")
    git(found, "commit", "--quiet", "-m", "Say hello")
    return found


def git(repository: Path, *arguments: str) -> str:
    env = surroundings(repository.parent)
    return run(["git", *arguments], cwd=repository, env=env)


def held_to(edit_format: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Adds to aider's requests what the bundled model must write: an edit, then a message."""
    edit = {"grammar": GRAMMARS[edit_format].read_text()}
    return lambda body: body | (edit if body.get("stream") else {"regex": MESSAGE})


def edit_with(relay: Relay, repository: Path, *options: str) -> str:
    """What aider says of one turn, set up as its page says."""
    for name, text in zip(
        (".aider.conf.yml", ".aider.model.settings.yml"),
        blocks("aider.md", "yaml", relay.url),
        strict=True,
    ):
        (repository / name).write_text(text)
    (metadata,) = blocks("aider.md", "json")
    (repository / ".aider.model.metadata.json").write_text(metadata)
    still = "--yes-always --no-check-update --no-pretty --no-fancy-input --no-show-release-notes"
    command = [AIDER, *still.split(), *options, "--message", "Fix the typo", "hello.py"]
    env = surroundings(repository.parent, LITELLM_LOCAL_MODEL_COST_MAP="True")
    said = run(command, cwd=repository, env=env)
    assert "token limit" not in said and "Unknown context window" not in said
    return said


def check_commit(relay: Relay, repository: Path) -> None:
    """The file is edited; the commit has the file, the author and the second reply as message."""
    edited = (repository / "hello.py").read_text()
    assert re.fullmatch(r'print\("(Hello|Hi|Good morning), [a-z]{2,10}!"\)\n', edited)
    assert git(repository, "show", "HEAD:hello.py") == edited
    author, committer, subject, *rest = git(
        repository, "log", "-1", "--format=%an <%ae>%n%cn%n%B"
    ).splitlines()
    assert (author, committer) == ("Ada Example <ada@localhost>", "Ada Example")
    assert re.fullmatch(MESSAGE, subject)
    assert [line for line in rest if line] == [
        "Co-authored-by: aider (openai/default_model) <aider@aider.chat>"
    ]
    assert git(repository, "diff", "--name-only", "HEAD~1", "HEAD").split() == ["hello.py"]
    assert git(repository, "log", "--format=%s").splitlines()[1:] == ["Say hello"]
    assert git(repository, "status", "--porcelain", "--untracked-files=no") == ""
    assert [bool(body.get("stream")) for body in relay.sent[-2:]] == [True, False]
    assert {h["authorization"] for h in relay.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("edit_format", GRAMMARS)
def test_an_edit_is_applied_and_committed(
    quick: HttpServer, repository: Path, edit_format: str
) -> None:
    with relay_to(quick.url, held_to(edit_format)) as relay:
        said = edit_with(relay, repository, "--edit-format", edit_format)
    assert "Applied edit to hello.py" in said
    check_commit(relay, repository)
    assert relay.statuses == [200, 200]


def test_a_full_server_is_asked_again(serve, random_model: str, repository: Path) -> None:
    """Refused with 503 and Retry-After while two others fill the server; they leave, it goes on."""
    server = serve(model=random_model, api_key=(KEY,), max_batch_size=1, max_queue=1)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    endless = {"messages": [{"role": "user", "content": "hi"}], "extra_body": {"ignore_eos": True}}
    others = [client.chat.completions.create(model="x", stream=True, **endless)]
    next(iter(others[0]))
    others.append(client.chat.completions.create(model="x", stream=True, **endless))
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model="x", **endless)
    assert refused.value.response.headers["retry-after"] == "1"

    def leave(status: int) -> None:
        while status == 503 and others:
            others.pop().close()

    with relay_to(server.url, held_to("diff"), leave) as relay:
        edit_with(relay, repository, "--edit-format", "diff")
    assert relay.statuses[0] == 503 and relay.statuses[-2:] == [200, 200]
    assert relay.sent[0] == relay.sent[1]
    check_commit(relay, repository)
