"""Where the Dask dashboard of a cluster listens on this machine, for clusters whose pages may be let in.

A page that comes through the Jupyter server acts as whoever opens it: it has the server's origin. So only nodes that
the user has called their own are let in; of strangers' nodes `/gpumarket/clusters/NAME` tells the same facts as JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from jupyter_gpumarket import config
from jupyter_gpumarket.api import ClusterView
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import LeaseState
from jupyter_gpumarket.server.door import Door

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient

# A page loads a dozen files at once; whether its cluster is still trusted is asked again after so long.
REMEMBER_S = 3.0
REACHABLE = (LeaseState.READY, LeaseState.UNREACHABLE)


def refusal(view: ClusterView, own: Collection[str]) -> str:
    """Why the dashboard of this cluster is not shown; empty when it may be. `own`: the user's own marketplaces."""
    name = view.name
    if not view.is_trusted(own):
        return (
            f"{name} runs on machines of strangers, and a page of theirs would act as you here, so it is not let in; "
            f"`%gpu cluster status` and /gpumarket/clusters/{name} tell the same facts"
        )
    if view.dask is None or view.dask.state != "running":
        return f"the Dask scheduler of {name} does not run at the moment"
    if view.wish.dask is None or not view.wish.dask.dashboard:
        return f"{name} was rented without a dashboard"
    return ""


class Dashboards:
    """Finds them through the broker and the cluster processes."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._known: dict[str, tuple[float, str]] = {}
        # By cluster, while somebody asks: one that answers slowly holds up nobody who looks at another one.
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, name: str) -> str:
        """Host and port on this machine's loopback.

        Raises:
            BadRequest: there is no such cluster, or its pages are not let in; says why.
            BrokerUnavailable: nobody can be asked.
        """
        asking = self._asking.setdefault(name, asyncio.Lock())
        async with asking:
            until_s, place = self._known.get(name, (0.0, ""))
            if time.monotonic() >= until_s:
                self._known.pop(name, None)
                place = await self._door.call(lambda broker: self._ask(broker, name))
                self._known[name] = (time.monotonic() + REMEMBER_S, place)
            return place

    def forget(self, name: str) -> None:
        """What was found does not answer."""
        self._known.pop(name, None)

    async def _ask(self, broker: AsyncClient, name: str) -> str:
        view = await broker.cluster_view(name)
        if reason := refusal(view, config.load_settings(self._door.folders).trust):
            raise BadRequest(reason)
        lease = next((lease for lease in view.leases if lease.state in REACHABLE), None)
        if lease is None:
            raise BadRequest(f"no node of {name} is ready")
        cluster = await broker.cluster(lease.lease_id)
        try:
            access = await cluster.dask_access()
        finally:
            await cluster.aclose()
        return urlsplit(access.dashboard).netloc
