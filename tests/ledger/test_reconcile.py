"""Reconciliation: the gap between our ledger and the marketplace's bill, with its reason."""

from __future__ import annotations

from jupyter_gpumarket.api import Reconciliation
from jupyter_gpumarket.ledger import lease_charges, reconcile
from jupyter_gpumarket.models import LeaseState, MarketCharge
from jupyter_gpumarket.money import usd

from .records import HOUR_MS, START_MS, lease

ENDED = lease(state=LeaseState.RELEASED, billed_to_ms=START_MS + HOUR_MS)


def bill(amount: str, **changes: object) -> MarketCharge:
    values: dict[str, object] = {
        "charge_id": "x-1",
        "rental_id": "r-1",
        "amount_nusd": usd(amount),
        "start_ms": START_MS,
        "end_ms": START_MS + HOUR_MS,
    }
    return MarketCharge(**(values | changes))  # type: ignore[arg-type]


def compare(*theirs: MarketCharge) -> Reconciliation:
    return reconcile(ENDED, lease_charges(ENDED, [], START_MS + 2 * HOUR_MS), theirs, checked_ms=7)


def test_equal_bills_agree() -> None:
    """No gap, and it says so."""
    told = compare(bill("0.36"))

    assert (told.ours_nusd, told.theirs_nusd, told.gap_nusd) == (usd("0.36"), usd("0.36"), 0)
    assert told.explained == "both bills agree"


def test_a_longer_bill_is_explained_by_its_time() -> None:
    """The marketplace saw the end later than we did."""
    told = compare(bill("0.366", end_ms=START_MS + HOUR_MS + 60_000))

    assert told.gap_nusd == usd("0.006")
    assert told.explained == "the marketplace bills 1 min 00 s longer than we observed ($0.006)"


def test_a_dearer_hour_is_explained_by_its_price() -> None:
    """The same time at another price."""
    told = compare(bill("0.40"))

    assert told.explained == "for its time the marketplace bills $0.40, where the agreed price gives $0.36"


def test_what_else_is_billed_is_named() -> None:
    """Storage that nobody told us of."""
    told = compare(bill("0.36"), bill("0.01", charge_id="x-2", what="storage"))

    assert told.explained == "the marketplace bills $0.01 for storage"


def test_a_missing_bill_is_no_saving() -> None:
    """The marketplace has not billed yet: the gap is shown, with its reason."""
    told = compare()

    assert told.gap_nusd == -usd("0.36")
    assert told.explained == "the marketplace has not billed this rental yet"


def test_a_line_read_twice_counts_once() -> None:
    """Bills are read again and again; the last reading of a line counts."""
    assert compare(bill("0.30", final=False), bill("0.36")).gap_nusd == 0


def test_a_bill_that_is_not_final_says_so() -> None:
    """The gap may still close."""
    assert "not final yet" in compare(bill("0.30", final=False)).explained


def test_a_gap_without_a_reason_is_not_talked_away() -> None:
    """It asks for a human."""
    gapped = lease(state=LeaseState.RELEASED, billed_to_ms=START_MS + HOUR_MS)

    told = reconcile(gapped, [], [bill("0.36")])

    assert told.gap_nusd == usd("0.36")
    assert "no known reason" in told.explained


def test_a_lease_that_was_never_billed_by_us_leaves_the_gap_open() -> None:
    """The marketplace bills a rental whose start we never saw."""
    unseen = lease(state=LeaseState.FAILED, billed_from_ms=None, offer=None, rental_id="")

    told = reconcile(unseen, [], [bill("0.36")])

    assert (told.marketplace, told.gap_nusd) == ("", usd("0.36"))
    assert "no known reason" in told.explained


def test_a_gap_within_a_cent_a_line_may_be_rounding() -> None:
    """A marketplace that bills in whole cents."""
    unseen = lease(state=LeaseState.FAILED, billed_from_ms=None)

    assert "rounding" in reconcile(unseen, [], [bill("0.004")]).explained
