"""Tables of JSON Schemas: what is held to, what is refused, and what clients send."""

from __future__ import annotations

from typing import Any


def obj(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict:
    schema = {"type": "object", "properties": properties, **more}
    return schema if required is None else {**schema, "required": required}


def closed(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict:
    return obj(properties, required, additionalProperties=False, **more)


INT, STR, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
NODE = closed({"v": INT, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, NULL]}}, ["v", "next"])
CAT = closed({"kind": {"const": "cat"}, "lives": INT}, ["kind", "lives"])
DOG = closed({"kind": {"const": "dog"}, "good": {"type": "boolean"}}, ["kind", "good"])

HELD: dict[str, tuple[Any, list[Any], list[Any]]] = {
    # keyword and what of it: (schema, instances, others)
    "nothing": ({}, [None, 1, "a", [], {"a": [{}]}], []),
    "true": (True, [None, {"a": 1}], []),
    "type": ({"type": "boolean"}, [True, False], [0, "true", None]),
    "type integer": (INT, [0, -7, 12345678901234567890], [0.5, "1", True]),
    "type number": ({"type": "number"}, [0, -1.25, 1e30, 2.5e-7], ["1", None]),
    "type list": ({"type": ["integer", "null"]}, [3, None], [3.5, "a"]),
    "type integer and number": ({"type": ["number", "integer"]}, [3, 3.5], ["3"]),
    "enum": ({"enum": ["a", 1, None, [2, "x"], {"k": 3}]}, ["a", 1, None, [2, "x"], {"k": 3}], [2]),
    "enum beside type": ({"enum": ["a", 1], "type": "string"}, ["a"], [1]),
    "enum beside pattern": ({"enum": ["ab", "b"], "pattern": "^a"}, ["ab"], ["b"]),
    "const": ({"const": 'a"b\n\\é😀'}, ['a"b\n\\é😀'], ["a"]),
    "const object": ({"const": {"z": 1, "a": [True]}}, [{"z": 1, "a": [True]}], [{"z": 1}]),
    "const false": ({"const": False}, [False], [0, True]),
    "minLength": ({**STR, "minLength": 2}, ["ab", "é😀", "\n\n"], ["a", "😀"]),
    "maxLength": ({**STR, "maxLength": 2.0}, ["", "😀é"], ["abc"]),
    "pattern": ({**STR, "pattern": "^a[0-9]{2}$"}, ["a12"], ["a1", "xa12", "a123"]),
    "pattern unanchored": ({**STR, "pattern": "b+"}, ["b", "abba"], ["a"]),
    "pattern of branches": ({**STR, "pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
    "pattern and lengths": ({**STR, "pattern": "^[a-z]+$", "maxLength": 2}, ["ab"], ["abc", "A"]),
    "pattern without a type": ({"pattern": "^a"}, ["a", 3, None], ["b"]),
    "minimum": ({**INT, "minimum": 3}, [3, 99], [2, -5]),
    "maximum": ({**INT, "maximum": -3}, [-3, -99], [-2, 5]),
    "exclusiveMinimum": ({**INT, "exclusiveMinimum": 3}, [4], [3]),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 0.5}, [0.4, 0, -2], [0.5, 0.6]),
    "bounds": ({"type": "number", "minimum": 0.25, "maximum": 2}, [0.25, 1.5, 2], [0.2, 2.1]),
    "bounds of 64 bits": (
        {**INT, "minimum": -(2**63), "maximum": 2**63 - 1},
        [0, -(2**53) + 1, 2**53 - 1],
        [2**63],
    ),
    "bound beyond doubles": ({"type": "number", "maximum": 2**53 + 1}, [2**53], [2**53 + 4]),
    "multipleOf": ({**INT, "multipleOf": 7, "minimum": 0}, [0, 7, 700], [1, 8]),
    "multipleOf a fraction": ({"type": "number", "multipleOf": 0.25}, [0.25, 1.75, 3], [0.3]),
    "items": ({"type": "array", "items": INT}, [[], [1, 2]], [["a"], [1, None]]),
    "items false": ({"type": "array", "items": False}, [[]], [[1]]),
    "prefixItems": (
        {"type": "array", "prefixItems": [INT, STR]},
        [[], [1], [1, "a", None]],
        [["a"]],
    ),
    "prefixItems closed": (
        {"type": "array", "prefixItems": [INT], "items": False, "minItems": 1},
        [[1]],
        [[], [1, 2]],
    ),
    "prefixItems and the draft-4 word": (
        {"type": "array", "prefixItems": [INT], "items": STR, "additionalItems": False},
        [[1, "a"]],
        [["a"], [1, 2]],
    ),
    "minItems maxItems": (
        {"type": "array", "items": NULL, "minItems": 2, "maxItems": 3},
        [[None] * 2, [None] * 3],
        [[None], [None] * 4],
    ),
    "uniqueItems false": ({"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    "properties": (obj({"a": INT, "b": STR}), [{}, {"b": "x"}, {"a": 1, "z": 1}], [{"a": "x"}]),
    "properties false": (obj({"a": False}), [{}, {"b": 1}], [{"a": 1}]),
    "required": (closed({"a": INT, "b": STR}, ["b"]), [{"b": ""}, {"a": 1, "b": ""}], [{"a": 1}]),
    "required alone": ({"type": "object", "required": ["q"]}, [{"q": 1}], [{}, {"r": 1}]),
    "additionalProperties": (
        obj({"a": STR}, additionalProperties=INT),
        [{"a": "x", "b": 1}],
        [{"b": "x"}, {"a": 1}],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^x_": INT}, "additionalProperties": False},
        [{}, {"x_a": 1}],
        [{"x_a": "s"}, {"y": 1}],
    ),
    "patternProperties beside properties": (
        obj({"x_a": {"minimum": 5}}, patternProperties={"^x_": INT}, additionalProperties=STR),
        [{"x_a": 6, "x_b": 1, "c": ""}],
        [{"x_a": 1}, {"x_b": ""}, {"c": 1}],
    ),
    "propertyNames any": ({"type": "object", "propertyNames": STR}, [{"a": 1}], [1]),
    "propertyNames false": ({"type": "object", "propertyNames": False}, [{}], [{"a": 1}]),
    "propertyNames of no string": (
        {"type": "object", "propertyNames": {"type": ["null", "integer"]}},
        [{}],
        [{"a": 1}],
    ),
    "propertyNames enum": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INT},
        [{}, {"a": 1, "b": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    "propertyNames pattern": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": INT},
        [{"ab": 1}],
        [{"A": 1}, {"ab": ""}],
    ),
    "propertyNames length": (
        {"type": "object", "propertyNames": {"minLength": 1, "maxLength": 2}},
        [{"ab": 1}],
        [{"": 1}, {"abc": 1}],
    ),
    "minProperties": ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
    "minProperties as required": (
        closed({"a": INT, "b": INT}, ["a", "b"], minProperties=2),
        [{"a": 1, "b": 2}],
        [{"a": 1}],
    ),
    "maxProperties": ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 1}]),
    "allOf": (
        {"allOf": [obj({"a": INT}, ["a"]), obj({"b": STR}, ["b"])]},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}],
    ),
    "allOf of strings": (
        {"allOf": [{**STR, "pattern": "^a"}, {"minLength": 3}]},
        ["abc"],
        ["ab", "bcd"],
    ),
    "anyOf": ({"anyOf": [STR, INT, NULL]}, ["a", 1, None], [1.5, []]),
    "anyOf beside properties": (
        closed({"a": INT, "b": INT}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
        [{"a": 1}, {"b": 1}],
        [{}],
    ),
    "oneOf types": ({"oneOf": [STR, INT]}, ["a", 1], [1.5, None]),
    "oneOf constants": ({"oneOf": [{"const": 1, "title": "One"}, {"const": 2}]}, [1, 2], [3]),
    "oneOf tags": (
        {"oneOf": [CAT, DOG]},
        [{"kind": "cat", "lives": 9}, {"kind": "dog", "good": True}],
        [{"kind": "cat", "good": True}],
    ),
    "oneOf tags by reference": (
        {"$defs": {"C": CAT, "D": DOG}, "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}]},
        [{"kind": "dog", "good": False}],
        [{"kind": "cow"}],
    ),
    "oneOf closed objects": (
        {"oneOf": [closed({"a": INT}, ["a"]), closed({"b": INT}, ["b"])]},
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}, {}],
    ),
    "oneOf beside anyOf": (
        {"anyOf": [{"minimum": 3}, STR], "oneOf": [INT, STR]},
        [3, "a"],
        [2, 3.5, None],
    ),
    "not false": ({**STR, "not": False}, ["a"], [1]),
    "if alone": ({**STR, "if": {"minLength": 3}}, ["a"], [1]),
    "unevaluatedProperties": (obj({"a": INT}, unevaluatedProperties=False), [{"a": 1}], [{"b": 1}]),
    "unevaluatedItems": (
        {"type": "array", "prefixItems": [INT], "unevaluatedItems": False},
        [[1]],
        [[1, 2]],
    ),
    "$ref": (
        {"$defs": {"a": INT}, "type": "array", "items": {"$ref": "#/$defs/a"}},
        [[1]],
        [["x"]],
    ),
    "$ref with siblings": (
        {"$defs": {"a": STR}, **closed({"a": {"$ref": "#/$defs/a", "maxLength": 1}})},
        [{"a": "x"}],
        [{"a": "xx"}],
    ),
    "$ref to a generic": (
        {"$defs": {"Box[int] %~/": INT}, "$ref": "#/$defs/Box[int] %25~0~1"},
        [1],
        ["x"],
    ),
    "$ref to elsewhere": (
        {"components": {"s": {"A": INT}}, "$ref": "#/components/s/A"},
        [1],
        ["x"],
    ),
    "$ref to a property": (
        closed({"a": INT, "b": {"$ref": "#/properties/a"}}),
        [{"b": 1}],
        [{"b": ""}],
    ),
    "$ref recursive": (
        {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"},
        [{"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1}],
    ),
    "$ref to the root": (
        closed({"v": INT, "kids": {"type": "array", "items": {"$ref": "#"}}}, ["v"]),
        [{"v": 1, "kids": [{"v": 2}]}],
        [{"v": 1, "kids": [{}]}],
    ),
    "$anchor": ({"$defs": {"a": {"$anchor": "here", **INT}}, "$ref": "#here"}, [1], ["x"]),
    "$id": (
        {"$id": "https://x.org/s", "$defs": {"a": INT}, "$ref": "https://x.org/s#/$defs/a"},
        [1],
        [""],
    ),
    "annotations": (
        {
            **INT,
            "title": "T",
            "description": "D",
            "default": "x",
            "examples": [1],
            "$comment": "C",
            "deprecated": True,
            "readOnly": True,
            "x-order": 1,
            "nullable": True,
            "example": 3,
            "contentEncoding": "base64",
            "propertyOrdering": ["a"],
            "x-guidance": {"lenient": True},
        },
        [1],
        ["x", None],
    ),
    "draft 4": (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "array",
            "items": [{**INT, "minimum": 3, "exclusiveMinimum": True}],
            "additionalItems": STR,
        },
        [[4, "a"], []],
        [[3], [4, 5]],
    ),
    "draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": STR},
            **closed({"a": {"$ref": "#/definitions/a", "maxLength": 1}}),
        },
        [{"a": "xx"}],
        [{"a": 1}],
    ),
}


FORMATS = {
    "date": (["2024-02-29", "2023-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01", "2023-4-1"]),
    "time": (["23:59:59Z", "00:00:00.5+05:30"], ["24:00:00Z", "12:00:60Z", "12:00:00", "1:00:00Z"]),
    "date-time": (["2024-02-29T00:00:00Z"], ["2023-02-29T00:00:00Z", "2024-01-01 00:00:00Z"]),
    "duration": (["P1Y2M3D", "PT5M", "P3W"], ["1Y", "P", "PT"]),
    "email": (["a.b+c@x.org"], ["a", "@x.org", "a b@x.org"]),
    "idn-email": (["a@x.org"], ["a"]),
    "hostname": (["a-b.example"], ["-a", "a..b", "a_b"]),
    "ipv4": (["10.0.0.255"], ["10.0.0.256", "10.0.0"]),
    "ipv6": (["::1", "2001:db8::1"], ["1", ":::"]),
    "uri": (["https://x.org/a?b#c", "urn:a:b"], ["/a", "a b:c"]),
    "iri": (["https://x.org/a"], ["/a"]),
    "uri-reference": (["/a/b?c=d#e", "a/b", "", "?q", "../a/"], ["a b", "\\a"]),
    "uuid": (["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380"]),
    "json-pointer": (["", "/a/0", "/a~1b~0"], ["a", "/~2"]),
    "relative-json-pointer": (["0#", "1/a", "2"], ["-1", "01", "/a"]),
}


REFUSED: dict[str, tuple[Any, str]] = {
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "contains": ({"type": "array", "contains": INT}, "contains"),
    "not": (obj({"a": {"not": STR}}), "#/properties/a: `not`"),
    "not anything": ({"not": {}}, "nothing follows"),
    "false": (False, "nothing follows"),
    "if": ({"if": STR, "then": {"minLength": 1}}, "`if`"),
    "dependentRequired": (obj({}, dependentRequired={"a": ["b"]}), "dependentRequired"),
    "dependentSchemas": (obj({}, dependentSchemas={"a": {}}), "dependentSchemas"),
    "dependencies": (obj({}, dependencies={"a": ["b"]}), "dependencies"),
    "unevaluatedProperties": ({"allOf": [obj({})], "unevaluatedProperties": False}, "unevaluated"),
    "unevaluatedItems": ({"anyOf": [{}], "unevaluatedItems": False}, "unevaluatedItems"),
    "$dynamicRef": ({"$dynamicRef": "#a"}, "$dynamicRef"),
    "$ref that leads out": ({"$ref": "https://json-schema.org/schema"}, "$defs"),
    "$ref to a file": ({"$ref": "file:///etc/passwd"}, "leads out of the schema"),
    "$ref to nothing": ({"$ref": "#/$defs/a"}, "leads nowhere"),
    "$ref to no anchor": ({"$ref": "#a"}, "leads nowhere"),
    "$ref to itself": ({"$ref": "#"}, "without end"),
    "$ref without end": (
        {
            "$defs": {"n": obj({"n": {"$ref": "#/$defs/n"}}, ["n"])},
            **obj({"a": {"$ref": "#/$defs/n"}}),
        },
        "#/$defs/n",
    ),
    "$ref no string": ({"$ref": 1}, "$ref"),
    "$id within": (
        {"$defs": {"a": {"$id": "t", "items": {"$ref": "#"}}}, "$ref": "#/$defs/a"},
        "$id",
    ),
    "oneOf that overlap": ({"oneOf": [{"type": "number"}, INT]}, "oneOf"),
    "oneOf by required": (obj({}, oneOf=[{"required": ["a"]}, {"required": ["b"]}]), "anyOf"),
    "oneOf 1 and 1.0": ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "branches 0 and 1"),
    "oneOf with optional tags": (
        {"oneOf": [obj({"k": {"const": "a"}}), obj({"k": {"const": "b"}})]},
        "oneOf",
    ),
    "minProperties": ({"type": "object", "minProperties": 2}, "minProperties"),
    "propertyNames beside properties": (
        obj({"a": {}}, propertyNames={"pattern": "^b"}),
        "propertyNames",
    ),
    "patternProperties that overlap": ({"patternProperties": {"^a": {}, "b$": {}}}, "patternProp"),
    "pattern with a look-ahead": ({"pattern": "^(?=a)"}, "look-around"),
    "pattern with a flag": ({"pattern": "(?i)a"}, "flag"),
    "pattern with a back-reference": ({"pattern": "(a)\\1"}, "backreferences"),
    "pattern with a word boundary": ({"pattern": "\\ba"}, "lookarounds"),
    "pattern of another language": ({"pattern": "\\Aa\\Z"}, "`\\A`"),
    "pattern that is none": ({"pattern": "(a"}, "unclosed group"),
    "pattern that nothing matches": ({**STR, "pattern": "^ab$", "maxLength": 1}, "empty"),
    "format regex": ({"format": "regex"}, "'regex'"),
    "format idn-hostname": ({"format": "idn-hostname"}, "idn-hostname"),
    "const beyond doubles": ({"const": 2**53 + 1}, "9007199254740991"),
    "minimum beyond doubles": ({**INT, "minimum": 2**60}, "#/minimum"),
    "multipleOf of many digits": ({**INT, "multipleOf": 2**61}, "multipleOf"),
    "control characters": ({"enum": ["a\u0001"]}, "control character"),
    "no such type": ({"type": "any"}, "any"),
    "bounds that cross": ({**INT, "minimum": 5, "maximum": 4}, "minimum"),
    "required false": (obj({"a": False}, ["a"]), "'a'"),
    "type no name": ({"oneOf": [{"type": False}, STR]}, "`type`"),
    "required no list": (obj({"a": {"required": True}}), "`required`"),
    "counts no number": ({"minItems": "1"}, "minItems"),
    "enum empty": ({"enum": []}, "empty"),
    "properties no object": ({"properties": []}, "#/properties"),
    "a schema that is none": ({"items": 3}, "#/items"),
}


SAME_TO_ALL = [
    "^\\w+$",
    "^\\D\\W\\S$",
    "^[^\\w]+$",
    "^[^\\s\\d]+$",
    "^\\s$",
    "^.+$",
    "^[\\w.-]+@[\\w-]+$",
    "^[a&&b~[-]+$",
    "^[\\W\\S]$",
    "^[^\\D]+$",
    "^[^\\S]$",
    "^(?:a|b){2,3}?$",
    "^[\\s\\S]{3}$",
    "^\\p{Lu}\\u0041\\x42\\.\\-\\/$",
    "^(?P<x>a+)$",
]


ADDRESS = {
    "title": "Address",
    "type": "object",
    "required": ["street", "zip"],
    "properties": {
        "street": {"title": "Street", "type": "string"},
        "zip": {"title": "Zip", "type": "string", "pattern": "^\\d{5}$"},
    },
}
CLIENTS: dict[str, tuple[Any, Any]] = {
    "pydantic": (
        {
            "$defs": {
                "Address": ADDRESS,
                "Role": {"enum": ["admin", "user"], "title": "Role", "type": "string"},
            },
            "properties": {
                "name": {"title": "Name", "type": "string", "maxLength": 20},
                "age": {
                    "anyOf": [{"minimum": 0, "type": "integer"}, {"type": "null"}],
                    "default": None,
                },
                "role": {"$ref": "#/$defs/Role", "default": "user"},
                "home": {
                    "anyOf": [{"$ref": "#/$defs/Address"}, {"type": "null"}],
                    "description": "x",
                },
                "born": {"format": "date", "title": "Born", "type": "string"},
                "tags": {"additionalProperties": {"type": "integer"}, "type": "object"},
                "pair": {
                    "maxItems": 2,
                    "minItems": 2,
                    "type": "array",
                    "prefixItems": [{"type": "integer"}, {"type": "string"}],
                },
            },
            "required": ["name", "born"],
            "title": "User",
            "type": "object",
        },
        {
            "name": "Al",
            "age": None,
            "role": "user",
            "home": {"street": "A", "zip": "12345"},
            "born": "2000-01-31",
            "tags": {"a": 1},
            "pair": [1, "x"],
        },
    ),
    "pydantic, a tagged union": (
        {
            "$defs": {"Cat": CAT, "Dog": DOG},
            "properties": {
                "pet": {
                    "discriminator": {
                        "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                        "propertyName": "kind",
                    },
                    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
                }
            },
            "required": ["pet"],
            "type": "object",
        },
        {"pet": {"kind": "cat", "lives": 9}},
    ),
    "OpenAI, strict": (
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["steps", "final_answer"],
            "properties": {
                "steps": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["explanation", "output"],
                        "properties": {
                            "explanation": {"type": "string"},
                            "output": {"type": ["string", "null"]},
                        },
                    },
                },
                "final_answer": {"type": "string"},
            },
        },
        {"steps": [{"explanation": "so", "output": None}], "final_answer": "4"},
    ),
    "zod 4": (
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "id": {
                    "type": "string",
                    "format": "uuid",
                    "pattern": "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-"
                    "[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$",
                },
                "n": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
                "map": {
                    "type": "object",
                    "propertyNames": {"type": "string"},
                    "additionalProperties": {"type": "number"},
                },
                "when": {"type": "string", "format": "date-time"},
            },
            "required": ["id", "n", "map", "when"],
            "additionalProperties": False,
        },
        {
            "id": "2eb8aa08-aa98-41ea-b4aa-73b441d16380",
            "n": -3,
            "map": {"a": 1.5},
            "when": "2024-05-06T07:08:09Z",
        },
    ),
    "zod-to-json-schema": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/Out",
            "definitions": {
                "Out": closed(
                    {
                        "kind": {"type": "string", "const": "a"},
                        "size": {"type": "number", "exclusiveMinimum": 0},
                        "tuple": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": [{"type": "boolean"}],
                        },
                    },
                    ["kind"],
                )
            },
        },
        {"kind": "a", "size": 0.5, "tuple": [True]},
    ),
    "AI SDK, an array": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"elements": {"type": "array", "items": {"type": "string"}}},
            "required": ["elements"],
            "additionalProperties": False,
        },
        {"elements": ["a", "b"]},
    ),
    "LangChain": (
        {
            "title": "Joke",
            "description": "Joke to tell.",
            "type": "object",
            "properties": {
                "setup": {"type": "string", "description": "The setup"},
                "rating": {"type": "integer", "description": "1 to 10", "default": None},
            },
            "required": ["setup"],
        },
        {"setup": "Why?", "rating": 7},
    ),
    "OpenAPI": (
        {
            "type": "object",
            "properties": {"pet": {"$ref": "#/components/schemas/Pet"}},
            "components": {
                "schemas": {
                    "Pet": {
                        "type": "object",
                        "xml": {"name": "pet"},
                        "properties": {
                            "id": {"type": "integer", "format": "int64", "example": 1},
                            "name": {"type": "string", "nullable": True},
                        },
                    }
                }
            },
        },
        {"pet": {"id": 1, "name": "x"}},
    ),
    "schemars": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "S",
            "type": "object",
            "properties": {
                "n": {"type": "integer", "format": "uint64", "minimum": 0.0},
                "e": {
                    "oneOf": [
                        {"type": "string", "enum": ["A", "B"]},
                        closed({"C": {"type": "integer"}}, ["C"]),
                    ]
                },
            },
        },
        {"n": 3, "e": {"C": 1}},
    ),
}
