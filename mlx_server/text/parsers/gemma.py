"""Gemma's calls, bare but for the strings.

    Gemma 4         <|tool_call>call:get_weather{city:<|"|>Bern<|"|>,days:3}<tool_call|>
    FunctionGemma   <start_function_call>call:get_weather{city:<escape>Bern<escape>}…
                    …<end_function_call>

https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from mlx_server.text.parsers import json_text, literal_rules
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.literals import Notation
from mlx_server.text.parsers.source import Parse, Source

_NAME = re.compile(r"[^\s{}()<>,]+")


@dataclass(frozen=True, kw_only=True, eq=False)
class Gemma(Syntax):
    """
    Args:
        name: The family's.
        opening, closing: Around a call.
        quote: What stands around a string. Reading takes JSON's as well.
    """

    name: str
    opening: str
    closing: str
    quote: str

    @property
    def marks(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.opening,)

    @property
    def _notation(self) -> Notation:
        return Notation(quotes=(self.quote, '"'), comma=",", colon=":", sorted_keys=True)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return f"{self.opening}call:" in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        start = source.hold()
        yield from source.skip_space()
        if not (yield from source.accept("call:")):
            called = yield from json_text.call(source)
        else:
            called = yield from self._call(source)
        if not called:
            source.go_back(start)
        source.release()
        if not called:
            yield Content(mark)
            return
        yield from source.skip_space()
        yield from source.accept(self.closing)

    def _call(self, source: Source) -> Parse[bool]:
        """A call from its name on; whether it was one."""
        text, brace = yield from source.collect(("{", self.closing, "\n"))
        name = text.strip()
        if brace != "{" or not _NAME.fullmatch(name):
            return False
        source.release()
        yield CallStart(name)
        yield from self._notation.read_object(source)
        return True

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        call = lark.either(
            f"{lark.literal(tool.name + '{')}"
            f" {literal_rules.arguments(lark, self._notation, tool, ':')}"
            for tool in tools
        )
        opening, closing = lark.literal(f"{self.opening}call:"), lark.literal("}" + self.closing)
        return f"{opening} {call} {closing}"


GEMMA_4 = Gemma(name="gemma-4", opening="<|tool_call>", closing="<tool_call|>", quote='<|"|>')
FUNCTION_GEMMA = Gemma(
    name="functiongemma",
    opening="<start_function_call>",
    closing="<end_function_call>",
    quote="<escape>",
)
