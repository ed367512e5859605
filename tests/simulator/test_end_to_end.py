"""The whole path through a marketplace's own API: broker, lease engine, adapter, stand-in, real node, cell, bill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.api import OfferSearch
from jupyter_gpumarket.client import Client
from jupyter_gpumarket.config import Folders, write_private
from jupyter_gpumarket.models import ENDED_STATES, LeaseState, OfferQuery, RunStatus
from jupyter_gpumarket.money import usd
from tests.broker.lab import pool
from tests.broker.running import broker_of, until
from tests.broker.test_end_to_end import follow, output, run_cell, text_of, wish
from tests.simulator.process import Stand, simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
# Vast rounds each line to a tenth of a cent, and does not bill the GPU while the container loads.
LINE_NUSD = {"vast": usd("0.001")}
LINES = 2
UNBILLED_BOOT_S = {"vast": 4}
SETTINGS = {
    "vast": """
[marketplaces.vast]
url = "{url}"
disk_gb = 8
calls_per_s = 50
listing_lag_s = 0
charge_delay_s = 0
""",
}


@pytest.fixture(params=sorted(SETTINGS))
def through(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Folders, Stand]]:
    """Folders whose broker knows nothing but this one marketplace, which is a stand-in."""
    name = request.param
    with (
        pool(tmp_path, host_options=("--login", "root")) as (folders, facts),
        simulator(tmp_path, facts["url"], facts["user_token"], name) as stands,
    ):
        write_private(folders.settings_file, SETTINGS[name].format(url=stands[name].url).encode())
        (folders.configuration / "pool.key").unlink()
        write_private(folders.configuration / f"{name}.key", stands[name].key.encode())
        yield folders, stands[name]


def nothing_is_rented(stand: Stand) -> bool:
    return all(rental["phase"] == "ended" for rental in stand.rentals())


def billed(door: Client, lease_id: str) -> dict[str, Any]:
    """The comparison of both bills, once there is one."""
    line = until(
        "the bill is compared", lambda: [x for x in door.story(lease_id) if x.kind == "reconciled"], deadline_s=60
    )
    return dict(line[-1].body)


def test_a_cell_runs_through_the_marketplaces_own_api(through: tuple[Folders, Stand]) -> None:
    """Listed, rented, booted, linked, a cell run, released; both bills agree but for the marketplace's rounding."""
    folders, stand = through
    with broker_of(folders) as door:
        view = follow(door, wish(door), LeaseState.READY)
        run_cell(door, door.cluster(view.lease.lease_id), view, "print(6 * 7)", "run-1")
        run, messages = output(door.cluster(view.lease.lease_id), "run-1")
        follow(door, door.release(view.lease.lease_id), LeaseState.RELEASED, deadline_s=60)
        until("the stand-in has ended it", lambda: nothing_is_rented(stand))
        both = billed(door, view.lease.lease_id)

        assert view.lease.offer is not None
        name = view.lease.offer.marketplace
        boot_nusd = view.lease.price_nusd_hour * UNBILLED_BOOT_S[name] // 3600
        assert (run.status, text_of(messages)) == (RunStatus.OK, "42\n")
        assert both["theirs_nusd"] > 0
        assert abs(both["gap_nusd"]) <= LINE_NUSD[name] * LINES + boot_nusd, both
        assert len(stand.rentals()) == 1


FAULTS = ("lost_after_create", "bills_on", "wrong_gpu")


def test_every_fault_ends_with_nothing_rented(through: tuple[Folders, Stand]) -> None:
    """One after the other: whatever goes wrong on the way, in the end nothing is rented and the books are closed."""
    folders, stand = through
    with broker_of(folders) as door:
        for number, fault in enumerate(FAULTS):
            until("the machine is offered", lambda: door.offers(OfferSearch(refresh=True)).offers)
            stand.arm(fault, times=None if fault == "wrong_gpu" else 1)
            view = wish(door, f"request-{number}", max_s=120, query=OfferQuery())
            states = (LeaseState.READY, *ENDED_STATES)
            while view.lease.state not in states:
                view = door.lease(view.lease.lease_id, after_seq=view.seq, wait_s=2)
            if view.lease.state is LeaseState.READY:
                door.release(view.lease.lease_id)
            while view.lease.state not in ENDED_STATES:
                view = door.lease(view.lease.lease_id, after_seq=view.seq, wait_s=2)
            until(f"nothing is rented after {fault}", lambda: nothing_is_rented(stand))
            left = stand.control("GET", "faults")
            assert left == ({fault: None} if fault == "wrong_gpu" else {}), "the fault never happened"
            stand.arm(fault, times=0)
        assert door.leases() == []
        assert door.orphans() == []
