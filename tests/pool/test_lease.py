"""What a lease on a pool host does, and that its end leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from jupyter_gpumarket.models import Rental, RentalStatus
from tests.pool.renting import connected, holds, is_alive, leased, new_key, now_ms, processes_of, release, rent, until
from tests.pool_fixtures import RunningPool, pools


@pytest.fixture(scope="module")
def shared() -> Any:
    """One registry with two hosts for all tests here."""
    with pools() as start:
        yield start(hosts=2)


@pytest.fixture
def pool(shared: RunningPool) -> Iterator[RunningPool]:
    """It again, with nothing rented, also after a test that broke off."""
    yield shared
    shared.give_all_back()


def lease_folders(pool: RunningPool) -> list[Path]:
    return [folder for number in (0, 1) for folder in (pool.host_folder(number) / "leases").iterdir()]


async def test_a_rented_machine_runs_commands_and_is_gone_after_release(pool: RunningPool) -> None:
    """Rent, run a command over SSH with the given key, release: gone, folder removed, offer free again."""
    before = sorted(pool.offer_ids())
    async with leased(pool) as (market, rental, connection):
        done = await connection.run('echo "$GPUMARKET_LEASE"; pwd; echo "$HOME"; exit 3')
        during = [folder.name for folder in lease_folders(pool)]
        gone = await release(market, rental)

    name, folder, home = str(done.stdout).split()
    assert (done.exit_status, name, folder) == (3, rental.rental_id, home)
    assert during == [rental.rental_id]
    assert gone.ended_ms is not None
    assert not Path(folder).exists()
    pool.wait_until(lambda: sorted(pool.offer_ids()) == before, "the offer is free again")


QUIET = "</dev/null >/dev/null 2>&1"
DAEMONS = {
    "setsid": f"setsid sleep 1000 {QUIET} &",
    "double fork": f"(setsid sh -c 'sleep 1000 & sleep 1000' {QUIET} &) &",
    "ignores SIGTERM": f"setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.1; done' {QUIET} &",
    "without the mark": f"env -i setsid sleep 1000 {QUIET} &",
    "stopped": f"setsid sleep 1000 {QUIET} & kill -STOP $!",
    "respawns": f"setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' {QUIET} &",
}


@pytest.mark.parametrize("command", DAEMONS.values(), ids=DAEMONS)
async def test_no_daemon_outlives_the_release(pool: RunningPool, command: str) -> None:
    """Whatever a lease left in the background is dead before the rental is told to be gone."""
    async with leased(pool) as (market, rental, connection):
        supervisor = int(str((await connection.run('echo "$GPUMARKET_SUPERVISOR"')).stdout))
        await connection.run(command, check=True)
        await holds(lambda: below(supervisor))
        started = below(supervisor)
        await release(market, rental)

    assert started
    assert not [pid for pid in started if is_alive(pid)]
    assert processes_of(rental) == []


def below(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.mark.parametrize("how", ["KILL", "STOP"])
async def test_a_lease_that_attacks_its_supervisor_leaves_nothing(pool: RunningPool, how: str) -> None:
    """Killing or stopping the supervisor from inside, daemons without a mark included, does not save a process."""
    async with leased(pool) as (market, rental, connection):
        await connection.run("env -i setsid sleep 1111 </dev/null >/dev/null 2>&1 &")
        supervisor = int(str((await connection.run('echo "$GPUMARKET_SUPERVISOR"')).stdout))
        await holds(lambda: below(supervisor))
        started = below(supervisor)
        # Nobody is left to tell how this command ended.
        await connection.create_process(f"kill -{how} {supervisor}")
        await holds(lambda: not is_alive(supervisor) or psutil.Process(supervisor).status() == psutil.STATUS_STOPPED)
        gone = await release(market, rental)

    assert started
    assert not [pid for pid in [supervisor, *started] if is_alive(pid)]
    assert gone.status == RentalStatus.GONE
    assert lease_folders(pool) == []


async def test_a_folder_without_permissions_is_removed(pool: RunningPool) -> None:
    """Modes, links and odd names in a lease's folder do not keep it alive, and links are not followed."""
    async with leased(pool) as (market, rental, connection):
        outside = pool.folder / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "kept").write_text("x")
        await connection.run(
            f"mkdir -p a/b && touch a/b/c && chmod 0 a/b a && ln -s {outside} link && mkfifo p && touch -- '-rf \n x'",
            check=True,
        )
        await release(market, rental)

    assert lease_folders(pool) == []
    assert (outside / "kept").exists()


async def test_a_daemon_outlives_its_connection_but_not_its_lease(pool: RunningPool) -> None:
    """What detaches itself runs on when the SSH connection is gone: the agent's way to live."""
    key, market = new_key(), pool.marketplace()
    rental = await rent(market, key, "daemon")
    async with connected(rental, key) as connection:
        await connection.run("setsid sleep 1222 </dev/null >/dev/null 2>&1 & echo $! > pid", check=True)
    async with connected(rental, key) as connection:
        pid = int(str((await connection.run("cat pid", check=True)).stdout))
        alive = is_alive(pid)
    await release(market, rental)
    await market.aclose()

    assert alive
    assert not is_alive(pid)


async def test_only_the_leases_own_key_opens_it(pool: RunningPool) -> None:
    """Another lease's key, an unknown user name, a password: refused. The own one: accepted."""
    key, other, market = new_key(), new_key(), pool.marketplace()
    mine = await rent(market, key, "mine")
    theirs = await rent(market, other, "theirs")
    for rental, wrong, more in (
        (mine, other, {}),
        (theirs, key, {}),
        (mine, key, {"username": theirs.rental_id}),
        (mine, key, {"username": "root"}),
        (mine, key, {"client_keys": None, "password": "x"}),
    ):
        with pytest.raises(asyncssh.PermissionDenied):
            async with connected(rental, wrong, **more):
                pass
    async with connected(mine, key) as connection:
        assert str((await connection.run("echo ok")).stdout) == "ok\n"
    for rental in (mine, theirs):
        await release(market, rental)
    await market.aclose()


async def test_a_released_lease_closes_its_connections_and_refuses_its_key(pool: RunningPool) -> None:
    """After release the open connection is gone, and the key opens nothing."""
    key, market = new_key(), pool.marketplace()
    rental = await rent(market, key, "over")
    async with connected(rental, key) as connection:
        await release(market, rental)
        async with asyncio.timeout(10):
            await connection.wait_closed()
    with pytest.raises(asyncssh.PermissionDenied):
        async with connected(rental, key):
            pass
    await market.aclose()


async def test_there_is_no_forwarding(pool: RunningPool) -> None:
    """Neither TCP nor unix sockets, in neither direction, can be forwarded through a host."""
    async with leased(pool) as (_market, _rental, connection):
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection("/tmp/x")
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 22)


async def test_only_aes_gcm_is_spoken(pool: RunningPool) -> None:
    """A client without AES-GCM gets no connection; the same client with it gets one."""
    key, market = new_key(), pool.marketplace()
    rental = await rent(market, key, "cipher")
    # The host hangs up as soon as it sees the offer, sometimes before its reason has been read.
    with pytest.raises((asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost)):
        async with connected(rental, key, encryption_algs=["aes256-ctr"]):
            pass
    async with connected(rental, key, encryption_algs=["aes256-ctr", "aes256-gcm@openssh.com"]) as connection:
        assert "gcm" in connection.get_extra_info("send_cipher")
    await release(market, rental)
    await market.aclose()


async def test_exit_statuses_and_signals_arrive(pool: RunningPool) -> None:
    """Exit codes, deaths by signal, and signals sent over the channel are all told truly."""
    async with leased(pool) as (_market, _rental, connection):
        assert (await connection.run("exit 7")).exit_status == 7
        assert (await connection.run("kill -KILL $$")).exit_signal[0] == "KILL"
        process = await connection.create_process(
            "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.05; done"
        )
        assert await process.stdout.readline() == "up\n"
        process.terminate()
        done = await process.wait()
        assert (done.exit_status, done.stdout) == (9, "caught\n")
        process = await connection.create_process("echo up; exec sleep 1000")
        assert await process.stdout.readline() == "up\n"
        process.send_signal("INT")
        assert (await process.wait()).exit_signal[0] == "INT"
        process = await connection.create_process("sleep 1000")
        process.terminate()  # before the command has begun
        assert (await process.wait()).exit_signal[0] == "TERM"
        assert (await connection.run("/no/such/program")).exit_status == 127


async def test_bytes_pass_unchanged_under_back_pressure(pool: RunningPool) -> None:
    """Megabytes through several channels at once, with readers slower than the writer: every byte, in order."""
    content = bytes(range(256)) * 16 * 1024

    async def through(connection: asyncssh.SSHClientConnection) -> bytes:
        process = await connection.create_process("cat", encoding=None)
        received = bytearray()

        async def read() -> None:
            await asyncio.sleep(0.3)
            while data := await process.stdout.read(50_000):
                received.extend(data)

        reading = asyncio.create_task(read())
        for start in range(0, len(content), 100_000):
            process.stdin.write(content[start : start + 100_000])
            await process.stdin.drain()
        process.stdin.write_eof()
        await reading
        return bytes(received)

    async with leased(pool) as (_market, _rental, connection):
        results = await asyncio.gather(*(through(connection) for _ in range(3)))

    assert all(result == content for result in results)


async def test_a_reader_that_stops_holds_the_writer_up(pool: RunningPool) -> None:
    """A client that reads nothing makes the command wait; the host does not buffer without bound."""
    async with leased(pool) as (_market, _rental, connection):
        process = await connection.create_process(
            "i=0; while [ $i -lt 2000 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > count; done", encoding=None
        )
        # It stands still once the windows and buffers in between are full; how soon depends on the machine.
        counts = [-1, -2, -3]
        async with asyncio.timeout(60):
            while len(set(counts[-3:])) > 1:
                await asyncio.sleep(0.5)
                counts.append(int(str((await connection.run("cat count 2>/dev/null || echo -9")).stdout) or 0))
        process.close()

    assert 0 < counts[-1] < 400


async def test_stdout_and_stderr_stay_apart(pool: RunningPool) -> None:
    """Both streams arrive whole, each in its own."""
    async with leased(pool) as (_market, _rental, connection):
        done = await connection.run("seq 1 20000; seq 1 10000 >&2")

    assert str(done.stdout).split() == [str(n) for n in range(1, 20001)]
    assert str(done.stderr).split() == [str(n) for n in range(1, 10001)]


async def test_a_background_process_that_keeps_the_output_open_does_not_hang_the_command(pool: RunningPool) -> None:
    """`command &` without redirection: the exit status arrives all the same, within a few seconds."""
    async with leased(pool) as (_market, _rental, connection):
        begun = time.monotonic()
        done = await connection.run("echo before; sleep 1000 & exit 5", timeout=15)

    assert (done.exit_status, done.stdout) == (5, "before\n")
    assert time.monotonic() - begun < 10


async def test_a_shell_has_a_terminal(pool: RunningPool) -> None:
    """An interactive shell runs on a terminal of the asked size, and its hang-up ends what runs on it."""
    async with leased(pool) as (_market, rental, connection):
        process = await connection.create_process(term_type="xterm", term_size=(100, 40), encoding=None)
        process.stdin.write(b"stty size; echo $TERM; tty; sleep 1333\n")
        shown = b""
        while b"/dev/" not in shown:
            shown += await process.stdout.read(1000)
        await holds(lambda: any("1333" in p.cmdline() for p in processes_of(rental)))
        process.close()
        await holds(lambda: not any("1333" in p.cmdline() for p in processes_of(rental)))

    assert b"40 100" in shown
    assert b"xterm" in shown


async def test_sftp_stays_in_the_folder(pool: RunningPool) -> None:
    """Relative and absolute names in the lease's folder work; nothing outside can be named or linked to."""
    async with leased(pool) as (_market, _rental, connection):
        home = str((await connection.run("pwd")).stdout).strip()
        await connection.run("ln -s /etc etc; ln -s /etc/passwd passwd; mkdir -p .gpumarket/x", check=True)
        async with connection.start_sftp_client() as sftp:
            for name in ("a.bin", f"{home}/b.bin", ".gpumarket/x/c.bin", f"{home}/.gpumarket/d.bin"):
                async with sftp.open(name, "wb") as file:
                    await file.write(b"content")
                async with sftp.open(name, "rb") as file:
                    assert await file.read() == b"content"
            await sftp.posix_rename("a.bin", f"{home}/e.bin")
            assert {"e.bin", "b.bin", ".gpumarket"} <= set(await sftp.listdir("."))
            for name in ("/etc/passwd", "../x", "etc/passwd", "passwd", f"{home}/../../host.json", "etc/new"):
                with pytest.raises(asyncssh.SFTPError):
                    async with sftp.open(name, "rb"):
                        pass
            with pytest.raises(asyncssh.SFTPError):
                await sftp.put(__file__, "etc/new")


async def test_a_lease_sees_nothing_of_the_hosts_environment(pool: RunningPool) -> None:
    """The environment is the agreed one: no PYTHONPATH, no host secrets; a Python that has the packages is named."""
    async with leased(pool) as (_market, _rental, connection):
        shown = dict(line.split("=", 1) for line in str((await connection.run("env")).stdout).splitlines())
        done = await connection.run('"$GPUMARKET_PYTHON" -c "import distributed, ipykernel, msgspec"')

    assert set(shown) - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH", "LANG", "HOME", "TMPDIR", "SHELL", "USER", "LOGNAME", "GPUMARKET_LEASE", "GPUMARKET_HOST",
        "GPUMARKET_PYTHON", "GPUMARKET_SUPERVISOR", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES",
    }  # fmt: skip
    assert done.exit_status == 0, done.stderr


async def test_the_deadline_ends_a_forgotten_lease(pool: RunningPool) -> None:
    """Nobody asks, and still the node is gone at its deadline."""
    async with leased(pool, lasts_ms=2_500) as (market, rental, connection):
        await connection.run("setsid sleep 1444 </dev/null >/dev/null 2>&1 &")
        gone = await until(RentalStatus.GONE, market, rental.rental_id)

    assert processes_of(rental) == []
    assert gone.created_ms is not None
    assert gone.ended_ms is not None
    assert 2_000 <= gone.ended_ms - gone.created_ms < 8_000


async def test_a_moved_deadline_is_the_one_that_counts(pool: RunningPool) -> None:
    """An extended lease outlives its first deadline on every timer: registry, host and supervisor."""
    async with leased(pool, lasts_ms=2_500) as (market, rental, connection):
        await market.set_deadline(rental.rental_id, now_ms() + 6_000)
        await holds(lambda: now_ms() > (rental.created_ms or 0) + 3_500)
        alive = await connection.run("echo alive")
        gone = await until(RentalStatus.GONE, market, rental.rental_id)

    assert alive.stdout == "alive\n"
    assert gone.ended_ms is not None


async def test_a_node_can_end_itself(pool: RunningPool) -> None:
    """The self-stop recipe, run on the node without any key, ends the rental."""
    async with leased(pool) as (market, rental, connection):
        recipe = market.self_stop(rental)
        assert recipe is not None
        await connection.create_process(recipe.argv[-1])
        gone = await until(RentalStatus.GONE, market, rental.rental_id)

    assert "from inside" in gone.detail


async def test_the_bill_is_exact(pool: RunningPool) -> None:
    """The registry's charge is price × whole seconds between its own start and end times, to the nano-dollar."""
    async with leased(pool) as (market, rental, _connection):
        gone = await release(market, rental)
        (charge,) = await market.charges(rental.rental_id)

    seconds = -(-(charge.end_ms - charge.start_ms) // 1000)
    assert charge.final
    assert charge.end_ms == gone.ended_ms
    assert gone.price_nusd_hour == 350_000_000
    assert charge.amount_nusd == -(-350_000_000 * seconds // 3600)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")
async def test_openssh_can_log_in(pool: RunningPool, tmp_path: Path) -> None:
    """The plain `ssh` command works with the told address, key and host key."""
    key, market = new_key(), pool.marketplace()
    rental = await rent(market, key, "openssh")
    address = rental.address
    assert address is not None
    (tmp_path / "key").write_bytes(key.export_private_key())
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "known").write_text(f"[{address.host}]:{address.port} {address.host_key}\n")
    done = await asyncio.to_thread(
        subprocess.run,
        ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o",
         "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-p", str(address.port),
         f"{address.user}@{address.host}", "cat; exit 6"],
        input=b"hello", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    await release(market, rental)
    await market.aclose()

    assert (done.returncode, done.stdout) == (6, b"hello"), done.stderr


async def test_two_notebooks_want_the_same_offer(pool: RunningPool) -> None:
    """Both have a quote, both rent at once: exactly one gets it, the other is told OfferGone."""
    from jupyter_gpumarket.errors import OfferGone
    from tests.pool.renting import free_offer, public

    one, two, key = pool.marketplace(), pool.marketplace(), new_key()
    offer = await free_offer(one)
    quotes = [await market.quote(offer) for market in (one, two)]
    outcomes = await asyncio.gather(
        *(
            market.rent(quote, label=f"race-{n}", ssh_public_key=public(key), deadline_ms=now_ms() + 60_000)
            for n, (market, quote) in enumerate(zip((one, two), quotes, strict=True))
        ),
        return_exceptions=True,
    )
    rentals = await one.rentals()
    for rental in rentals:
        await release(one, rental)
    for market in (one, two):
        await market.aclose()

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["OfferGone", "Rental"]
    assert any(isinstance(outcome, OfferGone) for outcome in outcomes)
    assert len(rentals) == 1


def test_signal_names_are_the_systems() -> None:
    """The names of SSH map to this system's numbers, both ways."""
    from jupyter_gpumarket.pool.host_ssh import SIGNAL_NAMES, SIGNALS

    assert SIGNALS["TERM"] == signal.SIGTERM
    assert all(SIGNALS[name] == number for number, name in SIGNAL_NAMES.items())


async def test_strangers_at_the_door_do_no_harm(pool: RunningPool) -> None:
    """Garbage, half a greeting and many idle connections before any key: the lease goes on, and others get in again."""
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key, "besieged")
    async with connected(rental, key) as connection:
        assert rental.address is not None
        idle = []
        for greeting in (
            b"",
            b"SSH-2.0-x",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00" * 300_000,
            b"SSH-2.0-x\r\n" + b"\xff" * 4000,
        ):
            reader, writer = await asyncio.open_connection(rental.address.host, rental.address.port)
            writer.write(greeting)
            idle.append(writer)
        for _ in range(100):
            reader, writer = await asyncio.open_connection(rental.address.host, rental.address.port)
            idle.append(writer)
        assert str((await connection.run("echo on")).stdout) == "on\n"
        for writer in idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        del reader
        assert str((await connection.run("echo on")).stdout) == "on\n"
    # The host learns a little later that the strangers have gone, and lets nobody new in before.
    async with asyncio.timeout(20):
        while not await lets_in(rental, key):
            await asyncio.sleep(0.05)
    await market.aclose()


async def lets_in(rental: Rental, key: asyncssh.SSHKey) -> bool:
    """Whether a new connection to a lease comes up."""
    try:
        async with connected(rental, key) as connection:
            return (await connection.run("echo in")).stdout == "in\n"
    except (asyncssh.Error, OSError):
        return False
