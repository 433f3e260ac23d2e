"""JSON Schemas that are held to exactly, made of those that clients send.

llguidance compiles most of JSON Schema, refuses some, and takes some for less than it says.
`exact_schema` gives a schema that llguidance holds to, and whose instances the client's
accepts; where there is none it says why, and what to write instead. Annotations and
keywords that JSON Schema does not know are left out, as a validator ignores them.

    Specification: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from mlx_server.sampling.schema_proofs import Apart, without_instance
from mlx_server.sampling.schema_strings import (
    FORMAT_PATTERNS,
    FORMATS_OF_LLGUIDANCE,
    REFUSED_FORMATS,
)
from mlx_server.sampling.schema_values import (
    COUNTS,
    check_constant,
    check_kinds,
    held_bound,
    held_pattern,
    values_of,
    without_idle,
)

Schema = Mapping[str, Any] | bool

_CASES = "use `anyOf` with a branch for each case"
_REFUSED = {
    "not": "say what is allowed instead",
    "if": _CASES,
    "dependentRequired": _CASES,
    "dependentSchemas": _CASES,
    "dependencies": _CASES,
    "contains": "leave it out, or put the item that must be there first with `prefixItems`",
    "unevaluatedProperties": "use `additionalProperties` in a schema without `allOf`",
    "unevaluatedItems": "use `items`",
    "$dynamicRef": "use `$ref`",
    "$recursiveRef": "use `$ref`",
}
_AS_THEY_ARE = ("type", "required", "enum", "const", *COUNTS)
_MAX_OPTIONAL = 900
"""At each place any of those that are left may follow."""

_MAX_PATTERNS = 100
"""That no two have a match in common is proven for each pair."""

_REF_ONLY_DRAFTS = re.compile(r"json-schema\.org/draft-0[3467]/")
_OLD_DRAFTS = re.compile(r"json-schema\.org/(draft-0[3467]|draft/2019-09)/")


def exact_schema(schema: Schema) -> Schema:
    """The schema to compile.

    Args:
        schema: The client's; any draft from 4 to 2020-12.

    Raises:
        ValueError: It cannot be held to; the place, the keyword and a way out are named.
    """
    if isinstance(schema, bool):
        return schema
    return _Rewriting(schema).document()


class _Rewriting:
    """One document. References are collected in `$defs` of its own, whatever they were."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        draft = str(root.get("$schema", ""))
        self._ref_alone = _REF_ONLY_DRAFTS.search(draft) is not None
        self._old = _OLD_DRAFTS.search(draft) is not None
        self._has_refs = any(True for _ in values_of(root, "$ref"))
        self._names: dict[str, str] = {}
        self._pending: list[str] = []
        self._anchors: dict[str, Any] | None = None

    def document(self) -> Schema:
        schema, defs = self._schema(self._root, "#"), {}
        while self._pending:
            ref = self._pending.pop()
            defs[self._names[ref]] = self._schema(self.target(ref), ref)
        endless = without_instance(defs)
        for ref, name in self._names.items():
            if name in endless:
                raise ValueError(
                    f"{ref}: nothing follows it, since it contains itself without end; make a "
                    "property on the way optional, or one that can be null."
                )
        if isinstance(schema, bool):
            return schema
        return {**schema, "$defs": defs} if defs else schema

    # ------------------------------------------------------------ references

    def target(self, ref: str) -> Schema:
        """What a `$ref` stands for, in the client's own schema. Raises ValueError."""
        base = str(self._root.get("$id", self._root.get("id", "")))
        local = ref.removeprefix(base.partition("#")[0])
        if not local.startswith("#"):
            raise ValueError(
                f"`$ref` {ref!r} leads out of the schema; put what it stands for into `$defs`."
            )
        fragment = unquote(local[1:])
        if fragment and not fragment.startswith("/"):
            if self._anchors is None:
                self._anchors = {
                    node.get("$anchor", node.get("$id", "")).removeprefix("#"): node
                    for key in ("$id", "$anchor")  # before draft 2019-09 an `$id` with a "#"
                    for node in values_of(self._root, key)
                    if isinstance(node[key], str)
                }
            if fragment not in self._anchors:
                raise ValueError(f"`$ref` {ref!r} leads nowhere.")
            return self._anchors[fragment]
        found: Any = self._root
        for part in fragment.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, Mapping) and part in found:
                found = found[part]
            else:
                raise ValueError(f"`$ref` {ref!r} leads nowhere.")
        return found

    def _reference(self, ref: Any, path: str) -> str:
        if not isinstance(ref, str):
            raise ValueError(f"{path}: `$ref` must be a string.")
        if ref not in self._names:
            self.target(ref)
            self._names[ref] = f"d{len(self._names)}"
            self._pending.append(ref)
        return "#/$defs/" + self._names[ref]

    # ------------------------------------------------------------ one schema

    def _schema(self, node: Any, path: str) -> Schema:
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            raise ValueError(f"{path}: a schema is an object, true or false.")
        if self._ref_alone and "$ref" in node:
            return {"$ref": self._reference(node["$ref"], path)}
        inner = node is not self._root and isinstance(node.get("$id"), str)
        if inner and self._has_refs and not node["$id"].startswith("#"):
            raise ValueError(f"{path}: `$id` within a schema changes its references; remove it.")
        if "not" in node and node["not"] in ({}, True):
            return False
        node = without_idle(node)
        for key, instead in _REFUSED.items():
            if key in node:
                raise ValueError(f"{path}: `{key}` cannot be held to; {instead}.")
        check_kinds(node, path)
        out = {key: node[key] for key in _AS_THEY_ARE if key in node}
        self._types_and_numbers(node, out, path)
        self._strings(node, out, path)
        self._arrays(node, out, path)
        self._objects(node, out, path)
        if "$ref" in node:
            out["$ref"] = self._reference(node["$ref"], path)
        for key in ("allOf", "anyOf"):
            if key in node:
                out[key] = self._list(node[key], f"{path}/{key}") + out.get(key, [])
        if "oneOf" in node:
            self._one_of(node["oneOf"], out, f"{path}/oneOf")
        return out

    def _list(self, nodes: Any, path: str) -> list[Schema]:
        if not isinstance(nodes, list):
            raise ValueError(f"{path}: must be a list of schemas.")
        return [self._schema(node, f"{path}/{i}") for i, node in enumerate(nodes)]

    def _map(self, nodes: Any, path: str) -> dict[str, Schema]:
        if not isinstance(nodes, Mapping):
            raise ValueError(f"{path}: must be an object of schemas.")
        return {name: self._schema(node, f"{path}/{name}") for name, node in nodes.items()}

    def _one_of(self, nodes: Any, out: dict[str, Any], path: str) -> None:
        options, apart = self._list(nodes, path), Apart(self.target)
        for i, a in enumerate(nodes):
            for j, b in enumerate(nodes[:i]):
                if not apart(a, b):
                    raise ValueError(
                        f"{path}: that exactly one branch matches cannot be held to, since "
                        f"branches {j} and {i} may both; use `anyOf`, or a required property "
                        "with another `const` in each branch."
                    )
        if "anyOf" in out:
            out.setdefault("allOf", []).append({"anyOf": options})
        else:
            out["anyOf"] = options

    # ------------------------------------------------------------ by type

    def _types_and_numbers(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        types = node.get("type")
        if isinstance(types, list) and "number" in types:
            out["type"] = types = [t for t in dict.fromkeys(types) if t != "integer"]
        for key in ("const", "enum"):
            if key in node:
                check_constant(node[key], f"{path}/{key}")
        for key in COUNTS:
            if isinstance(value := node.get(key), float) and value.is_integer():
                out[key] = int(value)
        whole = types == "integer" or (isinstance(types, list) and "integer" in types)
        for bound, exclusive, down in (
            ("minimum", "exclusiveMinimum", False),
            ("maximum", "exclusiveMaximum", True),
        ):
            if node.get(exclusive) is True and bound in node:  # draft 4
                out[exclusive] = held_bound(node[bound], whole, down, f"{path}/{bound}")
                continue
            for key in (bound, exclusive):
                if key in node and not isinstance(node[key], bool):
                    out[key] = held_bound(node[key], whole, down, f"{path}/{key}")
        if "multipleOf" in node:
            check_constant(node["multipleOf"], f"{path}/multipleOf")
            out["multipleOf"] = node["multipleOf"]

    def _strings(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        patterns = []
        if "pattern" in node:
            patterns.append(held_pattern(node["pattern"], f"{path}/pattern"))
        name = node["format"] if isinstance(node.get("format"), str) else ""
        if name in REFUSED_FORMATS:
            raise ValueError(
                f"{path}: the `format` {name!r} cannot be held to; leave it out or use `pattern`."
            )
        if name in FORMAT_PATTERNS:
            patterns.append(FORMAT_PATTERNS[name])
        if name in FORMATS_OF_LLGUIDANCE:
            out["format"] = FORMATS_OF_LLGUIDANCE[name]
        if name == "hostname":
            out["maxLength"] = min(out.get("maxLength", 253), 253)
        if patterns:
            out["pattern"] = patterns[0]
        if patterns[1:]:
            out["allOf"] = [{"pattern": pattern} for pattern in patterns[1:]]

    def _arrays(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        items = node.get("items", True)
        if isinstance(items, list):
            out["prefixItems"] = self._list(items, f"{path}/items")
            items = node.get("additionalItems", True)
            path = f"{path}/additionalItems"
        else:
            if "prefixItems" in node and not self._old:
                out["prefixItems"] = self._list(node["prefixItems"], f"{path}/prefixItems")
            path = f"{path}/items"
        if items is not True:
            out["items"] = self._schema(items, path)
        if node.get("uniqueItems") is True and node.get("maxItems", 2) > 1:
            raise ValueError(
                f"{path.rpartition('/')[0]}: `uniqueItems` cannot be held to; leave it out and "
                "drop what is repeated when you read the reply."
            )

    def _objects(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        if "properties" in node:
            out["properties"] = self._map(node["properties"], f"{path}/properties")
            optional = set(out["properties"]).difference(node.get("required", ()))
            if len(optional) > _MAX_OPTIONAL:
                raise ValueError(
                    f"{path}: more than {_MAX_OPTIONAL} `properties` that are not `required`."
                )
        for name in (*out.get("properties", ()), *node.get("required", ())):
            check_constant(name, f"{path}/properties")
        if "patternProperties" in node:
            found = self._map(node["patternProperties"], f"{path}/patternProperties")
            if len(found) > _MAX_PATTERNS:
                raise ValueError(f"{path}: more than {_MAX_PATTERNS} `patternProperties`.")
            out["patternProperties"] = {
                held_pattern(name, f"{path}/patternProperties"): value
                for name, value in found.items()
            }
        if "additionalProperties" in node:
            rest = self._schema(node["additionalProperties"], f"{path}/additionalProperties")
            out["additionalProperties"] = rest
        if "propertyNames" in node:
            self._names_of_properties(node["propertyNames"], out, f"{path}/propertyNames")
        self._count_properties(out, path)

    def _names_of_properties(self, names: Any, out: dict[str, Any], path: str) -> None:
        """Write `propertyNames` as properties, or as a pattern of them."""
        if isinstance(names, Mapping) and names.keys() == {"$ref"}:
            names = self.target(names["$ref"])
        names = self._schema(names, path)
        rest = out.get("additionalProperties", True)
        if names is False or (names is not True and "string" not in names.get("type", ["string"])):
            out["maxProperties"] = 0
            return
        limits = {} if names is True else {k: v for k, v in names.items() if k != "type"}
        if not limits:
            return
        allowed = limits.get("enum", [limits["const"]] if "const" in limits else None)
        if allowed is not None and len(limits) == 1 and "patternProperties" not in out:
            known = out.get("properties", {})
            allowed = [name for name in allowed if isinstance(name, str)]
            out["properties"] = {
                **{name: known[name] for name in known if name in allowed},
                **{name: rest for name in allowed if name not in known},
            }
            out["additionalProperties"] = False
            return
        low, high = limits.get("minLength", 0), limits.get("maxLength", "")
        pattern = limits.get("pattern", f"^(?s:.){{{low},{high}}}$")
        alone = len(limits) == 1 or limits.keys() == {"minLength", "maxLength"}
        known_kind = limits.keys() <= {"pattern", "minLength", "maxLength"}
        if not (alone and known_kind) or "properties" in out or "patternProperties" in out:
            raise ValueError(
                f"{path}: `propertyNames` cannot be held to beside these; use `properties`, or "
                "`patternProperties` with `additionalProperties` false."
            )
        out["patternProperties"], out["additionalProperties"] = {pattern: rest}, False

    def _count_properties(self, out: dict[str, Any], path: str) -> None:
        """A name that is written twice is one property, which llguidance counts as two."""
        least = out.get("minProperties", 0)
        if least <= len(set(out.get("required", ()))):
            out.pop("minProperties", None)
        elif least > 1:
            raise ValueError(
                f"{path}: `minProperties` cannot be held to above the number of `required` ones; "
                "name the properties and require them."
            )
