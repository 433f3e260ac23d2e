"""Apertus' calls: one list, each call an object whose only key is the name.

    <|tools_prefix|>[{"get_weather": {"city": "Bern"}}]<|tools_suffix|>

They may stand in the reasoning, which they end.
https://huggingface.co/swiss-ai/Apertus-8B-Instruct-2509
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

SECTION, SECTION_END = "<|tools_prefix|>", "<|tools_suffix|>"


class Apertus(Syntax):
    """Apertus' calls; see above."""

    name = "apertus"
    marks = (SECTION,)
    repeats = False
    ends_thinking = True

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return SECTION in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        start = source.hold()
        yield from source.skip_space()
        yield from source.accept("[")
        called = False
        while True:
            yield from source.skip_space()
            yield from source.accept("," if called else "{")
            yield from source.skip_space()
            yield from source.accept("{")
            yield from source.skip_space()
            name = yield from self._key(source)
            if not name:
                break
            called = True
            source.release()
            yield CallStart(name)
            yield from source.skip_space()
            yield from json_text.arguments(source)
            yield from source.skip_space()
            yield from source.accept("}")
        if not called:
            source.go_back(start)
            source.release()
            yield Content(mark)
            return
        yield from source.accept("]")
        yield from source.skip_space()
        yield from source.accept(SECTION_END)

    def _key(self, source: Source) -> Parse[str]:
        """A key and the colon behind it; nothing where they are not there."""
        if not (yield from source.next_is('"')):
            return ""
        name = json_text.decoded((yield from json_text.collected(source)))
        yield from source.skip_space()
        return name if (yield from source.accept(":")) else ""

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        call = lark.either(
            f"{lark.literal('{' + json.dumps(tool.name) + ': ')} {lark.arguments(tool)}"
            f" {lark.literal('}')}"
            for tool in tools
        )
        more = f" ({lark.literal(', ')} {call})*" if several else ""
        opening, closing = lark.literal(SECTION + "["), lark.literal("]" + SECTION_END)
        return f"{opening} {call}{more} {closing}"
