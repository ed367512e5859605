"""The registry's OpenAPI document, made from its table of routes and the schemas it decodes with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.pool.registry_routes import Route
from jupyter_gpumarket.pool.registry_service import VERSION

REFERENCE = "#/components/schemas/{name}"


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document, as JSON-able data."""
    table = list(routes)
    types = [Problem] + [kind for route in table for kind in (route.body, route.reply) if isinstance(kind, type)]
    structs = list(dict.fromkeys(kind for kind in types if issubclass(kind, msgspec.Struct)))
    _, components = msgspec.json.schema_components(structs, ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jupyter_gpumarket pool registry", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                caller: {"type": "http", "scheme": "bearer", "description": f"the token of a {caller}"}
                for caller in ("user", "join", "host")
            },
        },
    }


def operation(route: Route) -> dict[str, Any]:
    """One route."""
    shown: dict[str, Any] = {
        "operationId": route.action.__name__,
        "summary": route.what,
        "security": [] if route.caller == "anyone" else [{route.caller: []}],
        "parameters": parameters(route),
        "responses": {
            "200": {"description": "done", "content": content(route.reply)},
            "default": {"description": "refused", "content": content(Problem)},
        },
    }
    if route.body is not None:
        shown["requestBody"] = {"required": True, "content": content(route.body)}
    return shown


def parameters(route: Route) -> list[dict[str, Any]]:
    path = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    query = [{"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in route.query]
    return (path if "{name}" in route.path else []) + query


def content(kind: Any) -> dict[str, Any]:
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    schema = {"$ref": REFERENCE.format(name=kind.__name__)} if is_struct else {"type": "object"}
    return {"application/json": {"schema": schema}}
