"""Costs and offers as polars frames: money stays integer nano-dollars, with an exact decimal column beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any

import polars as pl

from jupyter_gpumarket.api import Baseline, FilterStep, OfferFigures, PricePoint
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Charge, Offer
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.stage import Table

Read = Callable[[Any], Any]
Kind = type[pl.DataType] | pl.DataType


def _exact(nusd: int | None) -> Decimal | None:
    return None if nusd is None else Decimal(nusd).scaleb(-9)


def _of(name: str) -> Read:
    return attrgetter(name)


def _usd(name: str) -> Read:
    return lambda one: _exact(getattr(one, name))


def _own(name: str) -> Read:
    return lambda one: None if one.own is None else getattr(one.own, name)


# Nine places hold a nano-dollar exactly; 28 digits in all hold every int64 amount.
USD = pl.Decimal(precision=28, scale=9)
_OFFER: tuple[tuple[str, Kind, Read], ...] = (
    ("marketplace", pl.String, _of("marketplace")),
    ("gpu", pl.String, _of("gpu")),
    ("gpu_raw", pl.String, _of("gpu_raw")),
    ("gpu_count", pl.Int64, _of("gpu_count")),
    ("vram_gib", pl.Float64, _of("vram_gib")),
    ("price_nusd_hour", pl.Int64, _of("price_nusd_hour")),
    ("cpu_cores", pl.Int64, _of("cpu_cores")),
    ("memory_gib", pl.Float64, _of("memory_gib")),
    ("disk_gib", pl.Float64, _of("disk_gib")),
    ("region", pl.String, _of("region")),
    ("country", pl.String, _of("country")),
    ("provider", pl.String, _of("provider")),
    ("offer_id", pl.String, _of("offer_id")),
    ("machine_id", pl.String, _of("machine_id")),
    ("reliability", pl.Float64, _of("reliability")),
    ("tier", pl.String, lambda offer: offer.tier.value),
    ("kind", pl.String, lambda offer: offer.kind.value),
    ("cuda", pl.String, _of("cuda")),
    ("down_mbps", pl.Float64, _of("down_mbps")),
    ("up_mbps", pl.Float64, _of("up_mbps")),
    ("seen", pl.Int64, _of("seen_ms")),
)
_FIGURE: tuple[tuple[str, Kind, Read], ...] = (
    ("rentable", pl.Boolean, _of("rentable")),
    ("note", pl.String, _of("note")),
    ("age_s", pl.Float64, _of("age_s")),
    ("all_in_usd", USD, _usd("all_in_nusd")),
    ("cost_to_finish_usd", USD, _usd("cost_to_finish_nusd")),
    ("time_usd", USD, _usd("time_nusd")),
    ("boot_usd", USD, _usd("boot_nusd")),
    ("storage_usd", USD, _usd("storage_nusd")),
    ("in_usd", USD, _usd("in_nusd")),
    ("out_usd", USD, _usd("out_nusd")),
    ("fee_usd", USD, _usd("fee_nusd")),
    ("risk_usd", USD, _usd("risk_nusd")),
    ("interruption", pl.Float64, lambda one: one.chance_ppm / 1_000_000),
    ("boot_s", pl.Float64, _of("boot_s")),
    ("boot_known", pl.Boolean, _of("boot_known")),
    ("gpu_usd_hour", USD, _usd("gpu_nusd_hour")),
    ("vram_gib_usd_hour", USD, _usd("vram_gib_nusd_hour")),
    ("tflops_usd_hour", USD, _usd("tflops_nusd_hour")),
    ("tflops", pl.Float64, _of("tflops")),
    ("baseline_usd_hour", USD, _usd("baseline_nusd_hour")),
    ("saving", pl.Float64, _of("saving")),
    ("own_good", pl.Int64, _own("good")),
    ("own_bad", pl.Int64, _own("bad")),
    ("own_boot_s", pl.Float64, _own("boot_s")),
    ("own_tflops", pl.Float64, _own("tflops")),
    ("own_gap_ppm", pl.Int64, _own("gap_ppm")),
)


def charges_frame(charges: Sequence[Charge]) -> pl.DataFrame:
    """One row per line of the ledger. `amount_usd` is the exact decimal of `amount_nusd`; times are UTC."""
    frame = pl.DataFrame(
        {
            "start": [charge.start_ms for charge in charges],
            "end": [charge.end_ms for charge in charges],
            "kind": [charge.kind.value for charge in charges],
            "amount_nusd": [charge.amount_nusd for charge in charges],
            "rate_nusd_hour": [charge.rate_nusd_hour for charge in charges],
            "user": [charge.owner.user for charge in charges],
            "project": [charge.owner.project for charge in charges],
            "notebook": [charge.owner.notebook for charge in charges],
            "run_id": [charge.run_id for charge in charges],
            "lease_id": [charge.lease_id for charge in charges],
            "marketplace": [charge.marketplace for charge in charges],
            "gpu": [charge.gpu for charge in charges],
            "gpu_count": [charge.gpu_count for charge in charges],
            "final": [charge.final for charge in charges],
        },
        schema={
            "start": pl.Int64,
            "end": pl.Int64,
            "kind": pl.String,
            "amount_nusd": pl.Int64,
            "rate_nusd_hour": pl.Int64,
            "user": pl.String,
            "project": pl.String,
            "notebook": pl.String,
            "run_id": pl.String,
            "lease_id": pl.String,
            "marketplace": pl.String,
            "gpu": pl.String,
            "gpu_count": pl.Int64,
            "final": pl.Boolean,
        },
    )
    return _with_usd(_with_times(frame, "start", "end"), "amount_nusd", "amount_usd")


def offers_frame(
    offers: Sequence[Offer], figures: Sequence[OfferFigures] = (), baselines: Sequence[Baseline] = ()
) -> pl.DataFrame:
    """One row per offer, in the order given. Prices are exact decimals in dollars; `price_nusd_hour` is the integer.

    With `figures` (one for each offer) also what the job costs in all, comparisons, and our own record.
    """
    schema = {name: kind for name, kind, _ in _OFFER}
    frame = pl.DataFrame({name: [read(offer) for offer in offers] for name, _, read in _OFFER}, schema=schema)
    frame = _with_usd(_with_times(frame, "seen"), "price_nusd_hour", "price_usd_hour")
    if len(figures) != len(offers) or not figures:
        return frame
    more = pl.DataFrame(
        {name: [read(one) for one in figures] for name, _, read in _FIGURE},
        schema={name: kind for name, kind, _ in _FIGURE},
    )
    known = {price.gpu: f"{price.cloud} {price.instance_type}, {price.date}" for price in baselines}
    compared = [known.get(offer.gpu or "", "") if offer.gpu_count else "" for offer in offers]
    return pl.concat([frame, more], how="horizontal").with_columns(baseline=pl.Series(compared, dtype=pl.String))


def explained(row: Mapping[str, Any]) -> pl.DataFrame:
    """The parts of one row's price and of its rank, each with how it came about.

    Raises:
        BadRequest: it is no row of `offers()`.
    """
    if "cost_to_finish_usd" not in row:
        raise BadRequest("explain wants a row of `offers()`: `gm.explain(frame[0])`")
    boot = "told or measured" if row["boot_known"] else "assumed"
    hourly = format_usd(row["price_nusd_hour"])
    parts = [
        (
            "time",
            row["time_usd"],
            f"the work at {hourly}/h, by the marketplace's own steps",
        ),
        ("boot", row["boot_usd"], f"{row['boot_s']:.0f} s until the first cell can run ({boot})"),
        ("storage", row["storage_usd"], "the disk, for as long as the machine is rented"),
        ("traffic in", row["in_usd"], "what the job fetches"),
        ("traffic out", row["out_usd"], "what the job sends"),
        ("fee", row["fee_usd"], "once per rental"),
        ("all in", row["all_in_usd"], "the sum of these: what the job costs when nothing goes wrong"),
        ("risk", row["risk_usd"], _risk_words(row)),
        ("cost to finish", row["cost_to_finish_usd"], "all in and risk: what rents are ranked by"),
    ]
    if row["saving"] is not None:
        words = f"{row['saving']:.0%} below" if row["saving"] >= 0 else "dearer than"
        words += f" {row['baseline']}"
        parts.append(("hyperscaler", row["baseline_usd_hour"], f"an hour of as many of the same GPU; this is {words}"))
    schema: dict[str, Kind] = {"part": pl.String, "usd": USD, "how": pl.String}
    return pl.DataFrame(parts, schema=schema, orient="row")


def _risk_words(row: Mapping[str, Any]) -> str:
    told = "unknown" if row["reliability"] is None else f"{row['reliability']:.2%}"
    own = f"; ours: {row['own_good']} good, {row['own_bad']} bad" if row["own_good"] is not None else ""
    chance = f"{row['interruption']:.2%} chance to be interrupted"
    return f"{chance} ({row['kind']}, reliability {told}{own}), which would cost half the work and a start"


def prices_frame(points: Sequence[PricePoint]) -> pl.DataFrame:
    """How prices were, one row an hour for each GPU, marketplace and kind; dollars per GPU and hour, exact."""
    frame = pl.DataFrame(
        {
            "hour": [point.hour_ms for point in points],
            "marketplace": [point.marketplace for point in points],
            "gpu": [point.gpu for point in points],
            "kind": [point.kind for point in points],
            "low_usd_hour": [_exact(point.low_nusd_hour) for point in points],
            "middle_usd_hour": [_exact(point.middle_nusd_hour) for point in points],
            "offers": [point.offers for point in points],
        },
        schema={
            "hour": pl.Int64,
            "marketplace": pl.String,
            "gpu": pl.String,
            "kind": pl.String,
            "low_usd_hour": USD,
            "middle_usd_hour": USD,
            "offers": pl.Int64,
        },
    )
    return _with_times(frame, "hour")


def steps_frame(steps: Sequence[FilterStep]) -> pl.DataFrame:
    """Which filter removed how many."""
    rows = [(step.filter, step.before, step.after, step.before - step.after) for step in steps]
    names = {"filter": pl.String, "before": pl.Int64, "after": pl.Int64, "removed": pl.Int64}
    return pl.DataFrame(rows, schema=names, orient="row")


def cost_summary(frame: pl.DataFrame) -> Table:
    """Totals by kind, and in all."""
    totals = frame.group_by("kind", maintain_order=True).agg(pl.col("amount_nusd").sum(), pl.len().alias("lines"))
    rows = [(one_line(kind), str(lines), format_usd(amount)) for kind, amount, lines in totals.iter_rows()]
    rows.append(("in all", str(frame.height), format_usd(int(frame["amount_nusd"].sum()))))
    return Table(headers=("what for", "lines", "cost"), rows=tuple(rows), right=frozenset({1, 2}))


def _with_times(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(name).cast(pl.Datetime("ms", "UTC")) for name in names)


def _with_usd(frame: pl.DataFrame, source: str, name: str) -> pl.DataFrame:
    """The frame with exact dollars beside a column of nano-dollars."""
    exact = [Decimal(amount).scaleb(-9) for amount in frame[source]]
    return frame.insert_column(frame.columns.index(source) + 1, pl.Series(name, exact, dtype=USD))
