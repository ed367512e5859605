"""A node as the cluster process sees it, played by the test: an agent on a Unix socket that does what it is told.

It lives in the test's process, so that the cluster process can be killed, and it can be cut off, restarted, or lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from jupyter_gpumarket.errors import PeerRestarted
from jupyter_gpumarket.wire import messages as wire
from jupyter_gpumarket.wire.door import DoorOrder
from jupyter_gpumarket.wire.peer import Peer


class FakeRun:
    """A run as the node keeps it."""

    def __init__(self, order: wire.Execute) -> None:
        self.order = order
        self.status = "running"
        self.started_ms = now_ms()
        self.ended_ms: int | None = None
        self.messages: list[wire.RunOutput] = []
        self.outputs: dict[str, tuple[str, bytes, str]] = {}
        self.tailed = False

    def state(self) -> wire.RunStateReport:
        return wire.RunStateReport(
            run_id=self.order.run_id,
            session=self.order.session,
            status=self.status,
            messages=len(self.messages),
            started_ms=self.started_ms,
            ended_ms=self.ended_ms,
            outputs=tuple(
                wire.OutputReport(
                    name=name,
                    codec=codec,
                    size=len(data),
                    sha256=hashlib.sha256(data).hexdigest() if data else "",
                    error=error,
                )
                for name, (codec, data, error) in self.outputs.items()
            ),
        )


class FakeNode:
    """An agent. `executed` lists every Execute order that it obeyed; `orders` everything it was told."""

    _pids = itertools.count(1000)

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"node-{os.urandom(3).hex()}.sock"
        self.runs: dict[str, FakeRun] = {}
        self.blobs: dict[str, bytearray] = {}
        self._growing: dict[str, bytearray] = {}
        self.executed: list[str] = []
        self.orders: list[Any] = []
        self.bytes_sent_of_outputs = 0
        self.is_down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begin()

    def _begin(self) -> None:
        self.pid = next(self._pids)
        self.peer = Peer(boot_id=os.urandom(8).hex(), receives=wire.Order | DoorOrder, sends=wire.Report, answers=True)
        self.receiving = self._spawn(self._receive(self.peer))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks = {t for t in getattr(self, "_tasks", set()) if not t.done()} | {task}
        return task

    # ── what tests do to it ──────────────────────────────────────────────────────────────────────────────────────────

    def cut(self) -> None:
        """Every connection ends."""
        for writer in list(self._writers):
            writer.transport.abort()

    def go_down(self) -> None:
        """Cut, and unreachable until `come_up`."""
        self.is_down = True
        self.cut()

    def come_up(self) -> None:
        self.is_down = False

    def restart_agent(self, *, forgets: bool) -> None:
        """Another agent process on the same node; it may have lost its memory of runs."""
        self.receiving.cancel()
        self.cut()
        if forgets:
            self.runs.clear()
        for run in self.runs.values():
            run.tailed = False
        self._begin()

    async def say(self, run_id: str, text: str, kind: str = "stream") -> None:
        """One output message of a run."""
        content = {"name": "stdout", "text": text} if kind == "stream" else {"data": {"text/plain": text}}
        await self.emit(run_id, kind, json.dumps(content).encode())

    async def emit(self, run_id: str, kind: str, content: bytes, metadata: bytes = b"{}") -> None:
        run = self.runs[run_id]
        message = wire.RunOutput(
            run_id=run_id,
            n=len(run.messages) + 1,
            at_ms=now_ms(),
            msg_type=kind,
            content=content,
            metadata=metadata,
        )
        run.messages.append(message)
        if run.tailed:
            await self.peer.send(message)

    async def finish(self, run_id: str, status: str = "ok", **outputs: tuple[str, bytes] | str) -> None:
        """The run ends; outputs are (codec, bytes) or an error's text."""
        run = self.runs[run_id]
        run.status, run.ended_ms = status, now_ms()
        for name, found in outputs.items():
            run.outputs[name] = ("", b"", found) if isinstance(found, str) else (*found, "")
        await self.peer.send(run.state())

    # ── the agent ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.close()
            return
        self._writers.add(writer)
        peer = self.peer
        try:
            await peer.attach(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _receive(self, peer: Peer) -> None:
        await peer.send(self._ready())
        while True:
            try:
                order = await peer.receive()
            except PeerRestarted:
                for run in self.runs.values():
                    run.tailed = False
                await peer.send(self._ready())
                continue
            self.orders.append(order)
            self._spawn(self._obey(order))

    def _ready(self) -> wire.AgentReady:
        return wire.AgentReady(python="3.11", versions={}, pid=self.pid, started_ms=1, sessions=("main",))

    async def _obey(self, order: Any) -> None:
        match order:
            case wire.Execute():
                if order.run_id not in self.runs:
                    self.executed.append(order.run_id)
                    self.runs[order.run_id] = FakeRun(order)
                await self.peer.send(self.runs[order.run_id].state())
            case wire.Tail() if order.run_id in self.runs:
                run = self.runs[order.run_id]
                run.tailed = True
                for message in run.messages[order.after :]:
                    await self.peer.send(message)
            case wire.Interrupt() if order.run_id in self.runs:
                await self.finish(order.run_id, "interrupted")
            case wire.ListRuns():
                await self.peer.send(wire.RunList(runs=tuple(run.state() for run in self.runs.values())))
            case wire.PutBlob():
                await self._put(order)
            case wire.GetOutput():
                await self._give(order)
            case wire.Saved(ended=True):
                self.runs.pop(order.run_id, None)

    async def _put(self, order: wire.PutBlob) -> None:
        known = self.blobs.get(order.sha256)
        if known is not None:
            if order.last:
                await self.peer.send(wire.BlobStored(sha256=order.sha256))
            return
        blob = self._growing.setdefault(order.sha256, bytearray())
        if order.offset != len(blob):
            await self.peer.send(wire.BlobStored(sha256=order.sha256, error="send it anew from 0"))
            return
        blob += order.data
        if order.last:
            good = hashlib.sha256(blob).hexdigest() == order.sha256
            if good:
                self.blobs[order.sha256] = self._growing.pop(order.sha256)
            await self.peer.send(wire.BlobStored(sha256=order.sha256, error="" if good else "the hash differs"))

    async def _give(self, order: wire.GetOutput) -> None:
        _, data, _ = self.runs[order.run_id].outputs[order.name]
        offset, is_last = order.offset, False
        while not is_last:
            piece = data[offset : offset + 256 * 1024]
            is_last = offset + len(piece) >= len(data)
            self.bytes_sent_of_outputs += len(piece)
            with contextlib.suppress(asyncio.CancelledError):
                await self.peer.send(
                    wire.OutputChunk(run_id=order.run_id, name=order.name, offset=offset, data=piece, last=is_last)
                )
            offset += len(piece)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


__all__ = ["FakeNode"]
