"""Notices: that a node will end soon is kept, passed on, taken back, and never changes what the lease is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from jupyter_gpumarket.api import LinkBack, LinkLost, NodeLeaving
from jupyter_gpumarket.leases import Policy, machine, terms
from jupyter_gpumarket.models import HEED_DEADLINE_MS, HEED_NOTICE_MS, Lease, LeaseState, Notice
from tests.leases.fakes import QUICK, Bench, FakeMarket, request
from tests.leases.test_faults import JumpingClock, ready, running
from tests.leases.test_machine import EVENT, NOW_MS, lease_in

S = LeaseState
POLICY = Policy()


class Telling(FakeMarket):
    """A marketplace whose rentals all get the same notice."""

    ends_ms: int | None = None
    looks = 0

    async def rental(self, rental_id: str) -> object:  # type: ignore[override]
        self.looks += 1
        found = await super().rental(rental_id)
        return msgspec.structs.replace(found, ends_ms=self.ends_ms, ends_why="reclaimed")


async def until(bench: Bench, lease: Lease, holds: Callable[[Lease], bool]) -> Lease:
    async with asyncio.timeout(5):
        while not holds(now := bench.engine.current(lease.lease_id)):
            await asyncio.sleep(0.005)
    return now


async def test_a_marketplaces_notice_is_passed_on_and_can_be_taken_back() -> None:
    """The lease stays ready; the cluster process is told once for each word, and that all is clear again."""
    market = Telling()
    async with running(Bench(market=market)) as bench:
        lease = await ready(bench)
        market.ends_ms = bench.clock.now_ms() + 60_000
        told = await until(bench, lease, lambda now: now.notice is not None)
        seen = market.looks
        await until(bench, lease, lambda _: market.looks > seen + 3)
        market.ends_ms = None
        clear = await until(bench, lease, lambda now: now.notice is None)
        await until(bench, lease, lambda _: "all clear" in bench.clusters.calls)

    assert (told.state, clear.state) == (S.READY, S.READY)
    assert told.notice is not None
    assert (told.notice.source, told.notice.reason) == ("marketplace", "reclaimed")
    assert bench.clusters.calls.count("warn") == 1


async def test_the_own_deadline_is_told_before_and_forgotten_when_it_moves() -> None:
    """Near its end a lease has a notice of its own; more hours take that away."""
    clock = JumpingClock()
    async with running(Bench(clock=clock)) as bench:
        lease = await ready(bench, max_s=3600)
        clock.jump_ms = (3600 - 200) * 1000
        near = await until(bench, lease, lambda now: now.notice is not None)
        await bench.engine.extend(lease.lease_id, max_s=7200)
        longer = bench.engine.current(lease.lease_id)

    assert near.notice is not None
    assert (near.notice.source, near.notice.ends_ms) == ("deadline", near.deadline_ms)
    assert longer.notice is None


async def test_outputs_are_saved_before_a_node_goes_unless_it_is_gone() -> None:
    """A release leaves time for that; a rental that the marketplace has ended already does not."""
    policy = msgspec.structs.replace(QUICK, save_s=3)
    async with running(Bench(policy=policy)) as bench:
        lease = await ready(bench)
        await bench.engine.release(lease.lease_id, "done")
        await bench.reaches(lease.lease_id, S.RELEASED)
        released = bench.clusters.saved_s
        other = await bench.reaches((await bench.engine.wish(request(2))).lease_id, S.READY)
        bench.market.live.clear()
        await bench.reaches(other.lease_id, S.FAILED)

    assert (released, bench.clusters.saved_s) == (3, 0)


def test_of_several_notices_the_earliest_end_counts() -> None:
    """A node that is shut down now is not saved by a marketplace that takes it back in an hour."""
    late = Notice(ends_ms=NOW_MS + 3_600_000, reason="reclaimed", source="marketplace")
    lease = lease_in(S.READY, notice=late, deadline_ms=NOW_MS + 7_200_000)
    leaving = NodeLeaving(lease_id="lease-1", at_ms=NOW_MS, ends_ms=NOW_MS + 5_000, reason="SIGTERM")
    after, _ = machine.advance(lease, leaving, POLICY, NOW_MS)
    again, told = machine.advance(after, msgspec.structs.replace(leaving, ends_ms=2**50), POLICY, NOW_MS)

    assert after.notice == Notice(ends_ms=NOW_MS + 5_000, reason="SIGTERM", source="node")
    assert again.notice is not None
    assert again.notice.ends_ms == NOW_MS + 7_200_000, "a node's word is kept within its lease"
    assert told != ()


def test_a_strangers_words_are_made_fit_to_be_shown() -> None:
    """Escape sequences, line breaks and floods of text in a reason go no further."""
    said = NodeLeaving(lease_id="lease-1", at_ms=NOW_MS, ends_ms=NOW_MS, reason="\x1b[2Jgone\n" + "x" * 9999)
    after, _ = machine.advance(lease_in(S.READY, deadline_ms=NOW_MS + 1), said, POLICY, NOW_MS)

    assert after.notice is not None
    assert after.notice.reason.startswith(" [2Jgone x")
    assert len(after.notice.reason) == 500


def test_a_node_that_is_back_after_its_farewell_stays() -> None:
    """It was started anew: what it said before it went does not hold any more."""
    said = Notice(ends_ms=NOW_MS, reason="SIGTERM", source="node")
    lost, _ = machine.advance(
        lease_in(S.READY, notice=said), LinkLost(lease_id="lease-1", at_ms=NOW_MS, reason=""), POLICY, NOW_MS
    )
    back = LinkBack(lease_id="lease-1", at_ms=NOW_MS, same_boot=False)
    same = msgspec.structs.replace(back, same_boot=True)

    assert machine.advance(lost, back, POLICY, NOW_MS)[0].notice is None
    assert machine.advance(lost, same, POLICY, NOW_MS)[0].notice == said


@pytest.mark.parametrize(("hours", "given_back_s", "near_s"), [(1.0, 12, 300), (1 / 60, 6, 6)])
def test_a_lease_ends_a_moment_before_its_deadline(hours: float, given_back_s: int, near_s: int) -> None:
    """Time to bring outputs over is inside of what was agreed, and small beside it."""
    begun = lease_in(S.READY)
    lease = lease_in(S.READY, deadline_ms=begun.phases[S.RENTING] + round(hours * 3_600_000))
    assert lease.deadline_ms is not None

    assert lease.deadline_ms - terms.give_back_ms(lease) == given_back_s * 1000
    assert lease.deadline_ms - terms.near_ms(lease) == near_s * 1000


@pytest.mark.parametrize(
    ("source", "left_ms", "due"),
    [
        ("marketplace", HEED_NOTICE_MS, True),
        ("marketplace", HEED_NOTICE_MS + 1, False),
        ("deadline", HEED_DEADLINE_MS, True),
        ("deadline", HEED_DEADLINE_MS + 1, False),
    ],
)
def test_a_notice_is_heeded_when_it_is_near(source: str, left_ms: int, due: bool) -> None:
    """A machine that has a day left is used; what nobody replaces is used nearly to its end."""
    notice = Notice(ends_ms=NOW_MS + left_ms, reason="", source=source)  # type: ignore[arg-type]

    assert notice.is_due(NOW_MS) is due


def test_gone_after_a_notice_is_still_proof_of_the_end() -> None:
    """What was announced happens: the lease ends with the marketplace's word, and the notice stays in its story."""
    said = Notice(ends_ms=NOW_MS, reason="reclaimed", source="marketplace")
    after, _ = machine.advance(lease_in(S.READY, notice=said), EVENT["rental_seen gone"], POLICY, NOW_MS)

    assert (after.state, after.notice) == (S.DRAINING, said)
