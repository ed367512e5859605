"""The pool's adapter against a real registry and real hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, Temporary
from jupyter_gpumarket.marketplaces.pool import PoolMarketplace, PoolOptions
from jupyter_gpumarket.models import OfferQuery, Tier
from tests.marketplaces.contract import MarketplaceContract, World, new_public_key
from tests.marketplaces.troubled import Trouble, TroubledProxy
from tests.pool_fixtures import RunningPool, pools


@pytest.fixture(scope="module")
def running() -> Any:
    """One registry with one host for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def world(running: RunningPool) -> AsyncIterator[World]:
    """The adapter, talking to the registry through the troubled proxy."""
    running.wait_until(running.offer_ids, "the offer is free")
    proxy = TroubledProxy(running.url)
    market = PoolMarketplace(PoolOptions(url=proxy.url), Secret(running.user_token))
    world = World(
        market=market,
        proxy=proxy,
        secret=running.user_token,
        is_create=lambda method, path: method == "POST" and path == "/v1/rentals",
        is_release=lambda method, path: method == "DELETE",
        ssh_public_key=new_public_key(),
        calls_balance=False,
    )
    yield world
    await market.aclose()
    await proxy.aclose()
    # Not through the proxy: whatever became of that, the next test finds nothing rented.
    await asyncio.to_thread(running.give_all_back)


class TestPool(MarketplaceContract):
    """The pool keeps the contract."""


async def test_the_pool_is_ones_own_and_bills_by_the_second(world: World) -> None:
    """Offers of a pool are of the most trusted tier; CPU offers say that they have no GPU; no balance."""
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.tier == Tier.OWN
    assert offer.billing.quantum_s == 1
    assert (offer.gpu_count, offer.gpu_raw) == (0, "")
    assert offer.cpu_cores >= 1
    assert offer.memory_gib > 0
    assert await world.market.balance() is None


@pytest.mark.parametrize("field", ["price_nusd_hour", "facts.vram_gib", "machine_id"])
@pytest.mark.parametrize("value", [-1, 10**30, "one two", None, "x" * 100_000])
async def test_nonsense_in_an_offer_is_named(world: World, running: RunningPool, field: str, value: Any) -> None:
    """A registry that lies in a number or a text is an error that names the field, not an offer."""
    listing = running.api("GET", "/v1/offers").json()
    place = listing["offers"][0]
    *inner, last = field.split(".")
    for name in inner:
        place = place[name]
    place[last] = value
    world.proxy.trouble = Trouble(lambda m, p: p == "/v1/offers", body=msgspec.json.encode(listing))
    with pytest.raises(Temporary, match=last) as raised:
        await world.market.offers(OfferQuery())

    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "url", ["http://pool.example", "ftp://127.0.0.1", "127.0.0.1:80", "https://a@b", "http://127.0.0.1/?key=x", ""]
)
def test_a_bad_url_is_refused(url: str) -> None:
    """Only https, or http inside this machine; nothing secret in the URL."""
    with pytest.raises(ConfigError, match="pool"):
        PoolMarketplace(PoolOptions(url=url), Secret("k"))


def test_https_needs_the_registrys_certificate() -> None:
    """Without the file of the certificate an https registry is refused, and told what to set."""
    with pytest.raises(ConfigError, match="ca_file"):
        PoolMarketplace(PoolOptions(url="https://pool.example"), Secret("k"))
