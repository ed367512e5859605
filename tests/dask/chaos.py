"""Dask under chaos: workers that live two seconds on average, and a sum that has to come out right all the same.

    python -m tests.dask.chaos [rounds] [head]

Four nodes in network namespaces, one worker each. Without `head`, workers are killed, and the scheduler lives on. With
it the scheduler is killed at random moments, and the session, which keeps what it has got so far, submits the rest to
the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
import psutil

from jupyter_gpumarket.api import RunView
from tests.dask.conftest import DaskCluster, running

MEAN_LIFE_S = 2.0
WORKER = "distributed.cli.dask_worker"
SCHEDULER = "distributed.cli.dask_scheduler"
ITEMS = 80
# 64 pieces that all depend on each other twice over; each takes a moment, so that workers die in the middle of it.
WORK = """
import time
import dask
import dask.array as da
import numpy as np
client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 10_000))

def slowly(piece):
    time.sleep(0.02)
    return piece

with dask.config.set({"array.rechunk.method": "tasks"}):
    x = da.arange(640 * 640, chunks=640 * 80).reshape((640, 640)).rechunk((80, 80)).map_blocks(slowly)
    y = (x + x.T).rechunk((640, 40)).map_blocks(slowly)
    print(int((y.rechunk((40, 640)).sum(axis=0) * np.arange(640)).sum().compute()))
"""


# What was not got before is submitted; each run of an item leaves a mark. With Dask's own `with_results` a result that
# is under way when the scheduler dies may be waited for in vain.
REST = """
import os, time
from distributed import as_completed
done = globals().get("done", {{}})

def slowly(k, marks={marks!r}):
    open(f"{{marks}}/{{k}}-{{os.urandom(4).hex()}}", "w").close()
    time.sleep(0.1)
    return k * k

futures = {{client.submit(slowly, k, pure=False): k for k in range({items}) if k not in done}}
for future in as_completed(futures):
    try:
        done[futures[future]] = future.result()
    except Exception:
        pass  # lost with its scheduler
print(len(done), sum(done.values()))
print(sorted(done))
"""


def right_value() -> int:
    """What `WORK` has to print."""
    import numpy as np

    x = np.arange(640 * 640).reshape(640, 640)
    return int(((x + x.T).sum(axis=0) * np.arange(640)).sum())


def is_right_in(text: str) -> bool:
    """Whether a cell printed the right value at last; before it Dask may have warned of what it had to do again."""
    return text.split()[-1:] == [str(right_value())]


async def kill_workers(cluster: DaskCluster, rng: random.Random, deaths: list[str], most: int) -> None:
    """Kill each worker an exponentially distributed time after it came up, `most` in all."""

    async def one(number: int) -> None:
        node = cluster.nodes[number]
        while len(deaths) < most:
            living = [w for w in (await cluster.view()).workers if w.lease_id == node.lease_id and w.state == "running"]
            if not living or living[0].name in deaths:
                await asyncio.sleep(0.1)
                continue
            await asyncio.sleep(rng.expovariate(1 / MEAN_LIFE_S))
            deaths.append(living[0].name)
            for process in await asyncio.to_thread(node.dask, WORKER):
                with contextlib.suppress(psutil.Error):
                    process.kill()

    await asyncio.gather(*(one(number) for number in range(len(cluster.nodes))))


async def round_of(cluster: DaskCluster, *, seed: int, timeout_s: float, most: int) -> tuple[str, RunView, int]:
    """One computation while workers die; what it printed, how it ended, how many died."""
    deaths: list[str] = []
    killer = asyncio.create_task(kill_workers(cluster, random.Random(seed), deaths, most))
    try:
        text, view = await cluster.run(WORK, timeout_s=timeout_s)
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
    return text, view, len(deaths)


async def kill_scheduler(cluster: DaskCluster, after_s: float) -> int:
    """Kill the scheduler so long after now; its generation."""
    view = await cluster.view()
    head = next(node for node in cluster.nodes if node.lease_id == view.head)
    await asyncio.sleep(after_s)
    for process in await asyncio.to_thread(head.dask, SCHEDULER):
        with contextlib.suppress(psutil.Error):
            process.kill()
    return view.generation


def runs_of(marks: Path) -> Counter[int]:
    return Counter(int(path.name.split("-")[0]) for path in marks.iterdir())


async def round_of_heads(cluster: DaskCluster, marks: Path, *, seed: int, kills: int) -> tuple[str, list[int]]:
    """One computation over several schedulers: what its last cell printed, and what ran again though it was had.

    What was computed and not yet fetched is lost with the scheduler, and runs again.
    """
    rng = random.Random(seed)
    await cluster.run("done = {}")
    had: dict[int, int] = {}
    for _ in range(kills):
        head = (await cluster.view()).head
        killer = asyncio.create_task(kill_scheduler(cluster, rng.uniform(0.2, 1.8)))
        text, _ = await cluster.run(REST.format(marks=str(marks), items=ITEMS), head)
        generation = await killer
        runs = runs_of(marks)
        had = {item: runs[item] for item in msgspec.json.decode(text.splitlines()[-1], type=list[int])} | had
        await cluster.until(lambda view, old=generation: view.generation > old, "another scheduler is started")  # type: ignore[misc]
        await cluster.until_workers(len(cluster.nodes))
    text, _ = await cluster.run(REST.format(marks=str(marks), items=ITEMS), head)
    runs = runs_of(marks)
    return text.splitlines()[-2], [item for item, times in had.items() if runs[item] > times]


async def main_of_heads(rounds: int) -> int:
    """The same for schedulers that die."""
    right = 0
    with tempfile.TemporaryDirectory(prefix="gmd") as scratch:
        async for cluster in running(Path(scratch), 4, is_apart=True):
            await cluster.until_workers(4)
            for seed in range(rounds):
                marks = Path(scratch) / f"marks-{seed}"
                marks.mkdir()
                began = time.monotonic()
                text, again = await round_of_heads(cluster, marks, seed=seed, kills=2)
                is_right = text.split() == [str(ITEMS), str(sum(k * k for k in range(ITEMS)))]
                is_right = is_right and not again
                right += is_right
                took = time.monotonic() - began
                repeated = sum(runs_of(marks).values()) - ITEMS
                told = "right" if is_right else f"{text} {again}"
                print(f"round {seed}: {told}, {repeated} runs repeated, {took:.1f} s", flush=True)
    print(f"{right} of {rounds} right")
    return 0 if right == rounds else 1


async def main(rounds: int) -> int:
    """Run and print; the exit code tells whether all were right."""
    right = 0
    with tempfile.TemporaryDirectory(prefix="gmd") as scratch:
        async for cluster in running(Path(scratch), 4, is_apart=True):
            await cluster.until_workers(4)
            for seed in range(rounds):
                began = time.monotonic()
                text, view, deaths = await round_of(cluster, seed=seed, timeout_s=600, most=10_000)
                is_right = is_right_in(text)
                right += is_right
                took = time.monotonic() - began
                told = "right" if is_right else text + str(view)
                print(f"round {seed}: {told}, {deaths} deaths, {took:.1f} s", flush=True)
    print(f"{right} of {rounds} right")
    return 0 if right == rounds else 1


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    sys.exit(asyncio.run(main_of_heads(wanted) if "head" in sys.argv else main(wanted)))
