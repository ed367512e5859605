"""The shared connection: one search for many callers, a failure that is remembered, calls that are not cut."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.config import folders
from jupyter_gpumarket.errors import BrokerUnavailable
from jupyter_gpumarket.server.door import MAX_WAITS, Door
from tests.broker.running import brokers_of, end_processes


def door_to(home: Path, *, start: bool) -> Door:
    return Door(home=str(home), timeout_s=30, start=start)


async def test_a_door_that_must_not_start_a_broker_starts_none(tmp_path: Path) -> None:
    """The watch looks through such a door."""
    door = door_to(tmp_path, start=False)
    with pytest.raises(BrokerUnavailable):
        await door.call(lambda broker: broker.health())

    assert brokers_of(folders({"JUPYTER_GPUMARKET_HOME": str(tmp_path)})) == []
    await door.aclose()


async def test_a_failure_is_told_to_all_who_ask_at_once_and_soon_after(tmp_path: Path) -> None:
    """Twenty callers cost one try; who asks right after is told the same without another."""
    where = folders({"JUPYTER_GPUMARKET_HOME": str(tmp_path)})
    other = {"url": "http://127.0.0.1:9", "token": "t", "pid": os.getpid(), "api_version": 99}
    where.broker_file.write_bytes(msgspec.json.encode(other))
    door = door_to(tmp_path, start=True)
    first = await asyncio.gather(*(door.call(lambda b: b.health()) for _ in range(20)), return_exceptions=True)
    where.broker_file.unlink()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as again:
        await door.call(lambda broker: broker.health())

    assert {type(error) for error in first} == {BrokerUnavailable}
    assert len({id(error) for error in first}) == 1
    assert again.value is first[0]
    assert time.monotonic() - began < 1
    await door.aclose()


@pytest.mark.slow
async def test_one_callers_failure_does_not_cut_the_others_calls(tmp_path: Path) -> None:
    """A call in flight on a connection that somebody else gave up is answered."""
    door = door_to(tmp_path, start=True)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> int:
        async def ask(broker) -> int:  # type: ignore[no-untyped-def]
            inside.set()
            await leave.wait()
            return (await broker.health()).pid

        return await door.call(ask)

    async def fail(broker) -> None:  # type: ignore[no-untyped-def]
        raise BrokerUnavailable("did not answer in time")

    try:
        waiting = asyncio.create_task(slow())
        await inside.wait()
        with pytest.raises(BrokerUnavailable):
            await door.call(fail)
        leave.set()

        assert await waiting > 0
        assert (await door.call(lambda broker: broker.health())).pid == await waiting
    finally:
        await door.aclose()
        end_processes(door.folders)


def test_only_so_many_may_wait_at_once() -> None:
    """Pages that wait leave connections for those that ask."""
    door = door_to(Path("/nowhere"), start=False)
    held = [door.waiting() for _ in range(MAX_WAITS + 1)]
    allowed = [one.__enter__() for one in held]
    for one in held:
        one.__exit__(None, None, None)
    with door.waiting() as again:
        pass

    assert allowed == [True] * MAX_WAITS + [False]
    assert again
