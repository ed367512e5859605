"""Users of one pool, each with a home, a broker and kernels of their own; and a way to a host that can be cut."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.config import Folders, folders
from jupyter_gpumarket.errors import GpuMarketError
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import Process, RunningPool

FAR_ADDRESS = "127.0.0.77"


class Side:
    """One user's side: everything that runs for the user, and nothing that runs on a node."""

    def __init__(self, pool: RunningPool, name: str, **variables: str) -> None:
        self.name = name
        self.home = pool.folder / f"side-{name}"
        shutil.copytree(pool.home / "config", self.home / "config")
        self.work = self.home / "work"
        self.work.mkdir()
        self.environment = {
            **pool.environment,
            "JUPYTER_GPUMARKET_HOME": str(self.home),
            "JUPYTER_GPUMARKET_NOTEBOOK": f"{name}.ipynb",
            "IPYTHONDIR": str(self.work / "ipython"),
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        self._kernels: list[RealKernel] = []

    @property
    def folders(self) -> Folders:
        return folders({"JUPYTER_GPUMARKET_HOME": str(self.home)})

    def kernel(self, **variables: str) -> RealKernel:
        kernel = RealKernel({**self.environment, **variables}, self.work).start()
        self._kernels.append(kernel)
        return kernel

    def ipython(self, *cells: str) -> subprocess.Popen[str]:
        """A plain terminal that runs these lines of Python with the magics loaded."""
        code = "\n".join(("shell = get_ipython()", "shell.run_line_magic('load_ext', 'jupyter_gpumarket')", *cells))
        return subprocess.Popen(
            [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code],
            env=self.environment,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Kernels, broker, cluster processes and terminals of this user."""
        mark, found = str(self.home), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = [*process.cmdline(), process.environ().get("JUPYTER_GPUMARKET_HOME", "")]
                if any(mark == words or f"{mark}/" in words for words in told):
                    found.append(process)
        return found

    def signal(self, what: int) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(what)

    def door(self) -> Client:
        return connect(self.folders, timeout_s=30)

    def close(self) -> None:
        """Give everything back, and end every process of this side."""
        self.signal(signal.SIGCONT)
        for kernel in self._kernels:
            kernel.stop()
        with contextlib.suppress(GpuMarketError), connect(self.folders, start=False) as door:
            for view in door.leases():
                door.release(view.lease.lease_id)
            deadline = time.monotonic() + 20
            while door.leases() and time.monotonic() < deadline:
                time.sleep(0.1)
            door.shutdown()
        self.signal(signal.SIGKILL)


class Way:
    """The network between users and one host: whole, or a black hole that forgets its connections."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._listener = socket.create_server((FAR_ADDRESS, self.port))
        self._flows = threading.Event()
        self._flows.set()
        self._era = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def add_host(self, pool: RunningPool, price: str) -> Process:
        """A host that users reach over this way only."""
        return pool.add_host("--listen", f"127.0.0.1:{self.port}", "--advertise", FAR_ADDRESS, price=price)

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        self._flows.clear()

    def mend(self) -> None:
        """It carries again, but what was connected before is forgotten, as after a change of address."""
        self._era += 1
        self._flows.set()

    def close(self) -> None:
        self.mend()
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.port), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target, self._era), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, era: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if era != self._era:
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def closing(*sides: Side) -> Iterator[None]:
    """Close all of them, whatever happens."""
    try:
        yield
    finally:
        for side in sides:
            side.close()


def lease_processes(folder: Path) -> list[psutil.Process]:
    """What still runs for leases in a host's folder, whoever has started it."""
    mark, found = str(folder / "leases"), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [process.environ().get("HOME", ""), *process.cmdline()]
            if process.status() != psutil.STATUS_ZOMBIE and any(mark in words for words in told):
                found.append(process)
    return found
