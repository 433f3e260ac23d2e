"""DeepSeek's calls up to V3.1, between tags that are tokens of their own.

    R1     <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
           ```json
           {"city": "Bern"}
           ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
    V3.1   …<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Bern"}<｜tool▁call▁end｜>…

The distilled models of R1 have the tags without having learnt them well: they write
them with blanks, underscores or plain words as well.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallPiece, CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE, FENCE_END = "```json\n", "\n```"

_MISSPELT = ("<｜tool_calls_begin｜>", "<｜tool calls begin｜>", "<｜tool▁calls｜>")


class DeepSeek(Syntax):
    """
    Args:
        fenced: The arguments stand in a fence of Markdown, behind a type and the name.
    """

    # The section's own mark may be missing.
    marks = (SECTION, CALL, *_MISSPELT)
    repeats = False

    def __init__(self, name: str, *, fenced: bool) -> None:
        self.name = name
        self._fenced = fenced

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return SEPARATOR in template and ("```json" in template) == self._fenced

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark != CALL:
            space = yield from source.skip_space()
            mark += space + ((yield from source.accept(CALL)) or "")
        while mark:
            if not (yield from self._call(source, mark)):
                return
            yield from source.skip_space()
            mark = (yield from source.accept(CALL)) or ""
        yield from source.accept(SECTION_END)

    def _call(self, source: Source, mark: str) -> Parse[bool]:
        """A call from its name on; whether it was one. Where not, the mark is given."""
        start = source.hold()
        name = yield from self._name(source)
        if not name:
            source.go_back(start)
            source.release()
            yield Content(mark)
            return False
        source.release()
        yield CallStart(name)
        yield from source.skip_space()
        fence = yield from source.accept("```json", "```")
        if source.closed and "```json".startswith((fence or "") + source.rest):
            source.take(len(source.rest))
            return True
        yield from source.skip_space()
        if (yield from source.next_is(CALL_END)):
            yield CallPiece("{}")
        else:
            yield from json_text.arguments(source)
        yield from source.skip_space()
        if fence:
            yield from source.accept("```")
            yield from source.skip_space()
        yield from source.accept(CALL_END)
        return True

    def _name(self, source: Source) -> Parse[str]:
        """The call's name; nothing where there is none, or it is not whole."""
        ends = ("{", "```", CALL, CALL_END, SECTION_END)
        name, end = yield from source.collect((SEPARATOR, *ends))
        if end != SEPARATOR:
            return ""
        if self._fenced:
            second, end = yield from source.collect(("\n", *ends))
            if end is None:
                return ""
            if end != "\n":
                source.go_back(source.position - len(end))
            name = second if second.strip() else name  # V3.1's form has no type
        name = name.strip()
        return "" if any(character.isspace() for character in name) else name

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        calls = [self._forced(lark, tool) for tool in tools]
        call = lark.either(calls)
        between = lark.literal("\n") if self._fenced else ""
        more = f" ({between} {call})*" if several else ""
        return f"{lark.literal(SECTION)} {call}{more} {lark.literal(SECTION_END)}"

    def _forced(self, lark: Lark, tool: ToolRule) -> str:
        json, end = lark.arguments(tool), lark.literal(CALL_END)
        if not self._fenced:
            return f"{lark.literal(f'{CALL}{tool.name}{SEPARATOR}')} {json} {end}"
        head = lark.literal(f"{CALL}function{SEPARATOR}{tool.name}\n{FENCE}")
        return f"{head} {json} {lark.literal(FENCE_END)} {end}"


DEEPSEEK_R1 = DeepSeek("deepseek-r1", fenced=True)
DEEPSEEK_V3_1 = DeepSeek("deepseek-v3.1", fenced=False)
