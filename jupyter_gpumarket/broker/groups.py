"""Keeps clusters at the size that they should have: rents side by side, replaces what is lost, gives back what idles.

A cluster's wish is journaled, so that a broker that was started anew goes on with it. What a lease of it may cost is
cut from the one budget of the cluster before it is rented, so all of them together cannot cost more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec

from jupyter_gpumarket.api import (
    ClusterView,
    ClusterWish,
    DaskView,
    DaskWish,
    DaskWorkerView,
    Decision,
    JournalLine,
    LeaseView,
    OfferList,
    OfferSearch,
)
from jupyter_gpumarket.api.requests import NotFound
from jupyter_gpumarket.broker import group_journal, leaving, scaling, wishes
from jupyter_gpumarket.broker.group_journal import DECIDED, ENDED, WISHED
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import GpuMarketError, NodeError
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.models import ENDED_STATES, CellRun, Lease, LeaseGoal, LeaseRequest, LeaseState, RunStatus

log = logging.getLogger(__name__)

LEAVING = ENDED_STATES | {LeaseState.DRAINING, LeaseState.RELEASING, LeaseState.RELEASE_UNCONFIRMED}
WORKING = frozenset({LeaseState.READY, LeaseState.UNREACHABLE})
# How the reasons begin that we give for a release.
OURS = "the cluster "
MAX_DECISIONS = 50
# After so many leases in a row that never became ready, the next ones wait.
PATIENCE = 3
PAUSE_S = 60.0
MARKET_EVERY_S = 30.0
# While nodes lack: what was on offer before the last one was taken is none any more.
LACKING_MARKET_EVERY_S = 3.0
RETIRE_PATIENCE_S = 60.0
DEFAULT_BOOT_S = 60.0


class Books(Protocol):
    """What leases have cost."""

    def money(self, lease: Lease) -> tuple[int, int, int]: ...


class Store(Protocol):
    """The journal."""

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]: ...
    def entries(self, *, kinds: Any = None) -> list[JournalLine]: ...
    def leases(self, *, open_only: bool = False) -> list[Lease]: ...
    def runs(self, *, lease_id: str) -> list[CellRun]: ...


class Market(Protocol):
    """Where nodes come from and go to: checked against all budgets, journaled."""

    async def wish(self, request: LeaseRequest) -> LeaseView: ...
    async def release(self, named: str, reason: str) -> LeaseView: ...
    async def offers(self, search: OfferSearch) -> OfferList: ...


class DaskPort(Protocol):
    """The cluster processes."""

    async def dask(self, lease: Lease) -> DaskView | None: ...
    async def start_dask(self, lease: Lease, wish: DaskWish) -> None: ...
    async def retire(self, lease: Lease, reason: str) -> None: ...


class Group:
    """One cluster."""

    def __init__(self, name: str, cluster_id: str, wish: ClusterWish) -> None:
        self.name = name
        self.cluster_id = cluster_id
        self.wish = wish
        self.is_ended = False
        # Why its wish could not be read from the journal: then it is not scaled until there is another one.
        self.unread = ""
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.dask: DaskView | None = None
        self.dask_told: DaskWish | None = None
        self.idle_since_s: dict[str, float] = {}
        # Nodes whose end is decided, since when; and those of them whose Dask workers have not been asked to retire.
        self.retiring: dict[str, float] = {}
        self.unasked: set[str] = set()
        self.grew_s: float | None = None
        self.shrank_s: float | None = None
        self.trouble = ""
        self.wait_until_s = 0.0
        self.heeded: set[str] = set()
        self.market: tuple[float, scaling.Market | None] | None = None

    def to_go(self, lease_ids: Collection[str], now_s: float) -> None:
        """The end of these nodes is decided, and in the journal."""
        self.retiring |= dict.fromkeys(lease_ids, now_s)
        self.unasked.update(lease_ids)


class Groups:
    """All clusters of this broker."""

    def __init__(self, *, store: Store, books: Books, clusters: DaskPort, clock: Clock) -> None:
        self._store = store
        self._books = books
        self._clusters = clusters
        self._clock = clock
        self._groups: dict[str, Group] = {}
        # As they were when the present look began: a look asks for them several times, and they are many.
        self._leases: list[Lease] = []
        self._turn = asyncio.Lock()
        leases = store.leases()
        for kept in group_journal.read(store.entries(kinds=group_journal.KINDS), leases):
            self._groups[kept.name] = self._taken_up(kept, leases)
        for trouble in self.troubles():
            log.error("%s", trouble)

    def _taken_up(self, kept: group_journal.Kept, leases: list[Lease]) -> Group:
        group = Group(kept.name, kept.cluster_id, kept.wish)
        group.is_ended, group.unread = kept.is_ended, kept.unread
        own = [lease for lease in leases if lease.request.cluster == group.cluster_id]
        # What was given back before is in the wish already.
        group.heeded = {lease.lease_id for lease in own if lease.goal is LeaseGoal.RELEASED}
        # What was decided goes on: counted again, such a node would keep another one from being rented.
        open_ = {lease.lease_id for lease in own if lease.state not in LEAVING}
        group.to_go(kept.released & open_, self._clock.monotonic_s())
        return group

    async def keep(self, name: str, wish: ClusterWish, market: Market) -> ClusterView:
        """Have a cluster of this name; another wish for a living one changes it.

        Raises:
            InvalidField: names what cannot be.
            LeaseError: the wish is for one cluster, and that has ended, or another one has its name now.
        """
        wishes.check(name, wish)
        async with self._turn:
            group = self._groups.get(name)
            self._leases = self._store.leases()
            if group is not None and not group.is_ended:
                # What was given back up to now was meant for the former wish, and may have been the end of it.
                self._heed_releases(group)
            if wish.cluster_id:
                living = group.cluster_id if group is not None and not group.is_ended else ""
                wishes.check_meant(name, wish.cluster_id, living)
                wish = msgspec.structs.replace(wish, cluster_id="")
            if is_new := group is None or group.is_ended:
                group = self._groups[name] = Group(name, f"{name}-{secrets.token_hex(4)}", wish)
            group.wish, group.wait_until_s, group.unread = wish, 0.0, ""
            body = {"cluster_id": group.cluster_id, "wish": msgspec.to_builtins(wish)}
            self._store.append([NewEntry(kind=WISHED, subject=name, body=body)])
            try:
                await self._tend(group, market)
            except GpuMarketError:
                if is_new:  # whoever is told that it cannot be must not pay for a part of it, now or later
                    await self._end(group, market)
                raise
        return self.view(name)

    async def end(self, name: str, market: Market, cluster_id: str = "") -> ClusterView:
        """Give all its nodes back; with an id, only if the cluster of this name is that one.

        Raises:
            LeaseError: another cluster has the name by now.
        """
        async with self._turn:
            group = self._known(name)
            wishes.check_same(name, cluster_id or group.cluster_id, group.cluster_id)
            await self._end(group, market)
        return self.view(name)

    async def _end(self, group: Group, market: Market) -> None:
        self._leases = self._store.leases()
        if not group.is_ended:
            group.is_ended = True
            self._store.append([NewEntry(kind=ENDED, subject=group.name, body={"cluster_id": group.cluster_id})])
        failed = []
        for lease in self._open(group):
            try:
                await market.release(lease.lease_id, f"{OURS}{group.name} was ended")
            except GpuMarketError as error:  # the others must end all the same
                failed.append(error)
        if failed:
            raise failed[0]

    def views(self) -> list[ClusterView]:
        """The clusters that have not ended, or still have nodes."""
        self._leases = self._store.leases()
        return [self.view(name) for name, group in self._groups.items() if not group.is_ended or self._open(group)]

    def view(self, name: str) -> ClusterView:
        """One cluster.

        Raises:
            NotFound: there is none of this name.
        """
        group = self._known(name)
        self._leases = self._store.leases()
        leases = self._all(group)
        open_ = [lease for lease in leases if lease.state not in ENDED_STATES]
        return ClusterView(
            name=name,
            cluster_id=group.cluster_id,
            wish=group.wish,
            leases=tuple(open_),
            spent_nusd=sum(self._books.money(lease)[0] for lease in leases),
            rate_nusd_hour=sum(lease.price_nusd_hour for lease in open_ if lease.may_bill),
            is_ended=group.is_ended,
            dask=group.dask,
            decisions=tuple(group.decisions),
            notices=(*(word for word in (group.unread, group.trouble) if word), *self._leaving_words(open_)),
        )

    def _leaving_words(self, leases: list[Lease]) -> list[str]:
        now_ms = self._clock.now_ms()
        return [f"{lease.name} {leaving.words(lease, now_ms)}" for lease in leases if lease.notice is not None]

    def has_work(self) -> bool:
        """Whether a cluster is kept that may rent by itself."""
        return any(not group.is_ended and not group.unread for group in self._groups.values())

    def troubles(self) -> list[str]:
        """What of the journal could not be read and matters still."""
        return [group.unread for group in self._groups.values() if group.unread and not group.is_ended]

    async def look(self, market: Market) -> None:
        """Look at every cluster once."""
        for group in list(self._groups.values()):
            if group.is_ended:
                continue
            async with self._turn:
                try:
                    await self._tend(group, market)
                except GpuMarketError as error:
                    self._set_back(group, str(error))

    # ── one cluster ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tend(self, group: Group, market: Market) -> None:
        now_s = self._clock.monotonic_s()
        self._leases = self._store.leases()
        self._heed_releases(group)
        there = [lease for lease in self._open(group) if lease.state not in LEAVING]
        # Also one whose retiring ends now: it is released, and would be counted, and given back, a second time.
        retiring = set(group.retiring)
        await self._finish_retiring(group, there, market, now_s)
        nodes = [lease for lease in there if lease.lease_id not in retiring]
        await self._look_at_dask(group, nodes)
        await self._let_go(group, there, market)
        going = [lease for lease in nodes if leaving.is_leaving(lease, self._clock.now_ms())]
        nodes = [lease for lease in nodes if lease not in going]
        if not group.unread:
            await self._see_off(group, going, nodes, market)
        if group.is_ended or group.unread or now_s < group.wait_until_s:
            return
        aim = group.wish.aim
        is_lacking = len(nodes) < aim.minimum
        market_every_s = LACKING_MARKET_EVERY_S if is_lacking else MARKET_EVERY_S
        needs_market = is_lacking or aim.minimum < aim.maximum
        situation = scaling.Situation(
            aim=aim,
            nodes=tuple(self._facts(group, lease, now_s) for lease in nodes),
            load=scaling.load_of(group.dask),
            market=await self._market(group, market, now_s, market_every_s) if needs_market else None,
            past=scaling.Past(grew_s=_ago(group.grew_s, now_s), shrank_s=_ago(group.shrank_s, now_s)),
            now_ms=self._clock.now_ms(),
            free_nusd=self._free(group),
            leaving_nusd_hour=sum(lease.price_nusd_hour for lease in going),
        )
        decision = scaling.decide(situation)
        told = tuple(f"{lease.name} is not counted: it {leaving.words(lease, situation.now_ms)}" for lease in going)
        decision = msgspec.structs.replace(decision, reasons=(*decision.reasons, *told))
        self._remember(group, decision)
        if decision.grow:
            await self._rent(group, decision.grow, market, now_s)
        if decision.release:
            group.shrank_s = now_s
            group.to_go(decision.release, now_s)
            await self._let_go(group, there, market)

    def _heed_releases(self, group: Group) -> None:
        """A node that the user gave back, that idled to its end, or that used its money up, is not replaced."""
        new = [
            lease
            for lease in self._all(group)
            if lease.goal is LeaseGoal.RELEASED
            and not lease.reason.startswith(OURS)
            and lease.lease_id not in group.heeded
        ]
        group.heeded |= {lease.lease_id for lease in new}
        # One that was about to leave was not counted any more, and another one may be there in its place.
        less = sum(not leaving.is_leaving(lease, self._clock.now_ms()) for lease in new)
        if not less or group.unread:
            return
        aim = group.wish.aim
        lower = msgspec.structs.replace(aim, minimum=max(0, aim.minimum - less), maximum=max(0, aim.maximum - less))
        group.wish = msgspec.structs.replace(group.wish, aim=lower)
        group.is_ended = lower.maximum == 0
        body = {"cluster_id": group.cluster_id, "wish": msgspec.to_builtins(group.wish)}
        entries = [NewEntry(kind=WISHED, subject=group.name, body=body)]
        if group.is_ended:
            entries.append(NewEntry(kind=ENDED, subject=group.name, body={"cluster_id": group.cluster_id}))
        self._store.append(entries)

    async def _rent(self, group: Group, count: int, market: Market, now_s: float) -> None:
        lost = scaling.lost_in_a_row(self._all(group))
        if lost >= PATIENCE and not group.wait_until_s:
            group.wait_until_s = now_s + PAUSE_S
            self._set_back(group, f"{lost} nodes in a row did not become ready; the next try is in {PAUSE_S:g} s")
            return
        group.wait_until_s = 0.0
        next_node = await self._market(group, market, now_s)
        price = next_node.price_nusd_hour if next_node is not None else 0
        share = scaling.share_nusd(self._free(group), count, price_nusd_hour=price, max_s=group.wish.max_s)
        for _ in range(count):
            wish = group.wish
            request = LeaseRequest(
                request_id=secrets.token_hex(16),
                query=wish.query,
                budget_nusd=share,
                max_s=wish.max_s,
                owner=wish.owner,
                cluster=group.cluster_id,
                trusted=wish.trusted,
                grace_s=wish.grace_s,
            )
            await market.wish(request)
        group.grew_s, group.trouble = now_s, ""

    async def _let_go(self, group: Group, nodes: list[Lease], market: Market) -> None:
        """Give back nodes whose end is decided; where Dask uses one, what it holds moves to others first."""
        for lease in [lease for lease in nodes if lease.lease_id in group.unasked]:
            is_at_work = group.wish.dask is not None and lease.state in WORKING
            if is_at_work and group.dask is None:
                continue  # nobody has seen yet what it holds; `_finish_retiring` does not wait for ever
            group.unasked.discard(lease.lease_id)
            if is_at_work and any(worker.lease_id == lease.lease_id for worker in _workers(group)):
                try:
                    await self._clusters.retire(lease, "it is given back")
                    continue
                except NodeError as error:
                    log.info("%s is given back without being retired: %s", lease.name, error)
            await market.release(lease.lease_id, f"{OURS}{group.name} needs it no more")

    async def _finish_retiring(self, group: Group, nodes: list[Lease], market: Market, now_s: float) -> None:
        there = {lease.lease_id for lease in nodes}
        for lease_id, since_s in list(group.retiring.items()):
            if lease_id not in there:
                del group.retiring[lease_id]
                group.unasked.discard(lease_id)
                continue
            workers = [worker for worker in _workers(group) if worker.lease_id == lease_id]
            is_done = lease_id not in group.unasked and all(worker.state == "retired" for worker in workers)
            if is_done or now_s - since_s > RETIRE_PATIENCE_S:
                group.unasked.discard(lease_id)
                await market.release(lease_id, f"{OURS}{group.name} needs it no more")

    async def _see_off(self, group: Group, going: list[Lease], staying: list[Lease], market: Market) -> None:
        """Nodes that will be taken away are given back once they hold nothing, where others go on with the work."""
        is_seen = group.wish.dask is None or group.dask is not None
        if not is_seen or not any(lease.state in WORKING for lease in staying):
            return
        for lease in going:
            runs = self._store.runs(lease_id=lease.lease_id)
            if leaving.may_go(lease, group.dask, runs, self._clock.now_ms()):
                await market.release(lease.lease_id, f"{OURS}{group.name} has handed over what it held")

    async def _look_at_dask(self, group: Group, nodes: list[Lease]) -> None:
        """How Dask does; it is started as soon as a node is there that can run it."""
        ready = [lease for lease in nodes if lease.state in WORKING]
        if not ready:
            group.dask, group.dask_told = None, None
            return
        wish = group.wish.dask
        try:
            if wish is not None and group.dask_told != wish:
                await self._clusters.start_dask(ready[0], wish)
                group.dask_told = wish
            group.dask = await self._clusters.dask(ready[0])
        except NodeError as error:
            log.info("the cluster %s: %s", group.name, error)

    async def _market(
        self, group: Group, market: Market, now_s: float, every_s: float = MARKET_EVERY_S
    ) -> scaling.Market | None:
        """The offer that would be rented next; looked up now and then."""
        if group.market is not None and now_s - group.market[0] < every_s:
            return group.market[1]
        found = await market.offers(OfferSearch(query=group.wish.query, limit=1))
        best = found.offers[0] if found.offers else None
        boots = [scaling.boot_s(lease) for lease in self._all(group) if lease.ready_ms is not None]
        known = None
        if best is not None:
            known = scaling.Market(
                price_nusd_hour=best.price_nusd_hour,
                boot_s=max(boots, default=best.boot_s or DEFAULT_BOOT_S),
                least_paid_s=float(max(best.billing.minimum_s, best.billing.quantum_s)),
            )
        group.market = (now_s, known)
        return known

    def _facts(self, group: Group, lease: Lease, now_s: float) -> scaling.NodeFacts:
        view = group.dask
        workers = [w for w in view.workers if w.lease_id == lease.lease_id] if view is not None else []
        processing = sum(worker.processing for worker in workers)
        # Cells and maps work on a node without Dask knowing of it.
        is_running = any(run.status is RunStatus.RUNNING for run in self._store.runs(lease_id=lease.lease_id))
        if processing or is_running or lease.state not in WORKING or view is None or view.state != "running":
            group.idle_since_s.pop(lease.lease_id, None)
            idle_s = None
        else:
            idle_s = now_s - group.idle_since_s.setdefault(lease.lease_id, now_s)
        billing = lease.offer.billing if lease.offer is not None else None
        billed_ms = self._clock.now_ms() - lease.billed_from_ms if lease.billed_from_ms is not None else 0
        return scaling.NodeFacts(
            lease_id=lease.lease_id,
            name=lease.name,
            price_nusd_hour=lease.price_nusd_hour,
            state="ready" if lease.state in WORKING else "coming",
            is_head=view is not None and view.head == lease.lease_id,
            processing=processing,
            in_memory=sum(worker.in_memory for worker in workers),
            idle_s=idle_s,
            paid_left_s=scaling.paid_left_s(billed_ms, billing.quantum_s, billing.minimum_s) if billing else 0.0,
        )

    def _free(self, group: Group) -> int:
        """What of the budget is neither spent by ended nodes nor set aside for open ones."""
        used = sum(
            self._books.money(lease)[0] if lease.state in ENDED_STATES else self._set_aside(lease)
            for lease in self._all(group)
        )
        return group.wish.budget_nusd - used

    def _set_aside(self, lease: Lease) -> int:
        """What an open node may still cost in all: less than its budget once its end is announced."""
        is_going = leaving.is_leaving(lease, self._clock.now_ms())
        return leaving.still_costs_nusd(lease) if is_going else lease.request.budget_nusd

    def _remember(self, group: Group, decision: Decision) -> None:
        """Decisions that do something are journaled; of the others the last one is kept for whoever asks why."""
        decision = msgspec.structs.replace(decision, at_ms=self._clock.now_ms())
        last = group.decisions[-1] if group.decisions else None
        if last is not None and not last.grow and not last.release:
            group.decisions.pop()
        group.decisions.append(decision)
        if decision.grow or decision.release:
            body = {"cluster_id": group.cluster_id, **msgspec.to_builtins(decision)}
            self._store.append([NewEntry(kind=DECIDED, subject=group.name, body=body)])

    def _set_back(self, group: Group, trouble: str) -> None:
        if trouble != group.trouble:
            log.warning("the cluster %s: %s", group.name, trouble)
        group.trouble = trouble
        group.wait_until_s = max(group.wait_until_s, self._clock.monotonic_s() + PAUSE_S / 4)

    def _known(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None:
            known = ", ".join(sorted(self._groups)) or "none"
            raise NotFound(f"no cluster is called {name[:60]!r}; there are: {known}", what="cluster")
        return group

    def _all(self, group: Group) -> list[Lease]:
        return [lease for lease in self._leases if lease.request.cluster == group.cluster_id]

    def _open(self, group: Group) -> list[Lease]:
        return [lease for lease in self._all(group) if lease.state not in ENDED_STATES]


def _workers(group: Group) -> tuple[DaskWorkerView, ...]:
    return group.dask.workers if group.dask is not None else ()


def _ago(then_s: float | None, now_s: float) -> float | None:
    return None if then_s is None else now_s - then_s
