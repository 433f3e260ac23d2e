"""GET /openapi.json, made from the routes and their request models, and GET /docs to try them.

The page is Swagger UI, whose files the package `swagger-ui-bundle` carries: nothing is
asked of another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import swagger_ui_bundle
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from mlx_server import __version__
from mlx_server.api.base import Dialect, HttpRequest, Json, JsonReply, Pool, RawReply, Route
from mlx_server.api.openai import OpenAIDialect
from mlx_server.errors import NotFound

_FILES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}

_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>mlx_server</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null});
</script>
</body>
</html>
"""

_VERSION = "3.0.3"
"""The newest Swagger UI that a package carries, 4.15.5, reads no later one."""

_SCHEMAS = "#/components/schemas/"
_PLACEHOLDER = re.compile(r"\{(\w+)(?::path)?\}")


class Docs(OpenAIDialect):
    """
    Args:
        dialects: Whose routes are told of.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._told = [
            (route, type(dialect).__name__)
            for dialect in dialects
            for route in dialect.routes
            if route.summary
        ]
        self.routes = (
            Route("GET", "/docs", self.page),
            Route("GET", "/docs/{file}", self.file),
            Route("GET", "/openapi.json", self.openapi),
        )

    def page(self, http: HttpRequest, pool: Pool) -> RawReply:
        if http.path.endswith("/"):  # where the page's relative links would lead astray
            return RawReply(b"", "text/plain", 301, {"Location": "../docs"})
        return RawReply(_PAGE, "text/html; charset=utf-8")

    def file(self, http: HttpRequest, pool: Pool) -> RawReply:
        """Raises NotFound for all but the files that the page names."""
        name = http.params["file"]
        if name not in _FILES:
            raise NotFound(f"There is nothing at {http.path}.")
        body = (Path(swagger_ui_bundle.swagger_ui_path) / name).read_bytes()
        return RawReply(body, _FILES[name], headers={"Cache-Control": "max-age=86400"})

    def openapi(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply(self.description)

    @cached_property
    def description(self) -> Json:
        """OpenAPI 3.0: https://spec.openapis.org/oas/v3.0.3"""
        models = {route.body for route, _ in self._told if route.body is not None}
        named, definitions = models_json_schema(
            [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)],
            ref_template=_SCHEMAS + "{model}",
            schema_generator=_Schemas,
        )
        paths: dict[str, Json] = {}
        for route, tag in self._told:
            path = _PLACEHOLDER.sub(r"{\1}", route.path)
            body = None if route.body is None else named[route.body, "validation"]
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, tag, body)
        return {
            "openapi": _VERSION,
            "info": {"title": "mlx_server", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": _used(definitions["$defs"], named.values()),
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                },
            },
            "security": [{}, {"bearer": []}, {"header": []}],
        }


class _Schemas(GenerateJsonSchema):
    """JSON Schema as OpenAPI 3.0 has it: `nullable` for the type null, no `const`."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        # What stands beside a $ref does not count.
        inner = {"allOf": [inner]} if "$ref" in inner else inner
        if "enum" in inner:
            inner = {**inner, "enum": [*inner["enum"], None]}
        return {**inner, "nullable": True}

    def literal_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().literal_schema(schema)
        if "const" in found:
            found["enum"] = [found.pop("const")]
        return found


def _used(schemas: dict[str, Json], roots: Iterable[Json]) -> dict[str, Json]:
    """The schemas that the roots refer to, and those that these refer to."""
    found: set[str] = set()
    left = _references(list(roots))
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left |= _references(schemas[name])
    return {name: schema for name, schema in schemas.items() if name in found}


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return {name for item in value for name in _references(item)}
    if not isinstance(value, dict):
        return set()
    inner = {name for item in value.values() for name in _references(item)}
    reference = value.get("$ref")
    return inner | ({reference.removeprefix(_SCHEMAS)} if isinstance(reference, str) else set())


def _operation(route: Route, tag: str, body: Any) -> Json:
    text = {"schema": {"type": "string"}}
    parameters = [
        {"name": name, "in": "path", "required": True, **text}
        for name in _PLACEHOLDER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", **text} for name in route.query]
    operation: Json = {
        "summary": route.summary,
        "tags": [tag],
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_").lower(),
        "responses": {
            "200": {"description": "The reply"},
            "4XX": {"description": "What is wrong with the request"},
            "5XX": {"description": "What cannot be done here, or not now"},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    # A body with GET is taken, as old clients send it, but no standard describes it.
    if body is not None and route.method != "GET":
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": not route.may_be_empty, "content": content}
    return operation
