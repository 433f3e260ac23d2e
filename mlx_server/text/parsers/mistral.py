"""Mistral's calls, in the forms of three generations of its tokenizers.

    list      [TOOL_CALLS][{"name": "get_weather", "arguments": {…}, "id": "abcdef123"}, {…}]
    call id   [TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]{…}[TOOL_CALLS]…
    plain     [TOOL_CALLS]get_weather[ARGS]{…}[TOOL_CALLS]…

All are read alike. https://github.com/mistralai/mistral-common
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallStart, Content
from mlx_server.text.parsers.json_calls import read_calls, word
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_AN_ID = "[a-zA-Z0-9]{9}"


@dataclass(frozen=True)
class Mistral(Syntax):
    """
    Args:
        form: How the family's template writes calls.
    """

    name: str
    form: Literal["list", "call id", "plain"] = "plain"
    marks: tuple[str, ...] = (_CALLS,)
    tags: tuple[str, ...] = (_ID, _ARGUMENTS)

    @property
    def repeats(self) -> bool:  # type: ignore[override]
        return self.form != "list"

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        if _CALLS not in template:
            return False
        if _ARGUMENTS not in template:
            return self.form == "list"
        return self.form == ("call id" if _ID in template else "plain")

    def read(self, source: Source, mark: str) -> Parse[None]:
        start = source.hold()
        yield from source.skip_space()
        listed = (yield from source.next_is("[", "{")) is not None
        source.go_back(start)
        if listed:
            yield from read_calls(source, mark, item=_item)
        else:
            yield from _named(source, mark)

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        if self.form != "list":
            return lark.either(f"{self._named(lark, tool)}" for tool in tools)
        before, behind = lark.literal(', "id": "'), lark.literal('"')
        an_id = f"({before} {lark.regex(_AN_ID)} {behind})?"
        call = lark.either(
            f"{lark.literal(json_text.head(tool.name))} {lark.arguments(tool)} {an_id} "
            f"{lark.literal('}')}"
            for tool in tools
        )
        more = f" ({lark.literal(', ')} {call})*" if several else ""
        return f"{lark.literal(_CALLS + '[')} {call}{more} {lark.literal(']')}"

    def _named(self, lark: Lark, tool: ToolRule) -> str:
        name = lark.literal(_CALLS + tool.name)
        if self.form == "call id":
            name = f"{name} {lark.literal(_ID)} {lark.regex(_AN_ID)}"
        return f"{name} {lark.literal(_ARGUMENTS)} {lark.arguments(tool)}"


def _item(source: Source) -> Parse[bool]:
    return (yield from json_text.call(source, ids=("id",)))


def _named(source: Source, mark: str) -> Parse[None]:
    """A call that begins with its name."""
    start = source.hold()
    yield from source.skip_space()
    name = yield from word(source)
    if not name or (yield from source.next_is(_ID, _ARGUMENTS, "{")) is None:
        source.go_back(start)
        source.release()
        yield Content(mark)
        return
    call_id = None
    if (yield from source.accept(_ID)):
        call_id = yield from word(source)
    source.release()
    yield CallStart(name, call_id or None)
    yield from source.finish(_ARGUMENTS)
    yield from source.skip_space()
    yield from json_text.arguments(source)


MISTRAL = (
    Mistral("mistral-list", "list"),
    Mistral("mistral-call-id", "call id"),
    Mistral("mistral"),
)
