"""A million offers: filter and rank, beside plain Python over rows as a marketplace's client prints them, and gpuhunt.

    python -m tests.benchmarks.bench_million [rounds]

Rows are made of the shipped sample, with prices varied by a fixed seed. gpuhunt is used where it can be imported, and
passed over aloud where not. Peak memory is what this process grew by while our table was made and asked.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from jupyter_gpumarket.models import Offer, OfferQuery, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.filters import frame, narrowed
from jupyter_gpumarket.offers.job import Job
from jupyter_gpumarket.offers.ranking import ordered
from jupyter_gpumarket.offers.sample import sample

OFFERS = 1_000_000
FEWER = 100_000
BEST = 100
QUERY = OfferQuery(gpu="A100|H100:80GB", max_price_nusd_hour=usd("3.50"), region="EU")


def offers(count: int) -> list[Offer]:
    """So many offers, the sample's over and over with other prices and machines."""
    rng = random.Random(7)
    seen = [offer for some in sample().values() for offer in some]
    return [
        msgspec.structs.replace(
            seen[number % len(seen)],
            offer_id=f"o{number}",
            machine_id=f"m{number}",
            price_nusd_hour=seen[number % len(seen)].price_nusd_hour * rng.randint(50, 150) // 100,
            tier=Tier.VERIFIED if number % 3 else Tier.COMMUNITY,
        )
        for number in range(count)
    ]


def timed(act: Callable[[], object], rounds: int) -> float:
    """The middle of some rounds, milliseconds; one before them does not count."""
    act()
    spans = []
    for _ in range(rounds):
        started = time.perf_counter()
        act()
        spans.append((time.perf_counter() - started) * 1000)
    return median(spans)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(listed: list[Offer], rounds: int) -> dict[str, float]:
    before = peak_mib()
    started = time.perf_counter()
    table = frame(listed)
    made_ms = (time.perf_counter() - started) * 1000
    found = {
        "table made once": made_ms,
        "memory of the table, MiB": table.estimated_size("mb"),
        "filter + rank by price": timed(lambda: ordered(narrowed(table, QUERY)[0], "price", Job(), BEST), rounds),
        "filter + rank by cost to finish": timed(
            lambda: ordered(narrowed(table, QUERY)[0], "cost_to_finish", Job(seconds=6 * 3600), BEST), rounds
        ),
        "no filter, rank by cost to finish": timed(
            lambda: ordered(table, "cost_to_finish", Job(seconds=6 * 3600), BEST), rounds
        ),
    }
    return {**found, "peak growth, MiB": peak_mib() - before}


def vast_rows(listed: list[Offer]) -> bytes:
    """As Vast's client gets them, with the fields that a search by hand looks at, and as many more."""
    rows = [
        {
            "id": number,
            "gpu_name": offer.gpu_raw.replace("_", " "),
            "num_gpus": offer.gpu_count,
            "gpu_ram": offer.vram_gib * 1024,
            "dph_total": offer.price_nusd_hour / 1e9,
            "geolocation": f"{offer.region}, {offer.country}",
            "reliability2": 0.99,
            **{f"field_{n}": n for n in range(40)},
        }
        for number, offer in enumerate(listed)
    ]
    return json.dumps({"offers": rows}).encode()


def plain_python(content: bytes) -> list[dict[str, Any]]:
    """Parse, filter, sort: what a script around `vastai search offers --raw` does."""
    europe = ("DE", "FR", "NL", "SE", "NO", "FI", "CZ", "BG", "IS", "RO", "ES", "IT", "PL", "GB")
    rows = json.loads(content)["offers"]
    fitting = [
        row
        for row in rows
        if ("A100" in row["gpu_name"] or "H100" in row["gpu_name"])
        and row["gpu_ram"] >= 72 * 1024
        and row["dph_total"] <= 3.5
        and row["geolocation"].endswith(europe)
    ]
    return sorted(fitting, key=lambda row: row["dph_total"])[:BEST]


def gpuhunt_query(listed: list[Offer]) -> Callable[[], object] | None:
    """gpuhunt's own query over a catalogue of these rows, which is in its memory already."""
    try:
        from gpuhunt import Catalog
        from gpuhunt._internal.catalog import ProviderCatalog
        from gpuhunt._internal.models import AcceleratorVendor, CatalogItem
    except ImportError:
        return None
    items = [
        CatalogItem(
            provider="aws",
            instance_name=offer.offer_id,
            location=offer.region,
            price=offer.price_nusd_hour / 1e9,
            cpu=offer.cpu_cores or 1,
            memory=offer.memory_gib or 1,
            gpu_count=offer.gpu_count,
            gpu_name=(offer.gpu or offer.gpu_raw).split(" ", maxsplit=1)[0],
            gpu_memory=offer.vram_gib,
            gpu_vendor=AcceleratorVendor.NVIDIA,
            spot=False,
            disk_size=100,
        )
        for offer in listed
    ]
    catalogue = Catalog(balance_resources=False, auto_reload=False)
    catalogue.catalog = {"aws": ProviderCatalog(version="1", items=items)}
    catalogue.loaded_at = time.monotonic()
    return lambda: catalogue.query(provider=["aws"], gpu_name=["A100", "H100"], min_gpu_memory=72, max_price=3.5)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    listed = offers(OFFERS)
    found = ours(listed, rounds)
    print(f"{OFFERS:,} offers, the best {BEST}; milliseconds, middle of {rounds}")
    for what, figure in found.items():
        print(f"  {what:<38} {figure:10.1f}")
    few = listed[:FEWER]
    table = frame(few)
    base = timed(lambda: ordered(narrowed(table, QUERY)[0], "price", Job(), BEST), rounds)
    print(f"{FEWER:,} of the same rows; milliseconds, and how many times ours")
    print(f"  {'ours, filter + rank by price':<38} {base:10.1f}")
    content = vast_rows(few)
    theirs = timed(lambda: plain_python(content), 3)
    print(f"  {'plain Python over JSON rows':<38} {theirs:10.1f}  {theirs / base:8.0f} ×")
    query = gpuhunt_query(few)
    if query is None:
        print("  gpuhunt: cannot be imported here, so it is passed over")
        return
    theirs = timed(query, 3)
    print(f"  {'gpuhunt, Catalog.query':<38} {theirs:10.1f}  {theirs / base:8.0f} ×")


if __name__ == "__main__":
    main()
