"""The one table of routes. Each line parses what is special about it, calls the service, and returns its answer."""

from __future__ import annotations

from typing import Any

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
    FactBatch,
    FactReceipt,
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
from jupyter_gpumarket.api.openapi import document
from jupyter_gpumarket.api.requests import Forbidden
from jupyter_gpumarket.broker.service import Service
from jupyter_gpumarket.broker.web import DOOR, MAX_WAIT_S, Call, Route
from jupyter_gpumarket.models import CellRun, LeaseRequest

MAX_RUNS = 500


async def _health(service: Service, _call: Call) -> BrokerInfo:
    return await service.health()


async def _openapi(_service: Service, _call: Call) -> dict[str, Any]:
    security = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document(ROUTES, title="jupyter_gpumarket broker", security=security)


async def _shutdown(service: Service, _call: Call) -> dict[str, str]:
    await service.shutdown()
    return {"state": "ending"}


async def _marketplaces(service: Service, _call: Call) -> list[MarketplaceInfo]:
    return await service.marketplaces()


async def _offers(service: Service, call: Call) -> OfferList:
    return await service.offers(call.body)


async def _prices(service: Service, call: Call) -> PriceHistory:
    return await service.prices(call.body)


async def _searches(service: Service, _call: Call) -> list[SearchView]:
    return await service.searches()


async def _keep_search(service: Service, call: Call) -> list[SearchView]:
    return await service.keep_search(call.body)


async def _drop_search(service: Service, call: Call) -> list[SearchView]:
    return await service.drop_search(call.body.name)


async def _wish(service: Service, call: Call) -> LeaseView:
    return await service.wish(call.body)


async def _leases(service: Service, call: Call) -> list[LeaseView]:
    return await service.leases(ended_too=bool(call.number("all", 0)), with_nodes=bool(call.number("nodes", 1)))


async def _lease(service: Service, call: Call) -> LeaseView:
    after_seq = call.number("after_seq")
    wait_s = min(MAX_WAIT_S, max(0.0, call.number("wait_s", 0) or 0.0))
    return await service.lease(
        call.parts["lease"], after_seq=None if after_seq is None else int(after_seq), wait_s=wait_s
    )


async def _release(service: Service, call: Call) -> LeaseView:
    return await service.release(call.parts["lease"], call.body.reason[:500])


async def _extend(service: Service, call: Call) -> LeaseView:
    return await service.extend(call.parts["lease"], call.body)


async def _story(service: Service, call: Call) -> list[JournalLine]:
    return await service.story(call.parts["lease"])


async def _cluster(service: Service, call: Call) -> ClusterAccess:
    return await service.cluster(call.parts["lease"])


async def _keep_cluster(service: Service, call: Call) -> ClusterView:
    return await service.groups.keep(call.parts["name"], call.body, service)


async def _end_cluster(service: Service, call: Call) -> ClusterView:
    return await service.groups.end(call.parts["name"], service, call.query.get("cluster_id", ""))


async def _cluster_view(service: Service, call: Call) -> ClusterView:
    return service.groups.view(call.parts["name"])


async def _clusters(service: Service, _call: Call) -> list[ClusterView]:
    return service.groups.views()


async def _start_run(service: Service, call: Call) -> CellRun:
    return await service.start_run(call.body)


async def _run_cost(service: Service, call: Call) -> RunCost:
    wait_s = min(MAX_WAIT_S, max(0.0, call.number("wait_s", 0) or 0.0))
    return await service.run_cost(call.parts["run"], wait_s=wait_s)


async def _runs(service: Service, call: Call) -> list[RunCost]:
    limit = min(MAX_RUNS, max(1, int(call.number("limit", 100) or 100)))
    return await service.run_costs(lease=call.query.get("lease"), notebook=call.query.get("notebook"), limit=limit)


async def _costs(service: Service, call: Call) -> CostList:
    return await service.costs(call.body)


async def _budgets(service: Service, _call: Call) -> list[BudgetView]:
    return await service.budgets()


async def _set_budget(service: Service, call: Call) -> list[BudgetView]:
    return await service.set_budget(call.body)


async def _orphans(service: Service, _call: Call) -> list[Orphan]:
    return await service.orphans()


async def _reconcile(service: Service, call: Call) -> list[Reconciliation]:
    return await service.reconcile(call.body.lease)


async def _facts(service: Service, call: Call) -> FactReceipt:
    if call.caller == DOOR:
        raise Forbidden("facts come from cluster processes, each with its own token")
    return await service.take_facts(call.body, call.caller)


def _route(method: str, path: str, act: Any, answer: Any, summary: str, **more: Any) -> Route:
    return Route(method=method, path=path, act=act, answer=answer, summary=summary, **more)


ROUTES: tuple[Route, ...] = (
    _route("GET", "/v1/health", _health, BrokerInfo, "Who the broker is"),
    _route("GET", "/v1/openapi.json", _openapi, Any, "This document"),
    _route("POST", "/v1/shutdown", _shutdown, dict[str, str], "End the broker; leases go on"),
    _route("GET", "/v1/marketplaces", _marketplaces, list[MarketplaceInfo], "The marketplaces, usable or not"),
    _route("POST", "/v1/offers", _offers, OfferList, "What can be rented now", body=OfferSearch),
    _route("POST", "/v1/prices", _prices, PriceHistory, "How prices were", body=PriceQuery),
    _route("GET", "/v1/searches", _searches, list[SearchView], "Saved searches and what they last found"),
    _route("PUT", "/v1/searches", _keep_search, list[SearchView], "Save a search", body=SavedSearch),
    _route("POST", "/v1/searches/drop", _drop_search, list[SearchView], "Forget a saved search", body=DropSearch),
    _route("POST", "/v1/leases", _wish, LeaseView, "Rent a node", body=LeaseRequest),
    _route("GET", "/v1/leases", _leases, list[LeaseView], "Open leases, or all", query=("all", "nodes")),
    _route(
        "GET",
        "/v1/leases/{lease}",
        _lease,
        LeaseView,
        "One lease by id or name; waits for a change after `after_seq`",
        query=("after_seq", "wait_s"),
    ),
    _route("POST", "/v1/leases/{lease}/release", _release, LeaseView, "Give a node back", body=ReleaseRequest),
    _route("POST", "/v1/leases/{lease}/extend", _extend, LeaseView, "New totals for it", body=ExtendRequest),
    _route("GET", "/v1/leases/{lease}/story", _story, list[JournalLine], "What the journal tells about a lease"),
    _route("GET", "/v1/leases/{lease}/cluster", _cluster, ClusterAccess, "Where its cluster process listens"),
    _route("GET", "/v1/clusters", _clusters, list[ClusterView], "The clusters that are kept at a size"),
    _route("PUT", "/v1/clusters/{name}", _keep_cluster, ClusterView, "Have or change one", body=ClusterWish),
    _route("GET", "/v1/clusters/{name}", _cluster_view, ClusterView, "Its nodes, money, Dask, and why"),
    _route(
        "POST",
        "/v1/clusters/{name}/end",
        _end_cluster,
        ClusterView,
        "Give all its nodes back; with `cluster_id`, only of that cluster",
        query=("cluster_id",),
    ),
    _route("POST", "/v1/runs", _start_run, CellRun, "Before a cell runs: check budgets, journal", body=RunWish),
    _route(
        "GET",
        "/v1/runs",
        _runs,
        list[RunCost],
        f"Cell runs, newest first, at most `limit` (100; no more than {MAX_RUNS})",
        query=("lease", "notebook", "limit"),
    ),
    _route(
        "GET",
        "/v1/runs/{run}",
        _run_cost,
        RunCost,
        "A cell run and its share of the bill; waits for its end",
        query=("wait_s",),
    ),
    _route("POST", "/v1/costs", _costs, CostList, "Lines of the ledger", body=CostQuery),
    _route("GET", "/v1/budgets", _budgets, list[BudgetView], "All budgets"),
    _route("PUT", "/v1/budgets", _set_budget, list[BudgetView], "Set or take away a budget", body=BudgetSetting),
    _route("GET", "/v1/orphans", _orphans, list[Orphan], "Rentals with our label that no lease knows"),
    _route("POST", "/v1/reconcile", _reconcile, list[Reconciliation], "Compare bills now", body=ReconcileQuery),
    _route(
        "POST",
        "/v1/facts",
        _facts,
        FactReceipt,
        "What a cluster process has observed",
        body=FactBatch,
        for_clusters=True,
    ),
)
