"""JSON in a reply: values passed on as they come, and calls written as JSON objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Sequence

from mlx_server.text.parsers.events import CallPiece, CallStart, Event
from mlx_server.text.parsers.source import Parse, Source

_IN_STRING = re.compile(r'[^"\\]+')
_IN_VALUE = re.compile(r'[^"{}\[\]]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_BEGIN = re.compile(r"[{\[\-0-9A-Za-z]")
_SOUND = re.compile(r'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*', re.DOTALL)
_BESIDE = ("type", "id")  # keys that a bare object may have before its name


def value(source: Source, event: Callable[[str], Event]) -> Parse[bool]:
    """Give one JSON value as events, piece by piece as it comes, and read it to its end.

    It is taken as it is: what is wrong inside it is the model's.

    Returns:
        Whether it came to its end.
    """
    first = yield from source.peek()
    if first == '"':
        return (yield from _string(source, event))
    if first in ("{", "["):
        return (yield from _container(source, event))
    while True:
        run = source.ahead(_SCALAR)
        if run:
            yield event(source.take(run))
        if source.rest:
            return True
        if source.closed:
            return False
        yield None


def _container(source: Source, event: Callable[[str], Event]) -> Parse[bool]:
    depth = 0
    while True:
        character = yield from source.peek()
        if not character:
            return False
        if character == '"':
            if not (yield from _string(source, event)):
                return False
        elif character in "{[":
            depth += 1
            yield event(source.take(1))
        elif character in "}]":
            depth -= 1
            yield event(source.take(1))
            if depth == 0:
                return True
        else:
            yield event(source.take(source.ahead(_IN_VALUE)))


def _string(source: Source, event: Callable[[str], Event]) -> Parse[bool]:
    yield event(source.take(1))
    while True:
        character = yield from source.peek()
        if not character:
            return False
        if character == "\\":
            # Never half an escape: a piece is then text that an eager client can decode.
            escape = yield from source.peek(2)
            if escape == "\\u":
                escape = yield from source.peek(6)
            yield event(source.take(len(escape)))
        elif character == '"':
            yield event(source.take(1))
            return True
        else:
            yield event(source.take(source.ahead(_IN_STRING)))


def collected(source: Source) -> Parse[str]:
    """One JSON value, whole."""
    pieces: list[str] = []
    parse = value(source, CallPiece)
    for event in parse:
        if event is None:
            yield None
        elif isinstance(event, CallPiece):
            pieces.append(event.text)
    return "".join(pieces)


def arguments(source: Source) -> Parse[None]:
    """A call's arguments as CallPieces, as they come; null and what begins no value as {},
    and of a string with JSON inside what is inside."""
    first = yield from source.peek()
    if first == '"':
        text = yield from collected(source)
        yield CallPiece("{}" if text == '""' else decoded(text))
    elif (yield from source.accept("null")) or (first and not _BEGIN.match(first)):
        yield CallPiece("{}")
    else:
        yield from value(source, CallPiece)


def decoded(text: str) -> str:
    """The text of a JSON string, or of as much of one as there is; what cannot be read as
    one is left as it is."""
    sound = _SOUND.match(text)
    if sound is None:
        return text
    try:
        found = json.loads(sound.group() + '"', strict=False)
    except ValueError:
        return text.strip('"')
    # Half of a surrogate pair could not be sent.
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text: str) -> str:
    """The inside of a JSON string that stands for the text."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def head(name: str, key: str = "name", arguments: str = "arguments") -> str:
    """A call's object up to where its arguments begin, as templates write it."""
    return f"{{{json.dumps(key)}: {json.dumps(name)}, {json.dumps(arguments)}: "


def call(
    source: Source,
    *,
    names: Sequence[str] = ("name", "function", "tool_name"),
    arguments: Sequence[str] = ("arguments", "parameters"),
    ids: Sequence[str] = (),
    known: Container[str] | None = None,
) -> Parse[bool]:
    """A call written as an object: {"name": …, "arguments": {…}}, keys in any order.

    The call starts as soon as its name is known (and its id, where the family writes
    one). Arguments that are a JSON string with JSON inside are given as what is inside.
    Name and arguments may stand in an object of their own, as in OpenAI's
    {"type": "function", "function": {…}}. A text that ends within it gives what it has.

    Args:
        known: The names that make it a call, for families whose calls could as well be
            an answer in JSON; None: any name does.

    Returns:
        Whether it was one. Where not, nothing was given, and the source is read
        up to where that was certain (`Source.hold` before, to go back).
    """
    return (yield from _Call(source, names, arguments, ids, known).read())


class _Call:
    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        arguments: Sequence[str],
        ids: Sequence[str],
        known: Container[str] | None,
    ) -> None:
        self._source = source
        self._names, self._arguments, self._ids = names, arguments, ids
        self._known = known
        self._name: str | None = None
        self._id: str | None = None
        self._waiting: str | None = None  # arguments that came before the name
        self._started = self._has_arguments = self._inner = False

    def read(self) -> Parse[bool]:
        yield from self._source.skip_space()
        whole = yield from self._object()
        return (yield from self._end(whole))

    def _object(self) -> Parse[bool]:
        """Returns whether it came to its end."""
        source = self._source
        if not (yield from source.accept("{")):
            return False
        while True:
            yield from source.skip_space()
            yield from source.accept(",")
            yield from source.skip_space()
            if (yield from source.peek()) != '"':
                break
            key = decoded((yield from collected(source)))
            yield from source.skip_space()
            if not (yield from source.accept(":")):
                break
            yield from source.skip_space()
            if not (yield from self._field(key)):
                return False
        return (yield from source.accept("}")) is not None

    def _field(self, key: str) -> Parse[bool]:
        """Returns whether it may still be a call."""
        source = self._source
        if key in self._names and self._name is None:
            first = yield from source.peek()
            if first == "{" and not self._inner:
                self._inner = True
                return (yield from self._object())
            text = yield from collected(source)
            if first == '"' and len(text) > 1 and text.endswith('"'):
                name = decoded(text)
                if self._known is not None and name not in self._known:
                    return False
                self._name = name
                if not self._ids:
                    yield from self._start()
        elif key in self._ids and self._id is None:
            self._id = decoded((yield from collected(source)))
        elif key in self._arguments and not self._has_arguments:
            self._has_arguments = True
            if self._name is None:
                self._waiting = yield from collected(source)
            else:
                yield from self._start()
                yield from arguments(source)
        elif self._known is not None and self._name is None and key not in _BESIDE:
            return False
        else:
            yield from collected(source)
        return True

    def _start(self) -> Parse[None]:
        if not self._started:
            self._started = True
            yield CallStart(self._name or "", self._id)

    def _end(self, whole: bool) -> Parse[bool]:
        if self._name is None:
            return False
        yield from self._start()
        if self._waiting is not None:
            inner = Source()
            inner.feed(self._waiting)
            inner.close()
            yield from arguments(inner)
        elif not self._has_arguments and (whole or not self._source.ended):
            yield CallPiece("{}")  # it is complete and has none
        return True
