"""The OpenAPI 3.1 document, drawn from a route table: what is served is what is described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from jupyter_gpumarket import __version__
from jupyter_gpumarket.api.base import API_VERSION, Problem


class Described(Protocol):
    """What the document needs to know of a route: its place, what it takes, what it answers."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def answer(self) -> Any: ...
    @property
    def body(self) -> Any: ...
    @property
    def query(self) -> tuple[str, ...]: ...


def document(
    routes: Sequence[Described], *, title: str, security: Mapping[str, Mapping[str, str]], prefix: str = "/v1"
) -> dict[str, Any]:
    """The whole document, as JSON-ready data. `security`: the schemes by name, any one of which lets a caller in."""
    kinds = [kind for route in routes for kind in (route.body, route.answer) if kind not in (None, Any)] + [Problem]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema_of = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, prefix)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": f"{__version__} (API {API_VERSION})"},
        "security": [{scheme: []} for scheme in security],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(security)},
    }


def _operation(route: Described, schema_of: dict[str, Any], prefix: str) -> dict[str, Any]:
    def content(kind: Any) -> dict[str, Any]:
        return {"application/json": {"schema": schema_of.get(repr(kind), {})}}

    in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in in_path]
    parameters += [{"name": n, "in": "query", "required": False, "schema": {"type": "string"}} for n in route.query]
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{route.path.removeprefix(prefix).replace('/', '_')}",
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
