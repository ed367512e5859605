"""Bulk data in and out of a node, beside scp with the same cipher, same server, same run; then with 40 ms on the way.

    python -m tests.benchmarks.bench_data [MB]

In: a file here (`gm.put` of its path) until a cell on the node has it as a file. Object: the same from an array in this
process's memory, which is written here first. Out: from the variable in the session's memory there to the checked file
here. Each of ours has its encoding, its hashes on both ends and the check of the result in it, which scp has not; what
`sha256sum` of one more process at each end would add to scp is told beside it. Every transfer writes a new file, scp's
too: on virtual machines memory not touched before costs more than everything else. With delay, the line carries
400 Mbit/s, and its rate is what plain TCP carries over the same way.
Figures depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from jupyter_gpumarket.api import InputRef, RunRequest
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.models import ENDED_RUNS, NodeAddress, RunStatus
from jupyter_gpumarket.notebook.data import Data, DataStore
from tests.benchmarks.bench_link import openssh
from tests.benchmarks.delayed import ONE_WAY_S, Delayed
from tests.benchmarks.stands import Background, OnCluster
from tests.cluster.test_on_a_real_node import LEASE

# A good line of an office: 400 Mbit/s.
LINE_BYTES_S = 50e6
ROUNDS = 3


class FarCluster(OnCluster):
    """The same node behind a way of 40 ms."""

    def address(self) -> NodeAddress:
        self.loop = Background()
        way = Delayed(self.node.sshd.host, self.node.sshd.port, bytes_s=LINE_BYTES_S)
        return replace(self.node.sshd.address(), host="127.0.0.1", port=self.loop.run(way.listen()))


def main(megabytes: int) -> None:
    """Measure and print."""
    for kind in (OnCluster, FarCluster):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
            stand = kind(folder)
            stack.enter_context(stand)
            if isinstance(stand, FarCluster):
                line = measure(lambda: over_line(stand.loop, megabytes))  # noqa: B023 - called at once
                theirs = {"in": [line], "object": [line], "out": [line]}
            else:
                theirs = {"in": [], "object": [], "out": []}
            ours = compared(stand, megabytes, theirs)
            hashing = measure(lambda: hashed(folder / "content"))  # noqa: B023 - called at once
        what = "scp" if kind is OnCluster else f"the line with {2000 * ONE_WAY_S:.0f} ms"
        for way in ("in", "object", "out"):
            ours_s, theirs_s = statistics.median(ours[way]), statistics.median(theirs[way])
            with_hashes = f"   with sha256sum at both ends {(theirs_s + 2 * hashing) / ours_s:.2f}"
            print(
                f"{megabytes} MB {way:6} ours {megabytes / ours_s:7.1f} MB/s   {what} {megabytes / theirs_s:7.1f} MB/s"
                f"   ratio {theirs_s / ours_s:.2f}{with_hashes if kind is OnCluster else ''}",
                flush=True,
            )


def compared(stand: OnCluster, megabytes: int, theirs: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of each round of ours; those of scp are added to what is given, unless a figure is there already."""
    folder, ours = stand.folder, {"in": [], "object": [], "out": []}
    with_scp = not theirs["in"]
    for number in range(ROUNDS):
        content = os.urandom(megabytes * 10**6)
        (folder / f"file{number}").write_bytes(content)
        ours["in"].append(measure(lambda: bring_file(stand, folder / f"file{number}")))  # noqa: B023 - called at once
        content = content[::-1]
        (folder / "content").write_bytes(content)
        array = np.frombuffer(content, dtype="uint8")
        ours["object"].append(measure(lambda: bring_in(stand, array)))  # noqa: B023
        run(stand, f"import numpy as np\nout = np.full({megabytes * 10**6}, {number}, dtype='uint8')")
        ours["out"].append(measure(lambda: run(stand, "pass", outputs=("out",))))
        if with_scp:
            theirs["in"].append(measure(lambda: scp(stand, f"{folder}/content", f"HOST:{folder}/up{number}")))  # noqa: B023
            theirs["object"].append(theirs["in"][-1])
            theirs["out"].append(measure(lambda: scp(stand, f"HOST:{folder}/content", f"{folder}/down{number}")))  # noqa: B023
    return ours


def over_line(loop: Background, megabytes: int) -> None:
    """The same bytes by plain TCP over a way with the same delay, to a program that throws them away."""
    sink = socket.create_server(("127.0.0.1", 0))
    sinking = threading.Thread(target=swallow, args=(sink,))
    sinking.start()
    way = Delayed("127.0.0.1", sink.getsockname()[1], bytes_s=LINE_BYTES_S)
    with socket.create_connection(("127.0.0.1", loop.run(way.listen()))) as sender:
        piece = bytes(10**6)
        for _ in range(megabytes):
            sender.sendall(piece)
        sender.shutdown(socket.SHUT_WR)
        sinking.join()
    sink.close()


def swallow(sink: socket.socket) -> None:
    """Take one connection's bytes to their end."""
    taken, _ = sink.accept()
    with taken:
        while taken.recv(1 << 20):
            pass


def bring_in(stand: OnCluster, array: Any) -> None:
    """An array, until a cell has seen it."""
    bring(stand, store(stand).put(array))


def bring_file(stand: OnCluster, path: Path) -> None:
    """A file, until a cell has seen it."""
    bring(stand, store(stand).put(path))


def store(stand: OnCluster) -> DataStore:
    """Where this process keeps the bytes of objects."""
    folder = private_folder(stand.folder / "home-here")
    return DataStore(Folders(folder, folder))


def bring(stand: OnCluster, handle: Data) -> None:
    """What a handle stands for, as a file of the node."""
    stand.doors.give_file(handle.path, handle.sha256)
    ref = InputRef(name="path", codec="file:content", sha256=handle.sha256, size=handle.size)
    run(stand, "pass", inputs=(ref,))


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


def hashed(path: Path) -> None:
    """What one end would have to do beside scp to be sure of the bytes."""
    subprocess.run(["sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL)


def measure(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
