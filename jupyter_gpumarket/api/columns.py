"""Offers as columns for the browser: texts that repeat are told once, figures stand in plain lists. Pure.

100,000 offers as records are 70 MB of JSON, which a page takes seconds to read; as columns they are a tenth of that.
The front end's twin of these shapes is `labextension/src/offers/columns.ts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jupyter_gpumarket.api.doors import MarketplaceStatus, OfferList
from jupyter_gpumarket.api.offers import Baseline, OfferFigures, OwnRecord
from jupyter_gpumarket.models import Billing, NativePrice, Offer, Record


class Texts(Record, frozen=True, kw_only=True):
    """Texts that repeat: offer `i` says `names[codes[i]]`."""

    names: list[str]
    codes: list[int]


class Billings(Record, frozen=True, kw_only=True):
    """Ways of billing: offer `i` is billed by `kinds[codes[i]]`."""

    kinds: list[Billing]
    codes: list[int]


class NativeOf(Record, frozen=True, kw_only=True):
    """The marketplace's own price of the offer in one row."""

    row: int
    price: NativePrice


class OwnOf(Record, frozen=True, kw_only=True):
    """Our own record of the machine in one row."""

    row: int
    record: OwnRecord


class OfferColumns(Record, frozen=True, kw_only=True):
    """POST /gpumarket/offers/columns: the offers of a search, in its order, by column.

    `boot_s` is the start-up time that prices count, told or assumed. `baseline_nusd_hour` is the cheapest hyperscaler
    price for as many of the same GPU. `note` says why an offer cannot be rented; empty: it can.
    """

    as_of_ms: int
    marketplace: Texts
    gpu: Texts
    gpu_raw: Texts
    region: Texts
    country: Texts
    tier: Texts
    kind: Texts
    provider: Texts
    cpu_model: Texts
    cuda: Texts
    note: Texts
    offer_id: list[str]
    machine_id: list[str]
    price_nusd_hour: list[int]
    seen_ms: list[int]
    gpu_count: list[int]
    vram_gib: list[float]
    cpu_cores: list[int]
    memory_gib: list[float]
    disk_gib: list[float]
    down_mbps: list[float]
    up_mbps: list[float]
    reliability: list[float | None]
    boot_s: list[float | None]
    baseline_nusd_hour: list[int | None]
    billing: Billings
    native: list[NativeOf]
    own: list[OwnOf]
    statuses: list[MarketplaceStatus]
    baselines: list[Baseline]


_TEXTS: dict[str, Callable[[Offer], str]] = {
    "marketplace": lambda offer: offer.marketplace,
    "gpu": lambda offer: offer.gpu or "",
    "gpu_raw": lambda offer: offer.gpu_raw,
    "region": lambda offer: offer.region,
    "country": lambda offer: offer.country,
    "tier": lambda offer: offer.tier.value,
    "kind": lambda offer: offer.kind.value,
    "provider": lambda offer: offer.provider,
    "cpu_model": lambda offer: offer.cpu_model,
    "cuda": lambda offer: offer.cuda,
}
_FIGURES = (
    "offer_id",
    "machine_id",
    "price_nusd_hour",
    "seen_ms",
    "gpu_count",
    "vram_gib",
    "cpu_cores",
    "memory_gib",
    "disk_gib",
    "down_mbps",
    "up_mbps",
    "reliability",
)


def columns(found: OfferList, *, now_ms: int) -> OfferColumns:
    """The answer to a search, by column; `now_ms` is when it came."""
    offers = found.offers
    figures: Sequence[OfferFigures] = found.figures or [OfferFigures() for _ in offers]
    kinds, codes = _coded(offer.billing for offer in offers)
    # How old the freshest part of the list is: the rest says its own age.
    age_s = min((status.age_s for status in found.statuses if status.ok), default=0.0)
    texts: dict[str, Any] = {name: _texts(map(text, offers)) for name, text in _TEXTS.items()}
    plain: dict[str, Any] = {name: [getattr(offer, name) for offer in offers] for name in _FIGURES}
    return OfferColumns(
        as_of_ms=now_ms - round(age_s * 1000),
        **texts,
        **plain,
        note=_texts(one.note for one in figures),
        boot_s=[one.boot_s for one in figures],
        baseline_nusd_hour=[one.baseline_nusd_hour for one in figures],
        billing=Billings(kinds=kinds, codes=codes),
        native=[NativeOf(row=row, price=o.native) for row, o in enumerate(offers) if o.native is not None],
        own=[OwnOf(row=row, record=one.own) for row, one in enumerate(figures) if one.own is not None],
        statuses=found.statuses,
        baselines=found.baselines,
    )


def _texts(values: Iterable[str]) -> Texts:
    names, codes = _coded(values)
    return Texts(names=names, codes=codes)


def _coded(values: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """The different values in the order of their first coming, and for each value its place among them."""
    places: dict[Any, int] = {}
    codes = [places.setdefault(value, len(places)) for value in values]
    return list(places), codes
