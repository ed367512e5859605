"""A picker's filters, as Python writes them and as its page keeps them."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.notebook.picker_state import USUAL, filters_of, state_of

ASKED = {
    "text": "H100:80GB",
    "min_price": "0.1",
    "max_price": "2.50",
    "min_vram_gib": 24,
    "models": ["T4", "H100 SXM"],
    "tier": "verified",
    "kind": "spot",
    "sort": "total",
    "hours": 4.5,
    "out_gib": 10,
}


def test_filters_come_back_as_they_were_set() -> None:
    """To the page's state and back, prices are exact and nothing is lost."""
    state = state_of(ASKED)

    assert state["filters"]["priceHigh"] == 2_500_000_000
    assert filters_of(state) == {**USUAL, **ASKED, "min_price": "0.10"}


def test_what_only_the_page_knows_stays() -> None:
    """Setting filters closes no group and turns no order around."""
    before = {**state_of({}), "grouped": True, "descending": True, "open": ["T4"]}

    assert state_of(ASKED, before=before) == {**state_of(ASKED), "grouped": True, "descending": True, "open": ["T4"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpu", "T4"),
        ("max_price", "1,50"),
        ("min_vram_gib", -1),
        ("models", "T4"),
        ("tier", "best"),
        ("kind", "cheap"),
        ("sort", "magic"),
        ("hours", 0),
        ("samples", "yes"),
        ("text", "x" * 201),
    ],
)
def test_what_a_filter_cannot_take_is_refused_by_name(key: str, value: Any) -> None:
    """Nothing is guessed."""
    with pytest.raises(BadRequest, match=key):
        state_of({key: value})


@pytest.mark.parametrize(
    "damaged", [{}, {"filters": 7}, {"filters": {"models": 3, "priceHigh": 0.5}, "job": {"hours": "x"}}]
)
def test_a_damaged_state_is_as_usual(damaged: dict[str, Any]) -> None:
    """Whatever a page sends, the filters can be read."""
    assert filters_of(damaged) == USUAL
