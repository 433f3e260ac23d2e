"""Conversations whose last message, the assistant's, the reply goes on with."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_server.core import Message
from mlx_server.errors import RequestError


def check_continues(messages: Sequence[Message]) -> None:
    """Raises RequestError where the last message is none that a reply can go on with."""
    if not messages or messages[-1].role != "assistant":
        came = f"the role {messages[-1].role!r}" if messages else "none"
        raise RequestError(
            "`continue_final_message` needs a last message of the assistant's, for the reply to "
            f"go on with, but it has {came}.",
            param="messages",
        )
    if messages[-1].tool_calls:
        raise RequestError(
            "`continue_final_message` cannot go on with a message that calls tools; end the "
            "messages with the tools' results or with a text of the assistant's.",
            param="messages",
        )


def end_mark(messages: Sequence[Message]) -> str:
    """A word that no message has."""
    mark = "FINAL_MESSAGE_ENDS_HERE"
    while any(mark in message.text for message in messages):
        mark += "_"
    return mark
