"""What one cluster process needs for many nodes: memory and processor, with light stand-in agents.

    python -m tests.benchmarks.bench_nodes [nodes] [seconds]

Each stand-in answers pings and tells every three seconds what it does, as agents do. The cluster process is the real
one; the way to the nodes is a Unix socket in place of SSH, whose own cost `bench_link` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from jupyter_gpumarket.api import NodeView
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.wire.messages import UseReport
from tests.cluster.conftest import ClusterUnderTest, FakeBroker
from tests.cluster.fake_node import FakeNode

REPORT_EVERY_S = 3.0


async def report(node: FakeNode) -> None:
    """What an agent says when nothing happens."""
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        now_ms = time.time_ns() // 1_000_000
        use = UseReport(at_ms=now_ms, cpu_percent=1, memory_used_gib=1, memory_total_gib=8, disk_free_gib=10)
        await node.peer.send(use)


async def main(count: int, seconds: float) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gmb", dir="/tmp") as scratch:
        folder = Path(scratch) / "c"
        folder.mkdir(mode=0o700)
        write_private(folder / "start.json", b'{"cluster_id": "cluster-bench"}')
        broker = FakeBroker(folder)
        broker.start()
        cluster = ClusterUnderTest(folder)
        await cluster.start()
        process = psutil.Process(cluster.pid)
        empty = process.memory_info().rss
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(FakeNode(Path(scratch))) for _ in range(count)]
            for number, node in enumerate(nodes):
                await cluster.attach(str(node.path), f"lease-{number}")
            while not all(
                v.link == "up" and v.phase == "ready" for v in await cluster.get("/v1/nodes", list[NodeView])
            ):
                await asyncio.sleep(0.2)
            telling = [asyncio.create_task(report(node)) for node in nodes]
            await asyncio.sleep(REPORT_EVERY_S)
            before, began = process.cpu_times(), time.monotonic()
            await asyncio.sleep(seconds)
            after, took = process.cpu_times(), time.monotonic() - began
            used = (after.user + after.system - before.user - before.system) / took
            grown = process.memory_info().rss - empty
            for task in telling:
                task.cancel()
            print(f"{count} nodes: {grown / count / 1024:.0f} KiB a node, {used * 100:.1f} % of a core in all")
            print(f"a node: {used / count * 100:.3f} % of a core; the process without nodes: {empty / 2**20:.0f} MiB")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*telling, return_exceptions=True)
            cluster.kill()
        await cluster.http.aclose()
        broker.stop()


if __name__ == "__main__":
    asyncio.run(main(int((sys.argv[1:] or ["100"])[0]), float((sys.argv[2:] or ["20"])[0])))
