"""`--map` of many short items beside joblib on the same cores, in the same run.

    python -m tests.benchmarks.bench_map [items] [ms per item]

One node of a pool on this machine with as many slots as there are cores: so everything of ours, the broker, the cluster
process, the link and the agent, works on the cores that it is measured against. Workers of both are warm after round 1.
Figures depend on the machine; the ratio is what counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from joblib import Parallel, delayed

from jupyter_gpumarket.client import connect
from jupyter_gpumarket.notebook.extension import load
from tests.benchmarks.stands import until
from tests.pool_fixtures import RunningPool

ROUNDS = 3


def busy(ms: float) -> int:
    """So much time of a processor."""
    end = time.thread_time() + ms / 1000
    count = 0
    while time.thread_time() < end:
        count += 1
    return count


def main(items: int, ms: float) -> None:
    """Measure and print."""
    slots = os.cpu_count() or 1
    with ExitStack() as stack:
        top = Path(tempfile.mkdtemp(prefix="gpb", dir="/tmp"))
        stack.callback(shutil.rmtree, top, ignore_errors=True)
        pool = RunningPool(top)
        stack.callback(pool.stop)
        pool.start_registry()
        pool.add_host()
        os.environ.update(JUPYTER_GPUMARKET_HOME=str(pool.home), JUPYTER_GPUMARKET_NOTEBOOK="bench.ipynb")
        stack.callback(give_back, pool)
        shell = InteractiveShell.instance()
        load(shell)
        shell.user_ns.update(items=list(range(items)), busy=busy, ms=ms)
        ours: list[float] = []
        theirs: list[float] = []
        with Parallel(n_jobs=slots) as parallel:
            for _ in range(ROUNDS):
                ours.append(timed(lambda: by_map(shell, slots)))
                theirs.append(timed(lambda: parallel(delayed(busy)(ms) for _ in range(items))))
    ideal = items * ms / 1000 / slots
    print(f"{items} items of {ms:g} ms on {slots} cores, ideal {ideal:.2f} s; first rounds left out")
    for name, times in (("--map", ours), ("joblib", theirs)):
        print(f"{name:8} median {statistics.median(times[1:]):6.2f} s   first {times[0]:6.2f} s")
    print(f"ratio, joblib's time by ours: {statistics.median(theirs[1:]) / statistics.median(ours[1:]):.2f}")


def by_map(shell: Any, slots: int) -> None:
    """One cell, to its bound results."""
    with contextlib.redirect_stdout(io.StringIO()):
        shell.run_cell_magic("gpu", f"--gpu none --map item=items -i busy,ms -o results --slots {slots}", "busy(ms)")
    assert len(shell.user_ns["results"]) == len(shell.user_ns["items"])


def timed(work: Any) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def give_back(pool: RunningPool) -> None:
    """Release what the benchmark rented."""
    with connect(pool.folders, start=False) as client:
        for view in client.leases():
            client.release(view.lease.lease_id, "the benchmark is over")
        until(lambda: not client.leases(), "everything is released")
        client.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)
