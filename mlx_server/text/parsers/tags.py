"""The tags of families with tagged parameters, and how text between them is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlx_server.text.parsers import json_text, typed
from mlx_server.text.parsers.events import CallPiece
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.source import SPACE, Parse, Source

CUT = ""
"""In place of a tag: the text ends here."""

_NAME = re.compile(r"""[^\s<>"'`=(){}\[\],]*""")
_NUMBER = "-0123456789"
_FIRST = {
    "object": "{",
    "array": "[",
    "null": "nN",
    "boolean": "tfTF",
    "number": _NUMBER,
    "integer": _NUMBER,
}
"""The characters that a value of a type begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The tags, each with the space that the family's template writes around it.

    Args:
        section, section_end: Around the calls; empty: a call stands by itself.
        call, name_end, call_end: Before and behind a call's name, and at the call's end.
        key, key_end, value, value_end: Around a parameter's name and its value. A line
            end that `value_end` begins with is no part of the value.
    """

    section: str = ""
    section_end: str = ""
    call: str
    name_end: str = ""
    call_end: str
    key: str
    key_end: str
    value: str = ""
    value_end: str

    def bare(self) -> Tags:
        """The tags without space, as they are looked for."""
        return Tags(**{f.name: getattr(self, f.name).strip() for f in fields(self)})


def schema_of(tool: ToolRule, name: str) -> tuple[Any, Mapping[str, Any]]:
    """A parameter's schema, and the one that its references are relative to."""
    other = tool.schema.get("additionalProperties", True)
    return tool.properties.get(name, other), tool.schema


def open_ended(tool: ToolRule) -> bool:
    """The tool says nothing of its parameters, so they may be called anything."""
    return "properties" not in tool.schema and (
        tool.schema.get("additionalProperties", True) is not False
    )


def next_tag(source: Source, *tags: str) -> Parse[str | None]:
    """Read the tag that comes next, and space before it.

    Returns:
        The tag; CUT if the text ends, maybe within one; None if something else comes,
        which is not read.
    """
    looked_for = tuple(filter(None, tags))
    yield from source.skip_space()
    found = (yield from source.next_is(*looked_for)) if looked_for else None
    if cut_within(source, *looked_for) or source.ended:
        return CUT
    source.take(len(found or ""))
    return found


def cut_within(source: Source, *tags: str) -> bool:
    """Whether the text ends before one of the tags is whole; what there is of it is read."""
    rest = source.rest
    if not source.closed or not any(tag != rest and tag.startswith(rest) for tag in tags):
        return False
    source.take(len(rest))
    return True


def text_value(source: Source, ends: Sequence[str], allowed: frozenset[str]) -> Parse[str | None]:
    """Give a value that stands as text, as JSON: a string piece by piece as it comes,
    what may be something else as soon as it is whole. Of a text that ends within it
    nothing is given that could read differently once it went on.

    Returns:
        What ended it; None where the text did.
    """
    streams = allowed == typed.STRING
    if not streams and "string" in allowed:
        first = yield from source.peek()
        others = SPACE + "".join(_FIRST.get(kind, "") for kind in allowed)
        streams = bool(first) and first not in others
    if streams:
        yield CallPiece('"')
        mark = yield from source.until(
            ends, lambda piece: CallPiece(json_text.quoted(piece)), cut=True
        )
        if mark is not None:
            yield CallPiece('"')
        return mark
    text, mark = yield from source.collect(ends)
    if mark is not None:
        yield CallPiece(typed.as_json(text, allowed))
    return mark


def name_text(source: Source) -> Parse[str]:
    """A name, as far as the characters can be of one."""
    return source.take((yield from source.run(_NAME)))
