"""Budgets: what does not fit is refused before it starts, and what runs out is warned about and then cut.

Reserve, then rent: a wish is checked and journaled without another wish coming between, so two wishes that fit one by
one and not together are not both granted. When the watch itself fails, nothing new is started (fail closed).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Protocol

from jupyter_gpumarket import ledger
from jupyter_gpumarket.api import RunWish
from jupyter_gpumarket.broker.books import Books
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import BudgetExceeded, GpuMarketError, JournalError
from jupyter_gpumarket.ledger.budgets import covers, state_of
from jupyter_gpumarket.models import Lease, LeaseRequest

log = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0
# A cut is decided by what will have come up when it has had effect.
AHEAD_S = 2.0
# Where a cell runs, what it has declared as outputs is brought over first: that is paid, too.
SAVING_S = 10.0


class Cutter(Protocol):
    """The lease engine's way to end a lease."""

    async def release(self, lease_id: str, reason: str) -> Lease:
        """Ask for the end of a lease."""


class Interrupter(Protocol):
    """The cluster processes' way to end one cell run."""

    async def interrupt(self, lease: Lease, run_id: str, save_for: str = "") -> None:
        """Interrupt a cell run, and bring over what it has declared as outputs."""


class Purse:
    """Holds every start and every running lease against the budgets."""

    def __init__(self, *, books: Books, engine: Cutter, clusters: Interrupter, clock: Clock) -> None:
        self._books = books
        self._engine = engine
        self._clusters = clusters
        self._clock = clock
        self._notices: dict[str, dict[str, str]] = {}
        self.gate = asyncio.Lock()
        self.failure = ""

    def allow_lease(self, request: LeaseRequest) -> None:
        """Refuse a wish that does not fit. Call it, and journal the wish, while holding `gate`.

        Raises:
            BudgetExceeded: names the budget, its limit, and what is spent, reserved and asked.
        """
        self._refuse_blind()
        ledger.refuse_lease(
            request,
            budgets=self._books.budgets(),
            charges=self._books.lines(),
            open_leases=self._books.open_leases(),
            now_ms=self._clock.now_ms(),
        )

    def allow_run(self, wish: RunWish) -> None:
        """Refuse a cell run whose owner's budget is used up.

        Raises:
            BudgetExceeded: names the budget.
        """
        self._refuse_blind()
        budgets = [budget for budget in self._books.budgets() if covers(budget, wish.owner, wish.run_id)]
        if not budgets:
            return  # the usual case, and adding up all charges so far takes time before every cell
        ledger.refuse_run(
            wish.owner,
            run_id=wish.run_id,
            budgets=budgets,
            charges=self._books.lines(),
            open_leases=self._books.open_leases(),
            now_ms=self._clock.now_ms(),
        )

    def allow_extension(self, lease: Lease, budget_nusd: int | None) -> None:
        """Refuse a larger budget of a lease that the budgets above it do not cover. Call it while holding `gate`.

        Raises:
            BudgetExceeded: names the budget.
        """
        if budget_nusd is None or budget_nusd <= lease.request.budget_nusd:
            return
        self._refuse_blind()
        for view in self._books.budget_views():
            free = view.budget.limit_nusd - view.spent_nusd - view.reserved_nusd
            if covers(view.budget, lease.request.owner) and budget_nusd - lease.request.budget_nusd > free:
                raise BudgetExceeded(f"{state_of(view)}; it does not cover this extension")

    def notices(self, lease_id: str) -> tuple[str, ...]:
        """Warnings about a lease's money, for people."""
        return tuple(self._notices.get(lease_id, {}).values())

    async def watch(self) -> None:
        """Look once at everything that costs: warn at 80 %, end at 100 %."""
        leases = self._books.open_leases()
        unclosed = [lease for lease in self._books.unclosed() if lease not in leases]
        ended = self._books.final_lines() + [
            line
            for lease in unclosed
            for line in self._books.costs(since_ms=0, until_ms=None, lease_id=lease.lease_id).charges
        ]
        found = ledger.cuts(
            budgets=self._books.budgets(),
            ended_charges=ended,
            open_leases=leases,
            runs=self._books.runs_of(leases),
            now_ms=self._clock.now_ms(),
            ahead_s=AHEAD_S,
            saving_s=SAVING_S,
        )
        by_id = {lease.lease_id: lease for lease in leases}
        notices: dict[str, dict[str, str]] = defaultdict(dict)
        for cut in found:
            if cut.limit not in self._notices.get(cut.lease_id, {}):
                log.warning("%s: %s", by_id[cut.lease_id].name, cut.reason)
            notices[cut.lease_id][cut.limit] = cut.reason
        self._notices = dict(notices)
        for cut in found:
            if cut.action == "drain":
                await self._end(cut, by_id[cut.lease_id])

    async def _end(self, cut: ledger.Cut, lease: Lease) -> None:
        """One end that fails must not keep the others from theirs; the next look tries it again."""
        try:
            if cut.run_id:
                await self._clusters.interrupt(lease, cut.run_id, cut.reason)
            else:
                await self._engine.release(lease.lease_id, cut.reason)
        except JournalError:
            raise
        except GpuMarketError as error:
            log.warning("%s should end (%s), but: %s", cut.run_id or lease.name, cut.reason, error)

    def _refuse_blind(self) -> None:
        if self.failure:
            raise BudgetExceeded(f"nothing new is started, because the budgets cannot be watched: {self.failure}")
