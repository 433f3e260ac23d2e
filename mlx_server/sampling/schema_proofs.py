"""Two things that can be proven of JSON Schemas: that two have no instance in common, and that
one has none at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any] | bool

_FUEL = 200_000
"""Comparisons after which two schemas count as not proven to be apart."""

_EVERY_TYPE = frozenset({"null", "boolean", "number", "string", "array", "object"})


class Apart:
    """Whether no instance follows both of two schemas; False where that is not seen at once.

    Seen are types that differ, constants, and objects with a property that one of them
    requires and that cannot be the same in both.

    Args:
        target: What a `$ref` stands for.
    """

    def __init__(self, target: Callable[[str], Schema]) -> None:
        self._target = target
        self._fuel = _FUEL

    def __call__(self, a: Schema, b: Schema) -> bool:
        ours, theirs = self._facets(a), self._facets(b)
        self._fuel -= len(ours) * len(theirs)
        if self._fuel < 0:
            return False
        if any(_differ(x, y) for x in ours for y in theirs):
            return True
        if self._branches_differ(ours, b) or self._branches_differ(theirs, a):
            return True
        return any(_types(facet) == {"object"} for facet in (*ours, *theirs)) and any(
            self(x, y)
            for name in {name for facet in (*ours, *theirs) for name in _required(facet)}
            for x in _of_property(ours, name)
            for y in _of_property(theirs, name)
        )

    def _branches_differ(self, facets: list[Schema], other: Schema) -> bool:
        """Whether one of them offers branches all of which are apart from the other."""
        for facet in facets:
            for key in ("anyOf", "oneOf"):
                branches = _list(facet, key)
                if branches and all(self(branch, other) for branch in branches):
                    return True
        return False

    def _facets(self, schema: Schema) -> list[Schema]:
        """Schemas that an instance follows all of."""
        found: list[Schema] = []
        left = [schema]
        while left:
            facet = left.pop()
            if any(facet is seen for seen in found):
                continue
            found.append(facet)
            if isinstance(facet, Mapping):
                left += _list(facet, "allOf")
                left += [self._target(facet["$ref"])] if "$ref" in facet else []
        return found


def _differ(a: Schema, b: Schema) -> bool:
    if a is False or b is False or not _types(a) & _types(b):
        return True
    ours, theirs = _values(a), _values(b)
    return ours is not None and theirs is not None and not ours & theirs


def _types(schema: Schema) -> frozenset[str]:
    values = _constants(schema)
    if values is not None:
        return frozenset(map(_type_of, values))
    named = schema.get("type") if isinstance(schema, Mapping) else None
    if named is None:
        return _EVERY_TYPE
    named = [named] if isinstance(named, str) else _list(schema, "type")
    return frozenset("number" if name == "integer" else str(name) for name in named)


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def _constants(schema: Schema) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return _list(schema, "enum") if "enum" in schema else None


def _values(schema: Schema) -> set[str] | None:
    """Its constants, each as a text that equal ones share."""
    values = _constants(schema)
    return None if values is None else {json.dumps(_plain(v), sort_keys=True) for v in values}


def _plain(value: Any) -> Any:
    """1.0 is 1 to JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _list(schema: Schema, key: str) -> list[Any]:
    """A keyword's list; empty where the client wrote something else."""
    found = schema.get(key) if isinstance(schema, Mapping) else None
    return found if isinstance(found, list) else []


def _required(schema: Schema) -> list[str]:
    return [name for name in _list(schema, "required") if isinstance(name, str)]


def _of_property(facets: list[Schema], name: str) -> Iterator[Schema]:
    """What a property's value follows, where it is named or ruled out."""
    for facet in facets:
        if not isinstance(facet, Mapping):
            continue
        named = facet.get("properties")
        if isinstance(named, Mapping) and name in named:
            yield named[name]
        elif "patternProperties" not in facet and facet.get("additionalProperties") is False:
            yield False


# ---------------------------------------------------------------- instances


def without_instance(defs: Mapping[str, Schema]) -> set[str]:
    """The definitions that nothing of finite size follows.

    Args:
        defs: By name; they refer to one another as "#/$defs/<name>".
    """
    known: set[str] = set()
    while True:
        before = len(known)
        for name in reversed(list(defs)):  # what was found later is often what the earlier need
            if name not in known and _has_instance(defs[name], known):
                known.add(name)
        if len(known) == before:
            return set(defs) - known


def _has_instance(schema: Schema, known: set[str]) -> bool:
    """
    Args:
        known: Definitions that have one.
    """
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in known:
        return False
    if not all(_has_instance(part, known) for part in schema.get("allOf", ())):
        return False
    branches = schema.get("anyOf")
    if branches is not None and not any(_has_instance(branch, known) for branch in branches):
        return False
    types = _types(schema)
    if types == {"object"}:
        properties = schema.get("properties", {})
        return all(_has_instance(properties.get(p, True), known) for p in _required(schema))
    if types == {"array"}:
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        needed = [*first[:least], *([schema.get("items", True)] if least > len(first) else [])]
        return all(_has_instance(item, known) for item in needed)
    return True
