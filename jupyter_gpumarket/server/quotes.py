"""What a rental would be, before it is: the offers in the order in which they would be tried, and the worst case."""

from __future__ import annotations

from jupyter_gpumarket.api import FilterStep, MarketplaceStatus, OfferSearch
from jupyter_gpumarket.models import LeaseRequest, Offer, Record
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.server.door import Door

SHOWN = 5


class RentPreview(Record, frozen=True, kw_only=True):
    """POST /gpumarket/quote: `offers`, best first, of which the first that can be had would be rented; nothing is.

    Prices are indicative: the firm one is asked for at renting, and one that is dearer by more than the request's
    tolerance is refused then. `worst_case_nusd` is the most that the lease can cost; None without an offer. `steps`
    tells which filter took how many away.
    """

    offers: list[Offer]
    worst_case_nusd: int | None
    steps: list[FilterStep]
    statuses: list[MarketplaceStatus]


async def preview(door: Door, request: LeaseRequest) -> RentPreview:
    """What this request would rent now."""
    search = OfferSearch(query=request.query, hours=request.max_s / 3600, sort="cost_to_finish", limit=SHOWN)
    found = await door.call(lambda broker: broker.offers(search))
    prices = [offer.price_nusd_hour for offer in found.offers]
    worst = None
    if prices:
        dearest = request.query.max_price_nusd_hour or max(prices)
        worst = min(request.budget_nusd, cost_nusd(dearest, request.max_s * 1000))
    return RentPreview(offers=found.offers, worst_case_nusd=worst, steps=found.steps, statuses=found.statuses)
