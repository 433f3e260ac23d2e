"""The tool calls and results of a conversation, in the shape that a template shows in full.

Templates differ: some want arguments as an object, some as text; some show one call a turn,
some leave out the text beside calls, some insist on ids of nine characters. `probes.py` finds
out what a template needs, once; here a conversation is brought into that shape.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from mlx_server.core import ImagePart, Message, TextPart
from mlx_server.errors import RequestError
from mlx_server.text.generic_tools import (
    CallWriter,
    results_as_user,
    with_calls_in_content,
    write_generic,
)


class TextPlace(Enum):
    """Where what the assistant says beside its calls goes.

    BESIDE: Where it is. BEFORE: In a turn of its own before the calls. LATER: For templates in
    which users and assistants must take turns: in the answer that ends the calls, or in a turn
    of its own there. While there is no answer yet, the first text goes before its calls and
    the others wait, so that what was rendered so far does not change from call to call.
    """

    BESIDE = 0
    BEFORE = 1
    LATER = 2


@dataclass(frozen=True, slots=True)
class ToolCallStyle:
    """How a template reads tool calls and their results.

    Args:
        parse_arguments: Arguments as the object, else as its JSON text.
        no_content: The `content` of a turn of calls that says nothing.
        wrap_broken: Arguments that are no JSON object are put into one.
        short_ids: Ids must have nine letters and digits (Mistral).
        one_call_a_turn: Several calls become several turns, each with its result.
        text: Where text beside calls goes.
        write_calls: Writes calls into the content; None: the template shows them.
        user_results: Results are user messages, else of the role `tool`.
        reasoning_names: What the template calls a turn's reasoning.
    """

    parse_arguments: bool = True
    no_content: str | None = ""
    wrap_broken: bool = False
    short_ids: bool = False
    one_call_a_turn: bool = False
    text: TextPlace = TextPlace.BESIDE
    write_calls: CallWriter | None = None
    user_results: bool = False
    reasoning_names: tuple[str, ...] = ("reasoning_content",)


def generic_style(reasoning_names: tuple[str, ...]) -> ToolCallStyle:
    """Calls and results as text, in the form of `generic_tools`."""
    return ToolCallStyle(
        write_calls=write_generic, user_results=True, reasoning_names=reasoning_names
    )


def in_style(messages: Sequence[Message], style: ToolCallStyle) -> list[Message]:
    """The conversation with its calls and results in a template's shape.

    Results come in the order of their calls, since most templates show no ids.

    Raises:
        RequestError: A part is an image.
    """
    if any(isinstance(part, ImagePart) for message in messages for part in message.parts):
        raise RequestError(
            "This server does not support images; send text parts only.", param="messages"
        )
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return list(messages)
    groups = _grouped(_with_names(messages))
    shaped = [turn for message, results in groups for turn in _turns(message, results, style)]
    if style.write_calls is None and style.text is TextPlace.LATER:
        shaped = _text_later(shaped)
    if style.user_results:
        shaped = results_as_user(shaped)
    return [_with_short_ids(message) for message in shaped] if style.short_ids else shaped


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """Clients name a tool's result by the call's id alone, some templates want the tool's name."""
    names: dict[str | None, str] = {}
    named = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        named.append(replace(message, name=message.name or names.get(message.tool_call_id)))
    return named


def _grouped(messages: Sequence[Message]) -> Iterator[tuple[Message, list[Message]]]:
    """Each message, calls with the results that follow them, in the calls' order."""
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        results: list[Message] = []
        if message.tool_calls:
            while position < len(messages) and messages[position].role == "tool":
                results.append(messages[position])
                position += 1
            order = {call.id: index for index, call in reversed([*enumerate(message.tool_calls)])}
            results.sort(key=lambda result: order.get(result.tool_call_id or "", len(order)))
        yield message, results


def _turns(message: Message, results: list[Message], style: ToolCallStyle) -> list[Message]:
    """A message with its calls' results, as one turn of calls or several."""
    if not message.tool_calls:
        return [message]
    if style.write_calls is not None:
        return [with_calls_in_content(message, style.write_calls), *results]
    turns: list[Message] = []
    if style.text is TextPlace.BEFORE and message.text:
        turns.append(replace(message, tool_calls=(), reasoning=None))
        message = replace(message, parts=())
    if not style.one_call_a_turn:
        return [*turns, message, *results]
    for index, call in enumerate(message.tool_calls):
        turn = replace(message, tool_calls=(call,))
        turns.append(turn if index == 0 else replace(turn, parts=(), reasoning=None))
        turns += [result for result in results if result.tool_call_id == call.id]
        results = [result for result in results if result.tool_call_id != call.id]
    return [*turns, *results]


def _text_later(messages: Sequence[Message]) -> list[Message]:
    """See TextPlace.LATER."""
    shaped: list[Message] = []
    waiting: list[str] = []
    first_call = 0
    for message in messages:
        if message.tool_calls:
            if message.text:
                first_call = first_call if waiting else len(shaped)
                waiting.append(message.text)
            message = replace(message, parts=())
        elif message.role != "tool" and waiting:
            if message.role == "assistant":
                texts = [*waiting, message.text] if message.text else waiting
                message = replace(message, parts=(TextPart("\n\n".join(texts)),))
            else:
                shaped.append(Message("assistant", (TextPart("\n\n".join(waiting)),)))
            waiting = []
        shaped.append(message)
    if waiting:
        shaped.insert(first_call, Message("assistant", (TextPart(waiting[0]),)))
    return shaped


def _with_short_ids(message: Message) -> Message:
    calls = tuple(replace(call, id=_short_id(call.id)) for call in message.tool_calls)
    answered = message.tool_call_id
    if message.role == "tool" or answered is not None:
        answered = _short_id(answered or "")
    return replace(message, tool_calls=calls, tool_call_id=answered)


def _short_id(call_id: str) -> str:
    """The id itself if it will do, else nine characters that stand for it everywhere."""
    if re.fullmatch("[A-Za-z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
