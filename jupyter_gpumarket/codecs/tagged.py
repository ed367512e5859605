"""Python values as tagged JSON: what plain JSON would lose is written as `{"$": kind, "v": ...}`.

Plain: dict with text keys, list, str, int, bool, None, finite float. Tagged: tuple, set, frozenset, bytes, bytearray,
complex, float that is not finite, Decimal, date, time, datetime, timedelta, UUID, dict with other keys, numpy array.
numpy scalars and 0-d results become the Python number they stand for. Subclasses (named tuples, enums, OrderedDict)
arrive as their base type. Anything else is refused by name.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from jupyter_gpumarket.codecs import arrays, strict_json
from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.errors import CodecError

TAG = "$"
# Behind a time that a clock, set back in autumn, shows for the second time; ISO 8601 has no word for it.
FOLDED = ";fold=1"
_PLAIN_LEAVES = {str, bool, type(None)}


def dumps(value: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A value as tagged JSON.

    Raises:
        CodecError: it holds something that has no place here; the message says what and where.
    """
    try:
        text = json.dumps(_lower(value, "", limits.max_depth, limits), allow_nan=False, ensure_ascii=False)
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise CodecError("text with a lone surrogate, which UTF-8 cannot hold") from None


def loads(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of tagged JSON.

    Raises:
        CodecError: not strict JSON, or a tag that is not known or does not hold what it says.
    """
    try:
        return _lift(strict_json.loads(data, limits), limits)
    except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError, binascii.Error) as error:
        raise CodecError(f"a tagged value does not hold what its tag says: {error}") from None


def _lower(value: Any, path: str, depth: int, limits: Limits) -> Any:
    if depth <= 0:
        raise CodecError(f"the value is nested deeper than {limits.max_depth} levels, or holds itself")
    simple = _lower_leaf(value, path, limits)
    if simple is not _NOT_A_LEAF:
        return simple
    if isinstance(value, Mapping):
        return _lower_mapping(value, path, depth, limits)
    if isinstance(value, list):
        return _lower_items(value, path, depth, limits)
    for kind, type_ in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, type_):
            return {TAG: kind, "v": _lower_items(list(value), path, depth - 1, limits)}
    if arrays.is_array(value):
        return {TAG: "npy", "v": base64.b64encode(arrays.dumps(value)).decode("ascii")}
    raise CodecError(f"{_place(path)}a value of type {_type_name(value)} has no codec")


_NOT_A_LEAF = object()


def _lower_leaf(value: Any, path: str, limits: Limits) -> Any:
    value = arrays.python_scalar(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 3.3 * limits.max_digits:
            raise CodecError(f"{_place(path)}an integer of more than {limits.max_digits} digits; send it as text")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {TAG: "float", "v": str(float(value))}
    for kind, type_, write in _LEAF_TAGS:
        if isinstance(value, type_):
            return {TAG: kind, "v": write(value)}
    return _NOT_A_LEAF


def _lower_mapping(value: Mapping[Any, Any], path: str, depth: int, limits: Limits) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value) and TAG not in value:
        return {str(k): _lower(v, f"{path}[{str(k)[:40]!r}]", depth - 1, limits) for k, v in value.items()}
    pairs = [
        [_lower(k, f"{path} key", depth - 3, limits), _lower(v, f"{path}[{str(k)[:40]}]", depth - 3, limits)]
        for k, v in value.items()
    ]
    return {TAG: "dict", "v": pairs}


def _lower_items(items: list[Any], path: str, depth: int, limits: Limits) -> list[Any]:
    kinds = set(map(type, items))
    if kinds <= _PLAIN_LEAVES or (kinds == {float} and all(map(math.isfinite, items))):
        return items  # the common long lists, without a call for each item
    return [_lower(item, f"{path}[{i}]", depth - 1, limits) for i, item in enumerate(items)]


def _lift(value: Any, limits: Limits) -> Any:
    if isinstance(value, list):
        return [_lift(item, limits) for item in value]
    if isinstance(value, str):
        return strict_json.check_text(value)
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _lift(item, limits) for key, item in value.items()}
    if set(value) != {TAG, "v"} or not isinstance(value[TAG], str):
        raise CodecError("a tagged value has fields that do not belong there")
    return _lift_tag(value[TAG], value["v"], limits)


def _lift_tag(kind: str, held: Any, limits: Limits) -> Any:
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](_lift(_of(list, held), limits))
    if kind == "dict":
        pairs = [(_lift(k, limits), _lift(v, limits)) for k, v in _of(list, held)]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CodecError("a dict with a key twice")
        return found
    if kind == "npy":
        return arrays.loads(_bytes(held), limits)
    for name, _, _ in _LEAF_TAGS:
        if kind == name:
            return _LEAF_READERS[kind](held)
    if kind == "float" and held in ("nan", "inf", "-inf"):
        return float(held)
    raise CodecError(f"a tagged value of unknown kind {kind[:40]!r}")


def _of(type_: type, held: Any) -> Any:
    if not isinstance(held, type_):
        raise CodecError(f"a tagged value holds {type(held).__name__} instead of {type_.__name__}")
    return held


def _bytes(held: Any) -> bytes:
    return base64.b64decode(_of(str, held), validate=True)


def _text(held: Any, longest: int = 2000) -> str:
    text: str = _of(str, held)
    if len(text) > longest:
        raise CodecError("a tagged value is too long")
    return text


def _microseconds(value: dt.timedelta) -> int:
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


def _complex(held: Any) -> complex:
    real, imaginary = (float(_text(part, 40)) for part in _of(list, held))
    return complex(real, imaginary)


def _unfolded(kind: Any, held: Any) -> Any:
    text = _text(held, 64)
    return kind.fromisoformat(text.removesuffix(FOLDED)).replace(fold=int(text.endswith(FOLDED)))


# datetime before date: a datetime is a date too.
_LEAF_TAGS: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("bytes", bytes, lambda value: base64.b64encode(value).decode("ascii")),
    ("bytearray", bytearray, lambda value: base64.b64encode(value).decode("ascii")),
    ("complex", complex, lambda value: [repr(value.real), repr(value.imag)]),
    ("decimal", decimal.Decimal, str),
    ("datetime", dt.datetime, lambda value: value.isoformat() + FOLDED * value.fold),
    ("date", dt.date, lambda value: value.isoformat()),
    ("time", dt.time, lambda value: value.isoformat() + FOLDED * value.fold),
    ("timedelta", dt.timedelta, _microseconds),
    ("uuid", uuid.UUID, str),
)
_LEAF_READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": _bytes,
    "bytearray": lambda held: bytearray(_bytes(held)),
    "complex": _complex,
    "decimal": lambda held: decimal.Decimal(_text(held)),
    "datetime": lambda held: _unfolded(dt.datetime, held),
    "date": lambda held: dt.date.fromisoformat(_text(held, 64)),
    "time": lambda held: _unfolded(dt.time, held),
    "timedelta": lambda held: dt.timedelta(microseconds=_of(int, held)),
    "uuid": lambda held: uuid.UUID(_text(held, 64)),
}
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _place(path: str) -> str:
    return f"at {path[:200]}: " if path else ""
