"""The Targon adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Permanent, Temporary
from jupyter_gpumarket.marketplaces.targon import TargonMarketplace, TargonOptions
from jupyter_gpumarket.models import NodeAddress, OfferQuery, RentalStatus
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.targon import SOLD_OUT, TargonStandIn
from jupyter_gpumarket.simulator.yard import Yard
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> TargonMarketplace:
    return TargonMarketplace(TargonOptions(url=url, calls_per_s=1000), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/tha/v2/workloads"


def is_deploy(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/deploy")


def is_release(method: str, path: str) -> bool:
    return method == "DELETE" and path.startswith("/tha/v2/workloads/")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, TargonStandIn, adapter, is_create, is_release) as up:
        up.world.calls_charges = False
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestTargon(MarketplaceContract):
    """Targon keeps the contract."""


KIND: dict[str, Any] = {
    "name": "h200-small",
    "type": "rental",
    "gpu": True,
    "spec": {"gpu_type": "H200", "gpu_count": 1, "vcpu": 24, "memory": 196_608, "storage": 512},
    "cost_per_hour": 2.4,
    "available": 7,
}


@pytest.mark.parametrize(
    ("spec", "memory_gib", "vram_gib"),
    [({}, 192.0, 141.0), ({"memory": 192}, 192.0, 141.0), ({"gpu_type": "B999", "memory": None}, 0.0, 0.0)],
)
async def test_a_kind_of_machine_is_an_offer(
    world: World, spec: dict[str, Any], memory_gib: float, vram_gib: float
) -> None:
    """Memory comes in MiB or GiB; GPU memory, which is not told, from the data sheet where the GPU is known."""
    body = msgspec.json.encode([KIND | {"spec": KIND["spec"] | spec}])
    world.proxy.trouble = Trouble(lambda m, p: "inventory" in p, body=body)
    (offer,) = await world.market.offers(OfferQuery())

    assert (offer.offer_id, offer.machine_id, offer.price_nusd_hour) == ("h200-small", "h200-small", usd("2.4"))
    assert (offer.memory_gib, offer.vram_gib, offer.gpu_count, offer.cpu_cores) == (memory_gib, vram_gib, 1, 24)


@pytest.mark.parametrize("changes", [{"available": 0}, {"available": None}, {"cost_per_hour": None}])
async def test_what_cannot_be_rented_is_no_offer(world: World, changes: dict[str, Any]) -> None:
    """None free, or no price."""
    world.proxy.trouble = Trouble(lambda m, p: "inventory" in p, body=msgspec.json.encode([KIND | changes]))

    assert await world.market.offers(OfferQuery()) == []


@pytest.mark.parametrize(("field", "value"), [("cost_per_hour", "x"), ("name", None), ("spec", 7), ("available", "3")])
async def test_nonsense_in_the_inventory_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = Trouble(lambda m, p: "inventory" in p, body=msgspec.json.encode([KIND | {field: value}]))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


async def test_money_is_read_without_floats(world: World) -> None:
    """A price with more digits than a float holds is rounded up to the nano-dollar."""
    body = msgspec.json.encode([KIND]).replace(b"2.4", b"0.33333333333333333333")
    world.proxy.trouble = Trouble(lambda m, p: "inventory" in p, body=body)
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.price_nusd_hour == 333_333_334


REFUSED = {
    "sold out": (409, "insufficient_capacity", OfferGone),
    "sold out by words": (400, "no h200-small available: out of stock", OfferGone),
    "no money": (402, "insufficient_credits", InsufficientFunds),
    "no money by words": (400, "Insufficient credits", InsufficientFunds),
    "wrong": (422, "image is not allowed", Permanent),
}


@pytest.mark.parametrize("call", [is_create, is_deploy], ids=["register", "deploy"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_a_refusal_leaves_nothing_behind(
    stand: Standing, case: tuple[int, str, type[Exception]], call: Any
) -> None:
    """Whichever of the two calls is refused: no workload stays, and no key."""
    status, words, error = case
    label, quote = new_label(), await stand.world.quote()
    stand.world.proxy.trouble = Trouble(call, status=status, body=msgspec.json.encode({"error": words, "reason": "x"}))
    with pytest.raises(error):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None

    assert await stand.market.find(label) is None
    assert stand.yard.rentals == {}
    assert vars(stand.server.stand_in)["_ssh_keys"] == {}


async def test_registered_and_never_deployed_has_failed(stand: Standing) -> None:
    """The reply to the registration was lost, so it was never deployed: it is FAILED, and released at once."""
    label, quote = new_label(), await stand.world.quote()
    stand.world.proxy.trouble = Trouble(is_create, drop=True, after=True)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None
    found = await stand.market.find(label)
    assert found is not None
    await stand.market.release(found.rental_id)

    assert found.status is RentalStatus.FAILED
    assert (await stand.market.rental(found.rental_id)).status is RentalStatus.GONE
    assert stand.yard.rentals == {}


async def test_a_lost_reply_to_the_deployment_is_found(stand: Standing) -> None:
    """The label finds what runs and bills."""
    label, quote = new_label(), await stand.world.quote()
    stand.arm(Fault.LOST_AFTER_CREATE)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    found = await stand.market.find(label)
    assert found is not None
    running = await stand.world.until(found.rental_id, RentalStatus.RUNNING)

    assert running.price_nusd_hour == quote.price_nusd_hour
    assert len(stand.yard.rentals) == 1


async def test_a_release_takes_the_key_away(stand: Standing) -> None:
    """The key of one lease is on the account only as long as its workload."""
    rental = await stand.world.rent(new_label())
    keys = vars(stand.server.stand_in)["_ssh_keys"]
    while_rented = len(keys)
    await stand.market.release(rental.rental_id)

    assert while_rented == 1
    assert keys == {}


async def test_a_listing_is_read_page_by_page(running: RunningPool) -> None:
    """What one page does not hold is asked for by its cursor; what was deleted is left out."""
    async with standing(running, TargonStandIn, adapter, is_create, is_release) as up:
        for number in range(103):
            body = msgspec.json.encode({"name": f"n{number}", "image": "i", "resource_name": "r", "type": "RENTAL"})
            held = {"body": msgspec.json.decode(body), "rental": None, "created_ms": 0}
            vars(up.server.stand_in)["_workloads"][f"wrk-{number}"] = held
        listed = await up.market.rentals()

        assert len({rental.label for rental in listed}) == 103
        assert up.world.proxy.count("GET") == 2


GATEWAY = NodeAddress(host="ssh.deployments.targon.com", port=22, user="w1")
STATES = {
    "running": ({"status": "running"}, RentalStatus.RUNNING, GATEWAY),
    "with an address": (
        {"status": "RUNNING", "public_ip": "203.0.113.20", "ssh_port": 2222},
        RentalStatus.RUNNING,
        NodeAddress(host="203.0.113.20", port=2222, user="root"),
    ),
    "starting": ({"status": "provisioning"}, RentalStatus.PENDING, None),
    "suspended": ({"status": "suspended"}, RentalStatus.FAILED, None),
    "broken": ({"status": "error", "message": "no image"}, RentalStatus.FAILED, None),
    "deleted": ({"status": "deleted"}, RentalStatus.GONE, None),
    "of a new kind": ({"status": "migrating"}, RentalStatus.UNKNOWN, None),
    "untold": (None, RentalStatus.UNKNOWN, None),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES.values(), ids=STATES)
async def test_states_are_told_truthfully(world: World, case: tuple[Any, RentalStatus, NodeAddress | None]) -> None:
    """The gateway takes the workload's uid for a user name, unless an address is told; unknown stays unknown."""
    state, status, address = case
    body = {"uid": "w1", "name": "x", "state": state, "cost_per_hour": 2.4, "created_at": "2026-11-20T10:00:00Z"}
    world.proxy.trouble = Trouble(lambda m, p: p.endswith("/w1"), body=msgspec.json.encode(body))
    rental = await world.market.rental("w1")

    assert (rental.status, rental.address) == (status, address)
    assert rental.price_nusd_hour == usd("2.4")


@pytest.mark.parametrize(("fault", "status"), [(Fault.PREEMPTED, "suspended"), (Fault.DIES_BOOTING, "error")])
async def test_a_machine_that_is_lost_is_failed(stand: Standing, fault: Fault, status: str) -> None:
    """It is released, because it may bill; then it is gone."""
    stand.arm(fault)
    rental = await stand.world.rent(new_label())
    failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
    await stand.market.release(rental.rental_id)

    assert status in failed.detail
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


@pytest.mark.parametrize(("currency", "dollars"), [("USD", usd("12.5")), ("usd", usd("12.5")), ("TAO", None)])
async def test_only_dollars_are_a_balance(world: World, currency: str, dollars: int | None) -> None:
    """Credits of another kind are not taken for dollars."""
    body = msgspec.json.encode({"credits": 12.5, "currency": currency})
    world.proxy.trouble = Trouble(lambda m, p: "credits" in p, body=body)
    told = await world.market.balance()

    assert (None if told is None else told.amount_nusd) == dollars


async def test_kinds_that_are_sold_out_are_no_offers(running: RunningPool) -> None:
    """The inventory lists them; nobody is offered them."""

    def with_figures(yard: Yard, faults: FaultBoard, key: Secret) -> TargonStandIn:
        return TargonStandIn(yard, faults, key, show_figures=True)

    async with standing(running, with_figures, adapter, is_create, is_release) as up:
        offers = await up.market.offers(OfferQuery())

        assert len(offers) == 1
        assert offers[0].offer_id not in SOLD_OUT
