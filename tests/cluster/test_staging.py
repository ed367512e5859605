"""Who brings an input to whom: the nodes are played."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpumarket.cluster import staging
from jupyter_gpumarket.cluster.direct_plan import Way
from jupyter_gpumarket.cluster.staging import Staging
from jupyter_gpumarket.wire.bulk import BULK_BYTES


def node(name: str) -> Any:
    inputs = SimpleNamespace(has=lambda _: False)
    return SimpleNamespace(name=name, is_up=True, node=SimpleNamespace(talk=SimpleNamespace(inputs=inputs)))


async def test_a_node_that_never_finishes_holds_up_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for the input that it gets, as long as that may take, and then get it from here themselves."""
    monkeypatch.setattr(staging, "FETCH_S", 0.3)
    monkeypatch.setattr(staging, "SLOWEST_BYTES_S", 10**12)
    monkeypatch.setattr(staging, "TURN_S", 0.02)
    doors: Any = SimpleNamespace(way=lambda _one, _other: Way(is_direct=True), is_looking=lambda _one, _other: False)
    turns = Staging(doors, {"a": node("a"), "b": node("b")})
    async with contextlib.AsyncExitStack() as never_done:
        assert await never_done.enter_async_context(turns.turn("a", "f" * 64, BULK_BYTES)) is False
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(10), turns.turn("b", "f" * 64, BULK_BYTES) as is_there:
            assert not is_there
        assert asyncio.get_running_loop().time() - began_s > 0.25
