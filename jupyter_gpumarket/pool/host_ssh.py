"""The SSH server of a host: the user name is a rental's id, and only that rental's key opens it.

A host can be told one more name, such as `root`, which then means the lease that the shown key opens: machines behind a
stand-in for another marketplace are reached by that marketplace's user name.

Commands, shells (with a terminal where one is asked for) and SFTP in the lease's folder; no forwarding of any kind, no
agent, no X11. A closed channel closes the pipes of its process, as OpenSSH does: what wants to live on detaches itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import asyncssh
from asyncssh.channel import SSHChannel

from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.pool.host_leases import HostLease, Started

log = logging.getLogger(__name__)
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
LOGIN_TIMEOUT_S = 20
MAX_CHANNELS = 64
MAX_CONNECTIONS = 32
# Connections of all that have not shown a key yet.
MAX_UNPROVED = 64
CHUNK_BYTES = 65536
# Daemons that keep a command's output open do not hold its end up for longer than this much silence.
LINGER_S = 1.0
SIGNALS = {
    name: getattr(signal, f"SIG{name}")
    for name in ["ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"]
}
SIGNAL_NAMES = {int(number): name for name, number in SIGNALS.items()}
LeasesNamed = Callable[[str], list[HostLease]]


def host_key(file: Path) -> asyncssh.SSHKey:
    """This host's own key, made once."""
    if not file.exists():
        write_private(file, asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    return asyncssh.read_private_key(file)


async def listen(address: str, port: int, key: asyncssh.SSHKey, leases_named: LeasesNamed) -> asyncssh.SSHAcceptor:
    """Serve leases over SSH on this address."""
    unproved: set[LeaseServer] = set()
    return await asyncssh.listen(
        address,
        port,
        server_factory=lambda: LeaseServer(leases_named, unproved),
        server_host_keys=[key],
        encryption_algs=CIPHERS,
        compression_algs=None,
        encoding=None,
        login_timeout=LOGIN_TIMEOUT_S,
        keepalive_interval=15,
        keepalive_count_max=8,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        agent_forwarding=False,
        x11_forwarding=False,
        allow_scp=False,
        server_version="gpumarket",
    )


class LeaseServer(asyncssh.SSHServer):
    """One connection. Until a lease's key was shown it can do nothing."""

    def __init__(self, leases_named: LeasesNamed, unproved: set[LeaseServer]) -> None:
        self._leases_named = leases_named
        self._unproved = unproved
        self._connection: asyncssh.SSHServerConnection | None = None
        self._lease: HostLease | None = None
        self._channels: set[LeaseSession] = set()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        if len(self._unproved) >= MAX_UNPROVED:
            # Somebody opens connections and shows no key; each ends by itself at the login time-out.
            conn.abort()
        self._unproved.add(self)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        for lease in self._leases_named(username):
            if lease.state != "serving":
                continue
            if key.public_data == asyncssh.import_public_key(lease.order.ssh_public_key).public_data:
                self._lease = lease
                return True
        return False

    def auth_completed(self) -> None:
        assert self._lease is not None
        assert self._connection is not None
        self._unproved.discard(self)
        if len(self._lease.on_end) >= MAX_CONNECTIONS:
            self._connection.disconnect(asyncssh.DISC_TOO_MANY_CONNECTIONS, "too many connections to this lease")
            return
        self._lease.on_end.append(self._close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._unproved.discard(self)
        if self._lease is not None and self._close in self._lease.on_end:
            self._lease.on_end.remove(self._close)

    def session_requested(self) -> Any:
        if self._lease is None or len(self._channels) >= MAX_CHANNELS:
            return False
        session = LeaseSession(self._lease, self._channels.discard)
        self._channels.add(session)
        return session

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.abort()


class LeaseSession(asyncssh.SSHServerProcess[bytes]):
    """One channel: a command, a shell, or SFTP."""

    def __init__(self, lease: HostLease, closed: Callable[[LeaseSession], None]) -> None:
        super().__init__(self._serve, lambda channel: LeaseFiles(channel, lease.folder), 3, False)  # noqa: FBT003
        self._lease = lease
        self._closed = closed
        self._started: Started | None = None
        self._early: list[int] = []
        self._gone = asyncio.Event()
        self._terminal: int | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._closed(self)
        super().connection_lost(exc)

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def signal_received(self, signal: str) -> None:
        number = SIGNALS.get(signal)
        if number is None:
            return
        if self._started is None:
            self._early.append(number)
            return
        with contextlib.suppress(OSError):
            self._started.signal(number)

    def break_received(self, msec: int) -> bool:  # noqa: ARG002
        self.signal_received("INT")
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._terminal is not None:
            set_size(self._terminal, (width, height, pixwidth, pixheight))

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        run = self._with_terminal if process.term_type else self._with_pipes
        try:
            code = await run(process)
        except OSError as error:
            log.info("lease %s: a command could not be started: %s", self._lease.order.rental_id, error)
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stderr.write(f"gpumarket: {error.strerror or error}\n".encode())
            code = 126
        finally:
            self._started = None
        with contextlib.suppress(OSError, asyncssh.Error):
            if code < 0 and -code in SIGNAL_NAMES:
                process.exit_with_signal(SIGNAL_NAMES[-code])
            else:
                process.exit(code if code >= 0 else 128 - code)

    def _argv(self) -> list[str]:
        return ["/bin/sh", "-c", self.command] if self.command is not None else ["/bin/sh", "-l"]

    async def _with_pipes(self, process: asyncssh.SSHServerProcess[bytes]) -> int:
        """Run a command on three pipes, each pumped at the pace of its slower end."""
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        try:
            started = await self._lease.spawn(self._argv(), [in_read, out_write, err_write])
        except BaseException:
            for descriptor in (in_write, out_read, err_read):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (in_read, out_write, err_write):
                os.close(descriptor)
        self._begun(started)
        feeding = asyncio.create_task(feed(process.stdin, in_write))
        outputs = [Output(out_read, process.stdout), Output(err_read, process.stderr)]
        return await self._until_ended(started, feeding, outputs)

    async def _with_terminal(self, process: asyncssh.SSHServerProcess[bytes]) -> int:
        """Run a command or a login shell on a terminal of its own."""
        ours, theirs = os.openpty()
        set_size(ours, process.term_size)
        try:
            started = await self._lease.spawn(
                self._argv(), [theirs], terminal=True, more={"TERM": process.term_type or "dumb"}
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._terminal = ours
        self._begun(started)
        feeding = asyncio.create_task(feed(process.stdin, os.dup(ours), is_terminal=True))
        try:
            return await self._until_ended(started, feeding, [Output(ours, process.stdout)])
        finally:
            self._terminal = None

    def _begun(self, started: Started) -> None:
        """Signals that came before there was a process reach it now."""
        self._started = started
        for number in self._early:
            with contextlib.suppress(OSError):
                started.signal(number)

    async def _until_ended(self, started: Started, feeding: asyncio.Task[None], outputs: list[Output]) -> int:
        pumping = [asyncio.create_task(output.pump()) for output in outputs]
        everything = asyncio.gather(*pumping, return_exceptions=True)
        gone: asyncio.Future[Any] = asyncio.create_task(self._gone.wait())
        try:
            # A channel that is gone closes the pipes (a terminal hangs up) and leaves the process to itself.
            await asyncio.wait([started.ended, gone], return_when=asyncio.FIRST_COMPLETED)
            while not gone.done() and not everything.done():
                moved = sum(output.moved for output in outputs)
                await asyncio.wait([everything, gone], timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED)
                waiting = any(output.is_writing for output in outputs)
                if not waiting and moved == sum(output.moved for output in outputs):
                    break
            return started.ended.result() if started.ended.done() else 0
        finally:
            for task in (gone, feeding, *pumping):
                task.cancel()
            await asyncio.gather(gone, feeding, everything, return_exceptions=True)


class Output:
    """One stream from a process to the channel. `moved` counts bytes; `is_writing` while the other side is slow."""

    def __init__(self, descriptor: int, channel: asyncssh.SSHWriter[bytes]) -> None:
        self._descriptor = descriptor
        self._channel = channel
        self.moved = 0
        self.is_writing = False

    async def pump(self) -> None:
        """Until the process's side has closed; a channel that is gone ends it too, and the process gets EPIPE."""
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._descriptor, "rb", buffering=0)
        )
        try:
            while data := await reader.read(CHUNK_BYTES):
                self._channel.write(data)
                self.moved += len(data)
                self.is_writing = True
                await self._channel.drain()
                self.is_writing = False
        except OSError:
            # EIO is a terminal's way of saying that nobody is left on it.
            return
        finally:
            transport.close()


async def feed(channel: asyncssh.SSHReader[bytes], descriptor: int, *, is_terminal: bool = False) -> None:
    """From the channel to a process's input, no faster than it takes it."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while data := await channel.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if is_terminal:
            writer.write(b"\x04")
            await writer.drain()
            await asyncio.Future()
    except (OSError, asyncssh.Error):
        # The process closed its input; what else comes is for nobody.
        return
    finally:
        transport.close()


def set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    with contextlib.suppress(OSError, struct.error):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))


class LeaseFiles(asyncssh.SFTPServer):
    """SFTP in the lease's folder: relative paths start there, absolute ones must lie inside."""

    def __init__(self, channel: SSHChannel[bytes], folder: Path) -> None:
        # The library hands the channel over as its base class.
        super().__init__(cast("asyncssh.SSHServerChannel[bytes]", channel))
        self._folder = os.path.realpath(folder).encode()

    def map_path(self, path: bytes) -> bytes:
        """The real path of what a client names.

        Raises:
            asyncssh.SFTPPermissionDenied: it lies outside of the lease's folder, by its name or by a link.
        """
        whole = os.path.normpath(os.path.join(self._folder, path))
        if whole == os.path.dirname(self._folder):
            # A listing asks for the parent of what it lists; the top's parent is the top.
            return self._folder
        place = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        for candidate in (place, os.path.realpath(whole)):
            if candidate != self._folder and not candidate.startswith(self._folder + b"/"):
                raise asyncssh.SFTPPermissionDenied("outside of the lease's folder")
        return whole

    def reverse_map_path(self, path: bytes) -> bytes:
        return path
