"""From nothing to the first output of a remote cell, by phase, beside the start of a plain kernel on this machine.

    python -m tests.benchmarks.bench_cold [rounds]

Each round begins with an empty home and ends with everything given back: a pool of one host, the broker, a lease
through all its phases, a first cell. Figures depend on the machine; the ratio is what counts.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.manager import KernelManager

from jupyter_gpumarket.api import LeaseView, RunRequest, RunWish
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.models import ENDED_STATES, LeaseRequest, LeaseState, OfferQuery, Owner
from jupyter_gpumarket.notebook.renting import PHASE_WORDS
from tests.benchmarks.bench_cell import machine
from tests.benchmarks.stands import PATIENCE_S, until
from tests.pool_fixtures import RunningPool

PLAIN = "a plain kernel's first output"
TOTAL = "all of it"


def main(rounds: int) -> None:
    """Measure and print."""
    phases: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, seconds in [(PLAIN, plain()), *cold()]:
            phases.setdefault(name, []).append(seconds)
    print(machine())
    for name, times in phases.items():
        print(f"{name:32} {statistics.median(times):8.2f} s   median of {rounds}")
    print(f"ratio {statistics.median(phases[TOTAL]) / statistics.median(phases[PLAIN]):.1f}")


def plain() -> float:
    """Seconds from nothing to the first output of an ipykernel here."""
    started = time.perf_counter()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE_S)
    client.execute_interactive("print(1)", timeout=PATIENCE_S, output_hook=lambda _: None)
    took = time.perf_counter() - started
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return took


def cold() -> list[tuple[str, float]]:
    """One round: each phase and its seconds."""
    top = Path(tempfile.mkdtemp(prefix="gpc", dir="/tmp"))  # short: sockets of leases live below it
    pool = RunningPool(top)
    found: list[tuple[str, float]] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        found.append((name, time.perf_counter() - began))

    started = time.perf_counter()
    try:
        with phase("pool: registry"):
            pool.start_registry()
        with phase("pool: a host listed"):
            pool.add_host()
        with phase("broker"):
            client = connect(pool.folders)
        try:
            found.extend(rented(client))
            found.append((TOTAL, time.perf_counter() - started))
        finally:
            give_back(client)
    finally:
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)
    return found


def rented(client: Client) -> list[tuple[str, float]]:
    """Rent, wait until it is ready, run the first cell."""
    request = LeaseRequest(request_id="cold", query=OfferQuery(gpu="none"), budget_nusd=10**9, max_s=3600)
    view = client.wish(request)
    while view.lease.state is not LeaseState.READY:
        assert view.lease.state not in ENDED_STATES, view.lease.reason
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=10)
    found = phases_of(view)
    began = time.perf_counter()
    lease_id = view.lease.lease_id
    client.start_run(RunWish(run_id="cold", lease_id=lease_id, session="main", owner=Owner()))
    cluster = client.cluster(lease_id)
    cluster.run(RunRequest(run_id="cold", lease_id=lease_id, code="print(1)"))
    end = time.monotonic() + PATIENCE_S
    while not (batch := cluster.messages("cold", 0, 5)).messages:
        assert time.monotonic() < end, batch.run
    found.append(("first cell: its first output", time.perf_counter() - began))
    return found


def phases_of(view: LeaseView) -> list[tuple[str, float]]:
    """How long the lease was in each state on its way to ready."""
    entered = sorted((at_ms, state) for state, at_ms in view.lease.phases.items() if state in set(PHASE_WORDS))
    return [
        (f"lease: {PHASE_WORDS[LeaseState(state)]}", (entered[place + 1][0] - at_ms) / 1000)
        for place, (at_ms, state) in enumerate(entered[:-1])
    ]


def give_back(client: Client) -> None:
    """Release everything and end the broker."""
    for view in client.leases():
        client.release(view.lease.lease_id, "the benchmark is over")
    until(lambda: not client.leases(), "everything is released")
    client.shutdown()
    client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
