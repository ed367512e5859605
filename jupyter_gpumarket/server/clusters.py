"""What a page may do to a cluster or a map: another size, its end, the end of a map.

Each names the cluster's id beside its name: a page that slept must not change, or worse revive, another cluster that
was given the name since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jupyter_gpumarket.api import Aim, ClusterView, MapView, Request
from jupyter_gpumarket.server.fanout import ClusterNow, cluster_now

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient
    from jupyter_gpumarket.server.door import Door


class ClusterAim(Request, frozen=True, kw_only=True):
    """POST /gpumarket/clusters/{cluster}/aim: how many nodes, within which limits. `budget_nusd` of None: as it is.

    Raising the number or the budget spends: nodes are rented, within the one budget of the cluster.
    """

    cluster_id: str
    aim: Aim
    budget_nusd: int | None = None


class ClusterEnd(Request, frozen=True, kw_only=True):
    """POST /gpumarket/clusters/{cluster}/release: give all nodes of the cluster back."""

    cluster_id: str


class MapStop(Request, frozen=True, kw_only=True):
    """POST /gpumarket/maps/{map}/stop: end a map's workers. `lease`: by which its cluster process is reached."""

    lease: str


async def change_aim(door: Door, name: str, asked: ClusterAim) -> ClusterNow:
    """Another size for a living cluster.

    Raises:
        LeaseError: the cluster has ended, or is another one than was meant.
        BadRequest: no such cluster, or an aim that cannot be.
    """

    async def ask(broker: AsyncClient) -> ClusterView:
        view = await broker.cluster_view(name)
        wish = msgspec.structs.replace(view.wish, aim=asked.aim, cluster_id=asked.cluster_id)
        if asked.budget_nusd is not None:
            wish = msgspec.structs.replace(wish, budget_nusd=asked.budget_nusd)
        return await broker.keep_cluster(name, wish)

    return cluster_now(await door.call(ask))


async def end_cluster(door: Door, name: str, asked: ClusterEnd) -> ClusterNow:
    """Give a whole cluster back.

    Raises:
        LeaseError: it is another cluster than was meant.
        BadRequest: no such cluster.
    """

    async def ask(broker: AsyncClient) -> ClusterView:
        return await broker.end_cluster(name, asked.cluster_id)

    return cluster_now(await door.call(ask))


async def stop_map(door: Door, map_id: str, asked: MapStop) -> MapView:
    """End a map; what has ended of it is kept, and it can be resumed.

    Raises:
        BadRequest: no such lease or map. Unreachable: the cluster process does not answer.
    """

    async def ask(broker: AsyncClient) -> MapView:
        process = await broker.cluster(asked.lease)
        try:
            return await process.stop_map(map_id)
        finally:
            await process.aclose()

    return await door.call(ask)
