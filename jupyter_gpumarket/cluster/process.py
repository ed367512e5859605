"""The cluster process itself: its parts, its start from what is on disk, its end.

One per folder (a lock on `cluster.lock`). It writes `cluster.json` when it listens, and ends when told, on SIGTERM, or
after some time without a node. Agents on nodes go on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec

from jupyter_gpumarket.api import Attach, NodeView, RunRequest
from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.cluster.code import Code
from jupyter_gpumarket.cluster.facts import FactQueue
from jupyter_gpumarket.cluster.fleet import Fleet
from jupyter_gpumarket.cluster.maps.store import MapStore
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.reach import Reach
from jupyter_gpumarket.cluster.records import NodeRecord, Start
from jupyter_gpumarket.cluster.runs import Run, RunStore
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import BadRequest, ConfigError
from jupyter_gpumarket.models import RunStatus

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
LONGEST_SAVE_S = 60.0


class Cluster:
    """Nodes, runs, inputs, and the facts for the broker."""

    def __init__(self, folder: Path, reach: Reach, clock: Clock | None = None) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        self.start = _read_start(folder)
        self.token = secrets.token_urlsafe(32)
        self._reach = reach
        self.clock: Clock = clock or SystemClock()
        self.runs = RunStore(folder / "runs")
        self.blobs = BlobStore(folder / "blobs")
        self.code = Code(folder, self.blobs)
        self.facts = FactQueue(folder, self.start.cluster_id)
        self.dask = Fleet(folder, self.clock, direct=self.start.direct)
        self._nodes_file = folder / "nodes.json"
        self._nodes: dict[str, Node] = {}
        self.maps = MapStore(folder / "maps", self)
        self._over = asyncio.Event()
        self._idle_since_s = self.clock.monotonic_s()
        for record in self._read_nodes():
            self._nodes[record.attach.lease_id] = self._node(record)

    async def run(self, url: str) -> None:
        """Say where it listens, work until told to end, close."""
        await self._forget_lost_runs()
        in_use = {i.sha256 for r in self.runs if not r.state.has_ended for i in r.state.request.inputs}
        self.blobs.drop_old(in_use | self.maps.blobs_in_use())
        for node in self._nodes.values():
            node.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        address = {"url": url, "token": self.token, "pid": os.getpid()}
        write_private(self.folder / "cluster.json", msgspec.json.encode(address))
        logger.info("cluster %s listens, %d nodes", self.start.cluster_id, len(self._nodes))
        work = (self.facts.deliver(), self._watch_idle(), self.dask.run())
        tasks = [asyncio.create_task(part) for part in work]
        self.maps.start()
        try:
            await self._over.wait()
        finally:
            for task in tasks:
                task.cancel()
            await self._close()

    def stay_awake(self) -> None:
        """Somebody called: a door may still be reading what a node that is gone has left."""
        self._idle_since_s = self.clock.monotonic_s()

    def end(self) -> None:
        """Ask the process to end; nodes stay attached for the next one."""
        self._over.set()

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, attach: Attach) -> NodeView:
        """Take a node in, or change what is known of one."""
        node = self._nodes.get(attach.lease_id)
        if node is not None:
            node.attach_again(attach)
            return node.view()
        record = NodeRecord(
            attach=attach,
            host_key=attach.host_key or attach.address.host_key,
            ready_ms=self.clock.now_ms() if attach.resume else None,
        )
        node = self._nodes[attach.lease_id] = self._node(record)
        self._save_nodes()
        node.start()
        return node.view()

    async def detach(self, lease_id: str, timeout_s: float, *, save_s: float = 0.0, reason: str = "") -> None:
        """Let a node go, with what its cells have declared as outputs; one that is not attached is gone already."""
        node = self._nodes.get(lease_id)
        if node is None:
            return
        await node.farewell.save(min(save_s, LONGEST_SAVE_S), reason)
        self.dask.leave(lease_id)
        await node.detach(timeout_s)
        self.maps.on_gone(lease_id)
        if self._nodes.get(lease_id) is node:
            del self._nodes[lease_id]
            self._save_nodes()
            self._idle_since_s = self.clock.monotonic_s()

    def node(self, lease_id: str) -> Node | None:
        """An attached node, or None."""
        return self._nodes.get(lease_id)

    def attached(self) -> Mapping[str, Node]:
        """Every attached node by its lease."""
        return self._nodes

    def nodes(self) -> list[NodeView]:
        """Every attached node."""
        return [node.view() for node in self._nodes.values()]

    # ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: RunRequest) -> Run:
        """Queue a cell run; the same request again is the same run.

        Raises:
            BadRequest: an unknown node, an input that was not put before, a name that is none.
        """
        node = self._nodes.get(request.lease_id)
        known = self.runs.find(request.run_id)
        if known is None:
            self._check(request)
        run, is_new = self.runs.create(request, self.clock.now_ms())
        if is_new and node is not None:
            node.talk.new_run()
        return run

    def interrupt(self, run: Run, save_for: str = "") -> None:
        """Interrupt a run, as soon as its node can hear it. `save_for`: why, when its outputs are wanted then."""
        node = self._nodes.get(run.state.request.lease_id)
        if node is not None:
            node.talk.interrupt(run, save_for)

    def _check(self, request: RunRequest) -> None:
        if request.lease_id not in self._nodes:
            raise BadRequest(f"lease_id: no node {request.lease_id[:100]!r} is attached to this cluster")
        for name in (*request.outputs, *(i.name for i in request.inputs)):
            if not name.isidentifier() or len(name) > 200:
                raise BadRequest(f"inputs or outputs: {name[:100]!r} is not the name of a variable")
        if len(set(request.outputs)) != len(request.outputs):
            raise BadRequest("outputs: a name stands there twice")
        for blob in request.inputs:
            if not self.blobs.has(blob.sha256):
                raise BadRequest(f"inputs: the bytes of {blob.name} are not here; PUT /v1/blobs/{blob.sha256} first")

    # ── start and end ────────────────────────────────────────────────────────────────────────────────────────────────

    def _node(self, record: NodeRecord) -> Node:
        node = Node(
            record,
            reach=self._reach,
            runs=self.runs,
            blobs=self.blobs,
            code=self.code,
            clock=self.clock,
            facts=self.facts,
            save=self._save_nodes,
            idle_tell_s=self.start.idle_tell_s,
        )
        self.dask.join(node)
        node.talk.on_contact = lambda: self.maps.on_contact(node.lease_id)
        node.talk.on_map = lambda report: self.maps.on_report(node.lease_id, report)
        return node

    def _read_nodes(self) -> list[NodeRecord]:
        if not self._nodes_file.exists():
            return []
        return msgspec.json.decode(self._nodes_file.read_bytes(), type=list[NodeRecord])

    def _save_nodes(self) -> None:
        write_private(self._nodes_file, msgspec.json.encode([node.record for node in self._nodes.values()]))

    async def _forget_lost_runs(self) -> None:
        """Runs whose node was let go while nobody wrote it down."""
        for run in self.runs:
            if not run.state.has_ended and run.state.request.lease_id not in self._nodes:
                run.change(
                    status=RunStatus.LOST,
                    node_status="lost",
                    is_settled=True,
                    reason="its node is not attached any more",
                )

    async def _watch_idle(self) -> None:
        """End after a time without nodes, once the broker knows everything."""
        while True:
            await asyncio.sleep(min(1.0, self.start.idle_stop_s / 4))
            quiet_s = self.clock.monotonic_s() - self._idle_since_s
            if self._nodes:
                self._idle_since_s = self.clock.monotonic_s()
            elif quiet_s >= self.start.idle_stop_s and (
                not self.facts.waiting or quiet_s > 20 * self.start.idle_stop_s
            ):
                logger.info("no node for %.0f s: ending", quiet_s)
                self._over.set()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.maps.close()
                await asyncio.gather(*(node.close() for node in self._nodes.values()), return_exceptions=True)
        self.dask.close()
        self.runs.close()
        self.facts.close()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "cluster.json").unlink()
        self._lock.close()
        logger.info("cluster %s has ended", self.start.cluster_id)


def _lock(folder: Path) -> IO[bytes]:
    descriptor = os.open(folder / "cluster.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(f"another cluster process works in {folder}") from None
    return file


def _read_start(folder: Path) -> Start:
    try:
        return msgspec.json.decode((folder / "start.json").read_bytes(), type=Start)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{folder / 'start.json'} cannot be read: {error}") from None
