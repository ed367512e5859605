"""Byte streams from node to node, carried through the links. No socket listens on this side.

An agent listens on a loopback port that this process ordered, and offers each connection that it accepts; the relay has
the target's agent connect to the port that belongs to it, and passes both directions on, message by message. A node can
reach only ports for which such an order was given. Credit is granted from end to end, so what lies here is bounded by
what the receiving ends can take.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from jupyter_gpumarket.wire.messages import CloseStream, OpenStream, StreamCredit, StreamData

logger = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[None]]
StreamMessage = OpenStream | StreamData | StreamCredit | CloseStream
STREAM_MESSAGES = (OpenStream, StreamData, StreamCredit, CloseStream)
MAX_STREAMS_PER_NODE = 1000


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A port on a node's loopback."""

    lease_id: str
    port: int


class Relay:
    """All streams between the nodes of one cluster."""

    def __init__(self) -> None:
        self._ends: dict[str, _End] = {}
        # Numbers are never used again: an agent that was cut off may still hold streams of before.
        self._numbers: dict[str, Iterator[int]] = {}
        self.relayed_bytes = 0

    def join(self, lease_id: str, send: Send) -> None:
        """A node's agent can be spoken to from now on; one that was there before is another one, without streams."""
        self.leave(lease_id)
        numbers = self._numbers.setdefault(lease_id, itertools.count(1))
        self._ends[lease_id] = _End(lease_id, send, numbers)

    def leave(self, lease_id: str) -> None:
        """A node is gone: what was connected to it hears so."""
        end = self._ends.pop(lease_id, None)
        if end is None:
            return
        end.close()
        for stream in list(end.pairs):
            self._cut(end, stream, "the node at the other end is gone", tell_near=False)

    def close(self) -> None:
        """End everything."""
        for lease_id in list(self._ends):
            self.leave(lease_id)

    def streams(self, lease_id: str) -> int:
        """How many streams a node has."""
        end = self._ends.get(lease_id)
        return 0 if end is None else len(end.pairs)

    async def listen(self, lease_id: str, port: int, target: Target) -> str:
        """Have a node listen on a loopback port for what is to reach the target; the answer is why it cannot."""
        end = self._ends.get(lease_id)
        if end is None:
            return "the node is not there"
        order = end.next_number()
        end.ports[port] = target
        waiting = end.listening[order] = asyncio.get_running_loop().create_future()
        end.orders[port] = order
        end.put(OpenStream(stream=order, port=port, listen=True))
        reason: str = await waiting
        if reason:
            end.forget_port(port)
        return reason

    def stop_listening(self, lease_id: str, port: int) -> None:
        """Have a node close such a port; connections that are there go on."""
        end = self._ends.get(lease_id)
        if end is not None and port in end.orders:
            end.put(CloseStream(stream=end.orders[port]))
            end.forget_port(port)

    def take(self, lease_id: str, message: StreamMessage) -> None:
        """What a node says about its streams."""
        end = self._ends.get(lease_id)
        if end is None:
            return
        if isinstance(message, OpenStream):
            self._opened(end, message)
        elif isinstance(message, CloseStream):
            if (waiting := end.listening.pop(message.stream, None)) is not None:
                _answer(waiting, message.reason[:500] or "the port was closed")
            self._cut(end, message.stream, message.reason[:500], tell_near=False)
        elif isinstance(message, StreamData):
            self._data(end, message)
        else:
            self._credit(end, message)

    def _opened(self, end: _End, message: OpenStream) -> None:
        if message.listen:
            if (waiting := end.listening.pop(message.stream, None)) is not None:
                _answer(waiting, "")
            return
        target = end.ports.get(message.port)
        far = self._ends.get(target.lease_id) if target is not None else None
        is_new = message.stream < 0 and message.stream not in end.pairs
        if target is None or far is None or not is_new or len(end.pairs) >= MAX_STREAMS_PER_NODE:
            end.put(CloseStream(stream=message.stream, reason="there is nobody at the other end"))
            return
        number = far.next_number()
        end.pairs[message.stream] = _Half(far=far, number=number)
        far.pairs[number] = _Half(far=end, number=message.stream)
        far.put(OpenStream(stream=number, port=target.port))

    def _data(self, end: _End, message: StreamData) -> None:
        half = end.pairs.get(message.stream)
        if half is None:
            end.put(CloseStream(stream=message.stream, reason="this stream is over"))
            return
        half.may_send -= len(message.data)
        if half.may_send < 0:
            logger.warning("node %s sent more on a stream than was granted", end.lease_id)
            self._cut(end, message.stream, "more was sent than was granted", tell_near=True)
            return
        self.relayed_bytes += len(message.data)
        half.far.put(StreamData(stream=half.number, data=message.data, end=message.end))

    def _credit(self, end: _End, message: StreamCredit) -> None:
        half = end.pairs.get(message.stream)
        if half is None or message.bytes <= 0:
            return
        other = half.far.pairs.get(half.number)
        if other is not None:
            other.may_send = min(other.may_send + message.bytes, 2**40)
        half.far.put(StreamCredit(stream=half.number, bytes=message.bytes))

    def _cut(self, end: _End, stream: int, reason: str, *, tell_near: bool) -> None:
        half = end.pairs.pop(stream, None)
        if half is None:
            return
        half.far.pairs.pop(half.number, None)
        half.far.put(CloseStream(stream=half.number, reason=reason))
        if tell_near:
            end.put(CloseStream(stream=stream, reason=reason))


class _Half:
    """One direction's way: to whom a node's stream goes, under which number there, and how much may still come."""

    __slots__ = ("far", "may_send", "number")

    def __init__(self, *, far: _End, number: int) -> None:
        self.far = far
        self.number = number
        self.may_send = 0


class _End:
    """One node: its streams, and what waits to be sent to it."""

    def __init__(self, lease_id: str, send: Send, numbers: Iterator[int]) -> None:
        self.lease_id = lease_id
        self.pairs: dict[int, _Half] = {}
        self.ports: dict[int, Target] = {}
        self.orders: dict[int, int] = {}
        self.listening: dict[int, asyncio.Future[str]] = {}
        self._send = send
        self._waiting: deque[StreamMessage] = deque()
        self._wanted = asyncio.Event()
        self._numbers = numbers
        self._pump = asyncio.create_task(self._work())

    def next_number(self) -> int:
        return next(self._numbers)

    def put(self, message: StreamMessage) -> None:
        """Have this sent, in order."""
        self._waiting.append(message)
        self._wanted.set()

    def forget_port(self, port: int) -> None:
        self.ports.pop(port, None)
        self.orders.pop(port, None)

    def close(self) -> None:
        self._pump.cancel()
        for waiting in self.listening.values():
            _answer(waiting, "the node is gone")

    async def _work(self) -> None:
        while True:
            while self._waiting:
                await self._send(self._waiting.popleft())
            self._wanted.clear()
            if not self._waiting:
                await self._wanted.wait()


def _answer(waiting: asyncio.Future[str], reason: str) -> None:
    if not waiting.done():
        waiting.set_result(reason)
