"""The relay between nodes: real streams on this loopback, and a node that does not keep to the rules."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jupyter_gpumarket.cluster.relay import Relay, Target
from jupyter_gpumarket.wire.messages import CloseStream, OpenStream, Order, Report, StreamCredit, StreamData
from jupyter_gpumarket.wire.peer import Peer
from jupyter_gpumarket.wire.streams import CREDIT_BYTES, Streams, free_port

NODES: list[Node] = []


class Node:
    """A node's streams, as its agent has them."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.name = name
        self.streams = Streams(self._out)
        self._relay = relay
        relay.join(name, self._in)
        NODES.append(self)

    async def _out(self, message: Any) -> None:
        self._relay.take(self.name, message)

    async def _in(self, message: Any) -> None:
        self.streams.take(message)


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = Relay()
    yield relay
    relay.close()
    while NODES:
        NODES.pop().streams.close()
    await asyncio.sleep(0.05)  # what was cancelled closes its sockets


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_from_node_to_node_and_back(relay: Relay) -> None:
    """Several megabytes through another node's echo server come back whole, and the end is passed on."""
    Node(relay, "a"), Node(relay, "b")
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    here = free_port()
    assert not await relay.listen("a", here, Target(lease_id="b", port=server.sockets[0].getsockname()[1]))
    reader, writer = await asyncio.open_connection("127.0.0.1", here)
    sent = os.urandom(1 << 20) * 5
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(30):
        got = await reader.read()
    writer.close()
    server.close()

    assert got == sent
    assert relay.relayed_bytes == 2 * len(sent)


async def test_a_port_that_is_taken_is_told(relay: Relay) -> None:
    """An agent that cannot listen says why, and nothing is relayed there."""
    Node(relay, "a"), Node(relay, "b")
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    assert "cannot listen" in await relay.listen("a", port, Target(lease_id="b", port=port))
    server.close()


async def test_a_node_that_goes_ends_what_was_connected_to_it(relay: Relay) -> None:
    """The other end's connection is closed, instead of waiting for bytes that never come."""
    Node(relay, "a"), Node(relay, "b")
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    here = free_port()
    assert not await relay.listen("a", here, Target(lease_id="b", port=server.sockets[0].getsockname()[1]))
    reader, writer = await asyncio.open_connection("127.0.0.1", here)
    writer.write(b"x")
    assert await asyncio.wait_for(reader.read(1), 10) == b"x"

    relay.leave("b")

    with contextlib.suppress(ConnectionResetError):  # it may end abruptly, as it is
        assert await asyncio.wait_for(reader.read(1), 10) == b""
    writer.close()
    server.close()


class LinkedNode:
    """A node's streams at the far end of a link that is cut again and again, wherever it may be."""

    def __init__(self, relay: Relay, name: str, rng: random.Random) -> None:
        self._user = Peer(boot_id="user", receives=Report)
        self._agent = Peer(boot_id="agent", receives=Order, answers=True)
        self._rng = rng
        self._relay = relay
        self.name = name
        self.cuts = 0
        self.streams = Streams(self._agent.send)
        relay.join(name, self._user.send)
        self.tasks = [asyncio.create_task(part) for part in (self._obey(), self._hear(), self._cut())]

    async def _obey(self) -> None:
        while True:
            self.streams.take(await self._agent.receive())

    async def _hear(self) -> None:
        while True:
            self._relay.take(self.name, await self._user.receive())

    async def _cut(self) -> None:
        while True:
            near, far = socket.socketpair()
            ends = await asyncio.open_connection(sock=near), await asyncio.open_connection(sock=far)
            both = asyncio.gather(self._user.attach(*ends[0]), self._agent.attach(*ends[1]))
            try:
                await asyncio.sleep(self._rng.random() * 0.06)
            finally:
                ends[0][1].transport.abort()
            await both
            self.cuts += 1


async def test_a_stream_over_links_that_are_cut_arrives_whole(relay: Relay) -> None:
    """Megabytes from node to node and back, both links cut all the time: each byte once, in order."""
    rng = random.Random(7)
    nodes = [LinkedNode(relay, name, rng) for name in ("a", "b")]
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    here = free_port()
    sent = rng.randbytes(1 << 20) * 24
    async with asyncio.timeout(60):
        assert not await relay.listen("a", here, Target(lease_id="b", port=server.sockets[0].getsockname()[1]))
        reader, writer = await asyncio.open_connection("127.0.0.1", here)
        writer.write(sent)
        writer.write_eof()
        got = await reader.read()
    writer.close()
    server.close()
    for node in nodes:
        for task in node.tasks:
            task.cancel()
        await asyncio.gather(*node.tasks, return_exceptions=True)
        node.streams.close()

    assert got == sent
    assert all(node.cuts > 2 for node in nodes)


class Rogue:
    """A node that says what the test wants, and keeps what it is told."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.heard: list[Any] = []
        self._news = asyncio.Event()
        self._relay = relay
        self.name = name
        relay.join(name, self._in)

    def say(self, message: Any) -> None:
        self._relay.take(self.name, message)

    async def _in(self, message: Any) -> None:
        self.heard.append(message)
        self._news.set()

    async def until(self, kind: type) -> Any:
        async with asyncio.timeout(10):
            while not (found := [message for message in self.heard if isinstance(message, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[-1]


async def test_a_node_reaches_only_ports_that_were_ordered(relay: Relay) -> None:
    """A connection to a port for which no order was given is closed, and no other node hears of it."""
    rogue, other = Rogue(relay, "rogue"), Rogue(relay, "other")
    rogue.say(OpenStream(stream=-1, port=22))

    assert (await rogue.until(CloseStream)).stream == -1
    assert other.heard == []


async def test_more_than_was_granted_ends_the_stream(relay: Relay) -> None:
    """A node that floods is cut off at its credit, so that nothing piles up here."""
    rogue, other = Rogue(relay, "rogue"), Rogue(relay, "other")
    waiting = asyncio.create_task(relay.listen("rogue", 20_000, Target(lease_id="other", port=20_001)))
    order = await rogue.until(OpenStream)
    rogue.say(OpenStream(stream=order.stream, port=20_000, listen=True))
    assert await waiting == ""
    rogue.say(OpenStream(stream=-1, port=20_000))
    opened = await other.until(OpenStream)
    other.say(StreamCredit(stream=opened.stream, bytes=CREDIT_BYTES))
    await rogue.until(StreamCredit)
    rogue.say(StreamData(stream=-1, data=b"x" * CREDIT_BYTES))
    assert len((await other.until(StreamData)).data) == CREDIT_BYTES
    rogue.say(StreamData(stream=-1, data=b"x"))

    assert "granted" in (await rogue.until(CloseStream)).reason
    assert (await other.until(CloseStream)).stream == opened.stream
    assert relay.streams("rogue") == 0
