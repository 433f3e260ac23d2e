"""Running an output parser over a text that is cut in every way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from mlx_server.text.parsers.base import Syntax, Thinking
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Event, Thought
from mlx_server.text.parsers.output_parser import OutputParser


def run(
    pieces: Iterable[str],
    syntax: Syntax | None,
    thinking: Thinking | None = None,
    *,
    inside: bool = False,
) -> list[Event]:
    """The events of a text that comes in pieces, neighbours of one kind joined."""
    parser = OutputParser(syntax, thinking, inside=inside)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return fold([*events, *parser.flush()])


def fold(events: Iterable[Event]) -> list[Event]:
    folded: list[Event] = []
    for event in events:
        last = folded[-1] if folded else None
        if type(last) is type(event) and not isinstance(event, CallStart):
            folded[-1] = type(event)(last.text + event.text)
        else:
            folded.append(event)
    return folded


def read(
    text: str,
    syntax: Syntax | None,
    thinking: Thinking | None = None,
    *,
    inside: bool = False,
) -> list[Event]:
    """The events of the whole text, which must be the same however it is cut in two, or
    into single characters."""
    whole = run([text], syntax, thinking, inside=inside)
    for cut in range(1, len(text)):
        pieces = [text[:cut], text[cut:]]
        assert run(pieces, syntax, thinking, inside=inside) == whole, pieces
    assert run(text, syntax, thinking, inside=inside) == whole
    return whole


def content(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def reasoning(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Thought))


def calls(events: Iterable[Event]) -> list[tuple[str, Any]]:
    """Name and arguments of every call; the arguments must be JSON."""
    found: list[list[str]] = []
    for event in events:
        if isinstance(event, CallStart):
            found.append([event.name, ""])
        elif isinstance(event, CallPiece):
            found[-1][1] += event.text
    return [(name, json.loads(arguments)) for name, arguments in found]
