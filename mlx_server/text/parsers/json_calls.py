"""Calls written as JSON objects between marks: one reader, and the families that differ
from one another in nothing but what stands around the objects.

    <TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Bern"}}, {…}]</TOOLCALL>
    opening    head                                                     closing
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

Item = Callable[[Source], Parse[bool]]
"""Reads one call; whether it was one."""


_WORD = re.compile(r"[^\s<>{}\[\]\"']+")


def word(source: Source) -> Parse[str]:
    """What may be a name: text up to a space, a bracket or a quote."""
    found = ""
    while (yield from source.peek()) and (run := source.ahead(_WORD)):
        found += source.take(run)
    return found


def read_calls(
    source: Source, mark: str, closing: Sequence[str] = (), item: Item = json_text.call
) -> Parse[bool]:
    """The calls behind a mark: one, or several in a list, on lines or behind semicolons.

    Args:
        mark: What is read already; given as Content where no call follows.
        closing: Texts that end the section. One that is missing is not missed.

    Returns:
        Whether there was a call.
    """
    found = False
    start = source.hold()
    yield from source.skip_space()
    listed = yield from source.accept("[")
    while (yield from item(source)):
        found = True
        start = source.hold()
        # Some models close one brace too many.
        yield from source.accept("}")
        yield from source.skip_space()
        yield from source.accept(",", ";")
        yield from source.skip_space()
        ahead = yield from source.peek()
        if not ahead:
            start = source.hold()
        if ahead != "{":
            break
    source.go_back(start)
    source.release()
    if not found:
        yield Content(mark)
        return False
    yield from source.accept("}")
    yield from source.skip_space()
    if listed:
        yield from source.accept("]")
        yield from source.skip_space()
    if closing:
        yield from source.finish(*closing)
    return True


@dataclass(frozen=True, kw_only=True)
class JsonCalls(Syntax):
    """A family whose calls are JSON objects.

    Args:
        signs: What all of its templates have.
        lacks: What none of them has.
        markup: Marks around the content, which are left out of it.
        opening: What its templates write before the first call of a section.
        closing: What they write behind the last.
        joint: What they write between two of a section; None: each has a section.
        head: What they write before a call's name, and between that and the arguments.
        ends: Texts that end a section, as models write them.
        prefix, suffix: What they write around an answer.
    """

    name: str
    signs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    marks: tuple[str, ...]
    markup: tuple[str, ...] = ()
    opening: str
    closing: str = ""
    joint: str | None = ", "
    head: tuple[str, str] = ('{"name": ', ', "arguments": ')
    ends: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""
    repeats: bool = False
    between: str = ""
    always: bool = False
    tags: tuple[str, ...] = ()

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return all(sign in template for sign in self.signs) and not any(
            text in template for text in self.lacks
        )

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark in self.markup:
            yield from source.skip_space()
        else:
            yield from read_calls(source, mark, self.ends, self.item)

    def item(self, source: Source) -> Parse[bool]:
        """Reads one call; whether it was one."""
        return (yield from json_text.call(source))

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        call = lark.either(self.call(lark, tool) for tool in tools)
        if several and self.joint is not None:
            call = f"{call} ({lark.literal(self.joint)} {call})*"
        closing = f" {lark.literal(self.closing)}" if self.closing else ""
        return f"{lark.literal(self.opening)} {call}{closing}"

    def call(self, lark: Lark, tool: ToolRule) -> str:
        """A grammar's expression for one call of the tool."""
        before, behind = self.head
        head = lark.literal(f"{before}{json.dumps(tool.name, ensure_ascii=False)}{behind}")
        return f"{head} {lark.arguments(tool)} {lark.literal('}')}"

    def answer(self, lark: Lark, body: str) -> str:
        parts = [lark.literal(self.prefix)] if self.prefix else []
        parts.append(body)
        parts += [lark.literal(self.suffix)] if self.suffix else []
        return " ".join(parts)


NEMOTRON_NANO_2 = JsonCalls(
    name="nemotron-nano-2",
    signs=("<TOOLCALL>[",),
    marks=("<TOOLCALL>",),
    opening="<TOOLCALL>[",
    closing="]</TOOLCALL>",
    ends=("</TOOLCALL>",),
)

_FINAL = ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")

APRIEL = JsonCalls(
    name="apriel",
    signs=("<tool_calls>[", "[BEGIN FINAL RESPONSE]"),
    # The line end before a mark is the mark's.
    marks=("<tool_calls>", *_FINAL, *(f"\n{text}" for text in _FINAL)),
    markup=(*_FINAL, *(f"\n{text}" for text in _FINAL)),
    opening="\n<tool_calls>[",
    closing="]</tool_calls>",
    ends=("</tool_calls>",),
    always=True,
)
"""Where its reasoning ends is a matter of `Thinking`; its answers have the marks, too."""

MINIMAX_M1 = JsonCalls(
    name="minimax-m1",
    signs=("<tool_calls>\\n",),
    marks=("<tool_calls>",),
    opening="<tool_calls>\n",
    closing="\n</tool_calls>",
    joint="\n",
    ends=("</tool_calls>",),
)

FIREFUNCTION_2 = JsonCalls(
    name="firefunction-2",
    signs=("functools[",),
    marks=("functools[",),
    opening=" functools[",
    closing="]",
    ends=("]",),
)


@dataclass(frozen=True, kw_only=True)
class Granite3(JsonCalls):
    """Where the model is told to think, its answer has a tag as well.

    The template tells the model of its calls' form and leaves them out of the history.
    https://huggingface.co/ibm-granite/granite-3.3-2b-instruct
    """

    leading_marks: tuple[str, ...] = ("<response>",)
    tags: tuple[str, ...] = ("</response>",)

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark in self.leading_marks:
            yield from source.skip_space()
            found = yield from source.until((*self.tags, *self.marks), Content)
            if found not in self.marks:
                return
            mark = found
        yield from super().read(source, mark)


GRANITE_3 = Granite3(
    name="granite-3",
    signs=("<|start_of_role|>", "<|tool_call|>"),
    marks=("<|tool_call|>",),
    opening="<|tool_call|>[",
    closing="]",
    always=True,
)

_GIGACHAT_3 = "<|message_sep|>\n\nfunction call<|role_sep|>\n"

GIGACHAT_3 = JsonCalls(
    name="gigachat-3",
    signs=("<|message_sep|>", "'function call'"),
    lacks=("<|function_call|>",),
    marks=(_GIGACHAT_3, _GIGACHAT_3.strip(), "function call<|role_sep|>"),
    opening=_GIGACHAT_3,
    joint=None,
    tags=("<|message_sep|>\n\n", "<|message_sep|>", "<|role_sep|>\n", "<|role_sep|>"),
)
"""https://github.com/ggml-org/llama.cpp/pull/19931: one call a reply."""

GIGACHAT_3_1 = JsonCalls(
    name="gigachat-3.1",
    signs=("<|message_sep|>", "<|function_call|>"),
    marks=("<|function_call|>",),
    opening="<|function_call|>",
    joint=None,
)
