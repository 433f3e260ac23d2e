"""Kimi K3's replies: everything in elements whose tags are made of three tokens.

    <|open|>think<|sep|> reasoning <|close|>think<|sep|>
    <|open|>response<|sep|> answer <|close|>response<|sep|>
    <|open|>tools<|sep|>
        <|open|>call tool="get_weather" index="1"<|sep|>
            <|open|>argument key="city" type="string"<|sep|>Bern<|close|>argument<|sep|>
        <|close|>call<|sep|>
    <|close|>tools<|sep|>

(Without blanks and line ends.) Attributes are escaped as in XML, texts are not. The prompt
ends within the reasoning or within the response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from mlx_server.text.parsers import json_text, typed
from mlx_server.text.parsers.base import Syntax, Trigger
from mlx_server.text.parsers.events import CallPiece, CallStart, Content
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source
from mlx_server.text.parsers.tags import next_tag, open_ended, schema_of, text_value

_OPEN, _CLOSE, _SEP = "<|open|>", "<|close|>", "<|sep|>"


def _opens(element: str) -> str:
    return f"{_OPEN}{element}{_SEP}"


def _closes(element: str) -> str:
    return f"{_CLOSE}{element}{_SEP}"


_CALL, _ARGUMENT, _JSON = f"{_OPEN}call", f"{_OPEN}argument", f"{_OPEN}json"
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_TYPES = {"integer": "number"}


class KimiK3(Syntax):
    """Kimi K3's calls, answers and reasoning; see above."""

    name = "kimi-k3"
    marks = (
        _opens("tools"),
        _opens("response"),
        *map(_closes, ("response", "tools", "message")),
        "<|end_of_msg|>",
    )
    repeats = False
    always = True

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        return (Trigger(_opens("tools")),)

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return "'<|open|>' + tag" in template

    # ------------------------------------------------------------ reading

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark != _opens("tools"):
            return
        start = source.hold()
        called = False
        while (yield from next_tag(source, _CALL)) == _CALL:
            attributes = yield from _attributes(source)
            name = attributes.get("tool")
            if not name:
                break
            called = True
            source.release()
            yield CallStart(name)
            yield from self._call(source)
            start = source.hold()
        else:
            called = called or source.ended
        if not called or not source.ended:
            source.go_back(start)
        source.release()
        if not called:
            yield Content(mark)

    def _call(self, source: Source) -> Parse[None]:
        end, opening = _closes("call"), "{"
        while True:
            mark = yield from next_tag(source, _ARGUMENT, _JSON, end)
            if mark == _JSON:
                yield from _attributes(source)
                yield from source.skip_space()
                yield from json_text.value(source, CallPiece)
                yield from next_tag(source, _closes("json"))
                yield from next_tag(source, end)
                return
            if mark != _ARGUMENT:
                # The end, or that of the text: then more may have been to come.
                if mark:
                    yield CallPiece("{}" if opening == "{" else "}")
                return
            attributes = yield from _attributes(source)
            key, kind = attributes.get("key"), attributes.get("type", "string")
            if key is None:
                return
            yield CallPiece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
            opening = ", "
            allowed = typed.STRING if kind == "string" else typed.ALL_KINDS - typed.STRING
            if not (yield from text_value(source, (_closes("argument"),), allowed)):
                return

    # ------------------------------------------------------------ writing

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        number = lark.regex("[1-9][0-9]*") if several else lark.literal("1")
        calls = []
        for tool in tools:
            head = lark.literal(f'{_CALL} tool="{_escaped(tool.name)}" index="')
            calls.append(f"{head} {number} {lark.literal(chr(34) + _SEP)} {_written(lark, tool)}")
        call = f"({lark.either(calls)} {lark.literal(_closes('call'))})" + "+" * several
        return f"{lark.literal(_opens('tools'))} {call} {lark.literal(_closes('tools'))}"

    def calls(self, lark: Lark, tools: Sequence[ToolRule], several: bool = True) -> str:
        # The response comes first, and may be empty; the prompt may have opened it.
        head = f"({lark.literal(_opens('response'))})? {lark.literal(_closes('response'))}"
        end = lark.literal(_closes("message"))
        return f"{head} {self.section(lark, tools, several)} ({end})?"

    def answer(self, lark: Lark, body: str) -> str:
        end = lark.literal(_closes("response") + _closes("message"))
        return f"({lark.literal(_opens('response'))})? {body} ({end})?"


def _attributes(source: Source) -> Parse[Mapping[str, str]]:
    """The attributes of a tag that is read up to its name; none where it is cut off."""
    text, end = yield from source.collect((_SEP,))
    return {key: _plain(value) for key, value in _ATTRIBUTE.findall(text)} if end else {}


def _plain(text: str) -> str:
    return text.replace("&quot;", '"').replace("&amp;", "&")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")


def _written(lark: Lark, tool: ToolRule) -> str:
    """A call's arguments."""
    if open_ended(tool) and not tool.required:
        key, value = lark.regex(r"[\w.-]{1,64}"), _value(lark, {}, {})
        return f"({lark.literal(f'{_ARGUMENT} key={chr(34)}')} {key} {value})*"
    parts = []
    for name in [*tool.properties, *sorted(tool.required - set(tool.properties))]:
        value = _value(lark, *schema_of(tool, name))
        part = lark.rule(f"{lark.literal(f'{_ARGUMENT} key={chr(34)}{_escaped(name)}')} {value}")
        parts.append(part if name in tool.required else f"({part})?")
    return " ".join(parts)


def _value(lark: Lark, schema: Any, root: Mapping[str, Any]) -> str:
    """The rest of an argument, from the end of its key on: its type, and a value of it."""
    listed = typed.enumerated(schema, root)
    end = _closes("argument")
    if listed is not None:
        texts = []
        for value in listed:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            (kind,) = typed.kinds({"const": value}, {}) - {"integer"}
            texts.append(lark.literal(f'" type="{kind}"{_SEP}{text}{end}'))
        return lark.either(texts)
    kinds = typed.kinds(schema, root)
    found = []
    for kind in sorted({_TYPES.get(kind, kind) for kind in kinds}):
        head = lark.literal(f'" type="{kind}"{_SEP}')
        if kind == "string":
            found.append(f"{head} {lark.until(end, size=typed.size(schema, root))}")
            continue
        names = {kind, "integer"} if kind == "number" else {kind}
        plain = typed.standing_alone(schema, root) if kinds <= names else {}
        value = lark.json(plain or {"type": sorted(names & kinds)})
        found.append(f"{head} {value} {lark.literal(end)}")
    return lark.either(found)
