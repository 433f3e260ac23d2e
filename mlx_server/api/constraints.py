"""What a reply must follow: `response_format` and the fields that carry a grammar.

OpenAI has `response_format`. `grammar` and `json_schema` are llama-server's,
`structured_outputs` and the guided_* fields vLLM's, and a `schema` beside the type
"json_object" is MLC's. Whether a grammar compiles is seen where it is compiled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic import model_validator as check_model

from mlx_server.api.described import Check, accepted, accepting
from mlx_server.api.fields import (
    OptionalFlag,
    checked,
    flag,
    mapping,
    one_of,
    optional,
    path,
    text,
    typed_object,
    wrong,
)
from mlx_server.core import Grammar, GrammarKind
from mlx_server.errors import RequestError

MAX_GRAMMAR_BYTES = 2**20
"""Of one schema, as JSON, or of one grammar: it is compiled before the reply begins."""

MAX_ALTERNATIVES = 1024

ANY_OBJECT = '{"type":"object"}'
"""What "json_object" asks for where no schema says more."""

_SCHEMA_ALLOWED = "must be a JSON Schema: an object, true or false, or one of them as JSON text"
_LARK_START = re.compile(r"^\s*[?!]?start\b[^:\n]*:", re.MULTILINE)


# ---------------------------------------------------------------- values


@accepting(dict[str, Any])
def schema_object(value: Any) -> dict[str, Any]:
    """A JSON Schema that is an object, bounded in depth and size."""
    _write_schema(mapping(value))
    return value


@accepting(dict[str, Any] | bool | str)
def schema_text(value: Any) -> str:
    """A JSON Schema, or its JSON text, as JSON. The order of properties is kept."""
    if isinstance(value, str):
        _bound(value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(_SCHEMA_ALLOWED) from None
    if not isinstance(value, bool | dict):
        raise ValueError(_SCHEMA_ALLOWED)
    return _write_schema(value if isinstance(value, bool) else mapping(value))


@accepting(str)
def grammar_text(value: Any) -> str:
    return _bound(text(value))


@accepting(Annotated[list[str], Field(min_length=1, max_length=MAX_ALTERNATIVES)])
def alternatives(value: Any) -> str:
    """A list of strings as a Lark grammar of which a reply is one."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ALTERNATIVES:
        raise ValueError(f"must be a list of 1 to {MAX_ALTERNATIVES} strings")
    for i, item in enumerate(value):
        if not isinstance(item, str):
            raise ValueError(f"must be a list of strings (its item {i} is none)")
    # A string of Lark is written like one of JSON.
    return _bound("start: " + " | ".join(json.dumps(text(item)) for item in value))


def _write_schema(schema: dict[str, Any] | bool) -> str:
    try:
        written = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ValueError("must hold finite numbers only") from None
    return _bound(written)


def _bound(written: str) -> str:
    if len(written.encode(errors="surrogatepass")) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"must have at most {MAX_GRAMMAR_BYTES} bytes")
    return written


def _or_empty(check: Check) -> Check:
    """An empty string is absent, as null is."""
    return accepting(accepted(check))(lambda value: None if value == "" else check(value))


OptionalSchema = Annotated[str | None, optional(_or_empty(schema_text))]
OptionalGrammar = Annotated[str | None, optional(_or_empty(grammar_text))]
OptionalChoice = Annotated[str | None, optional(alternatives)]


# ---------------------------------------------------------------- fields


class _StructuredOutputs(BaseModel):
    schema_: OptionalSchema = Field(default=None, alias="json")
    regex: OptionalGrammar = None
    grammar: OptionalGrammar = None
    choice: OptionalChoice = None
    json_object: OptionalFlag = None

    @check_model(mode="after")
    def _asks_for_something(self) -> _StructuredOutputs:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError(
                "must have one of `json`, `regex`, `grammar`, `choice` and `json_object`"
            )
        return self


class ConstraintFields(BaseModel):
    """The fields by which a reply is held to a format."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    response_format: Annotated[dict[str, Any] | None, optional(typed_object)] = None
    json_schema: OptionalSchema = None
    grammar: OptionalGrammar = None
    regex: OptionalGrammar = None
    guided_json: OptionalSchema = None
    guided_regex: OptionalGrammar = None
    guided_grammar: OptionalGrammar = None
    guided_choice: OptionalChoice = None
    structured_outputs: _StructuredOutputs | None = None

    def constraint(self) -> Grammar | None:
        """What the reply must follow. Raises RequestError that names the field at fault,
        or two of which each has a grammar."""
        given = list(self._grammars())
        if len(given) > 1:
            first, second = given[0].param, given[1].param
            raise RequestError(
                f"`{first}` and `{second}` cannot be given together: a reply follows one grammar.",
                param=second,
            )
        return given[0] if given else None

    def _grammars(self) -> Iterator[Grammar]:
        if self.response_format is not None:
            asked = read_response_format(self.response_format)
            if asked is not None:
                yield asked
        several = self.structured_outputs or _NOTHING
        fields: tuple[tuple[str, GrammarKind | None, str | None], ...] = (
            ("json_schema", "json_schema", self.json_schema),
            ("grammar", None, self.grammar),
            ("regex", "regex", self.regex),
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_grammar", None, self.guided_grammar),
            ("guided_choice", "lark", self.guided_choice),
            ("structured_outputs.json", "json_schema", several.schema_),
            ("structured_outputs.regex", "regex", several.regex),
            ("structured_outputs.grammar", None, several.grammar),
            ("structured_outputs.choice", "lark", several.choice),
            (
                "structured_outputs.json_object",
                "json_schema",
                ANY_OBJECT if several.json_object else None,
            ),
        )
        for param, kind, written in fields:
            if written is not None:
                yield Grammar(kind or grammar_kind(written), written, param)


_NOTHING = _StructuredOutputs.model_construct()


def grammar_kind(written: str) -> GrammarKind:
    """Lark's rules have a colon and begin with `start`; all others are taken for GBNF."""
    return "lark" if "::=" not in written and _LARK_START.search(written) else "gbnf"


def read_response_format(value: dict[str, Any]) -> Grammar | None:
    """The `response_format` field; None where it asks for plain text.

    Args:
        value: An object with a `type`.

    Raises:
        RequestError: The type is unknown, or the schema is missing or none; its path is named.
    """
    kind = checked(
        one_of("text", "json_object", "json_schema"), value["type"], "response_format", "type"
    )
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        if schema is None or schema == "":
            return Grammar("json_schema", ANY_OBJECT, "response_format")
        return _schema_grammar(schema, "schema")
    if "json_schema" not in value and "schema" in value:  # llama-server's flat form
        return _schema_grammar(value["schema"], "schema")
    inner = value.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong("response_format.json_schema", "must be an object with a `schema`", inner)
    for name, check in (("name", text), ("strict", flag)):  # the reply is held to it either way
        if inner.get(name) is not None:
            checked(check, inner[name], "response_format", "json_schema", name)
    return _schema_grammar(inner.get("schema"), "json_schema", "schema")


def _schema_grammar(schema: Any, *location: str) -> Grammar:
    location = ("response_format", *location)
    return Grammar("json_schema", checked(schema_text, schema, *location), path(location))
