"""Facts from cluster processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.api import AnyFact, FactBatch, LinkBack, LinkLost, RunEnded, RunStarted
from jupyter_gpumarket.api.requests import Forbidden
from jupyter_gpumarket.broker.facts import CLOCK_SLACK_MS, FactIntake, run_after
from jupyter_gpumarket.errors import JournalFull, LeaseError
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import CellRun, Owner, RunStatus
from tests.broker.fakes import ListeningEngine, StillClock, lease

T0 = 1_700_000_000_000


@pytest.fixture
def clock() -> StillClock:
    return StillClock(T0 + 60_000)


@pytest.fixture
def journal(tmp_path: Path, clock: StillClock) -> Iterator[Journal]:
    opened = Journal.open(f"sqlite:///{tmp_path / 'journal.sqlite'}", clock)
    for one in (lease("mine"), lease("other")):
        opened.append([NewEntry(kind="lease.wished", subject=one.lease_id, rows=(one,))])
    yield opened
    opened.close()


@pytest.fixture
def engine() -> ListeningEngine:
    return ListeningEngine()


@pytest.fixture
def intake(journal: Journal, engine: ListeningEngine, clock: StillClock) -> FactIntake:
    return FactIntake(store=journal, engine=engine, clock=clock)


def batch(*facts: AnyFact, first: int = 1, queue: str = "q", cluster_id: str = "mine") -> FactBatch:
    return FactBatch(cluster_id=cluster_id, queue=queue, first=first, facts=list(facts))


def lost(lease_id: str = "mine") -> LinkLost:
    return LinkLost(lease_id=lease_id, at_ms=T0, reason="silence")


def back() -> LinkBack:
    return LinkBack(lease_id="mine", at_ms=T0, same_boot=True)


async def test_a_batch_sent_again_is_taken_once(intake: FactIntake, engine: ListeningEngine) -> None:
    """A lost receipt doubles nothing: known numbers are skipped, the receipt says what is taken."""
    first = await intake.take(batch(lost(), back()), "mine")
    again = await intake.take(batch(lost(), back(), lost()), "mine")

    assert (first.upto, again.upto) == (2, 3)
    assert engine.facts == [lost(), back(), lost()]


async def test_numbers_of_a_new_queue_are_new_facts(intake: FactIntake, engine: ListeningEngine) -> None:
    """A cluster folder that was made anew counts from 1 again, under another name."""
    await intake.take(batch(lost()), "mine")
    await intake.take(batch(lost(), queue="another"), "mine")

    assert len(engine.facts) == 2


async def test_a_cluster_speaks_for_its_own_nodes_only(intake: FactIntake, engine: ListeningEngine) -> None:
    """A fact about another cluster's lease is dropped, and what follows it is still taken."""
    receipt = await intake.take(batch(lost("other"), lost("unknown"), back()), "mine")

    assert receipt.upto == 3
    assert engine.facts == [back()]


async def test_a_cluster_cannot_speak_in_the_name_of_another(intake: FactIntake, engine: ListeningEngine) -> None:
    """The token decides, not the body."""
    with pytest.raises(Forbidden):
        await intake.take(batch(lost("other"), cluster_id="other"), "mine")

    assert engine.facts == []


async def test_what_is_not_journaled_is_not_receipted(intake: FactIntake, engine: ListeningEngine) -> None:
    """With a full disk the batch fails at that fact, and sending it again goes on from there."""
    await intake.take(batch(lost()), "mine")
    engine.refusal = JournalFull("full")
    with pytest.raises(JournalFull):
        await intake.take(batch(lost(), back()), "mine")
    engine.refusal = None
    receipt = await intake.take(batch(lost(), back()), "mine")

    assert receipt.upto == 2
    assert engine.facts == [lost(), back()]


async def test_a_fact_that_never_fits_does_not_stop_the_queue(intake: FactIntake, engine: ListeningEngine) -> None:
    """What the engine refuses for good is passed over; otherwise nothing behind it would ever arrive."""
    engine.refusal = LeaseError("no such lease")

    assert (await intake.take(batch(lost(), back()), "mine")).upto == 2


async def test_a_run_becomes_a_row_with_its_times(intake: FactIntake, journal: Journal) -> None:
    """Started and ended facts become one row, whose story is in the journal, however often they come."""
    started = RunStarted(lease_id="mine", at_ms=T0 + 1000, run_id="r1")
    ended = RunEnded(lease_id="mine", at_ms=T0 + 4000, run_id="r1", status=RunStatus.OK)
    await intake.take(batch(started, ended, started, ended), "mine")
    run = journal.run("r1")

    assert run is not None
    assert (run.status, run.started_ms, run.ended_ms) == (RunStatus.OK, T0 + 1000, T0 + 4000)
    assert run.owner == Owner(user="ada", project="vision", notebook="a.ipynb")
    assert [line.kind for line in journal.entries(subject="r1")] == ["run.started", "run.ended"]


async def test_a_run_of_another_lease_is_not_touched(intake: FactIntake, journal: Journal) -> None:
    """A cluster cannot end a run that belongs to a foreign node by naming its id under its own lease."""
    mine = CellRun(run_id="r1", lease_id="other", session="main", status=RunStatus.RUNNING, started_ms=T0)
    journal.append([NewEntry(kind="run.wished", subject="r1", rows=(mine,))])
    ended = RunEnded(lease_id="mine", at_ms=T0, run_id="r1", status=RunStatus.OK)
    await intake.take(batch(ended), "mine")

    assert journal.run("r1") == mine


def test_times_of_a_run_stay_in_order() -> None:
    """Whatever a fact says: a run does not start after its end, nor end in the future, nor end twice."""
    run = CellRun(run_id="r", lease_id="l", session="s", status=RunStatus.QUEUED)
    ended = RunEnded(lease_id="l", at_ms=T0 + 10**9, run_id="r", status=RunStatus.ERROR, started_ms=T0 + 2 * 10**9)
    after = run_after(run, ended, T0)
    again = run_after(after, RunEnded(lease_id="l", at_ms=T0, run_id="r", status=RunStatus.OK), T0)

    assert after.ended_ms == T0 + CLOCK_SLACK_MS
    assert after.started_ms is not None
    assert after.started_ms <= after.ended_ms
    assert again == after


async def test_facts_about_runs_that_follow_each_other_are_journaled_at_once(
    intake: FactIntake, engine: ListeningEngine, journal: Journal
) -> None:
    """Begin and end in one batch: both lines, the run's times, the fact behind them, and what is foreign left out."""
    started = RunStarted(lease_id="mine", at_ms=T0, run_id="run-1")
    foreign = RunStarted(lease_id="other", at_ms=T0, run_id="run-2")
    ended = RunEnded(lease_id="mine", at_ms=T0 + 5, run_id="run-1", status=RunStatus.OK)
    receipt = await intake.take(batch(started, foreign, ended, back()), "mine")

    run = journal.run("run-1")
    assert run is not None
    assert (run.started_ms, run.ended_ms, run.status) == (T0, T0 + 5, RunStatus.OK)
    assert [line.kind for line in journal.entries(subject="run-1")] == ["run.started", "run.ended"]
    assert journal.run("run-2") is None
    assert (receipt.upto, engine.facts) == (4, [back()])


async def test_who_waits_for_news_of_runs_is_woken_by_them(intake: FactIntake) -> None:
    """Waiting ends with the next fact about a run, long before its time is over."""
    async with asyncio.timeout(10):
        waiting = asyncio.create_task(intake.run_news(60))
        await asyncio.sleep(0)
        await intake.take(batch(RunStarted(lease_id="mine", at_ms=T0, run_id="run-1")), "mine")
        await waiting
