"""Where a cluster's dashboard is: found through the broker, which may answer slowly."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpumarket.server.dashboards import Dashboards


async def test_a_slow_answer_about_one_cluster_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are found meanwhile; who asks for the same one waits for the one answer."""
    asked: list[str] = []
    arrived = asyncio.Event()

    async def ask(_dashboards: Dashboards, _broker: object, name: str) -> str:
        asked.append(name)
        if name == "slow":
            await arrived.wait()
        return f"127.0.0.1:{len(asked)}"

    monkeypatch.setattr(Dashboards, "_ask", ask)
    door: Any = SimpleNamespace(call=lambda asking: asking(None))
    dashboards = Dashboards(door)
    slow = [asyncio.create_task(dashboards.find("slow")) for _ in range(2)]
    async with asyncio.timeout(10):
        while "slow" not in asked:
            await asyncio.sleep(0)
        assert await dashboards.find("quick") == "127.0.0.1:2"
        arrived.set()
        assert await asyncio.gather(*slow) == ["127.0.0.1:2"] * 2
    assert asked == ["slow", "quick"]
