"""The end of a lease's bill: unfinished runs are closed, final charges journaled, and the marketplace's bill compared.

Every step is found again from the journal after a crash: a lease that has ended and has no `charge.final` entry is
closed, one that has no `reconciled` entry is compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from jupyter_gpumarket import ledger
from jupyter_gpumarket.api import Reconciliation
from jupyter_gpumarket.broker.books import CHARGE_FINAL, Books
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import MarketplaceError
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import ENDED_RUNS, ENDED_STATES, Lease, MarketCharge, RunStatus

log = logging.getLogger(__name__)

RECONCILED = "reconciled"
# Facts about the last runs may still be on their way from the cluster process.
LATE_FACTS_MS = 3_000
RETRY_FIRST_MS = 5_000
RETRY_MOST_MS = 600_000


class Closing:
    """Closes the books of ended leases."""

    def __init__(
        self, *, journal: Journal, books: Books, marketplaces: Mapping[str, Marketplace], clock: Clock
    ) -> None:
        self._journal = journal
        self._books = books
        self._marketplaces = marketplaces
        self._clock = clock
        compared = {line.subject for line in journal.entries(kinds={RECONCILED})}
        self._uncompared = {lease.lease_id for lease in journal.leases()} - compared
        self._tries: dict[str, tuple[int, int]] = {}

    def close_ended(self) -> None:
        """Journal the final charges of leases that have ended."""
        now_ms = self._clock.now_ms()
        for lease in self._books.unclosed():
            if lease.state not in ENDED_STATES:
                continue
            runs = self._journal.runs(lease_id=lease.lease_id)
            unfinished = [run for run in runs if run.status not in ENDED_RUNS]
            if unfinished and now_ms < lease.changed_ms + LATE_FACTS_MS:
                continue
            end_ms = lease.billed_to_ms or lease.changed_ms
            lost = [
                msgspec.structs.replace(
                    run,
                    status=RunStatus.LOST,
                    ended_ms=max(end_ms, run.started_ms or 0),
                    reason="the node was given back before the cell's end was known",
                )
                for run in unfinished
            ]
            ended = {run.run_id: run for run in [*runs, *lost]}
            charges = ledger.lease_charges(lease, list(ended.values()), now_ms)
            body = {"total_nusd": sum(charge.amount_nusd for charge in charges), "lines": len(charges)}
            entries = [
                NewEntry(kind="run.lost", subject=run.run_id, body={"lease_id": lease.lease_id}, rows=(run,))
                for run in lost
            ]
            entries.append(NewEntry(kind=CHARGE_FINAL, subject=lease.lease_id, body=body, rows=tuple(charges)))
            self._journal.append(entries)
            self._books.close(lease.lease_id, charges)
            self._uncompared.add(lease.lease_id)

    async def compare_due(self) -> None:
        """Compare what has been closed for as long as its marketplace needs to write the bill."""
        now_ms = self._clock.now_ms()
        for lease_id in sorted(self._uncompared):
            lease = self._journal.lease(lease_id)
            if lease is None or not self._books.is_closed(lease_id):
                continue
            due_ms, _ = self._tries.get(lease.lease_id, (self._first_look_ms(lease), 0))
            if now_ms < due_ms:
                continue
            try:
                await self.compare(lease)
            except MarketplaceError as error:
                _, failures = self._tries.get(lease.lease_id, (0, 0))
                wait_ms = min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** min(failures, 10))
                self._tries[lease.lease_id] = (now_ms + wait_ms, failures + 1)
                log.warning("the bill of %s is not compared yet: %s", lease.name, error)

    async def compare(self, lease: Lease) -> Reconciliation:
        """Compare one lease's bill with the marketplaces' own records, and journal what came out.

        Raises:
            MarketplaceError: a marketplace does not tell its charges now.
        """
        theirs: list[MarketCharge] = []
        for marketplace, rental_id in rentals_of(lease):
            source = self._marketplaces.get(marketplace)
            if source is not None and source.capabilities.charges:
                theirs += await source.charges(rental_id)
        now_ms = self._clock.now_ms()
        ours = self._books.costs(since_ms=0, until_ms=None, lease_id=lease.lease_id).charges
        result = ledger.reconcile(lease, ours, theirs, now_ms)
        if self._books.is_closed(lease.lease_id):
            self._journal.append([NewEntry(kind=RECONCILED, subject=lease.lease_id, body=msgspec.to_builtins(result))])
            self._uncompared.discard(lease.lease_id)
            if result.gap_nusd:
                log.warning(
                    "the bill of %s differs by %d nano-dollars: %s", lease.name, result.gap_nusd, result.explained
                )
        return result

    def _first_look_ms(self, lease: Lease) -> int:
        delays = [
            self._marketplaces[name].capabilities.charge_delay_s
            for name, _ in rentals_of(lease)
            if name in self._marketplaces
        ]
        return lease.changed_ms + 1000 * max(delays, default=0)


def rentals_of(lease: Lease) -> list[tuple[str, str]]:
    """Every (marketplace, rental) that a lease was billed for, each once."""
    found = [(attempt.marketplace, attempt.rental_id) for attempt in lease.attempts if attempt.rental_id]
    if lease.rental_id and lease.offer is not None:
        found.append((lease.offer.marketplace, lease.rental_id))
    return list(dict.fromkeys(found))
