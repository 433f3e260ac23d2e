"""MiniMax M3's calls, whose values are tags within tags all the way down.

    ]<]minimax[>[<tool_call>
    ]<]minimax[>[<invoke name="book">
      ]<]minimax[>[<city>Bern]<]minimax[>[</city>
      ]<]minimax[>[<nights>]<]minimax[>[<item>3]<]minimax[>[</item>]<]minimax[>[</nights>
    ]<]minimax[>[</invoke>
    ]<]minimax[>[</tool_call>

(indented here only). A list has `<item>`s, an object its keys; null is left out. The
mark before each tag is a token that no text holds, so it ends every text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlx_server.text.parsers import typed
from mlx_server.text.parsers.events import CallPiece
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import Parse, Source
from mlx_server.text.parsers.tagged import Tagged
from mlx_server.text.parsers.tags import CUT, Tags, cut_within, next_tag, schema_of, text_value

_MARK = "]<]minimax[>["
_OPEN, _CLOSE = f"{_MARK}<", f"{_MARK}</"
_CONTAINERS = frozenset({"array", "object"})
_DEPTH = 5
"""Levels of tags in a grammar; what lies deeper is written as JSON."""
_DEEPEST = 64
"""Levels that are read; what lies deeper is no value."""


class MiniMaxM3(Tagged):
    """A family whose parameters' values are trees of tags."""

    # ------------------------------------------------------------ reading

    def _parameter(
        self, source: Source, tags: Tags, tool: ToolRule | None, opening: str
    ) -> Parse[str | None]:
        key, found = yield from source.collect((">",))
        if found is None:
            return CUT
        yield CallPiece(f"{opening}{_quoted(key)}: ")
        if not (yield from self._element(source, *(schema_of(tool, key) if tool else ({}, {})))):
            return CUT
        return (yield from self._next(source, tags))

    def _element(
        self, source: Source, schema: Any, root: Mapping[str, Any], depth: int = 0
    ) -> Parse[bool]:
        """A value and its end tag; returns whether both are there."""
        allowed = typed.kinds(schema, root)
        if "string" not in allowed:
            yield from source.skip_space()
        tag = yield from source.next_is(_OPEN, _CLOSE)
        if cut_within(source, _CLOSE):
            return False
        source.take(len(tag or ""))
        if tag == _OPEN:
            if depth == _DEEPEST:
                return False
            return (yield from self._container(source, schema, root, allowed, depth + 1))
        if tag is None:
            if (yield from text_value(source, (_MARK,), allowed)) is None:
                return False
            tag = yield from source.accept("</")
            if cut_within(source, "</"):
                return False
        else:
            yield CallPiece(_empty(allowed))
        return (yield from _end(source)) if tag else True

    def _container(
        self,
        source: Source,
        schema: Any,
        root: Mapping[str, Any],
        allowed: frozenset[str],
        depth: int,
    ) -> Parse[bool]:
        """A list or an object, from its first tag's name on, and its end tag."""
        tag: str | None = _OPEN
        given, is_list = 0, False
        while tag == _OPEN:
            key, found = yield from source.collect((">",))
            if found is None:
                return False
            if not given:
                is_list = _is_list(key, allowed)
                schema = _variant(schema, root, "array" if is_list else "object")
            before = ", " if given else "[" if is_list else "{"
            yield CallPiece(before if is_list else f"{before}{_quoted(key)}: ")
            given += 1
            inner = schema.get("items", {}) if is_list else _property(schema, key)
            if not (yield from self._element(source, inner, root, depth)):
                return False
            tag = yield from next_tag(source, _OPEN, _CLOSE)
        if tag == CUT:
            return False
        yield CallPiece("]" if is_list else "}")
        return (yield from _end(source)) if tag else True

    # ------------------------------------------------------------ writing

    def _literal(self, lark: Lark, text: str) -> str:
        # A lexer takes the longest literal: the mark must be one by itself everywhere.
        parts = [part for part in re.split(f"({re.escape(_MARK)})", text) if part]
        return " ".join(map(lark.literal, parts))

    def _written_parameter(self, lark: Lark, key: str, name: str, tool: ToolRule) -> str:
        return self._written_element(lark, key, *schema_of(tool, name), 0)

    def _written_element(
        self, lark: Lark, key: str, schema: Any, root: Mapping[str, Any], depth: int
    ) -> str:
        value = self._written_tree(lark, schema, root, depth)
        opening, closing, end = self._literal(lark, _OPEN), lark.literal("</"), lark.literal(">")
        return lark.rule(f"{opening} {key} {end} {value} {closing} {key} {end}")

    def _written_tree(self, lark: Lark, schema: Any, root: Mapping[str, Any], depth: int) -> str:
        """A value and the mark behind it."""
        mark, allowed = lark.literal(_MARK), typed.kinds(schema, root)
        listed = typed.enumerated(schema, root)
        if listed is not None:
            texts = [text for value in listed for text in self._spelled(value)]
            return f"{lark.either(map(lark.literal, texts))} {mark}"
        if "string" in allowed:
            return lark.until(_MARK, size=typed.size(schema, root), stripped=True)
        if not allowed & _CONTAINERS or depth > _DEPTH:
            return f"{lark.json(typed.standing_alone(schema, root))} {mark}"
        ways = []
        if "object" in allowed:
            inner = _variant(schema, root, "object")
            ways.append(self._written_object(lark, inner, root, depth + 1))
        if "array" in allowed:
            inner = _variant(schema, root, "array")
            ways.append(self._written_list(lark, inner, root, depth + 1))
        if scalars := sorted(allowed - _CONTAINERS):
            ways.append(lark.json({"type": scalars}))
        return f"{lark.either(ways)} {mark}"

    def _written_object(
        self, lark: Lark, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
    ) -> str:
        tool = ToolRule("", schema)
        parts = []
        for name in (*tool.properties, *sorted(tool.required - set(tool.properties))):
            inner = _property(schema, name)
            part = self._written_element(lark, lark.literal(name), inner, root, depth)
            parts.append(part if name in tool.required else f"({part})?")
        if not parts and schema.get("additionalProperties", True) is not False:
            free = lark.regex(r"[A-Za-z0-9_.-]{1,64}")
            inner = _property(schema, "")
            parts.append(f"({self._written_free(lark, free, inner, root, depth)})*")
        return lark.rule(" ".join(parts) or '""')

    def _written_free(
        self, lark: Lark, key: str, schema: Any, root: Mapping[str, Any], depth: int
    ) -> str:
        """An element of an object that says nothing of its keys."""
        # Without a token for it, a lexer could take the mark for the beginning of a text.
        flat = depth > _DEPTH or not lark.is_token(_MARK)
        if flat or typed.kinds(schema, root) != typed.ALL_KINDS:
            return self._written_element(lark, key, schema, root, depth)
        inner = self._written_free(lark, key, schema, root, depth + 1)
        tree = lark.either([lark.until(_MARK), f"({inner})+ {lark.literal(_MARK)}"])
        opening, closing, end = self._literal(lark, _OPEN), lark.literal("</"), lark.literal(">")
        return lark.rule(f"{opening} {key} {end} {tree} {closing} {key} {end}")

    def _written_list(
        self, lark: Lark, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
    ) -> str:
        item = self._written_element(
            lark, lark.literal("item"), schema.get("items", {}), root, depth
        )
        least, most = (schema.get(key) for key in ("minItems", "maxItems"))
        least = least if isinstance(least, int) else 0
        bound = most if isinstance(most, int) else ""
        return lark.rule(f"({item}){{{least},{bound}}}")


def _quoted(key: str) -> str:
    return json.dumps(key.strip(), ensure_ascii=False)


def _end(source: Source) -> Parse[bool]:
    """The rest of an end tag."""
    _, found = yield from source.collect((">",))
    return found is not None


def _empty(allowed: frozenset[str]) -> str:
    """What a value without any text is."""
    ways = {"string": '""', "array": "[]", "object": "{}", "null": "null"}
    return next((text for kind, text in ways.items() if kind in allowed), '""')


def _is_list(key: str, allowed: frozenset[str]) -> bool:
    """Whether what begins with this tag is a list: by the schema, else by the tag."""
    if allowed & _CONTAINERS in (frozenset({"array"}), frozenset({"object"})):
        return "array" in allowed
    return key == "item"


def _variant(schema: Any, root: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The part of the schema that speaks of values of this type."""
    for _ in range(_DEEPEST):  # it may be a part of itself
        schema = typed.resolved(schema, root)
        if not isinstance(schema, Mapping):
            return {}
        parts = (part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key) or ())
        inner = next((part for part in parts if kind in typed.kinds(part, root)), None)
        if inner is None:
            return schema
        schema = inner
    return {}


def _property(schema: Mapping[str, Any], name: str) -> Any:
    return schema_of(ToolRule("", schema), name)[0]


MINIMAX_M3 = MiniMaxM3(
    name="minimax-m3",
    form=Tags(
        section=f"{_MARK}<tool_call>\n",
        call=f'{_MARK}<invoke name="',
        name_end='">',
        key=_OPEN,
        key_end=">",
        value_end=_CLOSE,
        call_end=f"{_MARK}</invoke>\n",
        section_end=f"{_MARK}</tool_call>",
    ),
    signs=lambda template: _MARK in template and '<invoke name="' in template,
    repeats=False,
)
