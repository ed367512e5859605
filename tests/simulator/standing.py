"""A stand-in in the test's own loop, on a real pool, with the troubled proxy and the adapter before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.simulator.faults import Arming, Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Server, StandIn
from jupyter_gpumarket.simulator.yard import Yard
from tests.marketplaces.contract import World, new_public_key
from tests.marketplaces.troubled import TroubledProxy
from tests.pool_fixtures import RunningPool

KEY = "key-of-the-simulated-account-9f31c2"


@dataclass
class Standing:
    """A running stand-in, and an adapter on it through the proxy."""

    world: World
    server: Server
    yard: Yard
    faults: FaultBoard

    @property
    def market(self) -> Marketplace:
        return self.world.market

    def arm(self, fault: Fault, times: int | None = 1) -> None:
        self.faults.arm(Arming(fault=fault, times=times))


@asynccontextmanager
async def standing(
    running: RunningPool,
    stand_in: Callable[[Yard, FaultBoard, Secret], StandIn],
    adapter: Callable[[str, Secret], Marketplace],
    is_create: Callable[[str, str], bool],
    is_release: Callable[[str, str], bool],
) -> AsyncIterator[Standing]:
    """Everything up; at the end all is released, also at the pool."""
    running.wait_until(running.offer_ids, "a host of the pool is free")
    clock, faults, pool = SystemClock(), FaultBoard(), running.marketplace()
    yard = Yard(pool, clock, faults, boot_s=0.05)
    server = Server(stand_in(yard, faults, Secret(KEY)), clock)
    proxy = TroubledProxy(server.url)
    market = adapter(proxy.url, Secret(KEY))
    world = World(
        market=market,
        proxy=proxy,
        secret=KEY,
        is_create=is_create,
        is_release=is_release,
        ssh_public_key=new_public_key(),
    )
    try:
        yield Standing(world=world, server=server, yard=yard, faults=faults)
    finally:
        await market.aclose()
        await proxy.aclose()
        await server.aclose()
        await pool.aclose()
