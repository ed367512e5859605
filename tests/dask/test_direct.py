"""Direct ways between nodes that share a network: real OpenSSH nodes, a real door, a real network that is cut."""

from __future__ import annotations

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
