"""The OpenAPI 3.1 document, drawn from the route table: what is served is what is described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from jupyter_gpumarket import __version__
from jupyter_gpumarket.api import API_VERSION, Problem
from jupyter_gpumarket.broker.web import Route


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document, as JSON-ready data."""
    kinds = [kind for route in routes for kind in (route.body, route.answer) if kind not in (None, Any)] + [Problem]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema_of = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jupyter_gpumarket broker", "version": f"{__version__} (API {API_VERSION})"},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    def content(kind: Any) -> dict[str, Any]:
        return {"application/json": {"schema": schema_of.get(repr(kind), {})}}

    in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in in_path]
    parameters += [{"name": n, "in": "query", "required": False, "schema": {"type": "string"}} for n in route.query]
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{route.path.replace('/v1', '').replace('/', '_')}",
        "summary": route.summary,
        "responses": {
            "200": {"description": "done", "content": content(route.answer)},
            "default": {"description": "an error", "content": content(Problem)},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": content(route.body)}
    return operation
