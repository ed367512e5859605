"""Money is exact."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.money import affordable_ms, cost_nusd, format_usd, native_text, split, usd


@pytest.mark.parametrize(
    ("text", "nusd"),
    [
        ("0.35", 350_000_000),
        ("$2.50", 2_500_000_000),
        (1, 10**9),
        (Decimal("1e-9"), 1),
        ("-3", -3 * 10**9),
        ("$1,500.00", 1500 * 10**9),
    ],
)
def test_dollars_become_nano_dollars(text: str | int | Decimal, nusd: int) -> None:
    """Amounts in text, int and Decimal are read exactly."""
    assert usd(text) == nusd


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "1e-10", "1e30", "1.2.3", "1,5", "$1,50", "1,500"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Nothing is guessed from unreadable amounts."""
    with pytest.raises(ValueError, match=r"."):
        usd(text)


def test_floats_are_refused() -> None:
    """A float cannot say which amount it means."""
    with pytest.raises(TypeError):
        usd(0.1)  # type: ignore[arg-type]


@given(st.integers(-(10**15), 10**15))
def test_shown_amounts_read_back_the_same(nusd: int) -> None:
    """format_usd loses nothing unless told to round."""
    assert usd(format_usd(nusd).replace("-$", "-")) == nusd


@pytest.mark.parametrize(
    ("nusd", "places", "shown"),
    [(1_250_000_000, None, "$1.25"), (291_667, None, "$0.000291667"), (5_000_000, 2, "$0.01"), (0, None, "$0.00")],
)
def test_amounts_are_shown_as_people_write_them(nusd: int, places: int | None, shown: str) -> None:
    """Cents at least, and no false digits."""
    assert format_usd(nusd, places=places) == shown


@given(st.integers(0, 10**13), st.lists(st.integers(0, 10**9), min_size=1).filter(any))
def test_parts_add_up_to_the_whole(total: int, weights: list[int]) -> None:
    """Splitting a bill loses and invents nothing, and each part is within one nano-dollar of its share."""
    parts = split(total, weights)

    assert sum(parts) == total
    assert all(
        abs(part * sum(weights) - total * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True)
    )


@given(st.integers(1, 10**12), st.integers(0, 10**13))
def test_what_is_affordable_costs_no_more_than_the_amount(rate: int, amount: int) -> None:
    """The time a budget buys never costs more than the budget, and a hair longer would."""
    bought_ms = affordable_ms(rate, amount)

    assert cost_nusd(rate, bought_ms) <= amount
    assert rate * (bought_ms + 1) > amount * 3_600_000


@pytest.mark.parametrize(
    ("nusd", "rate", "text"),
    [
        (10_000_000, "1", "0.010000000"),
        (10_000_000, "0.45", "0.022222222"),
        (-1, "1", "-0.000000001"),
        (9 * 10**18, "0.000001", "9000000000000000.000000000"),
        (0, "3", "0.000000000"),
    ],
)
def test_an_amount_in_another_unit_is_exact_decimal_text(nusd: int, rate: str, text: str) -> None:
    """No exponent, nine places, whatever the size."""
    assert native_text(nusd, rate) == text


@pytest.mark.parametrize("rate", ["0", "-1", "NaN", "Infinity", "", "two"])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    """Dividing by it would make no amount."""
    with pytest.raises(ValueError, match="is not a rate"):
        native_text(1, rate)
