"""What every journal keeps, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import os

import msgspec
import pytest

from jupyter_gpumarket.errors import JournalError, JournalLocked
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import (
    Budget,
    CellRun,
    Charge,
    ChargeKind,
    Lease,
    LeaseState,
    Machine,
    RunStatus,
    Scope,
)

from .records import SteppingClock, lease, wished


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("url_of_sqlite" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def url_of_sqlite(file: os.PathLike[str]) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def journal(url: str) -> Journal:
    with_checks = Journal.open(url, SteppingClock())
    yield with_checks  # type: ignore[misc]
    with_checks.verify()
    with_checks.close()


def run(number: int, started_ms: int | None = None, ended_ms: int | None = None, lease_id: str = "lease-1") -> CellRun:
    return CellRun(
        run_id=f"run-{number}",
        lease_id=lease_id,
        session="main",
        status=RunStatus.OK if ended_ms else RunStatus.RUNNING,
        started_ms=started_ms,
        ended_ms=ended_ms,
    )


def charge(number: int, start_ms: int, end_ms: int, lease_id: str = "lease-1") -> Charge:
    return Charge(
        charge_id=f"charge-{number}",
        lease_id=lease_id,
        kind=ChargeKind.CELL,
        amount_nusd=2**62,
        start_ms=start_ms,
        end_ms=end_ms,
    )


def fact(*rows: Lease | CellRun | Charge | Budget | Machine) -> NewEntry:
    return NewEntry(kind="test.fact", subject="x", rows=rows)


def test_what_was_appended_is_there_after_opening_again(url: str) -> None:
    """Entries and rows survive closing."""
    journal = Journal.open(url, SteppingClock())
    lines = journal.append([wished(1), wished(2)])
    journal.close()

    again = Journal.open(url, SteppingClock())

    assert again.entries() == lines
    assert [lease.lease_id for lease in again.leases()] == ["lease-1", "lease-2"]
    assert again.last_seq() == 2
    again.verify()
    again.close()


def test_a_row_is_replaced_by_the_next_entry_about_it(journal: Journal) -> None:
    """The projection holds the last word on each lease."""
    journal.append([wished(1)])
    journal.append([NewEntry(kind="lease.failed", subject="lease-1", rows=(lease(1, LeaseState.FAILED),))])

    assert journal.lease("lease-1") == lease(1, LeaseState.FAILED)
    assert journal.leases(open_only=True) == []


def test_a_row_that_is_taken_away_stays_away(journal: Journal) -> None:
    """A lifted budget is no row any more, also after a rebuild."""
    budget = Budget(scope=Scope.USER, key="anna", limit_nusd=1)
    journal.append([NewEntry(kind="budget.set", subject="user:anna", rows=(budget,))])
    journal.append([NewEntry(kind="budget.set", subject="user:anna", gone=(budget,))])

    assert journal.budgets() == []
    journal.rebuild()
    assert journal.budgets() == []


def test_all_kinds_of_rows_come_back_as_they_were(journal: Journal) -> None:
    """Leases, runs, charges, budgets and machines, with every field."""
    rows = (
        lease(1, label="l", probe={"gpu": ["a", 1, None, 0.5]}, phases={"wished": 1}),
        run(1, 10, 20),
        charge(1, 10, 20),
        Budget(scope=Scope.PROJECT, key="vision", limit_nusd=2**62),
        Machine(marketplace="pool", machine_id="m", bad=2, last_reason="no GPU"),
    )
    journal.append([fact(*rows)])

    found = (journal.lease("lease-1"), journal.run("run-1"), *journal.charges(), *journal.budgets())

    assert (*found, *journal.machines()) == rows
    assert journal.lease_by_request("request-1") == rows[0]


def test_what_is_not_there_is_none(journal: Journal) -> None:
    """No error for an id that nobody knows."""
    assert (journal.lease("x"), journal.lease_by_request("x"), journal.run("x")) == (None, None, None)
    assert (journal.last_seq(), journal.entries(), journal.append([])) == (0, [], [])


def test_entries_can_be_asked_for_by_number_subject_and_kind(journal: Journal) -> None:
    """In order, at most as many as asked."""
    journal.append([wished(n) for n in (1, 2, 3)])
    journal.append([NewEntry(kind="lease.failed", subject="lease-2", body={"why": "x"})])

    assert [line.seq for line in journal.entries(after=2)] == [3, 4]
    assert [line.kind for line in journal.entries(subject="lease-2")] == ["lease.wished", "lease.failed"]
    assert [line.subject for line in journal.entries(kinds={"lease.failed"})] == ["lease-2"]
    assert [line.seq for line in journal.entries(limit=2)] == [1, 2]


def test_runs_and_charges_can_be_asked_for_by_lease_and_time(journal: Journal) -> None:
    """A line that touches the span is in; a run that has not ended goes on."""
    journal.append([fact(run(1, 10, 20), run(2, 30), run(3), run(4, 10, 20, "lease-2"))])
    journal.append([fact(charge(1, 10, 20), charge(2, 20, 30), charge(3, 40, 50, "lease-2"))])

    assert {run.run_id for run in journal.runs(since_ms=21)} == {"run-2", "run-3"}
    assert [run.run_id for run in journal.runs(lease_id="lease-2")] == ["run-4"]
    assert [c.charge_id for c in journal.charges(since_ms=20, until_ms=40)] == ["charge-1", "charge-2"]
    assert [c.charge_id for c in journal.charges(lease_id="lease-2")] == ["charge-3"]


def test_an_append_is_whole_or_absent(journal: Journal) -> None:
    """When the last row of several entries is refused, nothing of any of them is there."""
    journal.append([wished(1)])
    twin = msgspec.structs.replace(lease(2), request=lease(1).request)

    with pytest.raises(JournalError):
        journal.append([wished(3), fact(twin)])

    assert journal.last_seq() == 1
    assert journal.lease("lease-3") is None
    assert journal.append([wished(3)])[0].seq == 2


def test_one_request_is_one_lease(journal: Journal) -> None:
    """Two leases for the same request are refused, so a wish sent twice cannot rent twice."""
    journal.append([wished(1)])

    with pytest.raises(JournalError):
        journal.append([fact(msgspec.structs.replace(lease(2), request=lease(1).request))])


def test_text_no_database_takes_does_not_stop_an_append(journal: Journal) -> None:
    """NUL and lone surrogates, as a marketplace may send them, are replaced or escaped."""
    evil = "a\x00b\ud800c"
    journal.append(
        [NewEntry(kind="lease.x", subject=evil, body={evil: [evil]}, rows=(lease(1, reason=evil, name="\x00"),))]
    )

    (line,) = journal.entries()

    assert "\ud800" not in line.subject
    assert journal.lease("lease-1") is not None


def test_a_rebuild_makes_the_same_rows(journal: Journal) -> None:
    """Rows are nothing but the entries replayed."""
    journal.append([wished(n) for n in range(5)])
    journal.append([fact(run(1, 1, 2), charge(1, 1, 2), lease(3, LeaseState.FAILED))])
    before = (journal.leases(), journal.runs(), journal.charges())

    journal.rebuild()

    assert (journal.leases(), journal.runs(), journal.charges()) == before


def test_a_second_journal_is_refused_with_the_holder_s_pid(journal: Journal, url: str) -> None:
    """One writer; the message tells whom to look for."""
    with pytest.raises(JournalLocked, match=f"pid {os.getpid()}"):
        Journal.open(url, SteppingClock())

    journal.append([wished(1)])


def test_a_closed_journal_gives_its_lock_back_and_says_that_it_is_closed(url: str) -> None:
    """And closing twice is no error."""
    journal = Journal.open(url, SteppingClock())
    journal.close()
    journal.close()

    Journal.open(url, SteppingClock()).close()
    with pytest.raises(JournalError, match="it is closed"):
        journal.append([wished(1)])
