"""Direct ways between nodes that share a network: real OpenSSH nodes, a real door, a real network that is cut."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable

import pytest

from jupyter_gpumarket.api import DaskView
from jupyter_gpumarket.models import RunStatus
from tests.dask.conftest import DaskCluster

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

MEGABYTES = 30
# On the head: bytes are made on one worker and counted on another one.
MOVE = f"""
names = {{names!r}}
there = client.submit(os.urandom, {MEGABYTES}_000_000, workers=[names[0]], pure=False)
print(client.submit(len, there, workers=[names[1]], pure=False).result())
del there
"""


def is_direct(view: DaskView) -> bool:
    """Three workers, each reached directly from the two other nodes."""
    return view.direct == 6 and sum(worker.state == "running" for worker in view.workers) == 3


async def moved(cluster: DaskCluster, *, timeout_s: float = 60.0) -> int:
    """Move bytes from worker to worker, the head's left out; how many went through the user's side meanwhile."""
    view = await cluster.view()
    names = [worker.name for worker in view.workers if worker.lease_id != view.head]
    text, run = await cluster.run("import os" + MOVE.format(names=names), timeout_s=timeout_s)
    assert run.status is RunStatus.OK, (text, run.traceback, cluster.logs())
    assert text.strip() == f"{MEGABYTES}000000"
    return (await cluster.view()).relayed_bytes - view.relayed_bytes


async def test_bytes_between_workers_go_directly(near: DaskCluster) -> None:
    """Nodes that share a network find that out; what workers send each other does not cross the user's line."""
    view = await near.until(is_direct, "all ways between workers are direct")

    assert await moved(near) < 1_000_000
    assert all("answers in" in way.reason for way in view.ways), view.ways


async def test_a_shuffle_goes_directly_and_comes_out_right(near: DaskCluster) -> None:
    """A P2P shuffle over three nodes gives what it gives on one, and its bytes do not cross the user's line."""
    before = await near.until(is_direct, "all ways between workers are direct")
    text, run = await near.run(
        """
import dask, dask.dataframe as dd, numpy as np, pandas as pd
def part(n):
    return pd.DataFrame({"key": np.arange(400_000) % 97, "value": np.arange(400_000) + n})
with dask.config.set({"dataframe.shuffle.method": "p2p"}):
    frame = dd.from_map(part, range(6)).shuffle("key")
    print(len(frame), int(frame.value.sum().compute()))
"""
    )
    assert run.status is RunStatus.OK, (text, run.traceback)
    assert text.split() == ["2400000", str(6 * sum(range(400_000)) + 400_000 * 15)]
    assert (await near.view()).relayed_bytes - before.relayed_bytes < 5_000_000


async def put(cluster: DaskCluster, content: bytes) -> str:
    """Have the cluster process keep an input; its hash."""
    sha256 = hashlib.sha256(content).hexdigest()
    reply = await cluster.process.call("PUT", f"/v1/blobs/{sha256}", content=content)
    assert reply.status_code < 300, reply.text
    return sha256


async def stage(cluster: DaskCluster, sha256: str, *numbers: int) -> None:
    """Have nodes get an input, side by side."""

    async def one(number: int) -> None:
        lease_id = cluster.nodes[number].lease_id
        reply = await cluster.process.call("POST", f"/v1/nodes/{lease_id}/blobs/{sha256}")
        assert reply.status_code == 200, reply.text

    await asyncio.gather(*(one(number) for number in numbers))


async def until(holds: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


async def test_an_input_for_three_nodes_crosses_the_users_line_once(near: DaskCluster) -> None:
    """All three have it, whole; two of them got it from a node, and the user's side sent it a single time."""
    before = await near.until(is_direct, "all ways between workers are direct")
    content = os.urandom(20_000_000)
    sha256 = await put(near, content)
    sent = sum(node.sent_bytes() for node in near.nodes)

    await stage(near, sha256, 0, 1, 2)

    assert [(node.folder / "blobs" / sha256).read_bytes() == content for node in near.nodes] == [True] * 3
    assert sum(node.sent_bytes() for node in near.nodes) - sent < 1.3 * len(content)
    assert (await near.view()).staged_bytes - before.staged_bytes == 2 * len(content)


async def test_a_node_that_holds_other_bytes_costs_only_the_way_round(near: DaskCluster) -> None:
    """Where a node has put something else in an input's place, the others get the right one from the user's side."""
    await near.until(is_direct, "all ways between workers are direct")
    content = os.urandom(8_000_000)
    sha256 = await put(near, content)
    await stage(near, sha256, 0)
    (near.nodes[0].folder / "blobs" / sha256).write_bytes(bytes(len(content)))

    await stage(near, sha256, 1)

    assert (near.nodes[1].folder / "blobs" / sha256).read_bytes() == content


async def test_a_cut_network_sends_inputs_on_from_here(near: DaskCluster) -> None:
    """When the way between nodes breaks in the middle of an input, the user's side sends what is missing, no more."""
    await near.until(is_direct, "all ways between workers are direct")
    assert near.bridge is not None
    content = os.urandom(150_000_000)
    sha256 = await put(near, content)
    giver, taker = 2, 1
    await stage(near, sha256, giver)
    part = near.nodes[taker].folder / "blobs" / f"{sha256}.in"
    sent = near.nodes[taker].sent_bytes()
    staging = asyncio.create_task(stage(near, sha256, taker))
    await until(lambda: part.exists() and part.stat().st_size > 20_000_000, "some of it has come from the other node")
    near.bridge.cut()
    try:
        await asyncio.wait_for(staging, 120)
    finally:
        near.bridge.mend()

    assert (near.nodes[taker].folder / "blobs" / sha256).read_bytes() == content
    assert near.nodes[taker].sent_bytes() - sent < len(content) - 15_000_000


async def test_a_cut_network_costs_no_worker_and_comes_back(near: DaskCluster) -> None:
    """When the direct network is cut, the same workers go on through the relay; when it is mended, directly again."""
    before = await near.until(is_direct, "all ways between workers are direct")
    assert near.bridge is not None
    await moved(near)
    near.bridge.cut()
    try:
        assert await moved(near, timeout_s=120) > MEGABYTES * 1_000_000
        assert (await near.view()).relayed > 0
    finally:
        near.bridge.mend()
    after = await near.until(is_direct, "all ways are direct again")
    # Connections that Dask keeps for later stay where they are; new ones go directly.
    await near.run("client.run(lambda dask_worker: dask_worker.rpc.collect())")

    assert await moved(near) < 1_000_000
    assert {worker.name for worker in after.workers} == {worker.name for worker in before.workers}
