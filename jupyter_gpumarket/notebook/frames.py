"""Costs and offers as polars frames: money stays integer nano-dollars, with an exact decimal column beside it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import polars as pl

from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.models import Charge, Offer
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.stage import Table

# Nine places hold a nano-dollar exactly; 28 digits in all hold every int64 amount.
USD = pl.Decimal(precision=28, scale=9)


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


def offers_frame(offers: Sequence[Offer]) -> pl.DataFrame:
    """One row per offer, in the order given. `price_usd_hour` is the exact decimal of `price_nusd_hour`."""
    names = (
        "marketplace",
        "gpu",
        "gpu_raw",
        "gpu_count",
        "vram_gib",
        "price_nusd_hour",
        "cpu_cores",
        "memory_gib",
        "disk_gib",
        "region",
        "country",
        "offer_id",
        "machine_id",
        "reliability",
    )
    whole = {"gpu_count", "price_nusd_hour", "cpu_cores"}
    real = {"vram_gib", "memory_gib", "disk_gib", "reliability"}
    schema = {name: pl.Int64 if name in whole else pl.Float64 if name in real else pl.String for name in names}
    columns = {name: [getattr(offer, name) for offer in offers] for name in names}
    frame = pl.DataFrame(columns, schema=schema).with_columns(
        pl.Series("tier", [offer.tier.value for offer in offers], dtype=pl.String),
        pl.Series("kind", [offer.kind.value for offer in offers], dtype=pl.String),
        pl.Series("seen", [offer.seen_ms for offer in offers], dtype=pl.Int64),
    )
    return _with_usd(_with_times(frame, "seen"), "price_nusd_hour", "price_usd_hour")


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
