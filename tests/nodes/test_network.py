"""The link on a bad network: black holes, cuts, reconnecting. Each once in a network namespace, once on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import Unreachable
from tests.nodes.far import Far, Namespace, Relayed, cut, require_namespaces
from tests.nodes.openssh import require_sshd

QUICK = {"keepalive_s": 0.5, "keepalive_max": 2, "login_timeout_s": 3}


@pytest.fixture(params=[pytest.param("namespace", marks=pytest.mark.netns), "relayed"])
async def far(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Far]:
    require_sshd()
    if request.param == "namespace":
        require_namespaces()
    node: Far = Namespace(tmp_path / "n") if request.param == "namespace" else await Relayed(tmp_path / "n").listen()
    yield node
    await node.close()


async def test_a_black_hole_is_noticed_and_the_link_comes_back(far: Far) -> None:
    """When nothing arrives any more a waiting command fails within seconds, and `connect` works once it is over."""
    link = far.link(**QUICK)
    await link.connect()
    waiting = asyncio.create_task(link.run("sleep 600", timeout_s=600))
    await link.run("true", timeout_s=5)
    far.swallow(everything=True)
    started = time.monotonic()

    with pytest.raises(Unreachable):
        await asyncio.wait_for(waiting, 15)
    assert time.monotonic() - started < 10
    assert not link.connected

    far.swallow(everything=False)
    await link.connect()
    assert (await link.run("echo back", timeout_s=10)).stdout == b"back\n"
    await link.aclose()


async def test_connecting_into_a_black_hole_ends_in_time(far: Far) -> None:
    """No answer at all is Unreachable after the login time-out, and not later."""
    far.swallow(everything=True)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="did not finish logging in within 3 s"):
        await far.link(**QUICK).connect()

    assert time.monotonic() - started < 6
    far.swallow(everything=False)


async def test_a_short_black_hole_loses_nothing(far: Far) -> None:
    """Silence shorter than the keep-alive's patience is survived by the same connection: no byte lost or doubled."""
    link = far.link(keepalive_s=5, keepalive_max=4)
    await link.connect()
    reader, writer = await link.open_stream("i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done")
    got = await reader.read(16)
    far.swallow(everything=True)
    await asyncio.sleep(1)
    far.swallow(everything=False)
    while data := await asyncio.wait_for(reader.read(65536), 20):
        got += data

    assert got.split() == [str(n).encode() for n in range(200)]
    writer.close()
    await link.aclose()


async def test_what_was_detached_on_the_node_outlives_a_cut(far: Far, tmp_path: Path) -> None:
    """A cut ends the connection at once; a detached process goes on and is found again after reconnecting."""
    link = far.link(**QUICK)
    await link.connect()
    script = f"setsid sh -c 'echo $$ >{tmp_path}/pid; exec sleep 30' </dev/null >/dev/null 2>&1 &"
    await link.run(script, timeout_s=10)
    await link.run(f"while [ ! -s {tmp_path}/pid ]; do sleep 0.02; done", timeout_s=10)
    cut(far.sshd)
    assert await asyncio.wait_for(link.wait_closed(), 10)

    await link.connect()
    assert (await link.run(f"kill -0 $(cat {tmp_path}/pid) && echo lives", timeout_s=10)).stdout == b"lives\n"
    await link.run(f"kill $(cat {tmp_path}/pid)", timeout_s=10)
    await link.aclose()


async def test_abort_in_a_black_hole_does_not_wait(far: Far) -> None:
    """`abort` returns at once and ends what waits, however silent the node is."""
    link = far.link(keepalive_s=60)
    await link.connect()
    reader, _ = await link.open_stream("exec cat")
    reading = asyncio.create_task(reader.read(1))
    far.swallow(everything=True)
    started = time.monotonic()
    link.abort()
    await asyncio.wait([reading], timeout=5)

    assert reading.done()
    assert time.monotonic() - started < 1
    reading.exception()
    far.swallow(everything=False)
