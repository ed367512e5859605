"""What differs between two looks: pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_events import EventLogger

from jupyter_gpumarket.api import Alert, BudgetView, LeaseView, NodeView, Orphan
from jupyter_gpumarket.models import (
    Budget,
    Charge,
    ChargeKind,
    Lease,
    LeaseRequest,
    LeaseState,
    Offer,
    OfferQuery,
    Scope,
)
from jupyter_gpumarket.server.events import TOPICS, Bus, schema_id
from jupyter_gpumarket.server.sight import DAY_MS, Sight, midnight, notices, spent_since


def view(state: LeaseState = LeaseState.READY, *, seq: int = 1, cost: int = 0, **more: Any) -> LeaseView:
    request = LeaseRequest(request_id="r", query=OfferQuery(), budget_nusd=1000, max_s=60)
    lease = Lease(
        lease_id="l1", name="n", state=state, request=request, created_ms=0, changed_ms=0, price_nusd_hour=360
    )
    return LeaseView(lease=lease, seq=seq, cost_nusd=cost, boot_nusd=0, idle_nusd=0, worst_case_nusd=0, **more)


def budget(spent: int) -> BudgetView:
    return BudgetView(budget=Budget(scope=Scope.USER, key="ada", limit_nusd=1000), spent_nusd=spent, reserved_nusd=0)


def orphan(state: Any = "found") -> Orphan:
    return Orphan(marketplace="pool", rental_id="x" * 500, label="l", found_ms=0, state=state)


def alert() -> Alert:
    best = Offer(marketplace="vast", offer_id="o", machine_id="m", price_nusd_hour=5, seen_ms=0, gpu_raw="x" * 5000)
    return Alert(search="cheap H100", found_ms=1, offers=3, best=best)


def topics(before: Sight | None, now: Sight) -> list[str]:
    return [notice.topic for notice in notices(before, now)]


def line(start_ms: int, end_ms: int, amount: int) -> Charge:
    return Charge(
        charge_id="c", lease_id="l", kind=ChargeKind.IDLE, amount_nusd=amount, start_ms=start_ms, end_ms=end_ms
    )


def test_the_first_look_tells_all_and_the_same_again_tells_nothing() -> None:
    """Everything is news once."""
    sight = Sight(
        at_ms=1,
        leases=(view(cost=900),),
        budgets=(budget(2000),),
        orphans=(orphan(),),
        alerts=(alert(),),
        spent_today_nusd=5,
    )

    assert topics(None, sight) == ["lease", "budget", "budget", "orphan", "alert", "cost"]
    assert topics(sight, msgspec.structs.replace(sight, at_ms=2)) == []


@pytest.mark.parametrize(
    ("spent", "levels"), [(799, []), (800, ["warn"]), (999, ["warn"]), (1000, ["spent"]), (5000, ["spent"])]
)
def test_a_limit_is_told_at_80_and_at_100_percent(spent: int, levels: list[str]) -> None:
    """For budgets and for a lease's own limit alike."""
    of_budget = notices(Sight(at_ms=0), Sight(at_ms=1, budgets=(budget(spent),)))
    of_lease = notices(Sight(at_ms=0, leases=(view(),)), Sight(at_ms=1, leases=(view(cost=spent),)))

    assert [n.data["level"] for n in of_budget if n.topic == "budget"] == levels
    assert [(n.data["scope"], n.data["level"]) for n in of_lease] == [("lease", level) for level in levels]


def test_a_limit_is_told_again_only_when_it_gets_worse() -> None:
    """From warn to spent is news; more of the same is not; nor is a limit that was raised."""
    sights = [Sight(at_ms=i, budgets=(budget(spent),)) for i, spent in enumerate((850, 900, 1000, 1100, 100, 850))]
    told = [topics(a, b) for a, b in pairwise(sights)]

    assert told == [[], ["budget"], [], [], ["budget"]]


def test_the_end_of_a_lease_is_told() -> None:
    """A lease that is no longer listed is told with its last state."""
    before = Sight(at_ms=0, leases=(view(),))
    found = notices(before, Sight(at_ms=1, ended=(view(LeaseState.RELEASED, seq=2),)))

    assert [n.topic for n in found] == ["lease", "cost"]
    assert found[0].data["state"] == "released"
    assert not found[0].data["may_bill"]


def test_a_lost_link_is_told() -> None:
    """The node's link and what runs on it are part of what pages are told of."""
    up = view(node=NodeView(lease_id="l1", name="n", link="up"))
    lost = view(node=NodeView(lease_id="l1", name="n", link="lost"))

    assert topics(Sight(at_ms=0, leases=(up,)), Sight(at_ms=1, leases=(lost,))) == ["lease"]


def test_what_a_marketplace_says_is_bounded_and_every_notice_fits_its_schema() -> None:
    """Jupyter's own check takes every kind of notice, and a notice of another shape is refused."""
    logger = EventLogger()
    bus = Bus(logger)
    heard: list[dict[str, Any]] = []

    async def hear(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append(data)

    for topic in TOPICS:
        logger.add_listener(schema_id=schema_id(topic), listener=hear)
    sight = Sight(
        at_ms=1,
        leases=(view(cost=900),),
        budgets=(budget(2000),),
        orphans=(orphan(),),
        alerts=(alert(),),
        spent_today_nusd=5,
    )
    validated = [logger.schemas.validate_event(schema_id(n.topic), n.data) for n in notices(None, sight)]

    assert validated == [None] * 6
    with pytest.raises(Exception, match="Additional properties"):
        bus.tell(msgspec.structs.replace(notices(None, sight)[0], data={"more": 1}))


def test_only_what_may_bill_has_a_rate() -> None:
    """A wish and an ended lease cost nothing an hour."""
    assert Sight(at_ms=0, leases=(view(), view(LeaseState.WISHED))).rate_nusd_hour == 360


def test_an_orphan_keeps_the_watch_awake_until_it_is_gone() -> None:
    """What bills and nobody knows is a reason to look."""
    assert Sight(at_ms=0, orphans=(orphan(),)).is_renting
    assert not Sight(at_ms=0, orphans=(orphan("gone"),)).is_renting


def test_today_begins_at_midnight_utc() -> None:
    """The same day as in the reports."""
    assert midnight(5 * DAY_MS + 1) == midnight(6 * DAY_MS - 1) == 5 * DAY_MS


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**15)), max_size=20),
    st.integers(0, 2 * 10**6),
)
def test_what_was_spent_before_and_after_a_moment_adds_up(lines: list[tuple[int, int, int]], at_ms: int) -> None:
    """No line counts more than its amount, none of it is lost to a moment before all, none kept after all."""
    charges = [line(start, start + length, amount) for start, length, amount in lines]
    total = sum(amount for _, _, amount in lines)

    assert 0 <= spent_since(charges, at_ms) <= total
    assert spent_since(charges, 0) == total
    assert spent_since(charges, 3 * 10**6) == 0


def test_a_line_over_midnight_counts_by_its_time() -> None:
    """Three quarters of its time after midnight: three quarters of its amount."""
    assert spent_since([line(-25, 75, 400)], 0) == 300
