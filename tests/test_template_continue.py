"""Prompts that end within the assistant's last message, or without its turn begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from template_cases import (
    ANSWER,
    ASKED,
    CALLS,
    HISTORIES,
    NEXT,
    REAL,
    SYSTEM,
    TOOLS,
    say,
    template_of,
)

from mlx_server.core import Message
from mlx_server.errors import RequestError
from mlx_server.text.template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, prefixed_text

TALK = (SYSTEM, ASKED, ANSWER, NEXT)
CHATML = ChatTemplate(DEFAULT_CHAT_TEMPLATE, {})


@REAL
@pytest.mark.parametrize(
    "text", ["begun_b", "begun_b ", "begun_b:\n\n", "a\nbegun_b\n", "asked_u", "<b> {{x}} 日本"]
)
def test_the_prompt_ends_with_the_last_message(path: Path, text: str) -> None:
    template = template_of(path)
    for before in ((ASKED,), (SYSTEM, ASKED), TALK):
        prompt = template.render([*before, say("assistant", text)], continue_final=True)
        assert prompt.endswith(text)
        assert [m.text for m in before if m.text not in prompt] == []


@REAL
def test_it_is_what_the_whole_conversation_begins_with(path: Path) -> None:
    """Only the end of the turn is missing."""
    template = template_of(path)
    messages = [*TALK, say("assistant", "begun_b")]
    prompt = template.render(messages, continue_final=True)
    assert template.render(messages, add_generation_prompt=False).startswith(prompt)


@REAL
def test_an_empty_message_is_gone_on_with(path: Path) -> None:
    template = template_of(path)
    begun = template.render([*TALK, say("assistant", "begun_b")], continue_final=True)
    empty = template.render([*TALK, say("assistant", "")], continue_final=True)
    assert empty == begun.removesuffix("begun_b")


@REAL
def test_tools_and_results_stay(path: Path) -> None:
    template = template_of(path)
    messages = [*HISTORIES["results last"], say("assistant", "begun_b")]
    prompt = template.render(messages, tools=TOOLS, continue_final=True)
    assert prompt.endswith("begun_b")
    words = ("rule_s", "asked_u", "result_a", "result_b", "tool_about_a")
    assert [word for word in words if word not in prompt] == []


@REAL
def test_without_the_mark_of_the_assistants_turn(path: Path) -> None:
    template = template_of(path)
    plain = template.render(TALK, add_generation_prompt=False)
    assert [m.text for m in TALK if m.text not in plain] == []
    assert len(plain) <= len(template.render(TALK))


@pytest.mark.parametrize(
    ("messages", "came"),
    [
        ((ASKED,), "'user'"),
        ((ASKED, ANSWER, SYSTEM), "'system'"),
        ((), "none"),
        ((ASKED, CALLS), "calls tools"),
    ],
)
def test_only_the_assistants_text_can_be_gone_on_with(
    messages: tuple[Message, ...], came: str
) -> None:
    for render in (CHATML.render, lambda m, **more: prefixed_text(m, {}, **more)):
        with pytest.raises(RequestError, match=came) as caught:
            render(messages, continue_final=True)
        assert caught.value.param == "messages"
        assert "continue_final_message" in caught.value.message


def test_a_text_may_hold_anything() -> None:
    text = CHATML.render([ASKED, say("assistant", "x")], continue_final=True)
    for odd in ("FINAL_MESSAGE_ENDS_HERE", "FINAL_MESSAGE_ENDS_HERE_ and on"):
        whole = CHATML.render([ASKED, say("assistant", odd)], continue_final=True)
        assert whole == text.removesuffix("x") + odd


def test_a_template_that_leaves_the_last_message_out() -> None:
    source = (
        "{% for m in messages %}{% if not (loop.last and m.role == 'assistant') %}"
        "[{{ m.role }}:{{ m.content }}]{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant:{% endif %}"
    )
    prompt = ChatTemplate(source, {}).render([ASKED, say("assistant", "x")], continue_final=True)
    assert prompt == "[user:asked_u][assistant:x"


PREFIXES = {"user": "Q: ", "assistant": "A: ", "stop": "\n"}


@pytest.mark.parametrize(
    ("options", "messages", "expected"),
    [
        ({}, (ASKED,), "Q: asked_u\nA:"),
        ({"add_generation_prompt": False}, (ASKED,), "Q: asked_u"),
        ({"continue_final": True}, (ASKED, say("assistant", "so ")), "Q: asked_u\nA: so "),
    ],
)
def test_models_without_a_template(
    options: dict[str, bool], messages: tuple[Message, ...], expected: str
) -> None:
    assert prefixed_text(messages, PREFIXES, **options) == expected
