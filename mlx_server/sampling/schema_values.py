"""The values of a JSON Schema's keywords: which say nothing, which are wrong, and which cannot be
held to.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_server.sampling.schema_strings import portable_pattern

MAX_INTEGER = 2**53 - 1
"""Integers beyond are not the same to every reader of JSON (RFC 8259, section 6)."""

MAX_PATTERN = 2**15
"""Characters; llguidance takes seconds for longer ones."""

_LARGEST = sys.float_info.max

COUNTS = (
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
)
_UNEVALUATED = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref")
_WITHOUT_ESCAPE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def without_idle(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without what says nothing, or nothing that simpler keywords do not."""
    kept = dict(node)
    if "then" not in node and "else" not in node:
        kept.pop("if", None)
    for key in ("not", "dependentRequired", "dependentSchemas", "dependencies"):
        if kept.get(key) in (False, {}):
            del kept[key]
    alone = not any(key in node for key in _IN_PLACE)
    for key, instead in _UNEVALUATED.items():
        if kept.get(key) in (True, {}):
            del kept[key]
        elif key in kept and alone and not isinstance(node.get(instead), list):
            kept.setdefault(instead, kept.pop(key))
    return kept


def check_kinds(node: Mapping[str, Any], path: str) -> None:
    """Look at the values that are used here; llguidance looks at the others.

    Args:
        path: Where the node stands in the schema, for errors.

    Raises:
        ValueError: One of them is of the wrong kind.
    """
    for key in COUNTS:
        value = node.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{path}: `{key}` must be a whole number from 0.")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ValueError(f"{path}: `required` must be a list of names.")
    types = node.get("type", "null")
    if not all(isinstance(name, str) for name in (types if isinstance(types, list) else [types])):
        raise ValueError(f"{path}: `type` must be a name or a list of names.")
    if not isinstance(node.get("enum", []), list):
        raise ValueError(f"{path}: `enum` must be a list.")


def values_of(node: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """The objects within that have a key."""
    if isinstance(node, Mapping):
        if key in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from values_of(item, key)


def held_pattern(pattern: Any, path: str) -> str:
    """A pattern as llguidance can hold a string to it.

    Args:
        path: Where it stands in the schema, for errors.

    Raises:
        ValueError: It is no string, too long, or uses what cannot be held to.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"{path}: must be a string.")
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"{path}: a pattern may have at most {MAX_PATTERN} characters.")
    try:
        return portable_pattern(pattern)
    except ValueError as error:
        raise ValueError(
            f"{path}: the pattern {pattern!r} cannot be held to, because of {error}; use "
            "characters, classes, groups and quantifiers."
        ) from None


def held_bound(value: Any, whole: bool, down: bool, path: str) -> Any:
    """A bound that llguidance, which reads numbers as doubles, does not round outwards.

    Args:
        whole: It bounds integers.
        down: It is an upper bound, so that rounding down stays inside.
        path: Where it stands in the schema, for errors.

    Raises:
        ValueError: It is no number, or too large to be held to.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: must be a number.")
    if whole and abs(value) > MAX_INTEGER:
        if (value < 0) == down:
            raise ValueError(f"{path}: integers beyond ±{MAX_INTEGER} cannot be held to.")
        return MAX_INTEGER if value > 0 else -MAX_INTEGER
    if abs(value) > _LARGEST:
        raise ValueError(f"{path}: numbers beyond those of a double cannot be held to.")
    if isinstance(value, int) and int(float(value)) != value:
        near = float(value)
        outside = near > value if down else near < value
        return math.nextafter(near, -math.inf if down else math.inf) if outside else near
    return value


def check_constant(value: Any, path: str) -> None:
    """Refuse what llguidance would write as something else.

    Args:
        path: Where it stands in the schema, for errors.

    Raises:
        ValueError: A control character, or an integer beyond `MAX_INTEGER`, is in it.
    """
    if isinstance(value, str) and _WITHOUT_ESCAPE.search(value):
        raise ValueError(f"{path}: {value!r} holds a control character, which is not written.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError(f"{path}: integers beyond ±{MAX_INTEGER} cannot be held to.")
    elif isinstance(value, list):
        for item in value:
            check_constant(item, path)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_constant(name, path)
            check_constant(item, path)
