"""Byte streams between this machine's loopback and the other end, each with its own credit.

The receiver grants credit in bytes and renews it as it passes bytes on, so that one slow stream fills neither the
memory nor the channel that it shares. Streams opened by the other end have positive numbers, ours negative ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.messages import CloseStream, OpenStream, StreamCredit, StreamData

CREDIT_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
MAX_STREAMS = 1000
CONNECT_TIMEOUT_S = 10.0

Send = Callable[[Any], Awaitable[None]]
# Carries an accepted connection by a way of its own, where there is one for the port; False: there is none.
Direct = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Streams:
    """All streams of this end."""

    def __init__(self, send: Send, direct: Direct | None = None) -> None:
        self._send = send
        self._direct = direct
        self._streams: dict[int, Stream] = {}
        self._listeners: dict[int, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted = 0

    def take(self, message: OpenStream | StreamData | StreamCredit | CloseStream) -> None:
        """A message about a stream; those about unknown streams are late, and ignored."""
        if isinstance(message, OpenStream):
            self._open(message)
            return
        stream = self._streams.get(message.stream)
        if isinstance(message, CloseStream) and message.stream in self._listeners:
            self._listeners.pop(message.stream).close()
        if stream is None:
            return
        if isinstance(message, StreamData):
            stream.take(message)
        elif isinstance(message, StreamCredit):
            stream.grant(message.bytes)
        else:
            stream.abort()

    def _open(self, order: OpenStream) -> None:
        if order.listen:
            self._start(self._listen(order))
        elif order.stream in self._streams or len(self._streams) >= MAX_STREAMS:
            reason = f"stream {order.stream} cannot be opened: the number is in use, or there are too many"
            self._start(self._send(CloseStream(stream=order.stream, reason=reason)))
        else:
            # Known before it is connected, so that what follows at once is not taken for late.
            stream = self._streams[order.stream] = Stream(order.stream, self._send)
            self._start(self._connect(stream, order.port))

    def close(self) -> None:
        """End everything."""
        for server in self._listeners.values():
            server.close()
        for task in list(self._tasks):
            task.cancel()
        self._listeners.clear()
        self._streams.clear()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, stream: Stream, port: int) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)
        except OSError as error:
            self._streams.pop(stream.number, None)
            await self._send(CloseStream(stream=stream.number, reason=f"port {port} on the node: {error}"))
            return
        await self._carry(stream, reader, writer)

    async def _listen(self, order: OpenStream) -> None:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._start(self._offer(order.port, reader, writer))

        try:
            server = await asyncio.start_server(accepted, "127.0.0.1", order.port, limit=CHUNK_BYTES)
        except OSError as error:
            await self._send(CloseStream(stream=order.stream, reason=f"cannot listen on port {order.port}: {error}"))
            return
        self._listeners[order.stream] = server
        port = server.sockets[0].getsockname()[1]
        await self._send(OpenStream(stream=order.stream, port=port, listen=True))

    async def _offer(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._direct is not None and await self._direct(port, reader, writer):
            return
        self._accepted += 1
        stream = self._streams[-self._accepted] = Stream(-self._accepted, self._send)
        await self._send(OpenStream(stream=stream.number, port=port))
        await self._carry(stream, reader, writer)

    async def _carry(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reason = ""
        try:
            await stream.carry(reader, writer)
        except (OSError, WireError) as error:
            reason = str(error)
        finally:
            self._streams.pop(stream.number, None)
            writer.transport.abort() if stream.was_aborted else writer.close()
        await self._send(CloseStream(stream=stream.number, reason=reason))


class Stream:
    """One TCP connection and the credit in each direction."""

    def __init__(self, number: int, send: Send) -> None:
        self.number = number
        self.was_aborted = False
        self._send = send
        self._may_send = 0
        self._granted = CREDIT_BYTES
        self._credit = asyncio.Event()
        self._arrived: asyncio.Queue[StreamData] = asyncio.Queue()
        self._aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, data: StreamData) -> None:
        """Bytes for the connection."""
        self._granted -= len(data.data)
        if self._granted < 0:
            self.abort()
            return
        self._arrived.put_nowait(data)

    def grant(self, size: int) -> None:
        """The other end can take more."""
        self._may_send += max(size, 0)
        self._credit.set()

    def abort(self) -> None:
        """End the stream in both directions."""
        self.was_aborted = True
        if not self._aborted.done():
            self._aborted.set_result(None)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes in both directions until both have ended."""
        await self._send(StreamCredit(stream=self.number, bytes=CREDIT_BYTES))
        both: asyncio.Future[Any] = asyncio.gather(self._outward(reader), self._inward(writer))
        try:
            await asyncio.wait([both, self._aborted], return_when=asyncio.FIRST_COMPLETED)
            if both.done():
                both.result()
        finally:
            both.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await both

    async def _outward(self, reader: asyncio.StreamReader) -> None:
        # One piece is read ahead of the credit, so that the end is noticed without any.
        while data := await reader.read(CHUNK_BYTES):
            while data:
                while self._may_send <= 0:
                    self._credit.clear()
                    await self._credit.wait()
                part, data = data[: self._may_send], data[self._may_send :]
                self._may_send -= len(part)
                await self._send(StreamData(stream=self.number, data=part))
        await self._send(StreamData(stream=self.number, data=b"", end=True))

    async def _inward(self, writer: asyncio.StreamWriter) -> None:
        while True:
            piece = await self._arrived.get()
            writer.write(piece.data)
            await writer.drain()
            if piece.end:
                writer.write_eof()
                return
            self._granted += len(piece.data)
            await self._send(StreamCredit(stream=self.number, bytes=len(piece.data)))
