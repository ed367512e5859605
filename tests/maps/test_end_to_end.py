"""`%%gpu --map` for real: a notebook's kernel, a broker, a cluster process, and hosts of a pool on this machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.models import LeaseRequest, LeaseState, OfferQuery
from jupyter_gpumarket.money import usd
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
READY_S = 120.0


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """A pool with three hosts, whose nodes are rented as one cluster; whatever was rented is given back."""
    top = Path(tempfile.mkdtemp(prefix="gpm", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        for _ in range(3):
            pool.add_host()
        yield pool
        give_back(pool)
    finally:
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)


def give_back(pool: RunningPool) -> None:
    with contextlib.suppress(GpuMarketError), connect(pool.folders, start=False) as client:
        for view in client.leases():
            client.release(view.lease.lease_id)
        client.shutdown()


def rent(client: Client, number: int, cluster: str, notebook: str) -> list[str]:
    """Nodes of one cluster, ready; their names."""
    from jupyter_gpumarket.notebook.identity import owner

    views = [
        client.wish(
            LeaseRequest(
                request_id=f"{cluster}-{k}",
                query=OfferQuery(),
                budget_nusd=usd("2"),
                max_s=3600,
                owner=owner("", {}, {"JUPYTER_GPUMARKET_NOTEBOOK": notebook}),
                cluster=cluster,
            )
        )
        for k in range(number)
    ]
    deadline = time.monotonic() + READY_S
    while any(view.lease.state is not LeaseState.READY for view in views):
        assert time.monotonic() < deadline, views
        views = [client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=0.3) for view in views]
    return [view.lease.name for view in views]


def test_a_map_over_two_nodes_brings_each_result_once(lab: RunningPool, tmp_path: Path) -> None:
    """From a cell: results in the order of the items, errors by item, what was printed, and what it cost."""
    with connect(lab.folders) as client:
        rent(client, 2, "pair", "map.ipynb")
    environment = {**lab.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": "map.ipynb"}
    kernel = RealKernel(environment, tmp_path).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket\nitems = list(range(60)); factor = 3")
        done = kernel.must_run(
            "%%gpu --map item=items -i factor -o results --slots 2\n"
            "import time\ntime.sleep(0.02)\nprint('at', item)\nitem * factor"
        )
        told = kernel.must_run("print(results == [3 * k for k in items])").stdout
        assert told == "True\n", done
        assert "60/60 items · 2 nodes" in done.cost_lines[-1]
        assert " so far" not in done.cost_lines[-1]

        failed = kernel.run("%%gpu --map item=items -o results --retries 1\n1 / (item - 7)")
        assert failed.reply["ename"] == "MapErrors"
        assert "1 of 60 items failed: 7" in failed.reply["evalue"]
        more = kernel.must_run(
            "import jupyter_gpumarket as gm\nlast = gm.maps()[0]\n"
            "print(results[7], results[8], last.item(7).tries, last.errors, gm.maps()[1].output(5))"
        )
        assert more.stdout.startswith("None 1.0 2 {7: 'ZeroDivisionError: division by zero'} at 5")
    finally:
        kernel.stop()
