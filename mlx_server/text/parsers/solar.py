"""Upstage Solar Open's replies: a kind, its text, an end, each mark a token.

    <|think|> reasoning <|end|><|begin|>assistant
    <|content|> answer <|end|>
    <|tool_calls|><|tool_call:begin|> id <|tool_call:name|> name
        <|tool_call:args|> {…} <|tool_call:end|> … <|calls|>

(one behind the other, without the line ends). https://huggingface.co/upstage/Solar-Open-100B
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax, Thinking
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Thought
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source

_THINK, _CONTENT, _END = "<|think|>", "<|content|>", "<|end|>"
_TURN, _FLUSH = "<|begin|>assistant", "<|flush|>"
_CALLS, _CALLS_END = "<|tool_calls|>", "<|calls|>"
_CALL, _CALL_END = "<|tool_call:begin|>", "<|tool_call:end|>"
_NAME, _ARGUMENTS = "<|tool_call:name|>", "<|tool_call:args|>"
_NO_MORE = (_CALL_END, _CALLS_END, _END, _CALL)


class SolarOpen(Syntax):
    """Solar Open's reasoning, answers and calls; see above."""

    name = "solar-open"
    marks = (_THINK, _CONTENT, _END, _TURN, _FLUSH, _CALLS, _CALLS_END, _CALL)
    repeats = False
    always = True
    thinks = True
    reasoning = Thinking(_THINK, _END, "", _TURN)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return _CALLS in template and _ARGUMENTS in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark == _THINK:
            yield Thought("")
            yield from source.until((_END, _FLUSH), Thought)
            yield Content("")
        elif mark == _CALLS:
            # The calls have a mark of their own.
            if not source.closed and (yield from source.next_is(_CALL)) is None:
                yield Content(mark)
        elif mark == _CALL:
            start = source.hold()
            if not (yield from self._call(source)):
                source.go_back(start)
                yield Content(mark)
            source.release()
        # The other marks only say what kind of text comes, or that it is over.

    def _call(self, source: Source) -> Parse[bool]:
        own, found = yield from source.collect((_NAME, *_NO_MORE))
        if found != _NAME:
            return False
        name, found = yield from source.collect((_ARGUMENTS, *_NO_MORE))
        if not name.strip() or found not in (_ARGUMENTS, _CALL_END):
            return False
        source.release()
        yield CallStart(name.strip(), own.strip() or None)
        if found == _CALL_END:
            yield CallPiece("{}")
            return True
        yield from source.skip_space()
        yield from json_text.value(source, CallPiece)
        yield from source.skip_space()
        yield from source.accept(_CALL_END)
        return True

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        own = lark.regex("[a-z0-9]{10}")  # what the template asks for
        named = lark.either(
            f"{lark.literal(f'{_NAME}{tool.name}{_ARGUMENTS}')} {lark.json(tool.schema)}"
            for tool in tools
        )
        call = f"{lark.literal(_CALL)} {own} {named} {lark.literal(_CALL_END)}"
        calls = f"{call} ({call})*" if several else call
        # The last mark may be one that ends the reply before the grammar sees it.
        return f"{lark.literal(_CALLS)} {calls} ({lark.literal(_CALLS_END)})?"

    def answer(self, lark: Lark, body: str) -> str:
        end = lark.either(map(lark.literal, (_END, _FLUSH)))
        return f"{lark.literal(_CONTENT)} {body} ({end})?"
