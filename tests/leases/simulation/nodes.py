"""Cluster processes and nodes of the simulation: they live on while the broker is down, and keep their facts for it."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_gpumarket.api import LinkBack, Linked, LinkLost, NodeFailed, NodeIdle, NodeLeaving, Prepared, Probed
from jupyter_gpumarket.errors import Temporary
from jupyter_gpumarket.models import Lease, Notice, SelfStop
from tests.leases.simulation.cloud import Cloud
from tests.leases.simulation.loop import INCARNATION

Deliver = Callable[[Any], Awaitable[bool]]


class _Failed(Exception):
    """This node is given up."""


class _ClusterCrashed(Exception):
    """The cluster process is gone; another one begins anew."""


class Nodes:
    """All cluster processes. `deliver` hands a fact to the broker; False: it is not up, try again."""

    def __init__(self, cloud: Cloud, rng: random.Random, deliver: Deliver) -> None:
        self._cloud = cloud
        self._rng = rng
        self._deliver = deliver
        self._lives: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._queue: list[Any] = []
        self._sender: asyncio.Task[None] | None = None
        self.deadlines: dict[str, int] = {}
        self.warned: dict[str, Notice | None] = {}

    def attach(self, lease: Lease) -> None:
        """Idempotent, and tells each time what is known by now; a new rental of the same lease is a new node."""
        assert lease.deadline_ms is not None
        self.deadlines[lease.rental_id] = lease.deadline_ms
        self.warned[lease.rental_id] = lease.notice
        known = self._lives.get(lease.lease_id)
        if known is not None and known[0] == lease.rental_id:
            return
        self.detach(lease)
        task = self._outside(self._life(lease.lease_id, lease.rental_id))
        self._lives[lease.lease_id] = (lease.rental_id, task)

    def detach(self, lease: Lease) -> None:
        known = self._lives.pop(lease.lease_id, None)
        if known is not None:
            known[1].cancel()

    def _outside(self, work: Any) -> asyncio.Task[None]:
        """A task that no broker's crash ends."""
        context = contextvars.copy_context()
        context.run(INCARNATION.set, 0)
        return asyncio.get_running_loop().create_task(work, context=context)

    def _say(self, fact: Any) -> None:
        self._queue.append(fact)
        if self._cloud.happens(self._cloud.options.fact_doubled):
            self._queue.append(fact)
        if self._sender is None or self._sender.done():
            self._sender = self._outside(self._send_all())

    async def _send_all(self) -> None:
        while self._queue:
            if self._cloud.happens(self._cloud.options.cluster_fails):
                await asyncio.sleep(self._rng.uniform(1, 300))
            if await self._deliver(self._queue[0]):
                self._queue.pop(0)
            else:
                await asyncio.sleep(5)

    def _up(self, rental_id: str) -> bool:
        self._cloud.settle()
        truth = self._cloud.rentals[rental_id]
        now_ms = self._cloud.clock.now_ms()
        return truth.gone_ms is None and truth.boots_ms is not None and truth.boots_ms <= now_ms

    async def _life(self, lease_id: str, rental_id: str) -> None:
        """What one cluster process tells of one node; another process, after a crash, tells it anew."""
        while True:
            watchdog: asyncio.Task[None] | None = None
            try:
                await self._come_up(lease_id, rental_id)
                watchdog = self._outside(self._watchdog(rental_id))
                await self._prepare(lease_id, rental_id)
                await self._ready(lease_id, rental_id)
                return
            except _Failed:
                return
            except _ClusterCrashed:
                await asyncio.sleep(self._rng.uniform(1, 60))
            finally:
                if watchdog is not None:
                    watchdog.cancel()

    async def _come_up(self, lease_id: str, rental_id: str) -> None:
        await self._pass(lease_id, rental_id, 0.5, 10)
        while not self._up(rental_id):
            await asyncio.sleep(20)
        self._say(Linked(lease_id=lease_id, at_ms=self._now(), host_key="k", first_sight=True))

    async def _prepare(self, lease_id: str, rental_id: str) -> None:
        await self._pass(lease_id, rental_id, 1, 60)
        self._say(Prepared(lease_id=lease_id, at_ms=self._now(), python="3.11", versions={}, steps_ms={}))
        await self._pass(lease_id, rental_id, 1, 20)
        differences = ("gpu",) if self._cloud.rentals[rental_id].wrong_gpu else ()
        self._say(Probed(lease_id=lease_id, at_ms=self._now(), report={}, differences=differences))

    async def _pass(self, lease_id: str, rental_id: str, least_s: float, most_s: float) -> None:
        """Time in which things go wrong."""
        options = self._cloud.options
        await asyncio.sleep(self._rng.uniform(least_s, most_s))
        if self._cloud.happens(options.cluster_fails / 3):
            raise _ClusterCrashed
        if self._cloud.happens(options.node_fails / 3):
            blame = self._rng.random() < 0.5
            self._say(
                NodeFailed(lease_id=lease_id, at_ms=self._now(), phase="ready", reason="broken", blame_machine=blame)
            )
            raise _Failed
        if self._cloud.happens(options.link_lost):
            self._say(LinkLost(lease_id=lease_id, at_ms=self._now(), reason="cut"))
            await asyncio.sleep(self._rng.uniform(1, 200))
            if self._up(rental_id):
                self._say(LinkBack(lease_id=lease_id, at_ms=self._now(), same_boot=True))

    def _now(self) -> int:
        return self._cloud.clock.now_ms()

    async def _ready(self, lease_id: str, rental_id: str) -> None:
        while True:
            await self._pass(lease_id, rental_id, 30, 300)
            if not self._up(rental_id):
                self._say(LinkLost(lease_id=lease_id, at_ms=self._now(), reason="silent"))
                return
            if self._cloud.happens(self._cloud.options.node_notices):
                await self._shut_down(lease_id, rental_id)
                return
            if self._cloud.happens(0.2):
                idle_since_ms = self._now() - self._rng.randint(1, 2_000_000)
                self._say(NodeIdle(lease_id=lease_id, at_ms=self._now(), idle_since_ms=idle_since_ms))

    async def _shut_down(self, lease_id: str, rental_id: str) -> None:
        """The machine is shut down, says so, and is silent from then on; its rental ends a little later."""
        ends_ms = self._now() + self._rng.randint(0, 60_000)
        self._say(NodeLeaving(lease_id=lease_id, at_ms=self._now(), ends_ms=ends_ms, reason="SIGTERM"))
        truth = self._cloud.rentals[rental_id]
        truth.dies_ms = min(truth.dies_ms or ends_ms, ends_ms)
        await asyncio.sleep((ends_ms - self._now()) / 1000)
        self._say(LinkLost(lease_id=lease_id, at_ms=self._now(), reason="silent"))

    async def _watchdog(self, rental_id: str) -> None:
        """Runs on the node: stops it at its deadline, whoever is up on the user's side."""
        while (left_ms := self.deadlines[rental_id] - self._cloud.clock.now_ms()) > 0:
            await asyncio.sleep(min(60, left_ms / 1000))
        truth = self._cloud.rentals[rental_id]
        if truth.gone_ms is None:
            self._cloud.end(truth, self._cloud.clock.now_ms())


class Port:
    """One broker incarnation's way to the cluster processes."""

    def __init__(self, nodes: Nodes, cloud: Cloud, gate: Callable[[], None]) -> None:
        self._nodes = nodes
        self._cloud = cloud
        self._gate = gate

    async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
        await self._reach()
        self._nodes.attach(lease)

    async def detach(self, lease: Lease, *, save_s: float) -> None:
        await self._reach()
        await asyncio.sleep(self._cloud.rng.uniform(0, 2 * save_s))
        self._gate()
        self._nodes.detach(lease)

    async def warn(self, lease: Lease) -> None:
        await self._reach()
        self._nodes.warned[lease.rental_id] = lease.notice

    async def set_deadline(self, lease: Lease) -> None:
        await self._reach()
        assert lease.deadline_ms is not None
        self._nodes.deadlines[lease.rental_id] = lease.deadline_ms

    async def _reach(self) -> None:
        self._gate()
        await asyncio.sleep(self._cloud.rng.uniform(0, 2))
        self._gate()
        if self._cloud.happens(self._cloud.options.cluster_fails):
            await asyncio.sleep(self._cloud.rng.uniform(0, 20))
            self._gate()
            raise Temporary("cluster", "does not answer")
