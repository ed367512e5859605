"""Every trouble at every marketplace: through its own API, with the real engine, it ends with nothing rented."""

from __future__ import annotations

import asyncio
from functools import cache

import pytest

from jupyter_gpumarket.demo.markets import LINE_NUSD, LINES
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseState, Record
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.process import STAND_INS
from tests.simulator.light import Light, light

pytestmark = pytest.mark.timeout(120)
# Met by any call, so they are armed again for the release.
OF_ANY_CALL = frozenset({Fault.TOO_MANY_CALLS, Fault.SERVER_ERROR, Fault.MALFORMED})
# Only here the marketplace says beforehand that a machine will be taken away.
GIVES_NOTICE = frozenset({"akash"})
# These tell a rental's price on no reply, so that a dearer one shows on the bill alone.
PRICE_UNTOLD = frozenset({"dispersed"})
# What our own sight of a rental's begin and end may be off by.
SEEN_TO_S = 4


class Outcome(Record, frozen=True, kw_only=True):
    """How one trouble ended."""

    lease: Lease
    happened: bool
    left: list[str]
    ours_nusd: int
    theirs_nusd: int | None
    allowed_nusd: int


@cache
def outcomes(name: str) -> dict[Fault, Outcome | BaseException]:
    """All troubles of one marketplace, lived through at once: most of it is waiting."""

    async def all_of_them() -> list[Outcome | BaseException]:
        return list(await asyncio.gather(*(lived(name, fault) for fault in Fault), return_exceptions=True))

    return dict(zip(Fault, asyncio.run(all_of_them()), strict=True))


async def lived(name: str, fault: Fault) -> Outcome:
    async with light(name) as market:
        market.arm(fault, None if fault is Fault.WRONG_GPU else 1)
        lease = await market.reaches(await market.wish(), LeaseState.READY)
        happened = fault is Fault.WRONG_GPU or not market.faults.is_armed(fault)
        if fault is Fault.RECLAIMED:
            lease = await market.reaches(lease, *ENDED_STATES)
        if lease.state is LeaseState.READY:
            if fault in OF_ANY_CALL:
                market.arm(fault)
            await market.engine.release(lease.lease_id, "seen enough")
            lease = await market.reaches(lease, *ENDED_STATES)
        happened = happened or not market.faults.is_armed(fault)
        await market.all_ended()
        theirs = await market.theirs(lease) if market.market.capabilities.charges else None
        return Outcome(
            lease=lease,
            happened=happened,
            left=market.still_rented(),
            ours_nusd=market.ours_nusd(lease),
            theirs_nusd=None if theirs is None else sum(line.amount_nusd for line in theirs),
            allowed_nusd=allowed(market, lease),
        )


def allowed(market: Light, lease: Lease) -> int:
    """For each rental: what our sight is off by, one quantum of time, and what rounded lines make."""
    rentals = [*(a.offer for a in lease.attempts if a.rental_id), lease.offer if lease.rental_id else None]
    each = [o.price_nusd_hour * (o.billing.quantum_s + SEEN_TO_S) // 3600 for o in rentals if o is not None]
    return sum(each) + len(each) * LINES * LINE_NUSD.get(market.market.name, 0)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("name", STAND_INS)
def test_every_fault_ends_with_nothing_rented(name: str, fault: Fault) -> None:
    """It happens, the lease ends, nothing is rented, and our books are closed and near the marketplace's."""
    end = outcomes(name)[fault]
    if isinstance(end, BaseException):
        raise end
    assert end.happened
    assert end.lease.state is LeaseState.FAILED or "seen enough" in end.lease.reason
    if fault is Fault.WRONG_GPU:
        assert end.lease.state is LeaseState.FAILED
        assert all("not as sold" in attempt.reason for attempt in end.lease.attempts)
    if fault is Fault.RECLAIMED:
        assert end.lease.ready_ms is not None
        assert (end.lease.notice is not None) == (name in GIVES_NOTICE)
    if fault is Fault.DEARER and name not in PRICE_UNTOLD:
        assert "dearer than agreed" in end.lease.attempts[0].reason
    assert end.lease.state in ENDED_STATES
    assert end.left == []
    assert end.theirs_nusd is None or abs(end.ours_nusd - end.theirs_nusd) <= end.allowed_nusd, end
