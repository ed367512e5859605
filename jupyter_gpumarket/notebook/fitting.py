"""Whether a node that is there already is what a cell asks for."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from jupyter_gpumarket.models import Lease, Offer, OfferQuery
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.offers.filters import conditions, frame, with_canonical_gpu


def misfit(lease: Lease, query: OfferQuery) -> str | None:
    """In which point the node is not what is asked for, in words; None when it fits.

    A price limit counts too: who says "at most $1" does not want the $3 node of an earlier cell.

    Raises:
        BadRequest: the query cannot be read (an unknown GPU name, say).
    """
    unmet = _unmet(msgspec.json.encode((lease.offer, query)))
    if lease.offer is None:
        return None
    if query.max_price_nusd_hour is not None and lease.price_nusd_hour > query.max_price_nusd_hour:
        return f"it costs {format_usd(lease.price_nusd_hour)}/h"
    return unmet


@lru_cache(maxsize=64)
def _unmet(offer_and_query: bytes) -> str | None:
    """The first condition that the offer does not meet. Remembered: most cells ask the same as the one before."""
    offer, query = msgspec.json.decode(offer_and_query, type=tuple[Offer | None, OfferQuery])
    steps = conditions(query)
    if offer is None:
        return None
    table = frame([with_canonical_gpu(offer)])
    for name, condition in steps:
        if table.filter(condition).is_empty():
            return f"not {name}"
    return None
