"""The Nosana adapter against its stand-in, which rents hosts of a real pool, reached by its ingress alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import InsufficientFunds, OfferGone, OutcomeUnknown, Temporary
from jupyter_gpumarket.marketplaces.nosana import NosanaMarketplace, NosanaOptions, minutes
from jupyter_gpumarket.marketplaces.nosana_job import job_definition
from jupyter_gpumarket.marketplaces.nosana_replies import Deployment, JobRow, status_of, through
from jupyter_gpumarket.models import NodeAddress, OfferQuery, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.nosana import NosanaStandIn, hashed
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> NosanaMarketplace:
    return NosanaMarketplace(NosanaOptions(url=url, queue_s=0.2, calls_per_s=1000, charge_delay_s=0), key)


def is_create(method: str, path: str) -> bool:
    """What is only recorded costs nothing; the start costs."""
    return method == "POST" and path.endswith("/start")


def is_release(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/stop")


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, NosanaStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestNosana(MarketplaceContract):
    """Nosana keeps the contract."""


async def test_an_offer_is_a_market(stand: Standing) -> None:
    """A queue of hosts at one price: reward and fee, in credits that are dollars; the place is not known."""
    (offer,) = await stand.market.offers(OfferQuery())

    assert offer.price_nusd_hour == usd("0.3181") * 11 // 10
    assert offer.native is not None
    assert (offer.native.amount_hour, offer.native.currency, offer.native.rate) == ("0.34991", "credits", "1")
    assert (offer.gpu_raw, offer.gpu_count, offer.tier, offer.region) == ("", 0, Tier.VERIFIED, "")


def market(**changed: Any) -> dict[str, Any]:
    row = {
        "address": "97G9NnvBDQ2WpKu6fasoMsAKmfj63C9rhysJnkeWodAf",
        "slug": "nvidia-4090",
        "name": "NVIDIA 4090",
        "type": "PREMIUM",
        "usd_reward_per_hour": 0.2909,
        "network_fee_percentage": 10,
        "gpu_types": ["NVIDIA GeForce RTX 4090"],
        "lowest_vram": 24,
    }
    return row | changed


def listing(*rows: dict[str, Any]) -> Trouble:
    return Trouble(lambda m, p: p.endswith("/markets/"), body=msgspec.json.encode(rows))


MARKETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one GPU": ({}, {"gpu_raw": "NVIDIA GeForce RTX 4090", "gpu_count": 1, "vram_gib": 24}),
    "its fee": ({}, {"price_nusd_hour": usd("0.31999")}),
    "a reward as text": ({"usd_reward_per_hour": "0.2909"}, {"price_nusd_hour": usd("0.31999")}),
    "several GPUs": ({"name": "8x NVIDIA H100", "slug": "nvidia-8xh100"}, {"gpu_count": 8}),
    "a number that counts nothing": ({"name": "NVIDIA RTX 4090"}, {"gpu_count": 1}),
    "hosts of the community": ({"type": "COMMUNITY"}, {"tier": Tier.COMMUNITY}),
    "without memory told": ({"lowest_vram": None}, {"vram_gib": 0.0}),
}


@pytest.mark.parametrize("case", MARKETS.values(), ids=MARKETS)
async def test_what_a_market_means(world: World, case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each field of a market becomes what an offer calls it."""
    changed, expected = case
    world.proxy.trouble = listing(market(**changed))
    (offer,) = await world.market.offers(OfferQuery())

    assert {name: getattr(offer, name) for name in expected} == expected


@pytest.mark.parametrize(
    "changed", [{"type": "OTHER"}, {"usd_reward_per_hour": None}, {"usd_reward_per_hour": -1}], ids=str
)
async def test_what_cannot_be_rented_is_no_offer(world: World, changed: dict[str, Any]) -> None:
    """The others are listed all the same."""
    world.proxy.trouble = listing(market(**changed), market(address="other"))

    assert [offer.offer_id for offer in await world.market.offers(OfferQuery())] == ["other"]


@pytest.mark.parametrize(("field", "value"), [("usd_reward_per_hour", "x"), ("address", None), ("gpu_types", "H100")])
async def test_nonsense_in_a_market_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = listing(market(**{field: value}))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


async def test_an_address_is_the_ingress(stand: Standing) -> None:
    """A running job is reached by its WebSocket alone, and only once something answers there."""
    rental = await stand.world.rent(new_label())
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)

    assert stand.market.capabilities.https_only
    assert running.address is not None
    assert running.address.wss_url.startswith("ws://127.0.0.1:")
    assert "/_ingress/" in running.address.wss_url


async def test_who_waits_too_long_leaves_the_queue(stand: Standing) -> None:
    """Nobody is idle: the job is taken back, it costs nothing, and the offer is gone."""
    stand.arm(Fault.SOLD_TWICE)
    label = new_label()
    with pytest.raises(OfferGone, match="idle"):
        await stand.world.rent(label)

    assert await stand.market.find(label) is None
    assert stand.yard.rentals == {}


async def test_what_is_not_seen_after_the_start_may_be_there(stand: Standing) -> None:
    """The start succeeded, and then the API fails: its outcome is unknown, and the label finds it."""
    label, quote = new_label(), await stand.world.quote()
    stand.world.proxy.trouble = Trouble(lambda m, p: m == "GET", status=503)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None

    assert await stand.market.find(label) is not None


async def test_without_credit_it_is_taken_back(stand: Standing) -> None:
    """A deployment that is told to have no credit is stopped, and said to be so."""
    label, quote = new_label(), await stand.world.quote()
    told = {"id": "d", "name": label, "status": "INSUFFICIENT_FUNDS", "market": "m"}

    def is_look(method: str, path: str) -> bool:
        if any(called == "POST" and where.endswith("/stop") for called, where in stand.world.proxy.calls):
            stand.world.proxy.trouble = None
            return False
        return method == "GET" and path.startswith("/api/deployments/") and not path.endswith("/jobs")

    stand.world.proxy.trouble = Trouble(is_look, body=msgspec.json.encode(told))
    with pytest.raises(InsufficientFunds):
        await stand.world.rent(label, quote)

    assert await stand.market.find(label) is None


async def test_what_was_never_started_is_not_there(stand: Standing) -> None:
    """A recorded deployment bills nothing and is found by nobody; a lost create call ends as if it had not been."""
    label, quote = new_label(), await stand.world.quote()
    stand.world.proxy.trouble = Trouble(lambda m, p: p.endswith("/create"), drop=True, after=True)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None

    assert await stand.market.find(label) is None


async def test_their_own_timer_ends_it(stand: Standing) -> None:
    """An hour at least is asked for; the timer moves with the deadline, from the job's start."""
    rental = await stand.world.rent(new_label())
    await stand.market.set_deadline(rental.rental_id, int(time.time() * 1000) + 3 * 3_600_000)
    (deployed,) = stand.server.stand_in._deployments.values()  # type: ignore[attr-defined]

    assert deployed.minutes in (180, 181)
    assert [minutes(span) for span in (1, 3_600_000, 3_600_001, -5)] == [60, 60, 61, 60]


async def test_the_bill_is_the_jobs_own_time_at_its_own_price(stand: Standing) -> None:
    """Begin, end and price come from the job; credits are dollars; only what has ended is final."""
    rental = await stand.world.rent(new_label())
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    before = await stand.market.balance()
    await asyncio.sleep(1.1)
    (so_far,) = await stand.market.charges(rental.rental_id)
    await stand.world.release_all()
    ended = await stand.market.rental(rental.rental_id)
    (whole,) = await stand.market.charges(rental.rental_id)
    after = await stand.market.balance()

    assert running.billed_from_ms == whole.start_ms
    assert ended.ended_ms == whole.end_ms
    assert (so_far.final, whole.final, whole.native_currency) == (False, True, "credits")
    assert 0 < so_far.amount_nusd <= whole.amount_nusd
    assert before is not None
    assert after is not None
    assert abs(usd("100") - after.amount_nusd - whole.amount_nusd) <= 1
    assert before.amount_nusd < after.amount_nusd


async def test_jobs_that_broke_are_failed_and_the_dearer_one_tells_it(stand: Standing) -> None:
    """Taken away or never up: FAILED, so that they are released; the job's own price is read back."""
    for fault in (Fault.PREEMPTED, Fault.DIES_BOOTING):
        stand.arm(fault)
        rental = await stand.world.rent(new_label())
        failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
        assert failed.detail
        await stand.world.release_all()
        async with asyncio.timeout(20):
            while not await stand.yard.free():
                await asyncio.sleep(0.05)
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)
    seen = await stand.market.rental(rental.rental_id)

    assert seen.price_nusd_hour is not None
    assert seen.price_nusd_hour > quote.price_nusd_hour * 14 // 10


DEPLOYMENTS: dict[str, tuple[str, str | None, bool | None, RentalStatus]] = {
    "in the queue": ("RUNNING", "QUEUED", None, RentalStatus.PENDING),
    "not listed yet": ("RUNNING", None, None, RentalStatus.PENDING),
    "its image is loading": ("RUNNING", "RUNNING", False, RentalStatus.PENDING),
    "serving": ("RUNNING", "RUNNING", True, RentalStatus.RUNNING),
    "serving, as far as an older server tells": ("RUNNING", "RUNNING", None, RentalStatus.RUNNING),
    "its job has ended": ("RUNNING", "COMPLETED", True, RentalStatus.FAILED),
    "starting": ("STARTING", None, None, RentalStatus.PENDING),
    "without credit": ("INSUFFICIENT_FUNDS", None, None, RentalStatus.FAILED),
    "broken": ("ERROR", "STOPPED", None, RentalStatus.FAILED),
    "stopping": ("STOPPING", "RUNNING", True, RentalStatus.ENDING),
    "stopped": ("STOPPED", "STOPPED", None, RentalStatus.GONE),
    "archived": ("ARCHIVED", "STOPPED", None, RentalStatus.GONE),
    "never started": ("DRAFT", None, None, RentalStatus.GONE),
    "a status of tomorrow": ("HIBERNATING", None, None, RentalStatus.UNKNOWN),
}


@pytest.mark.parametrize("case", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_what_a_deployment_and_its_job_mean(case: tuple[str, str | None, bool | None, RentalStatus]) -> None:
    """Running is not serving, and stopped is only the end when no job is left."""
    status, job, online, expected = case
    endpoint = {
        "opId": "node",
        "url": "https://abc.node.k8s.prd.nos.ci",
        **({} if online is None else {"online": online}),
    }
    told = {"id": "d", "name": "n", "status": status, "market": "m", "endpoints": [endpoint]}
    row = None if job is None else JobRow(job="j", state=job)

    assert status_of(msgspec.convert(told, Deployment), row) is expected
    still = msgspec.convert(told | {"status": "STOPPED", "active_jobs": 1}, Deployment)
    assert status_of(still, row) is RentalStatus.ENDING


URLS: dict[str, tuple[str, NodeAddress | None]] = {
    "as Nosana tells it": (
        "https://abc.node.k8s.prd.nos.ci",
        NodeAddress(host="abc.node.k8s.prd.nos.ci", port=443, user="root", wss_url="wss://abc.node.k8s.prd.nos.ci/"),
    ),
    "of another scheme": ("ftp://abc.node.k8s.prd.nos.ci", None),
    "with a password": ("https://u:p@abc.node.k8s.prd.nos.ci", None),
    "without a host": ("https:///x", None),
    "none at all": ("http://[::1", None),
}


@pytest.mark.parametrize("case", URLS.values(), ids=URLS)
def test_an_ingress_is_read_strictly(case: tuple[str, NodeAddress | None]) -> None:
    """https becomes wss; anything but a plain URL with a host is no address."""
    url, expected = case

    assert through(url) == expected


async def test_older_servers_answer_with_bare_lists(world: World) -> None:
    """A list without pages is a whole listing."""
    rows = [{"id": "d", "name": "label", "status": "RUNNING", "market": "m"}]
    world.proxy.trouble = Trouble(lambda m, p: p == "/api/deployments", body=msgspec.json.encode(rows))

    assert [rental.label for rental in await world.market.rentals()] == ["label"]


def test_a_job_tells_no_secret() -> None:
    """Job definitions are public: the lease's public key is all that is of us in one."""
    definition = job_definition("any/image", "ssh-ed25519 AAAA lease\n", 24.0)

    assert definition["ops"][0]["args"]["env"]["GPUMARKET_SSH_KEY"] == "ssh-ed25519 AAAA lease"
    assert "PRIVATE" not in str(definition)
    assert definition["meta"]["system_resources"] == {"required_vram": 24}


def test_names_are_made_as_nosana_makes_them() -> None:
    """The stand-in's hashes are those of Nosana's own package, for its test vectors."""
    deployment, vault = "Dep1oy1111111111111111111111111111111111111", "Vau1t11111111111111111111111111111111111111"

    assert (
        hashed("0:8888:So11111111111111111111111111111111111111112") == "3SSRYqWjatSUL9KyC8tH9W3KqNFVZpDBxyvoUpLqQCN1"
    )
    assert hashed(f"{deployment}:{vault}", 45) == "4TWabDsFehsWM43uK8jWUYUP3D2mK5rNupzw8gEY6rskB"
    assert hashed(f"jupyter:0:{hashed(f'{deployment}:{vault}', 45)}") == "dTMFjZChLKcS5ueMWUsXYfjZ5TFJvnYGB1nmzqibALuR"
