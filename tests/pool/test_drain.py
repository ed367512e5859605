"""A host that is drained: notice to whoever is on it, nobody new, and the end when it was told, or sooner."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import ConfigError, OfferGone
from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.pool import host
from jupyter_gpumarket.pool.__main__ import parser as pool_parser
from jupyter_gpumarket.pool.draining import PID_FILE, drain
from tests.pool.renting import connected, new_key, now_ms, processes_of, release, rent, until
from tests.pool_fixtures import ROOT, RunningPool

Start = Callable[..., RunningPool]


def told_to_drain(pool: RunningPool, *more: str) -> subprocess.CompletedProcess[str]:
    """`host --drain` on the machine of the first host."""
    argv = [sys.executable, "-m", "jupyter_gpumarket.pool", "host", "--folder", str(pool.host_folder(0)), "--drain"]
    return subprocess.run([*argv, *more], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)


async def ends_told(pool: RunningPool, rental_id: str) -> tuple[int, str]:
    market = pool.marketplace()
    async with asyncio.timeout(10):
        while (told := await market.rental(rental_id)).ends_ms is None:
            await asyncio.sleep(0.05)
    await market.aclose()
    return told.ends_ms, told.ends_why


async def test_a_drained_host_gives_notice_and_goes_when_it_said(start_pool: Start) -> None:
    """The rental says when and why, works until then, is gone after it with a true bill, and nobody new comes."""
    pool = start_pool()
    market, key = pool.marketplace(), new_key()
    quote = await market.quote((await market.offers(OfferQuery()))[0])
    rental = await rent(market, key)
    asked_ms = now_ms()
    done = await asyncio.to_thread(told_to_drain, pool, "--grace", "3")
    ends_ms, why = await ends_told(pool, rental.rental_id)
    async with connected(rental, key) as connection:
        works = str((await connection.run("echo works")).stdout).strip()
    with pytest.raises(OfferGone):
        await market.rent(quote, label="late", ssh_public_key=_public(), deadline_ms=now_ms() + 60_000)
    gone = await until(RentalStatus.GONE, market, rental.rental_id)
    (charge,) = await market.charges(rental.rental_id)
    await market.aclose()
    code = await asyncio.to_thread(pool.hosts[0].process.wait, 20)  # type: ignore[union-attr]

    assert (done.returncode, code) == (0, 0), done.stderr + pool.hosts[0].logged()
    assert works == "works"
    assert 2_000 <= ends_ms - asked_ms <= 13_000
    assert "drains the host host-0" in why
    assert gone.ended_ms is not None
    assert gone.ended_ms >= ends_ms - 300
    assert charge.final
    assert processes_of(rental) == []


def _public() -> str:
    return new_key().export_public_key().decode()


async def test_a_drained_host_goes_at_once_when_nobody_is_left(start_pool: Start) -> None:
    """SIGTERM with a grace of an hour: the last release ends the process, and a second SIGTERM would have."""
    pool = start_pool(host=("--grace", "3600"))
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    pool.hosts[0].signal(signal.SIGTERM)
    ends_ms, _ = await ends_told(pool, rental.rental_id)
    offered = pool.offer_ids()
    await release(market, rental)
    await market.aclose()
    code = await asyncio.to_thread(pool.hosts[0].process.wait, 20)  # type: ignore[union-attr]

    assert offered == []
    assert ends_ms - now_ms() > 3_000_000
    assert code == 0, pool.hosts[0].logged()


async def test_a_second_signal_ends_a_drained_host_at_once(start_pool: Start) -> None:
    """Whoever sends SIGTERM twice does not want to wait."""
    pool = start_pool(host=("--grace", "3600"))
    market = pool.marketplace()
    rental = await rent(market, new_key())
    pool.hosts[0].signal(signal.SIGTERM)
    await ends_told(pool, rental.rental_id)
    pool.hosts[0].signal(signal.SIGTERM)
    code = await asyncio.to_thread(pool.hosts[0].process.wait, 20)  # type: ignore[union-attr]
    gone = await until(RentalStatus.GONE, market, rental.rental_id)
    await market.aclose()

    assert code == 0, pool.hosts[0].logged()
    assert gone.status == RentalStatus.GONE


@pytest.mark.parametrize("grace", ["5", "-1"])
def test_draining_where_no_host_runs_says_so(tmp_path: Path, grace: str) -> None:
    """One clear line and exit code 2: there is no host, or no such time."""
    argv = [sys.executable, "-m", "jupyter_gpumarket.pool", "host", "--folder", str(tmp_path), "--drain"]
    done = subprocess.run([*argv, "--grace", grace], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 2
    assert ("no host has run in" if grace == "5" else "is not between 0 and 30 days") in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_host_that_is_starting_is_not_taken_for_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that an earlier host's number belongs to now is not signalled; who asks is told to try again."""
    (tmp_path / PID_FILE).write_text("1")
    seen: list[str] = []

    def starting(folder: Path) -> None:
        with pytest.raises(ConfigError, match="still starting"):
            drain(folder, 1.0)
        seen.append("asked")
        raise ConfigError("it need not start")

    monkeypatch.setattr(host, "known_identity", starting)
    options = host.HostOptions(
        registry="http://127.0.0.1:1", token_file=tmp_path / "t", folder=tmp_path, price_nusd_hour=1
    )
    with pytest.raises(ConfigError, match="need not start"):
        await host.run_host(options)
    assert seen == ["asked"]


@pytest.mark.parametrize("grace", ["-1", "inf", "nan"])
def test_a_notice_that_cannot_be_waited_for_is_refused_at_the_start(tmp_path: Path, grace: str) -> None:
    """Not at SIGTERM, when the host would not end."""
    token = tmp_path / "join.token"
    token.touch(0o600)
    argv = ["host", "--folder", str(tmp_path / "host"), "--registry", "http://127.0.0.1:1", "--token-file", str(token)]
    parsed = pool_parser().parse_args([*argv, f"--grace={grace}"])
    with pytest.raises(ConfigError, match="--grace"):
        parsed.run(parsed)
