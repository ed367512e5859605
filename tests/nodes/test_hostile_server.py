"""The link against servers that attack it: channels, keys, banners, slowness. Each defence has its control."""

from __future__ import annotations

import ast
import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from jupyter_gpumarket import nodes
from jupyter_gpumarket.errors import NodeError, Unreachable
from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink
from tests.nodes.hostile import CHANNEL_KINDS, HostileServer, opens


@pytest.fixture
async def hostile(tmp_path: Path) -> AsyncIterator[HostileServer]:
    async with HostileServer(tmp_path).listening() as server:
        yield server


@pytest.mark.parametrize("kind", CHANNEL_KINDS)
async def test_no_channel_can_be_opened_from_the_node(hostile: HostileServer, kind: str) -> None:
    """Each of the seven kinds of channel that a server may try is refused, and the link goes on working."""
    link = hostile.link()
    await link.connect()

    assert not await opens(hostile.connections[0], kind)
    assert (await link.run("on", input=b"on\n", timeout_s=10)).stdout == b"on\n"
    await link.aclose()


async def test_control_a_client_that_forwards_lets_the_node_in(hostile: HostileServer) -> None:
    """Control: with a remote forward, as others use it, the same attack reaches a port on the user's machine."""
    reached = asyncio.Event()

    async def canary_reached(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    canary = await asyncio.start_server(canary_reached, "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]
    options = asyncssh.SSHClientConnectionOptions(
        username="node", client_keys=[str(hostile.key_path)], known_hosts=None, config=None
    )

    class Willing(asyncssh.SSHClient):
        """A client whose owner asked for a forward of 127.0.0.1:8888."""

    connection, _ = await asyncssh.create_connection(Willing, "127.0.0.1", hostile.port, options=options)
    connection._remote_listeners["127.0.0.1", 8888] = _Forward(connection, port)  # type: ignore[assignment]

    assert await opens(hostile.connections[0], "forwarded-tcpip")
    await asyncio.wait_for(reached.wait(), 10)
    connection._remote_listeners.clear()
    connection.abort()
    canary.close()


class _Forward:
    """What a remote forward puts in place at the client."""

    def __init__(self, connection: asyncssh.SSHClientConnection, port: int) -> None:
        self._connection = connection
        self._port = port

    def process_connection(self, host: str, port: int) -> Any:
        return self._connection.create_tcp_channel(), self._connection.forward_connection("127.0.0.1", self._port)


async def test_exactly_one_key_is_offered(
    hostile: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the agent's keys nor those in the user's folder are shown to a node, and no password is tried."""
    await _agent_and_own_keys(tmp_path, monkeypatch)
    hostile.accepts = False
    with pytest.raises(NodeError, match="refuses the lease's key"):
        await hostile.link().connect()
    lease_key = asyncssh.import_private_key(hostile.key_path.read_bytes())

    assert hostile.offered == [lease_key.get_fingerprint()]


async def test_control_a_plain_client_shows_all_its_keys(
    hostile: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with asyncssh's defaults the same server learns the user's other keys."""
    await _agent_and_own_keys(tmp_path, monkeypatch)
    hostile.accepts = False
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect("127.0.0.1", hostile.port, username="node", known_hosts=None)

    assert len(hostile.offered) >= 2


async def _agent_and_own_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with two keys and a configuration that would forward an agent."""
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    for name, kind in (("id_ed25519", "ssh-ed25519"), ("id_ecdsa", "ecdsa-sha2-nistp256")):
        key = asyncssh.generate_private_key(kind)
        (ssh / name).write_bytes(key.export_private_key())
        (ssh / f"{name}.pub").write_bytes(key.export_public_key())
    (ssh / "config").write_text("Host *\n  ForwardAgent yes\n  ForwardX11Trusted yes\n  User somebody\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent.sock"))


async def test_a_server_that_asks_for_no_key_is_not_believed(hostile: HostileServer) -> None:
    """A server that lets everybody in did not prove that it knows the lease; its node is refused."""
    hostile.lets_all_in = True
    with pytest.raises(NodeError, match="lease's key"):
        await hostile.link().connect()


async def test_a_login_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """A server that is silent after the connection costs the login time-out and no more."""
    async with _raw_server(lambda writer: asyncio.sleep(3600)) as port:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="did not finish logging in within 1 s"):
            await _link(tmp_path, port, login_timeout_s=1).connect()

    assert time.monotonic() - started < 5


async def test_a_greeting_without_end_is_given_up(tmp_path: Path) -> None:
    """Megabytes of text before the SSH greeting end in an error, in bounded time."""

    async def flood(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"welcome to the machine\r\n" * 1000)
            await writer.drain()

    async with _raw_server(flood) as port:
        with pytest.raises(NodeError):
            await asyncio.wait_for(_link(tmp_path, port, login_timeout_s=5).connect(), 10)


async def test_a_greeting_in_one_endless_line_is_given_up(tmp_path: Path) -> None:
    """A greeting that never has an end of line is refused before it fills memory."""

    async def flood(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with _raw_server(flood) as port:
        with pytest.raises(NodeError):
            await asyncio.wait_for(_link(tmp_path, port, login_timeout_s=5).connect(), 10)


async def test_banners_without_end_are_given_up(hostile: HostileServer) -> None:
    """A flood of authentication banners is an error, even when the server lets us in afterwards."""
    hostile.banners = 500
    with pytest.raises(NodeError, match="banners without end"):
        await asyncio.wait_for(hostile.link(login_timeout_s=30).connect(), 10)


async def test_output_that_is_no_text_does_no_harm(hostile: HostileServer) -> None:
    """A node's words in an error message are one printable line of bounded length."""
    link = hostile.link()
    await link.connect()
    said = b"\x1b]0;title\x07\x1b[2J\xff\xfe" + "\u202e".encode() * 10 + b"A" * 100_000
    result = await link.run("x", input=said + b"\n", timeout_s=10)
    shown = nodes.address.shown(result.stdout)

    assert shown.isprintable()
    assert len(shown) <= 300
    await link.aclose()


async def test_a_node_that_stops_answering_is_noticed_by_keep_alive(hostile: HostileServer) -> None:
    """A server that goes silent is lost after keepalive_s × keepalive_max, without anybody asking for anything."""
    link = hostile.link(keepalive_s=0.2, keepalive_max=2)
    await link.connect()
    hostile.connections[0]._transport.pause_reading()  # type: ignore[union-attr]

    reason = await asyncio.wait_for(link.wait_closed(), 10)

    assert reason
    assert not link.connected


async def test_nothing_listens_on_the_users_side(hostile: HostileServer) -> None:
    """With a link up and a stream open, this process has no listening socket beyond the test's own server."""
    before = _listening()
    link = hostile.link()
    await link.connect()
    await link.open_stream("x")

    assert _listening() == before
    link.abort()


def _listening() -> set[str]:
    import psutil

    return {str(c.laddr) for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}


FORBIDDEN = ("forward_", "start_server", "start_unix_server", "listen", "create_server", "connect_reverse", "scp")


def test_no_code_of_the_link_listens_or_forwards() -> None:
    """No call in this part opens a listener, a forward in either direction, or SCP."""
    package = Path(nodes.__file__).parent
    guilty = [
        f"{source.name}:{node.lineno} {name}"
        for source in package.rglob("*.py")
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.Call)
        for name in [getattr(node.func, "attr", getattr(node.func, "id", ""))]
        if name.startswith(FORBIDDEN)
    ]

    assert guilty == []


def _link(folder: Path, port: int, **options: Any) -> NodeLink:
    key_path = folder / "key"
    key_path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    return NodeLink(NodeAddress(host="127.0.0.1", port=port, user="node"), key_path=key_path, **options)


@asynccontextmanager
async def _raw_server(speak: Callable[[asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    """A TCP server that says what it likes."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await speak(writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
