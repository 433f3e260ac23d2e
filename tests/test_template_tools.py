"""Tools in templates that take them in one way or another, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from template_cases import (
    ANY,
    ASKED,
    CALLS,
    FUNCTION,
    GENERIC_CALLS,
    GENERIC_RESULTS,
    HISTORIES,
    RESULTS,
    SHOWS,
    SYSTEM,
    TOOLS,
)
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from mlx_server.core import ChatPrompt, Message, Tool
from mlx_server.text.template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, prefixed_text
from mlx_server.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        (SHOWS + ANY, [SYSTEM, ASKED], FUNCTION + "[system:rule_s][user:asked_u]"),
        (SHOWS + ANY, [ASKED], FUNCTION + "[user:asked_u]"),
        (  # functions without their wrapping
            "{% for t in tools %}({{ t.name ~ t.description ~ t.parameters }}){% endfor %}" + ANY,
            [ASKED],
            "(f{'type': 'object', 'properties': {}})[user:asked_u]",
        ),
        (  # tools only behind a system message
            "{% if messages[0].role == 'system' %}" + SHOWS + "{% endif %}" + ANY,
            [ASKED],
            FUNCTION + "[system:][user:asked_u]",
        ),
        (  # the same, if it says something
            "{% if messages[0].role == 'system' and messages[0].content %}" + SHOWS + "{% endif %}"
            + ANY,
            [ASKED],
            FUNCTION + "[system:You are a helpful assistant.][user:asked_u]",
        ),
        (  # tools in the place of the system message
            SHOWS + "{% for m in messages %}{% if not (tools and m.role == 'system') %}"
            "[{{ m.role }}:{{ m.content }}]{% endif %}{% endfor %}",
            [SYSTEM, ASKED],
            FUNCTION + "[user:rule_s\n\nasked_u]",
        ),
        (  # the system message in the place of tools
            "{% if messages[0].role != 'system' %}" + SHOWS + "{% endif %}" + ANY,
            [SYSTEM, ASKED],
            FUNCTION + "[user:rule_s\n\nasked_u]",
        ),
    ],
)  # fmt: skip
def test_tools_and_system_message_are_both_shown(
    source: str, messages: list[Message], expected: str
) -> None:
    template = ChatTemplate(source, {})
    assert template.knows_tools
    assert template.render(messages, tools=[Tool("f")]) == expected


def test_functions_as_json_text() -> None:
    source = "{% if functions is defined %}{{ functions }}{% endif %}" + ANY
    template = ChatTemplate(source, {})
    text, after = template.render([ASKED], tools=[Tool("f", "é")]).split("[user")
    assert json.loads(text) == [
        {"name": "f", "description": "é", "parameters": {"type": "object", "properties": {}}}
    ]
    assert after == ":asked_u]"


def test_what_the_client_says_of_a_variable_comes_first() -> None:
    template = ChatTemplate("{% if functions is defined %}{{ functions }}{% endif %}" + ANY, {})
    text = template.render([ASKED], {"functions": "mine"}, tools=[Tool("f")])
    assert text == "mine[user:asked_u]"


def test_schemas_stay_as_they_were_sent() -> None:
    template = ChatTemplate(SHOWS + ANY, {})
    schema = {"properties": {"z": {"type": "string"}, "a": {}}, "type": "object", "x": "<é&>"}
    text = template.render([ASKED], tools=[Tool("f", parameters=schema)])
    assert json.dumps(schema, ensure_ascii=False) in text


GENERIC_TEXT = """\
rule_s

You may call functions to help with the user's request. Each line within <tools></tools> \
describes one of them, its parameters as JSON Schema:
<tools>
{"type": "function", "function": {"name": "f", "description": "é", \
"parameters": {"type": "object", "properties": {}}}}
</tools>

To call a function, write its name and its arguments as a JSON object within \
<tool_call></tool_call>; for several calls, write several of these:
<tool_call>
{"name": <function-name>, "arguments": <arguments-object>}
</tool_call>
Stop after your calls; what the functions return is then given to you within \
<tool_response></tool_response>."""


def test_the_generic_form() -> None:
    template = ChatTemplate(ANY, {})
    text = template.render([SYSTEM, ASKED, CALLS, *RESULTS], tools=[Tool("f", "é")])
    assert text == f"[system:{GENERIC_TEXT}][user:asked_u]{GENERIC_CALLS}{GENERIC_RESULTS}"
    alone = template.render([ASKED], tools=[Tool("f", "é")])
    assert alone == f"[system:{GENERIC_TEXT.removeprefix('rule_s').strip()}][user:asked_u]"


def test_the_generic_form_where_system_messages_are_refused() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No') }}{% endif %}"
        "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    text = ChatTemplate(source, {}).render([SYSTEM, ASKED], tools=[Tool("f", "é")])
    assert text == f"[user:{GENERIC_TEXT}\n\nasked_u]"


def test_tools_that_a_template_fails_at_are_told_of_in_the_generic_form() -> None:
    source = (
        "{% for t in tools %}{% if t.function.name == 'odd' %}{{ raise_exception('Odd') }}"
        "{% endif %}{% endfor %}" + SHOWS + ANY
    )
    text = ChatTemplate(source, {}).render([SYSTEM, ASKED, *HISTORIES["one call"]], tools=[
        Tool("odd")
    ])  # fmt: skip
    assert "<tools>" in text and "<tool_call>" in text


def test_prefixed_text_tells_of_tools_too() -> None:
    text = prefixed_text([SYSTEM, ASKED, CALLS, *RESULTS], {}, [Tool("f", "é")])
    assert text.startswith(f"ASSISTANT's RULE: {GENERIC_TEXT}\nUSER: asked_u\nASSISTANT: beside_t")
    assert text.endswith("result_b\n</tool_response>\nASSISTANT:")


@pytest.mark.parametrize("source", [None, SHOWS + ANY])
def test_the_tokenizer_hands_on_tools_and_effort(source: str | None) -> None:
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE())), chat_template=source
    )
    template = tokenizer.template
    assert template.source == (source or DEFAULT_CHAT_TEMPLATE)
    assert template.knows_tools == (source is not None)
    prompt = ChatPrompt((SYSTEM, ASKED), tools=TOOLS, reasoning_effort="low")
    wanted = template.render((SYSTEM, ASKED), tools=TOOLS, reasoning_effort="low")
    assert "tool_b" in wanted and tokenizer.render(prompt) == wanted
    if source is None:
        prefixed = tokenizer.render(replace(prompt, role_mapping={"user": "Q: "}))
        assert "<tools>" in prefixed and "Q: asked_u" in prefixed
