"""The queue of facts: nothing lost, nothing renumbered, whatever happens to the process between two writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_gpumarket.api import RunEnded, RunStarted
from jupyter_gpumarket.cluster import facts
from jupyter_gpumarket.cluster.facts import FactQueue
from jupyter_gpumarket.models import RunStatus

from .conftest import FakeBroker, until


def fact(n: int) -> RunStarted:
    return RunStarted(lease_id="lease-1", at_ms=n, run_id=f"run-{n}")


async def drained(queue: FactQueue) -> None:
    task = asyncio.create_task(queue.deliver())
    await until(lambda: queue.waiting == 0)
    task.cancel()
    queue.close()


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[FakeBroker]:
    broker = FakeBroker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


async def test_facts_survive_the_process_and_keep_their_numbers(stopped: FakeBroker, tmp_path: Path) -> None:
    """Over several lives of the queue, each fact is taken once, in order, without a gap in the numbers."""
    for life in range(5):
        queue = FactQueue(tmp_path, "cluster-1")
        for n in range(3):
            queue.put(fact(life * 3 + n))
        if life % 2:
            await drained(queue)
        else:
            queue.close()

    queue = FactQueue(tmp_path, "cluster-1")
    await drained(queue)
    assert [found.at_ms for found in stopped.facts] == list(range(15))
    assert len({batch.queue for batch in stopped.batches}) == 1


async def test_half_a_line_is_cut_off(stopped: FakeBroker, tmp_path: Path) -> None:
    """A write that a crash tore in two was never acknowledged, and does not spoil the file."""
    queue = FactQueue(tmp_path, "cluster-1")
    queue.put(fact(0))
    queue.close()
    with (tmp_path / "facts.jsonl").open("ab") as file:
        file.write(b'{"fact": "run_sta')
    queue = FactQueue(tmp_path, "cluster-1")
    queue.put(fact(1))
    await drained(queue)

    assert [found.at_ms for found in stopped.facts] == [0, 1]


async def test_what_was_taken_but_not_noted_is_sent_again_under_its_old_number(
    stopped: FakeBroker, tmp_path: Path
) -> None:
    """A lost note costs a repetition that the broker recognises, nothing else."""
    queue = FactQueue(tmp_path, "cluster-1")
    for n in range(4):
        queue.put(fact(n))
    await drained(queue)
    (tmp_path / "facts.taken").unlink()
    queue = FactQueue(tmp_path, "cluster-1")
    queue.put(fact(4))
    await drained(queue)

    assert stopped.batches[-1].first == 1
    assert [found.at_ms for found in stopped.facts] == list(range(5))


async def test_the_file_does_not_grow_for_ever(stopped: FakeBroker, tmp_path: Path) -> None:
    """After enough deliveries what was taken is dropped from the file, and the numbers go on."""
    queue = FactQueue(tmp_path, "cluster-1")
    for n in range(facts.COMPACT_AFTER + 10):
        queue._waiting.append(fact(n))
    queue._arrived.set()
    await drained(queue)
    queue = FactQueue(tmp_path, "cluster-1")
    queue.put(fact(9999))
    await drained(queue)

    assert (tmp_path / "facts.jsonl").stat().st_size < 1000
    assert stopped.facts[-1].at_ms == 9999


async def test_the_beginning_of_a_short_cell_travels_with_its_end(stopped: FakeBroker, tmp_path: Path) -> None:
    """A begin waits a moment for its end, not longer: alone it is delivered as well."""
    queue = FactQueue(tmp_path, "cluster-1")
    delivering = asyncio.create_task(queue.deliver())
    queue.note(fact(1))
    await asyncio.sleep(0)
    queue.note(RunEnded(lease_id="lease-1", at_ms=2, run_id="run-1", status=RunStatus.OK))
    await queue.sync()
    await until(lambda: queue.waiting == 0)
    queue.note(fact(3))
    await until(lambda: queue.waiting == 0)
    delivering.cancel()
    queue.close()

    assert [len(batch.facts) for batch in stopped.batches] == [2, 1]
