"""Router: from a method and a raw path to the dialect's route that answers it.

Paths are matched by segments before they are percent-decoded, so an encoded
slash stays inside its segment:

    /v1/models/org%2Fname    /v1/models/org/name    both match /v1/models/{model:path}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from mlx_server.api.base import Dialect, Route
from mlx_server.errors import MethodNotAllowed, NotFound

_PLACEHOLDER = re.compile(r"\{(\w+)(:path)?\}")

# A pattern's segments by what they match; the smaller value is the more specific one.
_LITERAL, _SEGMENT, _REST = range(3)


def decode(text: str) -> str:
    """Percent-decode a piece of a request target (Latin-1, as http.server reads it)."""
    return unquote_to_bytes(text.encode("latin-1", "replace")).decode("utf-8", "replace")


def _segments(path: str) -> list[str]:
    # Empty ones are dropped: a trailing slash, or a base URL joined with one too many.
    return [segment for segment in path.split("/") if segment]


def _behind(path: str, count: int) -> str:
    """What comes after so many segments and a slash. Another slash there is the rest's own:
    a model may be named by an absolute path."""
    for _ in range(count):
        path = path.lstrip("/").partition("/")[2]
    return path.rstrip("/")


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A compiled path: one (what it matches, literal text or name) pair per segment."""

    parts: tuple[tuple[int, str], ...]
    dialect: Dialect
    route: Route

    @property
    def key(self) -> tuple[tuple[int, str], ...]:
        """What the path matches, whatever its placeholders are called; sorts by precedence."""
        return tuple((kind, text if kind == _LITERAL else "") for kind, text in self.parts)

    def match(self, raw_path: str, segments: Sequence[str]) -> dict[str, str] | None:
        takes_rest = bool(self.parts) and self.parts[-1][0] == _REST
        if len(segments) < len(self.parts) or (len(segments) > len(self.parts) and not takes_rest):
            return None
        params = {}
        for i, (kind, text) in enumerate(self.parts):
            if kind == _REST:
                params[text] = decode(_behind(raw_path, i))
            elif kind == _SEGMENT:
                params[text] = decode(segments[i])
            elif decode(segments[i]) != text:
                return None
        return params


def _compile(dialect: Dialect, route: Route) -> _Pattern:
    parts = []
    for segment in _segments(route.path):
        placeholder = _PLACEHOLDER.fullmatch(segment)
        if placeholder is None:
            parts.append((_LITERAL, segment))
        else:
            parts.append((_REST if placeholder[2] else _SEGMENT, placeholder[1]))
    if any(kind == _REST for kind, _ in parts[:-1]):
        raise ValueError(f"{route.path}: only the last placeholder can take the rest of the path")
    return _Pattern(tuple(parts), dialect, route)


class Router:
    """Finds the route of a request among those of all dialects.

    A literal segment goes before `{name}`, and that before `{name:path}`.

    Raises:
        ValueError: Two routes answer the same method and path.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        owners: dict[tuple[str, tuple[tuple[int, str], ...]], Dialect] = {}
        patterns = []
        for dialect in dialects:
            for route in dialect.routes:
                pattern = _compile(dialect, route)
                claim = (route.method, pattern.key)
                if claim in owners:
                    raise ValueError(
                        f"{route.method} {route.path} is claimed by both "
                        f"{type(owners[claim]).__name__} and {type(dialect).__name__}"
                    )
                owners[claim] = dialect
                patterns.append(pattern)
        self._patterns = sorted(patterns, key=lambda pattern: pattern.key)

    def match(self, method: str, raw_path: str) -> tuple[Dialect, Route, dict[str, str]]:
        """The dialect, its route and the placeholders' values. HEAD falls back to GET.

        Args:
            raw_path: As sent, still percent-encoded, without its query.

        Raises:
            NotFound: No route has this path.
            MethodNotAllowed: One has, but not with this method.
        """
        found = list(self._matches(raw_path))
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            for pattern, params in found:
                if pattern.route.method == wanted:
                    return pattern.dialect, pattern.route, params
        if not found:
            raise NotFound(f"There is nothing at {decode(raw_path)}.")
        allow = self.allowed(raw_path)
        raise MethodNotAllowed(
            f"{decode(raw_path)} does not answer {method}; use {' or '.join(allow)}.", allow=allow
        )

    def allowed(self, raw_path: str) -> tuple[str, ...]:
        """The methods that a path answers, for an Allow header; empty where there is no route."""
        methods = {pattern.route.method for pattern, _ in self._matches(raw_path)}
        if "GET" in methods:
            methods.add("HEAD")
        if methods:
            methods.add("OPTIONS")
        return tuple(sorted(methods))

    def _matches(self, raw_path: str) -> Iterator[tuple[_Pattern, dict[str, str]]]:
        segments = _segments(raw_path)
        for pattern in self._patterns:
            params = pattern.match(raw_path, segments)
            if params is not None:
                yield pattern, params
