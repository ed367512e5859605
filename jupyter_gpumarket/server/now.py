"""GET /gpumarket/now: everything that a page shows of what is rented, as of one moment, in one answer.

A page asks this as long as it is open, so by default it starts no broker: without one, nothing is rented from here.
"""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from jupyter_gpumarket.api import BudgetView, LeaseView, Orphan
from jupyter_gpumarket.errors import BrokerUnavailable
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.server.door import Door
from jupyter_gpumarket.server.sight import Sight
from jupyter_gpumarket.server.watch import Eyes


class Now(Record, frozen=True, kw_only=True):
    """What is rented and owed. With `is_up` false nobody could be asked, and `message` says why; leases go on."""

    at_ms: int
    is_up: bool
    message: str = ""
    leases: tuple[LeaseView, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    rate_nusd_hour: int = 0
    spent_today_nusd: int = 0


class _Glance:
    """What was seen last through one door, so that the long list of costs is not read at every look."""

    def __init__(self) -> None:
        self._eyes = Eyes()
        self._before: Sight | None = None

    async def look(self, door: Door) -> Now:
        # An older sight would make every later one tell of leases that have ended long ago.
        before, self._before = self._before, None
        sight = await door.call(lambda broker: self._eyes.look(broker, before))
        self._before = sight
        return Now(
            at_ms=sight.at_ms,
            is_up=True,
            leases=sight.leases,
            orphans=sight.orphans,
            budgets=sight.budgets,
            rate_nusd_hour=sight.rate_nusd_hour,
            spent_today_nusd=sight.spent_today_nusd,
        )


_GLANCES: WeakKeyDictionary[Door, _Glance] = WeakKeyDictionary()


async def look(door: Door, *, start: bool) -> Now:
    """What is there now. With `start`, a broker is started where none runs."""
    through = door if start else door.quiet
    try:
        return await _GLANCES.setdefault(door, _Glance()).look(through)
    except BrokerUnavailable as error:
        return Now(at_ms=time.time_ns() // 1_000_000, is_up=False, message=str(error))
