"""Budgets: what is spent and reserved, what is refused, and when to cut. Pure; the broker acts on it.

A reservation is what an open lease can still come to cost: its worst case less what it is charged so far. So two leases
that fit one by one, and not together, are not both rented.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from jupyter_gpumarket.api import BudgetView
from jupyter_gpumarket.errors import BudgetExceeded
from jupyter_gpumarket.ledger.charges import asked_nusd, lease_charges, worst_case_nusd
from jupyter_gpumarket.models import (
    ENDED_RUNS,
    Budget,
    CellRun,
    Charge,
    Lease,
    LeaseRequest,
    LeaseState,
    Owner,
    Record,
    Scope,
)
from jupyter_gpumarket.money import format_usd

Verdict = Literal["ok", "warn", "spent"]

# What bringing outputs over may use of a lease's whole time: one part of so many.
SMALL_PART = 20
# Such a lease ends already; to drain it again would change nothing.
_ENDING = frozenset({LeaseState.DRAINING, LeaseState.RELEASING, LeaseState.RELEASE_UNCONFIRMED})


def verdict(spent_nusd: int, limit_nusd: int) -> Verdict:
    """`warn` from 80 % of the limit, `spent` from 100 %."""
    if spent_nusd >= limit_nusd:
        return "spent"
    return "warn" if spent_nusd * 100 >= limit_nusd * 80 else "ok"


def covers(budget: Budget, owner: Owner, run_id: str = "") -> bool:
    """Whether what is done for this owner (and as this run) counts against a budget."""
    return (budget.scope, budget.key) in scopes(owner, run_id)


def scopes(owner: Owner, run_id: str = "") -> list[tuple[Scope, str]]:
    """The scopes that something done for this owner counts in; a scope without a name is none."""
    named = (
        (Scope.CELL, run_id),
        (Scope.NOTEBOOK, owner.notebook),
        (Scope.USER, owner.user),
        (Scope.PROJECT, owner.project),
    )
    return [(scope, key) for scope, key in named if key]


def views(
    budgets: Iterable[Budget], charges: Sequence[Charge], open_leases: Sequence[Lease], now_ms: int
) -> list[BudgetView]:
    """Each budget with what is spent and reserved.

    Args:
        charges: the ledger's lines; those of open leases are the provisional ones up to now.
        now_ms: lines of the time after it (paid for in advance) count as well; they are owed.
    """
    del now_ms
    by_scope = {(budget.scope, budget.key): budget for budget in budgets}
    spent: dict[tuple[Scope, str], int] = defaultdict(int)
    reserved: dict[tuple[Scope, str], int] = defaultdict(int)
    charged: dict[str, int] = defaultdict(int)
    for charge in charges if by_scope else ():
        charged[charge.lease_id] += charge.amount_nusd
        for scope in scopes(charge.owner, charge.run_id):
            if scope in by_scope:
                spent[scope] += _since(charge, by_scope[scope].since_ms)
    for lease in open_leases if by_scope else ():
        for scope in scopes(lease.request.owner):
            reserved[scope] += max(0, worst_case_nusd(lease) - charged[lease.lease_id])
    return [
        BudgetView(budget=budget, spent_nusd=spent[scope], reserved_nusd=reserved[scope])
        for scope, budget in by_scope.items()
    ]


def _since(charge: Charge, since_ms: int) -> int:
    """The part of a line that falls at or after a time; a part of a nano-dollar counts whole."""
    if charge.start_ms >= since_ms:
        return charge.amount_nusd
    if charge.end_ms <= since_ms:
        return 0
    return -(-charge.amount_nusd * (charge.end_ms - since_ms) // (charge.end_ms - charge.start_ms))


def refuse_lease(
    request: LeaseRequest,
    *,
    budgets: Iterable[Budget],
    charges: Sequence[Charge],
    open_leases: Sequence[Lease],
    now_ms: int,
    price_nusd_hour: int | None = None,
) -> None:
    """Refuse a wish whose worst case does not fit into every budget it counts against.

    Args:
        price_nusd_hour: the offer's price where it is known already.

    Raises:
        BudgetExceeded: names the budget, its limit, and what is spent, reserved and asked.
    """
    asked = asked_nusd(request, price_nusd_hour)
    for view in views([b for b in budgets if covers(b, request.owner)], charges, open_leases, now_ms):
        free = view.budget.limit_nusd - view.spent_nusd - view.reserved_nusd
        if asked > free:
            raise BudgetExceeded(
                f"{state_of(view)}, {format_usd(max(0, free))} is free; this lease may cost up to {format_usd(asked)}. "
                f"Ask for fewer hours or a smaller --budget, release a lease, or raise the budget"
            )


def refuse_run(
    owner: Owner,
    *,
    run_id: str,
    budgets: Iterable[Budget],
    charges: Sequence[Charge],
    open_leases: Sequence[Lease],
    now_ms: int,
) -> None:
    """Refuse a cell run for an owner one of whose budgets is used up. Its lease's worst case is reserved already.

    Raises:
        BudgetExceeded: names the budget, its limit, and what is spent and reserved.
    """
    for view in views([b for b in budgets if covers(b, owner, run_id)], charges, open_leases, now_ms):
        if verdict(view.spent_nusd, view.budget.limit_nusd) == "spent":
            raise BudgetExceeded(f"{state_of(view)}: it is used up. Raise it, or wait for the next period")


def state_of(view: BudgetView) -> str:
    """`the budget of project 'vision' is $10.00: $7.20 is spent, $1.50 reserved by open leases`."""
    budget = view.budget
    return (
        f"the budget of {budget.scope} {budget.key!r} is {format_usd(budget.limit_nusd)}: "
        f"{format_usd(view.spent_nusd)} is spent, {format_usd(view.reserved_nusd)} reserved by open leases"
    )


class Cut(Record, frozen=True, kw_only=True):
    """What to do because money runs out: warn, or drain (save declared outputs, then release).

    `run_id` is set where only that run ends. `limit` names the limit, stable over time, so that a caller can warn once.
    """

    action: Literal["warn", "drain"]
    lease_id: str
    limit: str
    reason: str
    run_id: str = ""


def cuts(
    *,
    budgets: Iterable[Budget],
    ended_charges: Sequence[Charge],
    open_leases: Sequence[Lease],
    runs: Sequence[CellRun],
    now_ms: int,
    ahead_s: float = 0,
    saving_s: float = 0,
) -> list[Cut]:
    """Which leases and runs to warn about or to end now.

    Args:
        ended_charges: the lines of leases that have ended; those of open leases are computed here.
        runs: the runs of the open leases.
        ahead_s: judge by what will have come up so much later: how long draining takes. It also ends a lease before
            the next paid block of a marketplace that bills by the hour begins.
        saving_s: so much more where a run has not ended, whose outputs are brought over before the lease ends; never
            more than a small part of the lease's time.
    """
    then_ms = now_ms + round(ahead_s * 1000)
    at_work = {run.lease_id for run in runs if run.status not in ENDED_RUNS}
    coming = {
        lease.lease_id: lease_charges(
            lease, runs, then_ms + (_saving_ms(lease, saving_s) if lease.lease_id in at_work else 0)
        )
        for lease in open_leases
    }
    open_leases = [lease for lease in open_leases if lease.state not in _ENDING]
    charges = [*ended_charges, *(charge for lines in coming.values() for charge in lines)]
    found = []
    for view in views(budgets, charges, (), now_ms):
        found += _budget_cuts(view, open_leases, runs)
    for lease in open_leases:
        found += _lease_cuts(lease, coming[lease.lease_id])
        if any(run.lease_id == lease.lease_id and run.budget_nusd is not None for run in runs):
            found += _run_cuts(lease, lease_charges(lease, runs, then_ms), runs)
    return found


def _saving_ms(lease: Lease, saving_s: float) -> int:
    """How long bringing outputs over may take: a short lease must not spend itself on its end."""
    whole_ms = max(0, (lease.deadline_ms or 0) - (lease.billed_from_ms or 0))
    return min(round(saving_s * 1000), whole_ms // SMALL_PART)


def _budget_cuts(view: BudgetView, open_leases: Sequence[Lease], runs: Sequence[CellRun]) -> list[Cut]:
    judged = verdict(view.spent_nusd, view.budget.limit_nusd)
    if judged == "ok":
        return []
    budget = view.budget
    limit = f"{budget.scope}:{budget.key}"
    reason = _reason(
        f"the budget of {budget.scope} {budget.key!r}", view.spent_nusd, budget.limit_nusd, judged == "spent"
    )
    action: Literal["warn", "drain"] = "drain" if judged == "spent" else "warn"
    leases = [lease for lease in open_leases if covers(budget, lease.request.owner)]
    whole = {lease.lease_id for lease in leases}
    open_ids = {lease.lease_id for lease in open_leases}
    guests = [
        run
        for run in runs
        if run.status not in ENDED_RUNS and run.lease_id in open_ids - whole and covers(budget, run.owner, run.run_id)
    ]
    return [
        *(Cut(action=action, lease_id=lease.lease_id, limit=limit, reason=reason) for lease in leases),
        *(Cut(action=action, lease_id=r.lease_id, run_id=r.run_id, limit=limit, reason=reason) for r in guests),
    ]


def _lease_cuts(lease: Lease, lines: Sequence[Charge]) -> list[Cut]:
    spent, limit = sum(line.amount_nusd for line in lines), lease.request.budget_nusd
    judged = verdict(spent, limit)
    if judged == "ok" or not lines:
        return []
    return [
        Cut(
            action="drain" if judged == "spent" else "warn",
            lease_id=lease.lease_id,
            limit=f"lease:{lease.lease_id}",
            reason=_reason(f"the budget of the lease {lease.name or lease.lease_id}", spent, limit, judged == "spent"),
        )
    ]


def _run_cuts(lease: Lease, lines: Sequence[Charge], runs: Sequence[CellRun]) -> list[Cut]:
    found = []
    for run in runs:
        if run.lease_id != lease.lease_id or run.budget_nusd is None or run.status in ENDED_RUNS:
            continue
        spent = sum(line.amount_nusd for line in lines if line.run_id == run.run_id)
        judged = verdict(spent, run.budget_nusd)
        if judged == "ok":
            continue
        found.append(
            Cut(
                action="drain" if judged == "spent" else "warn",
                lease_id=lease.lease_id,
                run_id=run.run_id,
                limit=f"run:{run.run_id}",
                reason=_reason("the budget of this cell", spent, run.budget_nusd, judged == "spent"),
            )
        )
    return found


def _reason(what: str, spent_nusd: int, limit_nusd: int, used_up: bool) -> str:
    amounts = f"{format_usd(spent_nusd)} of {format_usd(limit_nusd)}"
    return f"{what} is used up: {amounts}" if used_up else f"{what} is nearly used up: {amounts}"
