"""Dollars as marketplaces write them, exactly: numbers and texts become Decimal, never float, then nano-dollars."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

from jupyter_gpumarket.errors import Temporary
from jupyter_gpumarket.money import usd

NANO = Decimal("1e-9")
MOST_DOLLARS = 10**9


def price_nusd(marketplace: str, dollars: Decimal) -> int:
    """Nano-dollars of a price, rounded up, so that no lease costs more than was counted.

    Raises:
        Temporary: it is not a finite amount that fits.
    """
    return _nano(marketplace, dollars, ROUND_CEILING)


def amount_nusd(marketplace: str, dollars: Decimal) -> int:
    """Nano-dollars of an amount on a bill, rounded to the nearest.

    Raises:
        Temporary: it is not a finite amount that fits.
    """
    return _nano(marketplace, dollars, ROUND_HALF_EVEN)


def _nano(marketplace: str, dollars: Decimal, rounding: str) -> int:
    # Quantizing a number with a huge exponent is an error of another kind than a huge number.
    if not dollars.is_finite() or abs(dollars) > MOST_DOLLARS:
        raise Temporary(marketplace, f"it told {str(dollars)[:40]!r} where an amount of money belongs")
    return usd(dollars.quantize(NANO, rounding))
