"""What a lease's budget pays for, and how long each phase may last. Pure arithmetic."""

from __future__ import annotations

from jupyter_gpumarket.models import Billing, Lease, LeaseRequest, LeaseState, PriceKind, Quote, Rental
from jupyter_gpumarket.money import affordable_ms, cost_nusd

PPM = 1_000_000
SAVE_MS = 12_000
NEAR_MS = 300_000
SMALL_PART = 10
BILLED_PHASES = frozenset({LeaseState.BOOTING, LeaseState.LINKING, LeaseState.PREPARING, LeaseState.PROBING})


def payable_ms(price_nusd_hour: int, billing: Billing, amount_nusd: int) -> int:
    """The longest rental whose whole bill does not exceed the amount; 0 when not even the minimum fits."""
    left_nusd = amount_nusd - billing.fee_nusd
    if left_nusd < 0:
        return 0
    quantum_ms = max(1, billing.quantum_s) * 1000
    longest_ms = affordable_ms(price_nusd_hour, left_nusd) // quantum_ms * quantum_ms
    return longest_ms if longest_ms >= billing.minimum_s * 1000 else 0


def bill_nusd(price_nusd_hour: int, billing: Billing, duration_ms: int) -> int:
    """What a rental of this length costs, at most."""
    quantum_ms = max(1, billing.quantum_s) * 1000
    billed_ms = max(-(-max(0, duration_ms) // quantum_ms) * quantum_ms, billing.minimum_s * 1000)
    return cost_nusd(price_nusd_hour, billed_ms) + billing.fee_nusd


def left_nusd(lease: Lease) -> int:
    """What the failed attempts have left of the lease's budget."""
    spent = sum(
        bill_nusd(attempt.price_nusd_hour, attempt.offer.billing, attempt.billed_to_ms - attempt.billed_from_ms)
        for attempt in lease.attempts
        if attempt.offer is not None and attempt.billed_from_ms is not None and attempt.billed_to_ms is not None
    )
    return max(0, lease.request.budget_nusd - spent)


def called_ms(lease: Lease) -> int:
    """When the create call of the current attempt was made: no bill can begin earlier.

    Hours and budget are counted from here, whatever later begin the marketplace tells: its word cannot lengthen them.
    """
    called = lease.phases.get(LeaseState.RENTING, lease.billed_from_ms)
    assert called is not None, "only a lease that has called a marketplace is asked"
    return called


def deadline_ms(lease: Lease) -> int | None:
    """When the current rental has used up the agreed hours or the budget, whichever comes first."""
    if lease.billed_from_ms is None or lease.offer is None:
        return None
    paid_ms = payable_ms(lease.price_nusd_hour, lease.offer.billing, left_nusd(lease))
    return called_ms(lease) + min(lease.request.max_s * 1000, paid_ms)


def give_back_ms(lease: Lease) -> int:
    """When a node is told good-bye, before its deadline ends it: time enough to bring declared outputs over."""
    return _before_deadline_ms(lease, SAVE_MS)


def near_ms(lease: Lease) -> int:
    """From when on people and programs are told that the deadline is near."""
    return _before_deadline_ms(lease, NEAR_MS)


def _before_deadline_ms(lease: Lease, most_ms: int) -> int:
    """So long before the deadline, and never more than a small part of the whole time."""
    assert lease.deadline_ms is not None, "only a lease with a deadline is asked"
    return lease.deadline_ms - min(most_ms, max(0, lease.deadline_ms - called_ms(lease)) // SMALL_PART)


def deadline_words(lease: Lease, *, is_ahead: bool = False) -> str:
    """What the deadline stands for, for people; `is_ahead`: it is still to come."""
    by_time = called_ms(lease) + lease.request.max_s * 1000
    if lease.deadline_ms is not None and by_time <= lease.deadline_ms:
        return "the agreed hours will be over" if is_ahead else "the agreed hours are over"
    return "the budget will be used up" if is_ahead else "the budget is used up"


def has_agent(lease: Lease) -> bool:
    """Whether there is somebody on the node to be told a deadline."""
    return lease.state in (LeaseState.READY, LeaseState.UNREACHABLE)


def phase_deadline_ms(
    lease: Lease, state: LeaseState, now_ms: int, *, phase_s: dict[str, int], budget_ppm: int
) -> int | None:
    """When the phase must be over: by time, and while money flows by its share of the budget."""
    if state not in phase_s:
        return None
    longest_ms = phase_s[state] * 1000
    if state in BILLED_PHASES:
        share_nusd = lease.request.budget_nusd * budget_ppm // PPM
        longest_ms = min(longest_ms, affordable_ms(lease.price_nusd_hour, share_nusd))
    return now_ms + longest_ms


def dearer(price_nusd_hour: int, agreed_nusd_hour: int, tolerance_ppm: int) -> bool:
    """Whether a price exceeds what was agreed by more than the tolerance."""
    return price_nusd_hour * PPM > agreed_nusd_hour * (PPM + tolerance_ppm)


def breach(rental: Rental, quote: Quote, tolerance_ppm: int) -> str:
    """In what the rental breaks the quote, for people; empty when it does not."""
    if rental.price_nusd_hour is not None and rental.price_nusd_hour < 0:
        return "the rental's price is negative"
    if rental.price_nusd_hour is not None and dearer(rental.price_nusd_hour, quote.price_nusd_hour, tolerance_ppm):
        return f"dearer than agreed: {rental.price_nusd_hour} instead of {quote.price_nusd_hour} nano-dollars an hour"
    if rental.kind is PriceKind.SPOT and quote.kind is PriceKind.ON_DEMAND:
        return "rented as spot although on-demand was agreed"
    return ""


def unfit(quote: Quote, request: LeaseRequest, budget_nusd: int, *, listed_nusd_hour: int, least_paid_s: int) -> str:
    """Why this quote must not be taken, for people; empty when it may."""
    if quote.price_nusd_hour < 0:
        return "its price is negative"
    if dearer(quote.price_nusd_hour, listed_nusd_hour, request.price_tolerance_ppm):
        return "it has become dearer since it was listed"
    limit = request.query.max_price_nusd_hour
    if limit is not None and quote.price_nusd_hour > limit:
        return "its firm price is above the limit"
    if request.query.kind is not None and quote.kind is not request.query.kind:
        return f"it is {quote.kind.value}, not {request.query.kind.value}"
    paid_ms = payable_ms(quote.price_nusd_hour, quote.offer.billing, budget_nusd)
    if min(paid_ms, request.max_s * 1000) < min(least_paid_s, request.max_s) * 1000 or paid_ms == 0:
        return f"the budget pays for {paid_ms // 1000} s of it"
    return ""
