"""Lium's own Python package takes our stand-in for Lium, and means the same by what it sends as our adapter."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.lium import LiumStandIn
from jupyter_gpumarket.simulator.web import Call
from jupyter_gpumarket.simulator.yard import Phase
from tests.marketplaces.contract import new_public_key
from tests.marketplaces.test_lium import adapter, is_create, is_release
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.differences import Difference, Recorder, differences, explained
from tests.simulator.driver import ClientError, Driver, driven
from tests.simulator.environments import environment
from tests.simulator.standing import KEY, Standing, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PACKAGE = "lium.io==0.32.0"
PRELUDE = """
from lium import Lium
lium = Lium()
"""
END_MS = 1_798_761_600_000
# What every HTTP client sends in words of its own.
TRANSPORT = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("lium"), PACKAGE) / "python"


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, LiumStandIn, adapter, is_create, is_release) as up:
        yield up


def around(stand: Standing, home: Path, key: str = KEY) -> dict[str, str]:
    """All that the package is told: no file of this user's is read."""
    ours = {"HOME": str(home), "LIUM_API_KEY": key, "LIUM_BASE_URL": f"{stand.server.url}/api", "no_proxy": "*"}
    return ours | {"PATH": os.defpath, "LIUM_SSH_KEY_PATH": str(home / "id")}


@pytest.fixture
async def lium(python: Path, stand: Standing, tmp_path: Path) -> AsyncIterator[Driver]:
    (tmp_path / "id.pub").write_text(new_public_key() + "\n", "utf-8")
    async with driven(python, PRELUDE, around(stand, tmp_path), tmp_path / "lium.log") as driver:
        yield driver


def headers(calls: Iterable[Call]) -> set[str]:
    return {name for call in calls for name in call.headers} - TRANSPORT


async def test_a_rentals_whole_life_through_the_official_client(lium: Driver, stand: Standing) -> None:
    """List, quote, rent, wait, schedule the end, remove, record, statement and balance all succeed.

    And for the same intents our adapter sends the same, but for what the docs' table says.
    """
    market, recorder = stand.market, Recorder(stand.server)
    found: set[Difference] = set()
    names: dict[str, str] = {}

    (node,) = await lium("lium.ls()")
    theirs = recorder.take()
    (offer,) = await market.offers(OfferQuery())
    found |= differences("list", recorder.take(), theirs, names)
    names[node["id"]] = "{node}"

    quoted = await lium(f"lium.quote('{node['id']}', hours=1)")
    theirs = recorder.take()
    quote = await market.quote(offer)
    found |= differences("quote", recorder.take(), theirs, names)

    rented = await lium(
        f"lium.up(executor_id='{node['id']}', name='by-hand', termination_hours=1, wait=True, timeout=60)"
    )
    renting = recorder.take()
    pod, names[rented["id"]] = rented["id"], "{pod}"
    found_pod = await lium(f"lium.pod('{pod}')")
    showing = recorder.take()
    listed = await lium("lium.ps()")
    listing = recorder.take()
    await lium(f"lium.schedule_termination('{pod}', termination_time='{iso_utc(END_MS)}')")
    scheduling = recorder.take()
    (held,) = stand.yard.rentals.values()
    scheduled = held.extra["removal_ms"]
    await lium("lium.down(lium.ps()[0])")
    removing = [call for call in recorder.take() if call.method != "GET"]
    record = await lium(f"lium.pod_record('{pod}')")
    recording = recorder.take()
    statement = await lium("lium.billing_statement()")
    balance = await lium("lium.balance()")
    asking = [call for call in recorder.take() if "users" in call.path]

    async with asyncio.timeout(30):
        while not await market.offers(OfferQuery()):
            await asyncio.sleep(0.1)
    recorder.take()
    ours = await market.rent(
        quote, label="by-hand", ssh_public_key=held.ssh_keys[0], deadline_ms=int(time.time() * 1000) + 3_600_000
    )
    rent_calls = recorder.take()
    names[ours.rental_id] = "{pod}"
    found |= differences("rent", rent_calls, renting, names)
    told, telling = headers(rent_calls), headers(call for call in renting if call.path.endswith("/rent"))
    await stand.world.until(ours.rental_id, RentalStatus.RUNNING)
    found |= differences("show", recorder.take(), showing, names)
    await market.rentals()
    found |= differences("list pods", recorder.take(), listing, names)
    await market.set_deadline(ours.rental_id, END_MS)
    found |= differences("schedule the end", recorder.take(), scheduling, names)
    await market.release(ours.rental_id)
    found |= differences("remove", recorder.take(), removing, names)
    await market.charges(ours.rental_id)
    found |= differences("bill", recorder.take(), recording, names)
    await market.balance()
    found |= differences("balance", recorder.take(), asking, names)

    assert node["machine_name"] == ""
    assert quoted["price_per_hour"] == 0.35
    assert (rented["name"], rented["status"]) == ("by-hand", "RUNNING")
    assert found_pod["ssh_connect_cmd"] == rented["ssh_cmd"]
    assert [row["id"] for row in listed] == [pod]
    assert scheduled == END_MS
    assert held.phase is Phase.ENDED
    assert record["total"] == statement["total"] == pytest.approx(100 - balance)
    assert record["billed_seconds"] >= 1
    assert telling - told == {"x-source", "x-lium-client-version"}
    assert told - telling == set()
    assert found == explained("lium.md")


async def test_the_official_client_is_told_what_went_wrong(
    lium: Driver, python: Path, stand: Standing, tmp_path: Path
) -> None:
    """A bad key, a node that somebody else took, a machine that never comes up, a lost reply: it understands each."""
    (node,) = await lium("lium.ls()")
    up = f"lium.up(executor_id='{node['id']}', name='by-hand', wait=True, timeout=30)"
    stand.arm(Fault.SOLD_TWICE)
    with pytest.raises(ClientError, match="already rented"):
        await lium(up)
    stand.arm(Fault.DIES_BOOTING)
    with pytest.raises(ClientError, match=r"PodStartError.*CREATION_FAILED.*no such device"):
        await lium(up)
    await lium("lium.down(lium.ps()[0])")
    stand.arm(Fault.LOST_AFTER_CREATE)
    again = await lium(up.replace("wait=True, timeout=30", "wait=False"))
    await lium("lium.down(lium.ps()[0])")
    async with driven(python, PRELUDE, around(stand, tmp_path, "not-the-key"), tmp_path / "other.log") as stranger:
        with pytest.raises(ClientError, match=r"LiumAuthError.*Invalid API key"):
            await stranger("lium.ls()")

    assert again["name"] == "by-hand"
    assert len(stand.yard.rentals) == 2
    assert all(rental.phase is Phase.ENDED for rental in stand.yard.rentals.values())
