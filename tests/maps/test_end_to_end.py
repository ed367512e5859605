"""`%%gpu --map` for real: a notebook's kernel, a broker, a cluster process, and hosts of a pool on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import MapRequest, MapState, MapView
from jupyter_gpumarket.client import Client, ClusterClient, connect
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.mapfiles import PackedItem, pack
from jupyter_gpumarket.models import LeaseRequest, LeaseState, OfferQuery, RunStatus
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook.identity import owner
from jupyter_gpumarket.notebook.map_results import MapResults, map_folder
from jupyter_gpumarket.notebook.mapping import suspected
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
READY_S = 120.0


NOTEBOOK = "map.ipynb"


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """A pool with three hosts, all rented as one cluster; whatever was rented is given back."""
    top = Path(tempfile.mkdtemp(prefix="gpm", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        for _ in range(3):
            pool.add_host()
        with connect(pool.folders) as client:
            rent(client, 3, "trio")
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


def rent(client: Client, number: int, cluster: str) -> None:
    """Nodes of one cluster, ready."""
    views = [
        client.wish(
            LeaseRequest(
                request_id=f"{cluster}-{k}",
                query=OfferQuery(),
                budget_nusd=usd("2"),
                max_s=3600,
                owner=owner("", {}, {"JUPYTER_GPUMARKET_NOTEBOOK": NOTEBOOK}),
                cluster=cluster,
            )
        )
        for k in range(number)
    ]
    deadline = time.monotonic() + READY_S
    while any(view.lease.state is not LeaseState.READY for view in views):
        assert time.monotonic() < deadline, views
        views = [client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=0.3) for view in views]


@pytest.fixture
def door(lab: RunningPool) -> Iterator[Client]:
    with connect(lab.folders) as client:
        yield client


@pytest.fixture
def kernel(lab: RunningPool, tmp_path: Path) -> Iterator[RealKernel]:
    environment = {**lab.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": NOTEBOOK}
    kernel = RealKernel(environment, tmp_path).start()
    kernel.must_run("%load_ext jupyter_gpumarket")
    yield kernel
    kernel.stop()


def start(door: Client, code: str, count: int, **fields: Any) -> tuple[ClusterClient, MapView]:
    """A map over range(count), as the magic starts it."""
    cluster = door.cluster(door.leases()[0].lease.lease_id)
    packed = [codecs.encode_input(k) for k in range(count)]
    sha256 = cluster.put_blob(pack([PackedItem(codec=one.codec, data=one.data) for one in packed]))
    map_id = f"map{os.urandom(6).hex()}"
    request = MapRequest(map_id=map_id, code=code, item_name="item", items_sha256=sha256, count=count, **fields)
    return cluster, cluster.start_map(request)


def to_the_end(cluster: ClusterClient, view: MapView, timeout_s: float = 90.0) -> MapView:
    deadline = time.monotonic() + timeout_s
    while view.state is MapState.RUNNING:
        assert time.monotonic() < deadline, view
        view = cluster.map_news(view.map_id, view.n, 2).map
    return view


def results(lab: RunningPool, view: MapView) -> MapResults:
    return MapResults(map_folder(lab.folders.state / "clusters", view.map_id))


def marking(folder: Path) -> str:
    """A body that leaves a file for each of its runs."""
    return f"import os, time\nopen({str(folder)!r} + f'/{{item}}-{{os.urandom(4).hex()}}', 'w').close()\n"


def runs_of(folder: Path) -> Counter[int]:
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


def test_a_map_from_a_cell_brings_each_result_in_its_place(kernel: RealKernel) -> None:
    """Results in the order of the items, errors by item with the others kept, what was printed, and what it cost."""
    kernel.must_run("items = list(range(60)); factor = 3")
    done = kernel.must_run(
        "%%gpu --map item=items -i factor -o results --slots 2\n"
        "import time\ntime.sleep(0.02)\nprint('at', item)\nitem * factor"
    )
    assert kernel.must_run("print(results == [3 * k for k in items])").stdout == "True\n", done
    assert "60/60 items · 3 nodes" in done.cost_lines[-1]
    assert " so far" not in done.cost_lines[-1]

    failed = kernel.run("%%gpu --map item=items -o results --retries 1\n1 / (item - 7)")
    assert failed.reply["ename"] == "MapErrors"
    assert "1 of 60 items failed: 7" in failed.reply["evalue"]
    more = kernel.must_run(
        "import jupyter_gpumarket as gm\nlast = gm.maps()[0]\n"
        "print(results[7], results[8], last.item(7).tries, last.errors, gm.maps()[1].output(5))"
    )
    sums = kernel.must_run("print([m.frame()['cost_usd'].sum() > 0 for m in gm.maps()[:2]])").stdout
    assert sums == "[True, True]\n"
    assert more.stdout.startswith("None 1.0 2 {7: 'ZeroDivisionError: division by zero'} at 5")


def test_a_body_finds_the_users_own_modules(kernel: RealKernel) -> None:
    """`--map --sync` has a module beside the notebook on all nodes before their workers begin."""
    kernel.must_run("import pathlib\npathlib.Path('map_tools.py').write_text('def f(x): return -x')\nitems = [1, 2, 3]")
    cell = "%%gpu --map item=items -o results {}\nimport map_tools\nmap_tools.f(item)"
    failed = kernel.run(cell.format(""))
    assert "`%%gpu --sync` brings your own modules" in "\n".join(failed.reply["traceback"])
    kernel.must_run(cell.format("--sync"))
    assert kernel.must_run("print(results)").stdout == "[-1, -2, -3]\n"


def test_a_map_goes_on_over_a_restart_of_the_kernel_and_can_be_stopped_and_resumed(
    lab: RunningPool, kernel: RealKernel, tmp_path: Path
) -> None:
    """Ctrl-C keeps what is there, `--resume` runs only the rest, and `%gpu attach` shows it after a restart."""
    marks = tmp_path / "marks"
    marks.mkdir()
    body = f"{marking(marks)}time.sleep(0.1)\nitem + 1"
    sent = kernel.submit(f"%%gpu --map item=range(90) -o results\n{body}")
    lab.wait_until(lambda: len(runs_of(marks)) > 5, "some items ran")
    kernel.manager.interrupt_kernel()
    stopped = kernel.finish(sent)
    assert stopped.reply["ename"] == "RemoteInterrupt", stopped
    partial = kernel.must_run("print(sum(r is not None for r in results))").stdout
    assert 0 < int(partial) < 90

    sent = kernel.submit(f"%%gpu --map item=range(90) -o results --resume\n{body}")
    lab.wait_until(lambda: len(runs_of(marks)) > 30, "it goes on")
    kernel.restart()
    kernel.must_run("%load_ext jupyter_gpumarket")
    done = kernel.must_run("%gpu attach")
    assert "90/90 items" in done.cost_lines[-1]
    told = kernel.must_run("import jupyter_gpumarket as gm\nprint(list(gm.maps()[0]) == list(range(1, 91)))")
    assert told.stdout == "True\n"
    again = [item for item, runs in runs_of(marks).items() if runs > 1]
    # On each node one ran, and one may just have ended.
    assert len(again) <= 6, "only what ran when it was stopped was run again"


def test_data_goes_to_a_node_once_and_is_used_by_its_name(kernel: RealKernel, tmp_path: Path) -> None:
    """A file arrives as a path, a large array by itself, in a cell and for items; a large result comes back whole."""
    (tmp_path / "table.csv").write_text("a,b\n" + "1,2\n" * 2_000_000)
    kernel.must_run(
        "import jupyter_gpumarket as gm\nimport numpy as np\n"
        f"table = gm.put({str(tmp_path / 'table.csv')!r}, stage=True)\n"
        "big = np.arange(2_000_000)\nitems = [np.full(100_000, k) for k in range(4)] + [table]"
    )
    done = kernel.must_run(
        "%%gpu -i table,big -o back,told\n"
        "back = big[::-1].copy()\ntold = (table.name, sum(1 for _ in table.open()), int(big.sum()))"
    )
    assert "sending big: 16 MB, expected" in done.stdout
    told = kernel.must_run("print(told, (back[::-1] == big).all(), gm.get(table).name)").stdout
    assert told == f"('table.csv', 2000001, {sum(range(2_000_000))}) True table.csv\n"
    kernel.must_run(
        "%%gpu --map item=items -i big -o results\n"
        "item.stat().st_size if hasattr(item, 'stat') else big[:100_000] + item"
    )
    told = kernel.must_run("print([int(r.sum() - big[:100_000].sum()) for r in results[:4]], results[4])").stdout
    assert told == "[0, 100000, 200000, 300000] 8000004\n"


def test_an_item_that_kills_its_worker_is_named_and_the_rest_goes_on(lab: RunningPool, door: Client) -> None:
    """After three deaths it is poisoned; an endless one is ended by its time-out; all others are right."""
    code = (
        "import os, signal, time\n"
        "if item == 3:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if item == 5:\n    time.sleep(600)\nitem * 2"
    )
    cluster, view = start(door, code, 20, timeout_s=1.0)
    view = to_the_end(cluster, view)
    found = results(lab, view)
    assert (view.ok, view.failed, view.poisoned) == (18, 1, 1)
    assert [k for k in range(20) if found[k] != 2 * k] == [3, 5]
    poisoned = found.item(3)
    assert poisoned is not None
    assert (poisoned.state, poisoned.tries) == ("poisoned", 3)
    assert "SIGKILL" in found.errors[3]
    assert "longer than its 1 s" in found.errors[5]


def test_a_node_whose_part_is_interrupted_leaves_and_the_others_finish(lab: RunningPool, door: Client) -> None:
    """What a budget does at its end: the node's part ends as interrupted, its items go to the others."""
    cluster, view = start(door, "import time\ntime.sleep(0.15)\nitem", 90)
    view = lab.wait_until(
        lambda: (v := cluster.map_news(view.map_id, 0, 1).map) and all(seat.ended for seat in v.seats) and v,
        "all take part",
    )
    cluster.interrupt(view.seats[1].run_id)
    view = to_the_end(cluster, view)
    costs = [door.run_cost(seat.run_id, wait_s=5) for seat in view.seats]
    assert (view.ok, view.seats[1].state) == (90, "left")
    assert [cost.run.status.value for cost in costs] == ["ok", "interrupted", "ok"]
    assert all(cost.amount_nusd > 0 for cost in costs)


def test_a_machine_that_computes_wrongly_is_found(lab: RunningPool, door: Client, tmp_path: Path) -> None:
    """With every item verified, each result of the bad machine differs from another's, and it is the one named."""
    marks = tmp_path / "marks"
    marks.mkdir()
    code = (
        f"{marking(marks)}is_bad = os.environ['HOME'].startswith({str(lab.host_folder(1))!r})\n"
        f"open({str(marks)!r} + f'/{{item}}-bad', 'w').close() if is_bad else None\n"
        # The others wait, so that the bad one has its share however slowly it begins.
        f"until = time.monotonic() + 30\n"
        f"while sum(n.endswith('bad') for n in os.listdir({str(marks)!r})) < 2 and time.monotonic() < until:\n"
        "    time.sleep(0.05)\n"
        "item + (0.5 if is_bad else 0)"
    )
    cluster, view = start(door, code, 60, verify_ppm=1_000_000)
    view = to_the_end(cluster, view)
    found = results(lab, view)
    bad = next(v.lease.lease_id for v in door.leases() if v.lease.offer and v.lease.offer.machine_id == machine(lab, 1))
    different = found.differences()
    assert found.verified == 60
    assert different
    assert suspected([(one.first, one.second) for one in different]) == [bad]
    assert found.differences(tolerance=1.0) == []


def machine(lab: RunningPool, number: int) -> str:
    """The machine id of a host, by its name."""
    with connect(lab.folders) as client:
        return next(
            view.lease.offer.machine_id
            for view in client.leases()
            if view.lease.offer and f"host-{number}" in str(view.lease.offer)
        )


def test_a_full_disk_holds_a_map_up_and_costs_no_result(lab: RunningPool, door: Client) -> None:
    """Doors are told why nothing goes on; once there is room all results are right, half-written ones included."""
    code = "import time\nimport numpy as np\ntime.sleep(0.02)\nnp.full(25_000 if item < 10 else 60_000, item)"
    cluster, view = start(door, code, 40)
    folder = map_folder(lab.folders.state / "clusters", view.map_id)
    pid = json.loads((folder.parent.parent / "cluster.json").read_text())["pid"]
    log = folder / "outcomes.log"
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))

    def told() -> str:
        return cluster.map_news(view.map_id, 0, 0).map.reason

    try:
        lab.wait_until(lambda: log.stat().st_size > 500_000, "some results are here")
        limit(300_000)
        lab.wait_until(lambda: any(p.stat().st_size == 300_000 for p in folder.glob("*.part")), "a result is cut off")
        lab.wait_until(lambda: "make room on the disk" in told(), "doors are told")
        # From here on a whole result finds room, and the line that tells of it does not.
        limit(log.stat().st_size)
        lab.wait_until(lambda: "results cannot be kept here" in told(), "doors are told of results")
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    view = to_the_end(cluster, view)
    found = results(lab, view).values()

    assert (view.ok, view.n, view.reason) == (40, 40, "")
    assert [(len(array), int(array.min()), int(array.max())) for array in found] == [
        (25_000 if k < 10 else 60_000, k, k) for k in range(40)
    ]
    assert all(run.status is RunStatus.OK for run in (door.run_cost(s.run_id, wait_s=5).run for s in view.seats))


def test_a_killed_cluster_process_loses_and_doubles_nothing(lab: RunningPool, door: Client, tmp_path: Path) -> None:
    """kill -9 while a map runs: the next process finds items and outcomes on the disk, and what ran on the nodes."""
    marks = tmp_path / "marks"
    marks.mkdir()
    cluster, view = start(door, f"{marking(marks)}time.sleep(0.05)\nitem ** 2", 150)
    lab.wait_until(lambda: len(runs_of(marks)) > 30, "some items ran")
    folder = next((lab.folders.state / "clusters").glob(f"*/maps/{view.map_id}")).parent.parent
    os.kill(json.loads((folder / "cluster.json").read_text())["pid"], signal.SIGKILL)
    view = lab.wait_until(lambda: answered(cluster, view), "a new process goes on")
    view = to_the_end(cluster, view)
    found = results(lab, view)
    assert (view.ok, view.n) == (150, 150)
    assert found.values() == [k**2 for k in range(150)]
    assert max(runs_of(marks).values()) == 1, "what ran on a node meanwhile was not run again"


def answered(cluster: ClusterClient, view: MapView) -> MapView | None:
    try:
        return cluster.map_news(view.map_id, 0, 0).map
    except GpuMarketError:
        return None


def test_a_killed_host_costs_only_its_running_items(lab: RunningPool, door: Client, tmp_path: Path) -> None:
    """200 items on three nodes, one host killed: all results right, each once, only what ran there runs again."""
    marks = tmp_path / "marks"
    marks.mkdir()
    cluster, view = start(door, f"{marking(marks)}time.sleep(0.1)\nitem ** 2", 200)
    lab.wait_until(
        lambda: all(seat.ended > 3 for seat in cluster.map_news(view.map_id, 0, 1).map.seats),
        "all nodes have their part",
    )
    kill_host(lab, 2)
    view = to_the_end(cluster, view)
    found = results(lab, view)
    assert (view.ok, view.state) == (200, MapState.DONE)
    assert found.values() == [k**2 for k in range(200)]
    assert sum(seat.ended for seat in view.seats) == 200
    assert all(seat.ended > 3 for seat in view.seats), "each node, also the lost one, had its share"
    again = [item for item, runs in runs_of(marks).items() if runs > 1]
    # One ran, and some had just ended and their word was still under way.
    assert len(again) <= 6, again


def kill_host(lab: RunningPool, number: int) -> None:
    """As when the power goes: the host and all that runs in its leases."""
    lab.hosts[number].kill()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(str(lab.host_folder(number))):
                os.kill(process.pid, signal.SIGKILL)
