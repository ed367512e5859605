"""Find out what a node really is, and measure the way to it: at most 20 seconds, at most 8 MiB.

What comes back is the node's own word, recorded as a fact and compared with the offer; only the network figures are
measured from this side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from jupyter_gpumarket.errors import NodeError, Unreachable
from jupyter_gpumarket.models import Offer, Record
from jupyter_gpumarket.nodes.address import shown
from jupyter_gpumarket.nodes.compare import Compute, Gpu, Network, ProbeReport, compare
from jupyter_gpumarket.nodes.link import NodeLink, Reader
from jupyter_gpumarket.nodes.orders import Answer, order
from jupyter_gpumarket.nodes.plan import Installed

TOTAL_S = 20.0
# What the node gets for its report, and how long we wait for that.
ON_NODE_S = 11.0
REPORT_S = 14.0
TRANSFER_S = 2.5
MAX_TRANSFER_BYTES = 4 * 1024 * 1024
FIRST_TRANSFER_BYTES = 128 * 1024
ROUND_TRIPS = 5
MAX_GPUS = 64


class ProbeResult(Record, frozen=True, kw_only=True):
    """The report as plain JSON data, and in which points the node is less than the offer (empty: as sold)."""

    report: dict[str, Any]
    differences: tuple[str, ...]


class _Told(Answer, frozen=True, kw_only=True):
    """The report without what is measured from here."""

    gpus: tuple[Gpu, ...] = ()
    cuda: str = ""
    cpu_model: str = ""
    cpu_cores: float = 0.0
    memory_mib: int = 0
    disk_total_mib: int = 0
    disk_free_mib: int = 0
    os: str = ""
    kernel: str = ""
    machine: str = ""
    python: str = ""
    confidential: str = ""
    compute: tuple[Compute, ...] = ()
    trouble: tuple[str, ...] = ()


async def probe(link: NodeLink, installed: Installed, offer: Offer | None, *, demo: bool = False) -> ProbeResult:
    """Ask the node what it is, measure the network both ways, and compare with the offer where there is one.

    Raises:
        CommandFailed: the probe did not end in time, or failed on the node.
        NodeError: its answer is none.
        Unreachable: the link was lost.
    """
    until = time.monotonic() + TOTAL_S
    what = {"python": installed.python, "limit_s": ON_NODE_S}
    told = await order(link, "probe", what, _Told, timeout_s=REPORT_S, python=installed.python)
    report = _cleaned(told, await _network(link, until))
    return ProbeResult(
        report=msgspec.json.decode(msgspec.json.encode(report)),
        differences=compare(report, offer, demo=demo) if offer is not None else (),
    )


def _cleaned(told: _Told, network: Network) -> ProbeReport:
    """The report with every text made one printable line, and lists bounded."""
    plain = msgspec.to_builtins(told)
    plain.pop("error")
    report: ProbeReport = msgspec.convert(_texts(plain), ProbeReport)
    return msgspec.structs.replace(report, network=network)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value[:MAX_GPUS]]
    return value


async def _network(link: NodeLink, until: float) -> Network:
    round_trip_s = await _measured(_round_trip_s(link), until)
    return Network(
        round_trip_ms=None if round_trip_s is None else round(round_trip_s * 1000, 2),
        down_mbps=await _measured(_down_mbps(link), until),
        up_mbps=await _measured(_up_mbps(link, round_trip_s or 0.0), until),
    )


async def _measured(measuring: Coroutine[Any, Any, float | None], until: float) -> float | None:
    """A figure, or None when time is over or the node does not play along; a broken link is still an error."""
    try:
        async with asyncio.timeout(max(0.0, min(2 * TRANSFER_S, until - time.monotonic()))):
            return await measuring
    except Unreachable:
        raise
    except (TimeoutError, NodeError):
        return None


async def _round_trip_s(link: NodeLink) -> float | None:
    """The shortest of a few echoes of one byte."""
    reader, writer = await link.open_stream("exec cat")
    times = []
    try:
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            writer.write(b".")
            if not await reader.read(1):
                return None
            times.append(time.perf_counter() - started)
    finally:
        writer.close()
    return min(times)


async def _down_mbps(link: NodeLink) -> float | None:
    """What arrives of 4 MiB, from its first byte on, for at most `TRANSFER_S`."""
    reader, writer = await link.open_stream(f"exec head -c {MAX_TRANSFER_BYTES} /dev/zero")
    try:
        if not await reader.read(1):
            return None
        started = time.perf_counter()
        arrived = await _drained(reader, started + TRANSFER_S)
        return _mbps(arrived, time.perf_counter() - started)
    finally:
        writer.close()


async def _drained(reader: Reader, until: float) -> int:
    arrived = 0
    while (left := until - time.perf_counter()) > 0:
        try:
            async with asyncio.timeout(left):
                data = await reader.read(256 * 1024)
        except TimeoutError:
            break
        if not data:
            break
        arrived += len(data)
    return arrived


async def _up_mbps(link: NodeLink, round_trip_s: float) -> float | None:
    """A small transfer first; when that was quick, as much as fits into the time."""
    rate = await _sent_bytes_s(link, FIRST_TRANSFER_BYTES, round_trip_s)
    size = min(MAX_TRANSFER_BYTES, int(rate * TRANSFER_S / 2))
    if size > 2 * FIRST_TRANSFER_BYTES:
        rate = await _sent_bytes_s(link, size, round_trip_s)
    return round(rate * 8 / 1e6, 2)


async def _sent_bytes_s(link: NodeLink, size: int, round_trip_s: float) -> float:
    started = time.perf_counter()
    counted = (await link.run("exec wc -c", input=bytes(size), timeout_s=TRANSFER_S)).stdout
    # Opening the channel and starting the command take two round trips, in which no byte moves.
    took = max(time.perf_counter() - started - 2 * round_trip_s, 1e-4)
    if counted.strip() != str(size).encode():
        raise NodeError(f"{link.name} counts bytes wrongly")
    return size / took


def _mbps(count: int, took_s: float) -> float:
    return round(count * 8 / 1e6 / max(took_s, 1e-4), 2)
