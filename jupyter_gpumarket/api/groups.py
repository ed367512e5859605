"""A cluster of rented nodes as the broker keeps it: how many, within which limits, and why it does what it does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from msgspec import Meta

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.api.dask import DaskView, DaskWish
from jupyter_gpumarket.models import Lease, OfferQuery, Owner, Record

Nodes = Annotated[int, Meta(ge=0, le=1000)]
Seconds = Annotated[float, Meta(ge=1, le=86_400)]


class Aim(Request, frozen=True, kw_only=True):
    """How many nodes. Equal `minimum` and `maximum` are a fixed number; else the queue decides between them.

    `max_nusd_hour` limits what all nodes cost together per hour. `finish_by_ms`: by when the work should be done.
    A new node has to have `least_work_s` of the waiting work, or it is not worth its boot; a node has to have had
    nothing to do for `idle_s` before it goes, for Dask hands tasks out in bursts; between a step in one direction and
    one in the other `steady_s` pass.
    """

    minimum: Nodes
    maximum: Nodes
    max_nusd_hour: int | None = None
    finish_by_ms: int | None = None
    least_work_s: Seconds = 60.0
    idle_s: Seconds = 30.0
    steady_s: Seconds = 120.0


class ClusterWish(Request, frozen=True, kw_only=True):
    """PUT /v1/clusters/{name}: have a cluster of this name. `budget_nusd` is for all of its nodes together, ended ones
    included; `max_s` is how long each node may live at most. The same again with another `aim` scales it.

    `cluster_id`: only if this is the living cluster of the name; else nothing is changed or rented. A caller that has
    looked at a cluster before means that one, and it may have ended since. Empty: have one, whichever it is.
    """

    aim: Aim
    query: OfferQuery = OfferQuery()
    budget_nusd: int
    max_s: int
    owner: Owner = Owner()
    trusted: bool = False
    grace_s: int = 900
    dask: DaskWish | None = None
    cluster_id: str = ""


class Decision(Record, frozen=True, kw_only=True):
    """What the broker decided about a cluster's size, and why. `grow` nodes more; `release` names leases."""

    at_ms: int = 0
    grow: int = 0
    release: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class ClusterView(Record, frozen=True, kw_only=True):
    """GET /v1/clusters/{name}. `spent_nusd` is what its nodes have cost so far, ended ones included."""

    name: str
    cluster_id: str
    wish: ClusterWish
    leases: tuple[Lease, ...]
    spent_nusd: int
    rate_nusd_hour: int
    is_ended: bool = False
    dask: DaskView | None = None
    decisions: tuple[Decision, ...] = ()
    notices: tuple[str, ...] = ()

    def is_trusted(self, own: Collection[str]) -> bool:
        """Whether the user has called all its nodes their own: by the wish, or as machines of these marketplaces."""
        places = {lease.offer.marketplace for lease in self.leases if lease.offer is not None}
        return self.wish.trusted or (bool(places) and places <= set(own))
