"""Calls between our own processes: kept connections, broken ones, silent ones."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from jupyter_gpumarket.loopback import Connections, Lost

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TOKEN = "canary-51f0"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def peer(talk: Conversation) -> AsyncIterator[Connections]:
    """A server that does with each connection what `talk` says, and connections to it."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    connections = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", lambda: TOKEN, connect_s=3)
    try:
        yield connections
    finally:
        connections.close()
        server.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    await writer.drain()


async def test_one_connection_carries_one_call_after_another() -> None:
    """A connection is kept and used again."""
    served = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        for _ in range(3):
            await answer(reader, writer)

    async with peer(talk) as connections:
        answers = [await connections.call("GET", "/", silence_s=5) for _ in range(3)]

    assert [found.body for found in answers] == [b"ok"] * 3
    assert len(served) == 1


async def test_a_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    """The other side may close an idle connection: the next call does not suffer from it."""
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with peer(talk) as connections:
        for _ in range(3):
            closed.clear()
            found = await connections.call("POST", "/", b"{}", silence_s=5)
            assert found == (200, b"ok")
            await asyncio.wait_for(closed.wait(), 5)
            async with asyncio.timeout(5):
                while any(kept.is_usable for kept in connections._kept):
                    await asyncio.sleep(0.01)


async def test_an_answer_that_is_cut_is_lost() -> None:
    """Half an answer is never taken for a whole one."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:-1])
        await writer.drain()

    async with peer(talk) as connections:
        with pytest.raises(Lost):
            await connections.call("GET", "/", silence_s=5)


async def test_silence_is_told_from_absence() -> None:
    """Who takes the call and says nothing is there: another error than a closed port's."""

    async def talk(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(talk) as connections:
        with pytest.raises(TimeoutError):
            await connections.call("GET", "/", silence_s=0.1)
    with pytest.raises(Lost):
        await Connections("http://127.0.0.1:9", lambda: TOKEN, connect_s=3).call("GET", "/", silence_s=5)


async def test_a_call_that_was_connecting_while_all_was_closed_leaves_nothing_open() -> None:
    """It has its answer, and its connection is not kept: nobody would ever close it."""
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        assert await reader.read() == b""
        ended.set()

    async with peer(talk) as connections:
        call = asyncio.create_task(connections.call("GET", "/", silence_s=5))
        await asyncio.sleep(0)
        connections.close()
        assert (await call).body == b"ok"
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_forked_child_takes_a_connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parent has open is the parent's: two processes on one connection would read each other's answers."""
    served = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        for _ in range(2):
            await answer(reader, writer)

    async with peer(talk) as connections:
        await connections.call("GET", "/", silence_s=5)
        monkeypatch.setattr("os.getpid", lambda: -1)
        await connections.call("GET", "/", silence_s=5)

    assert len(served) == 2


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", None])
async def test_no_traceback_shows_the_token(said: bytes | None) -> None:
    """Not even one that shows every variable on its way (`%xmode Verbose`), however the call fails; it is sent."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if said is None:
            await reader.read()
        else:
            writer.write(said)

    async with peer(talk) as connections:
        with pytest.raises((Lost, TimeoutError)) as failed:
            await connections.call("POST", "/v1/x", b"{}", {"Content-Type": "application/json"}, silence_s=0.2)

    assert failed.tb.tb_next is not None, "the first one is this test, which has seen the token"
    shown = traceback.TracebackException(failed.type, failed.value, failed.tb.tb_next, capture_locals=True)
    told = "".join(shown.format())
    assert "silence_s = 0.2" in told
    assert TOKEN not in told
    (head,) = heads
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/x HTTP/1.1"
    assert lines.count(f"Authorization: Bearer {TOKEN}") == 1
    assert lines[-2:] == ["", ""]


async def test_what_is_no_token_is_not_sent() -> None:
    """A line break in it would begin another header."""

    async def talk(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(talk) as connections:
        connections._token = lambda: "a\r\nX-Other: b"
        with pytest.raises(ValueError, match="not one line"):
            await connections.call("GET", "/", silence_s=1)
