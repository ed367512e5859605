"""Maps on a node: worker processes, the items that wait for them, and outcomes until the user's side has saved them.

What must hold:
1. An item with one attempt runs once here, however often it is given.
2. What was given and not given back is either waiting, begun, or an unsaved outcome; `MapReady` tells all of it.
3. A worker that dies takes only its own item with it, and the next item finds a new worker.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.agent.folder import NodeFolder, safe_name
from jupyter_gpumarket.agent.map_process import WorkerDied, WorkerProcess
from jupyter_gpumarket.agent.map_worker import Done, Setup, Task
from jupyter_gpumarket.agent.use import start_nvml
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire import mapping as mm
from jupyter_gpumarket.wire.messages import MAX_CHUNK_BYTES

MAX_SLOTS = 256
Key = tuple[int, int]
Send = Callable[[Any], Awaitable[None]]


class MapJobs:
    """All maps of this node. `changed` is called when one becomes busy or idle."""

    def __init__(
        self, folder: NodeFolder, environment: dict[str, str], send: Send, changed: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._send = send
        self._changed = changed
        self._jobs: dict[str, MapJob] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether an item waits or runs."""
        return any(job.is_busy for job in self._jobs.values())

    async def obey(self, order: mm.MapOrder) -> None:
        """Carry out an order; one about a map that is not here is late, and has no effect.

        Raises:
            BadRequest: the map cannot be started.
        """
        if isinstance(order, mm.StartMap):
            await self._start(order)
            return
        job = self._jobs.get(order.map_id)
        if job is None:
            return
        match order:
            case mm.GiveItems():
                job.give(order.items)
            case mm.TakeBack():
                job.take_back(order.count)
            case mm.OutcomesSaved():
                job.saved(order.outcomes)
            case mm.EndMap():
                del self._jobs[order.map_id]
                self._end(job)
        self._changed()

    def forget_peer(self) -> None:
        """The user's side is a new process: it will start anew what it wants to go on with."""
        for job in self._jobs.values():
            job.hold_back()

    async def close(self) -> None:
        """End all workers."""
        for job in self._jobs.values():
            self._end(job)
        self._jobs.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _start(self, order: mm.StartMap) -> None:
        safe_name(order.map_id, "map_id")
        job = self._jobs.get(order.map_id)
        if job is None:
            for item in order.inputs:
                if not self._folder.blob(item.sha256).exists():
                    raise BadRequest(f"the input {item.name!r} is not on the node: put its blob first")
            await asyncio.gather(*self._ending)  # a map that was stopped and goes on has the same folder
            job = self._jobs[order.map_id] = MapJob(
                order,
                folder=self._folder,
                environment=self._environment,
                gpus=visible_gpus(self._environment),
                send=self._send,
                changed=self._changed,
            )
        job.introduce()

    def _end(self, job: MapJob) -> None:
        task = asyncio.create_task(job.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class MapJob:
    """One map on this node."""

    def __init__(
        self,
        order: mm.StartMap,
        *,
        folder: NodeFolder,
        environment: dict[str, str],
        gpus: list[str],
        send: Send,
        changed: Callable[[], None],
    ) -> None:
        self._order = order
        self._blob = folder.blob
        self._folder = folder.root / "maps" / order.map_id
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._environment = environment
        self._gpus = gpus
        self._send = send
        self._changed = changed
        self._setup = Setup(
            code=order.code,
            item_name=order.item_name,
            gives_result=order.gives_result,
            inputs=tuple((item.name, item.codec, str(folder.blob(item.sha256))) for item in order.inputs),
        )
        self._slots = min(MAX_SLOTS, order.slots or max(1, len(gpus)))
        self._waiting: deque[mm.Item] = deque()
        self._begun: set[Key] = set()
        self._outcomes: dict[Key, mm.ItemOutcome] = {}
        self._due: deque[Any] = deque()
        self._wanted = asyncio.Event()
        self._has_news = asyncio.Event()
        self._error = ""
        self._tasks = [asyncio.create_task(self._tell())]
        self._tasks += [asyncio.create_task(self._serve(number)) for number in range(self._slots)]

    @property
    def is_busy(self) -> bool:
        """Whether an item waits or runs."""
        return bool(self._waiting or self._begun)

    def introduce(self) -> None:
        """Tell all that is here, then the outcomes that are not saved."""
        held = [mm.Held(index=item.index, attempt=item.attempt) for item in self._waiting]
        held += [mm.Held(index=i, attempt=a, begun=True) for i, a in (*self._begun, *self._outcomes)]
        ready = mm.MapReady(map_id=self._order.map_id, slots=self._slots, held=tuple(held), error=self._error)
        self._due = deque([ready, *self._outcomes.values()])
        self._has_news.set()

    def hold_back(self) -> None:
        """Say nothing until asked again."""
        self._due.clear()

    def give(self, items: tuple[mm.Item, ...]) -> None:
        """Take items, but for those that are here already."""
        here = {(item.index, item.attempt) for item in self._waiting} | self._begun | set(self._outcomes)
        self._waiting.extend(item for item in items if (item.index, item.attempt) not in here)
        self._wanted.set()

    def take_back(self, count: int) -> None:
        """Give back what has not begun, the last ones first."""
        back = [self._waiting.pop() for _ in range(min(max(0, count), len(self._waiting)))]
        self._say(mm.GivenBack(map_id=self._order.map_id, items=tuple((item.index, item.attempt) for item in back)))

    def saved(self, keys: tuple[Key, ...]) -> None:
        """Forget outcomes that are safe on the user's side."""
        for key in keys:
            if self._outcomes.pop(key, None) is not None:
                self._result_path(key).unlink(missing_ok=True)

    async def end(self) -> None:
        """Kill the workers and remove the files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, number: int) -> None:
        """One slot: a worker process, begun anew whenever it has died."""
        worker: WorkerProcess | None = None
        try:
            while True:
                try:
                    worker = worker or await self._worker(number)
                except (WorkerDied, OSError) as error:
                    self._refuse(str(error))
                    return
                item = await self._next()
                outcome, is_alive = await self._run(worker, item)
                if not is_alive:
                    await worker.kill()
                    worker = None
                self._ended(outcome)
        finally:
            if worker is not None:
                await worker.kill()

    async def _worker(self, number: int) -> WorkerProcess:
        environment = self._environment
        if self._gpus:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": self._gpus[number % len(self._gpus)]}
        return await WorkerProcess.start(self._setup, folder=self._folder, number=number, environment=environment)

    async def _next(self) -> mm.Item:
        while not self._waiting:
            self._wanted.clear()
            await self._wanted.wait()
        item = self._waiting.popleft()
        key = (item.index, item.attempt)
        self._begun.add(key)
        self._say(mm.ItemBegun(map_id=self._order.map_id, items=(key,)))
        return item

    async def _run(self, worker: WorkerProcess, item: mm.Item) -> tuple[mm.ItemOutcome, bool]:
        key = (item.index, item.attempt)
        task = Task(
            index=item.index,
            attempt=item.attempt,
            codec=item.codec,
            data=item.data,
            path=str(self._blob(item.sha256)) if item.sha256 else "",
            result_path=str(self._result_path(key)),
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            done = await asyncio.wait_for(worker.run(task), self._order.timeout_s)
            return self._outcome(key, done), True
        except TimeoutError:
            reason = f"it ran longer than its {self._order.timeout_s:g} s"
            failed = Done(status="timed_out", took_ms=0, error_name="TimeoutError", error_value=reason)
        except WorkerDied as death:
            failed = Done(status="died", took_ms=0, error_name="WorkerDied", error_value=str(death))
        took_ms = round((loop.time() - began) * 1000)
        return self._outcome(key, msgspec.structs.replace(failed, took_ms=took_ms)), False

    def _outcome(self, key: Key, done: Done) -> mm.ItemOutcome:
        fields = {name: getattr(done, name) for name in Done.__struct_fields__}
        return mm.ItemOutcome(map_id=self._order.map_id, index=key[0], attempt=key[1], **fields)

    def _ended(self, outcome: mm.ItemOutcome) -> None:
        key = (outcome.index, outcome.attempt)
        self._begun.discard(key)
        self._outcomes[key] = outcome
        self._say(outcome)
        if not self.is_busy:
            self._changed()

    def _refuse(self, reason: str) -> None:
        """A worker that cannot even start: this node cannot run the map, and gives everything back."""
        if self._error:
            return
        self._error = reason
        sys.stderr.write(f"agent: map {self._order.map_id}: {reason}\n")
        self._waiting.clear()
        self.introduce()
        self._changed()

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, report: Any) -> None:
        self._due.append(report)
        self._has_news.set()

    async def _tell(self) -> None:
        """Send what is due, in its order; a large result's bytes go before its outcome."""
        while True:
            while not self._due:
                self._has_news.clear()
                await self._has_news.wait()
            report = self._due.popleft()
            if isinstance(report, mm.ItemBegun):
                report = self._joined(report)
            if isinstance(report, mm.ItemOutcome) and report.size > len(report.data):
                await self._send_result(report)
            await self._send(report)

    def _joined(self, report: mm.ItemBegun) -> mm.ItemBegun:
        items = list(report.items)
        while self._due and isinstance(self._due[0], mm.ItemBegun):
            items += self._due.popleft().items
        return mm.ItemBegun(map_id=report.map_id, items=tuple(items))

    async def _send_result(self, outcome: mm.ItemOutcome) -> None:
        path = self._result_path((outcome.index, outcome.attempt))
        if not path.exists():
            return  # saved meanwhile
        with path.open("rb") as file:
            offset = 0
            while data := file.read(MAX_CHUNK_BYTES):
                chunk = mm.ResultChunk(
                    map_id=outcome.map_id, index=outcome.index, attempt=outcome.attempt, offset=offset, data=data
                )
                await self._send(chunk)
                offset += len(data)

    def _result_path(self, key: Key) -> Path:
        return self._folder / f"result-{key[0]}-{key[1]}"


def visible_gpus(environment: dict[str, str]) -> list[str]:
    """The GPUs that a program here sees, as CUDA_VISIBLE_DEVICES names them."""
    told = environment.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    nvml = start_nvml()
    if nvml is None:
        return []
    try:
        return [str(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
