"""SSH through a WebSocket: a real sshd behind the very bridge that a Nosana job starts in its container."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from jupyter_gpumarket.errors import NodeError, Unreachable
from jupyter_gpumarket.marketplaces.nosana_job import BRIDGE, STOP
from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink
from tests.nodes.openssh import Sshd, free_port

SIZE = 8 * 1024 * 1024


@dataclass
class Bridge:
    """The bridge as a process, before an sshd."""

    process: subprocess.Popen[bytes]
    port: int
    pid_file: Path
    sshd: Sshd

    def link(self, url: str = "", tls: ssl.SSLContext | None = None) -> NodeLink:
        address = NodeAddress(host="127.0.0.1", port=443, user="root", wss_url=url or f"ws://127.0.0.1:{self.port}/")
        return NodeLink(address, key_path=self.sshd.key_path, login_timeout_s=20, tls=tls)


@pytest.fixture
def bridge(sshd: Sshd, tmp_path: Path) -> Iterator[Bridge]:
    port, pid_file = free_port(), tmp_path / "bridge.pid"
    environment = os.environ | {"GPUMARKET_LISTEN": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    argv = [sys.executable, "-c", BRIDGE, str(port), str(sshd.port), str(pid_file)]
    process = subprocess.Popen(argv, env=environment)
    deadline = time.monotonic() + 30
    while not pid_file.exists() or not pid_file.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield Bridge(process, port, pid_file, sshd)
    process.kill()
    process.wait()


@pytest.fixture
async def link(bridge: Bridge) -> AsyncIterator[NodeLink]:
    link = bridge.link()
    await link.connect()
    yield link
    await link.aclose()


async def test_some_megabytes_arrive_whole_both_ways(link: NodeLink) -> None:
    """A stream through link, WebSocket, bridge and sshd and back is what was sent, byte for byte."""
    sent = os.urandom(SIZE)
    reader, writer = await link.open_stream("cat")

    async def send() -> None:
        for start in range(0, SIZE, 100_000):
            writer.write(sent[start : start + 100_000])
            await writer.drain()

    async with asyncio.timeout(60):
        sending = asyncio.create_task(send())
        received = bytearray()
        while len(received) < SIZE:
            received += await reader.read(65536)
        await sending
    writer.close()

    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


async def test_who_does_not_read_is_not_sent_to_without_end(link: NodeLink) -> None:
    """While nobody reads a stream, what is under way stays bounded; later all of it arrives."""
    reader, writer = await link.open_stream(f"head -c {SIZE * 4} /dev/zero")
    await asyncio.sleep(0.5)
    async with asyncio.timeout(60):
        received = 0
        while part := await reader.read(65536):
            received += len(part)
    writer.close()

    assert received == SIZE * 4
    assert (await link.run("echo on", timeout_s=20)).stdout == b"on\n"


async def test_the_cut_of_the_socket_is_a_lost_link(bridge: Bridge, link: NodeLink) -> None:
    """The bridge dies: the link is down at once; commands say so, and a new connection is refused in words."""
    waiting = asyncio.create_task(link.wait_closed())
    bridge.process.kill()
    async with asyncio.timeout(15):
        await waiting
    with pytest.raises(Unreachable):
        await link.run("echo on", timeout_s=5)
    with pytest.raises(Unreachable, match="cannot be reached"):
        await link.connect()

    assert not link.connected


async def test_a_link_comes_back_with_the_key_that_was_seen(bridge: Bridge, link: NodeLink) -> None:
    """After it was lost, the same object connects anew through a new WebSocket and pins the host key."""
    seen = link.host_key
    link.abort()
    await link.connect()

    assert (link.host_key, link.host_key) == (seen, bridge.sshd.host_key)
    assert (await link.run("echo on", timeout_s=20)).stdout == b"on\n"


async def test_the_node_can_end_its_own_job(bridge: Bridge) -> None:
    """The self-stop recipe ends the bridge, which is the container's first process."""
    recipe = STOP[2].replace("/tmp/gpumarket-bridge.pid", str(bridge.pid_file))
    assert recipe != STOP[2]
    await asyncio.to_thread(subprocess.run, ["sh", "-c", recipe], check=True)

    assert await asyncio.to_thread(bridge.process.wait, 20) == 0


@pytest.mark.parametrize(
    "url",
    [
        "ws://node.example/",
        "https://node.example/",
        "wss://user:password@node.example/",
        "wss:///nowhere",
        "wss://node.example/#x",
        "wss://node.example:0/",
    ],
)
def test_only_safe_urls_are_dialled(url: str, tmp_path: Path) -> None:
    """TLS, except within this machine; no credentials in a URL."""
    with pytest.raises(NodeError, match="wss://"):
        NodeLink(NodeAddress(host="node.example", port=443, user="root", wss_url=url), key_path=tmp_path / "key")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, file = tmp_path / "tls.key", tmp_path / "tls.crt"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(file)], check=True, capture_output=True)
    return file, key


async def test_a_certificate_that_nobody_vouches_for_is_refused(bridge: Bridge, certificate: tuple[Path, Path]) -> None:
    """Over TLS the ingress must show a good certificate, else nothing is sent; one that is vouched for is taken."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    answering = HTTPServer(Application([]), ssl_options=server_side)
    (socket,) = bind_sockets(0, "127.0.0.1")
    answering.add_sockets([socket])
    url = f"wss://127.0.0.1:{socket.getsockname()[1]}/"
    with pytest.raises(Unreachable, match=r"(?i)certificate"):
        await bridge.link(url).connect()
    with pytest.raises(Unreachable, match="404"):
        await bridge.link(url, ssl.create_default_context(cafile=str(certificate[0]))).connect()
    answering.stop()
    await answering.close_all_connections()


async def test_who_stops_in_the_middle_is_noticed(bridge: Bridge) -> None:
    """A bridge that is frozen, as in a network that swallows all: the link's keep-alive finds it out."""
    link = bridge.link()
    link._keepalive_s, link._keepalive_max = 0.3, 2
    await link.connect()
    bridge.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(20):
        await link.wait_closed()
    bridge.process.send_signal(signal.SIGCONT)
    link.abort()

    assert not link.connected
