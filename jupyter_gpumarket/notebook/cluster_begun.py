"""What is taken back when a cluster's beginning fails: what was begun, and nothing that was there before."""

from __future__ import annotations

import contextlib

import msgspec

from jupyter_gpumarket.api import ClusterView
from jupyter_gpumarket.client import AsyncClient
from jupyter_gpumarket.errors import BadRequest


async def living(client: AsyncClient, name: str) -> ClusterView | None:
    """The cluster of this name that is there already; None where there is none."""
    with contextlib.suppress(BadRequest):
        view = await client.cluster_view(name)
        return None if view.is_ended else view
    return None


async def take_back(client: AsyncClient, name: str, before: ClusterView | None) -> None:
    """End what was begun; a cluster that was there before has its former wish again.

    Raises:
        GpuMarketError: the broker cannot be asked, or there is no such cluster any more.
    """
    if before is None:
        await client.end_cluster(name)
    else:
        await client.keep_cluster(name, msgspec.structs.replace(before.wish, cluster_id=before.cluster_id))
