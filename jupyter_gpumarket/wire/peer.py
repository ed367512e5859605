"""One end of a resumable conversation over asyncio streams.

The application calls `send` and `receive`; whoever makes connections calls `attach` with each new one. `Peer` outlives
them all. It never blocks reading for a slow application, so an application must not wait in `send` inside the loop that
calls `receive`: two such ends would wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from jupyter_gpumarket.errors import PeerRestarted, WireError
from jupyter_gpumarket.wire.channel import WINDOW_BYTES, Answered, Attachment, Channel, Event, Received, Restarted
from jupyter_gpumarket.wire.frames import decode_message

READ_BYTES = 256 * 1024
WRITE_BYTES = 256 * 1024
# Acknowledgements wait for company this long, or until so much has been taken.
ACK_DELAY_S = 0.02
ACK_BYTES = 256 * 1024


class Reader(Protocol):
    """What a byte stream must offer for reading; `asyncio.StreamReader` and asyncssh's readers do."""

    def read(self, n: int = -1, /) -> Awaitable[bytes]:
        """Some bytes, at most `n`; empty at the end."""


class Writer(Protocol):
    """What a byte stream must offer for writing; `asyncio.StreamWriter` and asyncssh's writers do."""

    def write(self, data: bytes, /) -> object:
        """Take bytes to be sent."""

    def drain(self) -> Awaitable[object]:
        """Wait until there is room for more."""

    def close(self) -> object:
        """End the stream."""


class Detached(StrEnum):
    """Why an attachment is over."""

    ENDED = "the stream ended"
    SILENT = "nothing was heard for too long"
    SUPERSEDED = "a newer stream took over"
    CLOSED = "this end closed it"


class Peer:
    """One endpoint of a conversation. Messages are msgspec types; each arrives once, in order.

    `answers` is true at the end that is dialled (the agent). `receives` and `sends` are unions of message types.
    """

    def __init__(
        self,
        *,
        boot_id: str,
        receives: Any,
        sends: Any = None,
        answers: bool = False,
        silence_s: float = 15,
        ping_s: float = 5,
        max_unacked_bytes: int = WINDOW_BYTES,
        on_attached: Callable[[bool], None] | None = None,
    ) -> None:
        self._channel = Channel(boot_id, answers=answers, max_unacked_bytes=max_unacked_bytes)
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(receives)
        self._encoder = msgspec.msgpack.Encoder()
        self._sends = sends
        self._silence_s = silence_s
        self._ping_s = ping_s
        self._on_attached = on_attached
        self._inbox: deque[Received | Restarted] = deque()
        self._restarts_unseen = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._flushed = asyncio.Event()
        self._current: _Stream | None = None
        self._streams: set[_Stream] = set()
        self._unannounced_bytes = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self.round_trip_ms: float | None = None
        self.last_heard: float | None = None

    @property
    def boot_id(self) -> str:
        """This end's incarnation."""
        return self._channel.boot_id

    @property
    def peer_boot_id(self) -> str:
        """The other end's identity in the present conversation; empty before the first contact."""
        return self._channel.peer_boot_id

    @property
    def attached(self) -> bool:
        """Whether a stream is up on which both ends have said hello."""
        return self._current is not None

    @property
    def unacknowledged(self) -> int:
        """How many sent messages the other end's application has not taken yet."""
        return self._channel.unacknowledged

    async def send(self, message: Any) -> None:
        """Number a message and keep it until the other end has taken it; waits while too much is kept.

        What is sent between a restart of the other end and `receive` telling of it belonged to the former
        conversation, and is dropped.

        Raises:
            WireError: the message is too large for a frame.
        """
        payload = self._encoder.encode(message)
        while not self._channel.has_room:
            self._room.clear()
            await self._room.wait()
        if self._restarts_unseen:
            return
        self._channel.queue(payload)
        self._wake()

    async def receive(self) -> Any:
        """The next message.

        Raises:
            PeerRestarted: the other end is a new process; messages after this are the new one's.
            WireError: the message is of no known type. The conversation is not to be trusted any more.
        """
        while not self._inbox:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._inbox.popleft()
        if isinstance(event, Restarted):
            self._restarts_unseen -= 1
            raise PeerRestarted(event.boot_id)
        self._channel.consumed(event)
        self._announce(len(event.payload))
        return decode_message(self._decoder, event.payload)

    async def flush(self) -> None:
        """Wait until the other end has taken everything that was sent."""
        while self._channel.unacknowledged:
            self._flushed.clear()
            await self._flushed.wait()

    async def attach(self, reader: Reader, writer: Writer) -> Detached:
        """Carry the conversation over this stream until it ends, falls silent, or a newer one takes over.

        The writer is closed at the end. After `SILENT`, drop the whole connection under it as well: closing one
        channel of a dead connection waits for a peer that is not there.

        Raises:
            WireError: the other end broke the protocol.
        """
        stream = _Stream(self, self._channel.attach(), reader, writer, silence_s=self._silence_s, ping_s=self._ping_s)
        self._streams.add(stream)
        try:
            return await stream.carry()
        finally:
            self._streams.discard(stream)
            if self._current is stream:
                self._current = None
                self._tell_attached(is_attached=False)

    def detach(self) -> None:
        """End every stream; the conversation can go on over a later one."""
        for stream in list(self._streams):
            stream.end(Detached.CLOSED)

    # ── for the streams ──────────────────────────────────────────────────────────────────────────────────────────────

    def greeted(self, stream: _Stream) -> None:
        """Both ends have said hello on this stream: it is the one that counts."""
        if self._current is not None:
            self._current.end(Detached.SUPERSEDED)
        self._current = stream
        self._tell_attached(is_attached=True)

    def _tell_attached(self, *, is_attached: bool) -> None:
        if self._on_attached is not None:
            self._on_attached(is_attached)

    def deliver(self, event: Received | Restarted) -> None:
        """Something for the application."""
        if isinstance(event, Restarted):
            self._restarts_unseen += 1
        self._inbox.append(event)
        self._arrived.set()

    def acknowledged(self) -> None:
        """The other end may have taken some messages."""
        if self._channel.has_room:
            self._room.set()
        if not self._channel.unacknowledged:
            self._flushed.set()

    def _announce(self, taken_bytes: int) -> None:
        self._unannounced_bytes += taken_bytes
        if self._unannounced_bytes >= ACK_BYTES:
            self._wake()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_DELAY_S, self._wake)

    def _wake(self) -> None:
        self._unannounced_bytes = 0
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._current is not None:
            self._current.due.set()


class _Stream:
    """One attached stream: reads, writes and listens for silence until the first of the three is over."""

    def __init__(
        self, peer: Peer, attachment: Attachment, reader: Reader, writer: Writer, *, silence_s: float, ping_s: float
    ) -> None:
        self._silence_s = silence_s
        self._ping_s = ping_s
        self._peer = peer
        self._attachment = attachment
        self._reader = reader
        self._writer = writer
        self._over: asyncio.Future[Detached] = asyncio.get_running_loop().create_future()
        self._quiet_s = 0.0
        self._pings: tuple[int, float] = (0, 0.0)
        self.due = asyncio.Event()

    def end(self, reason: Detached) -> None:
        """Let `carry` return."""
        if not self._over.done():
            self._over.set_result(reason)

    async def carry(self) -> Detached:
        """Run the stream; returns why it is over."""
        parts = [asyncio.ensure_future(part) for part in (self._read(), self._write(), self._listen())]
        waiting: set[asyncio.Future[Detached]] = {self._over, *parts}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        first = self._over if self._over in done else done.pop()
        return first.result()

    async def _read(self) -> Detached:
        while data := await _or_end(self._reader.read(READ_BYTES)):
            self._quiet_s = 0.0
            self._peer.last_heard = asyncio.get_running_loop().time()
            was_greeted = self._attachment.is_greeted
            self._attachment.feed(data, self._take)
            if self._attachment.is_superseded:
                return Detached.SUPERSEDED
            if self._attachment.is_greeted and not was_greeted:
                self._peer.greeted(self)
            self._peer.acknowledged()
            self.due.set()
        return Detached.ENDED

    async def _write(self) -> Detached:
        while True:
            self.due.clear()
            while data := self._attachment.bytes_to_send(WRITE_BYTES):
                if not await self._written(data):
                    return Detached.ENDED
            await self.due.wait()

    async def _written(self, data: bytes) -> bool:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except Exception:  # noqa: BLE001 - each stream library has its own errors; all mean that the stream is over
            return False
        return True

    async def _listen(self) -> Detached:
        """Ping, and count silence. Only time in which this process was awake counts: after a suspension the other
        end gets a fair chance to be heard."""
        loop = asyncio.get_running_loop()
        tick = min(self._ping_s, self._silence_s) / 4
        last, since_ping = loop.time(), 0.0
        while self._quiet_s < self._silence_s:
            await asyncio.sleep(tick)
            now = loop.time()
            passed, last = min(now - last, 2 * tick), now
            self._quiet_s += passed
            since_ping += passed
            if since_ping >= self._ping_s:
                since_ping = 0.0
                self._pings = (self._pings[0] + 1, now)
                self._attachment.ping(self._pings[0])
                self.due.set()
        return Detached.SILENT

    def _take(self, event: Event) -> None:
        if not isinstance(event, Answered):
            self._peer.deliver(event)
            return
        expected, asked_at = self._pings
        if event.number == expected:
            self._peer.round_trip_ms = (asyncio.get_running_loop().time() - asked_at) * 1000


async def _or_end(reading: Awaitable[bytes]) -> bytes:
    try:
        return await reading
    except Exception:  # noqa: BLE001 - each stream library has its own errors; all mean that the stream is over
        return b""


__all__ = ["Detached", "Peer", "PeerRestarted", "Reader", "WireError", "Writer"]
