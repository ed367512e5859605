"""GET /gpumarket/fanout: clusters, what Dask does on them, and maps, as of one moment, in one answer.

A page asks this while somebody looks at what runs. Like `now` it starts no broker. Clusters come from the broker, maps
from each cluster process by a connection that is kept between looks; one process that does not answer hides no other.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jupyter_gpumarket.api import (
    MAP_SESSION,
    Aim,
    ClusterView,
    DaskView,
    Decision,
    LeaseView,
    MapState,
    MapView,
    RunCost,
    map_of_run,
)
from jupyter_gpumarket.errors import BrokerUnavailable, GpuMarketError
from jupyter_gpumarket.models import LeaseState, Record
from jupyter_gpumarket.server.door import Door

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient
    from jupyter_gpumarket.client.cluster import AsyncClusterClient

# A map that has ended is shown for so long, so that who looked away sees how.
RECENT_MS = 10 * 60 * 1000
MAX_DECISIONS = 20
# A cluster process answers from memory; one that takes longer is in trouble, and the others are not to wait for it.
PROCESS_PATIENCE_S = 5.0
# Costs of so many newest cell runs are read, to find those of the maps among them.
MAX_RUNS = 500
REACHED = frozenset({LeaseState.READY, LeaseState.UNREACHABLE})


class ClusterNow(Record, frozen=True, kw_only=True):
    """A cluster without what /gpumarket/now tells of its leases. `leases` are the open ones' ids, `nodes` those ready.

    `spent_nusd` counts ended leases too; `budget_nusd` is for all of them together. Newest decision last.
    """

    name: str
    cluster_id: str
    aim: Aim
    budget_nusd: int
    spent_nusd: int
    rate_nusd_hour: int
    leases: tuple[str, ...]
    nodes: int
    is_ended: bool
    dask: DaskView | None
    decisions: tuple[Decision, ...]
    notices: tuple[str, ...]


class MapNow(Record, frozen=True, kw_only=True):
    """A map, the lease by which its cluster process is reached, and what it has cost so far, all rounds together."""

    lease: str
    map: MapView
    spent_nusd: int


class FanOut(Record, frozen=True, kw_only=True):
    """Clusters and maps. With `is_up` false nobody could be asked. `troubles` tells whose maps could not be read."""

    at_ms: int
    is_up: bool
    clusters: tuple[ClusterNow, ...] = ()
    maps: tuple[MapNow, ...] = ()
    troubles: tuple[str, ...] = ()


class _Processes:
    """Connections to the cluster processes of one broker, kept from look to look."""

    def __init__(self) -> None:
        self._broker: AsyncClient | None = None
        self._kept: dict[str, AsyncClusterClient] = {}

    async def maps(self, broker: AsyncClient, leases: list[LeaseView]) -> tuple[list[MapNow], list[str]]:
        """All maps that the processes of these leases know, and what went wrong."""
        by_process = {view.lease.cluster_id: view for view in leases if view.lease.state in REACHED}
        await self._forget(broker, set(by_process))
        found = await asyncio.gather(*(self._maps_of(broker, view) for view in by_process.values()))
        return [one for maps, _ in found for one in maps], [trouble for _, trouble in found if trouble]

    async def aclose(self) -> None:
        """Close all."""
        self._broker, kept, self._kept = None, self._kept, {}
        for process in kept.values():
            await process.aclose()

    async def _forget(self, broker: AsyncClient, wanted: set[str]) -> None:
        """A connection finds its process again through the broker that it came from: another broker, other ones."""
        if self._broker is not broker:
            await self.aclose()
            self._broker = broker
        for name in set(self._kept) - wanted:
            await self._kept.pop(name).aclose()

    async def _maps_of(self, broker: AsyncClient, view: LeaseView) -> tuple[list[MapNow], str]:
        lease = view.lease
        try:
            async with asyncio.timeout(PROCESS_PATIENCE_S):
                if lease.cluster_id not in self._kept:
                    self._kept[lease.cluster_id] = await broker.cluster(lease.lease_id)
                maps = await self._kept[lease.cluster_id].maps()
        except TimeoutError:
            return [], f"{lease.name}: its cluster process takes long to answer"
        except GpuMarketError as error:
            return [], f"{lease.name}: {error}"
        return [MapNow(lease=lease.lease_id, map=one, spent_nusd=0) for one in maps], ""


class _Glance:
    """Looks through one door. Pages that ask at the same time share one look."""

    def __init__(self) -> None:
        self._processes = _Processes()
        self._looking: asyncio.Task[FanOut] | None = None

    async def look(self, door: Door) -> FanOut:
        """What there is now."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._once(door), name="gpumarket-fanout")
            self._looking.add_done_callback(self._looked)
        # A page that goes away must not take the others' look with it.
        return await asyncio.shield(self._looking)

    async def aclose(self) -> None:
        """End a look that is under way, and close what was kept."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._processes.aclose()

    def _looked(self, task: asyncio.Task[FanOut]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # whoever still waits is told; that nobody does is no error

    async def _once(self, door: Door) -> FanOut:
        try:
            return await door.quiet.call(self._ask)
        except BrokerUnavailable:
            return FanOut(at_ms=_now_ms(), is_up=False)

    async def _ask(self, broker: AsyncClient) -> FanOut:
        clusters, leases = await asyncio.gather(broker.clusters(), broker.leases(nodes=False))
        maps, troubles = await self._processes.maps(broker, leases)
        at_ms = _now_ms()
        return FanOut(
            at_ms=at_ms,
            is_up=True,
            clusters=tuple(cluster_now(view) for view in clusters),
            maps=tuple(await _with_costs(broker, [one for one in maps if is_shown(one.map, at_ms)])),
            troubles=tuple(troubles),
        )


_GLANCES: WeakKeyDictionary[Door, _Glance] = WeakKeyDictionary()


async def look(door: Door) -> FanOut:
    """What there is now; starts no broker."""
    return await _GLANCES.setdefault(door, _Glance()).look(door)


async def close(door: Door) -> None:
    """Close what was kept for a door."""
    glance = _GLANCES.pop(door, None)
    if glance is not None:
        await glance.aclose()


def is_shown(view: MapView, now_ms: int) -> bool:
    """Whether a map runs, or ended a short while ago."""
    return view.state is MapState.RUNNING or (view.ended_ms or view.began_ms) > now_ms - RECENT_MS


def cluster_now(view: ClusterView) -> ClusterNow:
    """A cluster as the page needs it."""
    return ClusterNow(
        name=view.name,
        cluster_id=view.cluster_id,
        aim=view.wish.aim,
        budget_nusd=view.wish.budget_nusd,
        spent_nusd=view.spent_nusd,
        rate_nusd_hour=view.rate_nusd_hour,
        leases=tuple(lease.lease_id for lease in view.leases),
        nodes=sum(lease.state in REACHED for lease in view.leases),
        is_ended=view.is_ended,
        dask=view.dask,
        decisions=view.decisions[-MAX_DECISIONS:],
        notices=view.notices,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _with_costs(broker: AsyncClient, maps: list[MapNow]) -> list[MapNow]:
    if not maps:
        return []
    spent = spent_by_map(await broker.runs(limit=MAX_RUNS))
    return [MapNow(lease=one.lease, map=one.map, spent_nusd=spent[one.map.map_id]) for one in maps]


def spent_by_map(costs: Sequence[RunCost]) -> Counter[str]:
    """What cell runs of maps have cost, by map: also those of nodes that left, and of rounds before it was resumed."""
    spent: Counter[str] = Counter()
    for cost in costs:
        if cost.run.session == MAP_SESSION:
            spent[map_of_run(cost.run.run_id)] += cost.amount_nusd
    return spent
