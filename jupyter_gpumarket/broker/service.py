"""What the broker does for its callers, on top of the parts it connects. One method for each route."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from jupyter_gpumarket import __version__, ledger
from jupyter_gpumarket.api import (
    API_VERSION,
    AnyFact,
    BrokerInfo,
    BudgetSetting,
    BudgetView,
    ClusterAccess,
    CostList,
    CostQuery,
    ExtendRequest,
    JournalLine,
    LeaseView,
    MarketplaceInfo,
    OfferList,
    OfferSearch,
    Orphan,
    PriceHistory,
    PriceQuery,
    Reconciliation,
    RunCost,
    RunWish,
    SavedSearch,
    SearchView,
    sight_of,
)
from jupyter_gpumarket.api.requests import InvalidField, NotFound
from jupyter_gpumarket.broker import leaving, names
from jupyter_gpumarket.broker.alerts import Alerts
from jupyter_gpumarket.broker.books import Books
from jupyter_gpumarket.broker.closing import Closing, rentals_of
from jupyter_gpumarket.broker.clusters import Clusters
from jupyter_gpumarket.broker.facts import FactIntake
from jupyter_gpumarket.broker.groups import Groups
from jupyter_gpumarket.broker.purse import Purse
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.config import Folders
from jupyter_gpumarket.errors import LeaseError, LeasesChanged, MarketplaceError
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import (
    ENDED_RUNS,
    ENDED_STATES,
    Budget,
    CellRun,
    Lease,
    LeaseRequest,
    LeaseState,
    OfferQuery,
    RunStatus,
    Scope,
)
from jupyter_gpumarket.money import MAX_NUSD
from jupyter_gpumarket.offers import PriceBook

log = logging.getLogger(__name__)

MAX_ID_CHARS = 128
BALANCE_TIMEOUT_S = 5.0
MAX_HOURS = 365 * 24
MAX_GIB = 1_000_000
ENDING = ENDED_STATES | {LeaseState.DRAINING, LeaseState.RELEASING, LeaseState.RELEASE_UNCONFIRMED}


class Engine(Protocol):
    """The lease engine."""

    async def wish(self, request: LeaseRequest) -> Lease: ...
    async def release(self, lease_id: str, reason: str) -> Lease: ...
    async def extend(self, lease_id: str, *, max_s: int | None = None, budget_nusd: int | None = None) -> Lease: ...
    async def report(self, fact: AnyFact) -> None: ...
    async def wait_changed(self, lease_id: str, after_seq: int, timeout_s: float) -> tuple[Lease, int]: ...
    def orphans(self) -> list[Orphan]: ...


class Catalogue(Protocol):
    """The offers."""

    async def search(self, search: OfferSearch) -> OfferList: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the service stands on; `compose.py` makes the real ones."""

    folders: Folders
    clock: Clock
    journal: Journal
    marketplaces: Mapping[str, Marketplace]
    skipped: Mapping[str, str]
    catalogue: Catalogue
    engine: Engine
    clusters: Clusters
    books: Books
    purse: Purse
    closing: Closing
    facts: FactIntake
    prices: PriceBook
    alerts: Alerts
    groups: Groups
    stop: Callable[[], None]


class Service:
    """The broker's answers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rng = random.Random()  # noqa: S311 -- names are no secrets
        self._started_ms = parts.clock.now_ms()
        self._touched_s = parts.clock.monotonic_s()
        self.take_facts = parts.facts.take

    # ── the broker itself ────────────────────────────────────────────────────────────────────────────────────────────

    def touch(self) -> None:
        """A door has called."""
        self._touched_s = self._parts.clock.monotonic_s()

    def is_idle(self, after_s: float) -> bool:
        """Whether nothing is rented, nothing is left to do, and no door has called for so long."""
        parts = self._parts
        if parts.clock.monotonic_s() - self._touched_s < after_s:
            return False
        busy = any(orphan.state != "gone" for orphan in parts.engine.orphans())
        busy = busy or parts.groups.has_work()
        return not busy and not parts.books.open_leases() and not parts.books.unclosed()

    async def health(self) -> BrokerInfo:
        """Who the broker is."""
        parts = self._parts
        return BrokerInfo(
            version=__version__,
            api_version=API_VERSION,
            pid=os.getpid(),
            state_folder=str(parts.folders.state),
            started_ms=self._started_ms,
            open_leases=len(parts.books.open_leases()),
            marketplaces=tuple(sorted(parts.marketplaces)),
            python=sys.version.split()[0],
            troubles=tuple(parts.groups.troubles()),
        )

    async def shutdown(self) -> None:
        """End the broker, once this call has been answered."""
        asyncio.get_running_loop().call_later(0.1, self._parts.stop)

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def marketplaces(self) -> list[MarketplaceInfo]:
        """The marketplaces that can be used, and why others cannot."""
        usable = await asyncio.gather(*(self._marketplace(name) for name in sorted(self._parts.marketplaces)))
        skipped = [
            MarketplaceInfo(name=name, usable=False, message=reason) for name, reason in self._parts.skipped.items()
        ]
        return [*usable, *skipped]

    async def _marketplace(self, name: str) -> MarketplaceInfo:
        marketplace = self._parts.marketplaces[name]
        try:
            async with asyncio.timeout(BALANCE_TIMEOUT_S):
                balance = await marketplace.balance()
        except (MarketplaceError, TimeoutError) as error:
            message = str(error) or "it does not answer"
            return MarketplaceInfo(name=name, usable=False, message=message, capabilities=marketplace.capabilities)
        return MarketplaceInfo(name=name, usable=True, capabilities=marketplace.capabilities, balance=balance)

    async def offers(self, search: OfferSearch) -> OfferList:
        """What can be rented now."""
        if not 0 < search.limit <= 100_000:
            raise InvalidField("limit must lie between 1 and 100000", name="limit")
        if not 0 < search.hours <= MAX_HOURS:
            raise InvalidField("hours must lie between 0 and one year", name="hours")
        for name in ("disk_gib", "in_gib", "out_gib"):
            if not 0 <= (getattr(search, name) or 0) <= MAX_GIB:
                raise InvalidField(f"{name} must lie between 0 and {MAX_GIB:,}", name=name)
        _check_query(search.query)
        return await self._parts.catalogue.search(search)

    async def prices(self, query: PriceQuery) -> PriceHistory:
        """How prices were."""
        return PriceHistory(points=self._parts.prices.points(query))

    async def searches(self) -> list[SearchView]:
        """The saved searches."""
        return self._parts.alerts.views()

    async def keep_search(self, search: SavedSearch) -> list[SearchView]:
        """Save a search, and look at once."""
        _check_query(search.query)
        return await self._parts.alerts.keep(search)

    async def drop_search(self, name: str) -> list[SearchView]:
        """Forget a saved search."""
        return self._parts.alerts.drop(name)

    # ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def wish(self, request: LeaseRequest) -> LeaseView:
        """Rent a node: checked, reserved and journaled before this returns."""
        parts = self._parts
        _check_request(request)
        async with parts.purse.gate:
            lease = parts.journal.lease_by_request(request.request_id)
            if lease is None:
                request = self._named(request)
                parts.purse.allow_lease(request)
                lease = await parts.engine.wish(request)
        return await self._view(lease.lease_id)

    async def leases(self, *, ended_too: bool, with_nodes: bool = True) -> list[LeaseView]:
        """Open leases, or all. Without nodes, no cluster process is asked how its nodes are."""
        leases = self._parts.journal.leases(open_only=not ended_too)
        views = (self._view(lease.lease_id, with_node=with_nodes) for lease in leases)
        return list(await asyncio.gather(*views))

    async def lease(self, named: str, *, after_seq: int | None, wait_s: float) -> LeaseView:
        """One lease; waits for a change after `after_seq`."""
        return await self._view(self._find(named).lease_id, after_seq=after_seq, wait_s=wait_s)

    async def release(self, named: str, reason: str) -> LeaseView:
        """Give a node back."""
        lease = self._find(named)
        if lease.state not in ENDED_STATES:
            await self._parts.engine.release(lease.lease_id, reason)
        return await self._view(lease.lease_id)

    async def extend(self, named: str, asked: ExtendRequest) -> LeaseView:
        """New totals for a lease's time and budget."""
        for name, value in (("max_s", asked.max_s), ("budget_nusd", asked.budget_nusd)):
            if value is not None and not 0 < value <= MAX_NUSD:
                raise InvalidField(f"{name} must be positive", name=name)
        async with self._parts.purse.gate:
            lease = self._open(named)
            self._parts.purse.allow_extension(lease, asked.budget_nusd)
            await self._parts.engine.extend(lease.lease_id, max_s=asked.max_s, budget_nusd=asked.budget_nusd)
        return await self._view(lease.lease_id)

    async def story(self, named: str) -> list[JournalLine]:
        """What the journal tells about a lease, its runs' lines included."""
        lease = self._find(named)
        lines = self._parts.journal.entries(subject=lease.lease_id)
        for run in self._parts.journal.runs(lease_id=lease.lease_id):
            lines += self._parts.journal.entries(subject=run.run_id)
        return sorted(lines, key=lambda line: line.seq)

    @property
    def groups(self) -> Groups:
        """The clusters that are kept at a size; what they rent and give back goes through this service."""
        return self._parts.groups

    async def cluster(self, named: str) -> ClusterAccess:
        """Where a lease's cluster process listens."""
        return await self._parts.clusters.access(self._find(named))

    # ── cell runs and money ──────────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, wish: RunWish) -> CellRun:
        """Check the budgets and journal the wish for a cell run."""
        _check_id(wish.run_id, "run_id")
        parts = self._parts
        # First of all: whoever saw a lease that has ended since is to look again, not to be told that it has.
        if wish.sight and wish.sight != await self._sight() and parts.journal.run(wish.run_id) is None:
            raise LeasesChanged("the leases have changed since they were looked at")
        lease = self._open(wish.lease_id)
        known = parts.journal.run(wish.run_id)
        if known is not None:
            if known.lease_id != lease.lease_id:
                raise InvalidField(f"the run {wish.run_id} is on another lease", name="run_id")
            return known
        if wish.budget_nusd is not None and wish.budget_nusd <= 0:
            raise InvalidField("budget_nusd must be positive", name="budget_nusd")
        parts.purse.allow_run(wish)
        run = CellRun(
            run_id=wish.run_id,
            lease_id=lease.lease_id,
            session=wish.session,
            status=RunStatus.QUEUED,
            owner=wish.owner,
            cell_id=wish.cell_id,
            code_sha256=wish.code_sha256,
            budget_nusd=wish.budget_nusd,
        )
        body = {"lease_id": lease.lease_id, "session": wish.session}
        parts.journal.append([NewEntry(kind="run.wished", subject=run.run_id, body=body, rows=(run,))])
        return run

    async def _sight(self) -> str:
        """The open leases in short, as `leases` would show them now.

        Never so while a node is about to leave: what `leases` says of it counts down, and is told before each cell.
        """
        parts = self._parts
        found = [await parts.engine.wait_changed(lease.lease_id, -1, 0) for lease in parts.books.open_leases()]
        return sight_of((lease.lease_id, seq, parts.purse.notices(lease.lease_id)) for lease, seq in found)

    async def run_cost(self, run_id: str, *, wait_s: float = 0) -> RunCost:
        """A cell run and its share of the bill; waits up to `wait_s` for its end."""
        run = self._parts.journal.run(run_id)
        until_s = asyncio.get_running_loop().time() + wait_s
        while run is not None and run.status not in ENDED_RUNS:
            left_s = until_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            await self._parts.facts.run_news(left_s)
            run = self._parts.journal.run(run_id)
        lease = self._parts.journal.lease(run.lease_id) if run is not None else None
        if run is None or lease is None:
            raise NotFound(f"no cell run {run_id[:MAX_ID_CHARS]!r} is known", what="run")
        return self._parts.books.run_cost(lease, run_id)

    async def run_costs(self, *, lease: str | None, notebook: str | None, limit: int) -> list[RunCost]:
        """Cell runs with their shares of the bill, newest first."""
        lease_id = self._find(lease).lease_id if lease else None
        return self._parts.books.run_costs(lease_id=lease_id, notebook=notebook, limit=limit)

    async def costs(self, query: CostQuery) -> CostList:
        """Lines of the ledger."""
        lease_id = self._find(query.lease).lease_id if query.lease else None
        return self._parts.books.costs(since_ms=query.since_ms, until_ms=query.until_ms, lease_id=lease_id)

    async def budgets(self) -> list[BudgetView]:
        """All budgets."""
        return self._parts.books.budget_views()

    async def set_budget(self, setting: BudgetSetting) -> list[BudgetView]:
        """Set a budget, or take it away."""
        if not setting.key or len(setting.key) > 1000:
            raise InvalidField("key must name what the budget is for", name="key")
        if setting.scope is Scope.CELL:
            raise InvalidField("a cell's budget is set where it is run", name="scope")
        if setting.limit_nusd is not None and not 0 <= setting.limit_nusd <= MAX_NUSD:
            raise InvalidField("limit_nusd must not be negative", name="limit_nusd")
        budget = Budget(
            scope=setting.scope,
            key=setting.key,
            limit_nusd=setting.limit_nusd or 0,
            since_ms=setting.since_ms,
            set_ms=self._parts.clock.now_ms(),
        )
        subject = f"{setting.scope}:{setting.key}"
        body = {"limit_nusd": setting.limit_nusd, "since_ms": setting.since_ms}
        entry = NewEntry(kind="budget.set", subject=subject, body=body, rows=(budget,))
        if setting.limit_nusd is None:
            entry = NewEntry(kind="budget.lifted", subject=subject, body=body, gone=(budget,))
        self._parts.journal.append([entry])
        return self._parts.books.budget_views()

    async def orphans(self) -> list[Orphan]:
        """Rentals with our label that no lease knows."""
        return self._parts.engine.orphans()

    async def reconcile(self, named: str | None) -> list[Reconciliation]:
        """Compare bills now."""
        leases = [self._find(named)] if named else self._parts.journal.leases()
        return [
            await self._parts.closing.compare(lease)
            for lease in leases
            if lease.state in ENDED_STATES and rentals_of(lease)
        ]

    # ── finding and showing ──────────────────────────────────────────────────────────────────────────────────────────

    async def _view(
        self, lease_id: str, *, after_seq: int | None = None, wait_s: float = 0, with_node: bool = True
    ) -> LeaseView:
        parts = self._parts
        lease, seq = await parts.engine.wait_changed(
            lease_id, -1 if after_seq is None else after_seq, wait_s if after_seq is not None else 0
        )
        cost, boot, idle = parts.books.money(lease)
        return LeaseView(
            lease=lease,
            seq=seq,
            cost_nusd=cost,
            boot_nusd=boot,
            idle_nusd=idle,
            worst_case_nusd=ledger.worst_case_nusd(lease),
            node=await parts.clusters.node(lease) if with_node else None,
            notices=(*parts.purse.notices(lease_id), *filter(None, [leaving.words(lease, parts.clock.now_ms())])),
        )

    def _find(self, named: str) -> Lease:
        """A lease by id, or by name: an open one first, else the last that had the name."""
        lease = self._parts.journal.lease(named)
        if lease is not None:
            return lease
        namesakes = [lease for lease in self._parts.journal.leases() if lease.name == named]
        if not namesakes:
            taken = ", ".join(sorted(self._taken_names())) or "none"
            raise NotFound(f"no lease is called {named[:MAX_ID_CHARS]!r}; open ones: {taken}", what="lease")
        return max(namesakes, key=lambda lease: (lease.state not in ENDED_STATES, lease.created_ms))

    def _open(self, named: str) -> Lease:
        lease = self._find(named)
        if lease.state in ENDING:
            why = f" ({lease.reason})" if lease.reason else ""
            raise LeaseError(f"{lease.name} is {lease.state}{why}; rent another node")
        return lease

    def _taken_names(self) -> set[str]:
        return {lease.name for lease in self._parts.books.open_leases()}

    def _named(self, request: LeaseRequest) -> LeaseRequest:
        taken = self._taken_names()
        if request.name:
            names.checked(request.name, taken)
            return request
        return msgspec.structs.replace(request, name=names.fresh(taken, self._rng))


def _check_request(request: LeaseRequest) -> None:
    _check_id(request.request_id, "request_id")
    if not 0 < request.budget_nusd <= MAX_NUSD:
        raise InvalidField("budget_nusd must be positive", name="budget_nusd")
    if not 0 < request.max_s <= 365 * 24 * 3600:
        raise InvalidField("max_s must lie between one second and one year", name="max_s")
    if request.grace_s < 0 or request.price_tolerance_ppm < 0:
        name = "grace_s" if request.grace_s < 0 else "price_tolerance_ppm"
        raise InvalidField(f"{name} must not be negative", name=name)
    if request.cluster:
        _check_id(request.cluster, "cluster")
    _check_query(request.query)


def _check_query(query: OfferQuery) -> None:
    for name in ("vram_gib", "gpu_count", "max_price_nusd_hour", "cpu_cores", "memory_gib", "disk_gib"):
        value = getattr(query, name)
        if value is not None and value < 0:
            raise InvalidField(f"query.{name} must not be negative", name=f"query.{name}")


def _check_id(text: str, name: str) -> None:
    """Ids become names of files and parts of paths."""
    plain = text.replace("-", "").replace("_", "")
    if not (plain.isascii() and plain.isalnum() and text[0].isalnum() and len(text) <= MAX_ID_CHARS):
        raise InvalidField(
            f"{name} must be 1 to {MAX_ID_CHARS} letters, digits, '-' or '_', and start with a letter or digit",
            name=name,
        )
