"""Looks at the broker while somebody uses it or something is rented, and tells what has changed.

It never starts a broker: with none there, nothing can have changed but that. While nothing is rented and nobody asks,
it does not look at all, so that a broker which nobody needs can end by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from jupyter_gpumarket.api import CostQuery, LeaseView
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.server.sight import Notice, Sight, midnight, notices, spent_since

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0
# Costs are a longer answer than the rest, and a page can count on from a rate: they are read less often.
COSTS_EVERY_S = 10.0
LOOK_TIMEOUT_S = 30.0
MAX_MESSAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to look: every `refresh_s` while somebody asked within `used_s`, else five times more seldom."""

    refresh_s: float
    used_s: float

    def pause_s(self, *, is_used: bool, failures: int) -> float:
        """How long to wait before the next look; longer and longer while the broker cannot be asked."""
        usual = self.refresh_s * (1 if is_used else 5)
        return max(usual, min(LONGEST_PAUSE_S, self.refresh_s * 2 ** min(failures, 10)) if failures else 0)


Look = Callable[[Sight | None], Awaitable[Sight]]
Tell = Callable[[Notice], None]
Seen = Callable[[Sight | None], None]


class Watch:
    """One background task, running only while there is a reason to.

    `look` takes what was seen before and sees anew; `tell` gets each notice; `seen` each sight, or None for no broker.
    """

    def __init__(self, look: Look, *, tell: Tell, seen: Seen, pace: Pace) -> None:
        self._look = look
        self._tell = tell
        self._seen = seen
        self._pace = pace
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._used_at = float("-inf")
        self._sight: Sight | None = None
        self._failures = 0

    @property
    def is_running(self) -> bool:
        """Whether it looks at all now."""
        return self._task is not None and not self._task.done()

    def used(self, *, look_now: bool = False, answered: bool = False) -> None:
        """Somebody asked something. `look_now`: and changed something. `answered`: by a broker that is there."""
        was_used, self._used_at = self._is_used(), time.monotonic()
        if not self.is_running:
            self._task = asyncio.create_task(self._watch(), name="gpumarket-watch")
        if answered:
            # Whatever kept us from seeing it is over: it is not to be looked for ever more seldom.
            self._failures = min(self._failures, 1)
        if look_now or self._failures or not was_used:
            self._soon.set()

    async def aclose(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_used(self) -> bool:
        return time.monotonic() - self._used_at < self._pace.used_s

    async def _watch(self) -> None:
        while self._is_used() or (self._sight is not None and self._sight.is_renting):
            self._soon.clear()
            await self._once()
            pause_s = self._pace.pause_s(is_used=self._is_used(), failures=self._failures)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._soon.wait()

    async def _once(self) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                sight = await self._look(self._sight)
        except Exception as error:
            if not isinstance(error, GpuMarketError | TimeoutError):
                log.exception("a look at the broker failed")
            self._missed(str(error)[:MAX_MESSAGE] if isinstance(error, GpuMarketError) else "no answer")
            return
        news = notices(self._sight, sight)
        if self._failures or self._sight is None:
            news.insert(0, Notice(topic="broker", data={"up": True, "message": ""}))
        self._failures, self._sight = 0, sight
        self._seen(sight)
        for notice in news:
            self._say(notice)

    def _say(self, notice: Notice) -> None:
        """One notice that the bus refuses must not keep the others back, nor end the watch."""
        try:
            self._tell(notice)
        except Exception:
            log.exception("the event bus refused a notice on %s", notice.topic)

    def _missed(self, message: str) -> None:
        self._failures += 1
        if self._failures == 1:
            self._say(Notice(topic="broker", data={"up": False, "message": message}))
        self._seen(None)


class Eyes:
    """One look at a real broker. Costs are read when a lease changed, and otherwise every `COSTS_EVERY_S`."""

    def __init__(self) -> None:
        self._costs_at = float("-inf")

    async def look(self, broker: AsyncClient, before: Sight | None) -> Sight:
        """What there is now."""
        leases, budgets, orphans, searches = await asyncio.gather(
            broker.leases(), broker.budgets(), broker.orphans(), broker.searches()
        )
        now = Sight(
            at_ms=time.time_ns() // 1_000_000,
            leases=tuple(leases),
            ended=tuple([await broker.lease(lease_id) for lease_id in _gone(before, leases)]),
            budgets=tuple(budgets),
            orphans=tuple(orphans),
            alerts=tuple(search.alert for search in searches if search.alert is not None),
            spent_today_nusd=before.spent_today_nusd if before is not None else 0,
        )
        if before is None or _changed(before, now) or time.monotonic() - self._costs_at >= COSTS_EVERY_S:
            self._costs_at = time.monotonic()
            since_ms = midnight(now.at_ms)
            lines = await broker.costs(CostQuery(since_ms=since_ms))
            now = msgspec.structs.replace(now, spent_today_nusd=spent_since(lines.charges, since_ms))
        return now


def _gone(before: Sight | None, leases: list[LeaseView]) -> list[str]:
    """Leases that were open at the look before and are no longer listed: their end is to be told."""
    there = {view.lease.lease_id for view in leases}
    return [] if before is None else [v.lease.lease_id for v in before.leases if v.lease.lease_id not in there]


def _changed(before: Sight, now: Sight) -> bool:
    return [view.seq for view in before.leases] != [view.seq for view in now.leases]
