"""The messages of a chat: what comes in, and what the template is given."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_server.api.openai_chat import OpenAIChat
from mlx_server.core import Message, TextPart, ToolCall
from mlx_server.errors import RequestError

HI = {"role": "user", "content": "hi"}
SAID = Message("assistant", (TextPart("a"),))


def read(*messages: Any) -> tuple[Message, ...]:
    return OpenAIChat().parse({"messages": list(messages)}).prompts[0].messages


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "a"}, Message("user", (TextPart("a"),))),
        ({"role": "developer", "content": ""}, Message("developer", (TextPart(""),))),
        ({"role": "user", "content": None}, Message("user")),
        ({"role": "assistant"}, Message("assistant")),
        (
            {"role": "user", "content": [text_part("a"), text_part("b")]},
            Message("user", (TextPart("a"), TextPart("b"))),
        ),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            Message("user", (TextPart("a"),)),
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            Message("assistant", (TextPart("no"),)),
        ),
        (
            {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "c"},
            Message("tool", (TextPart("4"),), tool_call_id="c"),
        ),
        (
            {"role": "function", "name": "f", "content": "4"},
            Message("tool", (TextPart("4"),), "f"),
        ),
        ({"role": "tool", "content": "4"}, Message("tool", (TextPart("4"),))),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            Message("assistant", (TextPart("a"),), reasoning="hm"),
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "hm"},
            Message("assistant", (TextPart("a"),), reasoning="hm"),
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            Message("assistant", tool_calls=(ToolCall("c", "f", "{}"),)),
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}],
                "function_call": None,
            },
            Message("assistant", tool_calls=(ToolCall("c", "f", "{}"),)),
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": "ü"}}}],
            },
            Message("assistant", tool_calls=(ToolCall("c", "f", '{"a": "ü"}'),)),
        ),
        ({"role": "assistant", "content": "a", "tool_calls": None}, SAID),
    ],
)  # fmt: skip
def test_messages_keep_their_parts(message: dict, expected: Message) -> None:
    assert read(message) == (expected,)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[1]"),
        ({"content": "a"}, "messages[1].role"),
        ({"role": "robot", "content": "a"}, "messages[1].role"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": "\ud83d"}, "messages[1].content"),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"text": "a"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "file"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": "a", "name": 1}, "messages[1].name"),
        ({"role": "tool", "content": "a", "tool_call_id": 1}, "messages[1].tool_call_id"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].id"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
            "messages[1].tool_calls[0].type",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"],
             "arguments": ["a"]}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"],
             "arguments": {"a": "\ud83d"}}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "function_call": "f"}, "messages[1].function_call"),
        ({"role": "assistant", "function_call": {}}, "messages[1].function_call.name"),
        (
            {"role": "assistant", "tool_calls": [CALL], "function_call": CALL["function"]},
            "messages[1].function_call",
        ),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named_by_its_path(message: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(HI, message)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


# ---------------------------------------------------------------- calls and their results


def calls(*pairs: tuple[str, str]) -> dict:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
            for call_id, name in pairs
        ],
    }


def result(call_id: str | None = None, **fields: Any) -> dict:
    return {"role": "tool", "content": "4", "tool_call_id": call_id, **fields}


@pytest.mark.parametrize(
    ("conversation", "ids"),
    [
        ([result()], [None]),
        ([calls(("a", "f")), result("a")], ["a"]),
        ([calls(("a", "f")), result("other")], ["other"]),
        ([calls(("a", "f")), result()], ["a"]),
        ([calls(("a", "f")), result(), result()], ["a", None]),
        ([calls(("a", "f"), ("b", "g")), result(), result()], ["a", "b"]),
        ([calls(("a", "f"), ("b", "g")), result("a"), result()], ["a", "b"]),
        ([calls(("a", "f"), ("b", "g")), result("b"), result()], ["b", "a"]),
        ([calls(("a", "f"), ("b", "g")), result(name="g"), result()], ["b", "a"]),
        ([calls(("a", "f")), result(name="g")], [None]),
        ([calls(("a", "f")), HI, result()], ["a"]),
        ([calls(("a", "f")), calls(("b", "f")), result()], ["b"]),
        ([calls(("a", "f")), result(), calls(("b", "f")), result()], ["a", "b"]),
    ],
)
def test_a_result_without_an_id_answers_the_next_open_call(conversation: list, ids: list) -> None:
    assert [m.tool_call_id for m in read(*conversation) if m.role == "tool"] == ids


def older(*names: str) -> list[dict]:
    """A conversation that called these functions, one after the other, in the older form."""
    turns: list[dict] = [HI]
    for name in names:
        call = {"name": name, "arguments": ""}
        turns.append({"role": "assistant", "content": None, "function_call": call})
        turns.append({"role": "function", "name": name, "content": "4"})
    return turns


def test_functions_become_tools_whose_results_point_at_their_calls() -> None:
    _, first, answer, second, other = read(*older("f", "g"))
    for call, back, name in ((first, answer, "f"), (second, other, "g")):
        (made,) = call.tool_calls
        assert (made.name, made.arguments, call.parts) == (name, "{}", ())
        assert (back.role, back.name, back.tool_call_id) == ("tool", name, made.id)
        assert len(made.id) == 9 and made.id.isalnum()  # Mistral's templates ask for it
    assert first.tool_calls[0].id != second.tool_calls[0].id


def test_a_conversation_keeps_its_made_up_ids_as_it_grows() -> None:
    turns = older("f", "g", "f")
    for length in range(1, len(turns)):
        assert read(*turns[:length]) == read(*turns)[:length]
