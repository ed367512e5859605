"""A stand-in with machines that cost nothing to make: the real engine, adapter, HTTP, catalogue and ledger above them.

What is light is only what lies behind the stand-in: a pool whose hosts are a listening port, and nodes that report what
they are without an agent on them. So every trouble of every marketplace can be lived through in about a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from jupyter_gpumarket import ledger
from jupyter_gpumarket.api import Linked, Prepared, Probed
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.demo.markets import options_of
from jupyter_gpumarket.errors import MarketplaceError, OfferGone
from jupyter_gpumarket.leases import LeaseEngine, Policy
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.marketplaces.registry import MARKETPLACES
from jupyter_gpumarket.models import (
    ENDED_STATES,
    Lease,
    LeaseRequest,
    LeaseState,
    MarketCharge,
    NodeAddress,
    Offer,
    OfferQuery,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
)
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.nodes.compare import Gpu, ProbeReport, compare
from jupyter_gpumarket.nodes.tunnel import Tunnel
from jupyter_gpumarket.offers import Catalogue
from jupyter_gpumarket.simulator.faults import Arming, Fault, FaultBoard
from jupyter_gpumarket.simulator.process import STAND_INS, new_key
from jupyter_gpumarket.simulator.web import Server
from jupyter_gpumarket.simulator.yard import Phase, Yard
from tests.leases.fakes import FakeKeys, MemoryStore

# Shorter than PATIENT gives a create call: as at the real one, what stays in the queue is taken back by the adapter.
QUICK: dict[str, dict[str, Any]] = {"nosana": {"queue_s": 3.0}, "akash": {"bid_wait_s": 5.0}}
PATIENT = Policy(
    poll_boot_s=0.05,
    poll_ready_s=0.1,
    retry_first_s=0.02,
    retry_most_s=0.2,
    absent_grace_s=0.3,
    sweep_every_s=0.3,
    timer_step_s=0.1,
    bad_machine_s=3600,
    phase_s={LeaseState.QUOTING: 20, LeaseState.RENTING: 20, LeaseState.BOOTING: 6, LeaseState.LINKING: 2},
)
TRUE_REPORT = ProbeReport(
    gpus=(Gpu(index=0, name="NVIDIA L4", vram_mib=24 * 1024),),
    cpu_cores=64,
    memory_mib=2**20,
    disk_total_mib=2**22,
    disk_free_mib=2**22,
)


class LightPool:
    """A pool of hosts that are no more than a port with an SSH banner."""

    name = "pool"

    def __init__(self, port: int, hosts: int) -> None:
        self._port = port
        self._offers = [light_offer(number) for number in range(hosts)]
        self.live: dict[str, tuple[Rental, str]] = {}

    async def offers(self, query: OfferQuery) -> list[Offer]:
        taken = {offer_id for _, offer_id in self.live.values()}
        return [offer for offer in self._offers if offer.offer_id not in taken]

    async def quote(self, offer: Offer) -> Quote:
        return Quote(marketplace=self.name, offer=offer, price_nusd_hour=offer.price_nusd_hour, expires_ms=2**60)

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        if quote.offer.offer_id in {offer_id for _, offer_id in self.live.values()}:
            raise OfferGone("taken")
        rental = Rental(
            marketplace=self.name,
            rental_id=f"r-{label}",
            label=label,
            status=RentalStatus.RUNNING,
            address=NodeAddress(host="127.0.0.1", port=self._port, user="root"),
        )
        self.live[label] = (rental, quote.offer.offer_id)
        return rental

    async def find(self, label: str) -> Rental | None:
        return self.live[label][0] if label in self.live else None

    async def rental(self, rental_id: str) -> Rental:
        gone = Rental(marketplace=self.name, rental_id=rental_id, label="", status=RentalStatus.GONE)
        return next((rental for rental, _ in self.live.values() if rental.rental_id == rental_id), gone)

    async def release(self, rental_id: str) -> None:
        self.live = {label: held for label, held in self.live.items() if held[0].rental_id != rental_id}


def light_offer(number: int) -> Offer:
    return Offer(
        marketplace="pool",
        offer_id=f"h{number}.cpu",
        machine_id=f"h{number}",
        price_nusd_hour=usd("0.36"),
        seen_ms=0,
        gpu_raw="NVIDIA L4",
        gpu_count=1,
        vram_gib=24.0,
        cpu_model="Xeon",
        cpu_cores=16,
        memory_gib=64.0,
        disk_gib=500.0,
        region="north",
        country="SE",
    )


class LightClusters:
    """Nodes that are reached when their port answers as SSH does, and are what they truly are."""

    def __init__(self) -> None:
        self.engine: LeaseEngine | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._reach(lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self, lease: Lease) -> None:
        assert lease.address is not None
        assert lease.offer is not None
        assert self.engine is not None
        while not await answers(lease.address):
            await asyncio.sleep(0.05)
        told = {"lease_id": lease.lease_id, "at_ms": SystemClock().now_ms()}
        found = compare(TRUE_REPORT, lease.offer)
        await self.engine.report(Linked(host_key="key", first_sight=True, **told))  # type: ignore[arg-type]
        await self.engine.report(Prepared(python="3", versions={}, steps_ms={}, **told))  # type: ignore[arg-type]
        await self.engine.report(Probed(report={}, differences=found, **told))  # type: ignore[arg-type]

    async def warn(self, lease: Lease) -> None:
        return None

    async def detach(self, lease: Lease, *, save_s: float) -> None:
        for task in self._tasks:
            task.cancel()

    async def set_deadline(self, lease: Lease) -> None:
        return None


async def answers(address: NodeAddress) -> bool:
    """Whether what is there speaks SSH."""
    if address.wss_url:
        return await answers_through_websocket(address.wss_url)
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                return await reader.read(4) == b"SSH-"
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


async def answers_through_websocket(url: str) -> bool:
    try:
        async with asyncio.timeout(1):
            tunnel = await Tunnel.open(url, timeout_s=1)
            try:
                tunnel.socket.settimeout(0)
                return await asyncio.get_running_loop().sock_recv(tunnel.socket, 4) == b"SSH-"
            finally:
                tunnel.abort()
                tunnel.socket.close()
    except (OSError, TimeoutError):
        return False


@dataclass
class Light:
    """One marketplace, lived through."""

    market: Marketplace
    yard: Yard
    faults: FaultBoard
    store: MemoryStore
    engine: LeaseEngine
    pool: LightPool
    happened: set[Fault] = field(default_factory=set)

    def arm(self, fault: Fault, times: int | None = 1) -> None:
        self.faults.arm(Arming(fault=fault, times=times))

    async def wish(self, **more: object) -> Lease:
        values = {"request_id": "r1", "query": OfferQuery(), "budget_nusd": usd("5"), "max_s": 3600, **more}
        return await self.engine.wish(LeaseRequest(**values))  # type: ignore[arg-type]

    async def reaches(self, lease: Lease, *states: LeaseState) -> Lease:
        seq = -1
        async with asyncio.timeout(40):
            while lease.state not in states and lease.state not in ENDED_STATES:
                lease, seq = await self.engine.wait_changed(lease.lease_id, seq, 5)
        return lease

    async def all_ended(self) -> None:
        """Wait until really nothing is rented: neither by the stand-in's own book, nor at the pool."""
        async with asyncio.timeout(40):
            while self.still_rented():
                await asyncio.sleep(0.02)

    def still_rented(self) -> list[str]:
        open_ones = [r.rental_id for r in self.yard.rentals.values() if r.phase is not Phase.ENDED]
        return open_ones + list(self.pool.live)

    def ours_nusd(self, lease: Lease) -> int:
        """What our ledger says."""
        lines = ledger.lease_charges(lease, [], SystemClock().now_ms())
        assert all(line.final for line in lines)
        return sum(line.amount_nusd for line in lines)

    async def theirs(self, lease: Lease) -> list[MarketCharge]:
        """What the marketplace's own records say."""
        rentals = {a.rental_id for a in lease.attempts if a.rental_id} | ({lease.rental_id} - {""})
        lines: list[MarketCharge] = []
        for rental_id in rentals:
            with contextlib.suppress(MarketplaceError):
                lines += await self.market.charges(rental_id)
        return lines


@asynccontextmanager
async def light(name: str, *, hosts: int = 2, boot_s: float = 0.1, policy: Policy = PATIENT) -> AsyncIterator[Light]:
    """This marketplace's stand-in, adapter and engine, until the block ends."""
    async with lights(name, hosts=hosts, boot_s=boot_s, policy=policy) as (one,):
        yield one


@asynccontextmanager
async def lights(
    *names: str, hosts: int = 2, boot_s: float = 0.1, policy: Policy = PATIENT
) -> AsyncIterator[list[Light]]:
    """Some marketplaces' stand-ins and adapters under one engine, until the block ends."""

    async def banner(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-light\r\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    port = await asyncio.start_server(banner, "127.0.0.1", 0)
    clock = SystemClock()
    markets: dict[str, Marketplace] = {}
    behind: dict[str, tuple[Yard, FaultBoard, LightPool, Server]] = {}
    for name in names:
        faults, key = FaultBoard(), Secret(new_key(name))
        pool = LightPool(port.sockets[0].getsockname()[1], hosts)
        yard = Yard(pool, clock, faults, boot_s=boot_s)  # type: ignore[arg-type]
        server = Server(STAND_INS[name](yard, faults, key, *(False,)), clock)
        (entry,) = [entry for entry in MARKETPLACES if entry.name == name]
        markets[name] = entry.factory(
            msgspec.convert(options_of(name, server.url) | QUICK.get(name, {}), entry.options), key
        )
        behind[name] = (yard, faults, pool, server)
    store, clusters = MemoryStore(clock), LightClusters()
    engine = LeaseEngine(
        store=store,
        marketplaces=markets,
        offers=Catalogue(markets, clock, store.machines),
        clusters=clusters,
        keys=FakeKeys(),
        clock=clock,
        rng=random.Random(names[0]),
        label_secret=b"a secret of this installation",
        policy=policy,
    )
    clusters.engine = engine
    await engine.start()
    try:
        yield [
            Light(market=market, yard=behind[name][0], faults=behind[name][1], store=store, engine=engine, pool=pool)
            for name, market in markets.items()
            for pool in behind[name][2:3]
        ]
    finally:
        await engine.aclose()
        for name, market in markets.items():
            await market.aclose()
            await behind[name][3].aclose()
        port.close()
        await port.wait_closed()
