"""Kills and silences: what is left running, what is billed, and what is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import Temporary
from jupyter_gpumarket.models import RentalStatus
from tests.pool.renting import (
    connected,
    holds,
    is_alive,
    new_key,
    now_ms,
    processes_of,
    release,
    rent,
    until,
)
from tests.pool_fixtures import RunningPool

pytestmark = pytest.mark.slow
Start = Callable[..., RunningPool]
BUSY = (
    "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' </dev/null >/dev/null 2>&1 & "
    "setsid sleep 2111 </dev/null >/dev/null 2>&1 & echo $!"
)


async def test_killing_the_host_kills_its_leases(start_pool: Start) -> None:
    """kill -9 of the host: within a second or so no process of the lease runs; the bill ends at the last heartbeat."""
    pool = start_pool(registry=("--lost-after", "2"))
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    async with connected(rental, key) as connection:
        await connection.run(BUSY)
        await holds(lambda: len(processes_of(rental)) >= 4)
        killed_ms = now_ms()
        pool.hosts[0].kill()
        await holds(lambda: processes_of(rental) == [], timeout_s=5)
    gone = await until(RentalStatus.GONE, market, rental.rental_id)
    (charge,) = await market.charges(rental.rental_id)
    await market.aclose()

    assert "lost" in gone.detail
    assert charge.final
    assert charge.end_ms <= killed_ms + 100
    assert pool.offer_ids() == []


async def test_a_restarted_host_sweeps_and_serves_again(start_pool: Start) -> None:
    """After kill -9 and a start the old rental is gone, its folder is swept, and the offer can be rented again."""
    pool = start_pool(registry=("--lost-after", "60"))
    market, key = pool.marketplace(), new_key()
    old = await rent(market, key, "old")
    folder = pool.host_folder(0) / "leases" / old.rental_id
    assert folder.exists()
    pool.hosts[0].kill()
    pool.hosts[0].start()
    gone = await until(RentalStatus.GONE, market, old.rental_id)
    await asyncio.to_thread(pool.wait_until, lambda: len(pool.offer_ids()) == 1, "listed again")
    new = await rent(market, key, "new")
    async with connected(new, key) as connection:
        assert str((await connection.run("echo again")).stdout) == "again\n"
    await release(market, new)
    await market.aclose()

    assert "anew" in gone.detail
    assert not folder.exists()
    assert new.address is not None
    assert old.address is not None
    assert new.address.host_key == old.address.host_key


async def test_leases_go_on_while_the_registry_is_down(start_pool: Start) -> None:
    """kill -9 of the registry: the lease runs on; when it is back, it knows the rental, the label and the bill."""
    pool = start_pool(registry=("--lost-after", "20"))
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key, "kept")
    async with connected(rental, key) as connection:
        assert pool.registry is not None
        pool.registry.kill()
        with pytest.raises(Temporary):
            await market.rental(rental.rental_id)
        assert str((await connection.run("echo on")).stdout) == "on\n"
        url = pool.url
        await asyncio.to_thread(pool.start_registry)
        assert pool.url == url
        back = await until(RentalStatus.RUNNING, market, rental.rental_id)
        assert str((await connection.run("echo still")).stdout) == "still\n"
    found = await market.find("kept")
    gone = await release(market, rental)
    (charge,) = await market.charges(rental.rental_id)
    await market.aclose()

    assert found is not None
    assert found.rental_id == rental.rental_id == back.rental_id
    assert gone.ended_ms == charge.end_ms


async def test_both_killed_ends_in_no_process_and_a_truthful_bill(start_pool: Start) -> None:
    """kill -9 of host and registry together: nothing runs; once both are back the rental is gone and billed truly."""
    pool = start_pool()
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    async with connected(rental, key) as connection:
        await connection.run(BUSY)
        assert pool.registry is not None
        killed_ms = now_ms()
        pool.registry.kill()
        pool.hosts[0].kill()
        await holds(lambda: processes_of(rental) == [], timeout_s=5)
    await asyncio.to_thread(pool.start_registry)
    pool.hosts[0].start()
    await until(RentalStatus.GONE, market, rental.rental_id)
    (charge,) = await market.charges(rental.rental_id)
    await market.aclose()

    assert charge.end_ms <= killed_ms + 100


async def test_a_released_rental_ends_after_the_registry_restarts(start_pool: Start) -> None:
    """A release that was accepted is carried out, also when the registry dies right after it."""
    pool = start_pool()
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    pool.hosts[0].signal(signal.SIGSTOP)
    await market.release(rental.rental_id)
    assert pool.registry is not None
    pool.registry.kill()
    await asyncio.to_thread(pool.start_registry)
    told = (await market.rental(rental.rental_id)).status
    pool.hosts[0].signal(signal.SIGCONT)
    await until(RentalStatus.GONE, market, rental.rental_id)
    await market.aclose()

    assert told == RentalStatus.ENDING


async def test_a_suspended_host_ends_its_lost_leases_when_it_wakes(start_pool: Start) -> None:
    """SIGSTOP past the limit: gone and not billed on; awake again, the host ends it before it offers anew."""
    pool = start_pool(registry=("--lost-after", "1.5"))
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    async with connected(rental, key) as connection:
        await connection.run(BUSY)
    pool.hosts[0].signal(signal.SIGSTOP)
    await until(RentalStatus.GONE, market, rental.rental_id)
    (charge,) = await market.charges(rental.rental_id)
    pool.hosts[0].signal(signal.SIGCONT)
    await asyncio.to_thread(pool.wait_until, lambda: len(pool.offer_ids()) == 1, "listed again")
    left = processes_of(rental)
    (later,) = await market.charges(rental.rental_id)
    await market.aclose()

    assert left == []
    assert charge == later


async def test_a_host_that_is_told_to_stop_leaves_nothing(start_pool: Start) -> None:
    """SIGTERM: leases are ended and confirmed, the offer withdrawn, the exit code 0."""
    pool = start_pool()
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    async with connected(rental, key) as connection:
        pid = int(str((await connection.run(BUSY)).stdout))
    code = await asyncio.to_thread(pool.hosts[0].stop)
    gone = await market.rental(rental.rental_id)
    await market.aclose()

    assert code == 0, pool.hosts[0].logged()
    assert not is_alive(pid)
    assert gone.status == RentalStatus.GONE
    assert pool.offer_ids() == []
    assert list((pool.host_folder(0) / "leases").iterdir()) == []


async def test_a_registry_that_lost_its_memory_is_joined_anew(start_pool: Start) -> None:
    """Without its database the registry knows no rental: hosts end what they have, join again, and can be rented."""
    pool = start_pool()
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    assert pool.registry is not None
    pool.registry.kill()
    for file in (pool.folder / "r").glob("registry.sqlite*"):
        file.unlink()
    await asyncio.to_thread(pool.start_registry)
    await asyncio.to_thread(pool.wait_until, lambda: len(pool.offer_ids()) == 1, "listed again")
    await holds(lambda: processes_of(rental) == [])
    known = await market.rental(rental.rental_id)
    await market.aclose()

    assert known.status == RentalStatus.GONE


async def test_two_registries_cannot_share_a_folder(start_pool: Start) -> None:
    """A second registry on the same folder stops at once and says why."""
    from tests.pool_fixtures import Process

    pool = start_pool(hosts=0)
    second = Process(["registry", "--folder", str(pool.folder / "r")], pool.folder / "second.log")
    second.start()
    assert second.process is not None
    code = await asyncio.to_thread(second.process.wait, 30)
    second.stop()

    assert code == 2
    assert "another process has the folder" in second.logged()
    assert "Traceback" not in second.logged()


async def test_wrong_join_tokens_and_bad_folders_stop_a_host(start_pool: Start, tmp_path: Path) -> None:
    """A host with a wrong token ends with exit code 2 and one clear line."""
    pool = start_pool(hosts=0)
    wrong = tmp_path / "wrong.token"
    wrong.write_text("not the token")
    wrong.chmod(0o600)
    host = pool.add_host("--token-file", str(wrong), wait=False)
    assert host.process is not None
    code = await asyncio.to_thread(host.process.wait, 30)

    assert code == 2
    assert "join token" in host.logged()
    assert "not the token" not in host.logged()


async def test_two_hosts_on_two_addresses(start_pool: Start) -> None:
    """Hosts that listen on different addresses are rented and reached side by side."""
    pool = start_pool(hosts=1)
    pool.add_host("--advertise", "127.0.0.2", "--listen", "127.0.0.2:0", price="0.10")
    market, key = pool.marketplace(), new_key()
    first = await rent(market, key, "one")
    second = await rent(market, key, "two")
    hosts = set()
    for rental in (first, second):
        assert rental.address is not None
        hosts.add(rental.address.host)
        async with connected(rental, key) as connection:
            assert str((await connection.run("echo $GPUMARKET_LEASE")).stdout).strip() == rental.rental_id
    for rental in (first, second):
        await release(market, rental)
    await market.aclose()

    assert hosts == {"127.0.0.1", "127.0.0.2"}
