"""Nosana's own npm package takes our stand-in for Nosana, holds our job definition valid, and sends what we send."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from jupyter_gpumarket.marketplaces.nosana_job import job_definition
from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.nosana import NosanaStandIn
from jupyter_gpumarket.simulator.yard import Phase
from tests.marketplaces.test_nosana import adapter, is_create, is_release
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.differences import Difference, Recorder, differences, explained
from tests.simulator.npm import Node, packages
from tests.simulator.standing import KEY, Standing, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SCRIPT = """
import { createNosanaClient, validateJobDefinition } from '@nosana/kit';
import { getJobExposedServices } from '@nosana/endpoints';

const wish = JSON.parse(process.env.WISH);
const config = { api: { apiKey: process.env.KEY, backend_url: process.env.URL } };
const { api } = createNosanaClient('mainnet', config);
const it = () => api.deployments.get(wish.id);
const steps = {
  markets: () => api.markets.list(),
  market: () => api.markets.get(wish.market),
  create: async () => ({ id: (await api.deployments.create(wish.body)).id }),
  start: async () => { const d = await it(); await d.start(); return { status: d.status }; },
  show: async () => { const d = await it(); const { jobs } = await d.getJobs(); return { status: d.status, jobs }; },
  job: () => api.jobs.get(wish.job),
  list: async () => (await api.deployments.list({ limit: 100 })).deployments.map((d) => d.id),
  stop: async () => { const d = await it(); await d.stop(); return { status: d.status }; },
  archive: async () => { const d = await it(); await d.archive(); return { status: d.status }; },
  balance: () => api.credits.balance(),
  validate: () => validateJobDefinition(wish.definition),
  exposed: () => getJobExposedServices(wish.definition, wish.id),
};
let told;
try { told = await steps[wish.step](); } catch (error) { told = { error: error.message }; }
process.stdout.write(JSON.stringify(told ?? null), () => process.exit(0));
"""
Nosana = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return packages(tmp_path_factory.mktemp("nosana"), "nosana")


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, NosanaStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
def nosana(client: Node, stand: Standing) -> Nosana:
    """One step by the package."""

    async def call(step: str, key: str = KEY, **wish: Any) -> Any:
        around = {"KEY": key, "URL": stand.server.url, "WISH": json.dumps({"step": step, **wish})}
        return await client.run(SCRIPT, around)

    return call


async def test_a_rentals_whole_life_through_the_official_package(nosana: Nosana, stand: Standing) -> None:
    """List, create, start, show, stop, archive and balance all succeed; our adapter means the same by what it sends.

    The docs' table lists exactly the fields in which both differ.
    """
    market, recorder = stand.market, Recorder(stand.server)
    found: set[Difference] = set()
    (queue,) = await nosana("markets")
    theirs = recorder.take()
    (offer,) = await market.offers(OfferQuery())
    found |= differences("list", recorder.take(), theirs, {})
    assert (await nosana("market", market=queue["address"]))["slug"] == queue["slug"]
    theirs = recorder.take()
    quote = await market.quote(offer)
    found |= differences("quote", recorder.take(), theirs, {})

    definition = job_definition(market._options.image, stand.world.ssh_public_key, 0.0)  # type: ignore[attr-defined]
    asked = {"name": "by-hand", "market": queue["address"], "replicas": 1, "timeout": 60, "strategy": "SIMPLE"}
    number = (await nosana("create", body=asked | {"job_definition": definition}))["id"]
    started = await nosana("start", id=number)
    renting = recorder.take()
    (held,) = stand.yard.rentals.values()
    await stand.world.until(number, RentalStatus.RUNNING)
    recorder.take()
    shown = await nosana("show", id=number)
    job = await nosana("job", job=shown["jobs"][0]["job"])
    showing = recorder.take()
    listed = await nosana("list")
    listing = recorder.take()
    reserved = await nosana("balance")
    asking = recorder.take()
    stopped = await nosana("stop", id=number)
    ending = recorder.take()
    archived = await nosana("archive", id=number)
    assert held.phase is Phase.ENDED

    names = {number: "{id}", shown["jobs"][0]["job"]: "{job}"}
    recorder.take()
    rental = await rent_by_adapter(stand, quote)
    names |= {rental: "{id}"}
    found |= differences("create", [call for call in recorder.take() if call.method == "POST"], renting, names)
    await stand.world.until(rental, RentalStatus.RUNNING)
    names |= {one.job: "{job}" for one in stand.server.stand_in._deployments.values()}  # type: ignore[attr-defined]
    found |= differences("show", recorder.take(), showing, names)
    await market.rentals()
    found |= differences("list deployments", recorder.take(), listing, names)
    await market.balance()
    found |= differences("balance", recorder.take(), asking, names)
    await market.release(rental)
    found |= differences("stop", recorder.take(), ending, names)

    assert (started["status"], shown["status"], stopped["status"]) == ("STARTING", "RUNNING", "STOPPING")
    assert archived["status"] == "ARCHIVED"
    assert job["usdRewardPerHour"] == queue["usd_reward_per_hour"]
    assert listed == [number]
    assert reserved["reservedCredits"] > 0
    assert found == explained("nosana.md")


async def rent_by_adapter(stand: Standing, quote: Any) -> str:
    """The same market and name, for as long."""
    running = stand.yard
    deadline = time.monotonic() + 30
    while not await running.free():
        assert time.monotonic() < deadline
    return (
        await stand.market.rent(
            quote,
            label="by-hand",
            ssh_public_key=stand.world.ssh_public_key,
            deadline_ms=int(time.time() * 1000) + 60_000,
        )
    ).rental_id


async def test_the_official_package_holds_our_job_valid(nosana: Nosana) -> None:
    """Its own validator finds nothing wrong with our job definition, and one exposed service in it."""
    definition = job_definition("any/image", "ssh-ed25519 AAAA", 24.0)
    verdict = await nosana("validate", definition=definition)
    services = await nosana("exposed", definition=definition, id="So11111111111111111111111111111111111111112")
    broken = await nosana("validate", definition=definition | {"ops": [{"type": "container/run", "id": 7}]})

    assert verdict["success"], verdict
    assert [(service["opId"], service["port"]) for service in services] == [("node", 8022)]
    assert not broken["success"]


async def test_the_official_package_is_told_what_went_wrong(nosana: Nosana, stand: Standing) -> None:
    """A bad key, a deployment that is not there, and one in another state: it understands the stand-in's refusals."""
    bad_key = await nosana("balance", key="not-the-key")
    nowhere = await nosana("show", id="So11111111111111111111111111111111111111112")
    stand.arm(Fault.TOO_MANY_CALLS)
    often = await nosana("balance")

    assert "Unauthorized" in bad_key["error"]
    assert "not found" in nowhere["error"]
    assert "Too many requests" in often["error"]
