"""Whether two runs of one item gave the same: exactly, or within a tolerance. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def difference(first: Any, second: Any, tolerance: float = 0.0, where: str = "") -> str:
    """Where two results differ, in words; empty when they do not. NaN equals NaN."""
    if _is_number(first) and _is_number(second):
        return "" if _is_close(first, second, tolerance) else f"{where or 'the value'}: {first!r} and {second!r}"
    if type(first) is not type(second):
        return f"{where or 'the value'}: a {type(first).__name__} and a {type(second).__name__}"
    return _of_kind(first)(first, second, tolerance, where)


def _of_kind(value: Any) -> Callable[[Any, Any, float, str], str]:
    if isinstance(value, Mapping):
        return _of_mappings
    if isinstance(value, list | tuple):
        return _of_sequences
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _of_arrays
    return _of_tables if hasattr(value, "equals") else _of_others


def _of_others(first: Any, second: Any, _tolerance: float, where: str) -> str:
    return "" if first == second else f"{where or 'the value'}: {str(first)[:80]!r} and {str(second)[:80]!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _is_close(first: Any, second: Any, tolerance: float) -> bool:
    if first == second or (first != first and second != second):  # noqa: PLR0124 - only NaN differs from itself
        return True
    if not tolerance or isinstance(first, complex) or isinstance(second, complex):
        return tolerance > 0 and abs(first - second) <= tolerance
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)


def _of_mappings(first: Mapping[Any, Any], second: Mapping[Any, Any], tolerance: float, where: str) -> str:
    if first.keys() != second.keys():
        return f"{where or 'the value'}: other keys"
    parts = (difference(first[key], second[key], tolerance, f"{where}[{key!r}]") for key in first)
    return next((part for part in parts if part), "")


def _of_sequences(first: Any, second: Any, tolerance: float, where: str) -> str:
    if len(first) != len(second):
        return f"{where or 'the value'}: {len(first)} and {len(second)} long"
    parts = (difference(a, b, tolerance, f"{where}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True)))
    return next((part for part in parts if part), "")


def _of_arrays(first: Any, second: Any, tolerance: float, where: str) -> str:
    import numpy as np

    if first.shape != second.shape or first.dtype != second.dtype:
        return f"{where or 'the array'}: {first.dtype}{first.shape} and {second.dtype}{second.shape}"
    if first.dtype.kind in "fc":
        same = np.isclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        same = np.asarray(first == second)
    count = int(np.size(same) - np.count_nonzero(same))
    return f"{where or 'the array'}: {count} of {np.size(same)} values differ" if count else ""


def _of_tables(first: Any, second: Any, tolerance: float, where: str) -> str:
    if first.equals(second):
        return ""
    names = getattr(first, "columns", None)
    if not tolerance or names is None or list(names) != list(second.columns):
        return f"{where or 'the value'}: two different tables"
    parts = (difference(list(first[n]), list(second[n]), tolerance, f"{where}[{n!r}]") for n in names)
    return next((part for part in parts if part), "")
