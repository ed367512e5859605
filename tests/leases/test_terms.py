"""What a budget pays for, by the marketplace's own rule; exact to the nano-dollar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.leases import terms
from jupyter_gpumarket.models import Billing, OfferQuery, PriceKind, Quote, Rental, RentalStatus
from tests.leases.fakes import offer, request

PRICES = st.integers(0, 100_000_000_000)
AMOUNTS = st.integers(0, 10_000_000_000)
BILLINGS = st.builds(
    Billing,
    quantum_s=st.sampled_from([1, 60, 3600]),
    minimum_s=st.sampled_from([0, 60, 3600]),
    fee_nusd=st.sampled_from([0, 1, 5_000_000]),
)


@given(PRICES, BILLINGS, AMOUNTS)
def test_the_longest_payable_rental_never_costs_more_than_the_amount(price: int, billing: Billing, amount: int) -> None:
    """With quantum, minimum and fee counted in."""
    longest_ms = terms.payable_ms(price, billing, amount)

    assert longest_ms == 0 or terms.bill_nusd(price, billing, longest_ms) <= amount


@given(st.integers(1, 100_000_000_000), BILLINGS, AMOUNTS)
def test_a_quantum_more_would_cost_too_much(price: int, billing: Billing, amount: int) -> None:
    """The longest payable rental is really the longest."""
    longer_ms = terms.payable_ms(price, billing, amount) + billing.quantum_s * 1000

    assert terms.bill_nusd(price, billing, longer_ms) > amount


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"price_nusd_hour": 353_500_000}, ""),
        ({"price_nusd_hour": 353_500_001}, "dearer"),
        ({"price_nusd_hour": 350_000_000 * 100}, "dearer"),
        ({"price_nusd_hour": -1}, "negative"),
        ({"price_nusd_hour": 0}, ""),
        ({"price_nusd_hour": None, "kind": None}, ""),
        ({"kind": PriceKind.SPOT}, "spot"),
    ],
)
def test_the_contract_is_compared_with_the_quote(changes: dict[str, object], told: str) -> None:
    """Price above the tolerance, a negative one, and a less firm kind break it; one per cent does not."""
    quote = Quote(marketplace="fake", offer=offer(), price_nusd_hour=350_000_000, expires_ms=1)
    rental = Rental(marketplace="fake", rental_id="r", label="l", status=RentalStatus.RUNNING, **changes)

    breach = terms.breach(rental, quote, tolerance_ppm=10_000)

    assert told in breach
    assert bool(breach) == bool(told)


@pytest.mark.parametrize(
    ("price", "kind", "changes", "told"),
    [
        (350_000_000, PriceKind.ON_DEMAND, {}, ""),
        (-1, PriceKind.ON_DEMAND, {}, "negative"),
        (700_000_000, PriceKind.ON_DEMAND, {}, "dearer"),
        (350_000_000, PriceKind.ON_DEMAND, {"query": OfferQuery(max_price_nusd_hour=349_999_999)}, "above the limit"),
        (350_000_000, PriceKind.SPOT, {"query": OfferQuery(kind=PriceKind.ON_DEMAND)}, "is spot"),
        (350_000_000, PriceKind.ON_DEMAND, {"budget_nusd": 1_000_000}, "the budget pays for 10 s"),
        (350_000_000, PriceKind.ON_DEMAND, {"budget_nusd": 1}, "the budget pays for 0 s"),
        (350_000_000, PriceKind.ON_DEMAND, {"max_s": 5, "budget_nusd": 1_000_000}, ""),
    ],
)
def test_a_quote_is_taken_only_when_it_fits(price: int, kind: PriceKind, changes: dict[str, object], told: str) -> None:
    """Dearer than listed, above the limit, of another kind or beyond the budget: not taken, with the reason."""
    quote = Quote(marketplace="fake", offer=offer(), price_nusd_hour=price, expires_ms=1, kind=kind)
    wish = request(**changes)

    reason = terms.unfit(quote, wish, wish.budget_nusd, listed_nusd_hour=350_000_000, least_paid_s=30)

    assert told in reason
    assert bool(reason) == bool(told)
