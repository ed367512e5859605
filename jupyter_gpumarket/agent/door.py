"""The agent's door: where other nodes of the same cluster come in, and nobody else.

Mutual TLS with the cluster's own authority comes first; who has no certificate of it is cut off at the handshake, and
those who have not shown one yet are few at a time, few from one address, and out of time soon. A guest asks for one
thing: a loopback port or an input that the rules of the cluster process name. There is no other request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Coroutine
from typing import IO, Any

from jupyter_gpumarket.agent.folder import NodeFolder, write_atomically
from jupyter_gpumarket.errors import BadRequest, WireError
from jupyter_gpumarket.wire.door import Answer, Ask, AskBlob, AskPort, DoorRules, OpenDoor, frame, read_frame

# Until a guest has shown a certificate and asked for something.
GREETING_S = 5.0
MAX_STRANGERS = 32
MAX_STRANGERS_FROM_ONE = 16
MAX_GUESTS = 400
MAX_ECHOES = 3
CONNECT_S = 5.0
STALL_S = 20.0
PIECE_BYTES = 1024 * 1024
# Silence of the network is noticed in about 15 s: what hangs there is ended, so that it can be done through the relay.
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}


class Door:
    """One listening socket and its rules."""

    def __init__(self, folder: NodeFolder) -> None:
        self.port = 0
        self.rules = DoorRules(version=0)
        self._folder = folder
        self._context: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._strangers: Counter[str] = Counter()
        self._room = asyncio.Semaphore(MAX_STRANGERS)
        self._guests = 0
        # Who is at a port of this node now.
        self._inside: dict[asyncio.Task[Any], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, order: OpenDoor) -> None:
        """Listen, or prove oneself by another certificate from now on.

        Raises:
            OSError: this node does not allow to listen.
        """
        self._context = context_for(self._folder, order, is_server=True)
        if self._socket is None:
            self._socket = listening_socket()
            self.port = self._socket.getsockname()[1]
            self._start(self._accept(self._socket))

    def obey(self, rules: DoorRules) -> None:
        """Keep to these rules from now on; who is in and is no guest any more has to go."""
        self.rules = rules
        for task, guest in list(self._inside.items()):
            if guest not in rules.guests:
                task.cancel()

    def close(self) -> None:
        """Nobody comes in any more, and who is in has to go."""
        for task in list(self._tasks):
            task.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket, self.port = None, 0

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            sys.stderr.write(f"agent: at the door: {type(error).__name__}: {error}\n")

    async def _accept(self, listening: socket.socket) -> None:
        """Nobody is accepted while too many have not shown who they are, so that strangers cannot use up the node."""
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError:
                self._room.release()
                await asyncio.sleep(0.1)
                continue
            host = str(address[0])
            if self._strangers[host] >= MAX_STRANGERS_FROM_ONE or self._guests >= MAX_GUESTS:
                sock.close()
                self._room.release()
                continue
            self._strangers[host] += 1
            self._start(self._greet(sock, host))

    async def _greet(self, sock: socket.socket, host: str) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                async with asyncio.timeout(GREETING_S):
                    reader, writer = await secured(sock, self._context)
                    asked: Ask = await _asked(reader, writer)
            finally:
                self._strangers -= Counter({host: 1})
                self._room.release()
            self._guests += 1
            try:
                await self._serve(asked, reader, writer)
            finally:
                self._guests -= 1
        except (OSError, EOFError, WireError, TimeoutError):
            pass  # a stranger, or a guest who went: nobody is told anything
        finally:
            if writer is None:
                sock.close()
            else:
                writer.close()

    async def _serve(self, asked: Ask, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(asked, AskPort):
            await self._serve_port(asked.port, guest_of(writer), reader, writer)
        elif isinstance(asked, AskBlob):
            await self._serve_blob(asked, guest_of(writer), writer)

    async def _serve_port(
        self, port: int, guest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if port not in self.rules.ports or guest not in self.rules.guests:
            writer.write(frame(Answer(error="this port may not be reached from here")))
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                near = await asyncio.open_connection("127.0.0.1", port, limit=PIECE_BYTES)
        except OSError as error:
            writer.write(frame(Answer(error=f"port {port} on the node: {error}")))
            return
        writer.write(frame(Answer()))
        task = asyncio.current_task()
        assert task is not None
        self._inside[task] = guest
        try:
            await carry((reader, writer), near)
        finally:
            del self._inside[task]

    async def _serve_blob(self, asked: AskBlob, guest: str, writer: asyncio.StreamWriter) -> None:
        if guest not in self.rules.blobs.get(asked.sha256, ()):
            writer.write(frame(Answer(error="this input may not be had from here")))
            return
        try:
            file: IO[bytes] = self._folder.blob(asked.sha256).open("rb")
        except (OSError, BadRequest):
            writer.write(frame(Answer(error="this input is not here any more")))
            return
        with file:
            size = file.seek(0, 2)
            file.seek(min(max(asked.offset, 0), size))
            writer.write(frame(Answer(size=size)))
            while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                writer.write(data)
                async with asyncio.timeout(STALL_S):
                    await writer.drain()


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Ask:
    """What the guest wants in the end; an echo or two may come before, to measure the way."""
    for _ in range(MAX_ECHOES):
        asked: Ask = await read_frame(reader, Ask)  # type: ignore[arg-type]
        if isinstance(asked, AskPort | AskBlob):
            return asked
        writer.write(frame(Answer()))
    raise WireError("too many echoes")


async def secured(
    sock: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The server's end of a TLS connection, once the guest has proved to be a member."""
    loop = asyncio.get_running_loop()
    set_keep_alive(sock)
    reader = asyncio.StreamReader(limit=PIECE_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=context, ssl_handshake_timeout=GREETING_S
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    return reader, with_buffer(writer)


def with_buffer(writer: asyncio.StreamWriter) -> asyncio.StreamWriter:
    """The same writer, with room for a few pieces: fewer turns for the same bytes."""
    writer.transport.set_write_buffer_limits(high=2 * PIECE_BYTES)
    return writer


def guest_of(writer: asyncio.StreamWriter) -> str:
    """The member's name, from the certificate that was checked."""
    certificate = writer.get_extra_info("peercert") or {}
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return str(names[0]) if len(names) == 1 else ""


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def carry(one: Ends, other: Ends) -> None:
    """Pass bytes in both directions until one end has ended; what it sent before still arrives.

    TLS, which is all that goes this way, knows no connection that is open in one direction only.
    """
    tasks = [asyncio.ensure_future(_copy(one[0], other[1])), asyncio.ensure_future(_copy(other[0], one[1]))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except OSError:
        for _, writer in (one, other):
            writer.transport.abort()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in (one, other):
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()


def context_for(folder: NodeFolder, order: OpenDoor, *, is_server: bool) -> ssl.SSLContext:
    """TLS by the cluster's authority alone, for one of the ends.

    Raises:
        OSError: the files cannot be kept, or are none (`ssl.SSLError`).
    """
    paths = {name: folder.root / f"door-{name}.pem" for name in ("ca", "certificate", "key")}
    for name, path in paths.items():
        write_atomically(path, getattr(order, name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(paths["ca"])
    context.load_cert_chain(paths["certificate"], paths["key"])
    if is_server:
        context.num_tickets = 0
    return context


def listening_socket() -> socket.socket:
    """A socket on a free port of all of the node's addresses.

    Raises:
        OSError: it is not allowed here.
    """
    is_both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_both else socket.AF_INET
    with contextlib.suppress(OSError):
        return _listening(family, is_both=is_both)
    return _listening(socket.AF_INET, is_both=False)  # IPv6 may be known and switched off


def _listening(family: socket.AddressFamily, *, is_both: bool) -> socket.socket:
    listening = socket.create_server(("", 0), family=family, backlog=MAX_STRANGERS, dualstack_ipv6=is_both)
    listening.settimeout(0)
    return listening


def set_keep_alive(sock: socket.socket) -> None:
    """Have the system notice a silent network."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def remove_files(folder: NodeFolder) -> None:
    """The key and what belongs to it go with the door."""
    for path in folder.root.glob("door-*.pem"):
        path.unlink(missing_ok=True)
