"""The Hyperbolic adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Temporary, Unauthorized
from jupyter_gpumarket.marketplaces.hyperbolic import HyperbolicMarketplace, HyperbolicOptions
from jupyter_gpumarket.marketplaces.hyperbolic_replies import judge_create, status_of
from jupyter_gpumarket.models import OfferQuery, PriceKind, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.hyperbolic import HyperbolicStandIn
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.edge import TruthfulFaults
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing

NODES = "/v1/marketplace/instances"


def adapter(url: str, key: Secret) -> HyperbolicMarketplace:
    return HyperbolicMarketplace(HyperbolicOptions(url=url, calls_per_s=1000, cpu_nodes=True), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and (path.endswith(("/create", "/virtual-machine-rentals")))


def is_release(method: str, path: str) -> bool:
    return path.endswith("/terminate")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, HyperbolicStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestHyperbolic(MarketplaceContract):
    """Hyperbolic keeps the contract."""


class TestHyperbolicFaults(TruthfulFaults):
    """Whatever the stand-in does, the adapter tells it as what it is."""


async def test_an_offer_is_some_gpus_of_a_node_in_cents(stand: Standing) -> None:
    """Cents for one GPU and hour become dollars for the offer; memory is in MB; nodes are spot."""
    stand.arm(Fault.WRONG_GPU, times=None)
    (offer,) = await stand.market.offers(OfferQuery())

    assert (offer.gpu_raw, offer.gpu_count, offer.vram_gib) == ("NVIDIA-GeForce-RTX-4090", 1, 23.988)
    assert (offer.price_nusd_hour, offer.kind, offer.tier) == (usd("0.35"), PriceKind.SPOT, Tier.COMMUNITY)
    assert stand.market.capabilities.spot


async def test_virtual_machines_are_rented_by_the_newer_api(running: RunningPool) -> None:
    """From the option to the end: numbers as text, cents for the whole machine, and it stays listed when it is over."""
    with_vms = partial(HyperbolicStandIn, with_vms=True)
    async with standing(running, with_vms, adapter, is_create, is_release) as up:
        (offer,) = [offer for offer in await up.market.offers(OfferQuery()) if offer.extra.get("vm")]
        label = new_label()
        rental = await up.world.rent(label, await up.market.quote(offer))
        found = await up.market.find(label)
        seen = await up.world.until(rental.rental_id, RentalStatus.RUNNING)
        await up.market.release(rental.rental_id)
        after = await up.market.rental(rental.rental_id)
        (bill,) = await up.market.charges(rental.rental_id)

        assert (offer.gpu_raw, offer.kind) == ("H100", PriceKind.ON_DEMAND)
        assert rental.rental_id.startswith("vm-")
        assert found is not None
        assert found.rental_id == rental.rental_id
        assert seen.address is not None
        assert seen.price_nusd_hour == offer.price_nusd_hour
        assert after.status is RentalStatus.GONE
        assert bill.final
        assert await up.market.rentals() == []


async def test_nodes_are_listed_without_a_key(stand: Standing) -> None:
    """What is public is read without an account."""
    visitor = adapter(stand.world.proxy.url, Secret(""))
    offers = await visitor.offers(OfferQuery())
    with pytest.raises(Unauthorized):
        await visitor.rentals()
    await visitor.aclose()

    assert offers


async def test_a_label_that_does_not_come_back_is_not_taken_for_absent(stand: Standing) -> None:
    """What is new on the node that was asked for is ours; after a restart nobody can say, and nothing is given up."""
    assert isinstance(stand.server.stand_in, HyperbolicStandIn)
    stand.server.stand_in.tells_metadata = False
    label, quote = "gpum-a", await stand.world.quote()
    stand.world.proxy.trouble = Trouble(is_create, drop=True, after=True)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None
    found = await stand.market.find(label)
    restarted = adapter(stand.world.proxy.url, Secret(stand.world.secret))
    with pytest.raises(Temporary, match="tells no label"):
        await restarted.find(label)
    await restarted.aclose()

    assert found is not None
    assert (found.label, found.rental_id) == (label, next(iter(stand.yard.rentals)))


async def test_what_was_there_before_is_not_ours(stand: Standing) -> None:
    """Somebody's instance without a label, from before our create call, is not taken for ours."""
    assert isinstance(stand.server.stand_in, HyperbolicStandIn)
    stand.server.stand_in.tells_metadata = False
    quote = await stand.world.quote()
    await stand.world.rent("gpum-theirs", quote)
    with pytest.raises(OfferGone):
        await stand.world.rent("gpum-b", quote)

    assert await stand.market.find("gpum-b") is None


CREATES: dict[str, tuple[int, bytes, type[Exception] | None]] = {
    "taken": (400, b'{"message": "Node is not available"}', OfferGone),
    "too few": (400, b'{"message": "Not enough GPUs on this node"}', OfferGone),
    "no money": (400, b'{"message": "Insufficient balance"}', InsufficientFunds),
    "nonsense": (400, b'{"message": "gpu_count must be a number"}', None),
    "their own trouble": (500, b"not available", None),
}


@pytest.mark.parametrize("case", CREATES.values(), ids=CREATES)
def test_what_a_refused_create_means(case: tuple[int, bytes, type[Exception] | None]) -> None:
    """Its words tell, where they are known."""
    status, content, error = case

    assert judge_create(status, content) is error


async def test_a_success_without_a_name_may_have_rented(world: World) -> None:
    """None at all, and one that is none."""
    quote = await world.quote()
    for body in (b'{"status": "success", "instance_id": ""}', b'{"instance_id": "a/../b"}'):
        world.proxy.trouble = Trouble(is_create, body=body)
        with pytest.raises(OutcomeUnknown):
            await world.rent(new_label(), quote)


@pytest.mark.parametrize(
    ("told", "ended", "reachable", "expected"),
    [
        ("starting", False, False, RentalStatus.PENDING),
        ("online", False, False, RentalStatus.PENDING),
        ("Online", False, True, RentalStatus.RUNNING),
        ("busy", False, True, RentalStatus.RUNNING),
        ("stopping", False, True, RentalStatus.ENDING),
        ("offline", False, True, RentalStatus.UNKNOWN),
        ("error", False, True, RentalStatus.FAILED),
        (None, False, True, RentalStatus.UNKNOWN),
        ("online", True, True, RentalStatus.GONE),
        ("terminated", False, False, RentalStatus.GONE),
    ],
)
def test_states_are_read(told: str | None, ended: bool, reachable: bool, expected: RentalStatus) -> None:
    """Ready is only what can be reached."""
    assert status_of(told, ended=ended, reachable=reachable) is expected


@pytest.mark.parametrize("command", ["ssh ubuntu@h -p 22; curl x|sh", "ssh ubuntu@$(id) -p 22", "", "ssh -p 0 u@h"])
async def test_an_ssh_command_that_is_no_address_is_none(world: World, command: str) -> None:
    """It is read by a grammar and never run; the machine then counts as not ready."""
    row = {"id": "r1", "sshCommand": command, "instance": {"id": "n", "status": "online"}}
    body = msgspec.json.encode({"instances": [row]})
    world.proxy.trouble = Trouble(lambda m, p: p == NODES, body=body)
    seen = await world.market.rental("r1")

    assert (seen.status, seen.address) == (RentalStatus.PENDING, None)


@pytest.mark.parametrize("amount", [3.2, 0, -5, 1e300])
async def test_a_price_that_cannot_be_cents_is_refused(world: World, amount: float) -> None:
    """Dollars where cents belong would make an H100 cost three cents: no offer comes of it."""
    row = {
        "id": "n",
        "status": "node_ready",
        "cluster_name": "c",
        "gpus_total": 1,
        "hardware": {"gpus": [{"model": "NVIDIA-H100", "ram": 81920}]},
        "pricing": {"price": {"amount": amount, "period": "hourly"}},
    }
    body = msgspec.json.encode({"instances": [row]})
    world.proxy.trouble = Trouble(lambda m, p: p == "/v1/marketplace", body=body)

    assert await world.market.offers(OfferQuery()) == []


async def test_only_free_gpus_of_ready_nodes_are_offered(world: World) -> None:
    """By number, as far as they are free; reserved and unready nodes are left out."""
    node = {
        "id": "n",
        "status": "node_ready",
        "cluster_name": "c",
        "gpus_total": 8,
        "gpus_reserved": 3,
        "hardware": {"gpus": [{"model": "NVIDIA-H100", "ram": 81920}] * 8, "cpus": [{"virtual_cores": 64}]},
        "pricing": {"price": {"amount": 129, "period": "hourly"}},
    }
    rows = [node, node | {"id": "m", "reserved": True}, node | {"id": "k", "status": "offline"}]
    body = msgspec.json.encode({"instances": rows})
    world.proxy.trouble = Trouble(lambda m, p: p == "/v1/marketplace", body=body)
    offers = await world.market.offers(OfferQuery())

    assert [(offer.gpu_count, offer.cpu_cores) for offer in offers] == [(1, 8), (2, 16), (4, 32)]
    assert [offer.price_nusd_hour for offer in offers] == [usd("1.29"), usd("2.58"), usd("5.16")]


async def test_the_bill_follows_a_rental_into_the_history(stand: Standing) -> None:
    """By its own times and price, while it runs and after its end; the credit is told in cents."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (open_bill,) = await stand.market.charges(rental.rental_id)
    await stand.market.release(rental.rental_id)
    (bill,) = await stand.market.charges(rental.rental_id)
    balance = await stand.market.balance()

    assert not open_bill.final
    assert bill.final
    assert open_bill.charge_id == bill.charge_id
    assert balance is not None
    assert usd("99.99") < balance.amount_nusd <= usd(100)


@pytest.mark.parametrize(("field", "value"), [("gpus_total", "many"), ("id", None), ("pricing", 3)])
async def test_nonsense_in_the_listing_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    row = {"id": "n", "status": "node_ready", "gpus_total": 1, field: value}
    world.proxy.trouble = Trouble(lambda m, p: p == "/v1/marketplace", body=msgspec.json.encode({"instances": [row]}))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())
