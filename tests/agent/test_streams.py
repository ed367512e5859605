"""Byte streams between the node's loopback and the other end, with credit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from jupyter_gpumarket.wire.messages import CloseStream, OpenStream, StreamCredit, StreamData
from tests.agent.user_side import UserSide, user_side

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[UserSide]:
    """One agent for all tests here: none of them harms it."""
    async with user_side(tmp_path_factory.mktemp("streams") / "node") as side:
        yield side


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def next_for(user: UserSide, stream: int, kind: type) -> object:
    found = await user.until(lambda r: isinstance(r, kind) and r.stream == stream)
    user.reports.remove(found)
    return found


async def test_bytes_go_to_a_port_on_the_node_and_back(user: UserSide) -> None:
    """A megabyte through an echo server on the node's loopback comes back whole, and the end is passed on."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sent = bytes(range(256)) * 4096
    await user.peer.send(OpenStream(stream=1, port=port))
    await next_for(user, 1, StreamCredit)
    await user.peer.send(StreamCredit(stream=1, bytes=len(sent)))
    for at in range(0, len(sent), 50_000):
        part = sent[at : at + 50_000]
        await user.peer.send(StreamData(stream=1, data=part, end=at + 50_000 >= len(sent)))
    await next_for(user, 1, CloseStream)
    got = b"".join(r.data for r in user.reports if isinstance(r, StreamData) and r.stream == 1)
    server.close()

    assert got == sent


async def test_nothing_is_sent_beyond_the_credit(user: UserSide) -> None:
    """A port that talks without end is held back at the bytes that were granted."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_error = False
        while not with_error:
            writer.write(b"x" * 10_000)
            try:
                await writer.drain()
            except ConnectionError:
                with_error = True

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await user.peer.send(OpenStream(stream=2, port=port))
    await user.peer.send(StreamCredit(stream=2, bytes=30_000))

    def arrived() -> int:
        return sum(len(r.data) for r in user.reports if isinstance(r, StreamData) and r.stream == 2)

    async with asyncio.timeout(10):
        while arrived() < 30_000:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert arrived() == 30_000

    await user.peer.send(CloseStream(stream=2))
    await next_for(user, 2, CloseStream)
    server.close()


async def test_a_sender_beyond_its_credit_is_cut(user: UserSide) -> None:
    """More than was granted ends the stream: the node's memory is not the other end's to fill."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        connected.append(writer)

    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1000)
    port = server.sockets[0].getsockname()[1]
    await user.peer.send(OpenStream(stream=3, port=port))
    await next_for(user, 3, StreamCredit)
    for _ in range(100):
        await user.peer.send(StreamData(stream=3, data=bytes(500_000)))
    closed = await next_for(user, 3, CloseStream)
    server.close()
    for writer in connected:
        writer.transport.abort()

    assert isinstance(closed, CloseStream)


async def test_a_closed_port_is_told(user: UserSide) -> None:
    """A port where nobody listens closes the stream with a reason that names it."""
    await user.peer.send(OpenStream(stream=4, port=1))
    closed = await next_for(user, 4, CloseStream)

    assert isinstance(closed, CloseStream)
    assert "port 1" in closed.reason


async def test_what_connects_on_the_node_is_offered(user: UserSide) -> None:
    """A listening port on the node offers each connection as a stream with a negative number."""
    await user.peer.send(OpenStream(stream=5, port=0, listen=True))
    opened = await next_for(user, 5, OpenStream)
    assert isinstance(opened, OpenStream)
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
    offered = await user.until(lambda r: isinstance(r, OpenStream) and r.stream < 0)
    await user.peer.send(StreamCredit(stream=offered.stream, bytes=100))
    writer.write(b"question")
    asked = await next_for(user, offered.stream, StreamData)
    await user.peer.send(StreamData(stream=offered.stream, data=b"answer", end=True))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()

    assert isinstance(asked, StreamData)
    assert (asked.data, answer) == (b"question", b"answer")
