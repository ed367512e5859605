"""Prime Intellect's own command line client takes our stand-in for Prime, and sends what our adapter sends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.models import Offer, OfferQuery, RentalStatus
from jupyter_gpumarket.simulator.faults import Fault
from jupyter_gpumarket.simulator.primeintellect import PrimeStandIn
from jupyter_gpumarket.simulator.yard import Phase
from tests.marketplaces.test_primeintellect import adapter, is_create, is_release
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.differences import Recorder, differences, explained
from tests.simulator.environments import environment
from tests.simulator.standing import KEY, Standing, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PACKAGE = "prime==0.18.0"
Prime = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("prime"), PACKAGE) / "prime"


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, PrimeStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
def prime(client: Path, stand: Standing, tmp_path: Path) -> Prime:
    """Call the client; what it printed, as JSON where it was asked for that."""
    around = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PRIME_API_KEY": KEY,
        "PRIME_BASE_URL": stand.server.url,
        "PRIME_DISABLE_VERSION_CHECK": "1",
        "COLUMNS": "200",
        "no_proxy": "*",
    }

    async def call(*words: str, key: str = KEY) -> Any:
        process = await asyncio.create_subprocess_exec(
            str(client),
            *words,
            env=around | {"PRIME_API_KEY": key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
        return json.loads(out) if "json" in words else (process.returncode, (out + err).decode())

    return call


def create_words(cloud_id: str, offer: Offer) -> tuple[str, ...]:
    """So that it asks nothing."""
    cores, memory = str(offer.cpu_cores), str(int(offer.memory_gib))
    chosen = ("--disk-size", "40", "--vcpus", cores, "--memory", memory, "--image", "ubuntu_22_cuda_12")
    return ("pods", "create", "--cloud-id", cloud_id, "--name", "by-hand", *chosen, "--yes")


async def until_running(prime: Prime, pod: str) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while (shown := await prime("pods", "status", pod, "--output", "json"))["status"] != "ACTIVE":
            await asyncio.sleep(0.2)
    return dict(shown)


async def test_a_rentals_whole_life_through_the_official_client(prime: Prime, stand: Standing) -> None:
    """List, create, show, terminate, history and wallet all succeed; our adapter means the same by what it sends.

    The docs' table lists exactly the fields in which both differ.
    """
    market, recorder = stand.market, Recorder(stand.server)
    found: set[tuple[str, str, str]] = set()

    listed = await prime("availability", "list", "--output", "json")
    theirs = recorder.take()
    (machine,) = listed["gpu_resources"]
    (offer,) = await market.offers(OfferQuery())
    found |= differences("list", recorder.take(), theirs, {})

    code, said = await prime(*create_words(machine["cloud_id"], offer))
    assert code == 0, said
    assert "Successfully created" in said
    theirs = [call for call in recorder.take() if call.method == "POST"]
    (held,) = stand.yard.rentals.values()
    names = {held.rental_id: "{id}"}
    shown = await until_running(prime, held.rental_id)
    showing = recorder.take()
    pods = await prime("pods", "list", "--output", "json")
    listing = recorder.take()
    code, said = await prime("pods", "terminate", held.rental_id, "--yes")
    ending = recorder.take()
    assert (code, held.phase) == (0, Phase.ENDED), said
    history = await prime("pods", "history", "--output", "json")
    wallet = await prime("wallet", "--output", "json")
    billing = recorder.take()

    rental = await rent_by_adapter(stand, offer.offer_id)
    renting = recorder.take()
    names |= {rental: "{id}"}
    found |= differences("create", [call for call in renting if call.method == "POST"], theirs, names)
    await stand.world.until(rental, RentalStatus.RUNNING)
    found |= differences("show", recorder.take(), showing, names)
    await market.rentals()
    found |= differences("list pods", recorder.take(), listing, names)
    await market.release(rental)
    released = [call for call in recorder.take() if "/ssh_keys/" not in call.path]
    found |= differences("terminate", released, ending, names)
    await market.charges("r0")
    found |= differences("bill", recorder.take(), billing, names)

    assert shown["ssh"].endswith(f"@127.0.0.1 -p {shown['ssh'].rpartition(' ')[2]}")
    assert [pod["id"] for pod in pods["pods"]] == [held.rental_id]
    assert held.rental_id in json.dumps(history)
    assert held.rental_id in json.dumps(wallet)
    assert found == explained("primeintellect.md")


async def rent_by_adapter(stand: Standing, offer_id: str) -> str:
    """The same machine, name and disk."""
    async with asyncio.timeout(30):
        while not (offers := await stand.market.offers(OfferQuery())):
            await asyncio.sleep(0.1)
    assert offers[0].offer_id == offer_id
    quote = await stand.market.quote(offers[0])
    rental = await stand.market.rent(
        quote,
        label="by-hand",
        ssh_public_key=stand.world.ssh_public_key,
        deadline_ms=int(time.time() * 1000) + 60_000,
    )
    return rental.rental_id


async def test_the_official_client_is_told_what_went_wrong(prime: Prime, stand: Standing) -> None:
    """A bad key, and a configuration that is gone: the client understands the stand-in's refusals."""
    code, said = await prime("pods", "list", key="not-the-key")
    assert code != 0
    assert "unauthorized" in said.lower()
    (machine,) = (await prime("availability", "list", "--output", "json"))["gpu_resources"]
    (offer,) = await stand.market.offers(OfferQuery())
    stand.arm(Fault.SOLD_TWICE)
    code, said = await prime(*create_words(machine["cloud_id"], offer))

    assert code != 0
    assert "not available" in said
    assert stand.yard.rentals == {}
