"""Quotes of marketplaces that hold no price: the offer as a listing shows it that was read just now."""

from __future__ import annotations

from collections.abc import Iterable

from jupyter_gpumarket.errors import OfferGone
from jupyter_gpumarket.models import Offer, Quote


def relisted(offer: Offer, listed: Iterable[Offer], *, hold_ms: int, gone: str) -> Quote:
    """The same offer at its price of now.

    Args:
        listed: what was read anew.
        hold_ms: for how long that sight is good enough, from when it was seen.
        gone: what to say when it is not there any more.

    Raises:
        OfferGone: it is not.
    """
    fresh = next((row for row in listed if row.offer_id == offer.offer_id), None)
    if fresh is None:
        raise OfferGone(f"{offer.marketplace}: {gone}")
    return Quote(
        marketplace=fresh.marketplace,
        offer=fresh,
        price_nusd_hour=fresh.price_nusd_hour,
        expires_ms=fresh.seen_ms + hold_ms,
        kind=fresh.kind,
        quote_id=fresh.offer_id,
    )
