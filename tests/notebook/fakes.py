"""A broker and a cluster process in memory, at the client's seam: they keep what was asked and play scripted runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import (
    BrokerInfo,
    BudgetView,
    CostList,
    FilterStep,
    JournalLine,
    LeaseView,
    MapView,
    MarketplaceInfo,
    MarketplaceStatus,
    MessageBatch,
    OfferList,
    OfferSearch,
    OutputRef,
    RunCost,
    RunMessage,
    RunRequest,
    RunView,
    RunWish,
    sight_of,
)
from jupyter_gpumarket.config import Folders
from jupyter_gpumarket.errors import GpuMarketError, LeasesChanged
from jupyter_gpumarket.models import (
    Budget,
    CellRun,
    Charge,
    ChargeKind,
    Lease,
    LeaseRequest,
    LeaseState,
    Offer,
    RunStatus,
    Scope,
)
from jupyter_gpumarket.money import usd

replace = msgspec.structs.replace
S = LeaseState
T0 = 1_795_000_000_000


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ms(self) -> int:
        return T0 + round(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    async def sleep(self, seconds: float) -> None:
        self.pause(seconds)


def offer(offer_id: str = "o1", price: str = "0.35", **more: Any) -> Offer:
    fields: dict[str, Any] = {
        "marketplace": "pool",
        "offer_id": offer_id,
        "machine_id": f"m-{offer_id}",
        "price_nusd_hour": usd(price),
        "seen_ms": T0,
        "gpu": "RTX4090",
        "gpu_raw": "NVIDIA GeForce RTX 4090",
        "gpu_count": 1,
        "vram_gib": 24.0,
        "region": "eu-lab",
        **more,
    }
    return Offer(**fields)


def text(content: str, name: str = "stdout") -> tuple[str, dict[str, Any]]:
    return "stream", {"name": name, "text": content}


def shown(kind: str, data: dict[str, Any], display_id: str = "") -> tuple[str, dict[str, Any]]:
    transient = {"display_id": display_id} if display_id else {}
    return kind, {"data": data, "metadata": {}, "transient": transient}


def failed(name: str, value: str) -> tuple[str, dict[str, Any]]:
    return "error", {"ename": name, "evalue": value, "traceback": [f"\x1b[31m{name}\x1b[0m: {value}"]}


class Script(msgspec.Struct):
    """What a run does: its messages, a few at each look; then its end."""

    messages: list[tuple[str, dict[str, Any]]] = []
    status: RunStatus = RunStatus.OK
    reason: str = ""
    outputs: dict[str, Any] = {}
    failed_outputs: dict[str, str] = {}
    per_look: int = 100
    links: list[str] = []
    link_detail: str = ""
    on_look: Callable[[int], None] | None = None
    until_interrupted: bool = False
    spill_path: str = ""


class FakeCluster:
    """One cluster process with one node."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.scripts: dict[str, Script] = {}
        self.requests: list[RunRequest] = []
        self.blobs: dict[str, bytes] = {}
        self.interrupts: list[str] = []
        self.looks: dict[str, int] = {}

    def put_blob(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.blobs

    def give_file(self, path: Path, sha256: str) -> None:
        self.blobs[sha256] = path.read_bytes()

    def run(self, request: RunRequest) -> RunView:
        self.requests.append(request)
        self.looks[request.run_id] = 0
        return self._view(request, 0, is_over=False)

    def runs(self) -> list[RunView]:
        return [self._view(request, 0, is_over=True) for request in self.requests]

    def maps(self) -> list[MapView]:
        return []

    def interrupt(self, run_id: str) -> RunView:
        self.interrupts.append(run_id)
        return self._view(self._request(run_id), 0, is_over=False)

    def begin(self, request: RunRequest, wait_s: float = 0, calm_s: float = 0) -> MessageBatch:
        self.run(request)
        return self.messages(request.run_id, 0, wait_s, calm_s)

    def messages(self, run_id: str, after: int = 0, wait_s: float = 0, calm_s: float = 0) -> MessageBatch:
        request = self._request(run_id)
        self.clock.pause(calm_s)
        script = self._script(request)
        look = self.looks[run_id] = self.looks[run_id] + 1
        if script.on_look is not None:
            script.on_look(look)
        ready = script.messages[: look * script.per_look]
        batch = [
            RunMessage(n=n, at_ms=T0, msg_type=kind, content=content)
            for n, (kind, content) in enumerate(ready, start=1)
            if n > after
        ]
        if not batch:
            self.clock.pause(wait_s)
        is_over = len(ready) == len(script.messages) and (run_id in self.interrupts or not script.until_interrupted)
        link = script.links.pop(0) if script.links else "up"
        view = self._view(request, len(ready), is_over=is_over and link == "up")
        detail = script.link_detail
        return MessageBatch(messages=batch, run=view, link=link, link_detail=detail)  # type: ignore[arg-type]

    def output(self, run_id: str, name: str) -> bytes:
        return codecs.encode(self._script(self._request(run_id)).outputs[name]).data

    def node_log(self, lease_id: str) -> str:
        return "agent: \x1b]0;title\x07ready"

    def _request(self, run_id: str) -> RunRequest:
        return next(request for request in self.requests if request.run_id == run_id)

    def _script(self, request: RunRequest) -> Script:
        return self.scripts.get(request.code.strip(), Script())

    def _view(self, request: RunRequest, messages: int, *, is_over: bool) -> RunView:
        script = self._script(request)
        status = script.status if is_over else RunStatus.RUNNING
        error = next((content for kind, content in script.messages if kind == "error"), {}) if is_over else {}
        outputs = [
            OutputRef(name=name, codec=codecs.encode(script.outputs[name]).codec, size=1) for name in script.outputs
        ] + [OutputRef(name=name, error=error_text) for name, error_text in script.failed_outputs.items()]
        return RunView(
            run_id=request.run_id,
            lease_id=request.lease_id,
            session=request.session,
            status=status,
            messages=messages,
            started_ms=T0,
            ended_ms=self.clock.now_ms() if is_over else None,
            reason=script.reason if is_over else "",
            error_name=error.get("ename", ""),
            error_value=error.get("evalue", ""),
            traceback=tuple(error.get("traceback", ())),
            outputs=tuple(outputs) if is_over else (),
            spill_path=script.spill_path,
        )


class FakeAhead:
    """Nothing is known earlier than it is asked for."""

    def run_cost(self, run_id: str, *, wait_s: float = 0) -> Future[RunCost]:
        answer: Future[RunCost] = Future()
        answer.cancel()
        return answer


class FakeClient:
    """One broker with one marketplace. Leases become ready by `path`, one state per look."""

    broker_troubles: tuple[str, ...] = ()

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.folders = Folders(Path("/nonexistent"), Path("/nonexistent"))
        self.listed = [offer(), offer("o2", "0.50")]
        self.steps: list[FilterStep] = []
        self.statuses = [MarketplaceStatus(marketplace="pool", ok=True, offers=2, age_s=0.1)]
        self.path = [S.QUOTING, S.RENTING, S.BOOTING, S.LINKING, S.PREPARING, S.PROBING, S.READY]
        self.wishes: list[LeaseRequest] = []
        self.searches: list[OfferSearch] = []
        self.views: dict[str, LeaseView] = {}
        self.clusters: dict[str, FakeCluster] = {}
        self.script_for_new: dict[str, Script] = {}
        self.started: list[RunWish] = []
        self.refuse_run: GpuMarketError | None = None
        self.costs_until_final = 1
        self.on_lease: Callable[[], None] | None = None
        self.limits: list[Budget] = []

    def offers(self, search: OfferSearch | None = None) -> OfferList:
        assert search is not None
        self.searches.append(search)
        return OfferList(offers=self.listed[: search.limit], statuses=self.statuses, steps=self.steps)

    def wish(self, request: LeaseRequest) -> LeaseView:
        for view in self.views.values():
            if view.lease.request.request_id == request.request_id:
                return view
        self.wishes.append(request)
        number = len(self.wishes)
        lease = Lease(
            lease_id=f"lease-{number}",
            name=request.name or f"node-{number}",
            state=S.WISHED,
            request=request,
            created_ms=T0 + number,
            changed_ms=T0,
            offer=self.listed[0],
            price_nusd_hour=self.listed[0].price_nusd_hour,
        )
        return self._put(LeaseView(lease=lease, seq=1, cost_nusd=0, boot_nusd=0, idle_nusd=0, worst_case_nusd=usd(5)))

    def lease(self, lease: str, *, after_seq: int | None = None, wait_s: float = 0) -> LeaseView:
        if self.on_lease is not None:
            self.on_lease()
        view = self.views[lease]
        if after_seq is None or view.lease.state in (S.READY, S.RELEASED, S.FAILED):
            return view
        self.clock.pause(0.3)
        if view.lease.state is S.RELEASING:
            return self._enter(view, S.RELEASED)
        place = self.path.index(view.lease.state) + 1 if view.lease.state in self.path else 0
        return self._enter(view, self.path[place])

    def leases(self, *, all: bool = False, nodes: bool = True) -> list[LeaseView]:  # noqa: A002 -- as the client
        return [view for view in self.views.values() if all or view.lease.may_bill]

    def release(self, lease: str, reason: str = "") -> LeaseView:
        return self._enter(self.views[lease], S.RELEASING)

    def end(self, lease: str, reason: str) -> None:
        """The lease ends by itself."""
        view = self._enter(self.views[lease], S.RELEASED)
        self._put(replace(view, lease=replace(view.lease, reason=reason)))

    def notice(self, lease: str, text: str) -> None:
        """The broker has something to say about it."""
        self._put(replace(self.views[lease], notices=(text,)))

    def extend(self, lease: str, *, max_s: int | None = None, budget_nusd: int | None = None) -> LeaseView:
        return self.views[lease]

    def cluster(self, lease: str) -> FakeCluster:
        cluster = self.clusters.setdefault(lease, FakeCluster(self.clock))
        cluster.scripts.update(self.script_for_new)
        return cluster

    @property
    def ahead(self) -> FakeAhead:
        return FakeAhead()

    def start_run(self, wish: RunWish) -> CellRun:
        if self.refuse_run is not None:
            raise self.refuse_run
        now = sight_of((view.lease.lease_id, view.seq, view.notices) for view in self.leases())
        if wish.sight and wish.sight != now:
            raise LeasesChanged("they have changed")
        self.started.append(wish)
        return CellRun(run_id=wish.run_id, lease_id=wish.lease_id, session=wish.session, status=RunStatus.QUEUED)

    def run_cost(self, run_id: str, *, wait_s: float = 0) -> RunCost:
        self.costs_until_final -= 1
        if self.costs_until_final > 0:
            self.clock.pause(wait_s)
        run = CellRun(run_id=run_id, lease_id="lease-1", session="main", status=RunStatus.OK)
        return RunCost(
            run=run,
            node="node-1",
            duration_ms=3000,
            amount_nusd=291_667,
            rate_nusd_hour=usd("0.35"),
            final=self.costs_until_final <= 0,
            lease_total_nusd=1_000_000,
            lease_boot_nusd=600_000,
            lease_idle_nusd=108_333,
        )

    def costs(self, query: Any = None) -> CostList:
        mine = self.wishes[0].owner if self.wishes else None
        lines = [
            Charge(
                charge_id="c1", lease_id="lease-1", kind=ChargeKind.CELL, amount_nusd=291_667, start_ms=T0, end_ms=T0
            ),
            Charge(charge_id="c2", lease_id="lease-1", kind=ChargeKind.BOOT, amount_nusd=1, start_ms=T0, end_ms=T0),
        ]
        return CostList(charges=[replace(line, owner=mine) if mine else line for line in lines], as_of_ms=T0)

    def budgets(self) -> list[BudgetView]:
        return [BudgetView(budget=limit, spent_nusd=usd(1), reserved_nusd=usd(2)) for limit in self.limits]

    def set_budget(self, scope: Scope, key: str, limit_nusd: int | None, *, since_ms: int = 0) -> list[BudgetView]:
        self.limits = [Budget(scope=scope, key=key, limit_nusd=limit_nusd)] if limit_nusd is not None else []
        return self.budgets()

    def orphans(self) -> list[Any]:
        return []

    def marketplaces(self) -> list[MarketplaceInfo]:
        return [MarketplaceInfo(name="pool", usable=True), MarketplaceInfo(name="vast", usable=False, message="no key")]

    def health(self) -> BrokerInfo:
        return BrokerInfo(
            version="0.1.0",
            api_version=1,
            pid=7,
            state_folder="/state",
            started_ms=T0 - 5000,
            open_leases=len(self.views),
            marketplaces=("pool",),
            troubles=self.broker_troubles,
        )

    def story(self, lease: str) -> list[JournalLine]:
        return [JournalLine(seq=1, at_ms=T0, kind="lease.wished", subject=lease, body={"reason": "asked"})]

    def _enter(self, view: LeaseView, state: LeaseState) -> LeaseView:
        lease = view.lease
        phases = {**lease.phases, state.value: self.clock.now_ms()}
        reason = "no boot within 10 min" if state is S.FAILED else lease.reason
        lease = replace(lease, state=state, phases=phases, reason=reason, changed_ms=self.clock.now_ms())
        return self._put(replace(view, lease=lease, seq=view.seq + 1))

    def _put(self, view: LeaseView) -> LeaseView:
        self.views[view.lease.lease_id] = view
        return view
