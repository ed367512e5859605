"""Requests at the edge: a body is the record it must be, and what is wrong with it is told by the field's name.

Our own doors (broker, Jupyter server extension) decode with this, so that they are equally strict.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from jupyter_gpumarket import errors

T = TypeVar("T")


class NotFound(errors.BadRequest):
    """Something was named that is not there."""

    def __init__(self, message: str, *, what: str) -> None:
        super().__init__(message)
        self.field = what


class Forbidden(errors.BadRequest):
    """The caller's token may not do this."""


class InvalidField(errors.BadRequest):
    """A field of a body or a query that cannot be read."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.field = name


def decode(body: bytes, kind: type[T]) -> T:
    """A body as the record it must be: no field missing, none of a wrong type, and none that is not known.

    Raises:
        InvalidField: names the field.
    """
    try:
        value = msgspec.json.decode(body, type=kind)
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = str(error)
        raise InvalidField(f"the request cannot be read: {message}", name=_named_field(message)) from None
    unknown = _unknown(given, msgspec.to_builtins(value), "$")
    if unknown:
        raise InvalidField(f"the request has an unknown field `{unknown}`", name=unknown.removeprefix("$."))
    return value


def _named_field(message: str) -> str:
    """The field out of msgspec's own words: "… - at `$.query.gpu`", or "… field `name`"."""
    quoted = message.split("`")
    if "field `" in message:
        return message.split("field `")[1].split("`", maxsplit=1)[0]
    return quoted[-2].removeprefix("$").removeprefix(".") if len(quoted) >= 3 and quoted[-2].startswith("$") else ""


def _unknown(given: Any, known: Any, path: str) -> str:
    """The path of the first field that was given and not taken; records that must ignore newer fields would hide it."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                return f"{path}.{name}"
            deeper = _unknown(value, known[name], f"{path}.{name}")
            if deeper:
                return deeper
    if isinstance(given, list) and isinstance(known, list):
        for index, (value, taken) in enumerate(zip(given, known, strict=False)):
            deeper = _unknown(value, taken, f"{path}[{index}]")
            if deeper:
                return deeper
    return ""
