"""A marketplace's own API document as a judge of what adapter and stand-in say to each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from jupyter_gpumarket.simulator.web import ENCODER, Call, Reply

# Kept outside the checkout, because they belong to others; without them these tests skip.
KEPT = Path("shared") / "openapi"


class Document:
    """One OpenAPI document. `differences` gathers what does not fit it, as (method, path, side, field)."""

    def __init__(self, name: str, changes: str | None = None, *, prefix: str = "") -> None:
        self._whole = kept(name)
        if changes is not None:
            changed(self._whole, kept(changes))
        self._prefix = prefix
        self.differences: set[tuple[str, str, str, str]] = set()
        self.checked: set[tuple[str, str, int]] = set()

    def observe(self, call: Call, reply: Reply) -> None:
        """Hold one exchange against the document."""
        path = call.path.removeprefix(self._prefix)
        template = next((known for known in self._whole["paths"] if fits(known, path)), None)
        if template is None or call.method.lower() not in self._whole["paths"][template]:
            self.differences.add((call.method, call.path, "path", "not in the document"))
            return
        operation = self._whole["paths"][template][call.method.lower()]
        where = (call.method, template)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._hold(where, "request", schema, msgspec.json.decode(call.content))
        self._hold_query(where, operation, call)
        answers = operation["responses"]
        answer = answers.get(str(reply.status)) or answers.get("default")
        if answer is None:
            self.differences.add((*where, "reply", f"status {reply.status}"))
            return
        self.checked.add((*where, reply.status))
        if not reply.body:
            return
        for schema in [kind["schema"] for kind in self._resolved(answer).get("content", {}).values()]:
            self._hold(where, "reply", schema, msgspec.json.decode(ENCODER.encode(reply.body)))

    def _hold_query(self, where: tuple[str, str], operation: dict[str, Any], call: Call) -> None:
        told = [self._resolved(one) for one in operation.get("parameters", [])]
        known = {one["name"] for one in told if one["in"] == "query"}
        missing = {one["name"] for one in told if one["in"] == "query" and one.get("required")} - set(call.query)
        for name in (set(call.query) - known) | missing:
            self.differences.add((*where, "query", name))

    def _hold(self, where: tuple[str, str], side: str, schema: dict[str, Any], value: Any) -> None:
        rooted = {**schema, "components": self._whole["components"]}
        for error in Draft202012Validator(rooted).iter_errors(value):
            place = ".".join("[]" if isinstance(part, int) else str(part) for part in error.absolute_path)
            self.differences.add((*where, side, f"{place}: {error.validator}"))

    def _resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        found: Any = part
        if "$ref" in part:
            found = self._whole
            for name in part["$ref"].removeprefix("#/").split("/"):
                found = found[name]
        return dict(found)


def kept(name: str) -> dict[str, Any]:
    """A document that is kept beside the checkout; without it the test skips."""
    files = [parent / KEPT / name for parent in Path(__file__).parents]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        pytest.skip(f"the API document {name} is not here")
    whole: dict[str, Any] = with_nulls(yaml.safe_load(file.read_text("utf-8")))
    return whole


def changed(whole: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put what a short list of changes says into a document: schemas, requests and replies, without media types."""
    whole["components"]["schemas"] |= changes["components"]["schemas"]
    for path, operations in changes["paths"].items():
        for method, told in operations.items():
            operation = whole["paths"].setdefault(path, {}).setdefault(method, {"responses": {}})
            operation["parameters"] = told.get("parameters", operation.get("parameters", []))
            if "requestBody" in told:
                operation["requestBody"] = {"content": {"application/json": {"schema": told["requestBody"]}}}
            for status, answer in told.get("responses", {}).items():
                operation["responses"][status] = {"content": {"application/json": answer}}


def with_nulls(part: Any) -> Any:
    """The same document where `nullable`, which JSON Schema does not know, is said by the type."""
    if isinstance(part, list):
        return [with_nulls(one) for one in part]
    if not isinstance(part, dict):
        return part
    whole = {name: with_nulls(one) for name, one in part.items()}
    if whole.get("nullable") is True and isinstance(whole.get("type"), str):
        whole["type"] = [whole["type"], "null"]
    return whole


def fits(template: str, path: str) -> bool:
    """Whether a path is one of a template; a slash at the end says nothing."""
    return re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template.rstrip("/")), path.rstrip("/")) is not None
