"""Bytes from node to node: directly through the agents' doors, through the relay, and beside both `scp` and raw TLS.

    python -m tests.benchmarks.bench_direct [MB]

Two nodes in network namespaces that share a network of their own (needs root). All of it runs on one machine: Dask's
own TLS, the doors' and the links', so figures are lower bounds; the ratios are what counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jupyter_gpumarket.api import DaskView
from tests.benchmarks.bench_dask import MOVE, ROUNDS, in_cell
from tests.dask.conftest import DaskCluster, running
from tests.dask.nodes import Bridge

TLS = """
import socket, ssl, sys, time
kind, host, port, folder, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
piece = memoryview(bytes(1 << 20))
if kind == "take":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
    with socket.create_server((host, port)) as server:
        print("listens", flush=True)
        plain, _ = server.accept()
        with context.wrap_socket(plain, server_side=True) as near:
            came, room = 0, bytearray(1 << 20)
            while came < size:
                came += near.recv_into(room)
            near.sendall(b"!")
else:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    began = time.perf_counter()
    with context.wrap_socket(socket.create_connection((host, port))) as far:
        left = size
        while left > 0:
            far.sendall(piece[:min(left, len(piece))])
            left -= len(piece)
        far.recv(1)
    print(time.perf_counter() - began)
"""


def in_namespace(cluster: DaskCluster, number: int) -> list[str]:
    """What runs a command on a node."""
    return ["ip", "netns", "exec", cluster.nodes[number].namespace]


def raw_tls(cluster: DaskCluster, size: int) -> float:
    """One TLS connection between the same two namespaces, one process at each end."""
    assert cluster.bridge is not None
    folder = next(cluster.nodes[1].folder.glob("dask/*/cert.pem")).parent
    argv = [sys.executable, "-c", TLS]
    rest = [cluster.bridge.address(1), "5999", str(folder), str(size)]
    taking = subprocess.Popen([*in_namespace(cluster, 1), *argv, "take", *rest], stdout=subprocess.PIPE, text=True)
    assert taking.stdout is not None
    taking.stdout.readline()
    sent = subprocess.run(
        [*in_namespace(cluster, 0), *argv, "send", *rest], check=True, capture_output=True, text=True, timeout=300
    )
    taking.wait(30)
    return float(sent.stdout)


def scp(cluster: DaskCluster, source: Path) -> float:
    """`scp` from one node to the other over their own network, by a server that is started there for it."""
    assert cluster.bridge is not None
    node = cluster.nodes[1]
    host = cluster.bridge.address(1)
    config = node.sshd.folder / "near_config"
    lines = (
        (node.sshd.folder / "sshd_config")
        .read_text()
        .replace(f"ListenAddress {node.sshd.host}", f"ListenAddress {host}")
    )
    config.write_text(lines.replace("sshd.pid", "near.pid") + "Subsystem sftp internal-sftp\n")
    server = subprocess.Popen([*in_namespace(cluster, 1), str(shutil.which("sshd")), "-D", "-f", str(config)])
    time.sleep(1)
    options = ["-F", "none", "-i", str(node.sshd.key_path), "-c", "aes128-gcm@openssh.com", "-P", str(node.sshd.port)]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    target = f"{node.sshd.address().user}@{host}:{node.home}/scp-copy"
    try:
        began = time.perf_counter()
        subprocess.run([*in_namespace(cluster, 0), "scp", *options, str(source), target], check=True, timeout=300)
        return time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()
        (node.home / "scp-copy").unlink(missing_ok=True)


async def staged(cluster: DaskCluster, content: bytes) -> tuple[float, float]:
    """An input to the first node from here, and from there to the second one; seconds each."""
    sha256 = hashlib.sha256(content).hexdigest()
    await cluster.process.call("PUT", f"/v1/blobs/{sha256}", content=content)
    times = []
    for node in cluster.nodes:
        began = time.perf_counter()
        reply = await cluster.process.call("POST", f"/v1/nodes/{node.lease_id}/blobs/{sha256}")
        assert reply.status_code == 200, reply.text
        times.append(time.perf_counter() - began)
    return times[0], times[1]


async def measured(folder: Path, megabytes: int) -> dict[str, float]:
    """Seconds by what was done."""
    found: dict[str, float] = {}
    async for cluster in running(folder, 2, is_apart=True, bridge=Bridge()):
        cluster.process.http.timeout = 300

        def is_direct(view: DaskView) -> bool:
            return view.direct == 2

        view = await cluster.until(is_direct, "the ways are direct")
        names = [next(w.name for w in view.workers if w.lease_id == node.lease_id) for node in cluster.nodes]
        code = MOVE.format(names=names, megabytes=megabytes, rounds=ROUNDS).replace(
            "wait_for_workers(3)", "wait_for_workers(2)"
        )
        before = view.relayed_bytes
        found["Dask, directly"] = await in_cell(cluster, code)
        assert (await cluster.view()).relayed_bytes - before < megabytes * 1e6 / 10, "it did not go directly"
        size = megabytes * 1_000_000
        found["raw TLS"] = statistics.median(raw_tls(cluster, size) for _ in range(ROUNDS))
        source = folder / "source"
        source.write_bytes(os.urandom(size))
        found["scp"] = statistics.median(scp(cluster, source) for _ in range(ROUNDS))
        found["input from here"], found["input from node to node"] = await staged(cluster, source.read_bytes())
    async for cluster in running(folder / "apart", 2, is_apart=True):
        view = await cluster.until_workers(2)
        names = [next(w.name for w in view.workers if w.lease_id == node.lease_id) for node in cluster.nodes]
        code = MOVE.format(names=names, megabytes=megabytes, rounds=1).replace(
            "wait_for_workers(3)", "wait_for_workers(2)"
        )
        found["Dask, through the relay"] = await in_cell(cluster, code)
    return found


async def main(megabytes: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gmd") as scratch:
        (Path(scratch) / "apart").mkdir()
        found = await measured(Path(scratch), megabytes)
    print(f"{megabytes} MB from node to node; load {os.getloadavg()[0]:.1f}")
    for what, seconds in found.items():
        rate, ratio = megabytes / seconds, found["scp"] / seconds
        print(f"{what:26} {rate:7.1f} MB/s   {ratio:.2f} of scp   {found['raw TLS'] / seconds:.2f} of raw TLS")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
