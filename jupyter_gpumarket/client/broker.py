"""The broker's routes as async methods."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote

from jupyter_gpumarket import config
from jupyter_gpumarket.api import (
    BrokerInfo,
    BudgetSetting,
    BudgetView,
    ClusterAccess,
    ClusterView,
    ClusterWish,
    CostList,
    CostQuery,
    DropSearch,
    ExtendRequest,
    JournalLine,
    LeaseView,
    MarketplaceInfo,
    OfferList,
    OfferSearch,
    Orphan,
    PriceHistory,
    PriceQuery,
    ReconcileQuery,
    Reconciliation,
    ReleaseRequest,
    RunCost,
    RunWish,
    SavedSearch,
    SearchView,
)
from jupyter_gpumarket.client import start as starting
from jupyter_gpumarket.client.cluster import AsyncClusterClient
from jupyter_gpumarket.client.http import Conversation, Endpoint, Gone
from jupyter_gpumarket.config import Folders, Secret
from jupyter_gpumarket.errors import BrokerUnavailable
from jupyter_gpumarket.models import CellRun, LeaseRequest, Scope


async def connect_async(folders: Folders | None = None, *, start: bool = True, timeout_s: float = 15) -> AsyncClient:
    """A client of this user's broker, which is started when none runs (and `start` is true).

    Raises:
        BrokerUnavailable: there is none and it cannot be started; the message ends with the last lines of its log.
    """
    client = AsyncClient(folders or config.folders(), start=start, timeout_s=timeout_s)
    await client.health()
    return client


class AsyncClient:
    """One door's connection to the broker. Survives restarts of the broker: every call may safely be made again."""

    def __init__(self, folders: Folders, *, start: bool = True, timeout_s: float = 15) -> None:
        self.folders = folders
        self._start = start
        self._timeout_s = timeout_s
        self._conversation: Conversation | None = None
        self._finding = asyncio.Lock()

    async def health(self) -> BrokerInfo:
        """Who the broker is and what it has."""
        info: BrokerInfo = await self._call("GET", "/v1/health", BrokerInfo)
        return info

    async def marketplaces(self) -> list[MarketplaceInfo]:
        """The marketplaces that are set up, and why others are not."""
        found: list[MarketplaceInfo] = await self._call("GET", "/v1/marketplaces", list[MarketplaceInfo])
        return found

    async def offers(self, search: OfferSearch | None = None) -> OfferList:
        """What can be rented now."""
        found: OfferList = await self._call("POST", "/v1/offers", OfferList, body=search or OfferSearch())
        return found

    async def prices(self, query: PriceQuery | None = None) -> PriceHistory:
        """How prices were, hour by hour, as far as this broker has seen them."""
        found: PriceHistory = await self._call("POST", "/v1/prices", PriceHistory, body=query or PriceQuery())
        return found

    async def searches(self) -> list[SearchView]:
        """The saved searches, and what each last found."""
        found: list[SearchView] = await self._call("GET", "/v1/searches", list[SearchView])
        return found

    async def keep_search(self, search: SavedSearch) -> list[SearchView]:
        """Save a search under its name. Returns all."""
        found: list[SearchView] = await self._call("PUT", "/v1/searches", list[SearchView], body=search)
        return found

    async def drop_search(self, name: str) -> list[SearchView]:
        """Forget a saved search. Returns all that are left.

        Raises:
            BadRequest: there is none with this name.
        """
        body = DropSearch(name=name)
        found: list[SearchView] = await self._call("POST", "/v1/searches/drop", list[SearchView], body=body)
        return found

    async def wish(self, request: LeaseRequest) -> LeaseView:
        """Ask for a node. Returns as soon as the wish is in the journal; follow it with `lease(..., wait_s=...)`.

        Raises:
            BudgetExceeded: a budget does not cover it. NoMatchingOffer is told by the lease itself, as its reason.
        """
        view: LeaseView = await self._call("POST", "/v1/leases", LeaseView, body=request)
        return view

    async def leases(
        self,
        *,
        all: bool = False,  # noqa: A002 -- as the route calls it
        nodes: bool = True,
    ) -> list[LeaseView]:
        """Open leases, newest last; with `all`, ended ones too. Without `nodes`, quicker, and `node` is None in all."""
        query = {**({"all": 1} if all else {}), **({} if nodes else {"nodes": 0})}
        views: list[LeaseView] = await self._call("GET", "/v1/leases", list[LeaseView], query=query)
        return views

    async def lease(self, lease: str, *, after_seq: int | None = None, wait_s: float = 0) -> LeaseView:
        """One lease, by id or by the name of an open one. With `after_seq`, waits up to `wait_s` for a change.

        Raises:
            BadRequest: no such lease.
        """
        query: dict[str, str | int | float] = {}
        if after_seq is not None:
            query = {"after_seq": after_seq, "wait_s": wait_s}
        view: LeaseView = await self._call("GET", f"/v1/leases/{_part(lease)}", LeaseView, query=query, wait_s=wait_s)
        return view

    async def release(self, lease: str, reason: str = "asked by the user") -> LeaseView:
        """Ask to give a node back. Confirmed only when the state is RELEASED."""
        path = f"/v1/leases/{_part(lease)}/release"
        view: LeaseView = await self._call("POST", path, LeaseView, body=ReleaseRequest(reason=reason))
        return view

    async def extend(self, lease: str, *, max_s: int | None = None, budget_nusd: int | None = None) -> LeaseView:
        """New totals for a lease's longest time and budget."""
        body = ExtendRequest(max_s=max_s, budget_nusd=budget_nusd)
        view: LeaseView = await self._call("POST", f"/v1/leases/{_part(lease)}/extend", LeaseView, body=body)
        return view

    async def story(self, lease: str) -> list[JournalLine]:
        """What the journal tells about a lease, oldest first."""
        path = f"/v1/leases/{_part(lease)}/story"
        lines: list[JournalLine] = await self._call("GET", path, list[JournalLine])
        return lines

    async def cluster(self, lease: str) -> AsyncClusterClient:
        """The cluster process of a lease. Finds it again by itself when it was started anew."""

        async def find() -> Endpoint:
            path = f"/v1/leases/{_part(lease)}/cluster"
            access: ClusterAccess = await self._call("GET", path, ClusterAccess)
            return Endpoint(url=access.url, token=Secret(access.token))

        return AsyncClusterClient(await find(), find)

    async def keep_cluster(self, name: str, wish: ClusterWish) -> ClusterView:
        """Have a cluster of this name, or change it; it is brought to its size from then on.

        Raises:
            BudgetExceeded: a budget does not cover its first nodes.
            LeaseError: the wish names a `cluster_id`, and that cluster has ended, or another one has its name.
        """
        view: ClusterView = await self._call("PUT", f"/v1/clusters/{_part(name)}", ClusterView, body=wish)
        return view

    async def cluster_view(self, name: str) -> ClusterView:
        """A cluster by name: nodes, money, Dask, and the decisions about its size."""
        view: ClusterView = await self._call("GET", f"/v1/clusters/{_part(name)}", ClusterView)
        return view

    async def clusters(self) -> list[ClusterView]:
        """The clusters that are kept."""
        views: list[ClusterView] = await self._call("GET", "/v1/clusters", list[ClusterView])
        return views

    async def end_cluster(self, name: str, cluster_id: str = "") -> ClusterView:
        """Give all nodes of a cluster back; with an id, only if the cluster of this name is that one.

        Raises:
            LeaseError: another cluster has the name by now.
        """
        query: dict[str, str | int | float] = {"cluster_id": cluster_id} if cluster_id else {}
        view: ClusterView = await self._call("POST", f"/v1/clusters/{_part(name)}/end", ClusterView, query=query)
        return view

    async def start_run(self, wish: RunWish) -> CellRun:
        """Before a cell runs: budgets are checked and the wish is journaled. The same `run_id` twice is one run.

        Raises:
            BudgetExceeded: a budget is used up.
        """
        run: CellRun = await self._call("POST", "/v1/runs", CellRun, body=wish)
        return run

    async def run_cost(self, run_id: str, *, wait_s: float = 0) -> RunCost:
        """A cell run and its share of its lease's bill so far; waits up to `wait_s` for the run's end."""
        query = {"wait_s": wait_s} if wait_s else {}
        cost: RunCost = await self._call("GET", f"/v1/runs/{_part(run_id)}", RunCost, query=query, wait_s=wait_s)
        return cost

    async def runs(self, *, lease: str = "", notebook: str = "", limit: int = 100) -> list[RunCost]:
        """Cell runs with their shares of the bill, newest first; of one lease, of one notebook."""
        asked = {"lease": lease, "notebook": notebook}
        query: dict[str, str | int | float] = {"limit": limit, **{name: text for name, text in asked.items() if text}}
        costs: list[RunCost] = await self._call("GET", "/v1/runs", list[RunCost], query=query)
        return costs

    async def costs(self, query: CostQuery | None = None) -> CostList:
        """Lines of the ledger."""
        lines: CostList = await self._call("POST", "/v1/costs", CostList, body=query or CostQuery())
        return lines

    async def budgets(self) -> list[BudgetView]:
        """All budgets, with what is spent and reserved."""
        views: list[BudgetView] = await self._call("GET", "/v1/budgets", list[BudgetView])
        return views

    async def set_budget(
        self, scope: Scope, key: str, limit_nusd: int | None, *, since_ms: int = 0
    ) -> list[BudgetView]:
        """Set a budget's limit; None takes the limit away. Returns all budgets."""
        body = BudgetSetting(scope=scope, key=key, limit_nusd=limit_nusd, since_ms=since_ms)
        views: list[BudgetView] = await self._call("PUT", "/v1/budgets", list[BudgetView], body=body)
        return views

    async def orphans(self) -> list[Orphan]:
        """Rentals with our label that no open lease knows."""
        found: list[Orphan] = await self._call("GET", "/v1/orphans", list[Orphan])
        return found

    async def reconcile(self, lease: str | None = None) -> list[Reconciliation]:
        """Compare ended leases (or this one) with the marketplaces' own bills now."""
        body = ReconcileQuery(lease=lease)
        found: list[Reconciliation] = await self._call("POST", "/v1/reconcile", list[Reconciliation], body=body)
        return found

    async def shutdown(self) -> None:
        """Ask the broker to end. Leases and cluster processes go on; the next door starts a new broker."""
        conversation = self._conversation or await starting.find(self.folders, start=False, timeout_s=self._timeout_s)
        self._conversation = conversation
        try:
            await conversation.call("POST", "/v1/shutdown", Any)
        except Gone:
            return

    async def aclose(self) -> None:
        """Close connections; the broker goes on."""
        if self._conversation is not None:
            await self._conversation.aclose()
            self._conversation = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        answer: Any,
        *,
        body: object = None,
        query: Mapping[str, str | int | float] | None = None,
        wait_s: float = 0,
    ) -> Any:
        """One call, made again once when the broker was restarted meanwhile."""
        for last_try in (False, True):
            conversation = await self._current()
            try:
                return await conversation.call(method, path, answer, body=body, query=query, wait_s=wait_s)
            except Gone as gone:
                if self._conversation is conversation:
                    self._conversation = None
                await conversation.aclose()
                if last_try:
                    raise BrokerUnavailable(f"the broker ended while it was asked ({gone}); try again") from None
        raise AssertionError("unreachable")

    async def _current(self) -> Conversation:
        """The conversation with the living broker; calls at once look for it, or start it, once."""
        async with self._finding:
            if self._conversation is None:
                self._conversation = await starting.find(self.folders, start=self._start, timeout_s=self._timeout_s)
            return self._conversation


def _part(text: str) -> str:
    """One segment of a path."""
    return quote(text, safe="")
