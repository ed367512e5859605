"""Basilica's own Python package takes our stand-in for Basilica, and means the same by what it sends as our adapter."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import OfferQuery
from jupyter_gpumarket.simulator.basilica import BasilicaStandIn
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.yard import Phase, Yard
from tests.marketplaces.contract import new_public_key
from tests.marketplaces.test_basilica import adapter, is_create, is_release
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.differences import Difference, Recorder, differences, explained
from tests.simulator.driver import ClientError, Driver, driven
from tests.simulator.environments import environment
from tests.simulator.standing import KEY, Standing, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PACKAGE = "basilica-sdk==0.36.8"
PRELUDE = """
from basilica import BasilicaClient
basilica = BasilicaClient()
"""


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("basilica"), PACKAGE) / "python"


def with_figures(yard: Yard, faults: FaultBoard, key: Secret) -> BasilicaStandIn:
    return BasilicaStandIn(yard, faults, key, show_figures=True)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, with_figures, adapter, is_create, is_release) as up:
        yield up


def around(stand: Standing, home: Path, token: str = KEY) -> dict[str, str]:
    ours = {"HOME": str(home), "BASILICA_API_TOKEN": token, "BASILICA_API_URL": stand.server.url, "no_proxy": "*"}
    return ours | {"PATH": os.defpath}


@pytest.fixture
async def basilica(python: Path, stand: Standing, tmp_path: Path) -> AsyncIterator[Driver]:
    async with driven(python, PRELUDE, around(stand, tmp_path), tmp_path / "basilica.log") as driver:
        yield driver


async def until_running(basilica: Driver) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while not (row := (await basilica("basilica.list_cpu_rentals()"))["rentals"][0])["ssh_command"]:
            await asyncio.sleep(0.2)
    return dict(row)


async def test_a_rentals_whole_life_through_the_official_client(basilica: Driver, stand: Standing) -> None:
    """Health, list, key, start, show, stop, balance and usage all succeed.

    And for the same intents our adapter sends the same, but for what the docs' table says.
    """
    market, recorder = stand.market, Recorder(stand.server)
    found: set[Difference] = set()
    names: dict[str, str] = {}

    health = await basilica("basilica.health_check()")
    gpus = await basilica("basilica.list_secure_cloud_gpus()")
    recorder.take()
    gpus_by_query = await basilica("basilica.list_secure_cloud_gpus()")
    (machine,) = await basilica("basilica.list_cpu_offerings()")
    theirs = recorder.take()
    (offer,) = await market.offers(OfferQuery())
    found |= differences("list", recorder.take(), theirs, names)

    none = await basilica("basilica.get_ssh_key()")
    public_key = new_public_key().strip()
    key = await basilica(f"basilica.register_ssh_key('gpumarket-lease', public_key={public_key!r})")
    names[key["id"]] = "{key}"
    started = await basilica(f"basilica.start_cpu_rental({machine['id']!r}, name='by-hand')")
    renting = recorder.take()
    running = await until_running(basilica)
    recorder.take()
    await basilica("basilica.list_secure_cloud_rentals()")
    await basilica("basilica.list_cpu_rentals()")
    listing = recorder.take()
    stopped = await basilica(f"basilica.stop_cpu_rental({started['rental_id']!r})")
    stopping = recorder.take()
    usage = await basilica("basilica.list_usage_history()")
    billing = recorder.take()
    balance = await basilica("basilica.get_balance()")
    asking = recorder.take()
    await basilica("basilica.delete_ssh_key()")
    (held,) = stand.yard.rentals.values()
    names[held.rental_id] = "{id}"

    async with asyncio.timeout(30):
        while not await market.offers(OfferQuery()):
            await asyncio.sleep(0.1)
    quote = await market.quote(offer)
    recorder.take()
    ours = await market.rent(quote, label="by-hand", ssh_public_key=public_key, deadline_ms=0)
    names[ours.rental_id.partition(".")[2]] = "{id}"
    names[vars(stand.server.stand_in)["_ssh_key"]["id"]] = "{key}"
    found |= differences("rent", recorder.take(), renting, names)
    await market.rentals()
    found |= differences("list rentals", recorder.take(), listing, names)
    await market.release(ours.rental_id)
    found |= differences("stop", recorder.take(), stopping, names)
    await market.charges(ours.rental_id)
    found |= differences("bill", recorder.take(), billing, names)
    await market.balance()
    found |= differences("balance", recorder.take(), asking, names)

    assert health["status"] == "healthy"
    assert gpus == gpus_by_query == []
    assert none is None
    assert machine["hourly_rate"] == "0.35"
    assert running["ssh_command"].endswith(f"{held.login}@127.0.0.1")
    assert running["name"] == started["name"] == "by-hand"
    assert (stopped["status"], held.phase) == ("stopped", Phase.ENDED)
    assert usage["rentals"][0]["rental_id"] == started["rental_id"]
    assert float(usage["rentals"][0]["current_cost"]) == pytest.approx(stopped["total_cost"])
    assert float(balance["balance"]) == pytest.approx(100 - stopped["total_cost"])
    assert found == explained("basilica.md")


async def test_the_official_client_is_told_what_went_wrong(
    basilica: Driver, python: Path, stand: Standing, tmp_path: Path
) -> None:
    """A bad token, an offering that is gone, a second key, a rental that is not there: it understands each."""
    (machine,) = await basilica("basilica.list_cpu_offerings()")
    await basilica(f"basilica.register_ssh_key('mine', public_key={new_public_key().strip()!r})")
    with pytest.raises(ClientError, match=r"Conflict.*already has an SSH key"):
        await basilica(f"basilica.register_ssh_key('mine', public_key={new_public_key().strip()!r})")
    stand.arm(Fault.SOLD_TWICE)
    with pytest.raises(ClientError, match=r"Not found"):
        await basilica(f"basilica.start_cpu_rental({machine['id']!r}, name='by-hand')")
    with pytest.raises(ClientError, match=r"Not found"):
        await basilica("basilica.stop_cpu_rental('nobody')")
    async with driven(python, PRELUDE, around(stand, tmp_path, "not-the-token"), tmp_path / "other.log") as stranger:
        with pytest.raises(ClientError, match=r"PermissionError.*Authentication"):
            await stranger("basilica.list_cpu_offerings()")

    assert stand.yard.rentals == {}
