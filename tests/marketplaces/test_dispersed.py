"""The Dispersed adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, InsufficientFunds, OfferGone, Permanent, Temporary, Unauthorized
from jupyter_gpumarket.marketplaces.dispersed import DispersedMarketplace, DispersedOptions, signature, signer
from jupyter_gpumarket.models import NodeAddress, OfferQuery, RentalStatus
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.dispersed import DispersedStandIn
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.yard import Yard
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import KEY, Standing, standing

PUBLIC = "pk_of_the_account"


def adapter(url: str, key: Secret) -> DispersedMarketplace:
    options = DispersedOptions(url=url, calls_per_s=1000, ssh_user="root")
    return DispersedMarketplace(options, Secret(f"{PUBLIC}:{key.reveal()}"))


def stand_in(yard: Yard, faults: FaultBoard, key: Secret) -> DispersedStandIn:
    return DispersedStandIn(yard, faults, Secret(f"{PUBLIC}:{key.reveal()}"))


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1/jobs"


def is_release(method: str, path: str) -> bool:
    return method == "PUT" and path.endswith("/cancel")


def is_offers(_method: str, path: str) -> bool:
    return path == "/v1/compute/offers"


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, stand_in, adapter, is_create, is_release) as up:
        up.world.tells_price = False
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestDispersed(MarketplaceContract):
    """Dispersed keeps the contract."""


def test_a_call_is_signed_as_it_is_told() -> None:
    """The signature of a known call: parts, order, hash of the canonical body, hexadecimal."""
    body = b'{"gpu_count":1,"task":"PERSISTENT"}'
    parts = ("pk_test", "1790000000000", "00112233445566778899aabbccddeeff", "POST", "/v1/jobs", "")

    assert signature(Secret("sk_test"), parts, body) == (
        "7e2939a32953ffca3ec85031b5441bc83bb46b6d933c64480413ac9c1b70ee02"
    )


@pytest.mark.parametrize("key", ["", "pk_only", "pk:", ":sk"])
def test_half_a_key_is_refused(key: str) -> None:
    """The error names the form of the pair, and not what was given."""
    with pytest.raises(ConfigError, match=r"pk_…:sk_…"):
        DispersedMarketplace(DispersedOptions(), Secret(key))


async def test_the_secret_never_travels(stand: Standing) -> None:
    """What goes out proves the secret without holding it; each call has a nonce of its own."""
    seen: list[dict[str, str]] = []
    stand.server.observe = lambda call, _reply: seen.append(call.headers)
    await stand.market.offers(OfferQuery())
    await stand.market.rentals()

    assert len(seen) == 2
    assert not any(KEY in value for headers in seen for value in headers.values())
    assert len({headers["x-nonce"] for headers in seen}) == 2


async def test_a_call_counts_once_and_as_it_was_signed(stand: Standing) -> None:
    """Sent again, sent late, sent changed: the stand-in refuses each, as Dispersed says it does."""

    class Late(SystemClock):
        def now_ms(self) -> int:
            return super().now_ms() - 301_000

    async def answered(clock: SystemClock, *, twice: bool = False, path: str = "/v1/jobs") -> int:
        sign = signer(PUBLIC, Secret(KEY), clock)
        headers = dict(sign("GET", "/v1/jobs", "limit=50&page=1", b""))
        async with httpx.AsyncClient(base_url=stand.server.url, trust_env=False) as http:
            for _ in range(1 + twice):
                reply = await http.get(f"{path}?page=1&limit=50", headers=headers)
        return reply.status_code

    assert await answered(SystemClock()) == 200
    assert await answered(SystemClock(), twice=True) == 401
    assert await answered(Late()) == 401
    assert await answered(SystemClock(), path="/v1/job-runs") == 401


async def test_a_wrong_secret_is_unauthorized(stand: Standing) -> None:
    """The signature does not fit."""
    options = DispersedOptions(url=stand.server.url, calls_per_s=1000)
    market = DispersedMarketplace(options, Secret(f"{PUBLIC}:another"))
    with pytest.raises(Unauthorized, match="INVALID_SIGNATURE"):
        await market.offers(OfferQuery())
    await market.aclose()


OFFER: dict[str, Any] = {
    "offer_id": "off_1",
    "region_code": "eu-central-1",
    "availability": {"node_count": 3},
    "hardware_summary": {
        "cpu_cores": 16,
        "gpu_count": 1,
        "gpu_model_label": "NVIDIA RTX 4090",
        "min_gpu_vram_gib": 24,
        "ram_gib": 64,
        "storage_gib": 500,
    },
    "pricing": {"hourly_rate_usd": 0.35},
}


def page(*rows: Any) -> bytes:
    return msgspec.json.encode({"data": rows, "page": 1, "limit": 50, "total": len(rows)})


async def test_a_class_of_machines_is_an_offer(world: World) -> None:
    """Its price is by the hour that was begun."""
    world.proxy.trouble = Trouble(is_offers, body=page(OFFER))
    (offer,) = await world.market.offers(OfferQuery())

    assert (offer.gpu_raw, offer.vram_gib, offer.gpu_count) == ("NVIDIA RTX 4090", 24.0, 1)
    assert (offer.price_nusd_hour, offer.billing.quantum_s) == (usd("0.35"), 3600)
    assert (offer.region, offer.cpu_cores, offer.memory_gib) == ("eu-central-1", 16, 64.0)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"availability": None}, 1),
        ({"availability": {"something": "else"}}, 1),
        ({"availability": {"node_count": 0}}, 0),
        ({"pricing": {}}, 0),
        ({"pricing": {"hourly_rate_usd": None}}, 0),
    ],
)
async def test_only_what_can_be_rented_is_an_offer(world: World, changes: dict[str, Any], count: int) -> None:
    """None there, or no price; what is not told about the number of machines is taken for one."""
    world.proxy.trouble = Trouble(is_offers, body=page(OFFER | changes))

    assert len(await world.market.offers(OfferQuery())) == count


@pytest.mark.parametrize(
    ("field", "value"), [("pricing", {"hourly_rate_usd": "x"}), ("offer_id", None), ("hardware_summary", 7)]
)
async def test_nonsense_in_an_offer_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    world.proxy.trouble = Trouble(is_offers, body=page(OFFER | {field: value}))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


async def test_money_is_read_without_floats(world: World) -> None:
    """A price with more digits than a float holds is rounded up to the nano-dollar."""
    world.proxy.trouble = Trouble(is_offers, body=page(OFFER).replace(b"0.35", b"0.33333333333333333333"))
    (offer,) = await world.market.offers(OfferQuery())

    assert offer.price_nusd_hour == 333_333_334


REFUSED = {
    "no machine": (409, "NO_CAPACITY", OfferGone),
    "no machine by words": (400, "No nodes match", OfferGone),
    "no money": (402, "payment required", InsufficientFunds),
    "no money by words": (400, "Insufficient credits", InsufficientFunds),
    "wrong": (400, "max_timeout_start_ms is too small", Permanent),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_a_refused_job_means(world: World, case: tuple[int, str, type[Exception]]) -> None:
    """By status, and where that says nothing by its words."""
    status, words, error = case
    quote = await world.quote()
    body = msgspec.json.encode({"error": {"code": "X", "message": words}})
    world.proxy.trouble = Trouble(is_create, status=status, body=body)
    with pytest.raises(error):
        await world.rent(new_label(), quote)


async def test_a_job_asks_for_what_was_offered(stand: Standing) -> None:
    """The class by its numbers, one machine, no second try, no end time, our port and our key alone."""
    sent: list[Any] = []
    stand.server.observe = lambda call, _reply: sent.append(call.body()) if call.method == "POST" else None
    quote = await stand.world.quote()
    await stand.world.rent("a-label", quote)
    (job,) = sent

    assert (job["task"], job["title"], job["gpu_count"]) == ("PERSISTENT", "a-label", 0)
    assert "gpu_name" not in job
    assert (job["max_node_count"], job["max_retry_count"], job["max_timeout_run_ms"]) == (1, 0, None)
    assert job["allowed_region_codes"] == [quote.offer.region]
    assert job["parameters"]["parameters"]["ports"] == [22]
    assert job["parameters"]["parameters"]["sshkey"] == stand.world.ssh_public_key.strip()


async def test_a_listing_is_read_page_by_page(running: RunningPool) -> None:
    """Fifty rows at most come at once; the query is signed as it is sent."""
    async with standing(running, stand_in, adapter, is_create, is_release) as up:
        asked: list[str] = []

        def full(_method: str, path: str) -> bool:
            if path != "/v1/jobs" or up.world.proxy.trouble is None:
                return False
            rows = [{"uuid": f"j{n}", "title": f"t{n}", "status": "RUNNING"} for n in range(50 if not asked else 7)]
            asked.append(path)
            told = {"data": [row | {"uuid": f"{row['uuid']}-{len(asked)}"} for row in rows], "total": 57}
            up.world.proxy.trouble.body = msgspec.json.encode(told)
            return True

        up.world.proxy.trouble = Trouble(full)
        listed = await up.market.rentals()

        assert len(listed) == 57
        assert len(asked) == 2


URL = {"description": "22", "hostname": "n1.proxy.dispersed.com", "port": 40123, "protocol": "tcp"}
PROXY = NodeAddress(host="n1.proxy.dispersed.com", port=40123, user="root")
RUNS = {
    "by number": ({"status": "RUNNING", "node_urls": [{"description": "8888"}, URL]}, PROXY),
    "by word": ({"status": "RUNNING", "node_urls": [URL | {"description": "SSH"}]}, PROXY),
    "of another job": ({"status": "RUNNING", "job_uuid": "other", "node_urls": [URL]}, None),
    "not yet": ({"status": "PREPARING", "node_urls": [URL]}, None),
    "without URLs": ({"status": "RUNNING", "node_urls": None}, None),
    "no host name": ({"status": "RUNNING", "node_urls": [URL | {"hostname": "a b;c"}]}, None),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
async def test_the_address_is_that_of_the_run(world: World, case: tuple[dict[str, Any], NodeAddress | None]) -> None:
    """A job runs only when its run has an SSH port on the proxy."""
    run, address = case
    job = msgspec.json.encode({"uuid": "j1", "title": "x", "status": "RUNNING", "created_at": "2026-11-20T10:00:00Z"})

    def either(_method: str, path: str) -> bool:
        assert world.proxy.trouble is not None
        world.proxy.trouble.body = job if path == "/v1/jobs/j1" else page({"uuid": "r1", "job_uuid": "j1"} | run)
        return True

    world.proxy.trouble = Trouble(either)
    rental = await world.market.rental("j1")

    assert rental.address == address
    assert rental.status is (RentalStatus.RUNNING if address else RentalStatus.PENDING)


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("PENDING", RentalStatus.PENDING),
        ("CANCELLING", RentalStatus.ENDING),
        ("FAILED", RentalStatus.GONE),
        ("COMPLETED", RentalStatus.GONE),
        ("PAUSED", RentalStatus.UNKNOWN),
        (None, RentalStatus.UNKNOWN),
    ],
)
async def test_states_are_told_truthfully(world: World, told: str | None, status: RentalStatus) -> None:
    """A job that has ended is gone however it ended; an unknown word stays unknown."""
    body = msgspec.json.encode({"uuid": "j1", "title": "x", "status": told})
    world.proxy.trouble = Trouble(lambda m, p: p == "/v1/jobs/j1", body=body)

    assert (await world.market.rental("j1")).status is status


@pytest.mark.parametrize("fault", [Fault.PREEMPTED, Fault.DIES_BOOTING])
async def test_a_machine_that_is_lost_ends_its_job(stand: Standing, fault: Fault) -> None:
    """Nothing is tried again, so nothing bills on; releasing what has ended is no error."""
    stand.arm(fault)
    rental = await stand.world.rent(new_label())
    ended = await stand.world.until(rental.rental_id, RentalStatus.GONE)
    await stand.market.release(rental.rental_id)

    assert "FAILED" in ended.detail


async def test_an_hour_that_was_begun_is_on_the_bill(stand: Standing) -> None:
    """The ledger's lines of this job alone, as amounts that were paid."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    await stand.market.release(rental.rental_id)
    (charge,) = await stand.market.charges(rental.rental_id)

    assert await stand.market.charges("another") == []
    assert (charge.amount_nusd, charge.native_amount) == (usd("0.35"), "-0.35")
