"""What the journal remembers of its rows is what lies on the disk."""

from __future__ import annotations

import random

import msgspec
import pytest

from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import Budget, CellRun, LeaseState, Owner, RunStatus, Scope
from tests.journal.records import SteppingClock, lease

STATES = (LeaseState.WISHED, LeaseState.READY, LeaseState.RELEASED)


def budget(number: int, limit_nusd: int) -> Budget:
    return Budget(scope=Scope.USER, key=f"user-{number}", limit_nusd=limit_nusd, since_ms=0, set_ms=0)


def entry(rng: random.Random) -> NewEntry:
    """Some change of some row."""
    number = rng.randrange(3)
    kind = rng.choice(["lease", "run", "budget", "lift"])
    if kind == "lease":
        return NewEntry(kind="lease.x", subject="x", body={}, rows=(lease(number, rng.choice(STATES)),))
    if kind == "lift":
        return NewEntry(kind="budget.set", subject="x", body={}, gone=(budget(number, 0),))
    if kind == "budget":
        return NewEntry(kind="budget.set", subject="x", body={}, rows=(budget(number, rng.randrange(100)),))
    run = CellRun(
        run_id=f"run-{number}",
        lease_id=f"lease-{rng.randrange(3)}",
        session="main",
        status=rng.choice(list(RunStatus)),
        owner=Owner(user="a"),
        started_ms=rng.choice([None, rng.randrange(5)]),
    )
    return NewEntry(kind="run.x", subject="x", body={}, rows=(run,))


def everything(journal: Journal) -> list[object]:
    """All answers that may be remembered."""
    names = range(3)
    return [
        *(journal.lease(f"lease-{n}") for n in names),
        *(journal.lease_by_request(f"request-{n}") for n in names),
        *(journal.run(f"run-{n}") for n in names),
        *(journal.runs(lease_id=f"lease-{n}") for n in names),
        journal.runs(),
        journal.leases(),
        journal.leases(open_only=True),
        journal.budgets(),
    ]


def test_answers_are_those_of_the_disk_after_every_change(url: str) -> None:
    """Asked before and after each of many changes, the journal answers as it does with nothing remembered."""
    rng = random.Random(7)
    journal = Journal.open(url, SteppingClock())
    for _ in range(150):
        everything(journal)
        journal.append([entry(rng) for _ in range(rng.randrange(1, 3))])
        remembered = everything(journal)
        journal._memory.forget()
        assert everything(journal) == remembered
    journal.close()


def test_an_answer_is_the_callers_own(url: str) -> None:
    """What a caller does to a list that it was given changes no later answer."""
    journal = Journal.open(url, SteppingClock())
    journal.append([NewEntry(kind="lease.x", subject="x", body={}, rows=(lease(1),))])
    journal.leases().clear()
    assert len(journal.leases()) == 1
    journal.close()


def test_a_cell_does_not_make_all_cells_of_its_node_be_read_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell costs is asked for after each one: that stays as quick with the thousandth as with the first."""
    journal = Journal.open(url, SteppingClock())
    run = CellRun(run_id="run-0", lease_id="lease-0", session="main", status=RunStatus.QUEUED, owner=Owner(user="a"))
    journal.append([NewEntry(kind="run.x", subject="x", body={}, rows=(run,))])
    assert journal.runs(lease_id="lease-0") == [run]

    def read(*_: object) -> None:
        pytest.fail("the rows are read again")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_all", read)
        later = msgspec.structs.replace(run, started_ms=1, status=RunStatus.RUNNING)
        other = msgspec.structs.replace(run, run_id="run-1")
        journal.append([NewEntry(kind="run.x", subject="x", body={}, rows=(later, other))])
        assert journal.runs(lease_id="lease-0") == [other, later]
    journal.close()
