"""RunPod's own package for its REST API v2 takes our stand-in for RunPod, and sends what our adapter sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.runpod import RunpodStandIn
from jupyter_gpumarket.simulator.yard import Phase
from tests.marketplaces.test_runpod import adapter, is_create, is_release
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.differences import Difference, Recorder, differences, explained
from tests.simulator.npm import Node, Tools, packages
from tests.simulator.standing import KEY, Standing, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PROGRAM = "@runpod/mcp-server/dist/stdio.mjs"


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return packages(tmp_path_factory.mktemp("runpod"), "runpod")


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, RunpodStandIn, adapter, is_create, is_release) as up:
        yield up


def tools(client: Node, stand: Standing, key: str = KEY) -> Tools:
    return Tools(client.folder, PROGRAM, {"RUNPOD_API_KEY": key, "RUNPOD_API_BASE_URL": stand.server.url})


def wish(gpu: str, key: str) -> dict[str, Any]:
    """A pod as somebody would ask for it who wants SSH with a key of his own."""
    return {
        "name": "by-hand",
        "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
        "cloud": "SECURE",
        "gpu": {"id": gpu, "count": 1},
        "dataCenterIds": ["EU-SE-1"],
        "disk": 32,
        "ports": ["22/tcp"],
        "env": {"PUBLIC_KEY": key.strip()},
        "startSsh": True,
    }


async def test_a_rentals_whole_life_through_the_official_package(client: Node, stand: Standing) -> None:
    """Catalogue, create, show, list, delete and billing all succeed; our adapter means the same by what it sends.

    The docs' table lists exactly the fields in which both differ.
    """
    market, recorder = stand.market, Recorder(stand.server)
    found: set[Difference] = set()
    async with tools(client, stand) as runpod:
        listed = await runpod.call("list-gpu-types", include=["AVAILABILITY"], product=["POD"], count=1, cloud="SECURE")
        theirs = recorder.take()
        (offer,) = await market.offers(OfferQuery())
        ours = [call for call in recorder.take() if call.query.get("cloud") == "SECURE"]
        found |= differences("catalogue", ours, theirs, {})

        pod = await runpod.call("create-pod", body=wish(offer.gpu_raw, stand.world.ssh_public_key))
        renting = recorder.take()
        number = pod["id"]
        await stand.world.until(number, RentalStatus.RUNNING)
        recorder.take()
        shown = await runpod.call("get-pod", id=number)
        showing = recorder.take()
        pods = await runpod.call("list-pods")
        listing = recorder.take()
        bill = await runpod.call("list-pod-billing", lastN=720, bucketSize="hour", podId=number)
        billing = recorder.take()
        await runpod.call("delete-pod", id=number)
        ending = recorder.take()
        (held,) = stand.yard.rentals.values()
        assert held.phase is Phase.ENDED

    rental = await rent_by_adapter(stand)
    names = {number: "{id}", rental: "{id}"}
    found |= differences("create", [call for call in recorder.take() if call.method == "POST"], renting, names)
    await stand.world.until(rental, RentalStatus.RUNNING)
    found |= differences("show", recorder.take(), showing, names)
    await market.rentals()
    found |= differences("list", recorder.take(), listing, names)
    await market.charges(rental)
    found |= differences("bill", recorder.take(), billing, names)
    await market.release(rental)
    found |= differences("end", recorder.take(), ending, names)

    assert listed["gpus"][0]["id"] == offer.gpu_raw
    assert (shown["status"], shown["ssh"]["direct"]["username"]) == ("RUNNING", "root")
    assert [one["id"] for one in pods["pods"]] == [number]
    assert [record["podId"] for record in bill["records"]] == [number]
    assert found == explained("runpod.md")


async def rent_by_adapter(stand: Standing) -> str:
    """The same machine and name."""
    deadline = time.monotonic() + 30
    while not (offers := await stand.market.offers(OfferQuery())):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    rental = await stand.market.rent(
        await stand.market.quote(offers[0]),
        label="by-hand",
        ssh_public_key=stand.world.ssh_public_key,
        deadline_ms=int(time.time() * 1000) + 60_000,
    )
    return rental.rental_id


async def test_the_official_package_is_told_what_went_wrong(client: Node, stand: Standing) -> None:
    """A bad key, and no machine left: the package understands the stand-in's refusals."""
    async with tools(client, stand, key="not-the-key") as runpod:
        bad_key = await runpod.call("list-pods")
    (offer,) = await stand.market.offers(OfferQuery())
    stand.arm(Fault.SOLD_TWICE)
    async with tools(client, stand) as runpod:
        taken = await runpod.call("create-pod", body=wish(offer.gpu_raw, "ssh-ed25519 AAAA"))

    assert "401" in str(bad_key)
    assert "no longer any instances" in str(taken)
    assert stand.yard.rentals == {}
