"""Dask on three nodes that cannot reach each other: real OpenSSH servers in network namespaces."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import psutil
import pytest

from jupyter_gpumarket.api import DaskRetire, DaskView
from jupyter_gpumarket.models import RunStatus
from tests.cluster.conftest import text_of
from tests.dask.chaos import ITEMS, is_right_in, round_of, round_of_heads
from tests.dask.conftest import DaskCluster
from tests.nodes.far import cut

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


async def test_arrays_frames_actors_and_shuffles_work_unmodified(apart: DaskCluster) -> None:
    """dask.array, dataframe with a P2P shuffle, delayed, futures and actors give what they give on one machine."""
    text, view = await apart.run(
        """
import dask, dask.array as da, dask.dataframe as dd, numpy as np, pandas as pd
print(int(da.arange(1000, chunks=100).sum().compute()))
frame = pd.DataFrame({"key": np.arange(3000) % 7, "value": np.arange(3000)})
with dask.config.set({"dataframe.shuffle.method": "p2p"}):
    shuffled = dd.from_pandas(frame, npartitions=6).shuffle("key").compute()
print(len(shuffled), int(shuffled.value.sum()))
@dask.delayed
def double(x):
    return 2 * x
print(dask.delayed(sum)([double(i) for i in range(10)]).compute())
class Counter:
    n = 0
    def add(self):
        self.n += 1
        return self.n
counter = client.submit(Counter, actor=True).result()
print([counter.add().result() for _ in range(3)])
"""
    )
    assert view.status is RunStatus.OK, (text, view.traceback)
    assert text.split("\n")[:4] == ["499500", f"3000 {sum(range(3000))}", "90", "[1, 2, 3]"]
    assert (await apart.view()).relayed_bytes > 0


async def test_no_socket_of_this_side_listens_for_a_node(apart: DaskCluster) -> None:
    """The cluster process listens on its HTTP port alone."""
    process = psutil.Process(apart.process.pid)
    listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]

    assert len(listening) == 1
    assert f":{listening[0].laddr.port}" in apart.process.address["url"]


async def test_keys_stay_with_their_node(apart: DaskCluster) -> None:
    """Each node has one key of its own, readable by its user alone; the authority's key is on no node."""
    keys = [{file.read_bytes() for file in node.folder.glob("dask/*/key.pem")} for node in apart.nodes]
    modes = {file.stat().st_mode & 0o777 for node in apart.nodes for file in node.folder.glob("dask/*/key.pem")}
    authority = msgspec.json.decode((apart.process.folder / "dask.json").read_bytes())["authority"]["key"]

    assert [len(of_node) for of_node in keys] == [1, 1, 1]
    assert len(set.union(*keys)) == 3
    assert modes == {0o600}
    assert base64.b64decode(authority) not in set.union(*keys)


async def test_workers_that_die_cost_only_their_running_tasks(apart: DaskCluster) -> None:
    """With workers that live two seconds on average, a computation whose pieces all hang together comes out right."""
    text, view, deaths = await round_of(apart, seed=7, timeout_s=120, most=4)

    assert view.status is RunStatus.OK, (text, view.traceback, apart.logs())
    assert is_right_in(text), text
    assert deaths > 0
    await apart.until_workers(3)


async def test_a_task_that_kills_its_workers_is_named(apart: DaskCluster) -> None:
    """After its tries the poisoned task ends as an error that names it; what comes after it is done."""
    text, view = await apart.run(
        """
import os
client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 2))
bad = client.submit(os._exit, 1, key="the-poisoned-one", pure=False)
try:
    bad.result()
except Exception as error:
    print(type(error).__name__, "the-poisoned-one" in str(error))
print(sum(client.gather(client.map(lambda x: x + 1, range(20)))))
"""
    )
    assert view.status is RunStatus.OK, (text, view.traceback)
    assert text.split("\n")[:2] == ["KilledWorker True", "210"]
    view = await apart.until(lambda view: "the-poisoned-one" in view.tasks.poisoned, "it is named")
    await apart.until_workers(3)


async def test_a_cut_link_costs_no_worker(apart: DaskCluster) -> None:
    """When a worker's SSH connection is cut in the middle of its tasks, they go on, and the same processes end them."""
    before = await apart.until_workers(3)
    other = next(node for node in apart.nodes if node.lease_id != before.head)
    run_id = "run-cut"
    code = "import time\nprint(sum(client.gather(client.map(lambda x: time.sleep(0.1) or x, range(90)))))"
    await apart.process.submit(run_id, code, before.head)
    await apart.until(lambda view: view.tasks.processing > 0, "tasks run")
    cut(other.sshd)
    messages, view = await apart.process.follow(run_id, 90)

    assert view.status is RunStatus.OK, view.traceback
    assert text_of(messages).strip() == str(sum(range(90)))
    assert {worker.name for worker in (await apart.view()).workers} == {worker.name for worker in before.workers}


async def test_a_killed_cluster_process_costs_no_scheduler(apart: DaskCluster) -> None:
    """After kill -9 of the user's side the same scheduler goes on; workers that lost it are replaced."""
    before = await apart.until_workers(3)
    apart.process.kill()
    await apart.process.start()
    await apart.until_workers(3)
    text, view = await apart.run("print(client.submit(sum, client.map(abs, range(-4, 0))).result())")

    assert view.status is RunStatus.OK, (text, view.traceback, apart.logs())
    assert text.strip() == "10"
    assert (await apart.view()).generation == before.generation


async def test_a_lost_scheduler_is_replaced_and_said_to_be_lost(apart: DaskCluster) -> None:
    """A new scheduler and new workers come by themselves; `client` is the new one; what is lost is told."""
    before = await apart.until_workers(3)
    head = next(node for node in apart.nodes if node.lease_id == before.head)
    for process in head.dask("distributed.cli.dask_scheduler"):
        process.kill()
    after = await apart.until(lambda view: view.generation > before.generation, "another scheduler is started")
    assert "have to be submitted again" in after.notices[-1] or "has to be submitted again" in after.notices[-1]
    await apart.until_workers(3)
    text, view = await apart.run("print(client.submit(sum, [1, 2]).result())")

    assert view.status is RunStatus.OK, (text, view.traceback)
    assert text.split()[-1] == "3"


async def test_a_scheduler_killed_in_the_middle_costs_only_what_is_unfinished(
    apart: DaskCluster, tmp_path: Path
) -> None:
    """At two random moments of 80 tasks: what the session had got is not run again, the rest is, and all is right."""
    await apart.until_workers(3)
    text, again = await round_of_heads(apart, tmp_path, seed=3, kills=2)

    assert text.split() == [str(ITEMS), str(sum(k * k for k in range(ITEMS)))]
    assert again == []


async def test_a_retired_node_hands_over_what_it_holds(apart: DaskCluster) -> None:
    """Results on a node that is to go are moved to others before its worker ends; no other worker is started there."""
    before = await apart.until_workers(3)
    going = next(node for node in apart.nodes if node.lease_id != before.head)
    name = next(worker.name for worker in before.workers if worker.lease_id == going.lease_id)
    await apart.run(f"kept = client.submit(lambda: 41, workers=[{name!r}], allow_other_workers=True)\nkept.result()")
    reply = await apart.process.call("POST", "/v1/dask/retire", DaskRetire(lease_id=going.lease_id, reason="test"))
    assert reply.status_code == 202, reply.text

    def is_gone(view: DaskView) -> bool:
        return all(worker.lease_id != going.lease_id or worker.state == "retired" for worker in view.workers)

    await apart.until(is_gone, "its worker is retired")
    text, view = await apart.run("print(kept.result() + 1, kept.status)")
    assert (text.split(), view.status) == (["42", "finished"], RunStatus.OK)
