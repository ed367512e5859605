"""All stand-ins in one process, on one pool."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Secret, private_folder, write_private
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.marketplaces.pool import PoolMarketplace, PoolOptions
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.simulator.akash import AkashStandIn
from jupyter_gpumarket.simulator.basilica import BasilicaStandIn
from jupyter_gpumarket.simulator.dispersed import DispersedStandIn
from jupyter_gpumarket.simulator.faults import FaultBoard
from jupyter_gpumarket.simulator.hyperbolic import HyperbolicStandIn
from jupyter_gpumarket.simulator.ionet import IonetStandIn
from jupyter_gpumarket.simulator.lium import LiumStandIn
from jupyter_gpumarket.simulator.nosana import NosanaStandIn
from jupyter_gpumarket.simulator.primeintellect import PrimeStandIn
from jupyter_gpumarket.simulator.runpod import RunpodStandIn
from jupyter_gpumarket.simulator.shadeform import ShadeformStandIn
from jupyter_gpumarket.simulator.targon import TargonStandIn
from jupyter_gpumarket.simulator.vast import VastStandIn
from jupyter_gpumarket.simulator.web import Server, StandIn
from jupyter_gpumarket.simulator.yard import Yard

FILE = "simulator.json"


class Told(Record, frozen=True, kw_only=True):
    """What `simulator.json` says of one stand-in."""

    url: str
    key: str
    control_token: str


class Options(Record, frozen=True, kw_only=True):
    """How the stand-ins behave. `figures` lists machines that were seen on the real markets and cannot be rented."""

    folder: str
    names: tuple[str, ...]
    boot_s: float = 1.0
    latency_s: float = 0.0
    figures: bool = False
    until_stdin_ends: bool = False


Maker = Callable[[Yard, FaultBoard, Secret, bool], StandIn]
STAND_INS: dict[str, Maker] = {
    "vast": lambda yard, faults, key, figures: VastStandIn(yard, faults, key, show_figures=figures),
    "runpod": lambda yard, faults, key, figures: RunpodStandIn(yard, faults, key, show_figures=figures),
    "lium": lambda yard, faults, key, figures: LiumStandIn(yard, faults, key, show_figures=figures),
    "targon": lambda yard, faults, key, figures: TargonStandIn(yard, faults, key, show_figures=figures),
    "basilica": lambda yard, faults, key, figures: BasilicaStandIn(yard, faults, key, show_figures=figures),
    "dispersed": lambda yard, faults, key, figures: DispersedStandIn(yard, faults, key, show_figures=figures),
    "primeintellect": lambda yard, faults, key, figures: PrimeStandIn(yard, faults, key, show_figures=figures),
    "akash": lambda yard, faults, key, _: AkashStandIn(yard, faults, key),
    "shadeform": lambda yard, faults, key, figures: ShadeformStandIn(yard, faults, key, show_figures=figures),
    "nosana": lambda yard, faults, key, figures: NosanaStandIn(yard, faults, key, show_figures=figures),
    "ionet": lambda yard, faults, key, _: IonetStandIn(yard, faults, key),
    "hyperbolic": lambda yard, faults, key, figures: HyperbolicStandIn(yard, faults, key, show_figures=figures),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C; the exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        key = Secret(Path(arguments.pool_key_file).read_text("utf-8").strip())
        pool = PoolMarketplace(PoolOptions(url=arguments.pool, ca_file=arguments.ca_file), key)
        options = Options(
            folder=arguments.folder,
            names=tuple(name.strip() for name in arguments.marketplaces.split(",")),
            boot_s=arguments.boot_s,
            latency_s=arguments.latency_s,
            figures=arguments.figures,
            until_stdin_ends=arguments.until_stdin_ends,
        )
        asyncio.run(serve(options, pool))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m jupyter_gpumarket.simulator", description="Stand-ins for marketplaces, on a pool of one's own."
    )
    top.add_argument("--folder", required=True, help=f"where {FILE} is written, with the URLs and keys")
    top.add_argument("--pool", required=True, help="the pool registry's URL")
    top.add_argument("--pool-key-file", required=True, help="a file with a token of that registry")
    top.add_argument("--ca-file", default="", help="the registry's certificate, where it speaks TLS")
    top.add_argument("--marketplaces", default=",".join(STAND_INS), help="which, separated by commas")
    top.add_argument("--boot-s", type=float, default=1.0, help="how long a machine seems to start")
    top.add_argument("--latency-s", type=float, default=0.0, help="how long every answer takes")
    top.add_argument("--figures", action="store_true", help="list machines of the real markets too (none is rentable)")
    top.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input is closed")
    return top


async def serve(options: Options, pool: Marketplace) -> None:
    """Listen until told to stop, and give everything back.

    Raises:
        ConfigError: a marketplace that has no stand-in.
    """
    unknown = [name for name in options.names if name not in STAND_INS]
    if unknown:
        raise ConfigError(f"there is no stand-in for {', '.join(unknown)}; there are: {', '.join(STAND_INS)}")
    clock = SystemClock()
    servers, told = [], {}
    yards: list[Yard] = []
    for name in options.names:
        key, faults = new_key(name), FaultBoard()
        yard = Yard(pool, clock, faults, boot_s=options.boot_s, yards=yards)
        server = Server(STAND_INS[name](yard, faults, Secret(key), options.figures), clock, latency_s=options.latency_s)
        servers.append(server)
        told[name] = Told(url=server.url, key=key, control_token=server.control_token)
    stop = asyncio.Event()
    listen_for_the_end(stop, with_stdin=options.until_stdin_ends)
    write_private(private_folder(Path(options.folder)) / FILE, msgspec.json.encode(told))
    await stop.wait()
    for server in servers:
        await server.aclose()
    await pool.aclose()


def new_key(name: str) -> str:
    """A stand-in's account gets a key of the form that its marketplace gives."""
    token = secrets.token_urlsafe(24)
    return f"pk_{secrets.token_hex(8)}:sk_{token}" if name == "dispersed" else token


def listen_for_the_end(stop: asyncio.Event, *, with_stdin: bool) -> None:
    """SIGTERM, SIGINT, and on wish the end of standard input, which comes also when the starter is killed."""
    loop = asyncio.get_running_loop()
    for what in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(what, stop.set)

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    if with_stdin:
        loop.add_reader(0, read)
