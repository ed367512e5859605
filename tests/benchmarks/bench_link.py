"""The link's throughput and latency beside OpenSSH's own tools, same server, same cipher, same run.

    python -m tests.benchmarks.bench_link [MiB]

Figures depend on the machine; the ratios are what counts. The tools connect anew each time, as they do in use.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.nodes.openssh import Sshd

ROUNDS = 3
SMALL = 30


async def main(mebibytes: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        content = bytes(mebibytes * 2**20)
        (folder / "content").write_bytes(content)
        server = Sshd(folder / "sshd", settings=("Subsystem sftp internal-sftp",)).start()
        link = server.link()
        try:
            await link.connect()
            ours_up = await best(lambda: link.put(content, str(folder / "up")))
            theirs_up = await best(lambda: openssh(server, "scp", str(folder / "content"), f"HOST:{folder}/up2"))
            ours_down = await best(lambda: down(link.open_stream, folder / "content"))
            theirs_down = await best(lambda: openssh(server, "scp", f"HOST:{folder}/content", str(folder / "down2")))
            echo = [await timed(lambda: link.run("true", timeout_s=30)) for _ in range(SMALL)]
            theirs_echo = [await timed(lambda: openssh(server, "ssh", "HOST", "true")) for _ in range(5)]
        finally:
            await link.aclose()
            server.stop()
    row("to the node", mebibytes / ours_up, mebibytes / theirs_up, "MiB/s")
    row("from the node", mebibytes / ours_down, mebibytes / theirs_down, "MiB/s")
    row("a command", statistics.median(echo) * 1000, statistics.median(theirs_echo) * 1000, "ms")


def row(what: str, ours: float, theirs: float, unit: str) -> None:
    """One line of the table."""
    print(f"{what:15} link {ours:8.1f} {unit:6} OpenSSH's tool {theirs:8.1f} {unit:6} ratio {ours / theirs:.2f}")


async def down(open_stream: Callable[[str], Awaitable[tuple[object, object]]], file: Path) -> None:
    """Read a whole file through a stream."""
    reader, writer = await open_stream(f"exec cat {file}")
    while await reader.read(256 * 1024):  # type: ignore[attr-defined]
        pass
    writer.close()  # type: ignore[attr-defined]


async def openssh(server: Sshd, tool: str, *arguments: str) -> None:
    """Run ssh or scp with the link's cipher."""
    options = ["-F", "none", "-i", str(server.key_path), "-c", "aes128-gcm@openssh.com", "-o", "IdentitiesOnly=yes"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    port = ["-P" if tool == "scp" else "-p", str(server.port)]
    there = f"{server.address().user}@{server.host}"
    argv = [tool, *options, *port, *(a.replace("HOST", there) for a in arguments)]
    await asyncio.to_thread(
        subprocess.run, argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=300
    )


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def best(work: Callable[[], Awaitable[object]]) -> float:
    """The shortest of a few."""
    return min([await timed(work) for _ in range(ROUNDS)])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
