"""What a chat template shows and what it leaves out, found by rendering small conversations.

Templates are programs without a declared interface. Each probe has words that occur nowhere
else; a form is good if the rendering has them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_server.core import Message, TextPart, Tool, ToolCall
from mlx_server.text.conversation import FORMS, Conversation, to_dicts
from mlx_server.text.generic_tools import SYSTEM_ROLES, TOOL_FORMS, ToolForm, writer_for
from mlx_server.text.tool_history import TextPlace, ToolCallStyle

Try = Callable[[Conversation, Mapping[str, Any]], str | Exception]
"""Renders a conversation with variables; gives the exception if the template raises one."""

_LENGTHS = (1, 2, 3, 5)
_FILLERS = ("", "You are a helpful assistant.")
_REASONING_NAMES = ("reasoning_content", "reasoning", "thinking", "thought")

# A parameter without a description, an object without properties: clients send such.
_TOOL = Tool(
    "probe_tool",
    "probe_description",
    {
        "type": "object",
        "properties": {"probe_parameter": {"type": "object"}, "other": {"type": "string"}},
        "required": ["other"],
    },
)
_TOOL_WORDS = ("probe_tool", "probe_description", "probe_parameter")

# Ids as clients send them.
_CALLS = tuple(
    ToolCall(
        f"call_{letter * 24}", f"probe_name_{letter}", f'{{"key_{letter}": "probe_value_{letter}"}}'
    )
    for letter in "ab"
)


@dataclass(frozen=True, slots=True)
class SystemForms:
    """How a template takes system messages, with tools or without.

    Args:
        first: The first of `FORMS` that shows everything, by the system messages' role
            and by the kind of conversation (`_probe`).
        filler: The system message that a conversation without one needs for its tools
            to be shown.
    """

    first: Mapping[tuple[str, int], int]
    filler: str | None = None

    def first_for(self, conversation: Conversation) -> int:
        """The number of the form to try first."""
        system = [i for i, turn in enumerate(conversation) if turn["role"] in SYSTEM_ROLES]
        if not system:
            return 0
        kinds = [1 if len(system) == len(conversation) else 5 if system[-1] > 0 else 2]
        if conversation[-1]["role"] not in ("user", *SYSTEM_ROLES):
            kinds.append(3)
        role = conversation[system[0]]["role"]
        return max(self.first[role, kind] for kind in kinds)


def knows_developer(source: str, render: Try) -> bool:
    """Whether developer messages are shown as such."""
    return "developer" in source and _shows(render, _probe("developer", 2))


def find_system_forms(roles: Sequence[str], render: Try) -> SystemForms:
    """How a template takes instructions, found by rendering one."""
    return SystemForms(_first_forms(roles, render, {}, ()))


def find_tool_form(
    source: str, roles: Sequence[str], render: Try
) -> tuple[ToolForm, SystemForms] | None:
    """How the template takes tools; None if it shows them in no form, or only without
    the system message."""
    if not re.search("tools|functions", source):
        return None
    for form in TOOL_FORMS:
        variables = form([_TOOL])
        probe = _probe("system", 2)
        if not any(_shows(render, f(probe), variables, _TOOL_WORDS) for f in FORMS):
            continue
        for filler in (None, *_FILLERS):
            system = [] if filler is None else [{"role": "system", "content": filler}]
            if _shows(render, [*system, *_probe("user", 1)], variables, _TOOL_WORDS):
                first = _first_forms(roles, render, variables, _TOOL_WORDS)
                return form, SystemForms(first, filler)
    return None


def _first_forms(
    roles: Sequence[str], render: Try, variables: Mapping[str, Any], words: Sequence[str]
) -> dict[tuple[str, int], int]:
    """For each kind of probe the first form in which the template shows all of it, else 0."""
    first = {}
    for role in roles:
        for length in _LENGTHS:
            probe = _probe(role, length)
            shown = (_shows(render, form(probe), variables, words) for form in FORMS)
            first[role, length] = next((i for i, good in enumerate(shown) if good), 0)
    return first


def _probe(role: str, length: int) -> Conversation:
    """A message alone (1), before a user's (2), where the user does not have the last
    word (3), and again later on (5)."""
    roles = (role, "user", "assistant", role, "user")[:length]
    return [{"role": r, "content": f"probe {i}"} for i, r in enumerate(roles)]


def _shows(
    render: Try,
    conversation: Conversation,
    variables: Mapping[str, Any] | None = None,
    words: Sequence[str] = (),
) -> bool:
    text = render(conversation, variables or {})
    return isinstance(text, str) and all(
        word in text for word in (*words, *(turn["content"] for turn in conversation))
    )


# ---------------------------------------------------------------- calls, results, reasoning


def find_tool_call_style(source: str, render: Try) -> ToolCallStyle:
    """The style nearest to what clients send in which the template shows calls and results,
    each property by itself: a template that leaves one thing out still shows the others."""

    def shown(messages: Sequence[Message], style: ToolCallStyle, *words: str) -> bool:
        text = render(to_dicts(messages, style), {})
        return isinstance(text, str) and all(word in text for word in words)

    style, shows_results = _basic_style(source, shown)
    if not shows_results:
        style = _first_shown(
            shown, _history(1), (style, replace(style, user_results=True)), "probe_result_a"
        )
    if style.write_calls is not None:
        return style
    words = ("probe_name_a", "probe_value_a", "probe_name_b", "probe_value_b")
    style = _first_shown(shown, _history(2), (style, replace(style, one_call_a_turn=True)), *words)
    said = [
        *_history(1, "probe_text"),
        _message("assistant", "probe_answer"),
        _message("user", "probe"),
    ]
    places = [replace(style, text=place) for place in TextPlace]
    style = _first_shown(shown, said, places, *words[:2], "probe_text", "probe_answer")
    broken = _history(1, arguments="[probe_broken")
    return _first_shown(shown, broken, (style, replace(style, wrap_broken=True)), "[probe_broken")


def _basic_style(source: str, shown: Callable[..., bool]) -> tuple[ToolCallStyle, bool]:
    """The first style that shows a call, and whether it shows its result; one that
    shows both if there is one. Calls go into the content if none shows them."""
    probe = _history(1)
    in_content = ToolCallStyle(
        write_calls=writer_for(source), reasoning_names=_reasoning_names(source)
    )
    only_calls = None
    styles = _basic_styles(in_content.reasoning_names) if "tool_calls" in source else ()
    for style in styles:
        if shown(probe, style, "probe_name_a", "probe_value_a"):
            if shown(probe, style, "probe_result_a"):
                return style, True
            only_calls = only_calls or style
    if only_calls is not None:
        return only_calls, False
    return in_content, shown(probe, in_content, "probe_result_a")


def _basic_styles(reasoning_names: tuple[str, ...]) -> Iterator[ToolCallStyle]:
    for short_ids in (False, True):
        for parse, no_content in ((True, ""), (False, ""), (False, None), (True, None)):
            yield ToolCallStyle(
                parse, no_content, short_ids=short_ids, reasoning_names=reasoning_names
            )


def _first_shown(
    shown: Callable[..., bool],
    messages: Sequence[Message],
    styles: Sequence[ToolCallStyle],
    *words: str,
) -> ToolCallStyle:
    """The first style that shows the words, else the first one."""
    return next((style for style in styles if shown(messages, style, *words)), styles[0])


def _history(calls: int, text: str = "", arguments: str | None = None) -> list[Message]:
    """A question, a turn of calls, their results."""
    made = _CALLS[:calls]
    if arguments is not None:
        made = tuple(replace(call, arguments=arguments) for call in made)
    results = [
        Message("tool", (TextPart(call.name.replace("name", "result")),), tool_call_id=call.id)
        for call in made
    ]
    said = (TextPart(text),) if text else ()
    return [_message("user", "probe"), Message("assistant", said, tool_calls=made), *results]


def _message(role: str, text: str) -> Message:
    return Message(role, (TextPart(text),))


def _reasoning_names(source: str) -> tuple[str, ...]:
    """What the template calls the reasoning of a past turn."""
    return tuple(
        name
        for name in _REASONING_NAMES
        if re.search(rf"(?:\.|['\"]){name}\b(?!['\"]?\s*:)", source)
    )
