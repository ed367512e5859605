"""One node's part in a map: the cell run that its time is booked on, its workers, and what it is fed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from jupyter_gpumarket.api import MapRequest, SeatView
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.runs import Run
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.mapfiles import PackReader
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire import mapping as mm
from jupyter_gpumarket.wire.messages import Input

logger = logging.getLogger(__name__)

Key = tuple[int, int]


class Seat:
    """A node that takes part. `state`: starting, ready, refused (with `reason`), or left."""

    def __init__(
        self, node: Node, *, number: int, run: Run, request: MapRequest, items: PackReader, folder: Path
    ) -> None:
        self.number = number
        self.node = node
        self.run = run
        self.state = "starting"
        self.reason = ""
        self.slots = 0
        self.is_asked = False
        self.silent_since_s: float | None = None
        self.leaving_since_s: float | None = None
        self.busy_ms = 0
        self.ended = 0
        self.unsaved: list[Key] = []
        self._request = request
        self._items = items
        self._folder = folder
        self._growing: dict[Key, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: asyncio.Task[None] | None = None

    @property
    def lease_id(self) -> str:
        return self.node.lease_id

    @property
    def takes_items(self) -> bool:
        """Whether it can be given something."""
        return self.state == "ready"

    def open(self) -> None:
        """Have the agent start workers; also to learn anew what it has, at each new contact."""
        if self.state in ("refused", "left"):
            return
        if self._opening is not None:
            self._opening.cancel()
        self._opening = self._start(self._open())

    def ready(self, report: mm.MapReady) -> None:
        """The agent has workers, or cannot have them."""
        if report.error or not 0 < report.slots <= 10_000:
            self.state, self.reason = "refused", report.error[:2000] or "the node named no number of workers"
            return
        self.state, self.slots, self.is_asked = "ready", report.slots, False
        if self.run.state.started_ms is None:
            self.node.talk.progress.begin_here(self.run)

    def feed(self, keys: Sequence[tuple[int, Key]]) -> None:
        """Give items: (item number, (entry, attempt))."""
        self._start(self._feed(keys))

    def ask_back(self, count: int) -> None:
        """Ask for items that have not begun."""
        self.is_asked = True
        self.node.talk.order(mm.TakeBack(map_id=self._request.map_id, count=count))

    def tell_saved(self, keys: list[Key]) -> None:
        """What is on the disk here, the node may forget."""
        self.node.talk.order(mm.OutcomesSaved(map_id=self._request.map_id, outcomes=tuple(keys)))

    def leave(self, status: RunStatus, reason: str) -> None:
        """End the workers and the cell run."""
        for task in self._tasks:
            task.cancel()
        if self.state != "refused":
            self.state, self.reason = "left", reason
        self.node.talk.order(mm.EndMap(map_id=self._request.map_id))
        if not self.run.state.has_ended:
            self.node.talk.progress.end_here(self.run, status, reason)

    def pause(self) -> None:
        """This process ends; the node goes on with what it has."""
        for task in self._tasks:
            task.cancel()

    def part(self, key: Key) -> Path:
        """Where a large result grows."""
        return self._folder / f"{self.number}-{key[0]}-{key[1]}.part"

    def grow(self, chunk: mm.ResultChunk, most: int) -> None:
        """Keep a piece of a large result; one that does not follow on what is here is passed over."""
        key = (chunk.index, chunk.attempt)
        here = 0 if chunk.offset == 0 else self._growing.get(key, -1)
        if chunk.offset != here or here + len(chunk.data) > most:
            return
        with self.part(key).open("r+b" if here else "wb") as file:
            file.seek(here)  # not at the end: a disk that was full may have taken a part of this piece before
            file.write(chunk.data)
        self._growing[key] = here + len(chunk.data)

    def grown(self, key: Key) -> int:
        """How much of a large result is here; it is asked once."""
        return self._growing.pop(key, 0)

    def view(self, running: int) -> SeatView:
        """The seat as doors see it."""
        return SeatView(
            lease_id=self.lease_id,
            run_id=self.run.run_id,
            slots=self.slots,
            state=self.state if self.silent_since_s is None or self.state != "ready" else "silent",
            ended=self.ended,
            running=running,
            busy_ms=self.busy_ms,
        )

    async def _open(self) -> None:
        request = self._request
        try:
            for sha256 in dict.fromkeys(blob.sha256 for blob in request.inputs):
                await self.node.talk.bring_blob(sha256)
        except (BadRequest, OSError) as error:
            if not isinstance(error, TimeoutError):  # a new agent: its contact opens anew
                self.state, self.reason = "refused", f"an input could not be sent to the node: {error}"
            return
        self.node.talk.order(
            mm.StartMap(
                map_id=request.map_id,
                code=request.code,
                item_name=request.item_name,
                gives_result=request.gives_result,
                inputs=tuple(Input(name=i.name, codec=i.codec, sha256=i.sha256) for i in request.inputs),
                slots=request.slots,
                timeout_s=request.timeout_s,
            )
        )

    async def _feed(self, keys: Sequence[tuple[int, Key]]) -> None:
        values = self._items.read([item for item, _ in keys])
        batch: list[mm.Item] = []
        weight = 0
        for value, (_, (entry, attempt)) in zip(values, keys, strict=True):
            if value.sha256:
                try:
                    await self.node.talk.bring_blob(value.sha256)
                except (BadRequest, OSError) as error:
                    # It stays the node's until the next contact, or until another node has nothing better to do.
                    logger.warning("an item could not be sent to %s: %s", self.lease_id, error)
                    continue
            batch.append(mm.Item(index=entry, attempt=attempt, codec=value.codec, data=value.data, sha256=value.sha256))
            weight += len(value.data)
            if weight > mm.MAX_GIVEN_BYTES:
                self._give(batch)
                batch, weight = [], 0
        self._give(batch)

    def _give(self, batch: list[mm.Item]) -> None:
        if batch:
            self.node.talk.order(mm.GiveItems(map_id=self._request.map_id, items=tuple(batch)))

    def _start(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("map %s on %s", self._request.map_id, self.lease_id, exc_info=error)
