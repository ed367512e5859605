"""Budgets that refuse and cut, and the books that close."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from jupyter_gpumarket.api import RunWish, sight_of
from jupyter_gpumarket.broker.books import CHARGE_FINAL, Books
from jupyter_gpumarket.broker.closing import LATE_FACTS_MS, RECONCILED, Closing, rentals_of
from jupyter_gpumarket.broker.purse import Purse
from jupyter_gpumarket.broker.service import Service
from jupyter_gpumarket.errors import BudgetExceeded, LeasesChanged, StillRunning, Temporary
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import (
    Budget,
    Capabilities,
    CellRun,
    Lease,
    LeaseState,
    MarketCharge,
    Owner,
    RunStatus,
    Scope,
)
from jupyter_gpumarket.money import usd
from tests.broker.fakes import ListeningEngine, NotingClusters, StillClock, lease

T0 = 1_700_000_000_000
SECOND = 1000


class BillingMarket:
    """A marketplace that tells its charges, or fails to."""

    name = "pool"
    capabilities = Capabilities(charge_delay_s=10)

    def __init__(self, amount_nusd: int) -> None:
        self.amount_nusd = amount_nusd
        self.failures = 0
        self.asked = 0

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        self.asked += 1
        if self.asked <= self.failures:
            raise Temporary("pool", "busy")
        return [MarketCharge(charge_id="c", rental_id=rental_id, amount_nusd=self.amount_nusd, start_ms=T0, end_ms=T0)]


class World:
    """A journal on disk with the money parts on top of it."""

    def __init__(self, folder: Path) -> None:
        self.clock = StillClock(T0)
        self.journal = Journal.open(f"sqlite:///{folder / 'journal.sqlite'}", self.clock)
        self.engine = ListeningEngine()
        self.clusters = NotingClusters()
        self.market = BillingMarket(usd("0.1"))
        self.restart()

    def restart(self) -> None:
        """Everything in memory is forgotten."""
        self.books = Books(journal=self.journal, clock=self.clock)
        self.purse = Purse(books=self.books, engine=self.engine, clusters=self.clusters, clock=self.clock)
        self.closing = Closing(
            journal=self.journal,
            books=self.books,
            marketplaces={"pool": self.market},  # type: ignore[dict-item]
            clock=self.clock,
        )

    def put(self, *rows: Lease | CellRun | Budget) -> None:
        for row in rows:
            kind, subject = ("lease.wished", row.lease_id) if isinstance(row, Lease) else ("test", "x")
            self.journal.append([NewEntry(kind=kind, subject=subject, rows=(row,))])

    def end(self, one: Lease, after_ms: int) -> Lease:
        ended = msgspec.structs.replace(
            one, state=LeaseState.RELEASED, billed_to_ms=T0 + after_ms, changed_ms=T0 + after_ms
        )
        self.put(ended)
        self.clock.ms = T0 + after_ms
        return ended


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.journal.close()


def budget(limit: str, scope: Scope = Scope.PROJECT, key: str = "vision") -> Budget:
    return Budget(scope=scope, key=key, limit_nusd=usd(limit))


def wish(**more: object) -> RunWish:
    owner = Owner(user="ada", project="vision")
    return msgspec.structs.replace(RunWish(run_id="r1", lease_id="lease-1", session="main", owner=owner), **more)


def test_a_reservation_counts_before_it_is_spent(world: World) -> None:
    """Two wishes of one dollar do not both fit a budget of $1.50, though nothing is spent yet."""
    world.put(budget("1.50"))
    world.purse.allow_lease(lease("first").request)
    world.put(lease("first", LeaseState.WISHED, price_nusd_hour=0, billed_from_ms=None, deadline_ms=None))

    with pytest.raises(BudgetExceeded, match=r"vision.*\$1\.50.*reserved"):
        world.purse.allow_lease(lease("second").request)


async def test_a_cell_chosen_by_an_old_sight_of_the_leases_is_not_started(world: World) -> None:
    """The caller saw a lease otherwise than it is: nothing is journaled; with the present sight the cell starts.

    So it is when the lease has ended: who is told that looks, and finds or rents another node.
    """
    world.put(lease())
    seqs = {"lease-1": 7}

    class Engine(ListeningEngine):
        async def wait_changed(self, lease_id: str, after_seq: int, timeout_s: float) -> tuple[Lease, int]:
            assert (after_seq, timeout_s) == (-1, 0)
            return lease(lease_id), seqs[lease_id]

    facts = SimpleNamespace(take=None)
    parts = SimpleNamespace(
        journal=world.journal, books=world.books, purse=world.purse, clock=world.clock, engine=Engine(), facts=facts
    )
    service = Service(parts)  # type: ignore[arg-type]
    with pytest.raises(LeasesChanged):
        await service.start_run(wish(sight=sight_of([("lease-1", 6, ())])))
    assert world.journal.run("r1") is None
    with pytest.raises(LeasesChanged):
        await service.start_run(wish(sight=sight_of([("lease-1", 7, ("its budget runs out",))])))

    await service.start_run(wish(sight=sight_of([("lease-1", 7, ())])))
    assert world.journal.run("r1") is not None

    seqs["lease-1"] = 8
    again = await service.start_run(wish(sight=sight_of([("lease-1", 7, ())])))
    assert again.run_id == "r1", "a call that is made again is answered as before"
    world.put(lease("lease-1", LeaseState.RELEASED))
    with pytest.raises(LeasesChanged):
        await service.start_run(wish(run_id="r2", sight=sight_of([("lease-1", 7, ())])))


def test_a_used_up_budget_refuses_runs(world: World) -> None:
    """A cell of a project whose money is gone does not start; one of another project does."""
    world.put(budget("0.05"), lease())
    world.clock.ms = T0 + 60 * SECOND

    with pytest.raises(BudgetExceeded, match="used up"):
        world.purse.allow_run(wish())
    world.purse.allow_run(wish(owner=Owner(project="other")))


async def test_warned_at_80_percent_and_drained_at_100(world: World) -> None:
    """A dollar lease at a tenth of a cent a second: quiet at first, a notice from $0.80 on, released at its end."""
    world.put(lease())
    for seconds, noticed, released in ((700, 0, 0), (850, 1, 0), (999, 1, 1)):
        world.clock.ms = T0 + seconds * SECOND
        await world.purse.watch()

        assert len(world.purse.notices("lease-1")) == noticed
        assert len(world.engine.released) == released
    assert "used up" in world.engine.released[0][1]


async def test_a_cells_own_budget_ends_the_cell_alone(world: World) -> None:
    """A run that has used up what it was given is interrupted; its lease goes on."""
    run = CellRun(
        run_id="r1",
        lease_id="lease-1",
        session="main",
        status=RunStatus.RUNNING,
        started_ms=T0,
        budget_nusd=usd("0.01"),
    )
    world.put(lease(), run)
    world.clock.ms = T0 + 11 * SECOND
    await world.purse.watch()

    assert world.clusters.interrupted == ["r1"]
    assert world.engine.released == []


async def test_one_end_that_fails_does_not_keep_the_others_alive(world: World) -> None:
    """While releasing fails the watch goes on without an error, and tries it again at the next look."""
    world.put(lease("one"), lease("two"))
    world.clock.ms = T0 + 1000 * SECOND
    world.engine.refusal = StillRunning("not yet")
    await world.purse.watch()
    world.engine.refusal = None
    await world.purse.watch()

    assert {lease_id for lease_id, _ in world.engine.released} == {"one", "two"}


def test_nothing_starts_while_the_watch_is_blind(world: World) -> None:
    """When the budgets cannot be watched, new leases and runs are refused with the reason (fail closed)."""
    world.purse.failure = "JournalError: the disk failed"

    with pytest.raises(BudgetExceeded, match="the disk failed"):
        world.purse.allow_lease(lease().request)
    with pytest.raises(BudgetExceeded, match="cannot be watched"):
        world.purse.allow_run(wish())


def test_final_charges_are_the_bill_and_are_written_once(world: World) -> None:
    """An ended lease's lines add up to its bill, are in the journal, and stay the same after a restart."""
    run = CellRun(
        run_id="r1",
        lease_id="lease-1",
        session="main",
        status=RunStatus.OK,
        started_ms=T0 + 10 * SECOND,
        ended_ms=T0 + 40 * SECOND,
    )
    world.put(lease(), run)
    world.end(lease(), 100 * SECOND)
    world.closing.close_ended()
    world.closing.close_ended()
    world.restart()
    world.closing.close_ended()

    charges = world.journal.charges(lease_id="lease-1")
    assert sum(charge.amount_nusd for charge in charges) == usd("0.1")
    assert {c.run_id: c.amount_nusd for c in charges if c.run_id} == {"r1": usd("0.03")}
    assert all(charge.final for charge in charges)
    assert len(world.journal.entries(kinds={CHARGE_FINAL})) == 1
    assert world.books.costs(since_ms=0, until_ms=None, lease_id="lease-1").charges == charges


def test_a_run_whose_end_is_unknown_is_lost_with_its_node(world: World) -> None:
    """An unfinished run is waited for a moment, then closed at the end of the bill, and the bill still adds up."""
    run = CellRun(run_id="r1", lease_id="lease-1", session="main", status=RunStatus.RUNNING, started_ms=T0 + SECOND)
    world.put(lease(), run)
    world.end(lease(), 100 * SECOND)
    world.closing.close_ended()
    early = world.books.is_closed("lease-1")
    world.clock.ms += LATE_FACTS_MS
    world.closing.close_ended()
    closed = world.journal.run("r1")

    assert not early
    assert closed is not None
    assert (closed.status, closed.ended_ms) == (RunStatus.LOST, T0 + 100 * SECOND)
    assert sum(charge.amount_nusd for charge in world.journal.charges()) == usd("0.1")


async def test_the_marketplaces_bill_is_compared_after_its_delay(world: World) -> None:
    """Not before the marketplace writes its bill, again after a failure, and then once, over restarts."""
    world.put(lease())
    world.end(lease(), 100 * SECOND)
    world.closing.close_ended()
    world.market.failures = 1
    asked = []
    for wait in (0, 9, 2, 30, 30):
        world.clock.ms += wait * SECOND
        await world.closing.compare_due()
        asked.append(world.market.asked)
    world.restart()
    await world.closing.compare_due()

    assert asked == [0, 0, 1, 2, 2]
    assert world.market.asked == 2
    assert world.journal.entries(kinds={RECONCILED})[0].body["gap_nusd"] == 0


async def test_a_gap_is_recorded_and_explained(world: World) -> None:
    """A marketplace that bills more than we counted is written down with the difference."""
    world.market.amount_nusd = usd("0.15")
    world.put(lease())
    ended = world.end(lease(), 100 * SECOND)
    world.closing.close_ended()
    result = await world.closing.compare(ended)

    assert (result.ours_nusd, result.theirs_nusd, result.gap_nusd) == (usd("0.1"), usd("0.15"), usd("0.05"))
    assert result.explained


def test_every_rental_of_a_lease_is_compared_once() -> None:
    """The failed attempts' rentals and the last one, none twice."""
    assert rentals_of(lease()) == [("pool", "rental-lease-1")]
    assert rentals_of(lease(rental_id="")) == []


def test_a_lifted_budget_is_gone_from_the_books(world: World) -> None:
    """Taking a limit away leaves no budget that refuses."""
    world.put(budget("0.01"))
    world.journal.append([NewEntry(kind="budget.lifted", subject="x", gone=(budget("0.01"),))])

    assert world.books.budget_views() == []
    world.purse.allow_lease(lease().request)
