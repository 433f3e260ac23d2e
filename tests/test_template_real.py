"""Tools, calls and results in the templates of models in use."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from template_cases import (
    ANSWER,
    ASKED,
    CALLS,
    GENERIC,
    HISTORIES,
    NEXT,
    REAL,
    RESULTS,
    SHARED,
    SYSTEM,
    TOOLS,
    call,
    made_of,
    result,
    say,
    template_of,
    words_of,
    words_of_tools,
)
from transformers.utils import chat_template_utils

from mlx_server.core import ChatPrompt, Tool, ToolCall


@REAL
def test_everything_is_shown_with_tools_and_without(path: Path) -> None:
    template = template_of(path)
    for shape, messages in HISTORIES.items():
        text = template.render(messages, tools=TOOLS)
        wanted = words_of(messages) + words_of_tools(path.stem)
        assert [word for word in wanted if word not in text] == [], shape
        text = template.render(messages)
        assert [word for word in words_of(messages) if word not in text] == [], shape


@REAL
def test_which_templates_know_tools(path: Path) -> None:
    template = template_of(path)
    assert template.knows_tools == (path.stem not in GENERIC)
    asked_for_generic_calls = "rite several of these" in template.render([ASKED], tools=TOOLS)
    assert asked_for_generic_calls != template.knows_tools


@REAL
def test_results_come_in_the_order_of_their_calls(path: Path) -> None:
    template = template_of(path)
    in_order, reverse = HISTORIES["results last"], HISTORIES["results in another order"]
    assert template.render(reverse, tools=TOOLS) == template.render(in_order, tools=TOOLS)


@REAL
def test_arguments_that_are_no_object_are_shown(path: Path) -> None:
    for arguments in ("{bro_ken", "[bro_ken]", '"bro_ken"', '["bro_ken"]'):
        broken = replace(call("a"), arguments=arguments)
        messages = [ASKED, say("assistant", "", tool_calls=(broken,)), result("a"), ANSWER, NEXT]
        assert "bro_ken" in template_of(path).render(messages, tools=TOOLS), arguments


@REAL
def test_reasoning_is_never_refused_and_hides_nothing(path: Path) -> None:
    template = template_of(path)
    for shape, messages in HISTORIES.items():
        thought = [
            replace(m, reasoning="thought_r") if m.role == "assistant" else m for m in messages
        ]
        text = template.render(thought, tools=TOOLS)
        assert [word for word in words_of(messages) if word not in text] == [], shape


@REAL
def test_no_template_refuses_an_effort(path: Path) -> None:
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        text = template_of(path).render([SYSTEM, ASKED], tools=TOOLS, reasoning_effort=effort)
        assert "asked_u" in text, effort


MESSY = {
    "type": "object",
    "$schema": "http://json-schema.org/draft-07/schema#",
    "properties": {
        "list_p": {"type": "array", "items": {"type": "string"}},
        "any_p": {},
        "union_p": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "types_p": {"type": ["string", "null"], "description": "or null"},
        "enum_p": {"enum": ["x", 1, None]},
        "ref_p": {"$ref": "#/$defs/node"},
        "map_p": {"type": "object", "additionalProperties": True},
        "nulls_p": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "items_p": {"type": "array", "items": True},
        "default_p": {"type": "integer", "default": 3, "minimum": 0},
    },
    "additionalProperties": False,
    "$defs": {"node": {"type": "object"}},
}


@REAL
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Tool("bare_t"), ["bare_t"]),
        (Tool("bare_t", "about_t", {}), ["bare_t", "about_t"]),
        (Tool("bare_t", "about_t", {"type": "object"}), ["bare_t", "about_t"]),
        (Tool("messy_t", "about_t", MESSY), ["messy_t", "about_t", *MESSY["properties"]]),
        (Tool("quoted_t", 'say "<é>"\nthere'), ["quoted_t", "there"]),
    ],
)
def test_tools_as_clients_send_them(path: Path, given: Tool, words: list[str]) -> None:
    template = template_of(path)
    text = template.render([SYSTEM, ASKED], tools=[given])
    assert ("rite several of these" in text) == (not template.knows_tools)
    assert [word for word in [*words, "rule_s", "asked_u"] if word not in text] == []


@pytest.fixture(scope="module")
def captured() -> list[ChatPrompt]:
    """The requests of opencode, as the chat API hands them on."""
    path = SHARED / "clients/opencode.json"
    if not path.is_file():
        pytest.skip("no shared captures beside")
    prompts = []
    for request in json.loads(path.read_text(encoding="utf-8"))["requests"]:
        body = request["body"]
        messages = tuple(
            say(
                wire["role"],
                wire["content"],
                tool_call_id=wire.get("tool_call_id"),
                tool_calls=tuple(
                    ToolCall(made["id"], made["function"]["name"], made["function"]["arguments"])
                    for made in wire.get("tool_calls", ())
                ),
            )
            for wire in body["messages"]
        )
        tools = tuple(Tool(**entry["function"]) for entry in body.get("tools", ()))
        prompts.append(ChatPrompt(messages, tools=tools))
    return prompts


@REAL
def test_opencodes_requests_are_shown_whole(path: Path, captured: list[ChatPrompt]) -> None:
    template = template_of(path)
    assert any(message.tool_calls for prompt in captured for message in prompt.messages)
    for prompt in captured:
        # Line by line, as templates trim texts and indent or quote results.
        text = template.render(prompt.messages, tools=prompt.tools)
        lines = {line.strip() for m in prompt.messages for line in m.text.splitlines()}
        escaped = {line: json.dumps(line, ensure_ascii=False)[1:-1] for line in lines}
        assert [k for k, v in escaped.items() if k not in text and v not in text] == []
        assert [tool.name for tool in prompt.tools if tool.name not in text] == []
        calls = [made for message in prompt.messages for made in message.tool_calls]
        values = {v for made in calls for v in json.loads(made.arguments).values()}
        assert [value for value in values if value not in text] == []


@REAL
def test_one_rendering_a_request_and_always_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = template_of(path)
    messages = HISTORIES["an answer and a new question"]
    expected = made_of(path).render(messages, tools=TOOLS)
    real, calls = chat_template_utils.render_jinja_template, []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", counted)
    assert template.render(messages, tools=TOOLS) == expected
    assert len(calls) == 1
    calls.clear()
    made_of(path)
    assert len(calls) <= 60  # a rendering takes a tenth of a millisecond


@pytest.mark.parametrize("name", ["Kimi-K2-Instruct", "Kimi-K2-Thinking"])
def test_kimis_calls_are_counted_as_the_model_counts_them(name: str) -> None:
    """Its template keeps the ids in a list that the sandbox does not let it change."""
    path = SHARED / "templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip("the templates are not here")
    more = say("assistant", "", tool_calls=(replace(call("a"), id="again"),))
    answer = say("tool", "result_c", tool_call_id="again")
    messages = [ASKED, CALLS, *RESULTS, more, answer]
    text = template_of(path).render(messages, tools=TOOLS)
    ids = re.findall(r"(?:call_begin\|>|Return of )(functions\.\w+:\d)", text)
    first, second, third = "functions.tool_a:0", "functions.tool_b:1", "functions.tool_a:2"
    assert ids == [first, second, first, second, third, third]
