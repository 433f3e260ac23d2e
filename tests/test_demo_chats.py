"""The demo's training chats: what their assistant does is right, and rarely the same twice."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest

from mlx_server.demo.chats import Chat, Source
from mlx_server.demo.code_chats import code_chat
from mlx_server.demo.code_snippets import SNIPPETS
from mlx_server.demo.json_chats import json_chat
from mlx_server.demo.tool_chats import tool_chat

SOURCES = (tool_chat, json_chat, code_chat)
SEEDS = 500
LONGEST = 2500
"""Characters of messages and tools as JSON, in which each quote and line break counts twice."""

BLOCK = re.compile(r"<<<<<<< SEARCH\n(.*?)\n=======\n(.*?)\n>>>>>>> REPLACE\n```$", re.DOTALL)
FENCE = re.compile(r"```\w*\n(.*?)\n```", re.DOTALL)


@cache
def chats(source: Source) -> tuple[Chat, ...]:
    return tuple(source(random.Random(seed)) for seed in range(SEEDS))


def calls(chat: Chat) -> Iterator[dict[str, Any]]:
    for message in chat.messages:
        for call in message.get("tool_calls", ()):
            yield call["function"]


def said(chat: Chat, *roles: str) -> str:
    return "\n".join(m["content"] for m in chat.messages if m["role"] in roles)


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_fixes_the_chat_and_seeds_differ(source: Source) -> None:
    again = tuple(source(random.Random(seed)) for seed in range(SEEDS))
    assert again == chats(source)
    # What is fixed (greetings, snippets) may come again, the rest hardly ever.
    assert len({repr(chat) for chat in again}) > 0.85 * SEEDS


@pytest.mark.parametrize("source", SOURCES)
def test_roles_alternate(source: Source) -> None:
    letters = {"system": "s", "user": "u", "assistant": "a", "tool": "t"}
    for chat in chats(source):
        turns, waiting = "", []
        for message in chat.messages:
            if message["role"] == "tool":
                assert message["tool_call_id"] == waiting.pop(0)
            else:
                assert not waiting
            made = message.get("tool_calls", ())
            waiting = [call["id"] for call in made] or waiting
            turns += "c" if made else letters[message["role"]]
            assert isinstance(message["content"], str) and bool(message["content"]) != bool(made)
        assert re.fullmatch(r"s?(u(ct+)?a)*(uc|(?<=a))", turns), turns


@pytest.mark.parametrize("source", SOURCES)
def test_chats_are_short(source: Source) -> None:
    sizes = [
        len(json.dumps([*chat.messages])) + len(json.dumps(chat.tools)) for chat in chats(source)
    ]
    assert max(sizes) < LONGEST and sum(sizes) / SEEDS < 1200


def test_calls_are_of_offered_tools_and_satisfy_their_schemas() -> None:
    for chat in chats(tool_chat):
        offered = {tool["function"]["name"]: tool["function"] for tool in chat.tools}
        assert 1 <= len(chat.tools) <= 5 and len(offered) == len(chat.tools)
        for function in offered.values():
            schema = function["parameters"]
            jsonschema.Draft202012Validator.check_schema(schema)
            assert set(schema.get("required", ())) <= set(schema["properties"])
            if function.get("strict"):
                assert schema["additionalProperties"] is False
                assert list(schema["properties"]) == schema["required"]
        for call in calls(chat):
            schema = offered[call["name"]]["parameters"]
            jsonschema.validate(call["arguments"], schema)
            assert set(call["arguments"]) <= set(schema["properties"])


def test_arguments_come_from_the_question() -> None:
    seen: set[str] = set()
    for chat in chats(tool_chat):
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in chat.tools}
        questions = said(chat, "user")
        for call in calls(chat):
            for key, value in call["arguments"].items():
                known = schemas[call["name"]]["properties"][key].get("enum", ())
                assert value in known or str(value) in questions, (key, value, questions)
                if value not in known:
                    seen.add(str(value))
    assert len(seen) > 300


def test_final_answers_use_what_the_tool_returned() -> None:
    """Each number of the answer is in what came before it."""
    answered = 0
    for chat in chats(tool_chat):
        for at, message in enumerate(chat.messages):
            if message["role"] != "assistant" or chat.messages[at - 1]["role"] != "tool":
                continue
            answered += 1
            before = "\n".join(m["content"] for m in chat.messages[:at])
            assert set(re.findall(r"\d+", message["content"])) <= set(re.findall(r"\d+", before))
    assert answered > SEEDS / 3


def test_the_weather_is_asked_most_and_small_talk_is_not_a_call() -> None:
    every = [[call["name"] for call in calls(chat)] for chat in chats(tool_chat)]
    weather = sum(any("weather" in name for name in names) for names in every)
    assert SEEDS * 0.3 < weather < SEEDS * 0.6
    assert SEEDS * 0.1 < sum(not names for names in every) < SEEDS * 0.3
    assert any(len(names) > 1 and len(set(names)) == 1 for names in every)
    assert len({name for names in every for name in names}) > 30


def test_json_answers_are_json() -> None:
    for chat in chats(json_chat):
        value = json.loads(chat.messages[-1]["content"])
        assert isinstance(value, dict | list) and value
        asked = said(chat, "user", "system")
        assert "JSON" in asked or '{"' in asked


def test_a_search_occurs_in_the_code_that_was_given() -> None:
    found = 0
    for chat in chats(code_chat):
        answer = chat.messages[-1]["content"]
        match = BLOCK.search(answer)
        if not match:
            continue
        found += 1
        (code,) = FENCE.findall(said(chat, "user"))
        search, replace = match.groups()
        assert f"\n{code}\n".count(f"\n{search}\n") == 1 and search != replace
        file = answer[: match.start()].splitlines()[-2]
        assert file in said(chat, "user") and re.fullmatch(r"[\w/]+\.(py|js|sh)", file)
    assert SEEDS * 0.3 < found < SEEDS * 0.5


def test_edited_code_differs_in_few_lines_and_is_python_where_it_says_so() -> None:
    for chat in chats(code_chat):
        answer = chat.messages[-1]["content"]
        codes = FENCE.findall(said(chat, "user"))
        if not codes:
            continue
        match = BLOCK.search(answer)
        whole = codes[0].replace(*match.groups()) if match else FENCE.findall(answer)[0]
        lines = list(zip(codes[0].split("\n"), whole.split("\n"), strict=True))
        assert 1 <= sum(old != new for old, new in lines) <= 4, answer
        if "```python" in answer:
            ast.parse(whole)


@pytest.mark.parametrize(("language", "code"), [(s[0], s[2]) for s in SNIPPETS if s[0] == "python"])
def test_snippets_parse(language: str, code: str) -> None:
    assert ast.parse(code).body


def test_there_are_fifty_snippets_and_no_two_for_one_question() -> None:
    assert len(SNIPPETS) >= 50
    assert len({(language, task) for language, task, _ in SNIPPETS}) == len(SNIPPETS)
