"""Conversations in the form that a chat template takes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from jinja2 import Template, TemplateSyntaxError
from transformers.utils import chat_template_utils

from mlx_server.core import ImagePart, Message, TextPart, ToolCall
from mlx_server.errors import RequestError
from mlx_server.text.template import (
    DEFAULT_CHAT_TEMPLATE,
    ChatTemplate,
    ToolCallStyle,
    prefixed_text,
    to_dicts,
)

TEMPLATES = sorted((Path(__file__).parents[1] / "../shared/templates").glob("*.jinja"))
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

ONE_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System comes first') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
DROPS_LATER_SYSTEM = (
    "{% if messages[0].role == 'system' %}[system:{{ messages[0].content }}]{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}:{{ m.content }}]{% endif %}"
    "{% endfor %}"
)
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
NOT_EMPTY = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content == '' %}"
    "{{ raise_exception('Nothing said') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
ANY = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"


def turns(*pairs: str) -> list[Message]:
    """turns("user:Hi", …)"""
    split = (pair.split(":", 1) for pair in pairs)
    return [Message(role, (TextPart(text),)) for role, text in split]


SHAPES = {
    "system first": turns("system:aaa", "user:bbb"),
    "no system": turns("user:aaa", "assistant:bbb", "user:ccc"),
    "system twice": turns("system:aaa", "user:bbb", "assistant:ccc", "system:ddd", "user:eee"),
    "two at the start": turns("system:aaa", "system:bbb", "user:ccc"),
    "developer": turns("developer:aaa", "user:bbb"),
    "developer twice": turns("developer:aaa", "user:bbb", "developer:ccc", "user:ddd"),
    "system and developer": turns("system:aaa", "developer:bbb", "user:ccc"),
    "system alone": turns("system:aaa"),
    "user twice": turns("user:aaa", "user:bbb"),
}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_real_templates_show_every_message_of_every_shape(path: Path) -> None:
    template = ChatTemplate(path.read_text(encoding="utf-8"), VARIABLES)
    for shape, messages in SHAPES.items():
        text = template.render(messages)
        missing = [message.text for message in messages if message.text not in text]
        assert not missing, shape


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        (ANY, turns("system:a", "user:b", "system:c"), "[system:a][user:b][system:c]"),
        (ANY, turns("developer:a", "user:b"), "[system:a][user:b]"),
        ("{# developer #}" + ANY, turns("developer:a", "user:b"), "[developer:a][user:b]"),
        (ANY, turns("user:a", "user:b"), "[user:a][user:b]"),
        (ONE_SYSTEM, turns("system:a", "user:b", "system:c"), "[system:a\n\nc][user:b]"),
        (ONE_SYSTEM, turns("user:b", "developer:c"), "[system:c][user:b]"),
        (DROPS_LATER_SYSTEM, turns("system:a", "user:b", "system:c"), "[system:a\n\nc][user:b]"),
        (ALTERNATES, turns("system:a", "user:b"), "[user:a\n\nb]"),
        (ALTERNATES, turns("user:a", "user:b", "assistant:c"), "[user:a\n\nb][assistant:c]"),
        (
            ALTERNATES,
            turns("system:s", "user:a", "assistant:b", "system:t", "assistant:c"),
            "[user:s\n\nt\n\na][assistant:b\n\nc]",
        ),
        (ALTERNATES, turns("system:a"), "[user:a]"),
        (ALTERNATES, turns("assistant:a", "user:b"), "[user:][assistant:a][user:b]"),
        (NOT_EMPTY, turns("user:a", "assistant:", "user:b"), "[user:a][assistant: ][user:b]"),
    ],
)  # fmt: skip
def test_the_form_is_the_nearest_one_that_the_template_takes(
    source: str, messages: list[Message], expected: str
) -> None:
    assert ChatTemplate(source, {}).render(messages) == expected


def test_the_templates_own_message_reaches_the_client() -> None:
    template = ChatTemplate(NOT_EMPTY.replace("''", "'b'"), {})
    with pytest.raises(RequestError, match="Nothing said") as caught:
        template.render(turns("user:a", "assistant:b"))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_request_variables_come_first_and_unknown_ones_do_no_harm() -> None:
    template = ChatTemplate("{{ mood }}{{ undefined }}", {"mood": "calm"})
    assert template.render(turns("user:a")) == "calm"
    assert template.render(turns("user:a"), {"mood": "keen", "other": 1}) == "keen"


NAMED_PARAMETERS = sorted(
    parameter.name
    for function in (chat_template_utils.render_jinja_template, Template.render)
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
)


@pytest.mark.parametrize("name", ["messages", *NAMED_PARAMETERS])
def test_variables_cannot_replace_what_the_rendering_sets(name: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}' cannot be set") as caught:
        ChatTemplate(ANY, {}).render(turns("user:a"), {name: []})
    assert caught.value.param == "chat_template_kwargs"
    with pytest.raises(ValueError, match=name):
        ChatTemplate(ANY, {name: []})


def test_a_template_that_does_not_compile_is_an_error_when_made() -> None:
    with pytest.raises(TemplateSyntaxError):
        ChatTemplate("{% for m in messages %}", {})


def test_a_template_is_compiled_once() -> None:
    source = ANY + "{# compiled once #}"
    before = chat_template_utils._compile_jinja_template.cache_info().misses
    template = ChatTemplate(source, {})
    for _ in range(5):
        template.render(turns("user:a"))
    assert chat_template_utils._compile_jinja_template.cache_info().misses == before + 1


def test_a_grown_conversation_begins_with_the_shorter_ones_rendering() -> None:
    template = ChatTemplate(DEFAULT_CHAT_TEMPLATE, {})
    messages = turns("system:a", "user:b", "assistant:c", "user:d")
    shorter, longer = template.render(messages[:2]), template.render(messages)
    assert longer.startswith(shorter)
    assert shorter.endswith("<|im_start|>assistant\n")


# ---------------------------------------------------------------- messages


def called(arguments: str) -> list[Message]:
    return [
        Message("assistant", reasoning="hm", tool_calls=(ToolCall("c1", "add", arguments),)),
        Message("tool", (TextPart("3"),), tool_call_id="c1"),
    ]


def test_tool_calls_as_templates_read_them() -> None:
    assistant, tool = to_dicts(called('{"a": 1}'))
    function = {"name": "add", "arguments": {"a": 1}}
    assert assistant == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert tool == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}


@pytest.mark.parametrize(
    ("text", "parsed"), [("{broken", "{broken"), ("[1]", "[1]"), ("", {}), ("{}", {})]
)
def test_arguments_that_are_no_object_stay_text(text: str, parsed: object) -> None:
    [call] = to_dicts(called(text))[0]["tool_calls"]
    assert call["function"]["arguments"] == parsed


def test_a_template_that_wants_arguments_as_text_gets_text() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}"
        "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(source, {}).render(called('{"a":  1}')) == 'add({"a":  1})'
    style = ToolCallStyle(parse_arguments=False, no_content=None)
    assert to_dicts(called("{}"), style)[0]["content"] is None


def test_text_parts_are_joined_as_they_are() -> None:
    message = Message("user", (TextPart("a "), TextPart("b")), name="Ann")
    assert to_dicts([message]) == [{"role": "user", "content": "a b", "name": "Ann"}]


def test_an_image_is_refused() -> None:
    message = Message("user", (TextPart("What is this?"), ImagePart("data:,")))
    for attempt in (to_dicts, lambda m: prefixed_text(m, {}), ChatTemplate(ANY, {}).render):
        with pytest.raises(RequestError, match="images") as caught:
            attempt([message])
        assert caught.value.param == "messages"


# ---------------------------------------------------------------- prefixed text


@pytest.mark.parametrize(
    "mapping", [{}, {"user": "Q: ", "assistant": "A: ", "stop": "\n\n"}, {"user": "> "}]
)
def test_prefixed_text_is_mlx_lms(mapping: dict[str, str]) -> None:
    convert_chat = pytest.importorskip("mlx_lm.server").convert_chat
    messages = turns("system:Be kind.", "user:Hi", "assistant:Hello", "tool:x", "user:Bye")
    wire = [{"role": m.role, "content": m.text} for m in messages]
    assert prefixed_text(messages, mapping) == convert_chat(wire, mapping)
