"""What was seen of the broker at one look, and what differs between two of them. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jupyter_gpumarket.api import Alert, BudgetView, LeaseView, Orphan
from jupyter_gpumarket.ledger import verdict
from jupyter_gpumarket.models import Charge, Record
from jupyter_gpumarket.money import split

DAY_MS = 24 * 3600 * 1000
MAX_TEXT = 200


class Sight(Record, frozen=True, kw_only=True):
    """The state of things at one moment. `ended` holds the leases that were open at the look before."""

    at_ms: int
    leases: tuple[LeaseView, ...] = ()
    ended: tuple[LeaseView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    alerts: tuple[Alert, ...] = ()
    spent_today_nusd: int = 0

    @property
    def rate_nusd_hour(self) -> int:
        """What all that may be billing costs an hour."""
        return sum(view.lease.price_nusd_hour for view in self.leases if view.lease.may_bill)

    @property
    def is_renting(self) -> bool:
        """Whether anything may cost money now."""
        return bool(self.leases) or any(orphan.state != "gone" for orphan in self.orphans)


class Notice(Record, frozen=True, kw_only=True):
    """One message for the event bus: the topic's name and its few, plain fields."""

    topic: str
    data: dict[str, Any]


def notices(before: Sight | None, now: Sight) -> list[Notice]:
    """What to tell of a look, given the one before. What the first look finds is all news."""
    before = before or Sight(at_ms=0, spent_today_nusd=-1)
    return [
        *_leases(before, now),
        *_limits(before, now),
        *_orphans(before, now),
        *_alerts(before, now),
        *_cost(before, now),
    ]


def spent_since(charges: Sequence[Charge], since_ms: int) -> int:
    """The part of these lines that falls after a moment, nano-dollars. A line is spread evenly over its time."""
    total = 0
    for charge in charges:
        length = charge.end_ms - charge.start_ms
        after = max(0, min(length, charge.end_ms - since_ms))
        if length > 0:
            total += split(charge.amount_nusd, [length - after, after])[1]
        elif charge.start_ms >= since_ms:
            total += charge.amount_nusd
    return total


def midnight(now_ms: int) -> int:
    """The begin of the UTC day, as in the reports."""
    return now_ms // DAY_MS * DAY_MS


def _leases(before: Sight, now: Sight) -> list[Notice]:
    known = {view.lease.lease_id: _shown(view) for view in before.leases}
    return [
        Notice(topic="lease", data=_shown(view))
        for view in (*now.leases, *now.ended)
        if known.get(view.lease.lease_id) != _shown(view)
    ]


def _shown(view: LeaseView) -> dict[str, Any]:
    lease = view.lease
    return {
        "lease_id": lease.lease_id,
        "name": lease.name,
        "state": lease.state.value,
        "link": view.node.link if view.node is not None else "",
        "running": len(view.node.running) if view.node is not None else 0,
        "may_bill": lease.may_bill,
        "seq": view.seq,
    }


def _limits(before: Sight, now: Sight) -> list[Notice]:
    """Limits that have come nearer: told once at 80 %, once at 100 %."""
    known = {(limit["scope"], limit["key"]): limit["level"] for limit in _all_limits(before)}
    return [
        Notice(topic="budget", data=limit)
        for limit in _all_limits(now)
        if limit["level"] != "ok" and known.get((limit["scope"], limit["key"])) != limit["level"]
    ]


def _all_limits(sight: Sight) -> list[dict[str, Any]]:
    own = [
        _limit("lease", view.lease.lease_id, view.cost_nusd, view.lease.request.budget_nusd) for view in sight.leases
    ]
    return own + [_limit(b.budget.scope.value, b.budget.key, b.spent_nusd, b.budget.limit_nusd) for b in sight.budgets]


def _limit(scope: str, key: str, spent_nusd: int, limit_nusd: int) -> dict[str, Any]:
    level = verdict(spent_nusd, limit_nusd)
    return {"scope": scope, "key": key, "level": level, "spent_nusd": spent_nusd, "limit_nusd": limit_nusd}


def _orphans(before: Sight, now: Sight) -> list[Notice]:
    known = {(orphan.marketplace, orphan.rental_id): orphan.state for orphan in before.orphans}
    return [
        Notice(
            topic="orphan",
            data={
                "marketplace": orphan.marketplace,
                "rental_id": orphan.rental_id[:MAX_TEXT],
                "state": orphan.state,
                "price_nusd_hour": orphan.price_nusd_hour,
            },
        )
        for orphan in now.orphans
        if known.get((orphan.marketplace, orphan.rental_id)) != orphan.state
    ]


def _alerts(before: Sight, now: Sight) -> list[Notice]:
    known = set(_found(before))
    return [
        Notice(
            topic="alert",
            data={
                "search": alert.search[:MAX_TEXT],
                "offers": alert.offers,
                "price_nusd_hour": alert.best.price_nusd_hour,
                "marketplace": alert.best.marketplace,
                "gpu": (alert.best.gpu or alert.best.gpu_raw)[:MAX_TEXT],
                "found_ms": alert.found_ms,
            },
        )
        for alert, key in zip(now.alerts, _found(now), strict=True)
        if key not in known
    ]


def _found(sight: Sight) -> list[tuple[str, int]]:
    return [(alert.search, alert.found_ms) for alert in sight.alerts]


def _cost(before: Sight, now: Sight) -> list[Notice]:
    if before.spent_today_nusd == now.spent_today_nusd and before.rate_nusd_hour == now.rate_nusd_hour:
        return []
    data = {
        "spent_today_nusd": now.spent_today_nusd,
        "rate_nusd_hour": now.rate_nusd_hour,
        "open_leases": len(now.leases),
        "as_of_ms": now.at_ms,
    }
    return [Notice(topic="cost", data=data)]
