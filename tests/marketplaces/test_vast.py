"""The Vast.ai adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Temporary, Unauthorized
from jupyter_gpumarket.marketplaces.vast import VastMarketplace, VastOptions, rental_of
from jupyter_gpumarket.marketplaces.vast_replies import Instance
from jupyter_gpumarket.models import OfferQuery, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.vast import VastStandIn
from jupyter_gpumarket.simulator.yard import Yard
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> VastMarketplace:
    return VastMarketplace(VastOptions(url=url, calls_per_s=1000, disk_gb=8), key)


def is_create(method: str, path: str) -> bool:
    return method == "PUT" and path.startswith("/api/v0/asks/")


def is_release(method: str, path: str) -> bool:
    return method == "DELETE"


def with_figures(yard: Yard, faults: FaultBoard, key: Secret) -> VastStandIn:
    return VastStandIn(yard, faults, key, show_figures=True)


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, VastStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestVast(MarketplaceContract):
    """Vast.ai keeps the contract."""


async def test_a_listing_of_more_than_64_is_read_by_pages_of_price(running: RunningPool) -> None:
    """What one reply does not hold is asked for from its highest price on; each offer comes once, cheapest first."""
    async with standing(running, with_figures, adapter, is_create, is_release) as up:
        offers = await up.market.offers(OfferQuery())
        prices = [offer.price_nusd_hour for offer in offers]

        assert len(offers) == 115
        assert len({offer.offer_id for offer in offers}) == 115
        assert prices == sorted(prices)
        assert up.world.proxy.count("POST") == 2
        assert {offer.gpu_raw for offer in offers} >= {"RTX 4090", "H200", ""}
        assert {offer.vram_gib for offer in offers if offer.gpu_raw == "RTX 4090"} >= {47.99}


async def test_an_offer_is_read_whole(stand: Standing) -> None:
    """Units and meanings: Mbps, dollars a GB to nano-dollars a GiB, tier, place, price with its disk."""
    (offer,) = await stand.market.offers(OfferQuery())

    assert offer.tier is Tier.DATACENTER
    assert offer.price_nusd_hour == usd("0.35") + usd("0.15") * 8 // 720 + 0
    assert offer.billing.ingress_nusd_gib == 2_147_484
    assert (offer.down_mbps, offer.up_mbps) == (910.0, 780.0)
    assert offer.region == "eu-lab"
    assert offer.disk_gib == 8.0


CREATES = {
    "taken": (410, {"success": False, "error": "no_such_ask", "msg": "error 410/3907"}, OfferGone),
    "vanished": (404, {"error": "invalid_args", "msg": "error 404/3603: no_such_ask Instance type by id"}, OfferGone),
    "gone by another status": (400, {"error": "invalid_args", "msg": "no_such_ask"}, OfferGone),
    "not for you": (403, {"error": "invalid_args", "msg": "error 403/3586: Offer is not your own."}, OfferGone),
    "no money": (400, {"error": "insufficient_credit"}, InsufficientFunds),
    "a bad key": (404, {"error": "auth_error", "msg": "Invalid user key"}, Unauthorized),
    "refused, and made": (400, {"error": "invalid_price", "new_contract": 28000499}, OutcomeUnknown),
    "done, and nothing told": (200, {"success": False, "msg": "later"}, OutcomeUnknown),
}


@pytest.mark.parametrize("case", CREATES.values(), ids=CREATES)
async def test_what_a_refused_create_means_is_read_from_its_body(
    world: World, case: tuple[int, dict[str, Any], type[Exception]]
) -> None:
    """Vast says by one status several things; an error that names a contract has rented something."""
    status, body, error = case
    quote = await world.quote()
    world.proxy.trouble = Trouble(is_create, status=status, body=msgspec.json.encode(body))
    with pytest.raises(error):
        await world.rent(new_label(), quote)


async def test_only_a_404_that_says_so_means_gone(world: World) -> None:
    """A bad key's 404, and that of somebody in between, are no proof that a rental has ended."""
    rental = await world.rent(new_label())
    world.proxy.trouble = Trouble(lambda m, p: True, status=404, body=b'{"error": "auth_error"}')
    with pytest.raises(Unauthorized):
        await world.market.rental(rental.rental_id)
    with pytest.raises(Unauthorized):
        await world.market.release(rental.rental_id)
    world.proxy.trouble = Trouble(lambda m, p: True, status=404, body=b"<html>not here</html>")
    with pytest.raises(Temporary):
        await world.market.rental(rental.rental_id)


async def test_the_port_may_change(stand: Standing) -> None:
    """A container that was started anew answers on another port; the next look tells it."""
    rental = await stand.world.rent(new_label())
    before = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (held,) = stand.yard.rentals.values()
    await stand.yard.rebind(held)
    after = await stand.market.rental(rental.rental_id)

    assert before.address is not None
    assert after.address is not None
    assert before.address.port != after.address.port


async def test_the_node_can_end_itself_with_its_own_key_alone(stand: Standing) -> None:
    """The recipe, run in a container's environment, destroys this instance; that key opens nothing else."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (held,) = stand.yard.rentals.values()
    recipe = stand.market.self_stop(rental)
    assert recipe is not None
    python, *rest = recipe.argv
    assert python == "python3"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *rest],
        env={"CONTAINER_API_KEY": held.own_key, "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    other = VastMarketplace(VastOptions(url=stand.world.proxy.url, calls_per_s=1000), Secret(held.own_key))
    with pytest.raises(Unauthorized):
        await other.rentals()
    await other.aclose()

    assert done.stdout.strip() == "200", done.stderr
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE
    assert not any(stand.world.secret in part for part in recipe.argv)


async def test_preempted_and_dead_machines_are_failed(stand: Standing) -> None:
    """A machine taken away, and one that never comes up, are FAILED, so that they are released; releasing ends them."""
    for fault in (Fault.PREEMPTED, Fault.DIES_BOOTING):
        stand.arm(fault)
        rental = await stand.world.rent(new_label())
        failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
        await stand.market.release(rental.rental_id)
        assert failed.detail
        assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE
        async with asyncio.timeout(20):
            while not await stand.market.offers(OfferQuery()):
                await asyncio.sleep(0.05)


async def test_the_contracts_price_is_read_back(stand: Standing) -> None:
    """Dearer than listed shows in the rental's own price."""
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)

    assert running.price_nusd_hour is not None
    assert running.price_nusd_hour > quote.price_nusd_hour * 14 // 10


async def test_a_release_that_did_nothing_is_seen(stand: Standing) -> None:
    """Confirmed, and still there: only a listing without it is the proof; asked again, it ends."""
    rental = await stand.world.rent(new_label())
    stand.arm(Fault.BILLS_ON)
    await stand.market.release(rental.rental_id)
    still = await stand.market.rental(rental.rental_id)
    await stand.market.release(rental.rental_id)

    assert still.status is not RentalStatus.GONE
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


@pytest.mark.parametrize(
    ("field", "value"), [("dph_total", "x"), ("id", None), ("dph_total", 1e300), ("gpu_name", 7), ("num_gpus", "two")]
)
async def test_nonsense_in_an_offer_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name or its content, never an offer."""
    row = {"id": 1, "machine_id": 2, "dph_total": 0.5, "num_gpus": 1, "gpu_name": "H100 SXM", field: value}
    body = msgspec.json.encode({"offers": [row]})
    world.proxy.trouble = Trouble(lambda m, p: "bundles" in p, body=body)
    with pytest.raises(Temporary, match=f"{field}|amount of money") as raised:
        await world.market.offers(OfferQuery())

    assert len(str(raised.value)) < 1000


async def test_money_is_read_without_floats(world: World) -> None:
    """A price with more digits than a float holds is rounded up to the nano-dollar, not before."""
    body = b'{"offers": [{"id": 1, "machine_id": 2, "dph_total": 0.34833333333333333333, "num_gpus": 1}]}'
    world.proxy.trouble = Trouble(lambda m, p: "bundles" in p, body=body)
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.price_nusd_hour == 348_333_334


@pytest.mark.parametrize(("end_date", "ends_ms"), [(1_797_700_000.5, 1_797_700_000_500), (None, None)])
def test_the_end_of_the_hosts_contract_is_a_notice(end_date: float | None, ends_ms: int | None) -> None:
    """Vast stops an instance then by itself: its word on when is passed on, and nothing is guessed without it."""
    instance = msgspec.convert({"id": 1, "actual_status": "running", "end_date": end_date}, Instance)

    assert rental_of(instance).ends_ms == ends_ms
