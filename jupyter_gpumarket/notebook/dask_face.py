"""What Dask's tools read of a cluster object, told from what the broker knows: no scheduler is asked for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from jupyter_gpumarket.api import Aim, ClusterView, DaskWorkerView


class Adapting:
    """Between how many nodes the queue decides; `stop` keeps those that are there. With an asynchronous cluster it may
    be awaited."""

    def __init__(self, aim: Aim, done: Any, *, stay: Callable[[], Any]) -> None:
        self.minimum = aim.minimum
        self.maximum = aim.maximum
        self._done = done
        self._stay = stay

    def stop(self) -> Any:
        """Have as many nodes as there are now."""
        return self._stay()

    def __await__(self) -> Generator[Any, None, Adapting]:
        async def told() -> Adapting:
            if self._done is not None:
                await self._done
            return self

        return told().__await__()

    def __repr__(self) -> str:
        return f"<adapting between {self.minimum} and {self.maximum} nodes>"


class DaskFace:
    """The names that `distributed.deploy.Cluster` has too."""

    asynchronous: bool
    _loop_runner: Any = None

    @property
    def view(self) -> ClusterView:
        """The cluster as the broker knows it."""
        raise NotImplementedError

    @property
    def scheduler_address(self) -> str:
        """Where a client finds the scheduler."""
        raise NotImplementedError

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
    def workers(self) -> dict[str, DaskWorkerView]:
        """The workers by name, those that come up or go too."""
        view = self.view
        return {worker.name: worker for worker in view.dask.workers if worker.state != "ended"} if view.dask else {}

    @property
    def observed(self) -> set[str]:
        """The names of workers that run."""
        return {name for name, worker in self.workers.items() if worker.state == "running"}

    @property
    def requested(self) -> set[str]:
        """The names of workers that run or come up, and of nodes that have none yet."""
        workers, leases = self.workers, self.view.leases
        served = {worker.lease_id for worker in workers.values()}
        return set(workers) | {lease.name for lease in leases if lease.lease_id not in served}

    @property
    def plan(self) -> set[str]:
        """The same without those that are on their way out."""
        return self.requested - {name for name, w in self.workers.items() if w.state in ("retiring", "retired")}

    @property
    def loop(self) -> Any:
        """A running tornado loop, where Dask's tools put their own work; nothing of this object runs in it."""
        from distributed.utils import LoopRunner

        if self._loop_runner is None:
            self._loop_runner = LoopRunner(asynchronous=self.asynchronous)
            self._loop_runner.start()
        return self._loop_runner.loop

    def get_client(self) -> Any:
        """`Client(cluster)`, for nodes of the user's own."""
        from distributed import Client

        return Client(self)
