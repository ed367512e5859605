"""An SSH server that attacks its client, and a client with its defences off as the control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_CHANNEL_OPEN_CONFIRMATION, MSG_CHANNEL_OPEN_FAILURE
from asyncssh.packet import String, UInt32

from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink

# What a server may try to open at its client, each with the data that belongs to it.
CHANNEL_KINDS: dict[str, tuple[bytes, ...]] = {
    "forwarded-tcpip": (String("127.0.0.1"), UInt32(8888), String("127.0.0.1"), UInt32(4321)),
    "direct-tcpip": (String("127.0.0.1"), UInt32(8888), String("127.0.0.1"), UInt32(4321)),
    "auth-agent@openssh.com": (),
    "x11": (String("127.0.0.1"), UInt32(6010)),
    "session": (),
    "direct-streamlocal@openssh.com": (String("/tmp/.X11-unix/X0"), String(""), UInt32(0)),
    "tun@openssh.com": (UInt32(1), UInt32(0)),
}


class Attacker(asyncssh.SSHServer):
    """Takes the lease's key, counts the keys that it is offered, and keeps its connection for attacks."""

    def __init__(self, server: HostileServer) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        for _ in range(self._server.banners):
            self._server.connections[-1].send_auth_banner("x" * 10_000)
        return not self._server.lets_all_in

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._server.offered.append(key.get_fingerprint())
        return self._server.accepts

    def kbdint_auth_supported(self) -> bool:
        self._server.asked_for.append("keyboard-interactive")
        return False

    def password_auth_supported(self) -> bool:
        self._server.asked_for.append("password")
        return False


class HostileServer:
    """One attacker on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accepts = True
        self.lets_all_in = False
        self.banners = 0
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.offered: list[str] = []
        self.asked_for: list[str] = []
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.port = 0
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.key_path = folder / "lease_key"
        self.key_path.write_bytes(key.export_private_key())

    @asynccontextmanager
    async def listening(self, **options: Any) -> AsyncIterator[HostileServer]:
        acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: Attacker(self),
            server_host_keys=[self.key],
            process_factory=_echo,
            encoding=None,
            **options,
        )
        self.port = acceptor.get_port()
        try:
            yield self
        finally:
            acceptor.close()
            for connection in self.connections:
                connection.abort()
                await connection.wait_closed()
            await acceptor.wait_closed()

    def link(self, **options: Any) -> NodeLink:
        address = NodeAddress(host="127.0.0.1", port=self.port, user="node")
        return NodeLink(address, key_path=self.key_path, **options)


async def _echo(process: asyncssh.SSHServerProcess[bytes]) -> None:
    async for line in process.stdin:
        process.stdout.write(line)
    process.exit(0)


async def opens(connection: asyncssh.SSHServerConnection, kind: str) -> bool:
    """Whether the other side lets this channel open. It speaks raw packets: asyncssh's server would not do it."""
    answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    number = 7_000 + len(connection._channels)

    class Tap:
        """Stands in the channel table and sees the answer."""

        def process_packet(self, pkttype: int, pktid: int, packet: Any) -> bool:
            return True

        def process_open_confirmation(self, *arguments: Any) -> None:
            answered.set_result(MSG_CHANNEL_OPEN_CONFIRMATION)

        def process_open_failure(self, *arguments: Any) -> None:
            answered.set_result(MSG_CHANNEL_OPEN_FAILURE)

        def process_connection_close(self, exc: Exception | None) -> None:
            if not answered.done():
                answered.set_exception(exc or ConnectionError("closed"))

        def close(self) -> None: ...

    connection._channels[number] = Tap()  # type: ignore[assignment]
    connection.send_packet(
        MSG_CHANNEL_OPEN, String(kind), UInt32(number), UInt32(65536), UInt32(32768), *CHANNEL_KINDS[kind]
    )
    try:
        return await asyncio.wait_for(answered, 10) == MSG_CHANNEL_OPEN_CONFIRMATION
    finally:
        connection._channels.pop(number, None)
