"""Llama 3.1 to 3.3: a reply that is a call is nothing but its JSON.

    {"name": "get_weather", "parameters": {"city": "Bern"}}

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from mlx_server.text.parsers import functionary, json_text
from mlx_server.text.parsers.base import Syntax, Trigger
from mlx_server.text.parsers.json_calls import read_calls
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

_PYTHON = "<|python_tag|>"


@dataclass(frozen=True)
class Llama3(Syntax):
    """Bare JSON is a call only where its name is a tool's; it may as well be the answer.

    The models also write several, in a list or behind semicolons, the tag that is meant
    for their own tools before them, and the tags of the other form they were taught.

    Args:
        known: The tools' names; None: any name is taken for one.
    """

    name: str = "llama-3"
    marks: tuple[str, ...] = (_PYTHON, functionary.OPENING)
    leading_marks: tuple[str, ...] = ("{", "[")
    tags: tuple[str, ...] = (functionary.CLOSING,)
    repeats: bool = False
    known: frozenset[str] | None = None

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        return (Trigger('{"name": "', leading=True),)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return '"parameters": dictionary of argument name and its value' in template

    def for_tools(self, tools: Sequence[ToolRule]) -> Syntax:
        return replace(self, known=frozenset(tool.name for tool in tools))

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark == functionary.OPENING:
            yield from functionary.read_function(source, mark)
        elif mark == _PYTHON:
            yield from read_calls(source, mark, item=self._item)
        else:
            source.go_back(source.position - len(mark))
            yield from read_calls(source, "", item=self._item)

    def _item(self, source: Source) -> Parse[bool]:
        return (yield from json_text.call(source, known=self.known))

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        # One alone: the template refuses more.
        return lark.either(
            f"{lark.literal(json_text.head(tool.name, arguments='parameters'))} "
            f"{lark.arguments(tool)} {lark.literal('}')}"
            for tool in tools
        )
