"""The Prime Intellect adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import OfferGone, OutcomeUnknown, Permanent, Temporary
from jupyter_gpumarket.marketplaces.primeintellect import PrimeMarketplace, PrimeOptions, disk_of
from jupyter_gpumarket.marketplaces.primeintellect_replies import Pod, Spec, address_of, status_of
from jupyter_gpumarket.models import NodeAddress, OfferQuery, PriceKind, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.primeintellect import GONE, PrimeStandIn
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> PrimeMarketplace:
    return PrimeMarketplace(PrimeOptions(url=url, calls_per_s=1000, charge_delay_s=0), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/api/v1/pods/"


def is_release(method: str, path: str) -> bool:
    return method == "DELETE" and path.startswith("/api/v1/pods/")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, PrimeStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestPrimeIntellect(MarketplaceContract):
    """Prime Intellect keeps the contract."""


async def test_an_offer_is_read_whole(stand: Standing) -> None:
    """Whose cloud it is, price with its disk, boot time from minutes; a machine without a GPU has none."""
    (offer,) = await stand.market.offers(OfferQuery())

    assert (offer.provider, offer.tier, offer.kind) == ("primecompute", Tier.DATACENTER, PriceKind.ON_DEMAND)
    assert offer.price_nusd_hour == usd("0.35") + 40 * usd("0.0001")
    assert (offer.gpu_raw, offer.gpu_count, offer.vram_gib) == ("", 0, 0.0)
    assert (offer.region, offer.disk_gib, offer.boot_s) == ("eu-lab", 40.0, 60.0)


def configuration(**changed: Any) -> dict[str, Any]:
    row = {
        "cloudId": "NVIDIA GeForce RTX 4090",
        "gpuType": "RTX4090_24GB",
        "socket": "PCIe",
        "provider": "runpod",
        "gpuCount": 2,
        "gpuMemory": 24,
        "disk": {"minCount": 80, "defaultCount": 80, "maxCount": 1000, "pricePerUnit": 0.00014, "step": 1},
        "security": "community_cloud",
        "prices": {"onDemand": None, "communityPrice": 0.44, "currency": "USD"},
        "images": ["cuda_12_4_pytorch_2_5"],
        "stockStatus": "High",
    }
    return row | changed


def listing(*rows: dict[str, Any]) -> Trouble:
    body = msgspec.json.encode({"items": rows, "totalCount": len(rows)})
    return Trouble(lambda m, p: p.endswith("/gpus"), body=body)


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the community's price": ({}, {"price_nusd_hour": usd("0.44") + usd("0.0112"), "tier": Tier.COMMUNITY}),
    "two GPUs": ({}, {"gpu_raw": "RTX4090_24GB", "gpu_count": 2, "vram_gib": 24}),
    "spot": ({"isSpot": True}, {"kind": PriceKind.SPOT}),
    "nothing told of its disk": ({"disk": {}}, {"disk_gib": 0.0, "price_nusd_hour": usd("0.44")}),
    "no disk at all": ({"disk": None}, {"price_nusd_hour": usd("0.44")}),
    "place": ({"dataCenter": "EU-RO-1", "country": "RO"}, {"region": "EU-RO-1", "country": "RO"}),
    "no place": ({"region": "eu_west"}, {"region": "eu_west", "country": ""}),
    "minutes": ({"provisioningTime": 3}, {"boot_s": 180.0}),
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS)
async def test_what_a_listed_configuration_means(world: World, case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each field of a configuration becomes what an offer calls it."""
    changed, expected = case
    world.proxy.trouble = listing(configuration(**changed))
    (offer,) = await world.market.offers(OfferQuery())

    assert {name: getattr(offer, name) for name in expected} == expected


LEFT_OUT: dict[str, dict[str, Any]] = {
    "sold out": {"stockStatus": "Unavailable"},
    "without a price": {"prices": {"currency": "USD"}},
    "in euros": {"prices": {"onDemand": 1.0, "currency": "EUR"}},
    "of an unknown kind of cloud": {"security": "moon"},
    "with a negative price": {"prices": {"communityPrice": -1, "currency": "USD"}},
}


@pytest.mark.parametrize("changed", LEFT_OUT.values(), ids=LEFT_OUT)
async def test_what_cannot_be_rented_is_no_offer(world: World, changed: dict[str, Any]) -> None:
    """The others are listed all the same."""
    world.proxy.trouble = listing(configuration(**changed), configuration(cloudId="other"))
    offers = await world.market.offers(OfferQuery())

    assert [offer.extra["cloud_id"] for offer in offers] == ["other"]


async def test_hours_paid_up_front_are_a_minimum(world: World) -> None:
    """What is charged at the start is counted, also of a shorter lease."""
    world.proxy.trouble = listing(configuration(prepaidTime=24))
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.billing.minimum_s == 86_400


@pytest.mark.parametrize(("field", "value"), [("gpuCount", "two"), ("cloudId", None), ("prices", {"onDemand": "x"})])
async def test_nonsense_in_a_configuration_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = listing(configuration(**{field: value}))
    with pytest.raises(Temporary, match="onDemand" if field == "prices" else field):
        await world.market.offers(OfferQuery())


async def test_listings_are_read_to_their_end(world: World) -> None:
    """A listing that says that there is more is asked for its next page, and an empty page ends it."""
    rows = [configuration(cloudId=str(number)) for number in range(3)]
    body = msgspec.json.encode({"items": rows, "totalCount": 99})
    world.proxy.trouble = Trouble(lambda m, p: p.endswith("/gpus"), body=body)
    world.proxy.calls.clear()

    assert len(await world.market.offers(OfferQuery())) == 3
    assert world.proxy.count("GET") == 20


CREATES = {
    "gone": (400, {"detail": GONE}, OfferGone),
    "gone, in their other form": (422, {"errors": [{"param": "pod", "details": "out of stock"}]}, OfferGone),
    "wrong": (422, {"errors": [{"param": "pod.gpuType", "details": "Field required"}]}, Permanent),
    "the cloud behind it failed": (500, {"detail": "provider error"}, OutcomeUnknown),
}


@pytest.mark.parametrize("case", CREATES.values(), ids=CREATES)
async def test_what_a_refused_create_means(stand: Standing, case: tuple[int, dict[str, Any], type[Exception]]) -> None:
    """Told apart by words; the lease's key is taken from the account again unless a pod may be there that needs it."""
    status, body, error = case
    quote = await stand.world.quote()
    stand.world.proxy.trouble = Trouble(is_create, status=status, body=msgspec.json.encode(body))
    with pytest.raises(error):
        await stand.world.rent(new_label(), quote)

    keys = stand.server.stand_in._ssh_keys  # type: ignore[attr-defined]
    assert bool(keys) == (error is OutcomeUnknown)


async def test_the_leases_key_goes_with_the_lease(stand: Standing) -> None:
    """It is on the account while the pod is there, and no longer."""
    keys = stand.server.stand_in._ssh_keys  # type: ignore[attr-defined]
    rental = await stand.world.rent(new_label())
    (held,) = stand.yard.rentals.values()
    assert [key["publicKey"] for key in keys.values()] == [stand.world.ssh_public_key.strip()]
    assert held.ssh_keys == [stand.world.ssh_public_key.strip()]

    await stand.market.release(rental.rental_id)
    assert keys == {}


async def test_a_404_alone_does_not_prove_the_end(world: World) -> None:
    """As long as a pod is listed, it is there."""
    rental = await world.rent(new_label())
    world.proxy.trouble = Trouble(lambda m, p: p.endswith(rental.rental_id), status=404, body=b"{}")
    seen = await world.market.rental(rental.rental_id)

    assert seen.status in (RentalStatus.PENDING, RentalStatus.RUNNING)


async def test_preempted_and_dead_pods_are_failed_and_the_dearer_one_tells_it(stand: Standing) -> None:
    """STOPPED and ERROR are FAILED, so that they are released; the pod's own price is read back."""
    for fault in (Fault.PREEMPTED, Fault.DIES_BOOTING):
        stand.arm(fault)
        rental = await stand.world.rent(new_label())
        await stand.world.until(rental.rental_id, RentalStatus.FAILED)
        await stand.world.release_all()
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)

    assert rental.price_nusd_hour is not None
    assert rental.price_nusd_hour > quote.price_nusd_hour * 14 // 10


async def test_the_bill_is_there_before_and_after_the_end(stand: Standing) -> None:
    """A living pod's cost is in the wallet's rows, an ended one's in the history; only that is final."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (so_far,) = await stand.market.charges(rental.rental_id)
    await stand.world.release_all()
    (whole,) = await stand.market.charges(rental.rental_id)
    gone = await stand.market.rental(rental.rental_id)

    assert (gone.status, gone.ended_ms) == (RentalStatus.GONE, whole.end_ms)
    assert (so_far.final, whole.final) == (False, True)
    assert 0 < so_far.amount_nusd <= whole.amount_nusd
    assert Decimal(whole.native_amount) * 10**9 == whole.amount_nusd


PODS: dict[str, tuple[dict[str, Any], RentalStatus]] = {
    "set up": ({"sshConnection": "root@192.0.2.7 -p 2222", "installationStatus": "FINISHED"}, RentalStatus.RUNNING),
    "not set up": ({"sshConnection": "root@192.0.2.7", "installationStatus": "PENDING"}, RentalStatus.PENDING),
    "set up, and nowhere": ({"sshConnection": None, "installationStatus": "FINISHED"}, RentalStatus.PENDING),
    "not to be set up": ({"installationStatus": "ERROR"}, RentalStatus.FAILED),
    "a status of tomorrow": ({"status": "HIBERNATING"}, RentalStatus.UNKNOWN),
    "being deleted": ({"status": "DELETING"}, RentalStatus.ENDING),
}


@pytest.mark.parametrize("case", PODS.values(), ids=PODS)
def test_when_a_pod_is_there_for_us(case: tuple[dict[str, Any], RentalStatus]) -> None:
    """Active is not enough: it must be set up and tell where."""
    changed, expected = case
    pod = msgspec.convert({"id": "p", "status": "ACTIVE", **changed}, Pod)

    assert status_of(pod) is expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("root@192.0.2.7 -p 2222", NodeAddress(host="192.0.2.7", port=2222, user="root")),
        (["ubuntu@host.example", None], NodeAddress(host="host.example", port=22, user="ubuntu")),
        ([None], None),
        ([], None),
        ("root@192.0.2.7 -p 22; reboot", None),
        ("root@-oProxyCommand=x -p 22", None),
    ],
)
def test_an_address_is_read_strictly(told: Any, expected: NodeAddress | None) -> None:
    """A text, a list, null; nothing else than a user, a host and a port."""
    assert address_of(msgspec.convert({"id": "p", "status": "ACTIVE", "sshConnection": told}, Pod)) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Spec(min_count=80, max_count=1000, price_per_unit=Decimal("0.001")), (80, Decimal("0.080"))),
        (Spec(min_count=20, max_count=1000, step=16, price_per_unit=Decimal("0.001")), (52, Decimal("0.052"))),
        (Spec(min_count=10, max_count=30, price_per_unit=Decimal("0.001")), (30, Decimal("0.030"))),
        (Spec(min_count=10, default_count=30, max_count=90, default_included_in_price=True), (40, Decimal(0))),
        (Spec(default_count=100), (100, Decimal(0))),
        (None, (None, Decimal(0))),
    ],
)
def test_how_much_disk_is_asked_for_and_what_it_costs(spec: Spec | None, expected: tuple[int | None, Decimal]) -> None:
    """At least what is wanted (40 GB), in their steps, within their limits; what is included is not counted."""
    assert disk_of(spec, 40) == expected
