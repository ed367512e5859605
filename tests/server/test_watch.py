"""When the watch looks, when it does not, and what it makes of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from jupyter_gpumarket.api import Orphan
from jupyter_gpumarket.errors import BrokerUnavailable
from jupyter_gpumarket.server.sight import Notice, Sight
from jupyter_gpumarket.server.watch import LONGEST_PAUSE_S, Pace, Watch

ORPHAN = Orphan(marketplace="pool", rental_id="r", label="l", found_ms=0)


class World:
    """A broker to look at: `shows` is what it shows or raises."""

    def __init__(self, *, used_s: float = 0.05) -> None:
        self.shows: Sight | Exception = Sight(at_ms=0)
        self.looks = 0
        self.told: list[Notice] = []
        self.seen: list[Sight | None] = []
        pace = Pace(refresh_s=0.01, used_s=used_s)
        self.refuses = ""
        self.watch = Watch(self._look, tell=self._tell, seen=self.seen.append, pace=pace)

    def _tell(self, notice: Notice) -> None:
        if notice.topic == self.refuses:
            raise ValueError("does not fit its schema")
        self.told.append(notice)

    async def _look(self, before: Sight | None) -> Sight:
        self.looks += 1
        if isinstance(self.shows, Exception):
            raise self.shows
        return self.shows

    def broker(self) -> list[Any]:
        return [notice.data["up"] for notice in self.told if notice.topic == "broker"]


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def test_it_does_not_look_until_somebody_asks_and_stops_when_nobody_does() -> None:
    """So a broker that nobody needs can end by itself."""
    world = World()
    await asyncio.sleep(0)
    assert (world.looks, world.watch.is_running) == (0, False)

    world.watch.used()
    await until(lambda: world.looks)
    await until(lambda: not world.watch.is_running)
    world.watch.used()
    assert world.watch.is_running
    await world.watch.aclose()


async def test_it_goes_on_while_anything_may_cost_money() -> None:
    """However long nobody asks; and ends once nothing is left."""
    world = World()
    world.shows = Sight(at_ms=0, orphans=(ORPHAN,))
    world.watch.used()
    await until(lambda: world.looks >= 5)
    assert world.watch.is_running

    world.shows = Sight(at_ms=1)
    await until(lambda: not world.watch.is_running)


async def test_a_broker_that_is_gone_is_told_once_and_its_return_once() -> None:
    """Pages are told of the change, not of every failed look; figures say it is down."""
    world = World(used_s=60)
    world.shows = BrokerUnavailable("no broker runs")
    world.watch.used()
    await until(lambda: world.looks >= 3)
    assert world.broker() == [False]
    assert world.seen[-1] is None

    world.shows = Sight(at_ms=1)
    world.watch.used()
    await until(lambda: len(world.broker()) > 1)
    assert world.broker() == [False, True]
    await world.watch.aclose()


async def test_a_broker_that_answers_somebody_is_soon_seen_again() -> None:
    """However many looks have failed before, and though the first one after the answer fails as well."""
    world = World(used_s=60)
    world.watch._pace = Pace(refresh_s=0.05, used_s=60)
    world.shows = BrokerUnavailable("no broker runs")
    for looks in range(12):
        world.watch.used()
        await until(lambda looks=looks: world.looks > looks)
    world.watch.used(answered=True)
    await until(lambda: world.looks > 12)
    world.shows = Sight(at_ms=1)
    await until(lambda: world.broker() == [False, True])
    await world.watch.aclose()


async def test_a_bug_of_ours_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its story, told without it, and the next look is made."""
    world = World(used_s=60)
    world.shows = KeyError("inner-word")
    world.watch.used()
    await until(lambda: world.looks >= 2)

    assert "inner-word" in caplog.text
    assert "inner-word" not in str(world.told)
    assert world.watch.is_running
    await world.watch.aclose()


async def test_a_notice_that_the_bus_refuses_keeps_no_other_back(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, the others are told, and the watch goes on without telling it for ever."""
    world = World(used_s=60)
    world.refuses = "orphan"
    world.shows = Sight(at_ms=0, orphans=(ORPHAN,), spent_today_nusd=1)
    world.watch.used()
    await until(lambda: world.looks >= 3)

    assert [notice.topic for notice in world.told] == ["broker", "cost"]
    assert caplog.text.count("the event bus refused a notice on orphan") == 1
    await world.watch.aclose()


async def test_the_first_who_asks_after_a_while_waits_for_no_turn() -> None:
    """Between the seldom looks of a watch that nobody asked, the first request is followed by a look at once."""
    world = World(used_s=0.02)
    world.watch._pace = Pace(refresh_s=600, used_s=0.02)
    world.shows = Sight(at_ms=0, orphans=(ORPHAN,))
    world.watch.used()
    await until(lambda: world.looks == 1)
    await until(lambda: not world.watch._is_used())
    world.watch.used()
    await until(lambda: world.looks == 2)
    await world.watch.aclose()


async def test_a_request_that_changes_something_is_followed_by_a_look_at_once() -> None:
    """Who rents sees the first state without waiting for the next turn."""
    world = World(used_s=600)
    world.watch._pace = Pace(refresh_s=600, used_s=600)
    world.watch.used()
    await until(lambda: world.looks == 1)
    world.watch.used(look_now=True)
    await until(lambda: world.looks == 2)
    await world.watch.aclose()


def test_it_looks_more_seldom_when_nobody_asks_and_ever_more_seldom_when_it_cannot() -> None:
    """Five times the pause; then doubling up to a minute."""
    pace = Pace(refresh_s=2, used_s=60)
    pauses = [pace.pause_s(is_used=True, failures=n) for n in range(40)]

    assert pace.pause_s(is_used=False, failures=0) == 10
    assert pauses[:4] == [2, 4, 8, 16]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
