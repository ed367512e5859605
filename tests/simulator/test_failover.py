"""One rent over several marketplaces: what fails at one is found at the next, inside one budget."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.models import ENDED_STATES, LeaseState, OfferQuery
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from tests.simulator.light import lights

pytestmark = pytest.mark.timeout(100)


async def test_a_rent_goes_on_at_the_next_marketplace_within_one_budget() -> None:
    """Two markets fail, each in its own way; the third serves; each attempt is billed, and all from one budget."""
    async with lights("shadeform", "lium", "vast", hosts=1) as (first, second, third):
        first.arm(Fault.DIES_BOOTING)
        second.arm(Fault.SOLD_TWICE)
        lease = await first.wish(budget_nusd=usd("1"))
        ready = await first.reaches(lease, LeaseState.READY)
        await first.engine.release(ready.lease_id, "seen enough")
        ended = await first.reaches(ready, *ENDED_STATES)
        for market in (first, second, third):
            await market.all_ended()

        assert ended.state is LeaseState.RELEASED
        assert ended.offer is not None
        assert sorted(a.marketplace for a in ended.attempts) == ["lium", "shadeform"]
        assert ended.offer.marketplace == "vast"
        assert all(a.billed_to_ms is not None for a in ended.attempts if a.billed_from_ms is not None)
        assert 0 < first.ours_nusd(ended) < usd("1")


async def test_a_preempted_machine_is_a_normal_event() -> None:
    """A machine that is taken away before it is of use costs its seconds, and the next one is taken."""
    async with lights("vast", "lium", hosts=1) as (spot, other):
        spot.arm(Fault.PREEMPTED)
        other.arm(Fault.PREEMPTED)
        lease = await spot.reaches(await spot.wish(query=OfferQuery(gpu="L4")), LeaseState.READY)
        if lease.state is LeaseState.READY:
            await spot.engine.release(lease.lease_id, "seen enough")
        ended = await spot.reaches(lease, *ENDED_STATES)
        await spot.all_ended()
        await other.all_ended()

        assert {a.marketplace for a in ended.attempts} == {"vast", "lium"}
        assert ended.state is LeaseState.FAILED
        assert "tried" in ended.reason or "offer" in ended.reason
