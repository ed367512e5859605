"""Cells of a notebook whose nodes are a Dask cluster: they go to the head, where `client` is."""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_gpumarket.api import ClusterView, DaskView, LeaseView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.errors import BadRequest, GpuMarketError
from jupyter_gpumarket.models import Lease
from jupyter_gpumarket.notebook.forecast import GraphForecast
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.stage import Stage

HEAD_PATIENCE_S = 90.0
POLL_S = 0.5


class Heads:
    """Finds the head for a cell, and tells when it is another one than before."""

    def __init__(self, notebook: Notebook, stage: Stage) -> None:
        self._notebook = notebook
        self._stage = stage
        self._told: dict[str, tuple[int, str]] = {}
        self._seen: dict[str, tuple[DaskView, list[Lease]]] = {}

    def for_cell(self, lease: Lease, views: Sequence[LeaseView]) -> Lease:
        """The head of the lease's cluster, where Dask runs on one; else the lease itself."""
        cluster = lease.request.cluster
        if not cluster:
            return lease
        dask = self._dask(lease)
        if dask is None or dask.state == "off":
            return lease
        dask = self._running(lease, dask)
        head = next((view.lease for view in views if view.lease.lease_id == dask.head), None)
        if head is None:
            return lease
        self._tell(cluster, head, dask)
        self._seen[head.lease_id] = (dask, [view.lease for view in views if view.lease.request.cluster == cluster])
        return head

    def forecast(self, lease: Lease) -> GraphForecast | None:
        """For a cell on this node: tells of what Dask is given from now on; None where no scheduler runs."""
        seen = self._seen.get(lease.lease_id)
        return None if seen is None else GraphForecast(seen[0].tasks.graph, seen[1])

    def _running(self, lease: Lease, dask: DaskView) -> DaskView:
        """Dask once its scheduler runs; after some time, as it is."""
        clock = self._notebook.clock
        deadline_s = clock.monotonic_s() + HEAD_PATIENCE_S
        if dask.state != "running":
            self._stage.say("waiting for the Dask scheduler")
        while dask.state != "running" and clock.monotonic_s() < deadline_s:
            self._notebook.pause(POLL_S)
            dask = self._dask(lease) or dask
        return dask

    def _dask(self, lease: Lease) -> DaskView | None:
        try:
            return self._notebook.cluster(lease.lease_id).dask()
        except GpuMarketError:
            return None

    def _tell(self, cluster: str, head: Lease, dask: DaskView) -> None:
        before = self._told.get(cluster)
        self._told[cluster] = (dask.generation, head.lease_id)
        if before is None or before == (dask.generation, head.lease_id):
            return
        for notice in dask.notices[-2:]:
            self._stage.say(one_line(notice, 500))
        if before[1] != head.lease_id:
            self._stage.say(
                f"{one_line(head.name)} is the head now ({one_line(dask.head_reason, 200)}); variables of the session "
                "on the former head are not there"
            )


def own_cluster(notebook: Notebook, name: str | None) -> ClusterView:
    """The named cluster, or this notebook's.

    Raises:
        BadRequest: there is none, or more than one.
    """
    if name:
        return notebook.client.cluster_view(name)
    own = notebook.owner()
    views = [view for view in notebook.client.clusters() if not view.is_ended]
    used = [view for view in views if any(notebook.was_mine(lease, own) for lease in view.leases)]
    if len(used) == 1:
        return used[0]
    if not used:
        raise BadRequest("this notebook has no cluster; `%gpu cluster 4 --budget 10` rents one of four nodes")
    raise BadRequest(f"this notebook has {len(used)} clusters ({', '.join(v.name for v in used)}): tell --name")
