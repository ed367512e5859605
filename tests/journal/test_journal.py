"""The journal on SQLite: what it keeps, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import Budget, LeaseState, Scope

from .records import SteppingClock, lease, wished


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/journal.sqlite"


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


def test_a_row_is_replaced_by_the_next_entry_about_it(url: str) -> None:
    """The projection holds the last word on each lease."""
    journal = Journal.open(url, SteppingClock())
    journal.append([wished(1)])
    journal.append([NewEntry(kind="lease.failed", subject="lease-1", rows=(lease(1, LeaseState.FAILED),))])

    assert journal.lease("lease-1") == lease(1, LeaseState.FAILED)
    assert journal.leases(open_only=True) == []
    journal.rebuild()
    journal.verify()
    journal.close()


def test_a_row_that_is_taken_away_stays_away(url: str) -> None:
    """A lifted budget is no row any more, also after a rebuild."""
    budget = Budget(scope=Scope.USER, key="anna", limit_nusd=1)
    journal = Journal.open(url, SteppingClock())
    journal.append([NewEntry(kind="budget.set", subject="user:anna", rows=(budget,))])
    journal.append([NewEntry(kind="budget.set", subject="user:anna", gone=(budget,))])

    assert journal.budgets() == []
    journal.verify()
    journal.rebuild()
    assert journal.budgets() == []
    journal.close()
