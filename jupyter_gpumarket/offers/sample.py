"""What marketplaces offered once: a dated sample for who has no account yet. None of it can be rented."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from jupyter_gpumarket.models import Offer, PriceKind
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.filters import with_canonical_gpu

DATE = "2026-11-20"
READ_MS = 1_795_132_800_000  # midnight UTC of that day
NOTE = f"sample read on {DATE} from skypilot-catalog; it cannot be rented"


@cache
def sample() -> dict[str, tuple[Offer, ...]]:
    """The sample's offers by marketplace. A row with a spot price of its own is two offers."""
    text = (files("jupyter_gpumarket.offers") / "data" / "market_sample.csv").read_text("utf-8")
    found: dict[str, list[Offer]] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines())):
        listed = found.setdefault(row["marketplace"], [])
        if row["price_usd_hour"]:
            listed.append(_offer(row, number, row["price_usd_hour"], PriceKind.ON_DEMAND))
        if row["spot_usd_hour"] and row["spot_usd_hour"] != row["price_usd_hour"]:
            listed.append(_offer(row, number, row["spot_usd_hour"], PriceKind.SPOT))
    return {name: tuple(offers) for name, offers in found.items()}


def _offer(row: dict[str, str], number: int, price: str, kind: PriceKind) -> Offer:
    offer = Offer(
        marketplace=row["marketplace"],
        offer_id=f"sample-{number}-{kind.value}",
        machine_id=f"sample-{number}",
        price_nusd_hour=usd(price),
        seen_ms=READ_MS,
        kind=kind,
        gpu_raw=row["gpu_raw"],
        gpu_count=int(row["gpu_count"]),
        vram_gib=float(row["vram_gib"] or 0),
        cpu_cores=int(float(row["vcpus"] or 0)),
        memory_gib=float(row["ram_gib"] or 0),
        region=row["region"] or row["country"],
        country=row["country"],
        extra={"sample": row["source_id"]},
    )
    return with_canonical_gpu(offer)
