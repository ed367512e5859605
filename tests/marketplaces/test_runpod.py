"""The RunPod adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import OfferGone, Permanent, Temporary
from jupyter_gpumarket.marketplaces.runpod import RunpodMarketplace, RunpodOptions
from jupyter_gpumarket.models import OfferQuery, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.runpod import NO_CAPACITY, RunpodStandIn
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import Standing, standing


def adapter(url: str, key: Secret) -> RunpodMarketplace:
    return RunpodMarketplace(RunpodOptions(url=url, calls_per_s=1000), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/v2/pods"


def is_release(method: str, path: str) -> bool:
    return method == "DELETE"


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, RunpodStandIn, adapter, is_create, is_release) as up:
        up.world.calls_balance = False
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestRunpod(MarketplaceContract):
    """RunPod keeps the contract."""


async def test_offers_are_made_of_model_cloud_and_data_centre(stand: Standing) -> None:
    """What RunPod tells becomes an offer; what it does not tell stays unknown."""
    (offer,) = await stand.market.offers(OfferQuery())

    assert offer.machine_id == "NVIDIA GeForce RTX 4090/SECURE/EU-SE-1"
    assert (offer.gpu_raw, offer.vram_gib, offer.gpu_count) == ("NVIDIA GeForce RTX 4090", 24, 1)
    assert (offer.price_nusd_hour, offer.tier) == (usd("0.35"), Tier.DATACENTER)
    assert offer.reliability is None
    assert await stand.market.balance() is None


@pytest.mark.parametrize(("words", "error"), [(NO_CAPACITY, OfferGone), ("image is required", Permanent)])
async def test_no_machine_is_told_from_a_wrong_request_by_its_words(
    world: World, words: str, error: type[Exception]
) -> None:
    """RunPod says 400 for both."""
    quote = await world.quote()
    body = msgspec.json.encode({"title": "Bad Request", "status": 400, "detail": words})
    world.proxy.trouble = Trouble(is_create, status=400, body=body)
    with pytest.raises(error):
        await world.rent(new_label(), quote)


async def test_a_404_alone_does_not_prove_the_end(world: World) -> None:
    """A pod's own page may say 404 right after it was created: as long as it is listed, it is there."""
    rental = await world.rent(new_label())
    world.proxy.trouble = Trouble(lambda m, p: p == f"/v2/pods/{rental.rental_id}", status=404, body=b"{}")
    seen = await world.market.rental(rental.rental_id)

    assert seen.status in (RentalStatus.PENDING, RentalStatus.RUNNING)


async def test_the_node_can_end_itself_with_its_own_key_alone(stand: Standing) -> None:
    """The recipe, run in a container's environment, terminates this pod."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (held,) = stand.yard.rentals.values()
    recipe = stand.market.self_stop(rental)
    assert recipe is not None
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *recipe.argv[1:]],
        env={"RUNPOD_API_KEY": held.own_key, "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stdout.strip() == "204", done.stderr
    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


async def test_a_machine_that_never_comes_up_is_failed(stand: Standing) -> None:
    """ERROR is FAILED, so that it is released; releasing it ends it."""
    stand.arm(Fault.DIES_BOOTING)
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.FAILED)
    await stand.market.release(rental.rental_id)

    assert (await stand.market.rental(rental.rental_id)).status is RentalStatus.GONE


@pytest.mark.parametrize(("field", "value"), [("price", {"secure": "x"}), ("id", None), ("memory", "big")])
async def test_nonsense_in_the_catalogue_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    row = {"id": "NVIDIA L4", "secure": True, "price": {"secure": 0.5}, "dataCenters": [], field: value}
    world.proxy.trouble = Trouble(lambda m, p: "catalog" in p, body=msgspec.json.encode({"gpus": [row]}))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())
