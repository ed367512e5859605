"""The ledger as of now: lines of ended leases from the journal, lines of open ones computed up to this moment."""

from __future__ import annotations

from jupyter_gpumarket import ledger
from jupyter_gpumarket.api import BudgetView, CostList, RunCost
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.journal import Journal
from jupyter_gpumarket.models import Budget, CellRun, Charge, Lease

CHARGE_FINAL = "charge.final"
LEASE_WISHED = "lease.wished"


class Books:
    """What everything has cost so far."""

    def __init__(self, *, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._closed = {line.subject for line in journal.entries(kinds={CHARGE_FINAL})}
        self._final = [charge for charge in journal.charges() if charge.final]
        # Looked at every second, so the journal's past is read once: here, and then only what came after `_seen`.
        self._seen = 0
        self._unclosed: set[str] = set()

    def is_closed(self, lease_id: str) -> bool:
        """Whether a lease's final charges are in the journal."""
        return lease_id in self._closed

    def close(self, lease_id: str, charges: list[Charge]) -> None:
        """From now on these lines stand for the lease; they are in the journal already."""
        self._closed.add(lease_id)
        self._unclosed.discard(lease_id)
        self._final.extend(charges)

    def unclosed(self) -> list[Lease]:
        """Leases whose charges are not final: the open ones, and those that have just ended."""
        for wish in self._journal.entries(after=self._seen, kinds={LEASE_WISHED}):
            self._unclosed.add(wish.subject)
            self._seen = wish.seq
        self._unclosed -= self._closed
        found = [self._journal.lease(lease_id) for lease_id in sorted(self._unclosed)]
        return [lease for lease in found if lease is not None]

    def runs_of(self, leases: list[Lease]) -> list[CellRun]:
        """All cell runs of these leases."""
        return [run for lease in leases for run in self._journal.runs(lease_id=lease.lease_id)]

    def final_lines(self) -> list[Charge]:
        """The lines of closed leases."""
        return list(self._final)

    def lines(self) -> list[Charge]:
        """All lines up to now, provisional ones too."""
        return self._final + [line for lease in self.unclosed() for line in self._provisional(lease)]

    def costs(self, *, since_ms: int, until_ms: int | None, lease_id: str | None) -> CostList:
        """The lines that touch a span, oldest first."""
        now_ms = self._clock.now_ms()
        touching = [
            line
            for line in self.lines()
            if line.end_ms >= since_ms
            and (until_ms is None or line.start_ms < until_ms)
            and (lease_id is None or line.lease_id == lease_id)
        ]
        return CostList(charges=sorted(touching, key=lambda line: (line.start_ms, line.charge_id)), as_of_ms=now_ms)

    def money(self, lease: Lease) -> tuple[int, int, int]:
        """Cost, boot share and idle share of a lease up to now, nano-dollars."""
        return ledger.lease_money(lease, self._journal.runs(lease_id=lease.lease_id), self._clock.now_ms())

    def run_cost(self, lease: Lease, run_id: str) -> RunCost:
        """A cell run and its share."""
        runs = self._journal.runs(lease_id=lease.lease_id)
        return ledger.run_cost(lease, runs, run_id, self._clock.now_ms())

    def run_costs(self, *, lease_id: str | None, notebook: str | None, limit: int) -> list[RunCost]:
        """Cell runs with their shares, newest first; of one lease, of one notebook."""
        runs = [
            run for run in self._journal.runs(lease_id=lease_id) if notebook is None or run.owner.notebook == notebook
        ]
        newest = sorted(runs, key=lambda run: run.started_ms or 0, reverse=True)[:limit]
        found: list[RunCost] = []
        for one in {run.lease_id for run in newest}:
            lease = self._journal.lease(one)
            if lease is not None:
                wanted = {run.run_id for run in newest if run.lease_id == one}
                of_lease = self._journal.runs(lease_id=one)
                found += ledger.run_costs(lease, of_lease, wanted, self._clock.now_ms())
        return sorted(found, key=lambda cost: cost.run.started_ms or 0, reverse=True)

    def budgets(self) -> list[Budget]:
        """All budgets."""
        return self._journal.budgets()

    def budget_views(self) -> list[BudgetView]:
        """All budgets with what is spent and reserved."""
        return ledger.views(self.budgets(), self.lines(), self.open_leases(), self._clock.now_ms())

    def open_leases(self) -> list[Lease]:
        """Leases that have not ended."""
        return self._journal.leases(open_only=True)

    def _provisional(self, lease: Lease) -> list[Charge]:
        runs = self._journal.runs(lease_id=lease.lease_id)
        return ledger.lease_charges(lease, runs, self._clock.now_ms())
