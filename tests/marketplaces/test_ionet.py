"""The io.net adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Temporary,
    Unauthorized,
)
from jupyter_gpumarket.marketplaces.ionet import IonetMarketplace, IonetOptions, judge
from jupyter_gpumarket.marketplaces.ionet_replies import Deployed, status_of
from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.gpus import canonical
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.ionet import ENTERPRISE, IonetStandIn
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.edge import TruthfulFaults
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import KEY, Standing, standing

# The listed 0.35 with 0.25 % for io.net and 2 % for paying in USDC.
WITH_FEES = usd("0.357875")


def adapter(url: str, key: Secret) -> IonetMarketplace:
    return IonetMarketplace(IonetOptions(url=url, calls_per_s=1000, cpu_rows=True), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/deploy")


def is_release(method: str, path: str) -> bool:
    return method == "DELETE"


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, IonetStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestIonet(MarketplaceContract):
    """io.net keeps the contract."""


class TestIonetFaults(TruthfulFaults):
    """Whatever the stand-in does, the adapter tells it as what it is."""


async def test_an_offer_is_a_configuration_with_its_fees(stand: Standing) -> None:
    """Priced as a whole, with fees; what is sold out or costs nothing is left out; the first hour is always paid."""
    stand.arm(Fault.WRONG_GPU, times=None)
    (offer,) = await stand.market.offers(OfferQuery())
    quote = await stand.market.quote(offer)

    assert (offer.gpu_raw, offer.gpu_count, offer.vram_gib) == ("GeForce RTX 4090", 1, 24)
    assert offer.price_nusd_hour == quote.price_nusd_hour == WITH_FEES
    assert (offer.billing.minimum_s, offer.billing.quantum_s) == (3600, 1)
    assert await stand.market.balance() is None


async def test_a_card_is_named_with_its_interface_where_that_matters(world: World) -> None:
    """So that an H100 with SXM is not taken for one in a slot; a gaming card needs no such word."""
    h100 = {"id": "8H100__FI", "deploy_id": "8H100", "name": "H100", "num_cards": 8, "price": 27.88}
    h100 |= {"vram_per_card": 80, "interconnect": "sxm5", "location": "FI", "supplier": "external"}
    card = {
        "id": "12__1",
        "deploy_id": 12,
        "name": "GeForce RTX 4090",
        "num_cards": 1,
        "price": 0.3,
        "vram_per_card": 24,
    }
    body = msgspec.json.encode({"data": {"hardware": [h100, card]}})
    world.proxy.trouble = Trouble(lambda m, p: "hardware" in p, body=body)
    offers = await world.market.offers(OfferQuery())

    assert [canonical(offer.gpu_raw, offer.vram_gib) for offer in offers] == ["H100 SXM", "RTX 4090"]
    assert [offer.extra["deploy_id"] for offer in offers] == ["8H100", 12]


async def test_rows_without_a_gpu_come_on_wish_alone(stand: Standing) -> None:
    """io.net lists them, and its deploy call takes no number of 0."""
    url = stand.world.proxy.url
    plain = IonetMarketplace(IonetOptions(url=url, calls_per_s=1000), Secret(KEY))
    assert await plain.offers(OfferQuery()) == []
    assert len(await stand.market.offers(OfferQuery())) == 1
    await plain.aclose()


async def test_listing_needs_no_key(stand: Standing) -> None:
    """What is public is read by the public path, without an account."""
    visitor = adapter(stand.world.proxy.url, Secret(""))
    offers = await visitor.offers(OfferQuery())
    with pytest.raises(Unauthorized):
        await visitor.rentals()
    await visitor.aclose()

    assert offers
    assert ("GET", "/v1/io-cloud/vmaas/hardware") in stand.world.proxy.calls


async def test_hours_are_paid_up_to_the_deadline_and_no_further(stand: Standing) -> None:
    """Whole hours; an extension pays for those that are missing, asked again for none."""
    rental = await stand.market.rent(
        await stand.world.quote(),
        label=new_label(),
        ssh_public_key=stand.world.ssh_public_key,
        deadline_ms=int(time.time() * 1000) + 90 * 60_000,
    )
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (held,) = stand.yard.rentals.values()
    paid = [held.extra["hours"]]
    later_ms = int(time.time() * 1000) + 3 * 3_600_000
    for _ in range(2):
        await stand.market.set_deadline(rental.rental_id, later_ms)
        paid.append(held.extra["hours"])
    extended = await stand.market.rental(rental.rental_id)

    assert paid in ([2, 3, 3], [2, 4, 4])
    assert extended.price_nusd_hour == WITH_FEES
    assert stand.market.capabilities.own_timer


async def test_the_first_hour_is_not_given_back(stand: Standing) -> None:
    """A rental of seconds costs an hour; the bill says so, and is final once it has ended."""
    rental = await stand.world.rent(new_label())
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (open_bill,) = await stand.market.charges(rental.rental_id)
    await stand.market.release(rental.rental_id)
    (bill,) = await stand.market.charges(rental.rental_id)

    assert running.billed_from_ms is not None
    assert not open_bill.final
    assert bill.final
    assert bill.amount_nusd == WITH_FEES
    assert bill.end_ms - bill.start_ms == 3_600_000


BILLS = {
    "three hours paid, 72 minutes used": (3, "2026-10-01T11:12:00Z", "1.2"),
    "three hours paid, 20 minutes used": (3, "2026-10-01T10:20:00", "1"),
    "all used": (3, "2026-10-01T13:00:05Z", "3"),
}


@pytest.mark.parametrize("case", BILLS.values(), ids=BILLS)
async def test_what_comes_back_is_reckoned_as_documented(world: World, case: tuple[int, str, str]) -> None:
    """The exact time after the first hour, and never more than was paid."""
    hours, finished, charged = case
    details = {
        "id": "d1",
        "status": "destroyed",
        "created_at": "2026-10-01T09:59:00Z",
        "started_at": "2026-10-01T10:00:00Z",
        "finished_at": finished,
        "amount_paid": 0.3 * hours,
        "compute_minutes_served": 60,
        "compute_minutes_remaining": 60 * hours - 60,
    }
    world.proxy.trouble = Trouble(lambda m, p: True, body=msgspec.json.encode({"data": details}))
    (bill,) = await world.market.charges("d1")

    assert abs(bill.amount_nusd - usd(Decimal("0.3") * Decimal(charged))) <= 1


REFUSALS: dict[str, tuple[int, bytes, type[Exception] | None]] = {
    "sold out": (400, b'{"detail": "Selected hardware is sold out"}', OfferGone),
    "not there": (409, b'{"detail": "hardware not available"}', OfferGone),
    "no credits": (400, b'{"detail": "Insufficient credits"}', InsufficientFunds),
    "a field too many": (422, b'{"detail": [{"loc": ["body", "x"], "type": "extra_forbidden"}]}', None),
    "a key that went stale": (400, b'{"detail": "bad"}', None),
    "their own trouble": (500, b"sold out", None),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_what_a_refused_deploy_means(case: tuple[int, bytes, type[Exception] | None]) -> None:
    """Its words tell, where they are known."""
    status, content, error = case

    assert judge(status, content) is error


async def test_an_answer_without_a_usable_id_may_have_rented(world: World) -> None:
    """None at all, and one that is none."""
    quote = await world.quote()
    for body in (b'{"status": "deployment requested"}', b'{"deployment_id": "../x"}'):
        world.proxy.trouble = Trouble(is_create, body=body)
        with pytest.raises(OutcomeUnknown):
            await world.rent(new_label(), quote)


@pytest.mark.parametrize(
    "body",
    ['{"deployment_id": "a-1"}', '{"data": {"deployment_id": "a-1"}}', '{"id": "a-1"}', '{"data": {"id": "a-1"}}'],
)
def test_the_id_of_a_deployment_is_found_where_it_may_be(body: str) -> None:
    """The reply is not documented."""
    assert msgspec.json.decode(body, type=Deployed).known_id == "a-1"


@pytest.mark.parametrize(
    ("status", "left", "finished", "expected"),
    [
        ("deployment requested", 60, False, RentalStatus.PENDING),
        ("termination requested", 60, False, RentalStatus.ENDING),
        ("failed", 60, False, RentalStatus.FAILED),
        ("failed", 60, True, RentalStatus.GONE),
        ("failed", 0, False, RentalStatus.GONE),
        ("completed", 0, True, RentalStatus.GONE),
        ("destroyed", 60, True, RentalStatus.GONE),
        ("hibernating", 60, False, RentalStatus.UNKNOWN),
    ],
)
def test_states_are_read(status: str, left: int, finished: bool, expected: RentalStatus) -> None:
    """A failed deployment with paid time left is destroyed, so that the time comes back."""
    assert status_of(status, Decimal(left), finished=finished) is expected


SSH = {
    "with a port": ("ssh -p 31022 ubuntu@198.51.100.20", 31022),
    "without ssh": ("ubuntu@198.51.100.20 -p 22", 22),
    "nothing yet": (None, None),
    "a second command": ("ssh ubuntu@198.51.100.20; rm -rf /", None),
    "an option that runs things": ("ssh -oProxyCommand=x ubuntu@198.51.100.20", None),
}


@pytest.mark.parametrize("case", SSH.values(), ids=SSH)
async def test_the_ssh_command_is_read_and_never_run(world: World, case: tuple[str | None, int | None]) -> None:
    """What cannot be read is no address, so that the node is waited for, and given back in time."""
    told, port = case
    path = f"{ENTERPRISE}/deployment/d1"
    details = {"id": "d1", "status": "running", "amount_paid": 0.3, "compute_minutes_remaining": 60}
    machines = {"total": 1, "workers": [{"status": "running", "ssh_access": told}]}
    world.proxy.answers[path] = msgspec.json.encode({"data": details})
    world.proxy.answers[f"{path}/vms"] = msgspec.json.encode({"data": machines})
    seen = await world.market.rental("d1")

    assert (seen.address.port if seen.address else None) == port
    assert seen.status is (RentalStatus.RUNNING if port else RentalStatus.PENDING)


async def test_a_404_alone_does_not_prove_the_end(world: World) -> None:
    """Wrong paths are answered by 404 too: as long as it is listed, it is there."""
    rental = await world.rent(new_label())
    path = f"{ENTERPRISE}/deployment/{rental.rental_id}"
    world.proxy.trouble = Trouble(lambda m, p: p == path, status=404, body=b'{"detail": "Not Found"}')
    seen = await world.market.rental(rental.rental_id)

    assert seen.status is RentalStatus.PENDING


@pytest.mark.parametrize(("field", "value"), [("price", "x"), ("id", None), ("num_cards", "two")])
async def test_nonsense_in_the_listing_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    row = {"id": "12__1", "deploy_id": 12, "name": "H100", "num_cards": 1, "price": 1.5, field: value}
    body = msgspec.json.encode({"data": {"hardware": [row]}})
    world.proxy.trouble = Trouble(lambda m, p: "hardware" in p, body=body)
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


@pytest.mark.parametrize("percent", ["-1", "x", "51", "NaN"])
def test_a_fee_that_is_none_is_refused(percent: str) -> None:
    """Else every price would be wrong."""
    with pytest.raises(ConfigError, match="fee_percent"):
        IonetMarketplace(IonetOptions(fee_percent=percent), Secret(KEY))
