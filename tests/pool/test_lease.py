"""What a lease on a pool host does, from renting to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncssh

from jupyter_gpumarket.marketplaces.pool import PoolMarketplace
from jupyter_gpumarket.models import OfferQuery, Rental, RentalStatus
from tests.pool_fixtures import RunningPool

HOUR_MS = 3_600_000


async def until(status: RentalStatus, market: PoolMarketplace, rental_id: str, timeout_s: float = 20.0) -> Rental:
    """Poll a rental until it has this status."""
    async with asyncio.timeout(timeout_s):
        while (rental := await market.rental(rental_id)).status != status:
            await asyncio.sleep(0.05)
    return rental


async def rented(market: PoolMarketplace, key: asyncssh.SSHKey, label: str = "label-1") -> Rental:
    """Rent the first offer and wait until it runs."""
    quote = await market.quote((await market.offers(OfferQuery()))[0])
    rental = await market.rent(
        quote,
        label=label,
        ssh_public_key=key.export_public_key().decode(),
        deadline_ms=int(time.time() * 1000) + HOUR_MS,
    )
    return await until(RentalStatus.RUNNING, market, rental.rental_id)


@asynccontextmanager
async def connected(rental: Rental, key: asyncssh.SSHKey) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """An SSH connection to a rental, its host key pinned."""
    address = rental.address
    assert address is not None
    known = asyncssh.import_known_hosts(f"[{address.host}]:{address.port} {address.host_key}\n")
    async with asyncssh.connect(
        address.host,
        address.port,
        username=address.user,
        client_keys=[key],
        known_hosts=known,
        config=None,
        agent_path=None,
    ) as connection:
        yield connection


def new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


async def test_a_rented_machine_runs_commands_and_is_gone_after_release(pool: RunningPool) -> None:
    """Rent, run a command over SSH with the given key, release: gone, folder removed, offer free again."""
    market, key = pool.marketplace(), new_key()
    before = sorted(pool.offer_ids())
    rental = await rented(market, key)
    async with connected(rental, key) as connection:
        done = await connection.run('echo "$GPUMARKET_LEASE"; pwd; exit 3')
    home = str(done.stdout).split()[1]

    await market.release(rental.rental_id)
    gone = await until(RentalStatus.GONE, market, rental.rental_id)
    await market.aclose()

    assert (done.exit_status, str(done.stdout).split()[0]) == (3, rental.rental_id)
    assert gone.ended_ms is not None
    assert not any((pool.host_folder(n) / "leases" / rental.rental_id).exists() for n in (0, 1))
    assert rental.rental_id in home
    pool.wait_until(lambda: sorted(pool.offer_ids()) == before, "the offer is free again")
