"""Calls written as a list of Python calls.

    LFM2          <|tool_call_start|>[get_weather(city='Bern', days=3)]<|tool_call_end|>
    Llama 3.2, 4  [get_weather(city='Bern', days=3), get_time()]

The second only where a reply begins with it. https://docs.liquid.ai/docs/key-concepts/tool-use,
https://www.llama.com/docs/model-cards-and-prompt-formats/llama4/ (zero-shot function calling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlx_server.text.parsers import literal_rules, literals
from mlx_server.text.parsers.base import Syntax, Trigger
from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.json_calls import read_calls
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

_NAME = re.compile(r"[\w.:/-]*")
_POSITIONAL = re.compile(r"['\"\[{(\d+-]")
_UNDECIDED = re.compile(r"\(\s*\w*\s*")
_KEYWORD = re.compile(r"\(\s*(?:\)|\w+\s*=)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pythonic(Syntax):
    """
    Args:
        name: The family's.
        signs: Parts of chat templates of the family; tokens of its vocabulary.
        opening, closing: Around the list; without them a reply begins with it.
        tools: What the request's tools are, by name.
    """

    name: str
    signs: tuple[str, ...]
    opening: str = ""
    closing: str = ""
    marks: tuple[str, ...] = ()
    leading_marks: tuple[str, ...] = ()
    tools: Mapping[str, ToolRule] = field(default_factory=dict)
    repeats = False

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        if self.opening:
            return (Trigger(self.opening),)
        return tuple(Trigger(f"[{name}(", leading=True) for name in self.tools)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return any(sign in template for sign in self.signs) or (
            bool(self.opening) and self.opening in vocabulary
        )

    def for_tools(self, tools: Sequence[ToolRule]) -> Pythonic:
        return replace(self, tools={tool.name: tool for tool in tools})

    # ------------------------------------------------------------ reading

    def read(self, source: Source, mark: str) -> Parse[None]:
        first = start = source.hold()
        yield from source.skip_space()
        bare = mark == "["
        if not bare:
            yield from source.accept("[")
            yield from source.skip_space()
        called = False
        while (yield from self._call(source, sure=called or not bare)):
            called = True
            yield from source.skip_space()
            start = source.hold()
            if not (yield from source.accept(",")):
                break
            yield from source.skip_space()
        source.go_back(start)
        if not called:
            # Models that also write JSON put it between the same marks.
            source.go_back(first)
            yield from read_calls(source, mark, tuple(filter(None, (self.closing,))))
            return
        source.release()
        yield from source.accept("]")
        if self.closing:
            yield from source.skip_space()
            yield from source.accept(self.closing)

    def _call(self, source: Source, sure: bool) -> Parse[bool]:
        """One call; whether it was one. Nothing is given of what is none.

        Args:
            sure: Whatever looks like a call is one; else prose might.
        """
        name = source.take((yield from source.run(_NAME)))
        if not name or (yield from source.peek()) != "(":
            return False
        if not sure and name not in self.tools:
            while _UNDECIDED.fullmatch(source.rest) and not source.closed:
                yield None
            if not _KEYWORD.match(source.rest):
                return False
        source.take(1)
        source.release()
        yield CallStart(name)
        yield from self._arguments(source, self.tools.get(name))
        return True

    def _arguments(self, source: Source, tool: ToolRule | None) -> Parse[None]:
        names = list(tool.properties) if tool is not None else []
        opening, count = "{", 0
        while True:
            yield from source.skip_space()
            yield from source.accept(",")
            yield from source.skip_space()
            if (yield from source.accept(")")):
                yield CallPiece("{}" if opening == "{" else "}")
                return
            if _POSITIONAL.match((yield from source.peek())):
                key = names[count] if count < len(names) else str(count)
            else:
                text, found = yield from source.collect(("=", ")", "]"))
                if found != "=":
                    return
                key = text.strip()
            count += 1
            yield CallPiece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
            opening = ", "
            if not (yield from literals.PYTHON.read(source)):
                return

    # ------------------------------------------------------------ writing

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        call = lark.either(
            f"{lark.literal(tool.name + '(')}"
            f" {literal_rules.arguments(lark, literals.PYTHON, tool, '=')} {lark.literal(')')}"
            for tool in tools
        )
        more = f" ({lark.literal(', ')} {call})*" if several else ""
        opening, closing = lark.literal(self.opening + "["), lark.literal("]" + self.closing)
        return f"{opening} {call}{more} {closing}"


LFM2 = Pythonic(
    name="lfm2",
    signs=("<|tool_call_start|>", "List of tools: [", "<|tool_list_start|>"),
    opening="<|tool_call_start|>",
    closing="<|tool_call_end|>",
    marks=("<|tool_call_start|>",),
)
LLAMA_PYTHONIC = Pythonic(
    name="pythonic",
    signs=("[func_name1(params_name1=",),
    marks=("<|python_start|>",),
    leading_marks=("[",),
)
"""Llama 3.2's and 4's, and others' that are told of their tools in these words."""
