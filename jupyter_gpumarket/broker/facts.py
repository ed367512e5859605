"""Facts from cluster processes: each taken once, in order, and only about the sender's own nodes.

A cluster process holds no keys, but it touches strangers' bytes: what it says about another cluster's lease is dropped
(and logged); refusing the whole batch would only stop the facts behind it.
Facts about cell runs become rows here; all others go to the lease engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from jupyter_gpumarket.api import AnyFact, FactBatch, FactReceipt, JournalLine, RunEnded, RunStarted
from jupyter_gpumarket.api.requests import Forbidden, InvalidField
from jupyter_gpumarket.broker.clusters import cluster_of
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import LeaseError
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.models import ENDED_RUNS, CellRun, Lease, RunStatus

log = logging.getLogger(__name__)

MAX_FACTS = 1000
# A node's own clock never enters a fact; the cluster process is on this machine, so this is only for slews.
CLOCK_SLACK_MS = 2_000


class RunStore(Protocol):
    """What of the journal is needed here."""

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        """Write entries and the rows they change."""

    def lease(self, lease_id: str) -> Lease | None:
        """One lease."""

    def run(self, run_id: str) -> CellRun | None:
        """One cell run."""


class Reports(Protocol):
    """The lease engine's ear."""

    async def report(self, fact: AnyFact) -> None:
        """Take a fact about a node."""


class FactIntake:
    """Takes batches of facts."""

    def __init__(self, *, store: RunStore, engine: Reports, clock: Clock) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._taken: dict[tuple[str, str], int] = {}
        self._turn: dict[str, asyncio.Lock] = {}
        self._run_news = asyncio.Event()

    async def take(self, batch: FactBatch, caller: str) -> FactReceipt:
        """Journal what is new in a batch.

        A batch that was taken and not receipted before a crash is taken again: all facts of a queue come in their
        order, and each of them has the same effect the second time.

        Raises:
            Forbidden: the batch is in another cluster's name.
            JournalError: not journaled; the sender keeps the rest and sends it again.
        """
        if batch.cluster_id != caller:
            raise Forbidden(f"this token reports for another cluster than {batch.cluster_id[:80]!r}")
        if batch.first < 1 or len(batch.facts) > MAX_FACTS:
            raise InvalidField(f"a batch starts at 1 or later and has at most {MAX_FACTS} facts", name="first")
        queue = (batch.cluster_id, batch.queue)
        async with self._turn.setdefault(batch.cluster_id, asyncio.Lock()):
            new = [
                (number, fact)
                for number, fact in enumerate(batch.facts, start=batch.first)
                if number > self._taken.get(queue, 0)
            ]
            for are_of_runs, group in itertools.groupby(new, lambda item: isinstance(item[1], RunStarted | RunEnded)):
                if are_of_runs:
                    numbered = list(group)
                    self._take_runs([fact for _, fact in numbered], caller)
                    self._taken[queue] = numbered[-1][0]
                    continue
                for number, fact in group:
                    if self._is_of(fact, caller):
                        await self._report(fact)
                    self._taken[queue] = number
        return FactReceipt(upto=self._taken.get(queue, 0))

    async def run_news(self, timeout_s: float) -> None:
        """Return when something new is known of some cell run, or after the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._run_news.wait(), timeout_s)

    def _is_of(self, fact: AnyFact, caller: str) -> bool:
        """Whether a fact is about a node of the cluster that tells it."""
        lease = self._store.lease(fact.lease_id)
        if lease is None or cluster_of(lease) != caller:
            log.warning("dropped a fact of cluster %.80s about a foreign node: %.80s", caller, fact.lease_id)
            return False
        return True

    async def _report(self, fact: AnyFact) -> None:
        """A fact that the engine cannot take will not fit any better the next time: it is logged and passed over."""
        try:
            await self._engine.report(fact)
        except LeaseError as error:
            log.warning("a fact of %s was not taken: %s", fact.lease_id, error)

    def _take_runs(self, facts: Sequence[AnyFact], caller: str) -> None:
        """Journal in one go what facts that follow each other change in cell runs."""
        rows: dict[str, CellRun] = {}
        entries: list[NewEntry] = []
        for fact in facts:
            assert isinstance(fact, RunStarted | RunEnded)
            if not self._is_of(fact, caller):
                continue
            before = rows.get(fact.run_id) or self._store.run(fact.run_id)
            if before is not None and before.lease_id != fact.lease_id:
                log.warning("dropped a fact about a run that is on another node: %.80s", fact.run_id)
                continue
            changed = run_after(before or self._unknown(fact), fact, self._clock.now_ms())
            if changed != before:
                event = "started" if isinstance(fact, RunStarted) else "ended"
                body = {"lease_id": fact.lease_id, "status": changed.status, "reason": changed.reason}
                entries.append(NewEntry(kind=f"run.{event}", subject=fact.run_id, body=body, rows=(changed,)))
                rows[fact.run_id] = changed
        if entries:
            self._store.append(entries)
            self._run_news.set()
            self._run_news = asyncio.Event()

    def _unknown(self, fact: RunStarted | RunEnded) -> CellRun:
        """A run that no door had announced."""
        lease = self._store.lease(fact.lease_id)
        assert lease is not None
        return CellRun(
            run_id=fact.run_id,
            lease_id=lease.lease_id,
            session="",
            status=RunStatus.QUEUED,
            owner=lease.request.owner,
        )


def run_after(run: CellRun, fact: RunStarted | RunEnded, now_ms: int) -> CellRun:
    """A cell run after a fact. Pure. A run that has ended stays as it ended, except that LOST was only our guess."""
    at_ms = min(fact.at_ms, now_ms + CLOCK_SLACK_MS)
    if run.status in ENDED_RUNS and run.status is not RunStatus.LOST:
        return run
    if isinstance(fact, RunStarted):
        if run.started_ms is not None:
            return run
        return msgspec.structs.replace(run, status=RunStatus.RUNNING, started_ms=at_ms)
    started_ms = run.started_ms if run.started_ms is not None else fact.started_ms
    if started_ms is not None:
        started_ms = min(started_ms, at_ms)
    ended_ms = at_ms if run.ended_ms is None else min(at_ms, run.ended_ms)
    return msgspec.structs.replace(
        run, status=fact.status, started_ms=started_ms, ended_ms=ended_ms, reason=fact.reason[:2000]
    )
