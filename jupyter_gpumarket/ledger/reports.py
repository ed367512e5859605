"""Charges as polars frames: one line each, split at midnight UTC, and summed by whatever one asks for.

Money stands twice: `amount_nusd` (Int64 nano-dollars, for sums) and `amount_usd` (Decimal, nine places, for people).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime

import polars as pl

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import CellRun, Charge
from jupyter_gpumarket.money import native_text, split

USD = pl.Decimal(38, 9)
DAY_MS = 86_400_000

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "charge_id": pl.String,
    "lease_id": pl.String,
    "kind": pl.String,
    "start": pl.Datetime("ms", "UTC"),
    "end": pl.Datetime("ms", "UTC"),
    "day": pl.Date,
    "amount_nusd": pl.Int64,
    "user": pl.String,
    "project": pl.String,
    "notebook": pl.String,
    "cell": pl.String,
    "run_id": pl.String,
    "marketplace": pl.String,
    "machine_id": pl.String,
    "gpu": pl.String,
    "gpu_count": pl.Int64,
    "rate_nusd_hour": pl.Int64,
    "native_amount": pl.String,
    "native_currency": pl.String,
    "native_rate": pl.String,
    "native_rate_source": pl.String,
    "final": pl.Boolean,
}

GROUPS = ("user", "project", "notebook", "cell", "marketplace", "gpu", "day", "kind", "lease_id", "run_id")


def frame(charges: Iterable[Charge], runs: Iterable[CellRun] = ()) -> pl.DataFrame:
    """One row for each line of the ledger and each UTC day it touches; the amounts still add up exactly.

    Args:
        runs: where `cell` (the notebook cell's id) is taken from; without them it is empty.
    """
    cells = {run.run_id: run.cell_id for run in runs}
    rows = [row for charge in charges for row in _rows(charge, cells)]
    return _with_usd(pl.DataFrame(rows, schema=SCHEMA, orient="row"))


def by(lines: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Sums by one or several of `GROUPS`, dearest first: amount, of that idle and boot, hours, number of lines.

    Raises:
        BadRequest: a key that is none of `GROUPS`.
    """
    for key in keys:
        if key not in GROUPS:
            raise BadRequest(f"costs cannot be grouped by {key!r}; choose from {', '.join(GROUPS)}")
    # No keys: one line with the sum of everything.
    grouped = lines.with_columns(pl.lit("all").alias("total")).group_by(list(keys) or ["total"])
    summed = grouped.agg(
        pl.col("amount_nusd").sum(),
        pl.col("amount_nusd").filter(pl.col("kind") == "idle").sum().alias("idle_nusd"),
        pl.col("amount_nusd").filter(pl.col("kind") == "boot").sum().alias("boot_nusd"),
        (pl.col("end") - pl.col("start")).sum().alias("time"),
        pl.len().alias("lines"),
    )
    ordered = summed.sort(["amount_nusd", *(keys or ["total"])], descending=[True] + [False] * max(1, len(keys)))
    return _with_usd(ordered)


def _with_usd(lines: pl.DataFrame) -> pl.DataFrame:
    """Add dollars beside nano-dollars, exactly: a decimal is an integer with its point moved."""
    usd = pl.Series("amount_usd", [_usd_text(nusd) for nusd in lines["amount_nusd"]], dtype=pl.String).cast(USD)
    place = lines.get_column_index("amount_nusd") + 1
    return lines.insert_column(place, usd)


def _usd_text(nusd: int) -> str:
    whole, fraction = divmod(abs(nusd), 1_000_000_000)
    return f"{'-' if nusd < 0 else ''}{whole}.{fraction:09d}"


def _rows(charge: Charge, cells: Mapping[str, str]) -> Iterator[tuple[object, ...]]:
    for part, (start_ms, end_ms, amount) in enumerate(_days(charge)):
        yield (
            charge.charge_id if part == 0 else f"{charge.charge_id}+{part}",
            charge.lease_id,
            str(charge.kind),
            _moment(start_ms),
            _moment(end_ms),
            _day(start_ms),
            amount,
            charge.owner.user,
            charge.owner.project,
            charge.owner.notebook,
            cells.get(charge.run_id, ""),
            charge.run_id,
            charge.marketplace,
            charge.machine_id,
            charge.gpu,
            charge.gpu_count,
            charge.rate_nusd_hour,
            charge.native_amount if amount == charge.amount_nusd else native_text(amount, charge.native_rate),
            charge.native_currency,
            charge.native_rate,
            charge.native_rate_source,
            charge.final,
        )


def _days(charge: Charge) -> list[tuple[int, int, int]]:
    """(start, end, amount) of the parts of a line in each UTC day."""
    edges = [charge.start_ms]
    while (midnight := (edges[-1] // DAY_MS + 1) * DAY_MS) < charge.end_ms:
        edges.append(midnight)
    ends = [*edges[1:], max(charge.start_ms, charge.end_ms)]
    lengths = [end - start for start, end in zip(edges, ends, strict=True)]
    amounts = split(charge.amount_nusd, lengths) if sum(lengths) else [charge.amount_nusd]
    return list(zip(edges, ends, amounts, strict=True))


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)


def _day(at_ms: int) -> date:
    return _moment(at_ms).date()
