"""The async clients for callers without an event loop: magics, CLI, plain scripts.

One background thread with one loop per process carries all calls, so a call also works inside a notebook kernel, whose
own loop is busy running the cell. Ctrl-C in the calling thread cancels the pending call and is raised.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from jupyter_gpumarket.api import RunCost
from jupyter_gpumarket.client.broker import AsyncClient, connect_async
from jupyter_gpumarket.client.cluster import AsyncClusterClient
from jupyter_gpumarket.config import Folders

INTERRUPT_POLL_S = 0.2

P = ParamSpec("P")
R = TypeVar("R")


class _Loop:
    """The background loop. A forked child gets its own: threads do not survive a fork."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run to the end, from a thread that is not the loop's own; an interrupt cancels the work."""
        future = self.begin(work)
        try:
            # In short waits: a signal that the system hands to another thread does not wake a sleeping main thread,
            # and Ctrl-C would only be seen at the end of the call.
            while not future.done():
                futures.wait([future], timeout=INTERRUPT_POLL_S)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, R]) -> futures.Future[R]:
        """Begin it, and do not wait."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="gpumarket-client", daemon=True).start()
            return self._loop


_LOOP = _Loop()
_A = TypeVar("_A", AsyncClient, AsyncClusterClient)


class _Bridged:
    """Holds the async twin of a sync client."""

    def __init__(self, twin: Any) -> None:
        self._twin = twin

    def close(self) -> None:
        """Close connections; the other side goes on."""
        _LOOP.run(self._twin.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bridged(
    method: Callable[Concatenate[_A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """The same method, waiting for its end."""

    def call(self: _Bridged, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _LOOP.run(method(self._twin, *args, **kwargs))

    call.__name__, call.__doc__, call.__qualname__ = method.__name__, method.__doc__, method.__qualname__
    return call


class ClusterClient(_Bridged):
    """`AsyncClusterClient` for threads without a loop: same methods, same errors."""

    run = _bridged(AsyncClusterClient.run)
    begin = _bridged(AsyncClusterClient.begin)
    runs = _bridged(AsyncClusterClient.runs)
    run_view = _bridged(AsyncClusterClient.run_view)
    messages = _bridged(AsyncClusterClient.messages)
    interrupt = _bridged(AsyncClusterClient.interrupt)
    put_blob = _bridged(AsyncClusterClient.put_blob)
    output = _bridged(AsyncClusterClient.output)
    start_map = _bridged(AsyncClusterClient.start_map)
    maps = _bridged(AsyncClusterClient.maps)
    map_news = _bridged(AsyncClusterClient.map_news)
    stop_map = _bridged(AsyncClusterClient.stop_map)
    resume_map = _bridged(AsyncClusterClient.resume_map)
    give_file = _bridged(AsyncClusterClient.give_file)
    stage = _bridged(AsyncClusterClient.stage)
    has_blob = _bridged(AsyncClusterClient.has_blob)
    nodes = _bridged(AsyncClusterClient.nodes)
    dask = _bridged(AsyncClusterClient.dask)
    start_dask = _bridged(AsyncClusterClient.start_dask)
    stop_dask = _bridged(AsyncClusterClient.stop_dask)
    dask_access = _bridged(AsyncClusterClient.dask_access)
    retire_dask = _bridged(AsyncClusterClient.retire_dask)
    code = _bridged(AsyncClusterClient.code)
    put_code = _bridged(AsyncClusterClient.put_code)
    look_for_packages = _bridged(AsyncClusterClient.look_for_packages)
    put_packages = _bridged(AsyncClusterClient.put_packages)
    restart_session = _bridged(AsyncClusterClient.restart_session)
    node_log = _bridged(AsyncClusterClient.node_log)


class Ahead:
    """Calls whose answers are needed later: they are under way while the caller does something else."""

    def __init__(self, twin: AsyncClient) -> None:
        self._twin = twin

    def run_cost(self, run_id: str, *, wait_s: float = 0) -> futures.Future[RunCost]:
        """`Client.run_cost`, begun now."""
        return _LOOP.begin(self._twin.run_cost(run_id, wait_s=wait_s))


class Client(_Bridged):
    """`AsyncClient` for threads without a loop: same methods, same errors."""

    health = _bridged(AsyncClient.health)
    marketplaces = _bridged(AsyncClient.marketplaces)
    offers = _bridged(AsyncClient.offers)
    prices = _bridged(AsyncClient.prices)
    searches = _bridged(AsyncClient.searches)
    keep_search = _bridged(AsyncClient.keep_search)
    drop_search = _bridged(AsyncClient.drop_search)
    wish = _bridged(AsyncClient.wish)
    leases = _bridged(AsyncClient.leases)
    lease = _bridged(AsyncClient.lease)
    release = _bridged(AsyncClient.release)
    extend = _bridged(AsyncClient.extend)
    story = _bridged(AsyncClient.story)
    keep_cluster = _bridged(AsyncClient.keep_cluster)
    cluster_view = _bridged(AsyncClient.cluster_view)
    clusters = _bridged(AsyncClient.clusters)
    end_cluster = _bridged(AsyncClient.end_cluster)
    start_run = _bridged(AsyncClient.start_run)
    run_cost = _bridged(AsyncClient.run_cost)
    runs = _bridged(AsyncClient.runs)
    costs = _bridged(AsyncClient.costs)
    budgets = _bridged(AsyncClient.budgets)
    set_budget = _bridged(AsyncClient.set_budget)
    orphans = _bridged(AsyncClient.orphans)
    reconcile = _bridged(AsyncClient.reconcile)
    shutdown = _bridged(AsyncClient.shutdown)

    @property
    def ahead(self) -> Ahead:
        """Calls that are begun now and answered later."""
        return Ahead(self._twin)

    @property
    def folders(self) -> Folders:
        """Where this user's files are."""
        found: Folders = self._twin.folders
        return found

    def cluster(self, lease: str) -> ClusterClient:
        """The cluster process of a lease."""
        return ClusterClient(_LOOP.run(self._twin.cluster(lease)))


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run what uses async clients to its end, in their loop; Ctrl-C cancels it and is raised."""
    return _LOOP.run(work)


def connect(folders: Folders | None = None, *, start: bool = True, timeout_s: float = 15) -> Client:
    """A client of this user's broker, which is started when none runs (and `start` is true).

    Raises:
        BrokerUnavailable: there is none and it cannot be started; the message ends with the last lines of its log.
    """
    return Client(_LOOP.run(connect_async(folders, start=start, timeout_s=timeout_s)))
