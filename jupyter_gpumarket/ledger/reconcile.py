"""Our ledger against the marketplace's own bill, with the gap explained as far as the facts go. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_gpumarket.api import Reconciliation
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.ledger.charges import bill, spans
from jupyter_gpumarket.models import ENDED_STATES, Charge, Lease, MarketCharge
from jupyter_gpumarket.money import cost_nusd, format_usd

# A bill in whole cents can differ by so much a line, and nobody is wrong.
CENT_NUSD = 10_000_000
COMPUTE = "compute"


def reconcile(
    lease: Lease, ours: Sequence[Charge], theirs: Sequence[MarketCharge], checked_ms: int = 0
) -> Reconciliation:
    """Compare the bills of all of a lease's rentals. The gap is theirs less ours."""
    ours_nusd = sum(charge.amount_nusd for charge in ours if charge.lease_id == lease.lease_id)
    lines = _once(theirs)
    theirs_nusd = sum(line.amount_nusd for line in lines)
    gap = theirs_nusd - ours_nusd
    return Reconciliation(
        lease_id=lease.lease_id,
        marketplace=lease.offer.marketplace if lease.offer else "",
        rental_id=lease.rental_id,
        ours_nusd=ours_nusd,
        theirs_nusd=theirs_nusd,
        gap_nusd=gap,
        explained=_explained(lease, lines, gap),
        checked_ms=checked_ms,
    )


def _once(theirs: Sequence[MarketCharge]) -> list[MarketCharge]:
    """Each line once: bills are read again and again, and the last reading of a line counts."""
    return list({line.charge_id: line for line in theirs}.values())


def _explained(lease: Lease, lines: Sequence[MarketCharge], gap: int) -> str:
    if gap == 0:
        return "both bills agree"
    if not lines:
        return "the marketplace has not billed this rental yet"
    reasons = []
    if lease.state not in ENDED_STATES or not all(line.final for line in lines):
        reasons.append("the marketplace's bill is not final yet")
    reasons += _other_lines(lines)
    reasons += _time_and_price(lease, [line for line in lines if line.what == COMPUTE])
    if not reasons and abs(gap) <= CENT_NUSD * len(lines):
        reasons.append("it lies within the rounding of the marketplace's lines")
    return "; ".join(reasons) if reasons else "no known reason: ask the marketplace about this rental"


def _other_lines(lines: Sequence[MarketCharge]) -> list[str]:
    return [
        f"the marketplace bills {format_usd(line.amount_nusd)} for {line.what}"
        for line in lines
        if line.what != COMPUTE
    ]


def _time_and_price(lease: Lease, compute: Sequence[MarketCharge]) -> list[str]:
    told = spans(lease, lease.changed_ms)
    if not compute or not told:
        return []
    ours_ms = sum(bill(span).billed_ms for span in told)
    theirs_ms = sum(line.end_ms - line.start_ms for line in compute)
    rate = told[-1].rate_nusd_hour
    reasons = []
    longer = theirs_ms - ours_ms
    if longer:
        cost = cost_nusd(rate, abs(longer))
        words = "longer" if longer > 0 else "shorter"
        reasons.append(
            f"the marketplace bills {in_words(abs(longer) / 1000)} {words} than we observed ({format_usd(cost)})"
        )
    if theirs_ms > 0:
        expected = cost_nusd(rate, theirs_ms)
        amount = sum(line.amount_nusd for line in compute)
        if abs(amount - expected) > len(compute):
            reasons.append(
                f"for its time the marketplace bills {format_usd(amount)}, "
                f"where the agreed price gives {format_usd(expected)}"
            )
    return reasons
