"""Bulk data in and out of a node, beside scp with the same cipher, same server, same run.

    python -m tests.benchmarks.bench_data [MB]

In: from this process through the cluster process into the variable's file on the node. Out: from the encoded variable
there to the checked file here. Each of ours has its hashes on both ends and the check of the result in it, which scp
has not. Figures depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from jupyter_gpumarket.api import InputRef, RunRequest
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.models import ENDED_RUNS, RunStatus
from jupyter_gpumarket.notebook.data import DataStore
from tests.benchmarks.bench_link import openssh
from tests.benchmarks.stands import OnCluster
from tests.cluster.test_on_a_real_node import LEASE

ROUNDS = 3


def main(megabytes: int) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        stand = OnCluster(folder)
        stack.enter_context(stand)
        ways = {"in": [], "out": [], "scp in": [], "scp out": []}
        for number in range(ROUNDS):
            content = os.urandom(megabytes * 10**6)
            (folder / "content").write_bytes(content)
            ways["in"].append(measure(lambda: bring_in(stand, content)))  # noqa: B023 - called at once
            ways["scp in"].append(measure(lambda: scp(stand, str(folder / "content"), f"HOST:{folder}/up")))
            ways["out"].append(measure(lambda: bring_out(stand, megabytes, number)))  # noqa: B023
            ways["scp out"].append(measure(lambda: scp(stand, f"HOST:{folder}/content", str(folder / "down"))))
    for way in ("in", "out"):
        ours, theirs = min(ways[way]), min(ways[f"scp {way}"])
        print(
            f"{megabytes} MB {way:4} ours {megabytes / ours:7.1f} MB/s   scp {megabytes / theirs:7.1f} MB/s   "
            f"ratio {theirs / ours:.2f}"
        )


def bring_in(stand: OnCluster, content: bytes) -> None:
    """An input, until a cell has seen it."""
    folder = private_folder(stand.folder / "home-here")
    handle = DataStore(Folders(folder, folder)).keep("npy", content)
    stand.doors.give_file(handle.path, handle.sha256)
    ref = InputRef(name="path", codec="file:content", sha256=handle.sha256, size=handle.size)
    run(stand, "pass", inputs=(ref,))


def bring_out(stand: OnCluster, megabytes: int, number: int) -> None:
    """An output of plain bytes in an array, until it is here and checked."""
    run(stand, f"import numpy as np\nout = np.full({megabytes * 10**6}, {number}, dtype='uint8')", outputs=("out",))


def run(stand: OnCluster, code: str, **fields: object) -> None:
    """One cell to its end."""
    run_id = f"run-{os.urandom(4).hex()}"
    view = stand.doors.run(RunRequest(run_id=run_id, lease_id=LEASE, code=code, **fields))  # type: ignore[arg-type]
    while view.status not in ENDED_RUNS:
        view = stand.doors.messages(run_id, after=10**9, wait_s=5).run
    assert view.status is RunStatus.OK, view
    assert not any(output.error for output in view.outputs), view.outputs


def scp(stand: OnCluster, *arguments: str) -> None:
    """scp over the same server."""
    asyncio.run(openssh(stand.node.sshd, "scp", "-O", *arguments))


def measure(work: object) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
