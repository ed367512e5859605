"""Money as integer nano-dollars (`nusd`): 1 USD = 1,000,000,000 nusd. No floats anywhere.

An int64 holds ±9.2 thousand million dollars, which the journal's columns rely on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation, localcontext

_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+\.\d+")
NUSD_PER_USD = 1_000_000_000
MS_PER_HOUR = 3_600_000
MAX_NUSD = 2**63 - 1


def usd(text: str | int | Decimal) -> int:
    """Nano-dollars of an amount in dollars: `usd("0.35")`, `usd("$2.50")`, `usd(1)`.

    Raises:
        ValueError: not a number, not finite, finer than a nano-dollar, or out of range. Floats are a TypeError: they
            cannot hold most amounts exactly, so a caller has to say which amount it means.
    """
    if isinstance(text, bool | float):
        raise TypeError(f"an amount of money must be text, int or Decimal, not {type(text).__name__}")
    try:
        amount = Decimal(_plain(text) if isinstance(text, str) else text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in dollars; write it like 0.35") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite amount")
    nano = amount * NUSD_PER_USD
    if nano != nano.to_integral_value():
        raise ValueError(f"{text!r} is finer than a nano-dollar")
    if abs(nano) > MAX_NUSD:
        raise ValueError(f"{text!r} is out of range")
    return int(nano)


def _plain(text: str) -> str:
    """Without the dollar sign, and without commas where they can only group thousands.

    In much of the world a comma is the decimal point: `1,50` and even `1,500` may mean one and a half. So they count
    as groups only where a point follows, as in `1,500.00`; else the amount stays unreadable and is refused.
    """
    bare = text.strip().removeprefix("$")
    return bare.replace(",", "") if _GROUPED.fullmatch(bare) else bare


def format_usd(nusd: int, *, places: int | None = None) -> str:
    """Dollars for people: `$1.25`, `-$0.000291667`.

    Without `places`, at least cents and then as many digits as the amount really has. With `places`, rounded half
    up to that many.
    """
    sign = "-" if nusd < 0 else ""
    if places is not None:
        unit = 10 ** (9 - places)
        nusd = (abs(nusd) + unit // 2) // unit * unit
    whole, fraction = divmod(abs(nusd), NUSD_PER_USD)
    digits = f"{fraction:09d}"
    kept = digits.rstrip("0").ljust(2, "0") if places is None else digits[:places]
    return f"{sign}${whole:,}.{kept}" if kept else f"{sign}${whole:,}"


def cost_nusd(rate_nusd_hour: int, duration_ms: int) -> int:
    """What `duration_ms` costs at an hourly rate, rounded up to the nano-dollar.

    Raises:
        ValueError: a negative rate or duration.
    """
    if rate_nusd_hour < 0 or duration_ms < 0:
        raise ValueError(f"negative rate or duration: {rate_nusd_hour}, {duration_ms}")
    return -(-rate_nusd_hour * duration_ms // MS_PER_HOUR)


def affordable_ms(rate_nusd_hour: int, amount_nusd: int) -> int:
    """The longest time whose cost does not exceed `amount_nusd`; at a rate of zero, ten years."""
    if rate_nusd_hour == 0:
        return 10 * 365 * 24 * MS_PER_HOUR
    return max(0, amount_nusd) * MS_PER_HOUR // rate_nusd_hour


def split(total_nusd: int, weights: Sequence[int]) -> list[int]:
    """Divide a total by integer weights so that the parts add up to it exactly (largest remainder method).

    Raises:
        ValueError: no weight is positive while the total is not zero, or a weight is negative.
    """
    if any(weight < 0 for weight in weights):
        raise ValueError("a weight is negative")
    weight_sum = sum(weights)
    if weight_sum == 0:
        if total_nusd:
            raise ValueError("nothing to split by: all weights are zero")
        return [0] * len(weights)
    parts = [total_nusd * weight // weight_sum for weight in weights]
    rest = total_nusd - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total_nusd * weights[i] % weight_sum), i))
    for index in by_remainder[:rest]:
        parts[index] += 1
    return parts


def native_text(nusd: int, rate: str = "1") -> str:
    """An amount in another unit, as exact as decimal text of 9 places is; `rate` is dollars for one unit.

    Raises:
        ValueError: the rate is not a positive decimal number.
    """
    try:
        dollars_for_one = Decimal(rate)
    except InvalidOperation:
        raise ValueError(f"{rate[:40]!r} is not a rate") from None
    if not dollars_for_one.is_finite() or dollars_for_one <= 0:
        raise ValueError(f"{rate[:40]!r} is not a rate: it must be a positive number")
    with localcontext(prec=40):
        amount = (Decimal(nusd) / NUSD_PER_USD / dollars_for_one).quantize(Decimal("1e-9"))
    return f"{amount:f}"
