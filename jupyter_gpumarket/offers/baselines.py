"""What the hyperscalers ask for the same GPU: dated list prices, for comparison only. Sources: `data/SOURCES.md`."""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.resources import files

import msgspec

from jupyter_gpumarket.api import Baseline
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.gpus import canonical, same_but_for_bus, specs

HYPERSCALERS = frozenset({"aws", "azure", "gcp", "oci"})
# Sources that tell no date of their own were read on this day.
READ = "read 2026-11-20"
_BUS = re.compile(r"SXM|PCIe|NVL")
_DATE = re.compile(r"generated (\d{4}-\d{2}-\d{2})")


@cache
def baselines() -> dict[str, Baseline]:
    """The cheapest price per GPU and hour of each canonical model. A GPU without its host is no price of a machine."""
    text = (files("jupyter_gpumarket.offers") / "data" / "baseline_prices.csv").read_text("utf-8")
    cheapest: dict[str, Baseline] = {}
    for row in csv.DictReader(text.splitlines()):
        gpu = canonical(row["gpu_raw"])
        if gpu is None or row["cloud"] not in HYPERSCALERS or "accelerator" in row["instance_type"]:
            continue
        found = _DATE.search(row["source"])
        price = Baseline(
            gpu=gpu,
            cloud=row["cloud"],
            instance_type=row["instance_type"],
            gpu_nusd_hour=usd(row["price_usd_per_hour"]) // int(row["gpu_count"]),
            region=row["region"],
            date=found[1] if found else READ,
            source=row["source"],
        )
        if gpu not in cheapest or price.gpu_nusd_hour < cheapest[gpu].gpu_nusd_hour:
            cheapest[gpu] = price
    return {**_of_families(cheapest), **cheapest}


def _of_families(cheapest: dict[str, Baseline]) -> dict[str, Baseline]:
    """Offers that do not tell a card's bus ("A100 80GB") are compared with the cheapest card of that memory."""
    found: dict[str, Baseline] = {}
    for name in specs():
        if not _BUS.search(name):
            near = [price for gpu, price in cheapest.items() if gpu != name and same_but_for_bus(name, gpu)]
            if near:
                found[name] = msgspec.structs.replace(min(near, key=lambda price: price.gpu_nusd_hour), gpu=name)
    return found
