"""The end of a run, and what must be on the disk before anybody sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.api import RunRequest
from jupyter_gpumarket.cluster.records import RunState
from jupyter_gpumarket.cluster.runs import Run, RunStore
from jupyter_gpumarket.models import RunStatus


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return RunStore(tmp_path / "runs").create(RunRequest(run_id="run-1", lease_id="lease-1", code="pass"), 1)[0]


def on_disk(run: Run) -> RunState:
    return msgspec.json.decode((run.folder / "state.json").read_bytes(), type=RunState)


async def test_the_end_is_seen_only_when_the_facts_about_it_are_on_the_disk(run: Run) -> None:
    """While they are being forced there, neither doors nor a later process see the end; then both do."""
    is_forced = asyncio.Event()

    async def facts() -> None:
        await is_forced.wait()

    ending = asyncio.create_task(run.end(facts, status=RunStatus.OK, is_settled=True))
    async with asyncio.timeout(10):
        while not (run.folder / "state.end").exists():
            await asyncio.sleep(0.01)
    assert not run.state.has_ended
    assert not on_disk(run).has_ended
    is_forced.set()
    await ending
    assert run.view().status is RunStatus.OK
    assert on_disk(run) == run.state


async def test_an_end_that_cannot_be_kept_is_not_shown(run: Run) -> None:
    """The disk fails under the facts: the run has not ended, and can be ended again."""

    async def failing() -> None:
        raise OSError(28, "No space left on device")

    async def working() -> None:
        return

    with pytest.raises(OSError, match="No space"):
        await run.end(failing, status=RunStatus.OK)
    assert not run.state.has_ended
    assert not on_disk(run).has_ended
    await run.end(working, status=RunStatus.OK)
    assert on_disk(run).status is RunStatus.OK
