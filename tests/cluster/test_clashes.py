"""A node that cannot listen where Dask needs it: the others' work goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jupyter_gpumarket.api import DaskView, DaskWish
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.cluster.clashes import MAX_RESTARTS, who_yields
from jupyter_gpumarket.cluster.fleet import Fleet
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.wire.messages import AgentReady, CloseStream, DaskReport, OpenStream, StartDask, StopDask


@pytest.mark.parametrize(
    ("restarts", "in_use", "asker_is_head", "yields"),
    [
        (0, False, False, "process"),
        (MAX_RESTARTS - 1, False, True, "process"),
        (MAX_RESTARTS, False, False, "asker"),
        (MAX_RESTARTS, False, True, "owner"),
        (0, True, False, "asker"),
    ],
)
def test_who_gives_way(restarts: int, in_use: bool, asker_is_head: bool, yields: str) -> None:
    """A process twice, then the node that asks; a scheduler with workers never."""
    assert who_yields(restarts=restarts, is_scheduler_in_use=in_use, is_asker_head=asker_is_head) == yields


class Played:
    """A node whose agent does at once what it is ordered, and cannot listen on any port if it `refuses`."""

    def __init__(self, fleet: Fleet, name: str, *, refuses: bool = False) -> None:
        self.name = name
        self.started: list[StartDask] = []
        self.refused = 0
        self._refuses = refuses
        self.talk = SimpleNamespace(order=self._order, send=self._send, listener=None, inputs=SimpleNamespace())
        attach = SimpleNamespace(name=name, offer=None, notice=None, address=SimpleNamespace(host="192.0.2.1"))
        node = SimpleNamespace(
            lease_id=name,
            talk=self.talk,
            record=SimpleNamespace(attach=attach, ready_ms=1),
            link_state="up",
            link_detail="",
            phase="ready",
            code=SimpleNamespace(is_current=True, error="", trouble=""),
            is_leaving=False,
        )
        fleet.join(cast("Node", node))
        self.tell(AgentReady(python="3.11", versions={}, pid=1, started_ms=1, network=f"network of {name}"))

    def tell(self, report: object) -> None:
        cast("Any", self.talk.listener)(report)

    def _order(self, order: object) -> None:
        if isinstance(order, StartDask):
            self.started.append(order)
            self.tell(DaskReport(name=order.name, state="running", address="tls://127.0.0.1:20000"))
        elif isinstance(order, StopDask):
            self.tell(DaskReport(name=order.name, state="ended"))

    async def _send(self, message: object) -> None:
        if not isinstance(message, OpenStream) or not message.listen:
            return
        if self._refuses:
            self.refused += 1
            reason = f"cannot listen on port {message.port}: address already in use"
            self.tell(CloseStream(stream=message.stream, reason=reason))
        else:
            self.tell(message)


async def until(fleet: Fleet, holds: Any) -> DaskView:
    async with asyncio.timeout(20):
        while not holds(view := fleet.view()):
            await asyncio.sleep(0.02)
    return view


async def test_a_node_that_refuses_every_port_leaves_the_scheduler_and_the_workers_alone(tmp_path: Path) -> None:
    """It is left out, which is said; the scheduler that others work with is never ended for it."""
    fleet = Fleet(tmp_path, SystemClock(), direct=False)
    running = asyncio.create_task(fleet.run())
    try:
        head, second = Played(fleet, "head"), Played(fleet, "second")
        fleet.start(DaskWish())
        before = await until(fleet, lambda view: sum(w.state == "running" for w in view.workers) == 2)
        bad = Played(fleet, "bad", refuses=True)
        after = await until(fleet, lambda view: view.notices)
        refused = bad.refused
        await until(fleet, lambda view: view.state == "running")
    finally:
        running.cancel()
        fleet.close()

    assert refused >= 1
    assert (after.generation, after.head) == (before.generation, before.head)
    assert {worker.lease_id for worker in after.workers} == {"head", "second"}
    assert "bad takes no part in Dask" in after.notices[-1]
    assert "Dask does without it" in next(lack.reason for lack in after.lacks if lack.lease_id == "bad")
    assert bad.started == []
    assert len(head.started) + len(second.started) <= 3 + MAX_RESTARTS
