"""`GPUCluster`: rented nodes with Dask on them, as the cluster object that Dask's tools know.

The scheduler, the workers and the driving client live on the nodes: `%%gpu` cells find `client` there. This object
speaks to the broker and the cluster process alone, so it unpickles nothing. Only for nodes that the user calls their
own does it also let a `distributed.Client` of this process in, because a client runs what its scheduler sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from jupyter_gpumarket import config
from jupyter_gpumarket.api import Aim, ClusterView, ClusterWish, DaskAccess, DaskWish
from jupyter_gpumarket.cleaning.text import clean_text
from jupyter_gpumarket.client import AsyncClient, connect_async
from jupyter_gpumarket.client.bridge import run
from jupyter_gpumarket.errors import BadRequest, GpuMarketError, LeaseFailed, NodeError
from jupyter_gpumarket.models import LeaseState, OfferQuery
from jupyter_gpumarket.money import format_usd, usd
from jupyter_gpumarket.notebook import fit
from jupyter_gpumarket.notebook.fit import Estimate
from jupyter_gpumarket.notebook.identity import owner
from jupyter_gpumarket.notebook.options import SyncOptions
from jupyter_gpumarket.notebook.stage import as_html
from jupyter_gpumarket.notebook.sync import bring_to

T = TypeVar("T")
POLL_S = 0.5
STALE_S = 0.5
CLOSE_PATIENCE_S = 60.0
READY = (LeaseState.READY, LeaseState.UNREACHABLE)


class NotTrusted(NodeError):
    """A Dask client here would run what strangers' machines send."""


class Adapting(NamedTuple):
    """Between how many nodes the queue decides."""

    minimum: int
    maximum: int


class GPUCluster:
    """A cluster of rented nodes with Dask.

    With `n` (or another limit) it is rented, or an existing one of this name changed; with a name alone, an existing
    one is found again, after a kernel restart for example. `budget` (dollars, as text) is for all nodes together.

    Raises:
        LeaseFailed: the nodes were not there in time; they are given back. BudgetExceeded: a budget is too small.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        gpu: str | None = None,
        budget: str | None = None,
        hours: float | None = None,
        name: str = "",
        max_price: str | None = None,
        region: str | None = None,
        marketplaces: tuple[str, ...] = (),
        trust: bool = False,
        nthreads: int = 0,
        memory_limit: str = "auto",
        dashboard: bool | None = None,
        sync: bool | str | Sequence[str] = False,
        shutdown_on_close: bool = True,
        asynchronous: bool = False,
        timeout_s: float = 900,
    ) -> None:
        self._settings = config.load_settings(config.folders())
        self.name = name or f"cluster-{secrets.token_hex(2)}"
        self.asynchronous = asynchronous
        self.shutdown_on_close = shutdown_on_close
        self._timeout_s = timeout_s
        self._client: AsyncClient | None = None
        self._seen: ClusterView | None = None
        self._seen_s = 0.0
        self._access: tuple[int, DaskAccess] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_said = False
        self._wish: ClusterWish | None = None
        if n is not None or not name:
            count = 1 if n is None else n
            query = OfferQuery(
                gpu=gpu,
                region=region,
                marketplaces=marketplaces,
                max_price_nusd_hour=usd(max_price) if max_price else None,
            )
            self._wish = ClusterWish(
                aim=Aim(minimum=count, maximum=count),
                query=query,
                budget_nusd=usd(budget or self._settings.budget),
                max_s=round((hours or self._settings.hours) * 3600),
                owner=owner(self._settings.project, {}),
                trusted=trust,
                grace_s=self._settings.grace_s,
                dask=DaskWish(
                    nthreads=nthreads,
                    memory_limit=memory_limit,
                    dashboard=trust if dashboard is None else dashboard,
                ),
            )
        self._sync_first = sync_paths(sync)
        if not asynchronous:
            run(self._start())
            if self._sync_first is not None:
                self.sync_code(*self._sync_first)

    # ── what Dask's tools expect ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def view(self) -> ClusterView:
        """The cluster as the broker knows it: nodes, money, Dask, decisions."""
        if not self.asynchronous and time.monotonic() - self._seen_s > STALE_S:
            run(self._look())
        assert self._seen is not None, "await the cluster first"
        return self._seen

    @property
    def status(self) -> Any:
        """As `distributed` names it: created, running, closed."""
        from distributed.core import Status

        if self._is_closed or (self._seen is not None and self._seen.is_ended):
            return Status.closed
        return Status.running if self._seen is not None else Status.created

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """The scheduler's identity and workers, in Dask's form."""
        view = self.view
        workers = view.dask.workers if view.dask else ()
        told = {
            worker.address or worker.name: {
                "name": worker.name,
                "nthreads": worker.nthreads,
                "memory_limit": worker.memory_limit,
                "resources": {"GPU": 1} if worker.gpu is not None else {},
                "metrics": {"memory": worker.memory_bytes, "in_flight": worker.processing},
            }
            for worker in workers
            if worker.state == "running"
        }
        return {"type": "Scheduler", "id": view.cluster_id, "address": self.scheduler_address, "workers": told}

    @property
    def scheduler_address(self) -> str:
        """Where a client on this machine finds the scheduler; for strangers' nodes only a name, which leads nowhere."""
        if not self.is_trusted:
            return f"gpumarket://{self.name}"
        return self._granted().address

    @property
    def security(self) -> Any:
        """The certificate for `Client(cluster)`.

        Raises:
            NotTrusted: the nodes are not the user's own.
        """
        from distributed.security import Security

        if not self.is_trusted:
            raise NotTrusted(
                f"{self.name} runs on machines of strangers, and a Dask client in this notebook would run whatever "
                "they send, with your rights. Use `client` inside a %%gpu cell: there it runs on the head node. If "
                "the machines are your own, say so with trust=True (or the setting `trust`)"
            )
        access = self._granted()
        if not self._is_said:
            self._is_said = True
            print(f"{self.name} is trusted: its scheduler may run code in this notebook, as you")  # noqa: T201
        return Security(
            tls_ca_file=access.ca, tls_client_cert=access.cert, tls_client_key=access.key, require_encryption=True
        )

    @property
    def is_trusted(self) -> bool:
        """Whether the user has said that all its nodes are their own."""
        view = self.view
        places = {lease.offer.marketplace for lease in view.leases if lease.offer is not None}
        return view.wish.trusted or (bool(places) and places <= set(self._settings.trust))

    @property
    def dashboard_link(self) -> str:
        """The scheduler's dashboard on this machine; empty for strangers' nodes, whose pages are not let in."""
        return self._granted().dashboard if self.is_trusted and self.view.wish.dask and self._is_up() else ""

    def scale(self, n: int) -> Any:
        """Have so many nodes."""
        return self._do(self._aim(Aim(minimum=n, maximum=n)))

    def adapt(
        self,
        minimum: int = 1,
        maximum: int = 4,
        *,
        max_usd_hour: str | None = None,
        finish_by: dt.datetime | None = None,
        **_: Any,
    ) -> Any:
        """Have as many nodes as the queue is worth, between these. `%gpu cluster why` tells the reasons.

        Args:
            max_usd_hour: what all nodes together may cost an hour, as text.
            finish_by: by when the work should be done; a time without a zone is local.
        """
        aim = Aim(
            minimum=max(1, minimum),
            maximum=maximum,
            max_nusd_hour=None if max_usd_hour is None else usd(max_usd_hour),
            finish_by_ms=None if finish_by is None else round(finish_by.timestamp() * 1000),
        )
        return self._do(self._aim(aim, Adapting(aim.minimum, maximum)))

    def estimate(
        self,
        collection: Any = None,
        *,
        tasks: int | None = None,
        seconds_each: float = 1.0,
        spread: float = 3.0,
        moved_bytes: int | None = None,
    ) -> Estimate:
        """What a computation would take here: time, cost, how much of it is moving data, and warnings.

        Args:
            collection: a Dask array, frame or delayed; tells how many tasks, and bytes (all of them move once).
            seconds_each, spread: one task's time, and by which factor that may be off.
        """
        view = self.view
        offers = [lease.offer for lease in view.leases if lease.offer is not None]
        lines = [fit.Line(name=o.provider or o.offer_id, up_mbps=o.up_mbps, down_mbps=o.down_mbps) for o in offers]
        is_relayed = view.dask is not None and view.dask.relayed > 0
        work = fit.Work(
            tasks=tasks if tasks is not None else fit.tasks_in(collection),
            seconds_each=seconds_each,
            spread=spread,
            moved_bytes=moved_bytes if moved_bytes is not None else fit.bytes_in(collection),
        )
        workers = max(1, sum(w.state == "running" for w in view.dask.workers) if view.dask else 1)
        return fit.estimate(
            work,
            [*([fit.Line(name="the line of this machine")] if is_relayed else []), *lines] or [fit.Line(name="a node")],
            workers=workers,
            rate_nusd_hour=view.rate_nusd_hour,
            is_relayed=is_relayed,
        )

    def sync_code(self, *paths: str, packages: bool = True, yes: bool = False) -> Any:
        """Bring your own modules to all nodes, also to those that come later, and by a plan the packages they need.

        Args:
            paths: files, folders or names of modules; none: what this process has loaded of your project.
            yes: install missing packages without asking.
        """
        options = SyncOptions(paths=paths, packages=packages, yes=yes or not self._settings.ask)
        leases = tuple(self.view.leases)
        return asyncio.to_thread(bring_to, leases, options) if self.asynchronous else bring_to(leases, options)

    def wait_for_workers(self, n_workers: int = 1, timeout: float | None = None) -> Any:
        """Wait until so many workers run.

        Raises:
            TimeoutError: not in time.
        """
        return self._do(self._wait_for_workers(n_workers, timeout))

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Any:  # noqa: ARG002 - Dask's signature
        """The agent's, scheduler's and workers' last words, by node."""
        return self._do(self._logs())

    logs = get_logs

    def close(self, timeout: float | None = None) -> Any:
        """Give all nodes back, unless `shutdown_on_close` is false."""
        return self._do(self._close(CLOSE_PATIENCE_S if timeout is None else timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self._close(CLOSE_PATIENCE_S)

    def __await__(self) -> Generator[Any, None, Self]:
        async def started() -> Self:
            if self._client is None:
                await self._start()
            return self

        return started().__await__()

    def __repr__(self) -> str:
        if self._seen is None:
            return f"GPUCluster({self.name!r}, not started)"
        return f"GPUCluster({self.name!r}, {', '.join(f'{key} {value}' for key, value in self._facts())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{as_html(key)}</th><td>{as_html(value)}</td></tr>" for key, value in self._facts())
        return f"<b>GPUCluster {as_html(self.name)}</b><table>{rows}</table>"

    # ── what it does ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _do(self, work: Coroutine[Any, Any, T]) -> Any:
        return work if self.asynchronous else run(work)

    async def _start(self) -> None:
        self._client = await connect_async()
        if self._wish is None:
            await self._look()
        else:
            wish = self._wish
            self._note(await self._client.keep_cluster(self.name, wish))
            try:
                await self._until(is_complete, self._timeout_s)
            except BaseException as error:
                await self._client.end_cluster(self.name)
                if isinstance(error, TimeoutError):
                    told = "; ".join(self._seen.notices) if self._seen else ""
                    raise LeaseFailed(
                        f"{self.name} was not ready in {self._timeout_s:g} s and is given back. {told}"
                    ) from None
                raise
        if self.asynchronous:
            if self.is_trusted and self._is_up():
                await self._fetch_access()
            self._refreshing = asyncio.create_task(self._refresh())
            if self._sync_first is not None:
                await self.sync_code(*self._sync_first)

    async def _look(self) -> None:
        self._note(await self._broker().cluster_view(self.name))

    def _note(self, view: ClusterView) -> None:
        self._seen, self._seen_s = view, time.monotonic()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(2 * POLL_S)
            with contextlib.suppress(GpuMarketError):
                await self._look()
                if self.is_trusted and self._is_up():
                    await self._fetch_access()

    async def _aim(self, aim: Aim, answer: Adapting | None = None) -> Adapting | None:
        await self._look()
        assert self._seen is not None
        wish = msgspec.structs.replace(self._seen.wish, aim=aim)
        self._note(await self._broker().keep_cluster(self.name, wish))
        return answer

    async def _wait_for_workers(self, count: int, timeout_s: float | None) -> None:
        def enough(view: ClusterView) -> bool:
            return view.dask is not None and sum(w.state == "running" for w in view.dask.workers) >= count

        await self._until(enough, timeout_s)

    async def _until(
        self, holds: Callable[[ClusterView], bool], timeout_s: float | None, *, is_ending: bool = False
    ) -> None:
        async with asyncio.timeout(timeout_s):
            while True:
                await self._look()
                assert self._seen is not None
                if holds(self._seen):
                    return
                if self._seen.is_ended and not is_ending:
                    raise LeaseFailed(f"{self.name} has ended: {'; '.join(self._seen.notices)}")
                await asyncio.sleep(POLL_S)

    async def _logs(self) -> dict[str, str]:
        await self._look()
        assert self._seen is not None
        found = {}
        for lease in self._seen.leases:
            cluster = await self._broker().cluster(lease.lease_id)
            found[lease.name] = clean_text(await cluster.node_log(lease.lease_id))
            await cluster.aclose()
        return found

    async def _close(self, timeout_s: float) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self.shutdown_on_close:
            self._note(await self._broker().end_cluster(self.name))
            with contextlib.suppress(TimeoutError):
                await self._until(lambda view: not view.leases, timeout_s, is_ending=True)
        await self._broker().aclose()

    async def _fetch_access(self) -> DaskAccess:
        view = self._seen
        assert view is not None
        generation = view.dask.generation if view.dask else 0
        if self._access is None or self._access[0] != generation:
            lease = next(lease for lease in view.leases if lease.state in READY)
            cluster = await self._broker().cluster(lease.lease_id)
            self._access = (generation, await cluster.dask_access())
            await cluster.aclose()
        return self._access[1]

    def _granted(self) -> DaskAccess:
        if not self._is_up():
            raise BadRequest(f"the Dask scheduler of {self.name} does not run at the moment")
        if not self.asynchronous:
            return run(self._fetch_access())
        assert self._access is not None, "await the cluster first"
        return self._access[1]

    def _is_up(self) -> bool:
        return self._seen is not None and self._seen.dask is not None and self._seen.dask.state == "running"

    def _broker(self) -> AsyncClient:
        assert self._client is not None, "await the cluster first"
        return self._client

    def _facts(self) -> list[tuple[str, str]]:
        view = self.view
        return facts_of(view) + ([("dashboard", self.dashboard_link)] if self.dashboard_link else [])


def sync_paths(wanted: bool | str | Sequence[str]) -> tuple[str, ...] | None:
    """What `sync=` says: True for what is loaded, paths or names for those, False for nothing."""
    if isinstance(wanted, bool):
        return () if wanted else None
    return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def is_complete(view: ClusterView) -> bool:
    """Whether as many nodes as are asked for at least are ready, each with a running worker."""
    if view.dask is None or view.dask.state != "running":
        return False
    at_work = {worker.lease_id for worker in view.dask.workers if worker.state == "running"}
    ready = [lease for lease in view.leases if lease.state in READY and lease.lease_id in at_work]
    return len(ready) >= max(1, view.wish.aim.minimum)


def facts_of(view: ClusterView) -> list[tuple[str, str]]:
    """A cluster in a few lines."""
    ready = sum(lease.state in READY for lease in view.leases)
    aim = view.wish.aim
    asked = str(aim.maximum) if aim.minimum == aim.maximum else f"{aim.minimum} to {aim.maximum}"
    dask = view.dask
    workers = sum(worker.state == "running" for worker in dask.workers) if dask else 0
    threads = sum(worker.nthreads for worker in dask.workers) if dask else 0
    head = next((lease.name for lease in view.leases if dask and lease.lease_id == dask.head), "none yet")
    limit, spent = format_usd(view.wish.budget_nusd), format_usd(view.spent_nusd, places=6)
    return [
        ("nodes", f"{ready} ready of {asked} asked for"),
        ("workers", f"{workers} with {threads} threads"),
        ("head", head),
        ("cost", f"{spent} of {limit} so far, {format_usd(view.rate_nusd_hour)}/h"),
    ]
