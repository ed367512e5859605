"""Dask on three nodes that cannot reach each other: real OpenSSH servers in network namespaces."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.models import RunStatus
from tests.dask.conftest import DaskCluster

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


async def test_client_is_bound_and_work_runs_on_every_node(apart: DaskCluster) -> None:
    """In a cell on the head `client` is there; tasks run on three nodes and depend on each other's results."""
    await apart.until_workers(3)
    text, view = await apart.run(
        """
import time
client.wait_for_workers(3)
names = sorted(w["name"] for w in client.scheduler_info()["workers"].values())
import os
homes = set(client.run(lambda: __import__("os").environ["HOME"]).values())
parts = client.map(lambda x: x * x, range(50))
print(len(homes), client.submit(sum, parts).result())
"""
    )
    assert view.status is RunStatus.OK, (text, view.traceback, apart.logs())
    assert text.split() == ["3", str(sum(x * x for x in range(50)))]
