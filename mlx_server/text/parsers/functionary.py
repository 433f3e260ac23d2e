"""Functionary's calls (MeetKai). https://github.com/MeetKai/functionary

v3.1   <function=get_weather>{"city": "Bern"}</function>
v3.2   >>>get_weather
       {"city": "Bern"}>>>all
       It is sunny.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallStart, Content
from mlx_server.text.parsers.json_calls import word
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

OPENING, CLOSING = "<function=", "</function>"


def read_function(source: Source, mark: str) -> Parse[None]:
    """A call in a tag that has its name; the tag's beginning, `mark`, is read already."""
    start = source.hold()
    name = yield from word(source)
    if not name or not (yield from source.accept(">")):
        source.go_back(start)
        source.release()
        yield Content(mark)
        return
    yield from source.skip_space()
    if not source.ended and (yield from source.next_is("{", "null", '"', CLOSING)) is None:
        source.go_back(start)
        source.release()
        yield Content(mark)
        return
    source.release()
    yield CallStart(name)
    yield from json_text.arguments(source)
    yield from source.skip_space()
    yield from source.finish(CLOSING)


class Functionary31(Syntax):
    """https://huggingface.co/meetkai/functionary-medium-v3.1"""

    name = "functionary-3.1"
    marks = (OPENING,)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return "<{start_tag}={function_name}>" in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        yield from read_function(source, mark)

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        return lark.either(
            f"{lark.literal(f'{OPENING}{tool.name}>')} {lark.arguments(tool)} "
            f"{lark.literal(CLOSING)}"
            for tool in tools
        )


_NEXT = ">>>"
_ALL = "all\n"


@dataclass(frozen=True)
class Functionary32(Syntax):
    """Every part of a reply begins with whom it is for: a tool, or all.

    The prompt ends with ">>>", so the first part has none. Who is no tool of the request
    is none here: ">>>" alone may be content. https://huggingface.co/meetkai/functionary-medium-v3.2
    """

    name: str = "functionary-3.2"
    marks: tuple[str, ...] = (_NEXT + _ALL,)
    leading_marks: tuple[str, ...] = (_ALL,)
    between: str = _NEXT
    always: bool = True

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return ">>>${recipient}" in template

    def for_tools(self, tools: Sequence[ToolRule]) -> Syntax:
        leading = (_ALL, *(f"{tool.name}\n" for tool in tools))
        return replace(self, marks=tuple(_NEXT + text for text in leading), leading_marks=leading)

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark in (_ALL, _NEXT + _ALL):
            return
        start = source.hold()
        yield from source.skip_space()
        ahead = yield from source.peek()
        if ahead and ahead != "{":
            source.go_back(start)
            yield Content(mark)
        else:
            yield CallStart(mark.removeprefix(_NEXT).rstrip())
            yield from json_text.arguments(source)
        source.release()

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        return lark.either(
            f"{lark.literal(tool.name + chr(10))} {lark.arguments(tool)}" for tool in tools
        )

    def answer(self, lark: Lark, body: str) -> str:
        return f"{lark.literal(_ALL)} {body}"
