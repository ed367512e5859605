"""What the cell benchmark compares: the same `pass`, executed by different means on a node on this machine.

Each stand is a context manager; `cell()` executes one cell from its submission to its known end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from jupyter_gpumarket.api import Attach, NodeView, RunRequest
from jupyter_gpumarket.client import AsyncClusterClient, ClusterClient, connect
from jupyter_gpumarket.client.http import Endpoint
from jupyter_gpumarket.config import Secret, private_folder, write_private
from jupyter_gpumarket.models import ENDED_RUNS, NodeAddress
from jupyter_gpumarket.notebook.extension import load
from tests.agent.user_side import UserSide
from tests.cluster.conftest import ROOT, FakeBroker
from tests.cluster.test_on_a_real_node import LEASE, RealNode
from tests.nodes.openssh import Sshd, free_port
from tests.pool_fixtures import RunningPool

T = TypeVar("T")
PATIENCE_S = 60.0
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class Background:
    """An event loop in a thread, for what is async and must go on between measurements."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


class Stand:
    """One way to execute a cell."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self.start(stack)
            self.cell()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, stack: ExitStack) -> None:
        """Bring it up; what must come down again goes on the stack."""
        raise NotImplementedError

    def cell(self) -> None:
        """Execute `pass`."""
        raise NotImplementedError


class PlainKernel(Stand):
    """ipykernel on the node, jupyter_client here, OpenSSH's local forwards (AES-GCM) between them."""

    name = "jupyter_client over ssh -L"

    def start(self, stack: ExitStack) -> None:
        server = Sshd(self.folder / "sshd").start()
        stack.callback(server.stop)
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(self.folder))
        stack.callback(manager.shutdown_kernel, now=True)
        there = manager.get_connection_info()
        here = {name: free_port() for name in PORTS}
        stack.enter_context(forwarded(server, {here[name]: there[name] for name in PORTS}))
        self._client = BlockingKernelClient()
        self._client.load_connection_info({**there, **here})
        self._client.start_channels()
        stack.callback(self._client.stop_channels)
        self._client.wait_for_ready(timeout=PATIENCE_S)

    def cell(self) -> None:
        reply = self._client.execute_interactive("pass", timeout=PATIENCE_S, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply


class IPyParallel(Stand):
    """`%%px` on one engine. Its controller and engine are reached on loopback, without SSH."""

    name = "ipyparallel %%px (no SSH)"

    def start(self, stack: ExitStack) -> None:
        import ipyparallel

        cluster = ipyparallel.Cluster(n=1, log_level=40, cluster_id=secrets.token_hex(4))
        client = cluster.start_and_connect_sync(activate=False)
        stack.callback(cluster.stop_cluster_sync)
        stack.callback(client.close)
        self._shell = InteractiveShell.instance()
        client.activate()

    def cell(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._shell.run_cell_magic("px", "", "pass")


class OnAgent(Stand):
    """The agent's protocol through its bridge: no SSH, no cluster process."""

    name = "our agent alone"

    def start(self, stack: ExitStack) -> None:
        self._loop = Background()
        self._user = self._loop.run(self._begin())
        stack.callback(lambda: self._loop.run(self._user.close()))

    async def _begin(self) -> UserSide:
        user = UserSide(self.folder / "agent")
        await user.start_agent()
        user._tasks.append(asyncio.create_task(user.listen()))
        await user.attach()
        return user

    def cell(self) -> None:
        self._user.reports.clear()
        state = self._loop.run(self._user.run("pass"))
        assert state.status == "ok", state


class OnCluster(Stand):
    """The cluster process's API, over SSH to an OpenSSH server: submit, follow to the end."""

    name = "our cluster API over SSH"

    def start(self, stack: ExitStack) -> None:
        self.node = node = RealNode(self.folder)
        node.sshd.start()
        stack.callback(node.stop)
        folder = private_folder(self.folder / "cluster")
        write_private(folder / "start.json", b'{"cluster_id": "cluster-bench"}')
        loop = Background()
        broker = FakeBroker(folder)

        async def listen() -> None:
            broker.start()

        loop.run(listen())
        self._client = stack.enter_context(cluster_process(folder))
        attach = Attach(
            lease_id=LEASE,
            name="bench",
            address=self.address(),
            key_path=str(node.sshd.key_path),
            host_key=node.sshd.host_key,
            deadline_ms=int(time.time() * 1000) + 3_600_000,
            grace_s=900,
        )
        self._client.put(attach)
        self.doors = self._client.doors
        until(lambda: self._client.node().phase == "ready" and self._client.node().link == "up", "the node is ready")

    def address(self) -> NodeAddress:
        """Where the cluster process finds the node."""
        return self.node.sshd.address()

    def cell(self) -> None:
        run_id = secrets.token_hex(8)
        doors = self._client.doors
        doors.run(RunRequest(run_id=run_id, lease_id=LEASE, code="pass"))
        while (batch := doors.messages(run_id, 0, 5.0)).run.status not in ENDED_RUNS:
            pass
        assert batch.run.status == "ok", batch.run


class WholePath(Stand):
    """`%%gpu pass`: magics, client, broker, journal, cluster process, SSH, the pool's host, agent, kernel, cost."""

    name = "%%gpu"

    def start(self, stack: ExitStack) -> None:
        # Short: sockets of leases live below it.
        top = Path(tempfile.mkdtemp(prefix="gpb", dir="/tmp"))
        stack.callback(shutil.rmtree, top, ignore_errors=True)
        self.pool = RunningPool(top)
        stack.callback(self.pool.stop)
        self.pool.start_registry()
        self.pool.add_host()
        os.environ.update(JUPYTER_GPUMARKET_HOME=str(self.pool.home), JUPYTER_GPUMARKET_NOTEBOOK="bench.ipynb")
        stack.callback(self._give_back)
        self._shell = InteractiveShell.instance()
        load(self._shell)

    def cell(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            self._shell.run_cell_magic("gpu", "--gpu none", "pass")
        assert "done" in shown.getvalue(), shown.getvalue()

    def _give_back(self) -> None:
        with connect(self.pool.folders, start=False) as client:
            for view in client.leases():
                client.release(view.lease.lease_id, "the benchmark is over")
            until(lambda: not client.leases(), "everything is released")
            client.shutdown()


class ProcessClient:
    """A cluster process's doors, and the two routes that are the broker's."""

    def __init__(self, url: str, token: str) -> None:
        endpoint = Endpoint(url=url, token=Secret(token))

        async def find() -> Endpoint:
            return endpoint

        self._endpoint = endpoint
        self.doors = ClusterClient(AsyncClusterClient(endpoint, find))

    def put(self, attach: Attach) -> None:
        reply = httpx.put(
            f"{self._endpoint.url}/v1/nodes/{attach.lease_id}",
            content=msgspec.json.encode(attach),
            headers={"Authorization": f"Bearer {self._endpoint.token.reveal()}"},
            trust_env=False,
        )
        reply.raise_for_status()

    def node(self) -> NodeView:
        return self.doors.nodes()[0]


@contextlib.contextmanager
def cluster_process(folder: Path) -> Iterator[ProcessClient]:
    """A real cluster process in a folder."""
    argv = [sys.executable, "-m", "jupyter_gpumarket.cluster", "--folder", str(folder)]
    with (folder / "cluster.log").open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
    try:
        file = folder / "cluster.json"
        until(file.exists, "the cluster process listens")
        told = msgspec.json.decode(file.read_bytes())
        yield ProcessClient(told["url"], told["token"])
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def forwarded(server: Sshd, ports: dict[int, int]) -> Iterator[None]:
    """OpenSSH's client with these local forwards."""
    options = ["-F", "none", "-i", str(server.key_path), "-c", "aes128-gcm@openssh.com", "-o", "IdentitiesOnly=yes"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    options += ["-o", "ExitOnForwardFailure=yes", "-p", str(server.port)]
    for here, there in ports.items():
        options += ["-L", f"127.0.0.1:{here}:127.0.0.1:{there}"]
    process = subprocess.Popen(
        ["ssh", "-N", *options, f"{server.address().user}@{server.host}"], stdin=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        assert process.poll() is None, "ssh ended"
        yield
    finally:
        process.terminate()
        process.wait(10)


def until(holds: Any, what: str) -> None:
    """Poll until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"not in {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
