"""Cluster processes: real ones, started, adopted and kept alive by the broker's side."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest

from jupyter_gpumarket.broker.clusters import Clusters, is_cluster_process, scrubbed
from jupyter_gpumarket.broker.logs import Redactor
from jupyter_gpumarket.broker.web import TokenBook
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Folders
from jupyter_gpumarket.errors import Unreachable
from jupyter_gpumarket.leases import KeyStore
from jupyter_gpumarket.models import Lease, LeaseState, NodeAddress
from tests.broker.fakes import lease
from tests.broker.running import end_processes, ended, folders_in, until

CANARY = "canary-marketplace-key-3141592"
pytestmark = pytest.mark.slow


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[Folders]:
    made = folders_in(tmp_path)
    yield made
    end_processes(made)


def clusters_of(folders: Folders, url: str = "http://127.0.0.1:1") -> Clusters:
    return Clusters(
        folders=folders, clock=SystemClock(), tokens=TokenBook(door="d"), redactor=Redactor(), broker_url=url
    )


@pytest.fixture
async def clusters(folders: Folders) -> AsyncIterator[Clusters]:
    made = clusters_of(folders)
    yield made
    await made.aclose()


@pytest.fixture
def node(folders: Folders) -> Lease:
    """A lease whose node is a port where nobody answers."""
    KeyStore(folders.keys).create("lease-1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return lease(
        state=LeaseState.LINKING, address=NodeAddress(host="127.0.0.1", port=port, user="lease"), ready_ms=None
    )


def pid_of(folders: Folders) -> int:
    return int(json.loads((folders.cluster("lease-1") / "cluster.json").read_text())["pid"])


async def test_no_key_reaches_a_cluster_process(
    clusters: Clusters, folders: Folders, node: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in the broker's environment are neither in the child's environment nor in its arguments or folder."""
    monkeypatch.setenv("JUPYTER_GPUMARKET_POOL_KEY", CANARY)
    monkeypatch.setenv("SOME_CLOUD_TOKEN", CANARY)
    await clusters.attach(node, self_stop=None, resume=False)
    pid = pid_of(folders)
    seen = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    seen += b"".join(path.read_bytes() for path in folders.cluster("lease-1").rglob("*") if path.is_file())

    assert b"PATH=" in seen
    assert CANARY.encode() not in seen


def test_the_environment_is_an_allow_list() -> None:
    """What is not known to be harmless stays here."""
    harmless = {"PATH": "p", "LC_ALL": "C", "PYTHONPATH": "x"}
    kept = scrubbed({**harmless, "AWS_SECRET_ACCESS_KEY": "s", "HTTPS_PROXY": "u:p@h"})

    assert kept == harmless


async def test_attaching_twice_starts_one_process(clusters: Clusters, folders: Folders, node: Lease) -> None:
    """Attach is idempotent, and the node shows up in the process's own view."""
    await clusters.attach(node, self_stop=None, resume=False)
    first = pid_of(folders)
    await clusters.attach(node, self_stop=None, resume=False)
    view = await clusters.node(node)

    assert pid_of(folders) == first
    assert view is not None
    assert view.lease_id == "lease-1"


async def test_it_outlives_the_broker_and_is_adopted(clusters: Clusters, folders: Folders, node: Lease) -> None:
    """A new broker finds the living process, gives it its own address and a new token, and starts no second one."""
    await clusters.attach(node, self_stop=None, resume=False)
    pid = pid_of(folders)
    before = (folders.cluster("lease-1") / "broker.json").read_bytes()
    after_restart = clusters_of(folders, url="http://127.0.0.1:2")
    after_restart.adopt(node)
    access = await after_restart.access(node)
    told = json.loads((folders.cluster("lease-1") / "broker.json").read_bytes())
    await after_restart.aclose()

    assert pid_of(folders) == pid
    assert access.token == json.loads((folders.cluster("lease-1") / "cluster.json").read_text())["token"]
    assert told["url"] == "http://127.0.0.1:2"
    assert told["token"] not in before.decode()
    assert access.token not in repr(access)


async def test_a_dead_process_that_has_nodes_is_started_again(
    clusters: Clusters, folders: Folders, node: Lease
) -> None:
    """Killed, the cluster process comes back by the next look, with its node attached."""
    await clusters.attach(node, self_stop=None, resume=False)
    first = pid_of(folders)
    os.kill(first, signal.SIGKILL)
    until("it is dead", lambda: ended(first))
    await clusters.keep_alive([node])
    view = await clusters.node(node)

    assert pid_of(folders) != first
    assert view is not None


async def test_a_stopped_process_is_not_doubled(folders: Folders, node: Lease) -> None:
    """One that hangs (SIGSTOP) is reported as not answering; a second one beside it would fight for the node."""
    patient = clusters_of(folders)
    await patient.attach(node, self_stop=None, resume=False)
    await patient.aclose()
    hasty = Clusters(
        folders=folders,
        clock=SystemClock(),
        tokens=TokenBook(door="d"),
        redactor=Redactor(),
        broker_url="http://127.0.0.1:1",
        call_timeout_s=0.5,
    )
    pid = pid_of(folders)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable, match="does not answer"):
            await hasty.attach(node, self_stop=None, resume=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    await hasty.attach(node, self_stop=None, resume=False)
    await hasty.aclose()

    assert pid_of(folders) == pid


async def test_detaching_lets_the_process_end_by_itself(clusters: Clusters, folders: Folders, node: Lease) -> None:
    """After the last node is gone the process knows none, and detaching once more is no error, even when it is gone."""
    await clusters.attach(node, self_stop=None, resume=False)
    await clusters.detach(node)
    pid = pid_of(folders)
    assert await clusters.node(node) is None
    os.kill(pid, signal.SIGTERM)
    until("it has ended", lambda: ended(pid))
    await clusters.detach(node)


async def test_an_ended_lease_does_not_start_a_process(clusters: Clusters, folders: Folders, node: Lease) -> None:
    """Asking for the cluster of a released lease whose process is gone is an error, not a new process."""
    over = msgspec.structs.replace(node, state=LeaseState.RELEASED)
    with pytest.raises(Unreachable, match="has ended"):
        await clusters.access(over)

    assert not (folders.cluster("lease-1") / "cluster.json").exists()


def test_a_pid_that_was_used_again_is_no_cluster_process(tmp_path: Path) -> None:
    """Another program under the recorded pid is not taken for ours."""
    assert not is_cluster_process(os.getpid(), tmp_path)
    assert not is_cluster_process(psutil.pids()[-1] + 10**6, tmp_path)
