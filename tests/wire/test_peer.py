"""A conversation over real sockets: cuts, silence, supersession, restarts, back-pressure."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator

import pytest

from jupyter_gpumarket.errors import PeerRestarted, WireError
from jupyter_gpumarket.wire.messages import CloseStream, Order, Report, StreamData, Trouble
from jupyter_gpumarket.wire.peer import Detached, Peer

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def dialling(boot: str = "user", **options: float) -> Peer:
    return Peer(boot_id=boot, receives=Report, **options)


def answering(boot: str = "agent", **options: float) -> Peer:
    return Peer(boot_id=boot, receives=Order, answers=True, **options)


@pytest.fixture
async def streams() -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Every writer made, closed at the end."""
    made: list[asyncio.StreamWriter] = []
    yield made
    for writer in made:
        writer.transport.abort()


async def stream_pair(made: list[asyncio.StreamWriter]) -> tuple[Pair, Pair]:
    one, other = socket.socketpair()
    pairs = await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)
    made.extend(pair[1] for pair in pairs)
    return pairs


async def test_cuts_lose_and_double_nothing(streams: list[asyncio.StreamWriter]) -> None:
    """3,000 messages each way over streams that are cut all the time arrive once each, in order."""
    rng = random.Random(5)
    user, agent = dialling(), answering()
    count = 3000
    heard: tuple[list[str], list[str]] = ([], [])

    async def talk(peer: Peer) -> None:
        for n in range(count):
            await peer.send(Trouble(about=str(n), reason="x" * rng.randrange(200)) if peer is agent else order(n))

    async def listen(peer: Peer, into: list[str]) -> None:
        while len(into) < count:
            message = await peer.receive()
            into.append(message.about if isinstance(message, Trouble) else message.reason)

    async def cut_often() -> None:
        while True:
            left, right = await stream_pair(streams)
            both = asyncio.gather(user.attach(*left), agent.attach(*right))
            await asyncio.sleep(rng.random() * 0.02)
            left[1].transport.abort()
            await both

    cutting = asyncio.create_task(cut_often())
    async with asyncio.timeout(60):
        await asyncio.gather(talk(user), talk(agent), listen(user, heard[0]), listen(agent, heard[1]))
    cutting.cancel()

    assert heard == ([str(n) for n in range(count)],) * 2


def order(n: int) -> CloseStream:
    return CloseStream(stream=1, reason=str(n))


async def test_a_black_hole_ends_the_stream_after_the_silence(streams: list[asyncio.StreamWriter]) -> None:
    """When nothing is heard, `attach` returns SILENT in about `silence_s`, though the socket stays open."""
    user = dialling(silence_s=0.3, ping_s=0.1)
    left, _deaf = await stream_pair(streams)
    began = asyncio.get_running_loop().time()

    assert await user.attach(*left) is Detached.SILENT
    assert 0.25 < asyncio.get_running_loop().time() - began < 3


async def test_pings_keep_an_idle_stream_and_measure_it(streams: list[asyncio.StreamWriter]) -> None:
    """An idle stream stays up for many times `silence_s`, and the round trip is known."""
    user, agent = dialling(silence_s=0.4, ping_s=0.1), answering(silence_s=0.4, ping_s=0.1)
    left, right = await stream_pair(streams)
    tasks = [asyncio.create_task(user.attach(*left)), asyncio.create_task(agent.attach(*right))]

    done, _ = await asyncio.wait(tasks, timeout=1.5)
    user.detach()
    await asyncio.wait(tasks)

    assert not done
    assert user.round_trip_ms is not None
    assert tasks[0].result() is Detached.CLOSED


async def test_a_newer_stream_takes_over(streams: list[asyncio.StreamWriter]) -> None:
    """The older of two streams is ended as superseded, and messages flow on the newer."""
    user, agent = dialling(), answering()
    tasks = []
    for _ in range(2):
        left, right = await stream_pair(streams)
        tasks += [asyncio.create_task(user.attach(*left)), asyncio.create_task(agent.attach(*right))]
        await user.send(order(1))
        assert await agent.receive() == order(1)

    done, _ = await asyncio.wait(tasks[:2], timeout=5)
    assert Detached.SUPERSEDED in {task.result() for task in done}
    user.detach()
    agent.detach()
    await asyncio.wait(tasks)


async def test_a_restarted_agent_is_noticed_in_order(streams: list[asyncio.StreamWriter]) -> None:
    """Messages of the former process come first, then PeerRestarted with the new boot id, then the new one's."""
    user = dialling()
    for boot in ("first", "second"):
        agent = answering(boot)
        left, right = await stream_pair(streams)
        tasks = [asyncio.create_task(user.attach(*left)), asyncio.create_task(agent.attach(*right))]
        await agent.send(Trouble(about=boot, reason=""))
        async with asyncio.timeout(5):
            while not user._inbox or user._inbox[-1].payload.find(boot.encode()) < 0:
                await asyncio.sleep(0.01)
        left[1].transport.abort()
        await asyncio.wait(tasks)

    assert (await user.receive()).about == "first"
    with pytest.raises(PeerRestarted) as told:
        await user.receive()
    assert told.value.boot_id.startswith("second")
    assert (await user.receive()).about == "second"


async def test_sending_waits_while_too_much_is_unacknowledged(streams: list[asyncio.StreamWriter]) -> None:
    """A sender is held back by an application that does not take, and goes on when it does."""
    user = dialling(max_unacked_bytes=100_000)
    agent = answering()
    left, right = await stream_pair(streams)
    tasks = [asyncio.create_task(user.attach(*left)), asyncio.create_task(agent.attach(*right))]
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(50):
            await user.send(StreamData(stream=1, data=bytes(10_000)))
            sent += 1

    flooding = asyncio.create_task(flood())
    await asyncio.wait([flooding], timeout=0.5)
    assert 9 <= sent <= 11

    for _ in range(50):
        await asyncio.wait_for(agent.receive(), 5)
    await asyncio.wait_for(flooding, 5)
    user.detach()
    agent.detach()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x00", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_strangers_are_refused(streams: list[asyncio.StreamWriter], nonsense: bytes) -> None:
    """A stream that does not speak the protocol ends with WireError."""
    left, right = await stream_pair(streams)
    right[1].write(nonsense)

    with pytest.raises(WireError):
        await asyncio.wait_for(answering().attach(*left), 5)


async def test_half_a_frame_and_then_silence_ends(streams: list[asyncio.StreamWriter]) -> None:
    """A peer that stops in the middle of a frame is given up after the silence."""
    left, right = await stream_pair(streams)
    right[1].write(b"\x00\x00\x10\x00half")

    ended = await asyncio.wait_for(answering(silence_s=0.2, ping_s=0.1).attach(*left), 5)

    assert ended is Detached.SILENT
