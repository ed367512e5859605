"""Dask on nodes that reach each other only through the user's side, beside plain Dask and plain SSH, in the same run.

    python -m tests.benchmarks.bench_dask [tasks] [MB]

Three nodes in network namespaces, a worker with one thread each (needs root and nft). Bytes go from node to node as a
Dask dependency, with Dask's own TLS and pickling at both ends, and as they are, which is what the OpenSSH hairpin
carries. Figures depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

from jupyter_gpumarket.api import Attach
from tests.benchmarks.delayed import Delayed
from tests.dask.conftest import DaskCluster, running
from tests.dask.nodes import ClusterNode

ROUNDS = 3
TASKS = """
import time
def quick(x):
    return x + 1
client.gather(client.map(quick, range({tasks}, {tasks} + 200), pure=False))
times = []
for turn in range({rounds}):
    began = time.perf_counter()
    total = sum(client.gather(client.map(quick, range({tasks}), pure=False)))
    times.append(time.perf_counter() - began)
    assert total == sum(range(1, {tasks} + 1))
print("TIMES", *times)
"""
BARE = """
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=3, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            client.wait_for_workers(3)
            exec({code!r})
"""
MOVE = """
import time
import numpy as np
client.wait_for_workers(3)
addresses = {{w["name"]: a for a, w in client.scheduler_info()["workers"].items()}}
names = {names!r}
def made(turn):
    return np.random.default_rng(turn).bytes({megabytes} * 1_000_000)
times = []
for turn in range({rounds}):
    there = client.submit(made, turn, workers=[addresses[names[0]]], pure=False)
    client.submit(lambda x: None, there, workers=[addresses[names[0]]], pure=False).result()
    began = time.perf_counter()
    client.submit(len, there, workers=[addresses[names[1]]], pure=False).result()
    times.append(time.perf_counter() - began)
    del there
print("TIMES", *times)
"""

# Plain bytes by a worker's port, which leads to this sink on the other node meanwhile.
SINK_PORT = 5999
REDIRECT = (
    "table ip bench {{ chain out {{ type nat hook output priority -100; tcp dport {port} redirect to :{sink}; }}; }}"
)
SINK = """
import socket, sys
room = bytearray(1 << 20)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("listens", flush=True)
    while True:
        taken, _ = server.accept()
        with taken:
            left = int(sys.argv[2])
            while left > 0 and (came := taken.recv_into(room)):
                left -= came
            taken.sendall(b"!")
"""
SOURCE = """
import socket, sys, time
left, piece = int(sys.argv[2]), memoryview(bytes(1 << 20))
began = time.perf_counter()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as far:
    while left > 0:
        far.sendall(piece[:left])
        left -= len(piece)
    assert far.recv(1) == b"!"
print("TIMES", time.perf_counter() - began)
"""


def times_in(text: str) -> float:
    """The median of what a run printed."""
    found = re.search(r"TIMES (.*)", text)
    assert found, text
    return statistics.median(float(part) for part in found[1].split())


def bare(code: str, folder: Path) -> float:
    """The same code on a cluster of `distributed`'s own on this machine."""
    program = folder / "bare.py"
    program.write_text(BARE.format(code=code))
    done = subprocess.run([sys.executable, str(program)], check=True, capture_output=True, text=True, timeout=600)
    return times_in(done.stdout)


async def in_cell(cluster: DaskCluster, code: str) -> float:
    """The same code in a cell on the head."""
    text, view = await cluster.run(code, timeout_s=600)
    assert view.status == "ok", (text, view.traceback)
    return times_in(text)


async def hairpin(cluster: DaskCluster, megabytes: int) -> float:
    """The same bytes by OpenSSH: out of one node, through this machine, into another."""
    one, two = cluster.nodes[:2]
    out, into = (_ssh(node) for node in (one, two))
    source = f"head -c {megabytes}000000 /dev/urandom > /tmp/gmd-hairpin; sync"
    subprocess.run([*out, source], check=True, capture_output=True)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        reading = subprocess.Popen([*out, "cat /tmp/gmd-hairpin"], stdout=subprocess.PIPE)
        await asyncio.to_thread(subprocess.run, [*into, "cat > /dev/null"], stdin=reading.stdout, check=True)
        reading.wait()
        times.append(time.perf_counter() - began)
    subprocess.run([*out, "rm /tmp/gmd-hairpin"], check=True, capture_output=True)
    return statistics.median(times)


async def plain_bytes(cluster: DaskCluster, address: str, megabytes: int) -> float:
    """Bytes as they are from the first node to the second through the relay."""
    port, size = address.rpartition(":")[2], str(megabytes * 10**6)
    one, two = (["ip", "netns", "exec", node.namespace] for node in cluster.nodes[:2])
    rules = REDIRECT.format(port=port, sink=SINK_PORT)
    subprocess.run([*two, "nft", "-f", "-"], input=rules, text=True, check=True)
    taking = subprocess.Popen([*two, sys.executable, "-c", SINK, str(SINK_PORT), size], stdout=subprocess.PIPE)
    assert taking.stdout is not None
    taking.stdout.readline()
    try:
        argv = [*one, sys.executable, "-c", SOURCE, port, size]
        sent = [
            await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, text=True)
            for _ in range(ROUNDS)
        ]
    finally:
        taking.kill()
        taking.wait()
    return statistics.median(times_in(one.stdout) for one in sent)


def _ssh(node: ClusterNode) -> list[str]:
    options = ["-F", "none", "-i", str(node.sshd.key_path), "-c", "aes128-gcm@openssh.com", "-o", "IdentitiesOnly=yes"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    return ["ssh", *options, "-p", str(node.sshd.port), f"{node.sshd.address().user}@{node.sshd.host}"]


async def on_nodes(folder: Path, tasks: int, megabytes: int) -> tuple[float, float, float, float]:
    """Small tasks, bytes from node to node by Dask and as they are, the same bytes by OpenSSH; seconds."""
    nodes = running(folder, 3, is_apart=True)
    async with contextlib.aclosing(nodes):
        async for cluster in nodes:
            view = await cluster.until_workers(3)
            small = await in_cell(cluster, TASKS.format(tasks=tasks, rounds=ROUNDS))
            workers = [next(w for w in view.workers if w.lease_id == node.lease_id) for node in cluster.nodes[:2]]
            names = [worker.name for worker in workers]
            moved = await in_cell(cluster, MOVE.format(names=names, megabytes=megabytes, rounds=ROUNDS))
            plain = await plain_bytes(cluster, workers[1].address, megabytes)
            return small, moved, plain, await hairpin(cluster, megabytes)
    raise AssertionError("unreachable")


async def with_delay(folder: Path, tasks: int) -> float:
    """Small tasks with 40 ms from this machine to each node and back."""
    cluster = DaskCluster(folder)
    ways: list[Delayed] = []
    try:
        cluster.broker.start()
        await cluster.process.start()
        for number in range(3):
            node = ClusterNode(folder / f"n{number}", number, is_apart=True)
            cluster.nodes.append(node)
            way = Delayed(node.sshd.host, node.sshd.port)
            ways.append(way)
            attach = Attach(
                lease_id=node.lease_id,
                name=node.name,
                address=replace(node.sshd.address(), host="127.0.0.1", port=await way.listen()),
                key_path=str(node.sshd.key_path),
                deadline_ms=int(time.time() * 1000) + 3_600_000,
                grace_s=900,
                host_key=node.sshd.host_key,
            )
            reply = await cluster.process.call("PUT", f"/v1/nodes/{node.lease_id}", attach)
            assert reply.status_code == 200, reply.text
        await cluster.start_dask()
        await cluster.until_workers(3)
        return await in_cell(cluster, TASKS.format(tasks=tasks, rounds=ROUNDS))
    finally:
        await cluster.process.http.aclose()
        cluster.broker.stop()
        cluster.stop()
        for way in ways:
            way.close()


async def main(tasks: int, megabytes: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gmd") as scratch:
        folder = Path(scratch)
        for name in ("near", "far"):
            (folder / name).mkdir()
        plain = await asyncio.to_thread(bare, TASKS.format(tasks=tasks, rounds=ROUNDS), folder)
        small, moved, as_is, hairpinned = await on_nodes(folder / "near", tasks, megabytes)
        far = await with_delay(folder / "far", tasks)
    print(f"{tasks} small tasks, bare distributed       {plain:7.2f} s")
    print(f"{tasks} small tasks, cell on the head       {small:7.2f} s   ratio {plain / small:.2f} of bare")
    print(f"{tasks} small tasks, 40 ms user to nodes    {far:7.2f} s   {far / small:.2f} times its own without delay")
    print(f"{megabytes} MB node to node, OpenSSH hairpin       {megabytes / hairpinned:7.1f} MB/s")
    for what, seconds in (("Dask over the relay", moved), ("plain bytes over the relay", as_is)):
        rate = megabytes / seconds
        print(f"{megabytes} MB node to node, {what:26} {rate:7.1f} MB/s   ratio {hairpinned / seconds:.2f}")


if __name__ == "__main__":
    asyncio.run(main(*(int(text) for text in (sys.argv[1:] + ["2000", "500"][len(sys.argv) - 1 :]))))
