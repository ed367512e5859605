"""Steps that several tests of the pool take: rent, connect, wait for a status."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncssh
import psutil

from jupyter_gpumarket.marketplaces.pool import PoolMarketplace
from jupyter_gpumarket.models import Offer, OfferQuery, Rental, RentalStatus
from tests.pool_fixtures import RunningPool

HOUR_MS = 3_600_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


def public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode()


async def until(status: RentalStatus, market: PoolMarketplace, rental_id: str, timeout_s: float = 20.0) -> Rental:
    """Poll a rental until it has this status."""
    async with asyncio.timeout(timeout_s):
        while (rental := await market.rental(rental_id)).status != status:
            await asyncio.sleep(0.05)
    return rental


async def holds(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Poll until something holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def free_offer(market: PoolMarketplace, timeout_s: float = 20.0) -> Offer:
    """An offer; a machine that was just given back is listed again with its host's next heartbeat."""
    async with asyncio.timeout(timeout_s):
        while not (offers := await market.offers(OfferQuery())):
            await asyncio.sleep(0.05)
    return offers[0]


async def rent(
    market: PoolMarketplace, key: asyncssh.SSHKey, label: str = "label-1", *, lasts_ms: int = HOUR_MS
) -> Rental:
    """Rent the first offer, as soon as there is one, and wait until it runs."""
    quote = await market.quote(await free_offer(market))
    rental = await market.rent(quote, label=label, ssh_public_key=public(key), deadline_ms=now_ms() + lasts_ms)
    return await until(RentalStatus.RUNNING, market, rental.rental_id)


async def release(market: PoolMarketplace, rental: Rental) -> Rental:
    """Release and wait until it is gone."""
    await market.release(rental.rental_id)
    return await until(RentalStatus.GONE, market, rental.rental_id)


@contextlib.asynccontextmanager
async def connected(rental: Rental, key: asyncssh.SSHKey, **more: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """An SSH connection to a rental, its host key pinned."""
    address = rental.address
    assert address is not None
    options: dict[str, Any] = {
        "username": address.user,
        "client_keys": [key],
        "known_hosts": asyncssh.import_known_hosts(f"[{address.host}]:{address.port} {address.host_key}\n"),
        "config": None,
        "agent_path": None,
        **more,
    }
    async with asyncssh.connect(address.host, address.port, **options) as connection:
        yield connection


@contextlib.asynccontextmanager
async def leased(
    pool: RunningPool, **more: Any
) -> AsyncIterator[tuple[PoolMarketplace, Rental, asyncssh.SSHClientConnection]]:
    """A rental with a connection to it; released at the end if it still lives."""
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key, f"label-{time.time_ns()}", **more)
    try:
        async with connected(rental, key) as connection:
            yield market, rental, connection
    finally:
        with contextlib.suppress(Exception):
            await release(market, rental)
        await market.aclose()


def processes_of(rental: Rental) -> list[psutil.Process]:
    """Living processes that carry the rental's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("GPUMARKET_LEASE") == rental.rental_id:
                found.append(process)
    return [process for process in found if is_alive(process.pid)]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
