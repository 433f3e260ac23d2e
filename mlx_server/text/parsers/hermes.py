"""Hermes' calls, which Qwen 2.5 and 3 and many others write as well.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Bern"}}
    </tool_call>

A tag for each call. https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Sequence

from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.events import CallPiece, CallStart, Content
from mlx_server.text.parsers.json_calls import read_calls
from mlx_server.text.parsers.json_text import head
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_FORM = re.compile(r"<tool_call>(\n|\\n)")  # a line end as it is, or as Jinja may write it


class Hermes(Syntax):
    """https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B, and who writes as it does."""

    name = "hermes"
    marks = (OPENING,)
    between = "\n"

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return _FORM.search(template) is not None and '"arguments' in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        start = source.hold()
        yield from source.skip_space()
        first = yield from source.peek(2)
        source.go_back(start)
        if first == "{'":
            yield from _python(source, mark)
        else:
            yield from read_calls(source, mark, (CLOSING,))

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        call = lark.either(
            f"{lark.literal(head(tool.name))} {lark.arguments(tool)}" for tool in tools
        )
        opening, closing = lark.literal(f"{OPENING}\n"), lark.literal(f"}}\n{CLOSING}")
        return f"{opening} {call} {closing}"


class Reka(Hermes):
    """Reka Edge: no line between calls, and a space before whatever a reply begins with."""

    name = "reka"
    between = ""

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return super().matches(template, vocabulary) and "<sep>" in template

    def calls(self, lark: Lark, tools: Sequence[ToolRule], several: bool = True) -> str:
        return f"{lark.literal(' ')} {super().calls(lark, tools, several)}"


def _python(source: Source, mark: str) -> Parse[None]:
    """A call that is written as a Python dictionary, as the first Hermes models do."""
    start = source.hold()
    text, _ = yield from source.collect((CLOSING,))
    try:
        found = ast.literal_eval(text.strip())
        name, arguments = found["name"], json.dumps(found["arguments"], ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        source.go_back(start)
        yield Content(mark)
    else:
        yield CallStart(str(name))
        yield CallPiece(arguments)
    source.release()
