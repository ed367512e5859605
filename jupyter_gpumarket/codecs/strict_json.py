"""JSON as a node's word: every liberty of the format that has ever hurt a reader is refused.

Refused: deeper than the limit, more items than the limit, integers of more digits than the limit, NaN and Infinity,
duplicate keys, lone surrogates, bytes after the value, anything not UTF-8.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.errors import CodecError

# Possessive quantifiers: linear time and no backtracking stack, whatever the input.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def loads(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of a JSON text.

    Raises:
        CodecError: not JSON, or JSON that takes one of the refused liberties.
    """
    if len(data) > limits.json_bytes:
        raise CodecError(f"JSON of {len(data):,} bytes; at most {limits.json_bytes:,} are accepted")
    _check_shape(data, limits)

    def integer(text: str) -> int:
        if len(text) > limits.max_digits:
            raise CodecError(f"an integer of {len(text)} digits; at most {limits.max_digits} are accepted")
        return int(text)

    try:
        return json.loads(
            data.decode("utf-8"),
            parse_int=integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_pairs,
        )
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not the JSON that was announced: {error}") from None


def check_text(text: str) -> str:
    """The text itself, if it holds no lone surrogate (which no UTF-8 file or display can hold).

    Raises:
        CodecError: it does.
    """
    if not text.isascii() and _SURROGATE.search(text):
        raise CodecError("text with a lone surrogate, which UTF-8 cannot hold")
    return text


def _check_shape(data: bytes, limits: Limits) -> None:
    """Depth and number of items, counted before anything is built."""
    depth = items = 0
    for token in _TOKENS.finditer(data):
        sign = data[token.start()]
        if sign in b"[{":
            depth += 1
            items += 1
            if depth > limits.max_depth:
                raise CodecError(f"JSON nested deeper than {limits.max_depth}")
        elif sign in b"]}":
            depth -= 1
        elif sign == 0x2C:  # a comma: one more item
            items += 1
        if items > limits.max_items:
            raise CodecError(f"JSON with more than {limits.max_items:,} items")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise CodecError(f"a number out of range: {text[:40]}")
    return value


def _refuse_constant(name: str) -> float:
    raise CodecError(f"{name} is not JSON")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {check_text(key): _checked(value) for key, value in pairs}
    if len(found) != len(pairs):
        raise CodecError("JSON with a key twice in one object")
    return found


def _checked(value: Any) -> Any:
    return check_text(value) if isinstance(value, str) else value
