"""Kimi K2's calls. The id is the model's own: the name, and a number that counts on.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0
    <|tool_call_argument_begin|>{"city": "Bern"}<|tool_call_end|><|tool_calls_section_end|>

(One line.) https://huggingface.co/moonshotai/Kimi-K2-Instruct (docs/tool_call_guidance.md).
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallPiece, CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

SECTIONS = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
SECTION_ENDS = ("<|tool_calls_section_end|>", "<|tool_call_section_end|>")
CALL, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"

_ID = re.compile(r"(?:functions\.)?(?P<name>\S+?)(?P<number>:\d+)?")


class KimiK2(Syntax):
    """Kimi K2's calls; see above."""

    name = "kimi-k2"
    # Now and then the section's own mark is left out, or is in the singular.
    marks = (*SECTIONS, CALL)
    repeats = False
    ends_thinking = True
    tags = SECTION_ENDS

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return ARGUMENTS in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark != CALL:
            space = yield from source.skip_space()
            if not (yield from source.accept(CALL)):
                yield Content(mark + space)
                return
            mark += space + CALL
        while mark:
            if not (yield from self._call(source, mark)):
                return
            yield from source.skip_space()
            mark = (yield from source.accept(CALL)) or ""
        yield from source.accept(*SECTION_ENDS)

    def _call(self, source: Source, mark: str) -> Parse[bool]:
        """A call from its id on; whether it was one. Where not, the mark is given."""
        start = source.hold()
        given, end = yield from source.collect(
            (ARGUMENTS, CALL, CALL_END, *SECTIONS, *SECTION_ENDS, "\n\n")
        )
        found = _ID.fullmatch(given.strip())
        if end not in (ARGUMENTS, CALL_END) or found is None:
            source.go_back(start)
            source.release()
            yield Content(mark)
            return False
        source.release()
        yield CallStart(found["name"], given.strip() if found["number"] else None)
        if end == CALL_END:
            yield CallPiece("{}")
            return True
        yield from source.skip_space()
        if (yield from source.next_is(CALL_END)):
            yield CallPiece("{}")
        else:
            yield from json_text.arguments(source)
        yield from source.skip_space()
        yield from source.accept(CALL_END)
        return True

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        number = lark.regex("[0-9]+")
        calls = []
        for tool in tools:
            head = f"{lark.literal(f'{CALL}functions.{tool.name}:')} {number}"
            calls.append(f"{head} {lark.literal(ARGUMENTS)} {lark.arguments(tool)}")
        call = f"({lark.either(calls)} {lark.literal(CALL_END)})" + ("+" if several else "")
        return f"{lark.literal(SECTIONS[0])} {call} {lark.literal(SECTION_ENDS[0])}"
