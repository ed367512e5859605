"""What the server does when the broker ends."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import pytest

from tests.broker.running import brokers_of
from tests.server.running import PATIENCE_S, Server, Told, folders_of, get


@pytest.mark.slow
async def test_a_broker_that_died_is_told_and_started_by_the_next_request_only(server: Server) -> None:
    """After kill -9 the pages are told; watching starts no broker; the next request does, and that is told too."""
    where = folders_of(server)
    async with httpx.AsyncClient(**server.asking) as door:
        told = Told(await server.events())
        before = (await get(door, "/health"))[1]["pid"]
        # Other tests may have used this server before: then it has told long ago that the broker is up.
        async with asyncio.timeout(PATIENCE_S):
            while "gpumarket_broker_up 1.0" not in (await door.get("/metrics")).text:
                await asyncio.sleep(0.1)

        os.kill(before, signal.SIGKILL)
        down = await told.until("broker", up=False)
        seen = len(told.all)
        assert down["message"]
        assert brokers_of(where) == []
        assert "gpumarket_broker_up 0.0" in (await door.get("/metrics")).text

        answers = await asyncio.gather(*(get(door, "/health") for _ in range(12)))
        assert {status for status, _ in answers} == {200}
        after = {content["pid"] for _, content in answers}
        assert len(after) == 1, "many at once start one broker"
        assert before not in after
        await told.until("broker", after=seen, up=True)
        told.close()
