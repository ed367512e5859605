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
from jupyter_gpumarket.wire.door import BlobFetched, FetchBlob, Route


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


async def test_a_node_that_speaks_ill_of_another_one_keeps_only_itself_from_it() -> None:
    """What one got was wrong, it says: it gets the input from here, and the next one asks the other all the same."""
    asked: list[str] = []

    async def share(_holder: str, _sha256: str, guest: str) -> bool:
        asked.append(guest)
        return True

    doors: Any = SimpleNamespace(
        way=lambda _one, _other: Way(is_direct=True),
        is_looking=lambda _one, _other: False,
        route=lambda _one, _other: Route(name="a", address="10.0.0.4", port=40_000),
        share=share,
        unshare=lambda *_: None,
    )
    members = {name: node(name) for name in "abc"}
    members["a"].node.talk.inputs.has = lambda _: True
    turns = Staging(doors, members)
    for name, is_wrong in (("b", True), ("c", False)):

        def order(fetch: FetchBlob, name: str = name, is_wrong: bool = is_wrong) -> None:
            error = "another hash" if is_wrong else ""
            report = BlobFetched(number=fetch.number, sha256=fetch.sha256, have=0, error=error, is_wrong=is_wrong)
            asyncio.get_running_loop().call_soon(turns.heard, name, report)

        members[name].node.talk.order = order
        async with asyncio.timeout(10), turns.turn(name, "f" * 64, BULK_BYTES) as is_there:
            assert is_there is not is_wrong
    assert asked == ["b", "c"]
