"""A cluster process with several real nodes attached, and Dask on them; one for all tests of a module."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from jupyter_gpumarket.api import DaskView, DaskWish, NodeView, RunView
from jupyter_gpumarket.config import write_private
from tests.cluster.conftest import ClusterUnderTest, FakeBroker, text_of
from tests.dask.nodes import Bridge, ClusterNode
from tests.nodes.far import require_namespaces
from tests.nodes.openssh import require_sshd

PATIENCE_S = 90.0


class DaskCluster:
    """The process, its nodes, and what tests do with them."""

    def __init__(self, folder: Path, bridge: Bridge | None = None) -> None:
        self.folder = folder
        self.bridge = bridge
        cluster = folder / "cluster"
        cluster.mkdir(mode=0o700)
        write_private(cluster / "start.json", b'{"cluster_id": "cluster-dask"}')
        self.broker = FakeBroker(cluster)
        self.process = ClusterUnderTest(cluster, "jupyter_gpumarket.cluster")
        self.nodes: list[ClusterNode] = []

    async def add_node(self, *, is_apart: bool) -> ClusterNode:
        number = len(self.nodes)
        node = ClusterNode(self.folder / f"n{number}", number, is_apart=is_apart, bridge=self.bridge)
        self.nodes.append(node)
        await self.process.attach(
            "",
            node.lease_id,
            name=node.name,
            address=node.sshd.address(host_key=node.sshd.host_key),
            key_path=str(node.sshd.key_path),
        )
        return node

    async def start_dask(self, **wish: object) -> None:
        fields = {"nthreads": 1, "memory_limit": "0", "nanny": False, **wish}
        reply = await self.process.call("PUT", "/v1/dask", DaskWish(**fields))
        assert reply.status_code == 202, reply.text

    async def view(self) -> DaskView:
        return await self.process.get("/v1/dask", DaskView)

    async def until(self, holds: Callable[[DaskView], bool], what: str, timeout_s: float = PATIENCE_S) -> DaskView:
        """Wait for a state of Dask; fails with what each part said."""
        deadline = time.monotonic() + timeout_s
        while True:
            view = await self.view()
            if holds(view):
                return view
            if time.monotonic() > deadline:
                nodes = await self.process.get("/v1/nodes", list[NodeView])
                log = (self.process.folder / "cluster.log").read_text()[-6000:]
                pytest.fail(f"not in {timeout_s:g} s: {what}\n{view}\n{nodes}\n{log}\n{self.logs()}")
            await asyncio.sleep(0.1)

    async def until_workers(self, count: int, timeout_s: float = PATIENCE_S) -> DaskView:
        """So many workers run, and the scheduler knows them."""

        def holds(view: DaskView) -> bool:
            return sum(worker.state == "running" for worker in view.workers) == count and view.state == "running"

        return await self.until(holds, f"{count} workers run", timeout_s)

    async def run(self, code: str, lease_id: str = "", timeout_s: float = PATIENCE_S) -> tuple[str, RunView]:
        """A cell on the head (or on this node), to its end."""
        run_id = f"run-{os.urandom(4).hex()}"
        await self.process.submit(run_id, code, lease_id or (await self.view()).head)
        messages, view = await self.process.follow(run_id, timeout_s)
        return text_of(messages), view

    def logs(self) -> str:
        found = [log for node in self.nodes for log in node.folder.glob("dask/*/log")]
        return "\n".join(f"── {log}\n{log.read_text(errors='replace')[-2500:]}" for log in found)

    def stop(self) -> None:
        if self.process.process is not None and self.process.process.poll() is None:
            self.process.terminate(30)
        for node in self.nodes:
            node.stop()
        if self.bridge is not None:
            self.bridge.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apart(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaskCluster]:
    """Three nodes in network namespaces: no way between them but through this side."""
    require_sshd()
    require_namespaces()
    async for cluster in running(tmp_path_factory.mktemp("apart"), 3, is_apart=True):
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def near(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaskCluster]:
    """Three nodes in network namespaces that share a network of their own."""
    require_sshd()
    require_namespaces()
    async for cluster in running(tmp_path_factory.mktemp("near"), 3, is_apart=True, bridge=Bridge()):
        yield cluster


async def running(
    folder: Path, count: int, *, is_apart: bool, bridge: Bridge | None = None, **wish: object
) -> AsyncIterator[DaskCluster]:
    """A cluster of so many nodes, with Dask."""
    cluster = DaskCluster(folder, bridge)
    try:
        cluster.broker.start()
        await cluster.process.start()
        for _ in range(count):
            await cluster.add_node(is_apart=is_apart)
        await cluster.start_dask(**wish)
        yield cluster
    finally:
        await cluster.process.http.aclose()
        cluster.broker.stop()
        cluster.stop()


def decoded(text: str) -> object:
    """What a cell printed as JSON."""
    return msgspec.json.decode(text)
