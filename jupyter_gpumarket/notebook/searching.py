"""A search in plain words, the same in Python, in the terminal and in magics, as the request that the broker takes."""

from __future__ import annotations

from decimal import Decimal

from jupyter_gpumarket.api import OfferSearch
from jupyter_gpumarket.api.offers import Samples
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import TIER_ORDER, OfferQuery, PriceKind, Tier
from jupyter_gpumarket.money import usd

Amount = str | int | float | Decimal


def search_of(
    query: OfferQuery,
    *,
    hours: float = 1.0,
    disk_gib: float | None = None,
    in_gib: float = 0.0,
    out_gib: float = 0.0,
    sort: str = "price",
    refresh: bool = False,
    limit: int = 1000,
    samples: Samples = "auto",
) -> OfferSearch:
    """For which job, and in which order."""
    return OfferSearch(
        query=query,
        hours=hours,
        disk_gib=disk_gib,
        in_gib=in_gib,
        out_gib=out_gib,
        sort=sort,
        refresh=refresh,
        limit=limit,
        samples=samples,
    )


def amount_nusd(what: str, amount: Amount | None) -> int | None:
    """An hourly price as people write one; `2.5` means exactly two dollars and a half.

    Raises:
        BadRequest: it is no amount; names `what`.
    """
    if amount is None or amount == "":
        return None
    try:
        return usd(repr(amount) if isinstance(amount, float) else amount)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"{what}: {error}") from None


def least_tier(text: str | None) -> Tier | None:
    """ ">=verified", or just "verified": machines of this tier or a better one.

    Raises:
        BadRequest: no such tier; names those there are.
    """
    if not text:
        return None
    name = text.strip().removeprefix(">=").strip().casefold().replace(" ", "").replace("-", "")
    if name not in {tier.value for tier in Tier}:
        raise BadRequest(f"tier: {text!r} is none; there are, weakest first: {', '.join(TIER_ORDER)}")
    return Tier(name)


def price_kind(text: str | None) -> PriceKind | None:
    """ "spot" or "on_demand".

    Raises:
        BadRequest: another word.
    """
    if not text:
        return None
    name = text.strip().casefold().replace("-", "_").replace(" ", "_")
    if name not in {kind.value for kind in PriceKind}:
        raise BadRequest(f"kind: {text!r} is none; there are: {', '.join(kind.value for kind in PriceKind)}")
    return PriceKind(name)
