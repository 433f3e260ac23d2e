"""Grammars of values in a family's own notation, held to their schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_server.text.parsers import typed
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.literals import Notation
from mlx_server.text.parsers.tags import open_ended, schema_of

_DEPTH = 3
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_WORDS = {"boolean": ("true", "false"), "null": ("null",)}


class Rules:
    """Grammar expressions for the values of one schema.

    Args:
        root: The schema that references are relative to.
    """

    def __init__(self, lark: Lark, notation: Notation, root: Mapping[str, Any]) -> None:
        self._lark, self._notation, self._root = lark, notation, root

    def value(self, schema: Any, depth: int = _DEPTH) -> str:
        """A value.

        Args:
            depth: How far objects and lists may be nested.
        """
        lark, notation, root = self._lark, self._notation, self._root
        listed = typed.enumerated(schema, root)
        if listed is not None:
            return lark.either(lark.literal(notation.spelled(value)) for value in listed)
        schema = typed.resolved(schema, root)
        schema = schema if isinstance(schema, Mapping) else {}
        parts = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(parts, list) and parts and depth:
            return lark.either(self.value(part, depth - 1) for part in parts)
        kinds = typed.kinds(schema, root)
        found = [self._text(typed.size(schema, root))] if "string" in kinds else []
        for kind, words in _WORDS.items():
            if kind in kinds:
                found += [lark.literal(notation.words.get(word, word)) for word in words]
        if numbers := sorted(kinds & {"number", "integer"}):
            bounds = {key: schema[key] for key in _BOUNDS if key in schema}
            found.append(lark.json({"type": numbers, **bounds}))
        if "array" in kinds:
            found.append(self._list(schema, depth))
        if "object" in kinds:
            found += self._objects(schema, depth)
        return lark.either(found)

    def members(self, pairs: Sequence[tuple[str, Any, bool]], *, depth: int = _DEPTH) -> str:
        """What stands in an object.

        Args:
            pairs: What is written up to the value, the value's schema, and whether it
                must be there.
        """
        lark, comma = self._lark, self._lark.literal(self._notation.comma)
        nothing = lark.literal("")
        first = after = nothing  # what may follow: at the start, and behind another pair
        for key, schema, required in reversed(pairs):
            pair = lark.rule(f"{lark.literal(key)} {self.value(schema, depth)} {after}")
            behind = f"{comma} {pair}"
            if required:
                first, after = pair, lark.rule(behind)
            else:
                first, after = lark.either((pair, first)), lark.either((behind, after))
        return first

    def free_members(self, colon: str, *, quoted: bool = False, depth: int = 1) -> str:
        """The same where nothing is known of them."""
        lark = self._lark
        key = lark.regex("[A-Za-z_][A-Za-z_0-9]{0,63}")
        if quoted:
            quote = lark.literal(self._notation.quotes[0])
            key = f"{quote} {key} {quote}"
        pair = lark.rule(f"{key} {lark.literal(colon)} {self.value({}, depth)}")
        return f"({pair} ({lark.literal(self._notation.comma)} {pair})*)?"

    def _text(self, size: typed.Size) -> str:
        lark, quotes = self._lark, self._notation.quotes
        if not self._notation.escapes:
            return f"{lark.literal(quotes[0])} {lark.until(quotes[0], size=size)}"
        least, most = size
        many = f"{{{least},{'' if most is None else most}}}"
        return lark.either(lark.regex(rf"(?s:{q}(?:[^{q}\\]|\\.){many}{q})") for q in quotes)

    def _list(self, schema: Mapping[str, Any], depth: int) -> str:
        lark = self._lark
        least, most = schema.get("minItems") or 0, schema.get("maxItems")
        if most == 0 or depth == 0:
            return lark.literal("[]")
        item = self.value(schema.get("items", {}), depth - 1)
        count = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f"{item} ({lark.literal(self._notation.comma)} {item}){count}"
        return f"{lark.literal('[')} ({items}){'' if least else '?'} {lark.literal(']')}"

    def _objects(self, schema: Mapping[str, Any], depth: int) -> list[str]:
        lark, notation = self._lark, self._notation
        properties, required = schema.get("properties") or {}, schema.get("required") or ()
        inside = ""
        if properties and depth:
            pairs = [
                (notation.spelled_key(key) + notation.colon, properties[key], key in required)
                for key in notation.ordered(properties)
            ]
            inside = self.members(pairs, depth=depth - 1)
        elif depth:
            quoted = notation.quoted_keys
            inside = self.free_members(notation.colon, quoted=quoted, depth=depth - 1)
        found = [f"{lark.literal('{')} {inside} {lark.literal('}')}"]
        if notation.json_objects and schema.get("type") == "object":
            found.append(lark.json(typed.standing_alone(schema, self._root)))
        return found


def arguments(lark: Lark, notation: Notation, tool: ToolRule, colon: str) -> str:
    """A grammar's expression for a call's arguments, names bare.

    Args:
        colon: What stands between a parameter's name and its value.
    """
    rules = Rules(lark, notation, tool.schema)
    if open_ended(tool) and not tool.required:
        return rules.free_members(colon)
    names = [*tool.properties, *sorted(tool.required - set(tool.properties))]
    return rules.members(
        [
            (name + colon, schema_of(tool, name)[0], name in tool.required)
            for name in notation.ordered(names)
        ]
    )
