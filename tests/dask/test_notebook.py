"""A cluster from a notebook: rented side by side from a pool, used in cells, scaled, looked at, given back."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from jupyter_gpumarket.api import CostQuery
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.errors import GpuMarketError
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """A pool of four hosts, of which one is dear."""
    top = Path(tempfile.mkdtemp(prefix="gpd", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        for _ in range(3):
            pool.add_host()
        pool.add_host(price="0.90")
        yield pool
        give_everything_back(pool)
    finally:
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)


def give_everything_back(pool: RunningPool) -> None:
    with contextlib.suppress(GpuMarketError), connect(pool.folders, start=False) as client:
        for cluster in client.clusters():
            client.end_cluster(cluster.name)
        for view in client.leases():
            client.release(view.lease.lease_id)
        deadline = time.monotonic() + 60
        while client.leases() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert client.leases() == []
        client.shutdown()


@pytest.fixture(scope="module")
def broker(lab: RunningPool) -> Iterator[Client]:
    with connect(lab.folders, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def kernel(lab: RunningPool, broker: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    """A notebook whose cluster `crew` has two nodes."""
    environment = {**lab.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": "lab/crew.ipynb"}
    kernel = RealKernel(environment, tmp_path_factory.mktemp("kernel")).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket")
        kernel.must_run("import pathlib\npathlib.Path('crew_tools.py').write_text('def f(x):\\n    return x + 1')")
        kernel.must_run("%gpu cluster 2 --gpu none --budget 6 --name crew --threads 1 --yes --sync crew_tools.py")
        yield kernel
    finally:
        kernel.stop()


def until(holds: Any, what: str, timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.2)
    return found


def test_client_is_there_in_the_notebooks_cells(kernel: RealKernel, broker: Client) -> None:
    """A `%%gpu` cell runs on the head with `client` bound, and its tasks on both nodes."""
    done = kernel.must_run(
        "%%gpu\nimport os\n"
        "homes = set(client.run(lambda: __import__('os').environ['HOME']).values())\n"
        "print(len(homes), client.submit(sum, client.map(abs, range(-9, 0))).result())"
    )
    view = broker.cluster_view("crew")
    assert done.stdout.split() == ["2", "45"]
    assert view.dask is not None
    assert view.dask.head in {lease.lease_id for lease in view.leases}
    assert sum(lease.request.budget_nusd for lease in view.leases) <= view.wish.budget_nusd


def test_tasks_find_the_users_own_modules(kernel: RealKernel) -> None:
    """A function of a synced module runs on all workers, and its new version after an edit, scheduler included."""
    cell = "%%gpu {}\nimport crew_tools\nprint(sum(client.gather(client.map(crew_tools.f, range(20), pure=False))))"
    assert kernel.must_run(cell.format("")).stdout == "210\n"
    newer = "import operator\ndef f(x):\n    return g(x)\ndef g(x):\n    return operator.neg(x)"
    kernel.must_run(f"pathlib.Path('crew_tools.py').write_text({newer!r})")
    done = kernel.must_run(f"{cell.format('--sync')}\nprint(client.submit(crew_tools.g, 4).result())")
    assert done.stdout.splitlines()[-2:] == ["-190", "-4"]


def test_a_client_of_the_notebook_is_refused_by_strangers_nodes(kernel: RealKernel) -> None:
    """`Client(cluster)` in the notebook says why it is refused, and how it would go."""
    done = kernel.run(
        "import jupyter_gpumarket as gm\nfrom distributed import Client\n"
        "cluster = gm.GPUCluster(name='crew')\nClient(cluster)"
    )
    assert done.status == "error"
    assert done.reply["ename"] == "NotTrusted"
    assert "client` inside a %%gpu cell" in done.reply["evalue"]
    assert "crew" in kernel.must_run("print(cluster.name, len(cluster.scheduler_info['workers']))").stdout


def test_it_scales_and_tells_why(kernel: RealKernel, broker: Client) -> None:
    """`scale` rents a node that joins by itself, and gives one back again; the reasons can be read."""
    own = "import jupyter_gpumarket as gm\ncluster = gm.GPUCluster(name='crew')\n"
    kernel.must_run(f"{own}cluster.scale(3)\ncluster.wait_for_workers(3, timeout=60)")
    assert len(broker.cluster_view("crew").leases) == 3
    # The node that joined got the modules before its worker was started.
    known = "print(len(client.run(lambda: __import__('crew_tools').f(1))))"
    assert kernel.must_run(f"%%gpu\n{known}").stdout == "3\n"
    kernel.must_run("cluster.scale(2)")
    until(lambda: len(broker.cluster_view("crew").leases) == 2, "one is given back")
    why = kernel.must_run("%gpu cluster why")
    told = why.stdout + "".join(str(content) for content in why.of("display_data"))

    assert "2 of 3 nodes are there" in told
    assert "3 nodes, and 2 are asked for" in told


def test_a_lost_node_is_replaced_within_the_budget(kernel: RealKernel, broker: Client, lab: RunningPool) -> None:
    """A worker's node that dies costs its running tasks only; another one joins by itself, and the bill is true."""
    view = broker.cluster_view("crew")
    assert view.dask is not None
    lost = next(lease for lease in view.leases if lease.lease_id != view.dask.head)
    sent = kernel.submit(
        "%%gpu\nimport time\n"
        "def slow(x):\n    time.sleep(0.3)\n    return x\n"
        "print(sum(client.gather(client.map(slow, range(60), retries=5))))"
    )
    until(lambda: (broker.cluster_view("crew").dask or view.dask).tasks.processing, "tasks run")
    host = next(host for host in lab.hosts if host.pid and lost.rental_id in _leases_of(lab, host))
    host.kill()
    done = kernel.finish(sent)

    assert done.status == "ok", done.reply
    assert done.stdout.split()[-1] == str(sum(range(60)))
    until(lambda: _is_whole_without(broker, lost.lease_id), "another node has joined", 150)
    after = broker.cluster_view("crew")
    assert after.spent_nusd <= after.wish.budget_nusd


def _leases_of(lab: RunningPool, host: Any) -> str:
    folder = lab.host_folder(lab.hosts.index(host))
    return " ".join(str(path) for path in folder.rglob("*"))


def _is_whole_without(broker: Client, lost: str) -> bool:
    view = broker.cluster_view("crew")
    running = {w.lease_id for w in view.dask.workers if w.state == "running"} if view.dask else set()
    return len(running - {lost}) == 2


def test_an_estimate_is_told_before_and_when_much_is_submitted(kernel: RealKernel) -> None:
    """`%gpu cluster estimate` measures on the head; a large graph that a cell submits is estimated under the cell."""
    kernel.must_run("%%gpu\nimport dask.array as da\nx = da.ones((4000, 4000), chunks=(400, 4000))")
    before = kernel.must_run('%gpu cluster estimate "x.rechunk((4000, 400)).sum()" --seconds-each 0.2')
    meanwhile = kernel.must_run(
        "%%gpu\nimport time\n"
        "def slow(x):\n    time.sleep(0.5)\n    return x\n"
        "futures = client.map(slow, range(400))\ntime.sleep(5)\nclient.cancel(futures)\ndel futures"
    )
    wrong = kernel.run('%gpu cluster estimate "no_such_name + 1"')

    assert re.search(r"\d+ tasks \(0\.2 s each as you say\), result 8 bytes, 128 MB to move: about", before.stdout)
    assert re.search(r"Dask has 400 tasks: about \d", meanwhile.stdout), meanwhile.stdout
    assert "no_such_name" in str(wrong.reply["evalue"])


def at_work(broker: Client) -> set[str]:
    """The leases of which a worker runs."""
    dask = broker.cluster_view("crew").dask
    return {worker.lease_id for worker in dask.workers if worker.state == "running"} if dask else set()


def test_adapt_rents_for_a_queue_and_gives_back_when_it_is_empty(kernel: RealKernel, broker: Client) -> None:
    """One node more while work waits, given back when none does, and no other step; reasons and ledger tell it."""
    kernel.must_run("import jupyter_gpumarket as gm\ncluster = gm.GPUCluster(name='crew')\ncluster.scale(1)")
    until(lambda: len(broker.cluster_view("crew").leases) == 1, "one node is left")
    (first,) = broker.cluster_view("crew").leases
    kernel.must_run(
        "adapting = cluster.adapt(minimum=1, maximum=2, least_work_s=1, idle_s=2, steady_s=4)\n"
        "assert (adapting.minimum, adapting.maximum) == (1, 2)"
    )
    kernel.must_run(
        "%%gpu\nimport time\n"
        "def slow(x):\n    time.sleep(0.5)\n    return x\n"
        "futures = client.map(slow, range(600), pure=False)"
    )
    grown = until(lambda: len((view := broker.cluster_view("crew")).leases) == 2 and view, "a node is rented")
    second = next(lease for lease in grown.leases if lease.lease_id != first.lease_id)
    until(lambda: second.lease_id in at_work(broker), "its worker has joined")
    kernel.must_run("%%gpu\nclient.cancel(futures)\ndel futures")
    until(lambda: [one.lease_id for one in broker.cluster_view("crew").leases] == [first.lease_id], "it is given back")
    until(lambda: "fewest" in broker.cluster_view("crew").decisions[-1].reasons[-1], "nothing more is done")
    steps = [one for one in broker.cluster_view("crew").decisions if one.grow or one.release][-2:]
    charges = broker.costs(CostQuery(lease=second.lease_id)).charges

    assert [(one.grow, one.release) for one in steps] == [(1, ()), (0, (second.lease_id,))]
    assert "worker-seconds" in steps[0].reasons[0]
    assert "the dearest idle node goes" in steps[1].reasons[-1]
    assert sum(charge.amount_nusd for charge in charges) > 0
    assert broker.cluster_view("crew").spent_nusd <= grown.wish.budget_nusd
    kernel.must_run("adapting.stop()")
    assert broker.cluster_view("crew").wish.aim.maximum == 1


def test_release_gives_all_of_it_back(kernel: RealKernel, broker: Client) -> None:
    """`%gpu cluster release` ends every node, and tells what all of it cost."""
    done = kernel.must_run("%gpu cluster release")

    assert "is given back; it cost $" in done.stdout
    assert [view.lease.name for view in broker.leases() if view.lease.request.cluster.startswith("crew")] == []


def test_trusted_nodes_let_a_client_of_the_notebook_in(kernel: RealKernel, broker: Client) -> None:
    """With `trust=True`, `Client(cluster)` works in the notebook, said once; after a restart of the kernel it is found
    again by name, and awaited, too."""
    done = kernel.must_run(
        "import jupyter_gpumarket as gm\nfrom distributed import Client\n"
        "own = gm.cluster(\n"
        "    1, gpu='none', budget='1', hours=0.5, trust=True, nthreads=1, name='own', sync='crew_tools'\n"
        ")\n"
        "import crew_tools\nwith Client(own) as notebook_client:\n"
        "    print(notebook_client.submit(sum, [20, 22]).result())\n"
        "    print(notebook_client.submit(crew_tools.f, 5).result() == crew_tools.f(5))\n"
        "print(own.scheduler_address.startswith('tls://127.0.0.1:'), own.dashboard_link, 'cost' in repr(own))"
    )
    assert "own is trusted: its scheduler may run code in this notebook" in done.stdout
    assert "\n42\nTrue\n" in f"\n{done.stdout}"
    assert re.search(r"True http://127\.0\.0\.1:\d+/status True", done.stdout), done.stdout
    kernel.restart()
    kernel.must_run("import jupyter_gpumarket as gm\nfrom distributed import Client")
    again = kernel.must_run(
        "async with gm.GPUCluster(name='own', asynchronous=True) as found:\n"
        "    await found.wait_for_workers(1, timeout=30)\n"
        "    async with Client(found, asynchronous=True) as awaited:\n"
        "        print(await awaited.submit(sum, [1, 2]), sorted(await found.get_logs()) != [])\n"
        "print(found.status)"
    )
    assert "3 True\nStatus.closed" in again.stdout
    until(lambda: not broker.cluster_view("own").leases, "its node is given back")


def executed(lab: RunningPool, name: str, folder: Path) -> Any:
    """An example, run from its first to its last cell as nbclient does it."""
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    before = dict(os.environ)
    os.environ.update({**lab.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": f"lab/{name}"})
    try:
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return notebook


def told_by(notebook: Any) -> str:
    """All text that the cells showed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    found = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(found)


def test_example_03_computes_on_rented_nodes(lab: RunningPool, broker: Client, tmp_path: Path) -> None:
    """The example on arrays and frames runs as it is written: right results, a warning, everything given back."""
    told = told_by(executed(lab, "03-dask-on-rented-nodes.ipynb", tmp_path))

    assert "this is bound by the network" in told
    assert re.search(r"spread after 4000 steps: 6[23]\.\d", told)
    assert re.search(r"^\s+7\s+1[89]\.\d+", told, re.MULTILINE)
    assert "weather is given back" in told
    assert broker.leases() == []


def test_example_05_shows_what_a_death_costs(lab: RunningPool, broker: Client, tmp_path: Path) -> None:
    """The example on dying nodes runs as it is written: the sum is right, the loss is told, nothing stays rented."""
    told = told_by(executed(lab, "05-when-a-node-dies.ipynb", tmp_path))

    assert "the sum is right: True" in told
    assert "a variable of the session is still here, and 42 comes from the new scheduler" in told
    assert "has to be submitted again" in told
    assert "brittle is given back" in told
    assert broker.leases() == []
