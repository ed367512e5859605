"""The Shadeform adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Permanent, Temporary
from jupyter_gpumarket.marketplaces.shadeform import ShadeformMarketplace, ShadeformOptions, country_of, judge_create
from jupyter_gpumarket.marketplaces.shadeform_replies import Instance, Place, address_of, came_ms, status_of
from jupyter_gpumarket.models import NodeAddress, OfferQuery, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.figures import figures
from jupyter_gpumarket.simulator.shadeform import ShadeformStandIn
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> ShadeformMarketplace:
    return ShadeformMarketplace(ShadeformOptions(url=url, calls_per_s=1000, charge_delay_s=0), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1/instances/create"


def is_release(method: str, path: str) -> bool:
    return method == "POST" and path.startswith("/v1/instances/") and path.endswith("/delete")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, ShadeformStandIn, adapter, is_create, is_release) as up:
        up.world.calls_balance = False
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestShadeform(MarketplaceContract):
    """Shadeform keeps the contract."""


async def test_an_offer_is_read_whole(stand: Standing) -> None:
    """Cents become dollars; whose cloud it is, and how long it boots, is told; a machine without a GPU has none."""
    (offer,) = await stand.market.offers(OfferQuery())

    assert (offer.provider, offer.tier, offer.price_nusd_hour) == ("labcloud", Tier.VERIFIED, usd("0.35"))
    assert (offer.gpu_raw, offer.gpu_count, offer.vram_gib) == ("", 0, 0.0)
    assert (offer.region, offer.boot_s) == ("eu-lab", 60.0)
    assert await stand.market.balance() is None


def kind(**changed: Any) -> dict[str, Any]:
    row = {
        "cloud": "hyperstack",
        "shade_instance_type": "A6000x2",
        "cloud_instance_type": "n3-A6000x2",
        "hourly_price": 100,
        "configuration": {"gpu_type": "A6000", "num_gpus": 2, "vram_per_gpu_in_gb": 48},
        "availability": [
            {"region": "canada-1", "available": True, "display_name": "Montreal, Canada"},
            {"region": "norway-1", "available": False},
        ],
    }
    return row | changed


def listing(*rows: dict[str, Any]) -> Trouble:
    return Trouble(lambda m, p: p.endswith("/types"), body=msgspec.json.encode({"instance_types": rows}))


async def test_each_region_that_has_some_is_an_offer(world: World) -> None:
    """A kind of machine is listed once for each region where it is available, with the price of the machine."""
    both = [{"region": name, "available": True} for name in ("canada-1", "norway-1")]
    world.proxy.trouble = listing(kind(), kind(cloud="other", availability=both))
    offers = await world.market.offers(OfferQuery())

    assert [(offer.provider, offer.region, offer.country) for offer in offers] == [
        ("hyperstack", "canada-1", "CA"),
        ("other", "canada-1", "CA"),
        ("other", "norway-1", "NO"),
    ]
    assert {(offer.gpu_raw, offer.gpu_count, offer.vram_gib, offer.price_nusd_hour) for offer in offers} == {
        ("A6000", 2, 48, usd("1.00"))
    }


def test_regions_name_their_countries() -> None:
    """The country of every region of the market figures is read from its name, or stays empty; never another one."""
    seen = {(figure.region, figure.country) for figure in figures("shadeform")}
    read = {(region, country_of(Place(region=region))) for region, _ in seen}

    assert {pair for pair in read if pair[1]} <= seen
    assert len({pair for pair in read if pair[1]}) >= 0.9 * len(seen)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hourly_price", "x"), ("cloud", None), ("configuration", {"num_gpus": "two"}), ("hourly_price", 1e300)],
)
async def test_nonsense_in_a_kind_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name or its content, never an offer."""
    world.proxy.trouble = listing(kind(**{field: value}))
    with pytest.raises(Temporary, match=f"{field}|num_gpus|amount of money"):
        await world.market.offers(OfferQuery())


async def test_a_price_in_parts_of_a_cent_is_exact(world: World) -> None:
    """Whole cents are documented; a fraction would be rounded up to the nano-dollar, not before."""
    body = msgspec.json.encode({"instance_types": [kind()]}).replace(b'"hourly_price":100', b'"hourly_price":34.1')
    world.proxy.trouble = Trouble(lambda m, p: p.endswith("/types"), body=body)
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.price_nusd_hour == 341_000_000


CREATES = {
    "gone": (409, {"code": "OUT_OF_STOCK", "message": "no"}, OfferGone),
    "gone, in words": (400, {"message": "The requested type is not available in this region"}, OfferGone),
    "no money": (400, {"code": "INSUFFICIENT_BALANCE"}, InsufficientFunds),
    "wrong": (400, {"code": "INVALID_REQUEST", "message": "region is required"}, Permanent),
    "the cloud behind it failed": (500, {"message": "cloud error"}, OutcomeUnknown),
}


@pytest.mark.parametrize("case", CREATES.values(), ids=CREATES)
async def test_what_a_refused_create_means(stand: Standing, case: tuple[int, dict[str, Any], type[Exception]]) -> None:
    """Told apart by words; the lease's key is taken from the account again unless a machine may be there."""
    status, body, error = case
    quote = await stand.world.quote()
    stand.world.proxy.trouble = Trouble(is_create, status=status, body=msgspec.json.encode(body))
    with pytest.raises(error):
        await stand.world.rent(new_label(), quote)

    keys = stand.server.stand_in._ssh_keys  # type: ignore[attr-defined]
    assert bool(keys) == (error is OutcomeUnknown)


def test_words_do_not_turn_a_bad_key_into_a_missing_offer() -> None:
    """What a status alone says stays said."""
    assert [judge_create(status, b"not available") for status in (401, 403, 429, 500)] == [None] * 4


async def test_the_leases_key_goes_with_the_lease(stand: Standing) -> None:
    """It is on the account while the machine is there, and no longer."""
    keys = stand.server.stand_in._ssh_keys  # type: ignore[attr-defined]
    rental = await stand.world.rent(new_label())
    assert [key["public_key"] for key in keys.values()] == [stand.world.ssh_public_key.strip()]

    await stand.market.release(rental.rental_id)
    assert keys == {}


async def test_their_own_timer_ends_it(stand: Standing) -> None:
    """The deadline goes with the create call and can be moved; then the machine ends with nobody asking."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    await stand.market.set_deadline(rental.rental_id, int(time.time() * 1000) + 500)
    ended = await stand.world.until(rental.rental_id, RentalStatus.GONE)

    assert ended.ended_ms is not None
    assert stand.market.capabilities.own_timer


async def test_it_is_billed_while_it_is_active(stand: Standing) -> None:
    """Begin, end and cost come from the machine's own page, which is there after its end; only then it is final."""
    rental = await stand.world.rent(new_label())
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (so_far,) = await stand.market.charges(rental.rental_id)
    await stand.world.release_all()
    ended = await stand.market.rental(rental.rental_id)
    (whole,) = await stand.market.charges(rental.rental_id)

    assert running.billed_from_ms == whole.start_ms
    assert ended.ended_ms == whole.end_ms
    assert (so_far.final, whole.final) == (False, True)
    assert 0 < so_far.amount_nusd <= whole.amount_nusd


async def test_machines_in_error_are_failed_and_the_dearer_one_tells_it(stand: Standing) -> None:
    """Taken away or never up: FAILED, so that they are released; the machine's own price is read back."""
    for fault in (Fault.PREEMPTED, Fault.DIES_BOOTING):
        stand.arm(fault)
        rental = await stand.world.rent(new_label())
        failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
        assert failed.detail
        await stand.world.release_all()
        async with asyncio.timeout(20):
            while not await stand.market.offers(OfferQuery()):
                await asyncio.sleep(0.05)
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)
    seen = await stand.market.rental(rental.rental_id)

    assert seen.price_nusd_hour is not None
    assert seen.price_nusd_hour > quote.price_nusd_hour * 14 // 10


INSTANCES: dict[str, tuple[dict[str, Any], RentalStatus, NodeAddress | None]] = {
    "there": (
        {"ip": "192.0.2.7", "ssh_user": "shadeform", "ssh_port": 22},
        RentalStatus.RUNNING,
        NodeAddress(host="192.0.2.7", port=22, user="shadeform"),
    ),
    "active, and nowhere yet": ({"ip": "", "ssh_user": "shadeform", "ssh_port": 22}, RentalStatus.PENDING, None),
    "without a port": ({"ip": "192.0.2.7", "ssh_user": "shadeform", "ssh_port": 0}, RentalStatus.PENDING, None),
    "a host that is none": ({"ip": "-oX", "ssh_user": "shadeform", "ssh_port": 22}, RentalStatus.PENDING, None),
    "being deleted": ({"status": "deleting"}, RentalStatus.ENDING, None),
    "a status of tomorrow": ({"status": "hibernating"}, RentalStatus.UNKNOWN, None),
}


@pytest.mark.parametrize("case", INSTANCES.values(), ids=INSTANCES)
def test_when_a_machine_is_there_for_us(case: tuple[dict[str, Any], RentalStatus, NodeAddress | None]) -> None:
    """Active is not enough: it must tell where."""
    changed, status, address = case
    instance = msgspec.convert({"id": "i", "name": "n", "status": "active", **changed}, Instance)

    assert (status_of(instance), address_of(instance)) == (status, address)


def test_times_that_have_not_come_are_none() -> None:
    """They are told as the year 1."""
    told = {"id": "i", "name": "n", "status": "active", "deleted_at": "0001-01-01T00:00:00Z"}
    instance = msgspec.convert(told, Instance)

    assert came_ms(instance.deleted_at) is None
