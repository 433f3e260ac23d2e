"""Messages as chat templates expect them, and the forms that a conversation can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlx_server.core import Message, ToolCall
from mlx_server.text.generic_tools import SYSTEM_ROLES, parsed_arguments
from mlx_server.text.tool_history import ToolCallStyle, in_style

Conversation = list[dict[str, Any]]

_DEFAULT_STYLE = ToolCallStyle()


# ---------------------------------------------------------------- messages to dicts


def to_dicts(messages: Sequence[Message], style: ToolCallStyle = _DEFAULT_STYLE) -> Conversation:
    """The messages as Hugging Face templates expect them.

    Raises:
        RequestError: A part is an image.
    """
    return [_to_dict(message, style) for message in in_style(messages, style)]


def _to_dict(message: Message, style: ToolCallStyle) -> dict[str, Any]:
    content: str | None = message.text
    if message.tool_calls and not content:
        content = style.no_content
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn |= dict.fromkeys(style.reasoning_names, message.reasoning)
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [_tool_call(call, style) for call in message.tool_calls]
    return turn


def _tool_call(call: ToolCall, style: ToolCallStyle) -> dict[str, Any]:
    arguments: Any = call.arguments
    if style.parse_arguments:
        parsed = parsed_arguments(call)
        broken = {"arguments": call.arguments} if style.wrap_broken else call.arguments
        arguments = parsed if isinstance(parsed, dict) else broken
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


# ---------------------------------------------------------------- forms of a conversation


def as_sent(conversation: Conversation) -> Conversation:
    """The conversation as it came: for templates that take any."""
    return conversation


def merged_system(conversation: Conversation) -> Conversation:
    """One system message, at the start."""
    system, others = _split_system(conversation)
    return [{"role": system[0]["role"], "content": _joined(system)}, *others] if system else others


def folded_system(conversation: Conversation) -> Conversation:
    """No system message: its text begins the first user message."""
    system, others = _split_system(conversation)
    if not system:
        return others
    for index, turn in enumerate(others):
        if turn["role"] == "user":
            folded = {**turn, "content": _joined([*system, turn])}
            return [*others[:index], folded, *others[index + 1 :]]
    return [{"role": "user", "content": _joined(system)}, *others]


def merged_runs(conversation: Conversation) -> Conversation:
    """Neighbours of the same role, user or assistant, made one (tool calls stay apart)."""
    merged: Conversation = []
    for turn in conversation:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last["role"] == turn["role"]
            and turn["role"] in ("user", "assistant")
            and not ("tool_calls" in last or "tool_calls" in turn)
        ):
            merged[-1] = {**last, **turn, "content": _joined([last, turn])}
        else:
            merged.append(turn)
    return merged


def answered_results(conversation: Conversation) -> Conversation:
    """An empty answer of the assistant where a user speaks right after a tool's result."""
    answered: Conversation = []
    for turn in conversation:
        if turn["role"] == "user" and answered and answered[-1]["role"] == "tool":
            answered.append({"role": "assistant", "content": ""})
        answered.append(turn)
    return answered


def filled(conversation: Conversation) -> Conversation:
    """No answer empty, and none before a user has spoken."""
    first = next((i for i, t in enumerate(conversation) if t["role"] not in SYSTEM_ROLES), None)
    if first is not None and conversation[first]["role"] == "assistant":
        opening = {"role": "user", "content": ""}
        conversation = [*conversation[:first], opening, *conversation[first:]]
    return [
        {**turn, "content": " "}
        if turn["role"] == "assistant" and not (turn["content"] or turn.get("tool_calls"))
        else turn
        for turn in conversation
    ]


FORMS: tuple[Callable[[Conversation], Conversation], ...] = (as_sent, merged_system, folded_system)
"""From the nearest to what was sent to the farthest."""


def forms_of(conversation: Conversation, first: int) -> Iterator[Conversation]:
    """The forms to try, from the one with the number `first`, each different one once."""
    tried: list[Conversation] = []
    for form in FORMS[first:]:
        formed = form(conversation)
        merged = merged_runs(formed)
        answered = answered_results(merged)
        for candidate in (formed, merged, answered, filled(answered)):
            if candidate not in tried:
                tried.append(candidate)
                yield candidate


def _split_system(conversation: Conversation) -> tuple[Conversation, Conversation]:
    system = [turn for turn in conversation if turn["role"] in SYSTEM_ROLES]
    return system, [turn for turn in conversation if turn["role"] not in SYSTEM_ROLES]


def _joined(turns: Conversation) -> str:
    return "\n\n".join(turn["content"] for turn in turns if turn["content"])
