"""The whole path with real processes: pool, broker, cluster process, link, agent, kernel, and the exact bill."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_gpumarket.api import LeaseView, RunMessage, RunRequest, RunView, RunWish
from jupyter_gpumarket.client import Client, ClusterClient
from jupyter_gpumarket.config import Folders
from jupyter_gpumarket.errors import BudgetExceeded
from jupyter_gpumarket.models import (
    ENDED_RUNS,
    ENDED_STATES,
    ChargeKind,
    LeaseRequest,
    LeaseState,
    OfferQuery,
    Owner,
    RunStatus,
    Scope,
)
from jupyter_gpumarket.money import usd
from tests.broker.lab import pool
from tests.broker.running import broker_of, ended, processes_of, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
OWNER = Owner(user="ada", project="vision", notebook="first.ipynb")
READY_S = 120.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Folders]:
    """Folders whose broker has a pool with one host."""
    with pool(tmp_path) as (folders, _):
        yield folders


def wish(door: Client, request_id: str = "request-1", **more: Any) -> LeaseView:
    """Ask for a node as soon as the pool offers one."""
    until("the pool offers its host", lambda: door.offers().offers)
    values: dict[str, Any] = {"query": OfferQuery(), "budget_nusd": usd("2"), "max_s": 600, "owner": OWNER, **more}
    return door.wish(LeaseRequest(request_id=request_id, **values))


def follow(door: Client, view: LeaseView, *states: LeaseState, deadline_s: float = READY_S) -> LeaseView:
    """Wait until a lease is in one of these states; fails at once when it ends otherwise."""
    end = time.monotonic() + deadline_s
    while view.lease.state not in states:
        assert view.lease.state not in ENDED_STATES, f"{view.lease.state}: {view.lease.reason}\n{told(door, view)}"
        assert time.monotonic() < end, f"still {view.lease.state}\n{told(door, view)}"
        view = door.lease(view.lease.lease_id, after_seq=view.seq, wait_s=2)
    return view


def told(door: Client, view: LeaseView) -> str:
    """Everything that helps to see why."""
    lines = [f"{line.kind} {str(line.body)[:300]}" for line in door.story(view.lease.lease_id)]
    node = door.lease(view.lease.lease_id).node
    return "\n".join([*lines, str(node)])


def run_cell(door: Client, cluster: ClusterClient, view: LeaseView, code: str, run_id: str) -> None:
    """Do what a magic does to start a cell."""
    lease_id = view.lease.lease_id
    door.start_run(RunWish(run_id=run_id, lease_id=lease_id, session="main", owner=OWNER, cell_id="c1"))
    cluster.run(RunRequest(run_id=run_id, lease_id=lease_id, code=code, owner=OWNER, cell_id="c1"))


def output(cluster: ClusterClient, run_id: str, deadline_s: float = 60.0) -> tuple[RunView, list[RunMessage]]:
    """The whole output of a run, followed to its end."""
    messages: list[RunMessage] = []
    end = time.monotonic() + deadline_s
    while True:
        batch = cluster.messages(run_id, after=len(messages), wait_s=2)
        messages += batch.messages
        if batch.run.status in ENDED_RUNS and len(messages) == batch.run.messages:
            return batch.run, messages
        assert time.monotonic() < end, f"still {batch.run}, link {batch.link}: {batch.link_detail}"


def text_of(messages: list[RunMessage]) -> str:
    return "".join(m.content["text"] for m in messages if m.msg_type == "stream")


def test_a_cell_runs_on_a_rented_node_and_its_bill_is_exact(lab: Folders) -> None:
    """A wish, a cell, its cost, a sure release; our lines equal the pool's own bill, and nothing is left."""
    with broker_of(lab) as door:
        view = follow(door, wish(door), LeaseState.READY)
        cluster = door.cluster(view.lease.lease_id)
        run_cell(door, cluster, view, "print(1 + 1)", "run-1")
        run, messages = output(cluster, "run-1")
        assert (run.status, text_of(messages)) == (RunStatus.OK, "2\n"), f"{run} {messages}"
        assert [m.n for m in messages] == list(range(1, len(messages) + 1))
        cost = until("the run's cost is final", lambda: (c := door.run_cost("run-1")).final and c)
        assert cost.run.status is RunStatus.OK
        assert cost.amount_nusd > 0
        assert cost.rate_nusd_hour == usd("3.60")

        view = follow(door, door.release(view.lease.lease_id), LeaseState.RELEASED, deadline_s=60)
        final = until(
            "the bill is compared",
            lambda: [line for line in door.story(view.lease.lease_id) if line.kind == "reconciled"],
        )
        charges = door.costs().charges
        assert all(charge.final for charge in charges)
        assert {charge.kind for charge in charges} >= {ChargeKind.BOOT, ChargeKind.CELL, ChargeKind.IDLE}
        assert sum(c.amount_nusd for c in charges if c.run_id == "run-1") == door.run_cost("run-1").amount_nusd
        assert sum(c.amount_nusd for c in charges) == final[0].body["theirs_nusd"], final[0].body
        assert door.reconcile()[0].gap_nusd == 0
        assert files_with(door_token(lab), lab) == ["broker.json"]
        assert files_with((lab.configuration / "pool.key").read_text(), lab) == []
        pid = door.health().pid
        door.shutdown()
        until("the broker has ended", lambda: ended(pid))
    until("no process is left on the node", lambda: not node_processes(lab))


def door_token(lab: Folders) -> str:
    return str(json.loads(lab.broker_file.read_text("utf-8"))["token"])


def files_with(secret: str, lab: Folders) -> list[str]:
    """The files of the state folder, and those of the node, that hold a secret."""
    places = [path for root in (lab.state, lab.state.parent / "north") for path in root.rglob("*") if path.is_file()]
    return [path.name for path in places if secret.encode() in path.read_bytes()]


def node_processes(lab: Folders) -> list[psutil.Process]:
    """What still runs in the host's folder."""
    root = str(lab.state.parent / "north")
    found = []
    for process in psutil.process_iter():
        try:
            if "jupyter_gpumarket.pool" not in process.cmdline() and root in " ".join(
                [process.cwd(), *process.cmdline()]
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_kill_9_of_the_broker_loses_nothing(lab: Folders) -> None:
    """Killed while a cell runs: the next broker adopts lease and cluster process, and knows the cell's end."""
    with broker_of(lab) as door:
        view = follow(door, wish(door), LeaseState.READY)
        cluster = door.cluster(view.lease.lease_id)
        run_cell(door, cluster, view, "import time\nfor i in range(4): print(i, flush=True); time.sleep(1)", "run-1")
        until("the cell prints", lambda: cluster.messages("run-1").messages)
        before = cluster.nodes()
        os.kill(door.health().pid, signal.SIGKILL)
        run, messages = output(cluster, "run-1")
        cost = until("the next broker knows its end", lambda: (c := door.run_cost("run-1")).final and c)
        after = door.lease(view.lease.lease_id)

        assert (run.status, text_of(messages)) == (RunStatus.OK, "0\n1\n2\n3\n")
        assert cost.run.status is RunStatus.OK
        assert 3500 < cost.duration_ms < 10_000
        assert after.lease.rental_id == view.lease.rental_id
        assert [node.lease_id for node in cluster.nodes()] == [node.lease_id for node in before]
        follow(door, door.release(view.lease.lease_id), LeaseState.RELEASED, deadline_s=60)


def test_kill_9_of_the_cluster_process_loses_nothing(lab: Folders) -> None:
    """Killed while a cell prints, the cluster process comes back and the cell's output is whole, each line once."""
    with broker_of(lab) as door:
        view = follow(door, wish(door), LeaseState.READY)
        cluster = door.cluster(view.lease.lease_id)
        code = "import time\nfor i in range(40): print(i, flush=True); time.sleep(0.1)"
        run_cell(door, cluster, view, code, "run-1")
        until("the cell prints", lambda: cluster.messages("run-1").messages)
        victim = next(p for p in processes_of(lab) if "jupyter_gpumarket.cluster" in p.cmdline())
        victim.kill()
        run, messages = until("the whole output is there", lambda: _try_output(cluster))

        assert run.status is RunStatus.OK
        assert text_of(messages) == "".join(f"{i}\n" for i in range(40))
        follow(door, door.release(view.lease.lease_id), LeaseState.RELEASED, deadline_s=60)


def _try_output(cluster: ClusterClient) -> tuple[RunView, list[RunMessage]] | None:
    from jupyter_gpumarket.errors import GpuMarketError

    try:
        return output(cluster, "run-1")
    except GpuMarketError:
        return None


def test_the_end_of_a_budget_saves_declared_outputs_within_it(lab: Folders) -> None:
    """A cell that runs when the lease's money ends is interrupted: what it declared is here, and the bill fits."""
    with broker_of(lab) as door:
        view = follow(door, wish(door), LeaseState.READY)
        cluster = door.cluster(view.lease.lease_id)
        code = "best = 0\nimport time\nwhile True:\n    best += 1\n    time.sleep(0.01)"
        door.start_run(RunWish(run_id="run-1", lease_id=view.lease.lease_id, session="main", owner=OWNER))
        cluster.run(RunRequest(run_id="run-1", lease_id=view.lease.lease_id, code=code, outputs=("best",), owner=OWNER))
        until("it runs", lambda: cluster.run_view("run-1").status is RunStatus.RUNNING)
        spent = door.lease(view.lease.lease_id).cost_nusd
        budget = spent + usd("3.60") * 20 // 3600
        door.extend(view.lease.lease_id, budget_nusd=budget)
        view = follow(door, view, LeaseState.RELEASED, deadline_s=60)
        run, _ = output(cluster, "run-1")
        charges = until("the books close", lambda: (c := door.costs().charges) and all(x.final for x in c) and c)

        assert "budget" in view.lease.reason
        assert run.status is RunStatus.INTERRUPTED, run
        assert "budget" in run.reason
        assert (run.outputs[0].name, run.outputs[0].error) == ("best", "")
        assert int(cluster.output("run-1", "best")) > 100
        assert sum(charge.amount_nusd for charge in charges) <= budget


def test_a_project_budget_refuses_and_cuts(lab: Folders) -> None:
    """A wish beyond the project's budget is refused; a lease that uses it up is drained and released by the broker."""
    with broker_of(lab) as door:
        door.set_budget(Scope.PROJECT, "vision", usd("0.03"))
        with pytest.raises(BudgetExceeded, match="vision"):
            wish(door, budget_nusd=usd("1"))
        view = follow(door, wish(door, "request-2", budget_nusd=usd("0.03")), LeaseState.READY, LeaseState.RELEASED)
        view = follow(door, view, LeaseState.RELEASED, deadline_s=90)
        spent = sum(charge.amount_nusd for charge in door.costs().charges)

        assert "budget" in view.lease.reason or "deadline" in view.lease.reason
        assert spent <= usd("0.03") + usd("3.60") * 90 // 3600
        with pytest.raises(BudgetExceeded):
            wish(door, "request-3", budget_nusd=usd("0.03"))
