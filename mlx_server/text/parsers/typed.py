"""What a parameter written as bare text stands for, and what its schema lets it be.

Families with tagged parameters write strings without quotes, so `01234` may be a number
or a postcode: the tool's schema decides where it says so, the look of the text elsewhere.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

ALL_KINDS = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
"""The types of JSON Schema."""

STRING = frozenset({"string"})

_DEPTH = 16
_SHARED = ("$defs", "definitions")
_REFERENCE = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a local `$ref` means; `{}` where it leads nowhere."""
    for _ in range(_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        schema = root if reference.startswith("#") else {}
        for step in reference.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            schema = schema.get(step, {}) if isinstance(schema, Mapping) else {}
    return {}


def kinds(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value of the schema may have; all where it does not say.

    Args:
        root: The schema that its references are relative to.
    """
    return _kinds(schema, root, 0, {})


def _kinds(
    schema: Any, root: Mapping[str, Any], depth: int, known: dict[int, frozenset[str]]
) -> frozenset[str]:
    """The same, each schema looked at once: it may be a part of itself, or of many."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or not schema or depth > _DEPTH:
        return ALL_KINDS
    if id(schema) not in known:
        known[id(schema)] = ALL_KINDS
        known[id(schema)] = _allowed(schema, root, depth, known)
    return known[id(schema)]


def _allowed(
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    depth: int,
    known: dict[int, frozenset[str]],
) -> frozenset[str]:
    listed = enumerated(schema, root)
    if listed is not None:
        return frozenset().union(*map(_kinds_of, listed))
    found = ALL_KINDS
    given = schema.get("type")
    if isinstance(given, str):
        found = frozenset({given})
    elif isinstance(given, list):
        found = frozenset(kind for kind in given if isinstance(kind, str))
    if "number" in found:
        found |= {"integer"}
    for key in ("anyOf", "oneOf"):
        if isinstance(parts := schema.get(key), list) and parts:
            found &= frozenset().union(*(_kinds(part, root, depth + 1, known) for part in parts))
    for part in schema.get("allOf") or ():
        found &= _kinds(part, root, depth + 1, known)
    if schema.get("nullable") is True:
        found |= {"null"}
    return (found & ALL_KINDS) or ALL_KINDS


def enumerated(schema: Any, root: Mapping[str, Any]) -> list[Any] | None:
    """The values that the schema lists, if it lists them."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) and listed else None


Size = tuple[int, int | None]
"""At least and at most so many characters; None sets no bound."""


def size(schema: Any, root: Mapping[str, Any]) -> Size:
    """How long a string of the schema may be."""
    for _ in range(_DEPTH):
        schema = resolved(schema, root)
        if not isinstance(schema, Mapping):
            return 0, None
        inner = _only_text(schema, root)
        if inner is None:
            least, most = schema.get("minLength"), schema.get("maxLength")
            least = least if isinstance(least, int) and least > 0 else 0
            return least, max(most, least) if isinstance(most, int) else None
        schema = inner
    return 0, None


def _only_text(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The one of its alternatives that may be a string, where it is one alone."""
    for key in ("anyOf", "oneOf"):
        parts = schema.get(key)
        texts = [p for p in parts if "string" in kinds(p, root)] if isinstance(parts, list) else []
        if len(texts) == 1:
            return texts[0]
    return None


def standing_alone(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema with the definitions that it refers to."""
    if not isinstance(schema, Mapping) or '"$ref"' not in json.dumps(schema):
        return schema
    whole = {key: root[key] for key in _SHARED if key in root} | dict(schema)
    if _REFERENCE.search(json.dumps(whole)):
        # It points at a place that is not there when it stands alone.
        return {"type": sorted(kinds(schema, root))}
    return whole


def as_json(text: str, allowed: frozenset[str]) -> str:
    """The JSON text of a value that stands as `text`, of one of the allowed types.

    JSON is passed on as it is written, Python's `True`, `None`, lists and dicts (some
    templates write them) are translated, and what can be neither is a string.
    """
    body = text.strip()
    read = _read(body)
    if read is None:
        return json.dumps(text, ensure_ascii=False)
    value, strict = read
    if isinstance(value, str):
        # A quoted string is the string with its quotes, unless there can be none.
        if "string" in allowed:
            return json.dumps(text, ensure_ascii=False)
        inner = as_json(value, allowed)
        return body if inner.startswith('"') else inner
    if "string" in allowed and not _kinds_of(value) & (allowed - STRING):
        return json.dumps(text, ensure_ascii=False)
    return body if strict else json.dumps(value, ensure_ascii=False)


def _read(body: str) -> tuple[Any, bool] | None:
    """The value, and whether the text is strict JSON."""
    try:
        return json.loads(body, parse_constant=_refused), True
    except (ValueError, RecursionError):
        pass
    try:
        # Line ends within strings, as models write them.
        return json.loads(body, parse_constant=_refused, strict=False), False
    except (ValueError, RecursionError):
        pass
    if not body.startswith(("[", "{", "(")) and body not in ("True", "False", "None"):
        return None
    try:
        value = ast.literal_eval(body)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value, False


def _refused(constant: str) -> Any:
    raise ValueError(constant)


def _kinds_of(value: Any) -> frozenset[str]:
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, str):
        return STRING
    if isinstance(value, list | tuple):
        return frozenset({"array"})
    if isinstance(value, Mapping):
        return frozenset({"object"})
    whole = isinstance(value, int) or value.is_integer()
    return frozenset({"number", "integer"} if whole else {"number"})
