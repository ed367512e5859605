"""A machine's owner wants it back and says so: what is told, what moves, what is rented instead, and what it costs.

Then a machine that dies without a word. Everything is real: a pool with five hosts, broker, cluster process, Dask,
maps, and a notebook's kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import Aim, ClusterView, ClusterWish, DaskWish, MapRequest, MapState, RunRequest, RunWish
from jupyter_gpumarket.client import Client, ClusterClient, connect
from jupyter_gpumarket.mapfiles import PackedItem, pack
from jupyter_gpumarket.models import ENDED_RUNS, ENDED_STATES, Lease, LeaseState, OfferQuery, Owner, RunStatus
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook.map_results import MapResults, map_folder
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
READY_S = 150.0
ITEMS = 120
NOTEBOOK = "notice.ipynb"
OWNER = Owner(notebook=NOTEBOOK)


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """A pool with five hosts; one that is silent is soon lost."""
    top = Path(tempfile.mkdtemp(prefix="gpn", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry("--lost-after", "5")
        for _ in range(5):
            pool.add_host()
        yield pool
    finally:
        with connect(pool.folders, start=False) as client:
            client.shutdown()
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="module")
def door(lab: RunningPool) -> Iterator[Client]:
    with connect(lab.folders, timeout_s=60) as client:
        yield client


def host_of(lab: RunningPool, lease: Lease) -> int:
    return next(n for n in range(len(lab.hosts)) if (lab.host_folder(n) / "leases" / lease.rental_id).exists())


def drain(lab: RunningPool, lease: Lease, grace_s: float) -> int:
    """Drain the host that serves a lease; its number."""
    number = host_of(lab, lease)
    argv = [sys.executable, "-m", "jupyter_gpumarket.pool", "host", "--folder", str(lab.host_folder(number)), "--drain"]
    subprocess.run([*argv, "--grace", str(grace_s)], cwd=ROOT, check=True, capture_output=True, timeout=30)
    return number


def run(door: Client, cluster: ClusterClient, lease_id: str, code: str) -> str:
    """A cell to its end; what it printed."""
    run_id = f"run-{os.urandom(4).hex()}"
    door.start_run(RunWish(run_id=run_id, lease_id=lease_id, session="main", owner=OWNER))
    cluster.run(RunRequest(run_id=run_id, lease_id=lease_id, code=code, owner=OWNER))
    deadline = time.monotonic() + 90
    while (batch := cluster.messages(run_id, 0, 2)).run.status not in ENDED_RUNS:
        assert time.monotonic() < deadline, batch
    assert batch.run.status is RunStatus.OK, batch
    return "".join(m.content.get("text", "") for m in batch.messages if m.msg_type == "stream")


def start_map(lab: RunningPool, cluster: ClusterClient, code: str) -> str:
    """A map over range(ITEMS), once every node has its part in it."""
    packed = [codecs.encode_input(k) for k in range(ITEMS)]
    sha256 = cluster.put_blob(pack([PackedItem(codec=one.codec, data=one.data) for one in packed]))
    map_id = f"map{os.urandom(6).hex()}"
    cluster.start_map(MapRequest(map_id=map_id, code=code, item_name="item", items_sha256=sha256, count=ITEMS))

    def shared() -> bool:
        seats = [seat for seat in cluster.map_news(map_id, 0, 1).map.seats if seat.state == "ready"]
        return len(seats) == 3 and all(seat.ended for seat in seats)

    lab.wait_until(shared, "every node works on the map", 60)
    return map_id


WISH = ClusterWish(
    aim=Aim(minimum=3, maximum=3),
    query=OfferQuery(),
    budget_nusd=usd("2"),
    max_s=3600,
    owner=OWNER,
    dask=DaskWish(nthreads=1, memory_limit="0", nanny=False),
)


@pytest.fixture(scope="module")
def trio(door: Client) -> None:
    """The cluster of three nodes, which the tests use one after another and each of them alone."""
    door.keep_cluster("trio", WISH)


@pytest.mark.usefixtures("trio")
def test_a_drained_host_hands_over_and_is_replaced_before_it_goes(
    lab: RunningPool, door: Client, tmp_path: Path
) -> None:
    """Three nodes, one with notice: its Dask result moves, its items run once, and another node comes meanwhile."""
    before = crew(lab, door, 3)
    assert before.dask is not None
    leaving = next(lease for lease in before.leases if lease.lease_id != before.dask.head)
    worker = next(w.name for w in before.dask.workers if w.lease_id == leaving.lease_id)
    cluster = door.cluster(before.dask.head)
    held = f"kept = client.submit(lambda: 41, workers=[{worker!r}], allow_other_workers=True); print(kept.result())"
    assert run(door, cluster, before.dask.head, held) == "41\n"
    map_id = start_map(lab, cluster, marking(tmp_path) + "time.sleep(0.4)\nitem ** 2")

    number = drain(lab, leaving, 90)
    lab.wait_until(lambda: any(leaving.name in n for n in door.cluster_view("trio").notices), "it is told", 30)
    ended = lab.wait_until(lambda: is_ended(door, leaving.lease_id), "it is given back once it holds nothing", 90)
    after = crew(lab, door, 3)
    new = next(lease for lease in after.leases if lease.lease_id not in {one.lease_id for one in before.leases})
    assert ended.billed_to_ms is not None
    assert new.created_ms < ended.billed_to_ms
    assert "has handed over what it held" in ended.reason
    assert run(door, cluster, before.dask.head, "print(kept.result(), kept.status)") == "41 finished\n"
    assert after.dask is not None
    assert after.dask.generation == before.dask.generation
    again = finished(lab, cluster, map_id, tmp_path)
    assert again == [], "what a node has not begun it gives back, and the rest it ends"
    assert lab.hosts[number].process is not None
    assert lab.hosts[number].process.wait(30) == 0


@pytest.mark.usefixtures("trio")
def test_a_killed_head_costs_only_what_is_unfinished(lab: RunningPool, door: Client, tmp_path: Path) -> None:
    """The head's machine dies in the middle of a map and of Dask's work: both end right, on a new head, with 3 nodes.

    The map runs again what ran there. Of Dask, whose results die with the scheduler, the user submits the rest anew.
    """
    before = crew(lab, door, 3)
    assert before.dask is not None
    head = next(lease for lease in before.leases if lease.lease_id == before.dask.head)
    cluster = door.cluster(head.lease_id)
    map_id = start_map(lab, cluster, marking(tmp_path) + "time.sleep(0.4)\nitem ** 2")
    assert run(door, cluster, head.lease_id, "print(client.submit(sum, [40, 1]).result())") == "41\n"
    kill(lab, head)
    after = crew(lab, door, 3, without=head.lease_id)
    assert after.dask is not None
    assert after.dask.head not in ("", head.lease_id)
    assert after.dask.generation > before.dask.generation
    assert "submitted again" in " ".join(after.dask.notices)
    cluster = door.cluster(after.dask.head)
    assert run(door, cluster, after.dask.head, "print(client.submit(sum, [20, 22]).result())") == "42\n"
    again = finished(lab, cluster, map_id, tmp_path)
    # One ran, and some had just ended and their word was still under way.
    assert len(again) <= 6, again


@pytest.mark.usefixtures("trio")
def test_after_all_that_the_ledger_is_true_and_nothing_is_rented(lab: RunningPool, door: Client) -> None:
    """One node for each that went, within one budget; each bill the pool's own to the nano-dollar; all hosts free."""
    crew(lab, door, 3)
    gone = sum(host.process is None or host.process.poll() is not None for host in lab.hosts)
    door.end_cluster("trio")
    lab.wait_until(lambda: not door.leases(), "all is given back", 60)
    charges = lab.wait_until(lambda: (c := door.costs().charges) and all(x.final for x in c) and c, "books close", 30)
    compared = door.reconcile()

    assert sum(charge.amount_nusd for charge in charges) <= WISH.budget_nusd
    assert len(compared) == 3 + gone
    assert [one.gap_nusd for one in compared] == [0] * len(compared), [one.explained for one in compared]
    assert door.orphans() == []
    assert len(lab.offer_ids()) == len(lab.hosts) - gone


def marking(folder: Path) -> str:
    """A body that leaves a file for each of its runs."""
    return f"import os, time\nopen({str(folder)!r} + f'/{{item}}-{{os.urandom(4).hex()}}.run', 'w').close()\n"


def crew(lab: RunningPool, door: Client, count: int, *, without: str = "") -> ClusterView:
    """So many nodes are ready, with a worker each, and the lease `without` is not among them."""

    def whole() -> ClusterView | None:
        view = door.cluster_view("trio")
        there = {lease.lease_id for lease in view.leases if lease.state is LeaseState.READY}
        running = {w.lease_id for w in view.dask.workers if w.state == "running"} if view.dask is not None else set()
        return view if len(there & running) == count and without not in there else None

    found = lab.wait_until(whole, f"{count} nodes work", READY_S)
    assert isinstance(found, ClusterView)
    return found


def alone(door: Client) -> list[Lease]:
    """The leases that belong to no cluster."""
    return [view.lease for view in door.leases() if not view.lease.request.cluster]


def is_ended(door: Client, lease_id: str) -> Lease | None:
    lease = door.lease(lease_id).lease
    return lease if lease.state in ENDED_STATES else None


def finished(lab: RunningPool, cluster: ClusterClient, map_id: str, marks: Path) -> list[int]:
    """Every item has its right value, once; which items were run more than once."""
    deadline = time.monotonic() + 120
    view = cluster.map_news(map_id, 0, 0).map
    while view.state is MapState.RUNNING:
        assert time.monotonic() < deadline, view
        view = cluster.map_news(map_id, view.n, 2).map
    found = MapResults(map_folder(lab.folders.state / "clusters", map_id))
    assert (view.ok, view.n) == (ITEMS, ITEMS)
    assert found.values() == [k**2 for k in range(ITEMS)]
    runs = Counter(int(path.name.split("-")[0]) for path in marks.glob("*.run"))
    assert len(runs) == ITEMS
    return [item for item, times in runs.items() if times > 1]


def kill(lab: RunningPool, lease: Lease) -> None:
    """As when the power goes: the host, and all that runs in its leases."""
    number = host_of(lab, lease)
    lab.hosts[number].kill()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(str(lab.host_folder(number))):
                os.kill(process.pid, signal.SIGKILL)


def test_a_running_cell_is_told_and_its_outputs_are_saved(lab: RunningPool, door: Client, tmp_path: Path) -> None:
    """On the only node, with a cell that runs on: it says so at once, and what -o names is there when the node goes."""
    environment = {**lab.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": NOTEBOOK}
    kernel = RealKernel(environment, tmp_path).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket")
        kernel.must_run("%%gpu --gpu none --budget 1 -o started\nstarted = 1")
        lease = alone(door)[0]
        sent = kernel.submit(
            "%%gpu -o best,never\nimport time\nbest = 0\nwhile True:\n    best += 1\n    time.sleep(0.01)"
        )
        lab.wait_until(lambda: any(r.run.status is RunStatus.RUNNING for r in door.runs()), "the cell runs", 30)
        drain(lab, lease, 16)
        done = kernel.finish(sent)
        shown = kernel.must_run("print(best > 50, started)").stdout
        ended = lab.wait_until(lambda: is_ended(door, lease.lease_id), "it is gone", 60)
    finally:
        kernel.stop()

    assert done.status == "error"
    assert "its owner drains the host" in done.stderr
    assert "its owner drains the host" in done.reply["evalue"]
    assert shown == "True 1\n"
    assert ended.notice is not None
    assert alone(door) == []
