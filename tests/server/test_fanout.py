"""Clusters and maps through the server's routes, on a real broker that has nothing to rent."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from jupyter_gpumarket.api import MAP_SESSION, Aim, ClusterWish, MapState, MapView, RunCost, map_run_id
from jupyter_gpumarket.client import connect
from jupyter_gpumarket.models import CellRun, OfferQuery, RunStatus
from jupyter_gpumarket.server.fanout import RECENT_MS, is_shown, spent_by_map
from tests.broker.running import until
from tests.server.running import Server, folders_of

WISH = ClusterWish(aim=Aim(minimum=1, maximum=1), query=OfferQuery(gpu="H100"), budget_nusd=10**9, max_s=3600)
AIM = {"minimum": 1, "maximum": 3, "max_nusd_hour": 2 * 10**9}


def test_a_cluster_is_told_sized_and_ended_but_never_another_of_its_name(server: Server) -> None:
    """A cluster that has no node is in the answer, with why; a page that means a former one changes nothing, and an
    ended one is not revived.
    """
    with connect(folders_of(server), timeout_s=60) as broker, server.door() as door:
        first = broker.keep_cluster("crew", WISH)
        told = until("it is decided", lambda: [one for one in _clusters(door) if one["decisions"]])[0]
        assert (told["name"], told["nodes"], told["budget_nusd"]) == ("crew", 0, 10**9)
        assert "0 of 1 nodes are there" in told["decisions"][-1]["reasons"]

        changed = door.post("/gpumarket/clusters/crew/aim", json={"cluster_id": first.cluster_id, "aim": AIM})
        assert changed.status_code == 200
        assert changed.json()["aim"]["maximum"] == 3
        assert changed.json()["budget_nusd"] == 10**9

        foreign = {"cluster_id": "crew-0000"}
        assert door.post("/gpumarket/clusters/crew/aim", json={**foreign, "aim": AIM}).status_code == 409
        assert door.post("/gpumarket/clusters/crew/release", json=foreign).status_code == 409
        assert not broker.cluster_view("crew").is_ended

        own = {"cluster_id": first.cluster_id}
        assert door.post("/gpumarket/clusters/crew/release", json=own).json()["is_ended"]
        again = door.post("/gpumarket/clusters/crew/aim", json={**own, "aim": AIM})
        assert again.status_code == 409
        assert "given back" in again.json()["message"]
        assert broker.cluster_view("crew").is_ended
        until("nothing is left of it", lambda: _clusters(door) == [])


def test_what_cannot_be_is_refused_by_its_name(server: Server) -> None:
    """No such cluster, no such lease, an aim upside down: a status and words, and nothing is kept."""
    with server.door() as door:
        body = {"cluster_id": "x", "aim": AIM}
        assert door.post("/gpumarket/clusters/none/aim", json=body).status_code == 404
        assert door.post("/gpumarket/clusters/none/release", json={"cluster_id": "x"}).status_code == 404
        assert door.post("/gpumarket/maps/m/stop", json={"lease": "none"}).status_code == 404
        assert door.post("/gpumarket/maps/m/stop", json={}).status_code == 400


def test_a_map_is_shown_while_it_runs_and_a_while_after() -> None:
    """Who looked away for some minutes still sees how it ended; old ones do not pile up."""
    runs = MapView(
        map_id="m", state=MapState.RUNNING, count=1, n=0, ok=0, failed=0, poisoned=0, running=1, waiting=0, retried=0,
        checks=0, checked=0, created_ms=0, began_ms=0,
    )  # fmt: skip
    done = msgspec.structs.replace(runs, state=MapState.DONE, ended_ms=1000)

    assert is_shown(runs, now_ms=10 * RECENT_MS)
    assert is_shown(done, now_ms=RECENT_MS)
    assert not is_shown(done, now_ms=RECENT_MS + 1000)


def test_a_map_costs_what_all_its_parts_have_cost() -> None:
    """Also those of rounds before it was resumed and of nodes that are gone; no cell's, whatever its id begins with."""

    def cost(run_id: str, amount_nusd: int, session: str = MAP_SESSION) -> RunCost:
        run = CellRun(run_id=run_id, lease_id="a", session=session, status=RunStatus.OK)
        return RunCost(
            run=run, node="n", duration_ms=1, amount_nusd=amount_nusd, rate_nusd_hour=1, final=True,
            lease_total_nusd=9, lease_boot_nusd=0, lease_idle_nusd=0,
        )  # fmt: skip

    costs = [cost(map_run_id("m1", round_, lease), 5) for round_ in (1, 2) for lease in ("lease-1", "lease-2")]
    others = [cost("m1-2-lease-1", 100, "main"), cost(map_run_id("m10", 1, "lease-1"), 7)]
    spent = spent_by_map([*costs, *others])

    assert (spent["m1"], spent["m10"], spent["m2"]) == (20, 7, 0)


def _clusters(door: httpx.Client) -> list[dict[str, Any]]:
    reply = door.get("/gpumarket/fanout")
    assert reply.status_code == 200, reply.text
    return list(reply.json()["clusters"])
