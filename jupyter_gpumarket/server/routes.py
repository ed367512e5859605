"""The one table of routes under /gpumarket: what each takes, answers, may be used for, and asks of the broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from jupyter_gpumarket import config
from jupyter_gpumarket.api import (
    BrokerInfo,
    BudgetSetting,
    BudgetView,
    ClusterView,
    CostList,
    CostQuery,
    DropSearch,
    ExtendRequest,
    JournalLine,
    LeaseView,
    MapView,
    MarketplaceInfo,
    NodeView,
    OfferColumns,
    OfferList,
    OfferSearch,
    Orphan,
    PriceHistory,
    PriceQuery,
    ReconcileQuery,
    Reconciliation,
    ReleaseRequest,
    RunCost,
    SavedSearch,
    SearchView,
)
from jupyter_gpumarket.api.columns import columns
from jupyter_gpumarket.api.openapi import document
from jupyter_gpumarket.api.requests import InvalidField, NotFound
from jupyter_gpumarket.models import LeaseRequest, Owner, Record
from jupyter_gpumarket.server import clusters, fanout
from jupyter_gpumarket.server.clusters import ClusterAim, ClusterEnd, MapStop
from jupyter_gpumarket.server.fanout import ClusterNow, FanOut
from jupyter_gpumarket.server.files import CostFile, cost_file
from jupyter_gpumarket.server.now import Now, look
from jupyter_gpumarket.server.quotes import RentPreview, preview
from jupyter_gpumarket.server.runs import RunLog, run_log

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient
    from jupyter_gpumarket.server.door import Door

PREFIX = "/gpumarket"
MAX_WAIT_S = 30.0
SHORT_WAIT_S = 1.0
MAX_LOG_CHARS = 200_000
TITLE = "jupyter_gpumarket, the Jupyter server's routes"
SECURITY = {
    "token": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "token <the server's token>"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "username-*", "description": "with X-XSRFToken unless GET"},
}


class Defaults(Record, frozen=True, kw_only=True):
    """GET /gpumarket/defaults: what a rental form starts with; amounts are text in dollars, as in the settings file."""

    ask: bool
    budget: str
    hours: float
    max_price: str
    project: str
    user: str


class NodeLog(Record, frozen=True, kw_only=True):
    """GET /gpumarket/leases/{lease}/log: the log's last part. A node's own words: show them as text, never as HTML."""

    lease: str
    text: str
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a route: parts of its path, its query, its decoded body, and the user's defaults."""

    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    user: str

    def number(self, name: str, default: float) -> float:
        """A query argument that is a finite number.

        Raises:
            InvalidField: it is something else.
        """
        text = self.query.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = float("nan")
        if not -1e15 < value < 1e15:
            raise InvalidField(f"{name} must be a number, not {text!r:.60}", name=name)
        return value


@dataclass(frozen=True, kw_only=True)
class Route:
    """One line of the table. `action` is what Jupyter's authorizer is asked for, on the resource `gpumarket`."""

    method: Literal["GET", "POST", "PUT"]
    path: str
    action: Literal["read", "write", "execute"]
    act: Callable[[Door, Call], Awaitable[Any]]
    answer: Any
    summary: str
    body: Any = None
    query: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the watch should look at once, because the user waits for what comes of it."""
        return self.action != "read"


async def _openapi(_door: Door, _call: Call) -> dict[str, Any]:
    return document(ROUTES, title=TITLE, security=SECURITY, prefix=PREFIX)


async def _health(door: Door, _call: Call) -> BrokerInfo:
    return await door.call(lambda broker: broker.health())


async def _now(door: Door, call: Call) -> Now:
    return await look(door, start=bool(call.number("start", 0)))


async def _defaults(door: Door, call: Call) -> Defaults:
    settings = config.load_settings(door.folders)
    return Defaults(
        ask=settings.ask,
        budget=settings.budget,
        hours=settings.hours,
        max_price=settings.max_price,
        project=settings.project,
        user=call.user,
    )


async def _marketplaces(door: Door, _call: Call) -> list[MarketplaceInfo]:
    return await door.call(lambda broker: broker.marketplaces())


async def _offers(door: Door, call: Call) -> OfferList:
    return await door.call(lambda broker: broker.offers(call.body))


async def _offer_columns(door: Door, call: Call) -> OfferColumns:
    found = await door.call(lambda broker: broker.offers(call.body))
    # In a thread: for a long list this takes a good part of a second, in which the server must serve others.
    return await asyncio.to_thread(columns, found, now_ms=time.time_ns() // 1_000_000)


async def _prices(door: Door, call: Call) -> PriceHistory:
    return await door.call(lambda broker: broker.prices(call.body))


async def _searches(door: Door, _call: Call) -> list[SearchView]:
    return await door.call(lambda broker: broker.searches())


async def _keep_search(door: Door, call: Call) -> list[SearchView]:
    return await door.call(lambda broker: broker.keep_search(call.body))


async def _drop_search(door: Door, call: Call) -> list[SearchView]:
    return await door.call(lambda broker: broker.drop_search(call.body.name))


async def _rent(door: Door, call: Call) -> LeaseView:
    asked: LeaseRequest = call.body
    # As the notebook's magics do it, so that budgets and reports see one user and one project.
    settings = config.load_settings(door.folders)
    owner = Owner(
        user=asked.owner.user or call.user,
        project=asked.owner.project or settings.project,
        notebook=asked.owner.notebook,
    )
    request = msgspec.structs.replace(asked, owner=owner)
    return await door.call(lambda broker: broker.wish(request))


async def _leases(door: Door, call: Call) -> list[LeaseView]:
    ended_too = bool(call.number("all", 0))
    return await door.call(lambda broker: broker.leases(all=ended_too))


async def _lease(door: Door, call: Call) -> LeaseView:
    after_seq = int(call.number("after_seq", -1)) if "after_seq" in call.query else None
    wait_s = min(MAX_WAIT_S, max(0.0, call.number("wait_s", 0)))
    with door.waiting() as may_wait:
        patience_s = wait_s if may_wait else min(wait_s, SHORT_WAIT_S)
        return await door.call(lambda broker: broker.lease(call.parts["lease"], after_seq=after_seq, wait_s=patience_s))


async def _release(door: Door, call: Call) -> LeaseView:
    return await door.call(lambda broker: broker.release(call.parts["lease"], call.body.reason))


async def _extend(door: Door, call: Call) -> LeaseView:
    asked: ExtendRequest = call.body
    return await door.call(
        lambda broker: broker.extend(call.parts["lease"], max_s=asked.max_s, budget_nusd=asked.budget_nusd)
    )


async def _story(door: Door, call: Call) -> list[JournalLine]:
    return await door.call(lambda broker: broker.story(call.parts["lease"]))


async def _node(door: Door, call: Call) -> NodeView:
    view = await door.call(lambda broker: broker.lease(call.parts["lease"]))
    if view.node is None:
        raise NotFound(f"{view.lease.name} is {view.lease.state} and has no node now", what="lease")
    return view.node


async def _log(door: Door, call: Call) -> NodeLog:
    async def ask(broker: AsyncClient) -> NodeLog:
        view = await broker.lease(call.parts["lease"])
        cluster = await broker.cluster(view.lease.lease_id)
        try:
            text = await cluster.node_log(view.lease.lease_id)
        finally:
            await cluster.aclose()
        return NodeLog(lease=view.lease.lease_id, text=text[-MAX_LOG_CHARS:], truncated=len(text) > MAX_LOG_CHARS)

    return await door.call(ask)


async def _cluster(door: Door, call: Call) -> ClusterView:
    return await door.call(lambda broker: broker.cluster_view(call.parts["cluster"]))


async def _quote(door: Door, call: Call) -> RentPreview:
    return await preview(door, call.body)


async def _runs(door: Door, call: Call) -> list[RunCost]:
    lease, notebook = call.query.get("lease", ""), call.query.get("notebook", "")
    limit = int(call.number("limit", 100))
    return await door.call(lambda broker: broker.runs(lease=lease, notebook=notebook, limit=limit))


async def _run_log(door: Door, call: Call) -> RunLog:
    return await run_log(door, call.parts["run"])


async def _cost_file(door: Door, call: Call) -> CostFile:
    return await cost_file(door, call.parts["format"], call.body)


async def _run_cost(door: Door, call: Call) -> RunCost:
    return await door.call(lambda broker: broker.run_cost(call.parts["run"]))


async def _costs(door: Door, call: Call) -> CostList:
    return await door.call(lambda broker: broker.costs(call.body))


async def _budgets(door: Door, _call: Call) -> list[BudgetView]:
    return await door.call(lambda broker: broker.budgets())


async def _set_budget(door: Door, call: Call) -> list[BudgetView]:
    asked: BudgetSetting = call.body
    return await door.call(
        lambda broker: broker.set_budget(asked.scope, asked.key, asked.limit_nusd, since_ms=asked.since_ms)
    )


async def _orphans(door: Door, _call: Call) -> list[Orphan]:
    return await door.call(lambda broker: broker.orphans())


async def _reconcile(door: Door, call: Call) -> list[Reconciliation]:
    return await door.call(lambda broker: broker.reconcile(call.body.lease))


async def _fanout(door: Door, _call: Call) -> FanOut:
    return await fanout.look(door)


async def _aim(door: Door, call: Call) -> ClusterNow:
    return await clusters.change_aim(door, call.parts["cluster"], call.body)


async def _end_cluster(door: Door, call: Call) -> ClusterNow:
    return await clusters.end_cluster(door, call.parts["cluster"], call.body)


async def _stop_map(door: Door, call: Call) -> MapView:
    return await clusters.stop_map(door, call.parts["map"], call.body)


def _reading(path: str, act: Any, answer: Any, summary: str, **more: Any) -> Route:
    return Route(method="GET", path=PREFIX + path, action="read", act=act, answer=answer, summary=summary, **more)


def _searching(path: str, act: Any, answer: Any, summary: str, *, body: Any) -> Route:
    """POST because the question has a body; nothing is changed."""
    return Route(method="POST", path=PREFIX + path, action="read", act=act, answer=answer, summary=summary, body=body)


def _writing(method: Literal["PUT", "POST"], path: str, act: Any, answer: Any, summary: str, *, body: Any) -> Route:
    """What is kept, and costs nothing."""
    return Route(method=method, path=PREFIX + path, action="write", act=act, answer=answer, summary=summary, body=body)


def _spending(path: str, act: Any, answer: Any, summary: str, *, body: Any) -> Route:
    """What begins, prolongs or ends spending, or calls marketplaces with the user's keys for its sake."""
    return Route(
        method="POST", path=PREFIX + path, action="execute", act=act, answer=answer, summary=summary, body=body
    )


ROUTES: tuple[Route, ...] = (
    _reading("/openapi.json", _openapi, Any, "This document"),
    _reading("/health", _health, BrokerInfo, "Who the broker is; starts it when none runs"),
    _reading("/now", _now, Now, "All that is rented and owed; starts a broker only with start=1", query=("start",)),
    _reading("/defaults", _defaults, Defaults, "What a rental form starts with"),
    _reading("/marketplaces", _marketplaces, list[MarketplaceInfo], "The marketplaces, usable or not"),
    _searching("/offers", _offers, OfferList, "What can be rented now", body=OfferSearch),
    _searching("/offers/columns", _offer_columns, OfferColumns, "The same, by column", body=OfferSearch),
    _searching("/prices", _prices, PriceHistory, "How prices were", body=PriceQuery),
    _reading("/searches", _searches, list[SearchView], "Saved searches and what they last found"),
    _writing("PUT", "/searches", _keep_search, list[SearchView], "Save a search", body=SavedSearch),
    _writing("POST", "/searches/drop", _drop_search, list[SearchView], "Forget a saved search", body=DropSearch),
    _searching("/quote", _quote, RentPreview, "What a request would rent now; rents nothing", body=LeaseRequest),
    _spending("/leases", _rent, LeaseView, "Rent a node: the same request_id twice is one lease", body=LeaseRequest),
    _reading("/leases", _leases, list[LeaseView], "Open leases; with all=1, ended ones too", query=("all",)),
    _reading(
        "/leases/{lease}",
        _lease,
        LeaseView,
        f"One lease by id or name; with after_seq, waits up to wait_s (at most {MAX_WAIT_S:g}) for a change",
        query=("after_seq", "wait_s"),
    ),
    _spending("/leases/{lease}/release", _release, LeaseView, "Give a node back", body=ReleaseRequest),
    _spending("/leases/{lease}/extend", _extend, LeaseView, "New totals of time and budget", body=ExtendRequest),
    _reading("/leases/{lease}/story", _story, list[JournalLine], "What the journal tells about a lease"),
    _reading("/leases/{lease}/node", _node, NodeView, "The node: set-up, link, use"),
    _reading("/leases/{lease}/log", _log, NodeLog, "The end of the node's log, as text"),
    _reading("/fanout", _fanout, FanOut, "Clusters, Dask on them and maps; starts no broker"),
    _spending("/clusters/{cluster}/aim", _aim, ClusterNow, "Another size, within limits", body=ClusterAim),
    _spending("/clusters/{cluster}/release", _end_cluster, ClusterNow, "Give all its nodes back", body=ClusterEnd),
    _spending("/maps/{map}/stop", _stop_map, MapView, "End a map; what has ended is kept", body=MapStop),
    _reading("/clusters/{cluster}", _cluster, ClusterView, "One by name; texts in it may be a node's words"),
    _reading(
        "/runs",
        _runs,
        list[RunCost],
        "Cell runs with their shares, newest first; of one lease or notebook",
        query=("lease", "notebook", "limit"),
    ),
    _reading("/runs/{run}/log", _run_log, RunLog, "What a cell run wrote so far, cleaned, as text"),
    _reading("/runs/{run}/cost", _run_cost, RunCost, "A cell run and its share of the bill"),
    _searching("/costs", _costs, CostList, "Lines of the ledger", body=CostQuery),
    _searching(
        "/costs/export/{format}", _cost_file, CostFile, "Lines of the ledger as csv, parquet or html", body=CostQuery
    ),
    _reading("/budgets", _budgets, list[BudgetView], "All budgets, with what is spent and reserved"),
    _writing("PUT", "/budgets", _set_budget, list[BudgetView], "Set or take away a budget", body=BudgetSetting),
    _reading("/orphans", _orphans, list[Orphan], "Rentals with our label that no lease knows: they bill"),
    _spending("/reconcile", _reconcile, list[Reconciliation], "Compare bills now", body=ReconcileQuery),
)
