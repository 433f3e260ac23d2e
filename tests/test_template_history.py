"""Calls, results, reasoning and effort in templates that differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from template_cases import (
    ANSWER,
    ANY,
    ASKED,
    CALLS,
    FUNCTION,
    GENERIC_CALLS,
    GENERIC_RESULTS,
    NEXT,
    RESULTS,
    SHOWS,
    TOOLS,
    call,
    result,
    say,
)

from mlx_server.core import Message, TextPart, Tool, ToolCall
from mlx_server.errors import RequestError
from mlx_server.text.template import ChatTemplate

CALL = "{{ c.id ~ '=' ~ c.function.name ~ (c.function.arguments | tojson) }}"
CALLS_OF = "{% for c in m.tool_calls %}<" + CALL + ">{% endfor %}"
TURN = "[{{ m.role }}:{{ m.content }}" + CALLS_OF + "{{ m.tool_call_id }}]"
ALTERNATES = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('Take turns') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}"
    "[{{ m.role }}:{% if m.tool_calls %}" + CALLS_OF + "{% else %}{{ m.content }}{% endif %}]"
    "{% endfor %}"
)


def made(letter: str) -> str:
    return f"<{call(letter).id}=tool_{letter}{call(letter).arguments}>"


A, B = made("a"), made("b")
ID_A, ID_B = call("a").id, call("b").id
TALK = (ASKED, CALLS, *RESULTS, ANSWER)
AGAIN = replace(CALLS, parts=(TextPart("again_t"),))


@pytest.mark.parametrize(
    ("turn", "messages", "expected"),
    [
        (  # nothing needs to be changed
            TURN,
            TALK,
            f"[user:asked_u][assistant:beside_t{A}{B}][tool:result_a{ID_A}]"
            f"[tool:result_b{ID_B}][assistant:answer_t]",
        ),
        (  # only the first call is shown
            TURN.replace("m.tool_calls %}", "(m.tool_calls or [])[:1] %}"),
            TALK,
            f"[user:asked_u][assistant:beside_t{A}][tool:result_a{ID_A}]"
            f"[assistant:{B}][tool:result_b{ID_B}][assistant:answer_t]",
        ),
        (  # several calls are refused
            "{% if m.tool_calls | length > 1 %}{{ raise_exception('One') }}{% endif %}" + TURN,
            (ASKED, CALLS, result("b"), result("a"), NEXT),
            f"[user:asked_u][assistant:beside_t{A}][tool:result_a{ID_A}]"
            f"[assistant:{B}][tool:result_b{ID_B}][user:next_u]",
        ),
        (  # text beside calls is left out
            "{% if m.tool_calls %}[" + CALLS_OF + "]{% else %}" + TURN + "{% endif %}",
            TALK,
            f"[user:asked_u][assistant:beside_t][{A}{B}][tool:result_a{ID_A}]"
            f"[tool:result_b{ID_B}][assistant:answer_t]",
        ),
        (  # results are left out
            "{% if m.role != 'tool' %}" + TURN + "{% endif %}",
            TALK,
            f"[user:asked_u][assistant:beside_t{A}{B}]{GENERIC_RESULTS}[assistant:answer_t]",
        ),
        (  # calls are left out
            "[{{ m.role }}:{{ m.content }}]",
            TALK,
            f"[user:asked_u]{GENERIC_CALLS}[tool:result_a][tool:result_b][assistant:answer_t]",
        ),
        (  # a broken call where a template goes through its arguments
            TURN.replace("c.function.arguments |", "c.function.arguments.items() | list |"),
            (ASKED, replace(CALLS, tool_calls=(ToolCall("i", "f", "{no"),)), ANSWER),
            '[user:asked_u][assistant:beside_t<i=f[["arguments", "{no"]]>][assistant:answer_t]',
        ),
    ],
)
def test_a_history_in_the_shape_that_a_template_shows(
    turn: str, messages: Sequence[Message], expected: str
) -> None:
    template = ChatTemplate("{% for m in messages %}" + turn + "{% endfor %}", {})
    assert template.render(messages) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (TALK, f"[user:asked_u][assistant:{A}{B}]RR[assistant:beside_t\n\nanswer_t]"),
        (
            (*TALK[:-1], AGAIN, *RESULTS, ANSWER, NEXT),
            f"[user:asked_u][assistant:{A}{B}]RR[assistant:{A}{B}]RR"
            "[assistant:beside_t\n\nagain_t\n\nanswer_t][user:next_u]",
        ),
        (
            (*TALK[:-1], NEXT),
            f"[user:asked_u][assistant:{A}{B}]RR[assistant:beside_t][user:next_u]",
        ),
        (TALK[:-1], f"[user:asked_u][assistant:beside_t][assistant:{A}{B}]RR"),
        (
            (*TALK[:-1], AGAIN, *RESULTS),
            f"[user:asked_u][assistant:beside_t][assistant:{A}{B}]RR[assistant:{A}{B}]RR",
        ),
        (
            (ASKED, replace(CALLS, parts=()), *RESULTS, NEXT),
            f"[user:asked_u][assistant:{A}{B}]RR[assistant:][user:next_u]",
        ),
    ],
)
def test_text_beside_calls_where_roles_must_alternate(
    messages: Sequence[Message], expected: str
) -> None:
    rendered = ChatTemplate(ALTERNATES, {}).render(messages)
    assert rendered == expected.replace("RR", "[tool:result_a][tool:result_b]")


def test_ids_of_nine_characters_where_a_template_wants_such() -> None:
    turn = (
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('Nine') }}"
        "{% endif %}{% endfor %}" + TURN
    )
    template = ChatTemplate("{% for m in messages %}" + turn + "{% endfor %}", {})
    first, second = re.findall(r"<(\w{9})=", template.render(TALK))
    assert first != second
    assert f"[tool:result_a{first}][tool:result_b{second}]" in template.render(TALK)
    kept = replace(CALLS, tool_calls=(replace(call("a"), id="abcDEF123"),))
    assert "<abcDEF123=" in template.render([ASKED, kept])


def test_a_result_carries_the_name_of_the_nearest_call_with_its_id() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.name }}{% endfor %}", {})
    turns = [
        say("assistant", "", tool_calls=(ToolCall("same", name, "{}"),)) for name in ("one", "two")
    ]
    answer = say("tool", "x", tool_call_id="same")
    assert template.render([turns[0], answer, turns[1], answer]) == "onetwo"


@pytest.mark.parametrize(
    ("marker", "shown"),
    [
        (
            "List of tools: ",
            '<|tool_call_start|>[f(s="é", n=None, b=True, l=[1])]<|tool_call_end|>',
        ),
        (
            "respond only with <|tool_call|>",
            '<|tool_call|>[{"name": "f", "arguments": {"s": "é", "n": null, "b": true, "l": [1]}}]',
        ),
    ],
)
def test_calls_as_the_model_writes_them_where_its_template_shows_none(
    marker: str, shown: str
) -> None:
    made = ToolCall("i", "f", '{"s": "é", "n": null, "b": true, "l": [1]}')
    messages = [ASKED, say("assistant", "", tool_calls=(made,)), say("tool", "r", tool_call_id="i")]
    text = ChatTemplate(marker + SHOWS + ANY, {}).render(messages, tools=[Tool("f")])
    assert text == f"{marker}{FUNCTION}[user:asked_u][assistant:{shown}][tool:r]"


# ---------------------------------------------------------------- reasoning and effort


@pytest.mark.parametrize(
    "read", ["m.reasoning_content", "m['reasoning']", "m.get('thinking')", 'm["thought"]']
)
def test_reasoning_is_given_by_the_name_that_the_template_reads(read: str) -> None:
    source = "{% for m in messages %}[{{ " + read + " }}]{% endfor %}"
    messages = [say("assistant", "a", reasoning="hm"), ASKED]
    assert ChatTemplate(source, {}).render(messages) in ("[hm][]", "[hm][None]")


@pytest.mark.parametrize(
    ("args", "effort", "expected"),
    [
        ({}, None, "low/-"),
        ({}, "high", "high/True"),
        ({}, "none", "low/False"),
        ({"reasoning_effort": "odd"}, "high", "odd/True"),
        ({"enable_thinking": False}, "high", "high/False"),
    ],
)
def test_effort_reaches_the_template_and_the_clients_variables_come_first(
    args: dict[str, object], effort: str | None, expected: str
) -> None:
    source = "{{ reasoning_effort | default('low') }}/{{ enable_thinking | default('-') }}"
    template = ChatTemplate(source, {})
    assert template.render([ASKED], args, reasoning_effort=effort) == expected


def test_one_switch_of_the_clients_is_not_opposed_by_another() -> None:
    source = "{% if thinking is not defined %}{% set thinking = enable_thinking %}{% endif %}"
    template = ChatTemplate(source + "{{ thinking }}", {})
    args = {"enable_thinking": False}
    assert template.render([ASKED], args, reasoning_effort="high") == "False"


def test_a_refused_history_gives_the_templates_own_message() -> None:
    source = "{{ raise_exception('Never') }}{{ tools }}{{ m.tool_calls }}"
    with pytest.raises(RequestError, match="Never"):
        ChatTemplate(source, {}).render(TALK, tools=TOOLS)
