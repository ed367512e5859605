"""What the agent sends piece by piece: the output of a run as it grows, the bytes of an output variable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from jupyter_gpumarket.agent.runs import Run, RunStore
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire import messages as m

TAIL_BYTES = 256 * 1024

Key = tuple[str, ...]
Send = Callable[[Any], Awaitable[None]]
Put = Callable[[Key, Any], None]
Start = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


class Senders:
    """All that are at work."""

    def __init__(self, runs: RunStore, send: Send, put: Put, start: Start) -> None:
        self._runs = runs
        self._send = send
        self._put = put
        self._start = start
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def begin(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        """Start a sender, in place of an earlier one of the same thing."""
        if (former := self._tasks.pop(key, None)) is not None:
            former.cancel()
        task = self._tasks[key] = self._start(work)
        task.add_done_callback(lambda done: self._tasks.pop(key, None) if self._tasks.get(key) is done else None)

    def cancel(self) -> None:
        """Stop all: whoever listened is gone."""
        for task in self._tasks.values():
            task.cancel()

    def tail(self, order: m.Tail) -> None:
        """Send a run's messages from a number on, and go on as they come.

        Raises:
            BadRequest: there is no such run.
        """
        run = self._runs.get(order.run_id)
        if run is None:
            raise BadRequest("no such run on this node")
        self.begin(("tail", order.run_id), self._send_tail(run, order.after))

    def output(self, order: m.GetOutput) -> None:
        """Send an output variable's bytes from an offset on.

        Raises:
            BadRequest: the run has no such output.
        """
        run = self._runs.get(order.run_id)
        outputs = () if run is None else run.state.outputs
        if run is None or not any(output.name == order.name and not output.error for output in outputs):
            raise BadRequest(f"the run has no output {order.name!r}")
        path = run.output_file(order.name)
        self.begin(("output", order.run_id, order.name), self._send_output(order, path))

    async def _send_tail(self, run: Run, after: int) -> None:
        reader = run.log.reader(after)
        while True:
            run.grew.clear()
            while found := reader.read(TAIL_BYTES):
                for message in found:
                    await self._send(message)
            if run.has_ended and reader.after >= run.log.last:
                self._put(("run", run.run_id), run.report())
                return
            await run.grew.wait()

    async def _send_output(self, order: m.GetOutput, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = min(max(order.offset, 0), size)
            file.seek(offset)
            while True:
                data = file.read(m.MAX_CHUNK_BYTES)
                last = offset + len(data) >= size
                await self._send(
                    m.OutputChunk(run_id=order.run_id, name=order.name, offset=offset, data=data, last=last)
                )
                offset += len(data)
                if last:
                    return
