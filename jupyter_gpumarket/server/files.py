"""Costs as files to take away: CSV, Parquet, HTML, made as `jupyter gpumarket report` makes them."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime

from jupyter_gpumarket.api import CostQuery
from jupyter_gpumarket.api.requests import NotFound
from jupyter_gpumarket.models import Charge, Record
from jupyter_gpumarket.server.door import Door

MIMES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "html": "text/html"}


class CostFile(Record, frozen=True, kw_only=True):
    """POST /gpumarket/costs/export/{format}: a file. `content` is its text, or with `base64` its bytes in base64.

    It comes inside JSON, and not as a page or a download of its own, so that no browser opens it as part of Jupyter.
    """

    name: str
    mime: str
    base64: bool
    content: str


async def cost_file(door: Door, wanted: str, query: CostQuery) -> CostFile:
    """The ledger's lines of a span, split at midnight UTC, as a file.

    Raises:
        NotFound: a format that is none of `MIMES`.
    """
    if wanted not in MIMES:
        raise NotFound(f"costs can be exported as {', '.join(MIMES)}, not as {wanted[:40]!r}", what="format")
    found = await door.call(lambda broker: broker.costs(query))
    # Thousands of lines take their time, and other pages' requests go on meanwhile.
    return await asyncio.to_thread(_written, wanted, found.charges, query, found.as_of_ms)


def _written(wanted: str, charges: list[Charge], query: CostQuery, as_of_ms: int) -> CostFile:
    from jupyter_gpumarket.ledger import export

    until_ms = as_of_ms if query.until_ms is None else query.until_ms
    data = export.content(charges, wanted, since_ms=query.since_ms, until_ms=until_ms)
    is_binary = wanted == "parquet"
    return CostFile(
        name=f"gpu-costs-{datetime.fromtimestamp(as_of_ms / 1000, tz=UTC):%Y-%m-%d}.{wanted}",
        mime=MIMES[wanted],
        base64=is_binary,
        content=base64.b64encode(data).decode() if is_binary else data.decode(),
    )
