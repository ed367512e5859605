"""Bringing output variables over: what is started for one, and ended when nobody wants it any more."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from jupyter_gpumarket.cluster import outputs


async def test_a_checker_that_comes_too_late_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the contact ends while it is being started, it is closed as soon as it is there: nobody else would do it."""
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def __init__(self, _codec: str, _part: Path) -> None:
            begun.set()
            go_on.wait(10)

        def close(self) -> None:
            closed.set()

    monkeypatch.setattr(outputs, "Checker", Slow)
    starting = asyncio.create_task(outputs._ready_checker("npy", tmp_path))
    assert await asyncio.to_thread(begun.wait, 10)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not closed.is_set()

    go_on.set()

    assert await asyncio.to_thread(closed.wait, 10)
