"""Values that families write neither as JSON nor as bare text, turned into JSON and made.

Python   {'city': "Bern", 'days': [1, 2], 'now': True}
Gemma    {city:<|"|>Bern<|"|>,days:[1,2],now:true}
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.events import CallPiece
from mlx_server.text.parsers.source import SPACE, Parse, Source

_WORDS = {"True": "true", "False": "false", "None": "null"} | {
    word: word for word in ("true", "false", "null")
}
_SCALAR = re.compile(r"[^,)\]}<\n]*")
_PLAIN = re.compile(r"[^\\'\"]+")
_SPACE = re.compile(rf"[{SPACE}]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_HEX = {"x": 4, "u": 6, "U": 10}  # characters of the whole escape
_CLOSING = ",)]}:"
_DEPTH = 64
"""Levels of lists and objects that are read; what lies deeper is no value."""


@dataclass(frozen=True, slots=True)
class Notation:
    """How a family writes values.

    Args:
        quotes: What may stand around a string; the first is what is written.
        comma, colon: What is written between values, and behind a key.
        words: How it spells true, false and null.
        escapes: Strings have Python's escapes; else they are free up to their end.
        quoted_keys: An object's keys are strings; else they are bare.
        sorted_keys: They are sorted, as Jinja's `dictsort` does it.
        json_objects: An object may be JSON as well.
    """

    quotes: tuple[str, ...]
    comma: str = ", "
    colon: str = ": "
    words: Mapping[str, str] = field(default_factory=dict)
    escapes: bool = False
    quoted_keys: bool = False
    sorted_keys: bool = False
    json_objects: bool = False

    # ------------------------------------------------------------ reading

    def read(self, source: Source, depth: int = 0) -> Parse[bool]:
        """Give one value as CallPieces of JSON, piece by piece as it comes.

        Returns:
            Whether it came to its end. Of a text that ends within a number or a word
            nothing of it is given.
        """
        yield from source.skip_space()
        quote = yield from source.accept(*self.quotes)
        if quote is not None:
            return (yield from self._string(source, quote))
        opening = (yield from source.accept("{", "[", "(")) if depth < _DEPTH else None
        if opening == "{":
            return (yield from self.read_object(source, depth + 1))
        if opening is not None:
            return (yield from self._list(source, depth + 1))
        return (yield from _scalar(source))

    def read_object(self, source: Source, depth: int = 1) -> Parse[bool]:
        """The same for an object, the brace read already."""
        opening = "{"
        while True:
            yield from source.skip_space()
            yield from source.accept(",")
            yield from source.skip_space()
            if (yield from source.accept("}")):
                yield CallPiece("{}" if opening == "{" else "}")
                return True
            key = yield from self._key(source)
            if key is None:
                return False
            yield CallPiece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ")
            opening = ", "
            if not (yield from self.read(source, depth)):
                return False

    def _key(self, source: Source) -> Parse[str | None]:
        quote = yield from source.accept(*self.quotes)
        if quote is None:
            key, colon = yield from source.collect((":", "}"))
            return key.strip() if colon == ":" else None
        pieces: list[str] = []
        for event in self._string(source, quote):
            if event is None:
                yield None
            elif isinstance(event, CallPiece):
                pieces.append(event.text)
        yield from source.skip_space()
        return json_text.decoded("".join(pieces)) if (yield from source.accept(":")) else None

    def _list(self, source: Source, depth: int) -> Parse[bool]:
        opening = "["
        while True:
            yield from source.skip_space()
            yield from source.accept(",")
            yield from source.skip_space()
            if (yield from source.accept("]", ")")):
                yield CallPiece("[]" if opening == "[" else "]")
                return True
            if (yield from source.peek()) in ("", "}"):
                return False
            # What the value is, is seen before it is known whether it is whole.
            parse = self.read(source, depth)
            for event in parse:
                if not isinstance(event, CallPiece):
                    yield event
                    continue
                yield CallPiece(opening + event.text)
                opening = ""
                break
            if opening:
                return False
            opening = ", "
            if not (yield from parse):
                return False

    def _string(self, source: Source, quote: str) -> Parse[bool]:
        yield CallPiece('"')
        if self.escapes:
            ended = bool((yield from _escaped(source, quote)))
        else:
            ended = bool((yield from source.until((quote,), _inside, cut=True)))
        if ended:
            yield CallPiece('"')
        return ended

    # ------------------------------------------------------------ writing

    def spelled(self, value: Any) -> str:
        """A value as the family writes it."""
        if isinstance(value, str):
            return repr(value) if self.escapes else f"{self.quotes[0]}{value}{self.quotes[0]}"
        if isinstance(value, Mapping):
            pairs = (
                f"{self.spelled_key(key)}{self.colon}{self.spelled(value[key])}"
                for key in self.ordered(value)
            )
            return "{" + self.comma.join(pairs) + "}"
        if isinstance(value, list | tuple):
            return "[" + self.comma.join(map(self.spelled, value)) + "]"
        text = json.dumps(value)
        return self.words.get(text, text)

    def spelled_key(self, key: str) -> str:
        """An object's key as the notation writes it."""
        return self.spelled(key) if self.quoted_keys else key

    def ordered(self, keys: Iterable[str]) -> list[str]:
        """An object's keys in the order in which the notation writes them."""
        return sorted(keys, key=str.lower) if self.sorted_keys else list(keys)


PYTHON = Notation(
    quotes=("'", '"'),
    words={json_word: word for word, json_word in _WORDS.items() if word != json_word},
    escapes=True,
    quoted_keys=True,
    json_objects=True,
)


def _inside(text: str) -> CallPiece:
    return CallPiece(json_text.quoted(text))


def _escaped(source: Source, quote: str) -> Parse[bool]:
    """The rest of a string of Python's. Templates do not escape what they put between
    quotes, so a quote ends it only where a value can end."""
    while True:
        character = yield from source.peek()
        if not character:
            return False
        if character == "\\":
            text = yield from _escape(source)
            if text is None:
                return False
            yield _inside(text)
        elif character == quote:
            space = yield from source.run(_SPACE, 1)
            behind = (yield from source.peek(space + 1))[space:]
            if not behind:
                return False
            source.take(1)
            if behind in _CLOSING:
                return True
            yield _inside(quote)
        else:
            yield _inside(source.take(source.ahead(_PLAIN) or 1))


def _escape(source: Source) -> Parse[str | None]:
    """The character that an escape stands for; None if it is cut off."""
    text = yield from source.peek(2)
    if len(text) < 2:
        return None
    text = yield from source.peek(_HEX.get(text[1], 2))
    source.take(2)
    kind = text[1]
    if kind in _HEX:
        try:
            found = chr(int(text[2:], 16))
        except (ValueError, OverflowError):
            return "\\" + kind
        source.take(len(text) - 2)
        return found.encode("utf-16", "replace").decode("utf-16")
    return _ESCAPES.get(kind, kind if kind in "\\'\"" else "\\" + kind)


def _scalar(source: Source) -> Parse[bool]:
    """A number or a word, which is a string if it is none of Python's or JSON's."""
    text = source.take((yield from source.run(_SCALAR))).strip()
    if source.ended or not text:
        return False
    yield CallPiece(_WORDS.get(text) or _number(text) or json.dumps(text, ensure_ascii=False))
    return True


def _number(text: str) -> str | None:
    try:
        value = ast.literal_eval(text)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
