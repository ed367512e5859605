"""Wishes for clusters: for which cluster one counts, and what was said before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.api import (
    Aim,
    ClusterView,
    ClusterWish,
    DaskView,
    DaskWish,
    DaskWorkerView,
    OfferList,
    OfferSearch,
)
from jupyter_gpumarket.broker.books import Books
from jupyter_gpumarket.broker.groups import Groups
from jupyter_gpumarket.errors import BudgetExceeded, JournalFull, LeaseError
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import (
    ENDED_STATES,
    CellRun,
    Lease,
    LeaseGoal,
    LeaseRequest,
    LeaseState,
    Notice,
    RunStatus,
)
from jupyter_gpumarket.money import usd
from tests.broker.fakes import StillClock, lease

T0 = 1_700_000_000_000


def wish(count: int, **more: Any) -> ClusterWish:
    return ClusterWish(aim=Aim(minimum=count, maximum=count), budget_nusd=usd("9"), max_s=3600, **more)


class World:
    """A journal, the clusters that are kept in it, and a market where all wishes for nodes come true."""

    def __init__(self, folder: Path) -> None:
        self.clock = StillClock(T0)
        self.journal = Journal.open(f"sqlite:///{folder / 'journal.sqlite'}", self.clock)
        self.restart()
        self.rented = 0
        self.seen: DaskView | None = None
        self.retired: list[str] = []
        self.most = 99
        self.stuck = ""
        self.is_sold_out = False

    def restart(self) -> None:
        """A broker that knows the journal alone."""
        books = Books(journal=self.journal, clock=self.clock)
        self.groups = Groups(store=self.journal, books=books, clusters=self, clock=self.clock)  # type: ignore[arg-type]

    def say_wish(self, **body: Any) -> None:
        """What another version of the broker wrote."""
        self.journal.append([NewEntry(kind="cluster.wished", subject="crew", body=body)])

    def put(self, one: Lease) -> None:
        self.journal.append([NewEntry(kind="lease.wished", subject=one.lease_id, rows=(one,))])

    async def wish(self, request: LeaseRequest) -> None:
        if self.rented >= self.most:
            raise BudgetExceeded("there is no money for it")
        self.rented += 1
        self.put(msgspec.structs.replace(lease(f"lease-{self.rented}"), request=request))

    async def release(self, named: str, reason: str) -> None:
        if named == self.stuck:
            raise JournalFull("no room")
        before = self.journal.lease(named)
        assert before is not None
        ended = {"state": LeaseState.RELEASED, "goal": LeaseGoal.RELEASED, "reason": reason}
        self.put(msgspec.structs.replace(before, **ended))

    async def offers(self, search: OfferSearch) -> OfferList:
        offer = lease().offer
        assert offer is not None
        return OfferList(offers=[] if self.is_sold_out else [offer], statuses=[])

    async def start_dask(self, one: Lease, asked: DaskWish) -> None: ...

    async def dask(self, one: Lease) -> DaskView | None:
        return self.seen

    async def retire(self, one: Lease, reason: str) -> None:
        self.retired.append(one.lease_id)

    async def look(self) -> None:
        await self.groups.look(self)  # type: ignore[arg-type]

    async def keep(self, asked: ClusterWish) -> ClusterView:
        return await self.groups.keep("crew", asked, self)  # type: ignore[arg-type]

    def open(self) -> int:
        return sum(one.state not in ENDED_STATES for one in self.journal.leases())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.journal.close()


async def test_a_wish_for_a_cluster_that_has_ended_rents_nothing(world: World) -> None:
    """Whether it was ended, its last node was given back a moment ago, or another one has its name: nothing changes."""
    first = await world.keep(wish(1))
    grown = await world.keep(wish(2, cluster_id=first.cluster_id))
    assert (grown.cluster_id, grown.wish.cluster_id, world.open()) == (first.cluster_id, "", 2)

    for one in grown.leases:
        await world.release(one.lease_id, "the user gave it back")
    with pytest.raises(LeaseError, match="given back"):
        await world.keep(wish(3, cluster_id=first.cluster_id))

    second = await world.keep(wish(1))
    assert second.cluster_id != first.cluster_id
    with pytest.raises(LeaseError, match="another cluster"):
        await world.keep(wish(3, cluster_id=first.cluster_id))
    assert (world.rented, world.open()) == (3, 1)
    assert world.groups.view("crew").wish == second.wish


async def test_a_lost_node_is_not_replaced_from_a_market_that_is_sold_out(world: World) -> None:
    """Nothing is rented only to fail, and the reason is told; as soon as there is an offer again, a node is rented."""
    await world.keep(wish(2))
    await world.look()
    world.is_sold_out = True
    lost = world.journal.lease("lease-2")
    assert lost is not None
    world.put(msgspec.structs.replace(lost, state=LeaseState.FAILED))
    world.clock.ms += 5000
    await world.look()
    assert world.rented == 2
    assert "no offer fits now" in world.groups.view("crew").decisions[-1].reasons

    world.is_sold_out = False
    world.clock.ms += 5000
    await world.look()
    assert world.rented == 3


async def test_a_node_that_was_given_back_before_a_wish_does_not_lessen_it(world: World) -> None:
    """Who gives one of three back and then asks for three has three, also when nobody looked between."""
    view = await world.keep(wish(3))
    await world.release(view.leases[0].lease_id, "the user gave it back")

    again = await world.keep(wish(3, cluster_id=view.cluster_id))
    assert (again.wish.aim.minimum, len(again.leases)) == (3, 3)


async def test_giving_back_a_node_that_is_about_to_leave_ends_no_other(world: World) -> None:
    """It was not counted any more, so the cluster stays as large as was asked, with the one that came in its place."""
    view = await world.keep(wish(2))
    soon = Notice(ends_ms=T0 + 60_000, reason="reclaimed", source="marketplace")
    world.put(msgspec.structs.replace(view.leases[0], notice=soon))
    run = CellRun(run_id="r", lease_id=view.leases[0].lease_id, session="main", status=RunStatus.OK)
    world.journal.append([NewEntry(kind="run.x", subject="r", rows=(run,))])
    await world.look()
    assert world.open() == 3

    await world.release(view.leases[0].lease_id, "the user gave it back")
    await world.look()
    assert (world.groups.view("crew").wish.aim.minimum, world.open()) == (2, 2)


async def test_a_new_cluster_that_is_refused_is_not_kept(world: World) -> None:
    """Told that the money does not do for all of it, nobody pays for the nodes that came first, nor for later ones."""
    world.most = 1
    with pytest.raises(BudgetExceeded):
        await world.keep(wish(2))

    world.most = 99
    await world.look()
    assert (world.rented, world.open(), world.groups.has_work()) == (1, 0, False)


async def test_one_node_that_cannot_be_given_back_keeps_no_other(world: World) -> None:
    """Ending a cluster asks for the end of each node, and then tells what went wrong; it may be said again."""
    view = await world.keep(wish(3))
    world.stuck = view.leases[0].lease_id
    with pytest.raises(JournalFull):
        await world.groups.end("crew", world)  # type: ignore[arg-type]
    assert world.open() == 1

    world.stuck = ""
    assert (await world.groups.end("crew", world)).leases == ()  # type: ignore[arg-type]


async def test_what_was_decided_before_a_restart_is_carried_out_after_it(world: World) -> None:
    """A node that was to go is not counted again, nor cut off: its workers hand over, and then it is given back."""
    first = await world.keep(wish(2, dask=DaskWish()))
    workers = tuple(DaskWorkerView(name=one.name, lease_id=one.lease_id, state="running") for one in first.leases)
    world.seen = DaskView(state="running", head=first.leases[0].lease_id, workers=workers)
    await world.keep(wish(1, dask=DaskWish()))
    going = first.leases[1].lease_id
    assert (world.retired, world.open()) == ([going], 2)

    world.restart()
    await world.keep(wish(2, dask=DaskWish()))
    await world.look()
    assert (world.retired, world.open(), world.rented) == ([going, going], 3, 3), "asked again, and counted no more"

    world.seen = msgspec.structs.replace(
        world.seen, workers=(workers[0], msgspec.structs.replace(workers[1], state="retired"))
    )
    for _ in range(2):
        await world.look()
    assert {one.lease_id for one in world.groups.view("crew").leases} == {"lease-1", "lease-3"}


async def test_a_node_that_was_to_go_before_a_restart_goes_where_nobody_can_be_asked(world: World) -> None:
    """While Dask is not to be seen there is a time in which it is waited for, and an end of it."""
    first = await world.keep(wish(2, dask=DaskWish()))
    workers = tuple(DaskWorkerView(name=one.name, lease_id=one.lease_id, state="running") for one in first.leases)
    world.seen = DaskView(state="running", head=first.leases[0].lease_id, workers=workers)
    await world.keep(wish(1, dask=DaskWish()))
    world.seen = None
    world.restart()
    await world.look()
    assert world.open() == 2

    world.clock.ms += 61_000
    await world.look()
    assert world.open() == 1


async def test_a_wish_of_a_newer_version_is_kept_without_what_is_not_known(world: World) -> None:
    """Fields that this version does not know, also deep in a wish, keep no broker from starting."""
    view = await world.keep(wish(2, dask=DaskWish(nthreads=3)))
    newer = msgspec.to_builtins(view.wish)
    newer |= {"colour": "red", "aim": {**newer["aim"], "shape": 1}, "dask": {**newer["dask"], "taste": []}}
    newer["query"] |= {"smell": 1}
    world.say_wish(cluster_id=view.cluster_id, wish=newer)
    world.restart()

    await world.look()
    assert world.groups.view("crew").wish == view.wish
    assert (world.open(), world.rented, world.groups.troubles()) == (2, 2, [])


@pytest.mark.parametrize(
    ("body", "is_known_before"),
    [
        ({"cluster_id": "crew-00000001", "wish": {"aim": "many"}}, True),
        ({"cluster_id": "crew-00000001", "wish": {"aim": "many"}}, False),
        ({}, True),
        ({}, False),
    ],
)
async def test_a_wish_that_cannot_be_read_leaves_a_cluster_that_can_be_ended(
    world: World, body: dict[str, Any], is_known_before: bool
) -> None:
    """Its nodes are shown with the trouble, none is rented or given back, and it counts again once it is said anew."""
    if is_known_before:
        known = msgspec.to_builtins(wish(2))
        world.say_wish(cluster_id="crew-00000001", wish=known)
    for number in (1, 2):
        one = lease(f"old-{number}")
        world.put(msgspec.structs.replace(one, request=msgspec.structs.replace(one.request, cluster="crew-00000001")))
    world.say_wish(**body)
    world.journal.append([NewEntry(kind="cluster.ended", subject="who?"), NewEntry(kind="cluster.decided", subject="")])
    world.restart()

    await world.release("old-2", "the user gave it back")
    await world.look()
    (view,) = world.groups.views()
    assert (view.cluster_id, [one.lease_id for one in view.leases]) == ("crew-00000001", ["old-1"])
    assert (world.rented, world.open()) == (0, 1)
    (trouble,) = world.groups.troubles()
    assert trouble in view.notices
    assert "crew" in trouble
    assert not world.groups.has_work()

    world.restart()
    await world.keep(wish(2, cluster_id="crew-00000001"))
    assert (world.open(), world.groups.troubles()) == (2, [])
    world.restart()
    await world.groups.end("crew", world)  # type: ignore[arg-type]
    assert (world.open(), world.groups.troubles()) == (0, [])


async def test_the_end_that_was_meant_for_a_former_cluster_ends_no_other(world: World) -> None:
    """Whoever names the cluster that is meant ends that one alone; it may be said again."""
    first = await world.keep(wish(1))
    await world.groups.end("crew", world, first.cluster_id)  # type: ignore[arg-type]
    await world.groups.end("crew", world, first.cluster_id)  # type: ignore[arg-type]
    second = await world.keep(wish(1))

    with pytest.raises(LeaseError, match="another cluster"):
        await world.groups.end("crew", world, first.cluster_id)  # type: ignore[arg-type]
    assert world.open() == 1
    assert (await world.groups.end("crew", world, second.cluster_id)).is_ended  # type: ignore[arg-type]
