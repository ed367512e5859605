"""What Dask's scheduler last said of itself, and how a fleet looks to those who ask."""

from __future__ import annotations

from collections.abc import Collection

from jupyter_gpumarket.api import DaskGraph, DaskProgress, DaskTasks, DaskWayView, DaskWorkerView
from jupyter_gpumarket.cluster.doors import Doors
from jupyter_gpumarket.cluster.fleet_members import Member, Process
from jupyter_gpumarket.cluster.ways import Ways
from jupyter_gpumarket.wire import messages as wire

MAX_WAYS = 200
MAX_KINDS = 12
MAX_COUNT = 2**53


class News:
    """The last report of the scheduler of this generation."""

    def __init__(self) -> None:
        self.tasks = DaskTasks()
        self._workers: dict[str, wire.DaskWorkerStatus] = {}

    def take(self, report: wire.DaskStatus, now_ms: int) -> None:
        """The scheduler reports, bounded."""
        self._workers = {worker.name: worker for worker in report.workers}
        self.tasks = tasks_of(report, now_ms)

    def has_work(self, name: str) -> bool:
        """Whether a worker has tasks."""
        stats = self._workers.get(name)
        return stats is not None and stats.processing > 0

    def worker_view(self, process: Process, member: Member | None) -> DaskWorkerView:
        """A worker as doors see it."""
        stats = self._workers.get(process.name)
        is_retiring = process.state == "running" and member is not None and member.is_retiring
        return DaskWorkerView(
            name=process.name,
            lease_id=process.lease_id,
            state="retiring" if is_retiring else process.state,
            address=process.address,
            gpu=process.gpu,
            processing=stats.processing if stats else 0,
            in_memory=stats.in_memory if stats else 0,
            memory_bytes=stats.memory_bytes if stats else 0,
            memory_limit=stats.memory_limit if stats else 0,
            nthreads=stats.nthreads if stats else 0,
            occupancy_s=max(0.0, min(stats.occupancy_s, 1e9)) if stats else 0.0,
        )


def count_ways(ways: Ways, doors: Doors, networks: Collection[str], workers: Collection[Process]) -> tuple[int, int]:
    """How many of the ways to workers of another node lead there directly, and how many through the relay."""
    ports = {process.port for process in workers}
    listening = [(lease_id, port) for lease_id, port in ways.listening(networks) if port in ports]
    direct = len(doors.direct_ports().intersection(listening))
    return direct, len(listening) - direct


def way_views(doors: Doors) -> tuple[DaskWayView, ...]:
    """Each way between two nodes with its reason."""
    return tuple(
        DaskWayView(from_lease=one, to_lease=other, is_direct=way.is_direct, reason=way.reason[:300])
        for one, other, way in doors.ways()[:MAX_WAYS]
    )


def tasks_of(report: wire.DaskStatus, now_ms: int) -> DaskTasks:
    """What the head says of its scheduler, within limits: it is a node's word."""
    graph = report.graph
    return DaskTasks(
        at_ms=now_ms,
        waiting=report.waiting,
        queued=report.queued,
        unrunnable=report.unrunnable,
        processing=report.processing,
        in_memory=report.in_memory,
        erred=report.erred,
        occupancy_s=max(0.0, min(report.occupancy_s, 1e9)),
        poisoned=tuple(key[:200] for key in report.poisoned[:20]),
        progress=tuple(
            DaskProgress(
                name=one.name[:100],
                waiting=_count(one.waiting),
                processing=_count(one.processing),
                in_memory=_count(one.in_memory),
                done=_count(one.done),
                erred=_count(one.erred),
            )
            for one in report.progress[:MAX_KINDS]
        ),
        graph=None
        if graph is None
        else DaskGraph(
            number=_count(graph.number),
            at_ms=now_ms,
            tasks=_count(graph.tasks),
            known_tasks=min(_count(graph.known_tasks), _count(graph.tasks)),
            known_s=max(0.0, min(graph.known_s, 1e12)),
            moves=_count(graph.moves),
            known_moves=min(_count(graph.known_moves), _count(graph.moves)),
            moved_bytes=_count(graph.moved_bytes),
        ),
    )


def _count(number: int) -> int:
    return max(0, min(number, MAX_COUNT))
