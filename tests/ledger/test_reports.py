"""Reports and exports: sums that agree with the ledger to the nano-dollar, and files nobody can plant a script in."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.ledger import lease_charges
from jupyter_gpumarket.ledger.export import FOCUS_SCHEMA, csv_text, focus, html_text, write
from jupyter_gpumarket.ledger.reports import DAY_MS, GROUPS, by, frame
from jupyter_gpumarket.models import CellRun, Charge, ChargeKind, Lease, Owner

from .records import ANNA, HOUR_MS, START_MS, cell_runs, lease, leases, moments, offer, run

NOW_MS = START_MS + 200_000
RUNS = [run("a", 60, 100, cell_id="cell-1"), run("b", 120, 150, cell_id="cell-2", owner=Owner(user="ben"))]


def lines() -> pl.DataFrame:
    return frame(lease_charges(lease(), RUNS, NOW_MS), RUNS)


def charge(**changes: object) -> Charge:
    values: dict[str, object] = {
        "charge_id": "c-1",
        "lease_id": "lease-1",
        "kind": ChargeKind.IDLE,
        "amount_nusd": 1_000,
        "start_ms": START_MS,
        "end_ms": START_MS + HOUR_MS,
    }
    return Charge(**(values | changes))  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(leases(), cell_runs(), moments, st.sets(st.sampled_from(GROUPS)))
def test_every_grouping_adds_up_to_the_same_total(own: Lease, runs: list[CellRun], now_ms: int, keys: set[str]) -> None:
    """By user, by day, by anything: no nano-dollar appears or is lost."""
    charges = lease_charges(own, runs, now_ms)

    summed = by(frame(charges, runs), *sorted(keys))

    assert summed["amount_nusd"].sum() == sum(line.amount_nusd for line in charges)


@given(st.integers(0, 10**12), st.integers(0, DAY_MS), st.integers(0, 5 * DAY_MS))
def test_a_line_over_midnight_is_split_by_day(amount: int, start: int, length: int) -> None:
    """Each UTC day gets its own part, and the parts add up."""
    start_ms = START_MS + start
    parts = frame([charge(amount_nusd=amount, start_ms=start_ms, end_ms=start_ms + length)])

    assert parts["amount_nusd"].sum() == amount
    assert parts["day"].n_unique() == parts.height
    assert (parts["end"] - parts["start"]).sum() == timedelta(milliseconds=length)


def test_dollars_are_exact_decimals() -> None:
    """The decimal column is the integer with its point moved, no float between."""
    told = frame([charge(amount_nusd=123_456_789_012_345_678)])

    assert told["amount_usd"].to_list() == [Decimal("123456789.012345678")]


def test_costs_by_cell_and_by_user() -> None:
    """Each cell has its own line; a guest's cell is the guest's."""
    cells = dict(by(lines(), "cell").select("cell", "amount_nusd").iter_rows())
    users = dict(by(lines(), "user").select("user", "amount_nusd").iter_rows())

    assert (cells["cell-1"], cells["cell-2"]) == (4_000_000, 3_000_000)
    assert users == {"anna": 17_000_000, "ben": 3_000_000}


def test_a_day_is_a_utc_date() -> None:
    """Whatever the machine's time zone."""
    assert by(lines(), "day")["day"].to_list() == [date(2026, 9, 21)]


def test_an_unknown_group_is_refused_by_name() -> None:
    """The message lists what there is."""
    with pytest.raises(BadRequest, match="'colour'; choose from user, project"):
        by(lines(), "colour")


def test_no_charges_make_an_empty_frame_with_all_columns() -> None:
    """A report of nothing is a report."""
    assert frame([]).height == 0
    assert by(frame([]), "user").height == 0
    assert set(lines().columns) == set(frame([]).columns)


def test_csv_text_is_never_a_formula() -> None:
    """A machine named like a formula does not run in a spreadsheet."""
    evil = lease(offer=offer(machine_id="=cmd|' /C calc'!A0", gpu="+1"))
    text = csv_text(frame(lease_charges(evil, [], NOW_MS)))

    assert ",=cmd" not in text
    assert ",+1" not in text
    assert "'=cmd" in text


def test_html_is_escaped() -> None:
    """A name with a script in it is shown, not run."""
    evil = lease(offer=offer(machine_id="<script>alert(1)</script>"))
    page = html_text(frame(lease_charges(evil, [], NOW_MS)), title="<b>")

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<title>&lt;b&gt;</title>" in page


@pytest.mark.parametrize("name", ["costs.csv", "costs.parquet", "costs.html", "costs.json"])
def test_each_format_is_written(tmp_path: Path, name: str) -> None:
    """The file's ending says the format."""
    write(lines(), tmp_path / name)

    assert (tmp_path / name).stat().st_size > 100


def test_parquet_keeps_exact_amounts(tmp_path: Path) -> None:
    """What is read back equals what was written."""
    write(lines(), tmp_path / "costs.parquet")

    assert pl.read_parquet(tmp_path / "costs.parquet").equals(lines())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """The message names those there are."""
    with pytest.raises(BadRequest, match=r"\.csv, \.parquet"):
        write(lines(), tmp_path / "costs.xlsx")


def test_focus_has_its_columns_and_the_same_total() -> None:
    """Every charge is one row of FOCUS, its cost exact, its tags JSON."""
    charges = lease_charges(lease(), RUNS, NOW_MS)

    told = focus(charges)

    assert told.columns == list(FOCUS_SCHEMA)
    assert told["BilledCost"].sum() == Decimal(sum(c.amount_nusd for c in charges)).scaleb(-9)
    assert set(told["ChargeCategory"]) == {"Usage"}
    assert told["BillingPeriodStart"][0] == "2026-09-01T00:00:00Z"
    assert told["BillingPeriodEnd"][0] == "2026-10-01T00:00:00Z"
    assert ANNA.project in set(told["SubAccountId"])
