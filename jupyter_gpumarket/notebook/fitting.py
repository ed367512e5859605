"""Whether a node that is there already is what a cell asks for."""

from __future__ import annotations

from jupyter_gpumarket.models import Lease, OfferQuery
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.offers.filters import conditions, frame, with_canonical_gpu


def misfit(lease: Lease, query: OfferQuery) -> str | None:
    """In which point the node is not what is asked for, in words; None when it fits.

    A price limit counts too: who says "at most $1" does not want the $3 node of an earlier cell.

    Raises:
        BadRequest: the query cannot be read (an unknown GPU name, say).
    """
    steps = conditions(query)
    if lease.offer is None:
        return None
    if query.max_price_nusd_hour is not None and lease.price_nusd_hour > query.max_price_nusd_hour:
        return f"it costs {format_usd(lease.price_nusd_hour)}/h"
    table = frame([with_canonical_gpu(lease.offer)])
    for name, condition in steps:
        if table.filter(condition).is_empty():
            return f"not {name}"
    return None
