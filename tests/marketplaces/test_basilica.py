"""The Basilica adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Permanent, Temporary
from jupyter_gpumarket.marketplaces.basilica import BasilicaMarketplace, BasilicaOptions
from jupyter_gpumarket.marketplaces.basilica_replies import storage_gb
from jupyter_gpumarket.models import NodeAddress, OfferQuery, PriceKind, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.basilica import BasilicaStandIn, sold_out
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.web import ENCODER
from tests.marketplaces.contract import MarketplaceContract, World, new_label, new_public_key
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import KEY, Standing, standing


def adapter(url: str, key: Secret) -> BasilicaMarketplace:
    return BasilicaMarketplace(BasilicaOptions(url=url, calls_per_s=1000, listing_lag_s=0), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("rentals/start")


def is_release(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/stop")


def is_gpus(_method: str, path: str) -> bool:
    return path.endswith("/gpu-prices")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, BasilicaStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    stand.world.id_prefix = "gpu."
    return stand.world


class TestBasilica(MarketplaceContract):
    """Basilica keeps the contract."""


OFFERING: dict[str, Any] = {
    "id": "o1",
    "provider": "hyperstack",
    "gpu_type": "h100",
    "gpu_memory_gb_per_gpu": 80,
    "gpu_count": 2,
    "interconnect": "SXM5",
    "storage": "750 GB",
    "vcpu_count": 20,
    "system_memory_gb": 180,
    "region": "US-1",
    "hourly_rate_per_gpu": "1.2555555555",
    "availability": True,
    "is_spot": True,
}


async def test_an_offering_is_read_whole(world: World) -> None:
    """The price is told for one GPU, as a text; a spot offering is one; the provider is a column."""
    world.proxy.trouble = Trouble(is_gpus, body=msgspec.json.encode({"nodes": [OFFERING], "count": 1}))
    offer = (await world.market.offers(OfferQuery()))[0]

    assert (offer.offer_id, offer.provider, offer.region) == ("gpu/o1", "hyperstack", "US-1")
    assert (offer.gpu_raw, offer.gpu_count, offer.vram_gib) == ("H100", 2, 80.0)
    assert offer.price_nusd_hour == usd("2.511111111")
    assert (offer.kind, offer.tier, offer.disk_gib) == (PriceKind.SPOT, Tier.DATACENTER, 750.0)


async def test_what_is_not_there_is_no_offer(world: World) -> None:
    """Listed without being available."""
    nodes = [OFFERING | {"availability": False}, OFFERING | {"gpu_count": 0}, sold_out(0)]
    world.proxy.trouble = Trouble(is_gpus, body=ENCODER.encode({"nodes": nodes, "count": 3}))

    assert [offer.gpu_count for offer in await world.market.offers(OfferQuery())] == [0]


@pytest.mark.parametrize(
    ("field", "value"), [("hourly_rate_per_gpu", "x"), ("id", None), ("gpu_count", "two"), ("is_spot", "no")]
)
async def test_nonsense_in_an_offering_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = Trouble(is_gpus, body=msgspec.json.encode({"nodes": [OFFERING | {field: value}], "count": 1}))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1e400", "-1e30"])
async def test_money_that_is_none_is_refused(world: World, amount: str) -> None:
    """A text can be a number that is no amount."""
    nodes = [OFFERING | {"hourly_rate_per_gpu": amount}]
    world.proxy.trouble = Trouble(is_gpus, body=msgspec.json.encode({"nodes": nodes, "count": 1}))
    with pytest.raises(Temporary, match="amount of money"):
        await world.market.offers(OfferQuery())


@pytest.mark.parametrize(
    ("text", "size"),
    [("750", 750.0), ("1.5TB", 1500.0), (" 100 GB nvme", 100.0), (None, 0.0), ("", 0.0), ("network", 0.0)],
)
def test_disks_are_read_as_far_as_they_can_be(text: str | None, size: float) -> None:
    """Each provider writes them in its own way."""
    assert storage_gb(text) == size


REFUSED = {
    "gone": (404, "Offering o1 not found", OfferGone),
    "taken": (409, "conflict", OfferGone),
    "gone by words": (400, "Offering is no longer available", OfferGone),
    "no money": (402, "Payment required", InsufficientFunds),
    "no money by words": (400, "Insufficient balance", InsufficientFunds),
    "wrong": (400, "name is invalid", Permanent),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_a_refused_create_means(world: World, case: tuple[int, str, type[Exception]]) -> None:
    """By status, and where that says nothing by its words."""
    status, words, error = case
    quote = await world.quote()
    body = msgspec.json.encode({"error": {"code": "X", "message": words}})
    world.proxy.trouble = Trouble(is_create, status=status, body=body)
    with pytest.raises(error):
        await world.rent(new_label(), quote)


@pytest.mark.parametrize("told", ["", "../r1"])
async def test_a_start_without_an_identifier_is_of_unknown_outcome(stand: Standing, told: str) -> None:
    """It is never taken for a rental that is not listed, which would be gone while a machine bills."""
    label, quote = new_label(), await stand.world.quote()
    body = msgspec.json.encode({"rental_id": told, "status": "pending"})
    stand.world.proxy.trouble = Trouble(is_create, body=body, after=True)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None

    assert (await stand.market.find(label)) is not None


async def register(stand: Standing, name: str, public_key: str) -> None:
    async with httpx.AsyncClient(base_url=stand.server.url, trust_env=False) as http:
        body = {"name": name, "public_key": public_key}
        reply = await http.post("/ssh-keys", json=body, headers={"Authorization": f"Bearer {KEY}"})
        reply.raise_for_status()


async def test_the_users_own_key_is_never_taken_away_unasked(stand: Standing) -> None:
    """An account holds one key: the user's stays, and the way out is named; by the setting it is replaced."""
    own = new_public_key().strip()
    await register(stand, "my-laptop", own)
    with pytest.raises(Permanent, match=r"my-laptop.*replace_ssh_key"):
        await stand.world.rent(new_label())
    kept = dict(vars(stand.server.stand_in)["_ssh_key"])
    options = BasilicaOptions(url=stand.server.url, calls_per_s=1000, replace_ssh_key=True)
    other = BasilicaMarketplace(options, Secret(KEY))
    quote = await stand.world.quote()
    await other.rent(quote, label=new_label(), ssh_public_key=stand.world.ssh_public_key, deadline_ms=0)
    await other.aclose()

    assert kept["public_key"] == own
    assert [rental.ssh_keys for rental in stand.yard.rentals.values()] == [[stand.world.ssh_public_key.strip()]]


LISTED = {
    "running": ({"status": "running", "ssh_command": "ssh ubuntu@203.0.113.9"}, RentalStatus.RUNNING),
    "without an address": ({"status": "running"}, RentalStatus.PENDING),
    "stopped": ({"status": "running", "stopped_at": "2026-11-20T11:00:00Z"}, RentalStatus.GONE),
    "deleted": ({"status": "deleted"}, RentalStatus.GONE),
    "broken": ({"status": "error"}, RentalStatus.FAILED),
    "going": ({"status": "stopping"}, RentalStatus.ENDING),
    "of a new kind": ({"status": "hibernating"}, RentalStatus.UNKNOWN),
}


@pytest.mark.parametrize("case", LISTED.values(), ids=LISTED)
async def test_states_are_told_truthfully(world: World, case: tuple[dict[str, Any], RentalStatus]) -> None:
    """Running only with an address; an unknown word stays unknown; what has ended is not listed as rented."""
    told, status = case
    row = {"rental_id": "r1", "name": "x", "hourly_cost": 1.25, "created_at": "2026-11-20T10:00:00Z"} | told
    body = msgspec.json.encode({"rentals": [row], "total_count": 1})
    world.proxy.trouble = Trouble(lambda m, p: p == "/v2/secure-cloud/rentals", body=body)
    rental = await world.market.rental("gpu.r1")
    listed = [each.rental_id for each in await world.market.rentals()]

    assert (rental.status, rental.price_nusd_hour) == (status, usd("1.25"))
    assert rental.billed_from_ms == 1_795_168_800_000
    assert listed == ([] if status is RentalStatus.GONE else ["gpu.r1"])
    if status is RentalStatus.RUNNING:
        assert rental.address == NodeAddress(host="203.0.113.9", port=22, user="ubuntu")


async def test_the_bill_is_found_behind_many_others(world: World) -> None:
    """Usage comes in pages; amounts are texts and kept to the nano-dollar."""
    rental = await world.rent(new_label())
    row = {"status": "stopped", "current_cost": "1", "start_time": "2026-11-20T10:00:00Z"}
    others = [row | {"rental_id": f"r{n}", "last_updated": "2026-11-20T10:00:00Z"} for n in range(50)]
    mine = others[0] | {"rental_id": rental.rental_id.partition(".")[2], "current_cost": "0.1234567891"}
    pages = [others, [mine]]
    served: list[int] = []

    def page(_method: str, path: str) -> bool:
        if path != "/billing/usage":
            return False
        assert world.proxy.trouble is not None
        rows = pages[len(served)]
        served.append(len(rows))
        world.proxy.trouble.body = msgspec.json.encode({"rentals": rows, "total_count": 51})
        return True

    world.proxy.trouble = Trouble(page)
    (charge,) = await world.market.charges(rental.rental_id)

    assert served == [50, 1]
    assert (charge.amount_nusd, charge.final, charge.native_amount) == (123_456_789, True, "0.1234567891")


@pytest.mark.parametrize("fault", [Fault.PREEMPTED, Fault.DIES_BOOTING])
async def test_a_machine_that_is_lost_is_failed(stand: Standing, fault: Fault) -> None:
    """It is released, because it may bill; then it is gone."""
    stand.arm(fault)
    rental = await stand.world.rent(new_label())
    failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
    await stand.market.release(rental.rental_id)

    assert "error" in failed.detail
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


async def test_each_lease_gets_its_own_key_though_there_is_one_place(running: RunningPool) -> None:
    """Two rentals at the same time: each machine is opened by its own lease's key alone."""
    running.add_host()
    async with standing(running, BasilicaStandIn, adapter, is_create, is_release) as up:
        first, second = await up.market.offers(OfferQuery())
        keys = [new_public_key().strip(), new_public_key().strip()]
        quotes = [await up.market.quote(offer) for offer in (first, second)]
        await asyncio.gather(
            *(
                up.market.rent(quote, label=new_label(), ssh_public_key=key, deadline_ms=0)
                for quote, key in zip(quotes, keys, strict=True)
            )
        )

        assert sorted(rental.ssh_keys for rental in up.yard.rentals.values()) == sorted([key] for key in keys)
