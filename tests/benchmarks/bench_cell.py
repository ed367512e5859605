"""A warm cell that does nothing, by our means and by others', on a node on this machine.

    python -m tests.benchmarks.bench_cell [rounds]

Every round executes one cell at each stand, one after another, so that whatever else the machine does meets all of
them alike. Figures depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.stands import IPyParallel, OnAgent, OnCluster, PlainKernel, Stand, WholePath

STANDS: tuple[type[Stand], ...] = (PlainKernel, IPyParallel, OnAgent, OnCluster, WholePath)
BASELINE = PlainKernel.name
WARM_UP = 3


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gpb", dir="/tmp") as scratch, ExitStack() as stack:
        stands = []
        for number, kind in enumerate(STANDS):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            stands.append(stack.enter_context(kind(folder)))
        times = measured(stands, rounds)
    print(machine())
    baseline = statistics.median(times[BASELINE])
    print(f"{'one warm cell, median':28} {'ms':>8} {'p90 ms':>8} {'ratio':>6}   of {rounds}, interleaved")
    for name, seconds in times.items():
        median, late = statistics.median(seconds), statistics.quantiles(seconds, n=10)[-1]
        print(f"{name:28} {median * 1000:8.1f} {late * 1000:8.1f} {median / baseline:6.2f}")


def measured(stands: list[Stand], rounds: int) -> dict[str, list[float]]:
    """Seconds of each cell, by stand."""
    times: dict[str, list[float]] = {stand.name: [] for stand in stands}
    for number in range(WARM_UP + rounds):
        for stand in stands:
            started = time.perf_counter()
            stand.cell()
            if number >= WARM_UP:
                times[stand.name].append(time.perf_counter() - started)
    return times


def machine() -> str:
    """What the figures were measured on."""
    load = "/".join(f"{number:.1f}" for number in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load}, Python {platform.python_version()}, {platform.platform(terse=True)}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
