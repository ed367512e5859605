"""A node that is far away: behind a network that can swallow everything, or cut connections.

Two kinds with the same switches: a real OpenSSH server in a network namespace of its own (needs root), and one on
another loopback address behind a small TCP relay, for machines that refuse namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink
from tests.nodes.openssh import Sshd

HOLE = "table inet hole { chain i { type filter hook input priority 0; policy drop; }; chain o { type filter hook output priority 0; policy drop; }; }"  # noqa: E501


class Far(Protocol):
    """What the tests can do to the way."""

    sshd: Sshd

    def link(self, **options: float) -> NodeLink:
        """A link over that way."""

    def swallow(self, *, everything: bool) -> None:
        """From now on nothing arrives in either direction, and nobody is told; or all is well again."""

    async def close(self) -> None:
        """Take it down."""


class Namespace:
    """A node in its own network namespace."""

    def __init__(self, folder: Path) -> None:
        tag = secrets.token_hex(2)
        number = int(tag, 16) % 16000
        self._net = f"10.23{number % 4}.{number // 64}"
        low = number % 64 * 4
        self.name = f"gmn-{tag}"
        here, there = f"gmn{tag}a", f"gmn{tag}b"
        self._here = here
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
        run("ip", "addr", "add", f"{self._net}.{low + 1}/30", "dev", here)
        run("ip", "link", "set", here, "up")
        run("ip", "-n", self.name, "addr", "add", f"{self._net}.{low + 2}/30", "dev", there)
        run("ip", "-n", self.name, "link", "set", there, "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        self.sshd = Sshd(folder, host=f"{self._net}.{low + 2}", namespace=self.name).start()

    def link(self, **options: float) -> NodeLink:
        return self.sshd.link(**options)

    def swallow(self, *, everything: bool) -> None:
        command = ["nft", "-f", "-"] if everything else ["nft", "delete", "table", "inet", "hole"]
        run("ip", "netns", "exec", self.name, *command, given=HOLE if everything else "")

    async def close(self) -> None:
        # Connections that hang in a black hole would keep the namespace alive.
        cut(self.sshd)
        self.sshd.stop()
        run("ip", "link", "delete", self._here)
        run("ip", "netns", "delete", self.name)


class Relayed:
    """A node on another loopback address, behind a relay that can stop relaying."""

    def __init__(self, folder: Path) -> None:
        self.sshd = Sshd(folder, host="127.0.0.77").start()
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    async def listen(self) -> Relayed:
        self._server = await asyncio.start_server(self._relay, "127.0.0.78", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def link(self, **options: float) -> NodeLink:
        address = NodeAddress(host="127.0.0.78", port=self._port, user=self.sshd.address().user)
        return NodeLink(address, key_path=self.sshd.key_path, host_key=self.sshd.host_key, **options)  # type: ignore[arg-type]

    def swallow(self, *, everything: bool) -> None:
        self._flows.clear() if everything else self._flows.set()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sshd.stop()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        onward = writer
        with contextlib.suppress(OSError, asyncio.CancelledError):
            answers, onward = await asyncio.open_connection(self.sshd.host, self.sshd.port)
            await asyncio.gather(self._copy(reader, onward), self._copy(answers, writer))
        writer.close()
        onward.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        await self._flows.wait()
        writer.close()


def cut(sshd: Sshd) -> None:
    """End the server's side of every connection, as a node that reboots would."""
    assert sshd.process is not None
    for child in psutil.Process(sshd.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "sshd":
                child.kill()


def run(*argv: str, given: str = "") -> None:
    subprocess.run(argv, input=given, text=True, check=True, capture_output=True, timeout=20)


def require_namespaces() -> None:
    """Skip visibly where namespaces are refused; the relayed kind of the same tests runs everywhere."""
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("network namespaces need root, ip and nft")
    name = f"gmn-try-{secrets.token_hex(2)}"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "exec", name, "nft", "list", "ruleset")
    except subprocess.SubprocessError:
        pytest.skip("this machine refuses network namespaces")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
