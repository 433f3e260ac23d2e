"""Muse Glimmer's messages: reasoning to itself, calls to tools and the answer to the user.

     to=self<|message|> reasoning <|eom|>
    <|start|>assistant to=get_weather<|message|><atem:function_calls>
    <atem:invoke name="get_weather">
    <atem:parameter name="city">Bern</atem:parameter>
    </atem:invoke>
    </atem:function_calls><|eom|>
    <|start|>assistant to=user<|message|> answer <|eot|>

The prompt ends with `<|start|>assistant`; behind `<|eom|>` there is no line end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.events import Content, Thought
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source
from mlx_server.text.parsers.tagged import Tagged
from mlx_server.text.parsers.tags import Tags

START, MESSAGE, TO = "<|start|>", "<|message|>", "to="
NEXT, ENDS = "<|eom|>", ("<|eom|>", "<|eot|>")

TURN = f"{START}assistant"

_HEADER = re.compile(r"(?:assistant)? ?(?:to=(?P<to>[^\s<]*))?")
_CUT = re.compile(r"<?[|a-z]*")  # what there may be of the mark behind it


@dataclass(frozen=True, kw_only=True, eq=False)
class Muse(Tagged):
    """Muse's messages; see above."""

    leading_marks = (TO, MESSAGE)
    always = True
    thinks = True
    reasoning = Thinking(f" {TO}self{MESSAGE}", NEXT, "", TURN)

    @property
    def marks(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().marks, START, *ENDS)

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark in (START, TO):
            yield from self._header(source, mark)
        elif mark not in (MESSAGE, *ENDS):
            yield from super().read(source, mark)

    def _header(self, source: Source, mark: str) -> Parse[None]:
        """A message's beginning, and the reasoning, where it is that."""
        start = source.hold()
        text, found = yield from source.collect((MESSAGE, START, "\n", "<atem:"))
        text = (TO if mark == TO else "") + text
        header = _HEADER.match(text)
        assert header is not None  # it matches nothing, too
        if found == MESSAGE:
            known = header.end() == len(text)
        else:
            cut = _CUT.fullmatch(text, header.end()) is not None
            known = found is None and (cut or "assistant to=".startswith(text))
        if not known:
            source.go_back(start)
            yield Content(mark)
        source.release()
        if known and found == MESSAGE and header["to"] == "self":
            yield Thought("")
            yield from source.until(ENDS, Thought, cut=True)
            yield Content("")

    # ------------------------------------------------------------ grammar

    def calls(self, lark: Lark, tools: Sequence[ToolRule], several: bool = True) -> str:
        calls = []
        for tool in tools:
            head = lark.literal(f" {TO}{tool.name}{MESSAGE}")
            calls.append(f"{head} {self.section(lark, (tool,), False)}")
        call = lark.either(calls)
        more = f" ({lark.literal(NEXT + TURN)} {call})*" if several else ""
        return f"{call}{more}"

    def answer(self, lark: Lark, body: str) -> str:
        return f"{lark.literal(f' {TO}user{MESSAGE}')} {body}"


MUSE = Muse(
    name="muse",
    form=Tags(
        section="<atem:function_calls>\n",
        section_end="</atem:function_calls>",
        call='<atem:invoke name="',
        name_end='">\n',
        call_end="</atem:invoke>\n",
        key='<atem:parameter name="',
        key_end='">',
        value_end="</atem:parameter>\n",
    ),
    signs=lambda template: "<atem:invoke" in template,
    between="",
)
