"""What the demo learns about the server is true: names exist, no question has two answers."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from dataclasses import fields
from itertools import chain
from typing import Any

import pytest

from mlx_server import compat, flags
from mlx_server.api import DIALECTS
from mlx_server.config import Config, default_text, env_name, flag_name
from mlx_server.demo import corpus

# Commands beside the settings, and flags of programs that answers name: pip, curl, aider, mlx_lm.
COMMANDS = {"--list-models", "--print-completion", "--log-format", "--help", "--version"}
OTHERS = {"--force-reinstall", "--no-deps", "--quick", "--hf-path"}
PAGES = {"/", "/engine", "/docs", "/openapi.json", "/completion.js"}
VARIABLES = {
    "HF_TOKEN", "HF_HUB_OFFLINE", "OPENAI_API_BASE", "OPENAI_API_KEY", "OPENAI_BASE_URL",
    "LD_PRELOAD", "MLX_SERVER_URL",
}  # fmt: skip


SERVER, SETTINGS, _ = corpus.load()
BLOCKS = [(questions, answer) for answer, questions in (*SERVER.answers, *SETTINGS.answers)]
ANSWERS = [answer for _, answer in BLOCKS]
TEXTS = [*chain.from_iterable(questions for questions, _ in BLOCKS), *ANSWERS]


def _flags() -> set[str]:
    known = set(flags.parser()._option_string_actions) | COMMANDS | OTHERS
    known |= {"--no-" + flag_name(f)[2:] for f in fields(Config)}
    return known | {flag for row in (*compat.IGNORED, *compat.REFUSED) for flag in row.flags}


def _variables() -> set[str]:
    ours = {env_name(f) for f in fields(Config)}
    theirs = {name for f in fields(Config) for name in f.metadata["env"]}
    tables = (*compat.TRANSLATED, *compat.IGNORED, *compat.REFUSED)
    return ours | theirs | {name for row in tables for name in row.env} | VARIABLES


def _is_route(path: str) -> bool:
    if path in PAGES:
        return True
    patterns = {route.path for dialect in DIALECTS for route in dialect.routes}
    return any(
        path == pattern or re.fullmatch(re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(pattern)), path)
        for pattern in patterns
    )


def _plain(question: str) -> str:
    """A question as a hurried reader takes it: the mark at its end does not count, nor does case
    but in flags: -c and -C are two."""
    words = question.rstrip("?!. ").split()
    return " ".join(word if word.startswith("-") else word.lower() for word in words)


def test_there_is_enough_of_it() -> None:
    assert len(SERVER.answers) >= 300
    assert min(len(questions) for _, questions in SERVER.answers) >= 4


def test_flags_exist() -> None:
    known = _flags()
    named = {flag for text in TEXTS for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)}
    assert named - known == set()


def test_commands_parse() -> None:
    """Every `mlx_server …` of an answer is one that the command line takes."""
    commands = [c for answer in ANSWERS for c in re.findall(r"`mlx_server ([^`]+)`", answer)]
    assert len(commands) > 150
    for command in commands:
        words = shlex.split(command)
        if words[0] in {"chat", "serve"} | COMMANDS or not words[0].startswith("-"):
            continue
        flags.parser().parse_args(compat.tidy(words))


def test_paths_are_routes() -> None:
    missing = set()
    for text in TEXTS:
        text = re.sub(r"https?://(?!127\.0\.0\.1)\S+", "", text)
        text = re.sub(r"\bhttp://127\.0\.0\.1:\d+", " ", text)
        candidates = re.findall(r"(?<![\w./$@~}:*-])/[a-z][\w./{}-]*[\w}]", text)
        ends = ("/usr/", "/tmp/", "/dev/")
        named = [path for path in candidates if not path.startswith(ends) and path != "/v1"]
        missing |= {path for path in named if not _is_route(path)}
    assert missing == set()


def test_variables_exist() -> None:
    formats = {"Q4_K_M", "Q4_K", "Q6_K", "Q5_K", "Q4_0", "Q4_1", "Q8_0"}
    pattern = r"\b(?:[A-Z][A-Z0-9]*_)+[A-Z0-9]+\b"
    named = {name for text in TEXTS for name in re.findall(pattern, text)}
    assert named - formats - _variables() == set()


def test_no_question_has_two_answers() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for questions, answer in BLOCKS:
        for question in questions:
            found[_plain(question)].add(answer)
    assert {question: len(a) for question, a in found.items() if len(a) > 1} == {}


@pytest.mark.parametrize("f", fields(Config), ids=lambda f: f.name)
def test_settings_are_told_of_as_they_are(f: Any) -> None:
    """A setting that came after the training is not known yet; of the others every name, the
    default and the examples hold."""
    told = dict(SETTINGS.pairs)
    flag, variable = flag_name(f), env_name(f)
    if f"What does {flag} do?" not in told:
        pytest.skip("the demo was trained before this setting was there")
    assert told[f"What does {flag} do?"].startswith(flag)
    assert default_text(f) in told[f"What is the default of {flag}?"]
    for name in f.metadata["flags"]:
        assert flag in told[f"What does {name} do?"]
    shown = " ".join(answer for answer in told.values() if flag in answer)
    for command in re.findall(rf"`mlx_server ({flag}(?: [^`]*)?)`", shown):
        given = flags.parser().parse_args(compat.tidy(shlex.split(command)))
        assert f.name in vars(given)
    assignment = shlex.split(told[f"Which environment variable sets {flag}?"].split("`")[1])[0]
    name, value = assignment.split("=", 1)
    assert name == variable
    f.metadata["convert"](value)
    assert not f.metadata["choices"] or value in f.metadata["choices"]
