"""What the real markets offered once: machines with their prices, to fill the stand-ins' listings. Nothing of it can
be rented; `data/SOURCES.md` says where it comes from."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from jupyter_gpumarket.models import Record
from jupyter_gpumarket.money import usd


class Figure(Record, frozen=True, kw_only=True):
    """One offer as it was seen. The price is for all its GPUs."""

    source_id: str
    gpu_raw: str
    gpu_count: int
    vram_gib: float
    vcpus: float
    ram_gib: float
    price_nusd_hour: int
    region: str
    country: str


@cache
def figures(provider: str) -> tuple[Figure, ...]:
    """All that was seen of one marketplace."""
    text = files("jupyter_gpumarket.simulator").joinpath("data/market_snapshot.csv").read_text("utf-8")
    return tuple(
        Figure(
            source_id=row["source_id"],
            gpu_raw=row["gpu_raw"],
            gpu_count=int(row["gpu_count"]),
            vram_gib=float(row["vram_gib_per_gpu"] or 0),
            vcpus=float(row["vcpus"] or 0),
            ram_gib=float(row["ram_gib"] or 0),
            price_nusd_hour=usd(row["price_usd_per_hour"]),
            region=row["region"],
            country=row["country"],
        )
        for row in csv.DictReader(text.splitlines())
        # What is sold as spot alone has no other price.
        if row["provider"] == provider and row["price_usd_per_hour"]
    )
