"""How Vast.ai's search reads a query: operators, numbers sent as text, virtual fields, order, and its cap. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

MOST_ROWS = 64
NOT_FILTERS = frozenset({"order", "type", "limit", "allocated_storage", "target_reliability", "rented", "select_cols"})
SAME_FIELD = {"reliability2": "reliability", "dphtotal": "dph_total", "gpu_totalram": "gpu_total_ram"}
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
Row = dict[str, Any]


def searched(rows: Iterable[Row], query: Mapping[str, Any]) -> list[Row]:
    """The rows that a query gets: filtered, in its order, never more than 64."""
    limit = query.get("limit", MOST_ROWS)
    most = min(MOST_ROWS, limit) if isinstance(limit, int) and limit > 0 else MOST_ROWS
    return ordered([row for row in rows if matches(row, query)], query.get("order", [["score", "desc"]]))[:most]


def matches(row: Row, query: Mapping[str, Any]) -> bool:
    """Whether all filters let a row through."""
    stored = float(query.get("allocated_storage", 8))
    if row["disk_space"] < stored:
        return False
    return all(
        passes(row, SAME_FIELD.get(name, name), wish)
        for name, wish in query.items()
        if name not in NOT_FILTERS and isinstance(wish, dict)
    )


def passes(row: Row, name: str, wish: Mapping[str, Any]) -> bool:
    """Whether one filter lets a row through."""
    if name == "id":
        # The real one matches nothing by id; asks are found by `ask_contract_id`.
        return False
    value = field(row, name)
    return all(holds(value, word, wanted, absent_is_false=name == "external") for word, wanted in wish.items())


def field(row: Row, name: str) -> Any:
    """A row's field, also those that exist in queries only."""
    if name == "verified":
        return row["vericode"] == 1
    if name == "datacenter":
        return row["hosting_type"] == 1
    if name == "geolocation":
        return str(row["geolocation"]).rpartition(",")[2].strip()
    return row.get(name)


def holds(value: Any, word: str, wanted: Any, *, absent_is_false: bool) -> bool:
    """One operator. What a row does not have passes nothing."""
    if value is None and absent_is_false:
        value = False
    if word in ("in", "notin"):
        found = any(alike(value, one) for one in wanted)
        return found == (word == "in")
    compare = COMPARED.get(word)
    if compare is None or value is None:
        return False
    like = as_kind_of(value, wanted)
    return False if like is None else compare(value, like)


def alike(value: Any, wanted: Any) -> bool:
    like = as_kind_of(value, wanted)
    return like is not None and bool(value == like)


def as_kind_of(value: Any, wanted: Any) -> Any:
    """The official client sends most numbers as text."""
    if isinstance(value, bool):
        return wanted if isinstance(wanted, bool) else str(wanted).casefold() == "true"
    if isinstance(value, int | float | Decimal):
        try:
            return Decimal(str(wanted))
        except InvalidOperation:
            return None
    return str(wanted)


def ordered(rows: list[Row], order: Any) -> list[Row]:
    """Sorted by several fields, the first one weighing most; rows without a field come last."""
    for name, way in reversed(order if isinstance(order, list) else []):
        rows = sorted(rows, key=partial(_sort_value, str(name)), reverse=way == "desc")
    return rows


def _sort_value(name: str, row: Row) -> Any:
    return row.get(name) or 0.0
