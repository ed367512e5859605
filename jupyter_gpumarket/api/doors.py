"""What doors say to the broker, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.api.nodes import NodeView
from jupyter_gpumarket.api.offers import Baseline, OfferFigures, Samples
from jupyter_gpumarket.models import (
    Balance,
    Budget,
    Capabilities,
    CellRun,
    Charge,
    Lease,
    Offer,
    OfferQuery,
    Owner,
    Record,
    Scope,
)


class BrokerInfo(Record, frozen=True, kw_only=True):
    """GET /v1/health. `troubles`: what of its journal it could not read, for people."""

    version: str
    api_version: int
    pid: int
    state_folder: str
    started_ms: int
    open_leases: int
    marketplaces: tuple[str, ...]
    python: str = ""
    troubles: tuple[str, ...] = ()


class OfferSearch(Request, frozen=True, kw_only=True):
    """POST /v1/offers: which offers, for which job, in which order.

    The job is `hours` of work with `disk_gib` of disk (None: what the offer has), `in_gib` fetched and `out_gib` sent.
    """

    query: OfferQuery = OfferQuery()
    hours: float = 1.0
    disk_gib: float | None = None
    in_gib: float = 0.0
    out_gib: float = 0.0
    sort: str = "price"
    refresh: bool = False
    limit: int = 1000
    samples: Samples = "no"


class FilterStep(Record, frozen=True, kw_only=True):
    """One filter of a search: how many offers it was given, and how many it let pass."""

    filter: str
    before: int
    after: int


class MarketplaceStatus(Record, frozen=True, kw_only=True):
    """How one marketplace answered: `age_s` is how old its part of the list is."""

    marketplace: str
    ok: bool
    offers: int
    age_s: float
    message: str = ""


class OfferList(Record, frozen=True, kw_only=True):
    """The answer to `OfferSearch`; `steps` explains what was filtered away.

    `figures` has one entry for each of `offers`, in their order; `baselines` one for each GPU model among them.
    """

    offers: list[Offer]
    statuses: list[MarketplaceStatus]
    steps: list[FilterStep] = []
    figures: list[OfferFigures] = []
    baselines: list[Baseline] = []


class ReleaseRequest(Request, frozen=True, kw_only=True):
    """POST /v1/leases/{lease}/release"""

    reason: str = "asked by the user"


class ExtendRequest(Request, frozen=True, kw_only=True):
    """POST /v1/leases/{lease}/extend: the new totals, not increments."""

    max_s: int | None = None
    budget_nusd: int | None = None


class LeaseView(Record, frozen=True, kw_only=True):
    """A lease with its money as of now. `seq` grows with every change; `GET ...?after_seq=N&wait_s=S` waits for one.

    `notices` are warnings for people, such as a budget that is nearly used up; most are empty.
    """

    lease: Lease
    seq: int
    cost_nusd: int
    boot_nusd: int
    idle_nusd: int
    worst_case_nusd: int
    node: NodeView | None = None
    notices: tuple[str, ...] = ()


def sight_of(leases: Iterable[tuple[str, int, tuple[str, ...]]]) -> str:
    """A short name for how open leases were seen: their ids, the numbers of their last changes, their notices."""
    return hashlib.sha256(msgspec.json.encode(sorted(leases))).hexdigest()


class ClusterAccess(Record, frozen=True, kw_only=True):
    """GET /v1/leases/{lease}/cluster: where the cluster process of this lease listens. The token is a secret."""

    cluster_id: str
    url: str
    token: str

    def __repr__(self) -> str:
        return f"ClusterAccess(cluster_id={self.cluster_id!r}, url={self.url!r}, token=…)"


class RunWish(Request, frozen=True, kw_only=True):
    """POST /v1/runs: before a cell runs; the broker checks the budgets and journals the wish.

    `sight`: how the caller saw the open leases when it chose this one (`sight_of`). When they are not so any more,
    nothing is done: so the usual cell need not look at them again. Empty: whatever they are.
    """

    run_id: str
    lease_id: str
    session: str
    owner: Owner
    cell_id: str = ""
    code_sha256: str = ""
    budget_nusd: int | None = None
    sight: str = ""


class RunCost(Record, frozen=True, kw_only=True):
    """GET /v1/runs/{run}: a cell run and its share of its lease's bill, to the nano-dollar.

    `amount_nusd` is final once `final` is true; before, it is what has come up so far.
    """

    run: CellRun
    node: str
    duration_ms: int
    amount_nusd: int
    rate_nusd_hour: int
    final: bool
    lease_total_nusd: int
    lease_boot_nusd: int
    lease_idle_nusd: int


class CostQuery(Request, frozen=True, kw_only=True):
    """POST /v1/costs: the ledger's lines that touch this span. Open leases contribute provisional lines up to now."""

    since_ms: int = 0
    until_ms: int | None = None
    lease: str | None = None


class CostList(Record, frozen=True, kw_only=True):
    """Lines of the ledger."""

    charges: list[Charge]
    as_of_ms: int


class BudgetSetting(Request, frozen=True, kw_only=True):
    """PUT /v1/budgets: a limit on a scope, which replaces the one there was; a limit of None takes it away."""

    scope: Scope
    key: str
    limit_nusd: int | None
    since_ms: int = 0


class BudgetView(Record, frozen=True, kw_only=True):
    """A budget and how much of it is spent and reserved."""

    budget: Budget
    spent_nusd: int
    reserved_nusd: int


class Reconciliation(Record, frozen=True, kw_only=True):
    """One rental's bill by our ledger and by the marketplace's own records."""

    lease_id: str
    marketplace: str
    rental_id: str
    ours_nusd: int
    theirs_nusd: int
    gap_nusd: int
    explained: str = ""
    checked_ms: int = 0


class ReconcileQuery(Request, frozen=True, kw_only=True):
    """POST /v1/reconcile: compare ended leases (or this one) with the marketplaces' own records now."""

    lease: str | None = None


class MarketplaceInfo(Record, frozen=True, kw_only=True):
    """GET /v1/marketplaces: one marketplace; `message` says why it cannot be used when `usable` is false."""

    name: str
    usable: bool
    message: str = ""
    capabilities: Capabilities | None = None
    balance: Balance | None = None


class Orphan(Record, frozen=True, kw_only=True):
    """A rental with our label that no open lease knows: it bills until released."""

    marketplace: str
    rental_id: str
    label: str
    found_ms: int
    price_nusd_hour: int | None = None
    state: Literal["found", "release_asked", "gone"] = "found"


class JournalLine(Record, frozen=True, kw_only=True):
    """One journal entry for people and tools."""

    seq: int
    at_ms: int
    kind: str
    subject: str
    body: dict[str, Any]
