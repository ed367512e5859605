"""The sync client: one loop behind it, and Ctrl-C."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket import client
from jupyter_gpumarket.client import AsyncClient, AsyncClusterClient, Client, ClusterClient
from jupyter_gpumarket.client.http import Conversation, Endpoint, Gone
from jupyter_gpumarket.config import Folders, Secret
from jupyter_gpumarket.errors import BadRequest, BrokerUnavailable
from tests.broker.running import broker_of, folders_in, request

Shared = tuple[Client, Folders]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folders = folders_in(tmp_path_factory.mktemp("client"))
    with broker_of(folders) as door:
        yield door, folders


@pytest.mark.parametrize(("sync", "twin"), [(Client, AsyncClient), (ClusterClient, AsyncClusterClient)])
def test_every_async_method_has_its_bridge(sync: type, twin: type) -> None:
    """The two clients never drift apart: same public methods, same documentation."""
    methods = {n for n, m in inspect.getmembers(twin, inspect.iscoroutinefunction) if not n.startswith("_")}
    bridged = {n for n, _ in inspect.getmembers(sync, inspect.isfunction) if not n.startswith("_")}

    assert methods - {"aclose"} == bridged - {"close"}
    assert all(inspect.getdoc(getattr(sync, name)) for name in bridged)


def test_ctrl_c_cancels_the_pending_call_and_is_raised(shared: Shared) -> None:
    """A waiting call ends at once with KeyboardInterrupt, and the client still works."""
    door, _ = shared
    view = door.wish(request("ctrl-c"))
    while (after := door.lease(view.lease.lease_id)).seq != view.seq:
        view = after
        time.sleep(0.2)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        door.lease(view.lease.lease_id, after_seq=view.seq, wait_s=30)

    assert time.monotonic() - begin < 10
    assert door.health().pid


def test_a_call_works_where_a_loop_is_running(shared: Shared) -> None:
    """In a notebook the kernel's own loop is busy with the cell; the sync client does not need it."""

    async def cell() -> int:
        return shared[0].health().pid

    assert asyncio.run(cell()) == shared[0].health().pid


def test_many_threads_share_one_client(shared: Shared) -> None:
    """Calls from several threads at once all get their own answers."""
    door, _ = shared
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(door.health().pid)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert answers == [door.health().pid] * 16


def test_a_forked_child_has_a_loop_of_its_own(shared: Shared) -> None:
    """multiprocessing by fork in a notebook does not hang on the parent's loop."""
    _, folders = shared
    script = (
        "import os, sys, pathlib, warnings\n"
        "from jupyter_gpumarket import client\n"
        "from jupyter_gpumarket.config import Folders\n"
        "folders = Folders(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "pid = client.connect(folders, start=False).health().pid\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if client.connect(folders, start=False).health().pid == pid else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    argv = [sys.executable, "-W", "ignore", "-c", script, str(folders.state), str(folders.configuration)]

    assert subprocess.run(argv, timeout=60, check=False).returncode == 0


def test_proxies_never_see_loopback_traffic(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables of the environment are not asked: the token stays on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert client.connect(shared[1], start=False).health().pid == shared[0].health().pid


def test_errors_arrive_as_their_classes(shared: Shared) -> None:
    """A refused call raises the broker's own error, with its words."""
    with pytest.raises(BadRequest, match="no lease is called 'nobody'"):
        shared[0].lease("nobody")


def test_the_same_request_twice_is_one_lease(shared: Shared) -> None:
    """A wish sent again, also by another door, is the same lease."""
    first = shared[0].wish(request("twice"))
    second = client.connect(shared[1], start=False).wish(request("twice"))

    assert first.lease.lease_id == second.lease.lease_id


def test_a_lease_is_found_by_its_name(shared: Shared) -> None:
    """Names lead to leases, also to the last that had the name."""
    view = shared[0].wish(request("named", name="my-node"))

    assert shared[0].lease("my-node").lease.lease_id == view.lease.lease_id
    assert shared[0].story("my-node")[0].kind == "lease.wished"


async def test_the_async_client_is_the_same(shared: Shared) -> None:
    """`connect_async` gives the calls without a thread."""
    async with await client.connect_async(shared[1], start=False) as door:
        assert (await door.health()).pid == shared[0].health().pid


def test_no_broker_and_none_started(tmp_path: Path) -> None:
    """Without `start` nothing is started, and the error says that none runs."""
    folders = folders_in(tmp_path)
    with pytest.raises(BrokerUnavailable, match="no broker runs"):
        client.connect(folders, start=False)

    assert not folders.broker_lock.exists()


async def test_a_peer_that_is_gone_is_told_from_one_that_refuses() -> None:
    """A closed port is Gone, which leads to looking for the process anew."""
    conversation = Conversation(Endpoint(url="http://127.0.0.1:9", token=Secret("t")))
    with pytest.raises(Gone):
        await conversation.call("GET", "/v1/health", dict)
    await conversation.aclose()


def test_an_endpoint_does_not_show_its_token() -> None:
    """Neither repr nor str of an endpoint holds the token."""
    endpoint = Endpoint(url="http://127.0.0.1:1", token=Secret("canary-token"))

    assert "canary-token" not in f"{endpoint!r} {endpoint}"
