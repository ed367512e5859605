"""The Lium adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Permanent, Temporary
from jupyter_gpumarket.marketplaces.lium import LiumMarketplace, LiumOptions, recommended, timer_hours
from jupyter_gpumarket.marketplaces.lium_replies import DefaultImage, Template
from jupyter_gpumarket.models import OfferQuery, PriceKind, RentalStatus, Tier
from jupyter_gpumarket.money import MS_PER_HOUR, usd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.lium import TEMPLATE, LiumStandIn
from jupyter_gpumarket.simulator.yard import Yard
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> LiumMarketplace:
    return LiumMarketplace(LiumOptions(url=url, calls_per_s=1000), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/rent")


def is_release(method: str, path: str) -> bool:
    return method == "DELETE"


def is_listing(_method: str, path: str) -> bool:
    return path == "/api/executors"


def with_figures(yard: Yard, faults: FaultBoard, key: Secret) -> LiumStandIn:
    return LiumStandIn(yard, faults, key, show_figures=True)


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, LiumStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestLium(MarketplaceContract):
    """Lium keeps the contract."""


NODE: dict[str, Any] = {
    "id": "6f0c2c1e-0000-4000-8000-000000000001",
    "machine_name": "NVIDIA GeForce RTX 4090",
    "gpu_count": "8",
    "available_gpu_count": 6,
    "min_gpu_count_for_rental": 2,
    "price_per_gpu": 0.31,
    "tier": "spot",
    "location": {"country_code": "DE", "region_name": "Berlin"},
    "specs": {
        "gpu": {"count": 8, "driver": "570.86", "details": [{"name": "NVIDIA GeForce RTX 4090", "capacity": 49140}]},
        "cpu": {"count": 64, "model": "AMD EPYC"},
        "ram": {"total": 268_435_456},
        "hard_disk": {"total": 2_147_483_648, "free": 1_073_741_824},
    },
    "effective_upload_speed_mbps": 800,
    "effective_download_speed_mbps": 850,
    "max_cuda_version": 12.8,
    "reliability_score": 97.5,
    "frequent_rent_failures": False,
}


async def test_a_split_node_is_offered_by_numbers_of_gpus(world: World) -> None:
    """From the least number to all that are free, each at its price and with its share of the machine."""
    world.proxy.trouble = Trouble(is_listing, body=msgspec.json.encode([NODE]))
    offers = await world.market.offers(OfferQuery())

    assert [(offer.gpu_count, offer.price_nusd_hour) for offer in offers] == [
        (2, usd("0.62")),
        (4, usd("1.24")),
        (6, usd("1.86")),
    ]
    assert {offer.machine_id for offer in offers} == {NODE["id"]}
    two = offers[0]
    assert (two.cpu_cores, two.memory_gib, two.disk_gib) == (16, 64.0, 256.0)
    assert two.vram_gib == pytest.approx(47.988, abs=0.001)
    assert (two.kind, two.tier, two.reliability) == (PriceKind.SPOT, Tier.COMMUNITY, 0.975)
    assert (two.region, two.country, two.cuda, two.down_mbps, two.up_mbps) == ("Berlin", "DE", "12.8", 850.0, 800.0)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"min_gpu_count_for_rental": None}, []),
        ({"min_gpu_count_for_rental": None, "available_gpu_count": 8}, [8]),
        ({"available_gpu_count": None}, [2, 4, 8]),
        ({"available_gpu_count": "5"}, [2, 4, 5]),
        ({"min_gpu_count_for_rental": "3", "available_gpu_count": 3}, [3]),
        ({"price_per_gpu": None}, []),
        ({"available_gpu_count": 0}, []),
        ({"available_gpu_count": 0, "gpu_count": 0}, [0]),
        ({"available_gpu_count": 1}, []),
        ({"frequent_rent_failures": True}, []),
        ({"specs": None, "location": None, "tier": None, "max_cuda_version": "12.4"}, [2, 4, 6]),
    ],
)
async def test_what_a_node_leaves_out_is_no_error(world: World, changes: dict[str, Any], counts: list[int]) -> None:
    """Whole nodes, texts for counts, missing facts, nodes that often fail: each comes out as it can be rented."""
    world.proxy.trouble = Trouble(is_listing, body=msgspec.json.encode([NODE | changes]))

    assert [offer.gpu_count for offer in await world.market.offers(OfferQuery())] == counts


async def test_a_node_of_an_older_server_is_offered_with_all_that_is_free(world: World) -> None:
    """It does not tell whether the node is split."""
    older = {name: value for name, value in NODE.items() if name != "min_gpu_count_for_rental"}
    world.proxy.trouble = Trouble(is_listing, body=msgspec.json.encode([older]))

    assert [offer.gpu_count for offer in await world.market.offers(OfferQuery())] == [6]


@pytest.mark.parametrize(("field", "value"), [("price_per_gpu", "x"), ("id", None), ("gpu_count", 1.5), ("specs", 7)])
async def test_nonsense_in_a_node_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = Trouble(is_listing, body=msgspec.json.encode([NODE | {field: value}]))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


async def test_a_quote_for_another_number_of_gpus_is_none(world: World) -> None:
    """The rate is believed only for what was asked for."""
    world.proxy.trouble = Trouble(is_listing, body=msgspec.json.encode([NODE]))
    offer = (await world.market.offers(OfferQuery()))[0]
    rate = msgspec.json.encode({"gpu_count": "8", "price_per_hour": 0.62})

    def either(_method: str, path: str) -> bool:
        assert world.proxy.trouble is not None
        world.proxy.trouble.body = rate if path.endswith("/quote") else msgspec.json.encode([NODE])
        return True

    world.proxy.trouble = Trouble(either)
    with pytest.raises(OfferGone, match="2 GPUs"):
        await world.market.quote(offer)


async def test_money_is_read_without_floats(world: World) -> None:
    """A price with more digits than a float holds is rounded up to the nano-dollar, for all GPUs at once."""
    whole = NODE | {"min_gpu_count_for_rental": None, "gpu_count": 6}
    raw = msgspec.json.encode([whole]).replace(b"0.31", b"0.33333333333333333333")
    world.proxy.trouble = Trouble(is_listing, body=raw)
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.price_nusd_hour == 2 * usd("1")


CREATES = {
    "taken": (409, "executor_unavailable", "The node is already rented", OfferGone),
    "gone": (404, "not_found", "Executor not found", OfferGone),
    "no money": (403, "insufficient_balance", "Insufficient balance.", InsufficientFunds),
    "a spent key": (402, "API_KEY_BUDGET_EXCEEDED", "The key's budget is reached", InsufficientFunds),
    "under way": (409, "idempotency_in_progress", "The first request is at work", OutcomeUnknown),
    "unsettled": (409, "idempotency_outcome_unknown", "Nobody knows", OutcomeUnknown),
    "wrong": (422, "validation_error", "Validation error", Permanent),
    "answered without a pod": (200, "", "", OutcomeUnknown),
}


@pytest.mark.parametrize("case", CREATES.values(), ids=CREATES)
async def test_what_a_refused_create_means_is_read_from_its_code(
    world: World, case: tuple[int, str, str, type[Exception]]
) -> None:
    """Lium's codes tell a taken node from one that may have been rented."""
    status, code, words, error = case
    quote = await world.quote()
    body = msgspec.json.encode({"error": {"code": code, "message": words}, "message": words})
    world.proxy.trouble = Trouble(is_create, status=status, body=body)
    with pytest.raises(error):
        await world.rent(new_label(), quote)


async def test_the_same_label_never_rents_twice(stand: Standing) -> None:
    """A create call that is made again under its label, after a lost reply, is answered with the first one's pod."""
    label, quote = new_label(), await stand.world.quote()
    stand.arm(Fault.LOST_AFTER_CREATE)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    again = await stand.world.rent(label, quote)

    assert [again.rental_id] == [rental.rental_id for rental in await stand.market.rentals()]
    assert len(stand.yard.rentals) == 1


async def test_liums_own_timer_ends_a_rental(stand: Standing) -> None:
    """It is set by the create call, not before the deadline, and moved when the lease's deadline moves."""
    rental = await stand.world.rent(new_label())
    (held,) = stand.yard.rentals.values()
    at_first = int(str(held.extra["removal_ms"]))
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    await stand.market.set_deadline(rental.rental_id, int(time.time() * 1000) + 300)
    await stand.world.until(rental.rental_id, RentalStatus.GONE)
    (charge,) = await stand.market.charges(rental.rental_id)

    assert MS_PER_HOUR <= at_first - held.created_ms <= 2 * MS_PER_HOUR
    assert charge.end_ms == held.ended_ms
    assert charge.amount_nusd > 0


@pytest.mark.parametrize(
    ("left_ms", "hours"), [(-5, 1), (1, 1), (MS_PER_HOUR, 1), (MS_PER_HOUR + 1, 2), (721 * MS_PER_HOUR, None)]
)
def test_the_timer_is_never_before_the_deadline(left_ms: int, hours: int | None) -> None:
    """Hours are rounded up; a deadline beyond the 720 that Lium takes gets no timer rather than an early end."""
    assert timer_hours(left_ms) == hours


async def test_preempted_and_dead_machines_are_failed(stand: Standing) -> None:
    """A pod that was stopped, and one that never comes up, are FAILED, and are gone when they were released."""
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


async def test_dearer_than_quoted_and_bills_on_are_seen(stand: Standing) -> None:
    """The pod's own price tells the first; a release that did nothing leaves the pod listed."""
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)
    stand.arm(Fault.BILLS_ON)
    await stand.market.release(rental.rental_id)
    still = await stand.market.rental(rental.rental_id)
    await stand.market.release(rental.rental_id)

    assert still.price_nusd_hour == quote.price_nusd_hour * 3 // 2
    assert still.status is not RentalStatus.GONE
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


async def test_a_404_alone_does_not_prove_the_end(world: World) -> None:
    """As long as a pod is listed it is there, whatever its own page says."""
    rental = await world.rent(new_label())
    world.proxy.trouble = Trouble(lambda m, p: p == f"/api/pods/{rental.rental_id}", status=404, body=b"{}")
    seen = await world.market.rental(rental.rental_id)

    assert seen.status in (RentalStatus.PENDING, RentalStatus.RUNNING)


PODS = {
    "running": ({"status": "RUNNING", "ssh_connect_cmd": "ssh root@203.0.113.9 -p 20301"}, RentalStatus.RUNNING),
    "without an address": ({"status": "RUNNING", "ssh_connect_cmd": None}, RentalStatus.PENDING),
    "with an odd one": ({"status": "RUNNING", "ssh_connect_cmd": "ssh -oProxyCommand=id a@b"}, RentalStatus.PENDING),
    "broken": ({"status": "BROKEN"}, RentalStatus.FAILED),
    "going": ({"status": "DELETING"}, RentalStatus.ENDING),
    "of a new kind": ({"status": "HIBERNATING"}, RentalStatus.UNKNOWN),
    "of no kind": ({}, RentalStatus.UNKNOWN),
    "in lower case": ({"status": "pending"}, RentalStatus.PENDING),
}


@pytest.mark.parametrize("case", PODS.values(), ids=PODS)
async def test_states_are_told_truthfully(world: World, case: tuple[dict[str, Any], RentalStatus]) -> None:
    """A pod is running only with an address that can be read; an unknown word stays unknown."""
    told, status = case
    pod = {"id": "p1", "pod_name": "x", "price": 0.31, "gpu_count": "1", "created_at": "2026-11-20T10:00:00"} | told
    world.proxy.trouble = Trouble(lambda m, p: p == "/api/pods/p1", body=msgspec.json.encode(pod))
    rental = await world.market.rental("p1")

    assert rental.status is status
    assert (rental.address is not None) == (status is RentalStatus.RUNNING)
    assert rental.billed_from_ms == 1_795_168_800_000


async def test_figures_of_the_market_can_be_seen_and_not_rented(running: RunningPool) -> None:
    """Listed with their real prices; whoever asks for one is told that it is taken."""
    async with standing(running, with_figures, adapter, is_create, is_release) as up:
        offers = await up.market.offers(OfferQuery())
        figure = max(offers, key=lambda offer: offer.price_nusd_hour)
        quote = await up.market.quote(figure)
        with pytest.raises(OfferGone):
            await up.world.rent(new_label(), quote)

        assert len(offers) == 41
        assert {offer.marketplace for offer in offers} == {"lium"}
        assert figure.gpu_count == 8


def test_the_recommended_image_wins_then_the_newest_pytorch() -> None:
    """By image and tag; without any of them by the version in the tag; without templates there is none."""
    old, new = (Template(id=tag, docker_image="d/pytorch", docker_image_tag=tag) for tag in ("2.9.0-x", "2.10.1-x"))
    other = Template(id="u", docker_image="d/ubuntu", docker_image_tag="24.04")
    wish = DefaultImage(docker_image="d/pytorch", docker_image_tag="2.9.0-x")

    assert recommended((wish,), (other, new, old)) is old
    assert recommended((), (other, old, new)) is new
    assert recommended((), (other,)) is other
    assert recommended((wish,), ()) is None


async def test_a_template_that_was_set_is_used_or_named(stand: Standing) -> None:
    """Its encryption is what the listing says; one that is not listed is named before anything is rented."""
    for wanted in (TEMPLATE["id"], "no-such-template"):
        options = LiumOptions(url=stand.server.url, calls_per_s=1000, template_id=wanted)
        market = LiumMarketplace(options, Secret(stand.world.secret))
        offer = (await market.offers(OfferQuery()))[0]
        if wanted == TEMPLATE["id"]:
            assert (await market.quote(offer)).offer.extra == {
                "driver": "570.86.15",
                "template_id": wanted,
                "encrypted": True,
            }
        else:
            with pytest.raises(Permanent, match="no-such-template"):
                await market.quote(offer)
        await market.aclose()
