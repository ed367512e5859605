"""Collecting from all marketplaces at once, each 50 ms away, beside the slowest of them alone.

    python -m tests.benchmarks.bench_collect [rounds]

The marketplaces are the stand-ins, in a process of their own; between them and us is their own HTTP API.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from statistics import median

import msgspec

from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.demo.markets import options_of
from jupyter_gpumarket.marketplaces.registry import MARKETPLACES
from jupyter_gpumarket.models import OfferQuery
from jupyter_gpumarket.offers.collect import Collector
from jupyter_gpumarket.simulator.faults import FaultBoard
from jupyter_gpumarket.simulator.process import STAND_INS, new_key
from jupyter_gpumarket.simulator.web import Server
from jupyter_gpumarket.simulator.yard import Yard
from tests.simulator.light import LightPool

LATENCY_S = 0.05
SERVE = "serve"


async def serve() -> None:
    """The stand-ins, until standard input ends; their URLs and keys are printed."""
    clock, told = SystemClock(), {}
    for name, make in STAND_INS.items():
        key, faults = new_key(name), FaultBoard()
        yard = Yard(LightPool(1, 2), clock, faults)  # type: ignore[arg-type]
        told[name] = (Server(make(yard, faults, Secret(key), *(True,)), clock, latency_s=LATENCY_S).url, key)
    print(msgspec.json.encode(told).decode(), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def measure(told: dict[str, tuple[str, str]], rounds: int) -> None:
    markets = {}
    for entry in MARKETPLACES:
        if entry.name in told:
            url, key = told[entry.name]
            options = options_of(entry.name, url) | {
                name: 10_000.0 for name in entry.options.__struct_fields__ if name == "calls_per_s"
            }
            markets[entry.name] = entry.factory(msgspec.convert(options, entry.options), Secret(key))
    alone: dict[str, list[float]] = {name: [] for name in markets}
    together: list[float] = []
    for _ in range(rounds + 1):
        for name, market in markets.items():
            started = time.perf_counter()
            await market.offers(OfferQuery())
            alone[name].append((time.perf_counter() - started) * 1000)
        collector = Collector(markets, SystemClock())
        started = time.perf_counter()
        parts = await collector.collect(OfferQuery(), refresh=True)
        together.append((time.perf_counter() - started) * 1000)
        assert all(not part.message for part in parts.values()), parts
    for market in markets.values():
        await market.aclose()
    middle = {name: median(spans[1:]) for name, spans in alone.items()}
    slowest = max(middle, key=lambda name: middle[name])
    at_once = median(together[1:])
    print(f"{len(markets)} marketplaces, {LATENCY_S * 1000:g} ms each; milliseconds, middle of {rounds}")
    for name, span in sorted(middle.items(), key=lambda item: item[1]):
        print(f"  {name:<16} {span:8.1f}")
    print(f"  one by one       {sum(middle.values()):8.1f}")
    print(f"  all at once      {at_once:8.1f}   {at_once / middle[slowest]:.2f} × the slowest ({slowest})")


def main() -> None:
    if SERVE in sys.argv:
        asyncio.run(serve())
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    argv = [sys.executable, "-m", "tests.benchmarks.bench_collect", SERVE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        told = msgspec.json.decode(process.stdout.readline(), type=dict[str, tuple[str, str]])
        asyncio.run(measure(told, rounds))
        process.stdin.close()


if __name__ == "__main__":
    main()
