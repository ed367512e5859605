"""A picker's filters as Python people write them, and the state that its page keeps. Pure, both ways.

The page's side is `labextension/src/offers/state.ts`: amounts are nano-dollars there, and dollars as text here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import PriceKind, Tier
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.searching import amount_nusd

SORTS = ("price", "price_per_gpu", "price_per_vram", "total", "saving", "vram", "reliability", "age")

USUAL: dict[str, Any] = {
    "text": "",
    "min_price": None,
    "max_price": None,
    "min_vram_gib": None,
    "max_vram_gib": None,
    "models": [],
    "marketplaces": [],
    "region": "",
    "tier": "",
    "kind": "",
    "samples": False,
    "sort": "price",
    "hours": 1.0,
    "in_gib": 0.0,
    "out_gib": 0.0,
}
# Our key, its place in the page's state.
_PLACES: dict[str, tuple[str, ...]] = {
    "text": ("filters", "text"),
    "min_price": ("filters", "priceLow"),
    "max_price": ("filters", "priceHigh"),
    "min_vram_gib": ("filters", "vramLow"),
    "max_vram_gib": ("filters", "vramHigh"),
    "models": ("filters", "models"),
    "marketplaces": ("filters", "marketplaces"),
    "region": ("filters", "region"),
    "tier": ("filters", "tier"),
    "kind": ("filters", "kind"),
    "samples": ("filters", "samples"),
    "sort": ("sort",),
    "hours": ("job", "hours"),
    "in_gib": ("job", "inGib"),
    "out_gib": ("job", "outGib"),
}
_PRICES = frozenset({"min_price", "max_price"})


def state_of(filters: Mapping[str, Any], *, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The page's state for these filters; what only the page knows (grouping, direction) is taken from `before`.

    Raises:
        BadRequest: an unknown key, or a value that it cannot take.
    """
    unknown = sorted(set(filters) - set(USUAL))
    if unknown:
        raise BadRequest(f"filters: {unknown[0]!r} is not one of {', '.join(USUAL)}")
    before = before or {}
    state: dict[str, Any] = {
        "filters": {},
        "sort": "price",
        "descending": before.get("descending", False),
        "grouped": before.get("grouped", False),
        "open": list(before.get("open", [])),
        "job": {},
    }
    for key, usual in USUAL.items():
        value = _checked(key, filters.get(key, usual))
        *way, last = _PLACES[key]
        place = state[way[0]] if way else state
        place[last] = amount_nusd(key, value) if key in _PRICES else value
    return state


def filters_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The filters that the page's state stands for; whatever does not fit is as usual."""
    found = {}
    for key, usual in USUAL.items():
        value: Any = state
        for step in _PLACES[key]:
            value = value.get(step) if isinstance(value, Mapping) else None
        if key in _PRICES:
            whole = isinstance(value, int | float) and value == int(value)
            found[key] = format_usd(int(value)).removeprefix("$").replace(",", "") if whole else None
        else:
            found[key] = value if value is not None and _fits(key, value) else usual
    return found


def _checked(key: str, value: Any) -> Any:
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    if key in _PRICES:
        return value
    if not _fits(key, value):
        raise BadRequest(f"filters: {key} cannot be {value!r:.80}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 200 and all(_is_text(one) for one in value)


def _is_amount(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


_FITS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "region": _is_text,
    "models": _is_names,
    "marketplaces": _is_names,
    "min_vram_gib": lambda value: value is None or _is_amount(0, 1e5)(value),
    "max_vram_gib": lambda value: value is None or _is_amount(0, 1e5)(value),
    "tier": lambda value: value == "" or value in set(Tier),
    "kind": lambda value: value == "" or value in set(PriceKind),
    "samples": lambda value: isinstance(value, bool),
    "sort": lambda value: value in SORTS,
    "hours": _is_amount(1 / 60, 24 * 365),
    "in_gib": _is_amount(0, 1e6),
    "out_gib": _is_amount(0, 1e6),
}


def _fits(key: str, value: Any) -> bool:
    return _FITS[key](value)
