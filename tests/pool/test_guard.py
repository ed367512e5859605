"""When TLS is a must, and that the registry's certificate is pinned by hosts and users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import ConfigError, Temporary
from jupyter_gpumarket.models import OfferQuery
from jupyter_gpumarket.pool import guard
from jupyter_gpumarket.pool.host import HostOptions, own_address, pinned, read_token
from tests.pool.renting import connected, new_key, release, rent
from tests.pool_fixtures import Process, RunningPool


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("10.0.0.1", False),
        ("lab.example", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("::ffff:192.168.1.5", False),
    ],
)
def test_tls_is_a_must_beyond_loopback(address: str, loopback: bool) -> None:
    """Whatever others could reach needs TLS, and without it nothing is listened on; loopback may go without."""
    assert guard.needs_tls([address]) is not loopback
    assert guard.needs_tls([address], required=True)
    if loopback:
        guard.refuse_plain(address, tls=False)
    else:
        with pytest.raises(ConfigError, match="without TLS"):
            guard.refuse_plain(address, tls=False)
        guard.refuse_plain(address, tls=True)


def test_one_address_beyond_loopback_is_enough() -> None:
    """Of several addresses the most exposed one decides."""
    assert guard.needs_tls(["127.0.0.1", "192.168.1.5"])


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "h:-1"])
def test_bad_addresses_are_refused(text: str) -> None:
    """What is no address:port is named in the error."""
    with pytest.raises(ConfigError, match="address to listen on"):
        guard.split_address(text)


def test_addresses_are_taken_apart() -> None:
    """IPv4, names and IPv6 in brackets."""
    assert guard.split_address("0.0.0.0:8799") == ("0.0.0.0", 8799)
    assert guard.split_address("[::1]:0") == ("::1", 0)


async def test_a_registry_does_not_listen_beyond_loopback_in_the_clear(tmp_path: Path) -> None:
    """`--no-tls` on every address: exit code 2, one clear line, and nothing was listened on."""
    registry = Process(
        ["registry", "--folder", str(tmp_path / "r"), "--listen", "0.0.0.0:0", "--no-tls"], tmp_path / "log"
    )
    registry.start()
    assert registry.process is not None
    code = await asyncio.to_thread(registry.process.wait, 30)
    registry.stop()

    assert code == 2
    assert "without TLS" in registry.logged()
    assert not (tmp_path / "r" / "registry.json").exists()


async def test_the_whole_way_over_tls(start_pool: Callable[..., RunningPool]) -> None:
    """A registry with TLS, a host pinned by the fingerprint, a user pinned by the file: rent, run, release."""
    pool = start_pool(hosts=0, registry=("--require-tls",))
    shown = (pool.folder / "registry.log").read_text()
    print_of_it = guard.fingerprint(Path(pool.ca_file).read_text())
    pool.add_host("--fingerprint", print_of_it)
    market, key = pool.marketplace(), new_key()
    rental = await rent(market, key)
    async with connected(rental, key) as connection:
        done = await connection.run("echo over tls")
    await release(market, rental)
    await market.aclose()

    assert pool.url.startswith("https://")
    assert f"--fingerprint {print_of_it}" in shown
    assert pool.join_token not in shown
    assert done.stdout == "over tls\n"


async def test_another_certificate_is_not_trusted(start_pool: Callable[..., RunningPool], tmp_path: Path) -> None:
    """A user who pinned another certificate gets no word through; a host with another fingerprint does not join."""
    pool = start_pool(hosts=0, registry=("--require-tls",))
    other, _ = guard.make_certificate(tmp_path, ["127.0.0.1"])
    real, pool.ca_file = pool.ca_file, str(other)
    market = pool.marketplace()
    with pytest.raises(Temporary, match="reached"):
        await market.offers(OfferQuery())
    await market.aclose()
    pool.ca_file = real
    host, port = guard.split_address(pool.url.removeprefix("https://"))
    with pytest.raises(ConfigError, match="in between"):
        await asyncio.to_thread(guard.fetch_pinned, host, port, guard.fingerprint(other.read_text()))
    assert guard.fetch_pinned(host, port, guard.fingerprint(Path(real).read_text())) == Path(real).read_text()


async def test_hosts_send_no_token_in_the_clear(tmp_path: Path) -> None:
    """http beyond loopback, and https with nothing to pin, are refused before anything is sent."""
    for url, words in (("http://lab.example:1", "in the clear"), ("https://lab.example:1", "fingerprint")):
        options = HostOptions(registry=url, token_file=tmp_path / "t", folder=tmp_path, price_nusd_hour=0)
        with pytest.raises(ConfigError, match=words):
            await pinned(options)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A join token with mode 0644, or none at all, is refused with the command that puts it right."""
    file = tmp_path / "join.token"
    with pytest.raises(ConfigError, match="token file"):
        read_token(file)
    file.write_text("x")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(file)


def test_the_certificate_is_kept(tmp_path: Path) -> None:
    """Made once, private, the same at the next start: pins stay good."""
    first = guard.make_certificate(tmp_path, ["127.0.0.1", "lab.example"])
    before = first[0].read_bytes()

    assert guard.make_certificate(tmp_path, ["127.0.0.1"]) == first
    assert first[0].read_bytes() == before
    assert first[1].stat().st_mode & 0o077 == 0


def test_own_address_is_loopback_for_a_loopback_registry() -> None:
    """A host beside its registry advertises loopback, and so listens only there."""
    assert own_address("http://127.0.0.1:1") == "127.0.0.1"
