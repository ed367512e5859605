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
from typing import Any, Self, TypeVar

import msgspec

from jupyter_gpumarket import config
from jupyter_gpumarket.api import Aim, ClusterView, ClusterWish, DaskAccess, DaskWish
from jupyter_gpumarket.cleaning.text import clean_text
from jupyter_gpumarket.client import AsyncClient, connect_async
from jupyter_gpumarket.client.bridge import run
from jupyter_gpumarket.errors import BadRequest, GpuMarketError, LeaseError, LeaseFailed, NodeError
from jupyter_gpumarket.models import ENDED_STATES, OfferQuery
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook import fit
from jupyter_gpumarket.notebook.cluster_begun import living, take_back
from jupyter_gpumarket.notebook.cluster_display import READY, LiveView, facts_of, html_of, is_complete, is_over
from jupyter_gpumarket.notebook.dask_face import Adapting, DaskFace
from jupyter_gpumarket.notebook.fit import Estimate
from jupyter_gpumarket.notebook.identity import in_jupyter_server, owner
from jupyter_gpumarket.notebook.options import SyncOptions, node_count, said_budget
from jupyter_gpumarket.notebook.sync import bring_to, sync_paths

T = TypeVar("T")
POLL_S = 0.5
STALE_S = 0.5
CLOSE_PATIENCE_S = 60.0


class NotTrusted(NodeError):
    """A Dask client here would run what strangers' machines send."""


class GPUCluster(DaskFace):
    """A cluster of rented nodes with Dask.

    With `n`, or without a name, it is rented, or an existing one of this name changed; with a name and no `n`, an
    existing one is found again as it is, after a kernel restart for example. `budget` (dollars, as text) is for all
    nodes together, and has to be said to rent: it is the consent.

    Raises:
        BadRequest: no budget was said. BudgetExceeded: it, or another budget, is too small.
        LeaseFailed: the nodes were not there in time; they are given back. So they are after an error of `sync`.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        gpu: str | None = None,
        budget: str | int | None = None,
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
        self._is_named = bool(name)
        self._before: ClusterView | None = None
        self._seen: ClusterView | None = None
        self._seen_s = 0.0
        # Another cluster may have its name, after this one has ended.
        self._cluster_id = ""
        self._access: tuple[int, DaskAccess] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._live: LiveView | None = None
        self._is_closed = False
        self._is_said = False
        self._wish: ClusterWish | None = None
        if n is not None or not name:
            count = 1 if n is None else node_count(n)
            query = OfferQuery(
                gpu=gpu,
                region=region,
                marketplaces=marketplaces,
                max_price_nusd_hour=usd(max_price) if max_price else None,
            )
            self._wish = ClusterWish(
                aim=Aim(minimum=count, maximum=count),
                query=query,
                budget_nusd=said_budget(budget),
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
                try:
                    self.sync_code(*self._sync_first)
                except BaseException:
                    run(self._abandon())
                    raise

    # ── what Dask's tools expect ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def view(self) -> ClusterView:
        """The cluster as the broker knows it: nodes, money, Dask, decisions."""
        if not (self.asynchronous or self._is_closed) and time.monotonic() - self._seen_s > STALE_S:
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
    def scheduler_address(self) -> str:
        """Where a client on this machine finds the scheduler; for strangers' nodes only a name, which leads nowhere."""
        if not (self.is_trusted and self._is_up()):
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
        return self.view.is_trusted(self._settings.trust)

    @property
    def dashboard_link(self) -> str:
        """The scheduler's dashboard: in a notebook of a Jupyter server through that server, else on this machine.

        Empty for strangers' nodes, whose pages are not let in; what this object shows of itself tells the same.
        """
        wish = self.view.wish.dask
        if not (self.is_trusted and self._is_up()) or wish is None or not wish.dashboard:
            return ""
        base = in_jupyter_server()
        return f"{base}gpumarket/clusters/{self.name}/dashboard/status" if base else self._granted().dashboard

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
        least_work_s: float = 60.0,
        idle_s: float = 30.0,
        steady_s: float = 120.0,
        **_: Any,
    ) -> Adapting:
        """Have as many nodes as the queue is worth, between these. `%gpu cluster why` tells the reasons.

        Args:
            max_usd_hour: what all nodes together may cost an hour, as text.
            finish_by: by when the work should be done; a time without a zone is local.
            least_work_s: so much of the waiting work a new node has to have.
            idle_s: so long a node has to have had nothing to do before it is given back.
            steady_s: so long after a step in one direction before one in the other.
        """
        aim = Aim(
            minimum=max(1, minimum),
            maximum=maximum,
            max_nusd_hour=None if max_usd_hour is None else usd(max_usd_hour),
            finish_by_ms=None if finish_by is None else round(finish_by.timestamp() * 1000),
            least_work_s=least_work_s,
            idle_s=idle_s,
            steady_s=steady_s,
        )
        return Adapting(aim, self._do(self._aim(aim)), stay=self._stay)

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
        work = fit.Work(
            tasks=tasks if tasks is not None else fit.tasks_in(collection),
            seconds_each=seconds_each,
            spread=spread,
            moved_bytes=moved_bytes if moved_bytes is not None else fit.bytes_in(collection),
        )
        return fit.on_cluster(self.view, work)

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
            TimeoutError: not in time. ValueError: not a number of workers.
        """
        if not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"n_workers must be a whole number from 1 up, not {n_workers!r}")
        return self._do(self._wait_for_workers(n_workers, timeout))

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Any:
        """The last words by node (the head has the scheduler's), and as `Cluster` what was decided about its size."""
        return self._do(self._logs(cluster=cluster, scheduler=scheduler, workers=workers))

    logs = get_logs

    def close(self, timeout: float | None = None) -> Any:
        """Give all nodes back, unless `shutdown_on_close` is false."""
        return self._do(self._close(CLOSE_PATIENCE_S if timeout is None else timeout))

    def __enter__(self) -> Self:
        if self.asynchronous:
            raise TypeError("this cluster is asynchronous: use `async with`")
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
        """As it was when it was last looked at: nothing is asked for this."""
        if self._seen is None:
            return f"GPUCluster({self.name!r}, not started)"
        return f"GPUCluster({self.name!r}, {', '.join(f'{key} {value}' for key, value in facts_of(self._seen))})"

    def _repr_html_(self) -> str:
        return html_of(self.view, self.dashboard_link)

    def _ipython_display_(self) -> None:
        """Live where widgets are shown, else as it is now."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        text = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if getattr(get_ipython(), "kernel", None) is None:
            display(text, raw=True)
            return
        if self._live is None:
            self._live = LiveView(self._shown, in_thread=not self.asynchronous)
        display({**self._live.bundle(), **text}, raw=True)

    def _shown(self) -> str | None:
        if self._is_closed:
            return None
        seen = self._seen
        return html_of(seen) if seen is not None and is_over(seen) else self._repr_html_()

    # ── what it does ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """At once, or begun and to be awaited: Dask's tools do not await all that they begin."""
        return self._begin(work) if self.asynchronous else run(work)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stay(self) -> Any:
        count = sum(lease.state not in ENDED_STATES for lease in self.view.leases)
        return self._do(self._aim(Aim(minimum=count, maximum=count)))

    async def _start(self) -> None:
        self._client = await connect_async()
        if self._wish is None:
            await self._look()
        else:
            wish = self._wish
            self._before = await living(self._client, self.name) if self._is_named else None
            try:
                self._note(await self._client.keep_cluster(self.name, wish))
                await self._until(is_complete, self._timeout_s)
            except BaseException as error:
                if self._seen is None and isinstance(error, GpuMarketError):
                    raise  # refused: then nothing is kept
                with contextlib.suppress(BadRequest):  # it may not have arrived
                    await take_back(self._client, self.name, self._before)
                if isinstance(error, TimeoutError):
                    told = "; ".join(self._seen.notices) if self._seen else ""
                    now = "given back" if self._before is None else "as it was before"
                    raise LeaseFailed(
                        f"{self.name} was not ready in {self._timeout_s:g} s and is {now}. {told}"
                    ) from None
                raise
        if self.asynchronous:
            if self.is_trusted and self._is_up():
                await self._fetch_access()
            self._refreshing = self._begin(self._refresh())
            if self._sync_first is not None:
                try:
                    await self.sync_code(*self._sync_first)
                except BaseException:
                    await self._abandon()
                    raise

    async def _abandon(self) -> None:
        """Nobody gets this object: give back what was rented for it, whose name nobody would know."""
        self.shutdown_on_close = self._wish is not None and self._before is None
        await self._close(CLOSE_PATIENCE_S)

    async def _look(self) -> None:
        self._note(await self._broker().cluster_view(self.name))

    def _note(self, view: ClusterView) -> None:
        self._seen, self._seen_s = view, time.monotonic()
        self._cluster_id = self._cluster_id or view.cluster_id

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(2 * POLL_S)
            if self._seen is not None and is_over(self._seen):
                continue
            with contextlib.suppress(GpuMarketError):
                await self._look()
                if self.is_trusted and self._is_up():
                    await self._fetch_access()
                if self._live is not None:
                    self._live.update()

    async def _aim(self, aim: Aim) -> None:
        await self._look()
        assert self._seen is not None
        # It may end meanwhile, and would be rented anew.
        wish = msgspec.structs.replace(self._seen.wish, aim=aim, cluster_id=self._cluster_id)
        self._note(await self._broker().keep_cluster(self.name, wish))

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

    async def _logs(self, *, cluster: bool, scheduler: bool, workers: bool) -> dict[str, str]:
        await self._look()
        view = self._seen
        assert view is not None
        found = {}
        if cluster:
            found["Cluster"] = "\n".join("; ".join(decision.reasons) for decision in view.decisions)
        for lease in view.leases:
            if lease.state in READY and (workers or (scheduler and view.dask and lease.lease_id == view.dask.head)):
                async with contextlib.aclosing(await self._broker().cluster(lease.lease_id)) as node:
                    found[lease.name] = clean_text(await node.node_log(lease.lease_id))
        return found

    async def _close(self, timeout_s: float) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._live is not None:
            self._live.stop()
        if self.shutdown_on_close:
            try:
                with contextlib.suppress(LeaseError):  # another one has its name by now: this one ended before
                    self._note(await self._broker().end_cluster(self.name, self._cluster_id))
                    with contextlib.suppress(TimeoutError):
                        await self._until(lambda view: not view.leases, timeout_s, is_ending=True)
            except BaseException:
                self._is_closed = False  # the nodes are still rented: it has to be possible to try again
                raise
        await self._broker().aclose()

    async def _fetch_access(self) -> DaskAccess:
        view = self._seen
        assert view is not None
        generation = view.dask.generation if view.dask else 0
        if self._access is None or self._access[0] != generation:
            lease = next((lease for lease in view.leases if lease.state in READY), None)
            if lease is None:
                raise BadRequest(f"no node of {self.name} is ready at the moment")
            async with contextlib.aclosing(await self._broker().cluster(lease.lease_id)) as cluster:
                self._access = (generation, await cluster.dask_access())
        return self._access[1]

    def _granted(self) -> DaskAccess:
        if not self._is_up():
            raise BadRequest(f"the Dask scheduler of {self.name} does not run at the moment")
        if not self.asynchronous:
            return run(self._fetch_access())
        if self._access is None:
            raise BadRequest(f"await {self.name} first: the way to its scheduler has not been asked for yet")
        return self._access[1]

    def _is_up(self) -> bool:
        return self._seen is not None and self._seen.dask is not None and self._seen.dask.state == "running"

    def _broker(self) -> AsyncClient:
        assert self._client is not None, "await the cluster first"
        return self._client
