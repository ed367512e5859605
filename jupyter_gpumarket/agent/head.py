"""Loaded into the Dask scheduler (`--preload`): tells what it does in a file, and retires workers when a file asks.

Files in the working folder, because the agent that reads them needs no Dask connection then, and the scheduler no
door of its own: `status.json` is written while it changes, `retire.json` names workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from jupyter_gpumarket.agent.graphs import Graphs
from jupyter_gpumarket.wire.messages import DaskStatus, DaskWorkerStatus

EVERY_MS = 500
STATUS = "status.json"
RETIRE = "retire.json"
MAX_POISONED = 20
MAX_KEY_CHARS = 200


class Poisoned(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """Remembers tasks that ended as errors because workers died with them."""

    name = "gpumarket-poisoned"

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.keys: list[str] = []

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Called by the scheduler for each step of a task."""
        if finish != "erred" or start == finish:
            return
        task = self._scheduler.tasks.get(key)
        if task is not None and task.suspicious > self._scheduler.allowed_failures:
            self.keys = [*self.keys, str(key)[:MAX_KEY_CHARS]][-MAX_POISONED:]


class Desk:
    """Reads and writes the two files."""

    def __init__(self, scheduler: Any, folder: Path) -> None:
        self._scheduler = scheduler
        self._folder = folder
        self._poisoned = Poisoned(scheduler)
        self._graphs = Graphs(scheduler)
        scheduler.add_plugin(self._poisoned)
        scheduler.add_plugin(self._graphs)
        self._told: DaskStatus | None = None
        self._retired: list[str] = []
        self._retiring: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """One turn."""
        status = self.status()
        if self._told is None or msgspec.structs.replace(status, at_ms=self._told.at_ms) != self._told:
            self._told = status
            draft = self._folder / f"{STATUS}.new"
            draft.write_bytes(msgspec.json.encode(status))
            os.replace(draft, self._folder / STATUS)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            wanted = msgspec.json.decode((self._folder / RETIRE).read_bytes(), type=list[str])
            for name in wanted:
                if name not in self._retiring:
                    self._retiring.add(name)
                    task = asyncio.ensure_future(self._retire(name))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _retire(self, name: str) -> None:
        """Dask moves what the worker alone holds to others, lets its running tasks end, and closes it."""
        try:
            await self._scheduler.retire_workers(names=[name], close_workers=True, remove=True)
        finally:
            self._retired.append(name)

    def status(self) -> DaskStatus:
        """What the scheduler does now."""
        counts: dict[str, int] = {}
        for prefix in list(self._scheduler.task_prefixes.values()):
            for state, count in prefix.states.items():
                counts[state] = counts.get(state, 0) + count
        workers = tuple(
            DaskWorkerStatus(
                name=str(worker.name)[:MAX_KEY_CHARS],
                processing=len(worker.processing),
                in_memory=len(worker.has_what),
                memory_bytes=int(worker.metrics.get("memory", 0) or 0) if worker.metrics else 0,
                occupancy_s=round(float(worker.occupancy), 1),
                nthreads=int(worker.nthreads),
                memory_limit=int(worker.memory_limit or 0),
            )
            for worker in list(self._scheduler.workers.values())
        )
        return DaskStatus(
            at_ms=time.time_ns() // 1_000_000,
            waiting=counts.get("waiting", 0),
            queued=counts.get("queued", 0),
            unrunnable=counts.get("no-worker", 0),
            processing=counts.get("processing", 0),
            in_memory=counts.get("memory", 0),
            erred=counts.get("erred", 0),
            occupancy_s=round(float(self._scheduler.total_occupancy), 1),
            workers=workers,
            retired=tuple(self._retired[-1000:]),
            poisoned=tuple(self._poisoned.keys),
            progress=self._graphs.progress(),
            graph=self._graphs.graph(),
        )


def dask_setup(scheduler: Any) -> None:
    """Called by Dask when the scheduler starts."""
    desk = Desk(scheduler, Path.cwd())
    callback = PeriodicCallback(desk.look, EVERY_MS)
    scheduler.periodic_callbacks["gpumarket-desk"] = callback
    callback.start()
