"""Which offer comes first, and the figures that say why. Pure; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from jupyter_gpumarket.api import Baseline, OfferFigures, OwnRecord
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.offers.baselines import baselines
from jupyter_gpumarket.offers.gpus import specs
from jupyter_gpumarket.offers.job import Job, Known, job_cost, with_costs

_GPUS = pl.max_horizontal(pl.col("gpu_count"), 1)
_HAS_GPU = pl.col("gpu_count") > 0


def _per_vram() -> pl.Expr:
    return pl.when(_HAS_GPU & (pl.col("vram_gib") > 0)).then(pl.col("price_nusd_hour") / (pl.col("vram_gib") * _GPUS))


def _per_tflops() -> pl.Expr:
    each = pl.col("gpu").cast(pl.String).replace_strict(_tflops_by_gpu(), default=None, return_dtype=pl.Float64)
    return pl.col("price_nusd_hour") / (each * _GPUS)


def _saving() -> pl.Expr:
    prices = {gpu: float(price.gpu_nusd_hour) for gpu, price in baselines().items()}
    each = pl.col("gpu").cast(pl.String).replace_strict(prices, default=None, return_dtype=pl.Float64)
    return pl.col("price_nusd_hour") / (each * _GPUS)


# The smallest comes first; what has no such figure comes last.
_KEYS: dict[str, Callable[[], pl.Expr]] = {
    "price": lambda: pl.col("price_nusd_hour"),
    "price_per_gpu": lambda: pl.col("price_nusd_hour") // _GPUS,
    "price_per_vram": _per_vram,
    "price_per_tflops": _per_tflops,
    "vram": lambda: -pl.col("vram_gib"),
    "total": lambda: pl.col("all_in_nusd"),
    "cost_to_finish": lambda: pl.col("cost_to_finish_nusd"),
    "reliability": lambda: -pl.col("reliability_ppm"),
    "saving": _saving,
}
SORTS = tuple(_KEYS)
_NEEDS_COSTS = frozenset({"total", "cost_to_finish"})


def ordered(table: pl.DataFrame, sort: str, job: Job, limit: int | None = None) -> list[int]:
    """The places of the best offers, best first.

    Machines that failed us lately come last; ties go to more memory, then to a stable order.

    Raises:
        BadRequest: no such order.
    """
    if sort not in _KEYS:
        raise BadRequest(f"sort: {sort!r} is not one of {', '.join(SORTS)}")
    if sort in _NEEDS_COSTS:
        table = with_costs(table, job)
    table = table.with_columns(_KEYS[sort]().cast(pl.Float64).fill_nan(None).fill_null(float("inf")).alias("key"))
    if limit is not None and table.height > 4 * limit:
        table = _foremost(table, limit)
    rows = table.sort(
        ["trouble", "key", "vram_gib", "cpu_cores", "marketplace", "machine_id", "row"],
        descending=[False, False, True, True, False, False, False],
    )["row"]
    return (rows if limit is None else rows.head(limit)).to_list()


def _foremost(table: pl.DataFrame, limit: int) -> pl.DataFrame:
    """All rows that can be among the first: sorting a million rows to show thirty would be a waste."""
    good = table.filter(pl.col("trouble") == 0)
    if good.height < limit:
        return table
    last = good["key"].bottom_k(limit).max()
    return good.filter(pl.col("key") <= last)


def figures(
    offer: Offer, job: Job, *, now_ms: int, own: OwnRecord | None = None, rentable: bool = True, note: str = ""
) -> OfferFigures:
    """The figures of one offer for this job."""
    cost = job_cost(offer, job, None if own is None else known(own))
    gpus = offer.gpu_count
    tflops = None if offer.gpu is None else _tflops_by_gpu().get(offer.gpu)
    whole = None if tflops is None or not gpus else tflops * gpus
    baseline = baselines().get(offer.gpu or "") if gpus else None
    compared = None if baseline is None else baseline.gpu_nusd_hour * gpus
    memory_mib = round(offer.vram_gib * 1024) * gpus
    return OfferFigures(
        rentable=rentable,
        note=note,
        age_s=max(0, now_ms - offer.seen_ms) / 1000,
        all_in_nusd=cost.all_in_nusd,
        time_nusd=cost.time_nusd,
        boot_nusd=cost.boot_nusd,
        storage_nusd=cost.storage_nusd,
        in_nusd=cost.in_nusd,
        out_nusd=cost.out_nusd,
        fee_nusd=cost.fee_nusd,
        risk_nusd=cost.risk_nusd,
        chance_ppm=cost.chance_ppm,
        cost_to_finish_nusd=cost.cost_to_finish_nusd,
        boot_s=cost.boot_s,
        boot_known=offer.boot_s is not None or (own is not None and own.boot_s is not None),
        gpu_nusd_hour=offer.price_nusd_hour // gpus if gpus else None,
        vram_gib_nusd_hour=offer.price_nusd_hour * 1024 // memory_mib if memory_mib else None,
        tflops_nusd_hour=offer.price_nusd_hour * 10 // round(whole * 10) if whole else None,
        tflops=whole,
        baseline_nusd_hour=compared,
        saving=1 - offer.price_nusd_hour / compared if compared else None,
        own=own,
    )


def known(own: OwnRecord) -> Known:
    """What of our own record the price of a job depends on."""
    return Known(good=own.good, bad=own.bad, boot_s=None if own.boot_s is None else round(own.boot_s))


def compared_with(offers: list[Offer]) -> list[Baseline]:
    """The hyperscaler prices of the GPUs that are among these."""
    names = {offer.gpu for offer in offers if offer.gpu is not None}
    return [price for gpu, price in sorted(baselines().items()) if gpu in names]


def all_known(records: Mapping[tuple[str, str], OwnRecord]) -> dict[tuple[str, str], Known]:
    """`known` of every machine."""
    return {machine: known(own) for machine, own in records.items()}


def _tflops_by_gpu() -> dict[str, float]:
    return {spec.name: tflops for spec in specs().values() if (tflops := spec.bf16_tflops or spec.fp32_tflops)}
