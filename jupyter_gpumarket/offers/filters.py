"""Filters over a frame of offers, and the story of what each filter removed. Pure; no I/O.

A query becomes a list of named polars expressions, applied in turn, so that the answer to "why is there nothing?" is
the name of the filter that removed the last candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import polars as pl

from jupyter_gpumarket.api import FilterStep
from jupyter_gpumarket.errors import NoMatchingOffer
from jupyter_gpumarket.models import TIER_ORDER, Offer, OfferQuery, PriceKind
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.offers.gpus import VRAM_TOLERANCE, canonical
from jupyter_gpumarket.offers.grammar import GpuWish, parse
from jupyter_gpumarket.offers.job import MIB, Known, boot_seconds, own_failure_ppm, reliability_ppm
from jupyter_gpumarket.offers.regions import countries, prefixes

_SCHEMA: dict[str, type[pl.DataType]] = {
    "row": pl.Int64,
    "marketplace": pl.String,
    "offer_id": pl.String,
    "machine_id": pl.String,
    "gpu": pl.Categorical,
    "gpu_count": pl.Int64,
    "vram_gib": pl.Float64,
    "price_nusd_hour": pl.Int64,
    "quantum_s": pl.Int64,
    "minimum_s": pl.Int64,
    "storage_nusd_gib_hour": pl.Int64,
    "ingress_nusd_gib": pl.Int64,
    "egress_nusd_gib": pl.Int64,
    "fee_nusd": pl.Int64,
    "disk_mib": pl.Int64,
    "boot_s": pl.Int64,
    "region": pl.String,
    "country": pl.String,
    "tier": pl.Int64,
    "is_spot": pl.Boolean,
    "cpu_cores": pl.Int64,
    "memory_gib": pl.Float64,
    "disk_gib": pl.Float64,
    "reliability_ppm": pl.Int64,
    "own_failure_ppm": pl.Int64,
    "trouble": pl.Int64,
}
NOBODY = Known()


def with_canonical_gpu(offer: Offer) -> Offer:
    """The offer with its GPU's canonical name filled in, where the spelling is known."""

    if offer.gpu is not None or not offer.gpu_raw:
        return offer
    return msgspec.structs.replace(offer, gpu=canonical(offer.gpu_raw, offer.vram_gib or None))


def frame(offers: Sequence[Offer], known: Mapping[tuple[str, str], Known] | None = None) -> pl.DataFrame:
    """One row per offer, `row` being its place in `offers`; `trouble` is our own bad record with that machine."""
    known = known or {}
    ours = [known.get((o.marketplace, o.machine_id), NOBODY) for o in offers]
    bills = [o.billing for o in offers]
    return pl.DataFrame(
        {
            "row": range(len(offers)),
            "marketplace": [o.marketplace for o in offers],
            "offer_id": [o.offer_id for o in offers],
            "machine_id": [o.machine_id for o in offers],
            "gpu": [o.gpu for o in offers],
            "gpu_count": [o.gpu_count for o in offers],
            "vram_gib": [o.vram_gib for o in offers],
            "price_nusd_hour": [o.price_nusd_hour for o in offers],
            "quantum_s": [max(1, b.quantum_s) for b in bills],
            "minimum_s": [b.minimum_s for b in bills],
            "storage_nusd_gib_hour": [b.storage_nusd_gib_hour for b in bills],
            "ingress_nusd_gib": [b.ingress_nusd_gib for b in bills],
            "egress_nusd_gib": [b.egress_nusd_gib for b in bills],
            "fee_nusd": [b.fee_nusd for b in bills],
            "disk_mib": [round(o.disk_gib * MIB) for o in offers],
            "boot_s": [boot_seconds(o, k) for o, k in zip(offers, ours, strict=True)],
            "region": [o.region.casefold() for o in offers],
            "country": [o.country.upper() for o in offers],
            "tier": [TIER_ORDER.index(o.tier) for o in offers],
            "is_spot": [o.kind is PriceKind.SPOT for o in offers],
            "cpu_cores": [o.cpu_cores for o in offers],
            "memory_gib": [o.memory_gib for o in offers],
            "disk_gib": [o.disk_gib for o in offers],
            "reliability_ppm": [reliability_ppm(o) for o in offers],
            "own_failure_ppm": [own_failure_ppm(k.good, k.bad) for k in ours],
            "trouble": [max(0, k.bad - k.good) for k in ours],
        },
        schema=_SCHEMA,
    )


def conditions(query: OfferQuery) -> list[tuple[str, pl.Expr]]:
    """The query's filters, named as people say them.

    Raises:
        BadRequest: the GPU request cannot be read.
    """
    return [*_gpu_conditions(query), *_price_conditions(query), *_place_conditions(query)]


def _gpu_conditions(query: OfferQuery) -> list[tuple[str, pl.Expr]]:
    wish = parse(query.gpu)
    found: list[tuple[str, pl.Expr]] = []
    if wish.without_gpu:
        found.append(("no GPU", pl.col("gpu_count") == 0))
    elif wish.with_gpu or query.vram_gib or query.gpu_count:
        found.append(("any GPU", pl.col("gpu_count") > 0))
    if wish.models is not None:
        found.append((f"gpu {query.gpu}", pl.col("gpu").is_in(sorted(wish.models))))
    found += _memory_conditions(wish, query)
    low, high = (query.gpu_count, query.gpu_count) if query.gpu_count else (wish.count_low, wish.count_high)
    if low is not None:
        found.append((f"at least {low} GPUs", pl.col("gpu_count") >= low))
    if high is not None:
        found.append((f"at most {high} GPUs", pl.col("gpu_count") <= high))
    return found


def _memory_conditions(wish: GpuWish, query: OfferQuery) -> list[tuple[str, pl.Expr]]:
    found = []
    if wish.vram_low_gib is not None:
        found.append((f"memory of {query.gpu}", pl.col("vram_gib") >= wish.vram_low_gib))
    if wish.vram_high_gib is not None:
        found.append((f"memory of {query.gpu}", pl.col("vram_gib") <= wish.vram_high_gib))
    if query.vram_gib:
        found.append((f"vram >= {query.vram_gib:g} GiB", pl.col("vram_gib") >= query.vram_gib * (1 - VRAM_TOLERANCE)))
    return found


def _price_conditions(query: OfferQuery) -> list[tuple[str, pl.Expr]]:
    found = []
    if query.kind is not None:
        words = f"{query.kind.value.replace('_', '-')} price"
        found.append((words, pl.col("is_spot") == (query.kind is PriceKind.SPOT)))
    if query.max_price_nusd_hour is not None:
        shown = format_usd(query.max_price_nusd_hour)
        found.append((f"price <= {shown}/h", pl.col("price_nusd_hour") <= query.max_price_nusd_hour))
    return found


def _place_conditions(query: OfferQuery) -> list[tuple[str, pl.Expr]]:
    found = []
    if query.marketplaces:
        names = ", ".join(query.marketplaces)
        found.append((f"marketplace {names}", pl.col("marketplace").is_in(list(query.marketplaces))))
    if query.offer_id is not None:
        found.append((f"offer {query.offer_id}", pl.col("offer_id") == query.offer_id))
    if query.region:
        found.append((f"region {query.region}", _in_place(query.region)))
    if query.tier is not None:
        found.append((f"tier >= {query.tier.value}", pl.col("tier") >= TIER_ORDER.index(query.tier)))
    for name, least in (("cpu_cores", query.cpu_cores), ("memory_gib", query.memory_gib), ("disk_gib", query.disk_gib)):
        if least:
            found.append((f"{name} >= {least:g}", pl.col(name) >= least))
    return found


def _in_place(wanted: str) -> pl.Expr:
    codes = countries(wanted)
    if codes is None:
        in_region = pl.col("region").str.contains(wanted.casefold(), literal=True)
        return in_region | pl.col("country").str.contains(wanted.upper(), literal=True)
    there = pl.col("country").is_in(codes)
    for beginning in prefixes(wanted):
        there = there | ((pl.col("country") == "") & pl.col("region").str.starts_with(beginning))
    return there


def narrowed(table: pl.DataFrame, query: OfferQuery) -> tuple[pl.DataFrame, list[FilterStep]]:
    """The rows that pass all filters, and how many each let pass.

    Each filter looks at its own columns of the rows that are left; whole rows are copied once, at the end.
    """
    steps: list[FilterStep] = []
    left: pl.Series | None = None
    for name, condition in conditions(query):
        before = table.height if left is None else left.len()
        seen = table.select(list(dict.fromkeys(condition.meta.root_names())))
        fits = (seen if left is None else seen[left]).select(condition.alias("fits"))["fits"].fill_null(value=False)
        if not fits.all():
            left = fits.arg_true() if left is None else left.filter(fits)
        steps.append(FilterStep(filter=name, before=before, after=table.height if left is None else left.len()))
    return (table if left is None else table[left]), steps


def nothing_fits(steps: Sequence[FilterStep], offered: int) -> NoMatchingOffer:
    """The error that says which filter removed the last candidates."""
    if not offered:
        return NoMatchingOffer("no marketplace offers anything now; `%gpu doctor` shows how each one answers")
    last = next((step for step in steps if step.after == 0), None)
    if last is None:
        return NoMatchingOffer(f"all {offered} fitting offers were tried or belong to machines that failed before")
    return NoMatchingOffer(
        f"no offer fits: {last.filter!r} removed the last {last.before} of {offered} offers; "
        f"loosen it, or see `%gpu offers`"
    )
