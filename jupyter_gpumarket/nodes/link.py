"""The one SSH connection to a node. It only dials out; nothing on the user's side listens, and nothing is forwarded.

What a caller may rely on: exactly one key is offered (the lease's), no agent, no user configuration, no X11; the host
key is the pinned one, or at first sight the one that this very connection showed; every channel that the node tries to
open is refused; every call ends in bounded time and with bounded output. After an error of the link, make the next
`connect` on the same object: it pins the key that was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import asyncssh

from jupyter_gpumarket.errors import CommandFailed, HostKeyChanged, NodeError, Unreachable
from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes.address import checked, last_lines, shown
from jupyter_gpumarket.nodes.command import Command, CommandResult, TooMuchOutput, posix
from jupyter_gpumarket.nodes.keys import ENCRYPTION, host_key_algorithms, key_exchange, key_line, lease_key, public_key
from jupyter_gpumarket.nodes.tunnel import Tunnel

# A stream keeps the line busy at long round trips; asyncssh stops reading when the application does.
STREAM_WINDOW_BYTES = 8 * 1024 * 1024
MAX_AUTH_BANNERS = 20
KILL_TIMEOUT_S = 5.0
DEFAULT_OUTPUT_BYTES = 1024 * 1024
CLOSE_TIMEOUT_S = 2.0


class Reader(Protocol):
    """The node's bytes of a stream."""

    async def read(self, n: int = -1, /) -> bytes:
        """Some bytes, at most `n`; empty at the end."""


class Writer(Protocol):
    """The way of bytes to the node."""

    def write(self, data: bytes, /) -> None:
        """Take bytes to be sent."""

    async def drain(self) -> None:
        """Wait until there is room for more."""

    def close(self) -> None:
        """End the stream."""


def backoff_s(attempt: int, jitter: float) -> float:
    """Seconds before the next try: 0.5, 1, 2 ... at most 30, less up to a quarter of it by `jitter` (0 to 1)."""
    whole: float = min(30.0, 0.5 * 2 ** min(max(attempt, 0), 10))
    return whole * (1 - 0.25 * min(max(jitter, 0.0), 1.0))


class NodeLink:
    """One node's SSH connection; `connect` again after it was lost.

    Attributes:
        host_key: the accepted key as an OpenSSH public key line; None before the first sight.
        first_sight: nobody had vouched for the key when it was accepted.

    With `address.wss_url` it goes through a WebSocket, whose certificate is checked (by `tls`, if given).
    """

    def __init__(
        self,
        address: NodeAddress,
        *,
        key_path: Path,
        host_key: str | None = None,
        login_timeout_s: float = 20,
        keepalive_s: float = 5,
        keepalive_max: int = 4,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = checked(address)
        self.host_key = host_key or address.host_key
        self.first_sight = False
        self._key_path = key_path
        self._login_timeout_s = login_timeout_s
        self._keepalive_s = keepalive_s
        self._keepalive_max = keepalive_max
        self._connection: asyncssh.SSHClientConnection | None = None
        self._guard: _Guard | None = None
        self._nodelay: asyncio.Task[None] | None = None
        self._tls = tls
        self._tunnel: Tunnel | None = None

    @property
    def name(self) -> str:
        """Where it leads, for messages."""
        return f"{self.address.user}@{self.address.host}:{self.address.port}"

    @property
    def connected(self) -> bool:
        """Whether the connection is up, as far as this side knows."""
        return self._guard is not None and not self._guard.lost.is_set()

    async def connect(self) -> None:
        """Dial, check the host key, log in.

        Raises:
            Unreachable: no answer in time, refused, or cut off on the way.
            HostKeyChanged: another key than the recorded one; both fingerprints are in the message.
            NodeError: the node refused the lease's key, or cannot agree on safe algorithms.
        """
        if self.connected:
            return
        self.abort()
        pinned = public_key(self.host_key) if self.host_key else None
        guard = _Guard(pinned)
        options = self._options(pinned)
        try:
            async with asyncio.timeout(self._login_timeout_s):
                if self.address.wss_url:
                    options["sock"] = await self._through_websocket()
                connection, _ = await asyncssh.create_connection(
                    lambda: guard, self.address.host, self.address.port, **options
                )
        except asyncio.CancelledError:
            self._end_tunnel()
            raise
        except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:
            self._end_tunnel()
            raise self._why_not(error, guard) from None
        if guard.talkative:
            connection.abort()
            raise self._why_not(ConnectionError(), guard)
        _leave_out_empty_packets(connection)
        self._connection, self._guard = connection, guard
        if self.host_key is None and guard.presented is not None:
            self.host_key, self.first_sight = key_line(guard.presented), True
        self._nodelay = asyncio.create_task(_keep_nodelay(connection))

    async def run(
        self,
        command: str,
        *,
        input: bytes | None = None,  # noqa: A002 - the name that subprocess gives it
        timeout_s: float,
        max_output_bytes: int = DEFAULT_OUTPUT_BYTES,
        check: bool = True,
    ) -> CommandResult:
        """Run a POSIX shell command; the caller has quoted what is in it.

        Raises:
            CommandFailed: not ended after `timeout_s`, more output than allowed (it is killed then), or with `check`
                an exit code other than 0.
            Unreachable: the link is down, or was lost meanwhile.
        """
        what = f"a command on {self.name}"
        running: Command | None = None
        try:
            async with asyncio.timeout(timeout_s):
                running = await Command.start(self._up(), command)
                result = await running.collect(input or b"", max_output_bytes)
        except TimeoutError:
            raise CommandFailed(f"{what} did not end within {timeout_s:g} s and was stopped") from None
        except TooMuchOutput:
            raise CommandFailed(f"{what} printed more than {max_output_bytes} bytes and was stopped") from None
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        finally:
            await self._end(running)
        if result is None:
            raise Unreachable(f"the link to {self.name} was lost during a command")
        if check and result.exit_code != 0:
            said = last_lines(result.stderr) or last_lines(result.stdout)
            raise CommandFailed(f"{what} failed", exit_code=result.exit_code, last_lines=said)
        return result

    async def put(
        self, content: bytes | Path, remote_path: str, mode: int = 0o600, *, timeout_s: float | None = None
    ) -> None:
        """Write a file on the node as a whole: readers see the old content or the new one.

        It goes through a command's input and not through SFTP, which some nodes do not have. Its folder must exist.
        `timeout_s` of None allows 30 s and a slow line (64 KiB/s).

        Raises:
            CommandFailed: it could not be written there (disk full, no such folder).
            Unreachable: the link was lost; the old content, if any, is untouched.
        """
        data = content if isinstance(content, bytes) else await asyncio.to_thread(content.read_bytes)
        if timeout_s is None:
            timeout_s = 30 + len(data) / 65536
        target = shlex.quote(remote_path)
        part = shlex.quote(f"{remote_path}.{secrets.token_hex(4)}.part")
        # The size tells a whole file from one that a broken link cut short: `cat` ends well in both cases.
        script = (
            f"umask 077; cat >{part} && [ $(wc -c <{part}) -eq {len(data)} ] && chmod {mode:o} {part} "
            f"&& mv -f {part} {target} || {{ rm -f {part}; echo could not write {target} >&2; exit 1; }}"
        )
        await self.run(script, input=data, timeout_s=timeout_s)

    async def open_stream(self, command: str) -> tuple[Reader, Writer]:
        """Start a command and give its output and input as a binary stream. Its error output is dropped.

        Raises:
            Unreachable: the link is down.
        """
        try:
            process = await self._up().create_process(
                posix(command), encoding=None, window=STREAM_WINDOW_BYTES, stderr=asyncssh.DEVNULL
            )
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        return _ChannelReader(process, self._lost), _ChannelWriter(process, self._lost)

    async def wait_closed(self) -> str:
        """Wait until the link is down; why, in words."""
        if self._guard is None:
            return "not connected"
        await self._guard.lost.wait()
        return self._guard.reason

    def abort(self) -> None:
        """Cut the whole connection at once. A single channel cannot be: closing one waits for the other side."""
        if self._nodelay is not None:
            self._nodelay.cancel()
            self._nodelay = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._end_tunnel()
        if self._guard is not None:
            self._guard.connection_lost(None)

    async def _through_websocket(self) -> socket.socket:
        self._tunnel = await Tunnel.open(self.address.wss_url, self._tls, timeout_s=self._login_timeout_s)
        return self._tunnel.socket

    def _end_tunnel(self) -> None:
        if self._tunnel is not None:
            self._tunnel.abort()
            self._tunnel = None

    async def aclose(self) -> None:
        """End the connection, politely where the node answers within two seconds."""
        connection = self._connection
        if connection is not None and self.connected:
            connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await connection.wait_closed()
        self.abort()

    def _up(self) -> asyncssh.SSHClientConnection:
        if self._connection is None or not self.connected:
            raise Unreachable(f"the link to {self.name} is down")
        return self._connection

    def _lost(self, error: Exception) -> Unreachable:
        if isinstance(error, asyncssh.ChannelOpenError):
            return Unreachable(f"{self.name} opens no more channels: {shown(str(error))}")
        return Unreachable(f"the link to {self.name} was lost during a command: {shown(str(error))}")

    async def _end(self, running: Command | None) -> None:
        if running is not None and self.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_TIMEOUT_S):
                    await running.kill()

    def _options(self, pinned: asyncssh.SSHKey | None) -> dict[str, Any]:
        return {
            "username": self.address.user,
            "client_keys": [lease_key(self._key_path)],
            "known_hosts": ([pinned] if pinned else [], [], []),
            "server_host_key_algs": host_key_algorithms(pinned),
            "encryption_algs": ENCRYPTION,
            "kex_algs": key_exchange(),
            "compression_algs": None,
            "config": None,
            "agent_path": None,
            "agent_forwarding": False,
            "x11_forwarding": False,
            "x509_trusted_certs": None,
            "gss_kex": False,
            "gss_auth": False,
            "host_based_auth": False,
            "password_auth": False,
            "kbdint_auth": False,
            "preferred_auth": "publickey",
            "disable_trivial_auth": True,
            "login_timeout": self._login_timeout_s,
            "keepalive_interval": self._keepalive_s,
            "keepalive_count_max": self._keepalive_max,
        }

    def _why_not(self, error: Exception, guard: _Guard) -> NodeError:
        if guard.refused is not None and guard.pinned is not None:
            return HostKeyChanged(
                f"{self.name} shows another host key than the recorded one: recorded {guard.pinned.get_fingerprint()}, "
                f"shown now {guard.refused.get_fingerprint()}. It may be another machine, or somebody in between; "
                "nothing was sent to it. Release this lease and rent anew: a new lease records the key anew"
            )
        if guard.talkative:
            return NodeError(f"{self.name} sends banners without end instead of logging in; use another node")
        if isinstance(error, TimeoutError):
            return Unreachable(f"{self.name} did not finish logging in within {self._login_timeout_s:g} s")
        if isinstance(error, asyncssh.PermissionDenied):
            return NodeError(f"{self.name} refuses the lease's key: {shown(error.reason)}")
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return NodeError(f"{self.name} offers no safe algorithm that we accept: {shown(error.reason)}")
        return Unreachable(f"{self.name} cannot be reached: {shown(str(error)) or type(error).__name__}")


class _Guard(asyncssh.SSHClient):
    """What one connection attempt saw: the key, and why it ended."""

    def __init__(self, pinned: asyncssh.SSHKey | None) -> None:
        self.pinned = pinned
        self.presented: asyncssh.SSHKey | None = pinned
        self.refused: asyncssh.SSHKey | None = None
        self.lost = asyncio.Event()
        self.reason = ""
        self.talkative = False
        self._banners = 0
        self._connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """Called for a key that is not the pinned one: right only where nothing is pinned."""
        if self.pinned is not None:
            self.refused = key
            return False
        self.presented = key
        return True

    def auth_banner_received(self, msg: str, lang: str) -> None:  # noqa: ARG002
        """Banners are not shown; a flood of them ends the attempt."""
        self._banners += 1
        if self._banners > MAX_AUTH_BANNERS and self._connection is not None:
            self.talkative = True
            self._connection.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.is_set():
            self.reason = (shown(str(exc)) if exc else "") or "closed"
            self.lost.set()


class _ChannelReader:
    """A process's output. A lost connection is told as `Unreachable`, as everywhere."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], lost: Callable[[Exception], Unreachable]) -> None:
        self._process = process
        self._lost = lost

    async def read(self, n: int = -1, /) -> bytes:
        try:
            return await self._process.stdout.read(n)
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None


class _ChannelWriter:
    """A process's input, whose `close` ends the whole channel and not only this direction."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], lost: Callable[[Exception], Unreachable]) -> None:
        self._process = process
        self._lost = lost

    def write(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None

    async def drain(self) -> None:
        try:
            await self._process.stdin.drain()
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None

    def close(self) -> None:
        self._process.close()


def _leave_out_empty_packets(connection: asyncssh.SSHClientConnection) -> None:
    """Have each packet go alone. asyncssh sends an empty one before it, which is of use with CBC ciphers only; ours is
    AES-GCM. Half of the packets and a fifth of the processor time of large data are saved, at both ends.
    """
    send = connection.send_packet

    def send_packet(kind: int, *parts: bytes, **options: Any) -> None:
        if kind != asyncssh.constants.MSG_IGNORE:
            send(kind, *parts, **options)

    connection.send_packet = send_packet  # type: ignore[assignment, method-assign]


async def _keep_nodelay(connection: asyncssh.SSHClientConnection) -> None:
    """Hold an interactive session open: OpenSSH sets TCP_NODELAY on a connection only when it has one.

    Without it several small messages under way stall each other. Nodes that refuse terminals lose nothing else.
    """
    with contextlib.suppress(asyncssh.Error, OSError):
        process = await connection.create_process("exec cat", term_type="dumb", encoding=None)
        await process.wait_closed()
