"""Several nodes of one cluster: a real OpenSSH server each, in a network namespace of its own where that is allowed.

In one namespace (and without, on one loopback) nodes reach each other by themselves; in several they can only talk
through the links, since each namespace knows no way but the one to this side.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.nodes.far import cut, run
from tests.nodes.openssh import Sshd


class Bridge:
    """A network of the nodes' own, in which the user's side has no part: nodes on it reach each other."""

    def __init__(self) -> None:
        tag = secrets.token_hex(2)
        number = int(tag, 16)
        self._net = f"10.{200 + number % 30}.{number // 30 % 250}"
        # The bridge stands in a namespace of its own, so that this machine has no address on it.
        self.name = f"gmb-{tag}"
        self._ports: list[str] = []
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "add", "lan", "type", "bridge")
        run("ip", "-n", self.name, "link", "set", "lan", "up")

    def address(self, number: int) -> str:
        """A node's address on it."""
        return f"{self._net}.{number + 1}"

    def join(self, namespace: str, number: int) -> None:
        """Give a node a card on it."""
        port, card = f"p{number}", f"{self.name}{number}"
        run("ip", "-n", namespace, "link", "add", card, "type", "veth", "peer", "name", port, "netns", self.name)
        run("ip", "-n", namespace, "addr", "add", f"{self.address(number)}/24", "dev", card)
        run("ip", "-n", namespace, "link", "set", card, "up")
        run("ip", "-n", self.name, "link", "set", port, "master", "lan")
        run("ip", "-n", self.name, "link", "set", port, "up")
        self._ports.append(port)

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        for port in self._ports:
            run("ip", "-n", self.name, "link", "set", port, "nomaster")

    def mend(self) -> None:
        """All is well again."""
        for port in self._ports:
            run("ip", "-n", self.name, "link", "set", port, "master", "lan")

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


class ClusterNode:
    """One node: its server, its home, its own network or the machine's."""

    def __init__(self, folder: Path, number: int, *, is_apart: bool, bridge: Bridge | None = None) -> None:
        self.number = number
        self.lease_id = f"lease-{number}"
        self.name = f"node-{number}"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._near = ""
        environment = {"HOME": str(self.home), "GPUMARKET_PYTHON": sys.executable}
        host, namespace = ("127.0.0.1", "") if not is_apart else self._lay_network()
        self.namespace = namespace
        if bridge is not None:
            bridge.join(namespace, number)
        self.sshd = Sshd(folder / "sshd", host=host, namespace=namespace, environment=environment).start()

    def _lay_network(self) -> tuple[str, str]:
        tag = secrets.token_hex(2)
        number = int(tag, 16) % 16000
        net, low = f"10.24{number % 4}.{number // 64}", number % 64 * 4
        name, self._near, far = f"gmd-{tag}", f"gmd{tag}a", f"gmd{tag}b"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self._near, "type", "veth", "peer", "name", far, "netns", name)
        run("ip", "addr", "add", f"{net}.{low + 1}/30", "dev", self._near)
        run("ip", "link", "set", self._near, "up")
        run("ip", "-n", name, "addr", "add", f"{net}.{low + 2}/30", "dev", far)
        run("ip", "-n", name, "link", "set", far, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        return f"{net}.{low + 2}", name

    def sent_bytes(self) -> int:
        """What has gone to the node over the one way between it and the user's side."""
        return int(Path(f"/sys/class/net/{self._near}/statistics/tx_bytes").read_text())

    @property
    def folder(self) -> Path:
        return self.home / ".gpumarket" / self.lease_id

    def processes(self) -> Iterator[psutil.Process]:
        """What runs on the node on behalf of the lease: agent, kernels, Dask."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = (*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items()))
                if process.pid != os.getpid() and any(str(self.folder) in words for words in told):
                    yield process

    def dask(self, word: str) -> list[psutil.Process]:
        """The processes of the scheduler or of workers (with their nannies)."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """The node goes away at once, with all that ran on it."""
        self.sshd.stop()
        cut_processes = list(self.processes())
        for process in cut_processes:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def stop(self) -> None:
        if self.sshd.process is not None:
            cut(self.sshd)
        self.kill()
        if self._near:
            subprocess.run(["ip", "link", "delete", self._near], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "delete", self.namespace], check=False, capture_output=True)
