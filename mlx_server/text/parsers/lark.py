"""Grammars of calls, in llguidance's Lark, built rule by rule.

A literal is written as the model's tokens have it: what is a special token in the
vocabulary becomes that token, the rest is text. So `<tool_call>` in a grammar is one
token for a model that has it and eleven characters for one that has not.

Lark as llguidance reads it: https://github.com/guidance-ai/llguidance (docs/syntax.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

JSON_STYLE = {
    "whitespace_flexible": False,  # a small model would write blanks until it is stopped
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',  # a name spelled by code points would go unnoticed
    "lenient": True,
    "coerce_one_of": True,
}
"""How arguments are held to a tool's schema: leniently, and spaced as templates write JSON."""

ANY_TEXT = "/(?s:.*)/"
"""Any text; special tokens are none."""


@dataclass(frozen=True, slots=True)
class ToolRule:
    """A function as a grammar knows it.

    Args:
        name: What calls it.
        schema: JSON Schema of its arguments, an object's, known to compile.
    """

    name: str
    schema: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of its named parameters, in order."""
        found = self.schema.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        """The names of the parameters that a call must have."""
        found = self.schema.get("required")
        return frozenset(found) if isinstance(found, list | tuple) else frozenset()


class Lark:
    """A grammar that grows. Methods give expressions to put together.

    Args:
        specials: Ids of the vocabulary's special tokens, by their text.
    """

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = specials
        self._rules: list[str] = []
        self._known: dict[str, str] = {}
        # The longest first: "<|end|>" before what it may begin with.
        names = sorted(filter(None, specials), key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, names))) if names else None

    def is_token(self, text: str) -> bool:
        """Whether the text is a special token of the vocabulary."""
        return text in self._specials

    def literal(self, text: str) -> str:
        """Exactly this text."""
        parts, at = [], 0
        for found in self._tokens.finditer(text) if self._tokens and text else ():
            if found.start() > at:
                parts.append(_quoted(text[at : found.start()]))
            parts.append(f"<[{self._specials[found.group()]}]>")
            at = found.end()
        if at < len(text) or not parts:
            parts.append(_quoted(text[at:]))
        return " ".join(parts)

    def rule(self, body: str, **attributes: Any) -> str:
        """The name of a rule with this body; the same body is one rule."""
        settings = ", ".join(f"{key}={value}" for key, value in attributes.items())
        key = f"[{settings}]: {body}" if settings else f": {body}"
        if key not in self._known:
            self._known[key] = f"r{len(self._known)}"
            self._rules.append(f"{self._known[key]}{key}")
        return self._known[key]

    def either(self, expressions: Iterable[str]) -> str:
        """One of them."""
        return self.rule(" | ".join(dict.fromkeys(expressions)))

    def regex(self, pattern: str) -> str:
        """Text that a regular expression matches (Rust's syntax)."""
        # A slash would end it, and so would the end of the line.
        pattern = re.sub(r"(\\.)|/", lambda m: m.group(1) or r"\/", pattern, flags=re.DOTALL)
        return "/" + pattern.replace("\n", r"\n") + "/"

    def json(self, schema: Mapping[str, Any] | bool) -> str:
        """JSON text that the schema accepts, as far as it can be held to it."""
        if schema is True:
            schema = {}
        if schema is False:
            schema = {"not": {}}
        styled = {**schema, "x-guidance": JSON_STYLE}
        return self.rule(f"%json {json.dumps(styled)}")

    def arguments(self, tool: ToolRule) -> str:
        """JSON text of a call's arguments: an object, whatever else the schema says."""
        return self.json({"type": "object", **tool.schema})

    def until(
        self, end: str, *, size: tuple[int, int | None] = (0, None), stripped: bool = False
    ) -> str:
        """Any text up to and with `end`, at its first occurrence.

        Args:
            size: At least and at most so many characters before it.
            stripped: Space around the text does not count, nor does a line end before `end`.
        """
        text = text_pattern(*size, stripped=stripped)
        found = self._tokens.search(end) if self._tokens else None
        if found is None:
            return self.rule(self.regex(text), suffix=_quoted(end))
        # Text holds no special token, so the first one ends it. What stands before that in
        # `end` is the last of the text: a lexer would not go back for it.
        before, tag = end[: found.start()], end[found.start() :]
        return f"{self.rule(self.regex(text + re.escape(before)))} {self.literal(tag)}"

    def reasoning(self, end: str, *, most: int | None) -> str:
        """Any text up to and with `end`.

        Args:
            most: Tokens after which the text is at its end; None sets no bound.
        """
        if most is None:
            return self.until(end)
        if self._tokens is not None and self._tokens.match(end):
            return f"{self.rule(ANY_TEXT, max_tokens=most)} {self.literal(end)}"
        # Text that ends where `end` may begin, as a count cannot look ahead.
        text = self.regex(f"(?s:[^{re.escape(end[0])}]*)")
        return f"{self.rule(text, max_tokens=most)} {self.literal(end)}"

    def grammar(self, start: str) -> str:
        """The whole, beginning with the expression."""
        return "\n".join([f"start: {start}", *self._rules]) + "\n"


def text_pattern(least: int, most: int | None, *, stripped: bool = False) -> str:
    """A regular expression of text with so many characters, see `Lark.until`."""
    if least == 0 or not stripped:
        many = "*" if least == 0 and most is None else f"{{{least},{'' if most is None else most}}}"
        return f"(?s:.{many})" + (r"\n?" if stripped and most is not None else "")
    if most == 1:
        return r"\S\n?"
    bounds = f"{{{max(least - 2, 0)},{'' if most is None else most - 2}}}"
    inner = rf"\S(?s:.{bounds})\S"
    return (rf"(?:\S|{inner})" if least == 1 else inner) + r"\n?"


def _quoted(text: str) -> str:
    return json.dumps(text)
