"""What is told before and during a fan-out: pure, from what is known at that moment."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.agent.graphs import sizes
from jupyter_gpumarket.api import DaskGraph, DaskTasks, DaskView, DaskWorkerView, ItemState, ItemView, MapRequest
from jupyter_gpumarket.mapfiles import OutcomeLog
from jupyter_gpumarket.mapfiles.outcomes import Line as OutcomeLine
from jupyter_gpumarket.models import Lease, LeaseRequest, LeaseState, OfferQuery
from jupyter_gpumarket.notebook import map_results
from jupyter_gpumarket.notebook.fit import Line, Work, estimate, home_of, lines_of, path_of, shortage
from jupyter_gpumarket.notebook.forecast import (
    GraphForecast,
    MapFacts,
    MapForecast,
    Sizes,
    collection_words,
    seen_in,
    sizes_from,
)
from jupyter_gpumarket.notebook.map_results import all_maps, mean_seconds
from tests.notebook.fakes import T0, offer

USD = 10**9


def lease(name: str = "calm-otter", *, down: float | None = None, up: float | None = None, **fields: object) -> Lease:
    """A node whose way was measured where figures are given: `down` to this side, `up` from it."""
    probe = {"network": {"round_trip_ms": 20.0, "down_mbps": down, "up_mbps": up}} if down or up else {}
    return Lease(
        lease_id=f"lease-{name}",
        name=name,
        state=LeaseState.READY,
        request=LeaseRequest(request_id=name, query=OfferQuery(), budget_nusd=USD, max_s=3600),
        created_ms=T0,
        changed_ms=T0,
        price_nusd_hour=USD,
        offer=offer(up_mbps=900.0, down_mbps=800.0),
        probe=probe,
        **fields,
    )


def item(n: int, took_ms: int, size: int = 100) -> ItemView:
    return ItemView(
        n=n, index=n, state=ItemState.OK, lease_id="l", run_id="r", tries=1, took_ms=took_ms, ended_ms=T0, size=size
    )


def facts(**fields: object) -> MapFacts:
    known = {"count": 1000, "bytes_in": 10**6, "slots": 2, "left_nusd": 10 * USD, "left_s": 7200.0}
    leases = (lease("a", down=400, up=40), lease("b", down=300, up=50))
    return MapFacts(**{**known, "leases": leases, **fields})


def test_a_measured_way_counts_before_what_a_marketplace_tells() -> None:
    """The probe's figures, with directions as the node sees them; else the offer's; home is as good as its best way."""
    measured, told = path_of(lease(down=400, up=40)), path_of(lease())

    assert (measured.up_mbps, measured.down_mbps, measured.is_measured) == (400, 40, True)
    assert (told.up_mbps, told.down_mbps, told.is_measured) == (900, 800, False)
    home = home_of([measured, path_of(lease(down=300, up=50)), told])
    assert (home.up_mbps, home.down_mbps, home.is_measured) == (50, 400, True)
    assert not home_of([told]).is_measured


@pytest.mark.parametrize("network", [None, "fast", {"down_mbps": "x", "up_mbps": -1}, {"down_mbps": float("nan")}])
def test_a_strange_report_is_no_measurement(network: object) -> None:
    """The probe's report is partly a node's word: what is no sensible figure is not used."""
    assert not path_of(msgspec.structs.replace(lease(), probe={"network": network})).is_measured


def test_nodes_that_reach_each_other_go_by_their_own_lines() -> None:
    """What was measured is the way to this side, which such traffic does not take."""
    nodes = [lease("a", down=4, up=4), lease("b", down=4, up=4)]

    assert [line.up_mbps for line in lines_of(nodes, is_relayed=False)] == [900, 900]
    assert [line.up_mbps for line in lines_of(nodes, is_relayed=True)] == [4, 4, 4]


def test_bytes_from_here_and_back_count_in_their_direction() -> None:
    """1 GB to the nodes goes through the upstream, 1 GB back through the downstream."""
    home, fast = Line(name="home", up_mbps=10, down_mbps=100), Line(name="x", up_mbps=1e4, down_mbps=1e4)
    there = estimate(
        Work(tasks=1, seconds_each=1, user_bytes=10**9), [home, fast], workers=1, rate_nusd_hour=0, is_relayed=True
    )
    back = estimate(
        Work(tasks=1, seconds_each=1, back_bytes=10**9), [home, fast], workers=1, rate_nusd_hour=0, is_relayed=True
    )

    assert (there.network_s.likely, back.network_s.likely) == (800, 80)
    assert "1 GB to the nodes and 0 GB back" in there.warnings[0]


def test_before_a_map_its_size_and_the_line_are_told_and_its_time_only_from_experience() -> None:
    """Nothing is guessed: without an earlier map of the same cell, time and cost wait for the first results."""
    (first,) = MapForecast(facts()).before()
    (again,) = MapForecast(facts(seconds_each=3.0)).before()

    assert first == (
        "1000 items on 2 nodes, 2 at once; 1 MB to send at 50 Mbit/s (measured); "
        "time and cost are told after the first results"
    )
    assert "by an earlier map of this cell: about 25 min" in again


def test_a_map_that_is_bound_by_the_network_is_warned_of_before_it_begins() -> None:
    """100 GB for two hours of computing through 50 Mbit/s."""
    told = MapForecast(facts(bytes_in=10**11, seconds_each=7.0)).before()

    assert any(text.startswith("this is bound by the network: 100 GB to the nodes") for text in told)


def test_the_first_results_tell_of_the_rest_once() -> None:
    """After four results an estimate with its limits; then no more; nothing for a map that is nearly over."""
    forecast = MapForecast(facts())
    assert forecast.take([item(1, 2000), item(2, 2200)], 2) == []
    (told,) = forecast.take([item(3, 1800), item(4, 2000)], 4)
    assert told.startswith("after 4 results: about 16 min")
    assert forecast.take([item(5, 2000)], 5) == []
    assert MapForecast(facts(count=10)).take([item(n, 100) for n in range(1, 6)], 5) == []


def test_money_or_time_that_will_not_do_is_told_plainly() -> None:
    """By the first results: what is needed, what is left, and what to do."""
    items = [item(n, 60_000) for n in range(1, 5)]
    poor = MapForecast(facts(left_nusd=USD)).take(items, 4)
    late = MapForecast(facts(left_nusd=1000 * USD, left_s=600.0)).take(items, 4)

    assert any("the budget will not do: this needs about $16.6" in text for text in poor)
    assert any("the agreed time will not do" in text and "10 min 00 s are left" in text for text in late)


def test_more_than_enough_is_no_word_worth() -> None:
    """No warning where even the worst case is covered."""
    found = estimate(Work(tasks=10, seconds_each=1), [Line(name="x")], workers=1, rate_nusd_hour=USD, is_relayed=False)

    assert shortage(found, left_nusd=USD, left_s=3600) == ""
    assert "may not do" in shortage(found, left_nusd=found.cost_likely_nusd, left_s=3600)


def test_the_more_results_the_narrower_the_estimate() -> None:
    """The spread shrinks with their number and grows with their differences."""
    few, many = seen_in([item(n, 1000) for n in range(4)]), seen_in([item(n, 1000) for n in range(100)])
    uneven = seen_in([item(n, 100 if n % 2 else 1900) for n in range(4)])

    assert many.spread < few.spread < uneven.spread


WORKERS = tuple(DaskWorkerView(name=f"w{i}", lease_id=f"l{i}", state="running", nthreads=1) for i in range(2))


def view(graph: DaskGraph | None) -> DaskView:
    return DaskView(state="running", workers=WORKERS, relayed=2, tasks=DaskTasks(graph=graph))


LARGE = DaskGraph(number=2, at_ms=T0, tasks=1000, known_tasks=1000, known_s=1000.0)
LEASES = [lease("a", down=400, up=40), lease("b", down=300, up=50)]


def test_a_large_graph_is_told_of_once_when_something_is_known_of_it() -> None:
    """Not at submission, when nothing is known; then once; not again; not one of before the cell."""
    forecast = GraphForecast(msgspec.structs.replace(LARGE, number=1), LEASES)
    assert forecast.take(view(msgspec.structs.replace(LARGE, number=1)), 0.0) == []
    assert forecast.take(view(msgspec.structs.replace(LARGE, known_tasks=0, known_s=0.0)), 1.0) == []
    (told,) = forecast.take(view(LARGE), 2.0)
    assert told.startswith("Dask has 1000 tasks: about 8 min")
    assert forecast.take(view(LARGE), 3.0) == []


def test_a_graph_of_which_little_is_known_is_told_of_after_a_while_and_with_wide_limits() -> None:
    """A tenth is known: ten seconds later that is told with how much is not known."""
    little = msgspec.structs.replace(LARGE, known_tasks=100, known_s=100.0)
    forecast = GraphForecast(None, LEASES)
    assert forecast.take(view(little), 0.0) == []
    (told,) = forecast.take(view(little), 11.0)

    assert "(900 of them not known yet)" in told


def test_a_graph_that_shuffles_through_this_side_is_warned_of() -> None:
    """20 GB between nodes through a 50 Mbit/s line."""
    graph = msgspec.structs.replace(LARGE, moves=1000, known_moves=1000, moved_bytes=20 * 10**9)
    told = GraphForecast(None, LEASES).take(view(graph), 0.0)

    assert "20 GB between nodes" in told[0]
    assert told[1].startswith("this is bound by the network")


def test_a_small_graph_is_not_spoken_of() -> None:
    """What is over in seconds needs no line."""
    small = msgspec.structs.replace(LARGE, tasks=60, known_tasks=60, known_s=6.0)

    assert GraphForecast(None, LEASES).take(view(small), 0.0) == []


@pytest.mark.parametrize(
    "value",
    [None, "x", [], {"tasks": 1}, {**sizes(3), "tasks": -1}, {**sizes(3), "known_s": float("nan")}, {"tasks": 2**70}],
)
def test_what_a_node_sends_instead_of_sizes_is_no_estimate(value: object) -> None:
    """Only the agreed numbers, and only sensible ones."""
    assert sizes_from(value) is None


def test_a_collection_without_a_size_says_so() -> None:
    """Dask's frames do not tell bytes: the estimate says that moving is not in it."""
    found = Sizes(tasks=100, known_tasks=0, known_s=0.0, bytes=0, moved_bytes=0, is_sized=0)
    told = collection_words(found, view(None), LEASES, rate_nusd_hour=USD, seconds_each=None)

    assert "1 s each was assumed" in told[0]
    assert told[-1].startswith("it does not tell its size")


def test_an_earlier_map_that_cannot_be_read_keeps_no_new_one_from_beginning(tmp_path: Path) -> None:
    """The guess by earlier maps is left out when a file of one of them is damaged, or is gone."""
    folder = tmp_path / "crew-1" / "maps" / "map1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    assert mean_seconds(tmp_path, "x = 1") == 0.0
    (folder / "request.json").write_text("damaged")
    assert mean_seconds(tmp_path, "x = 1") == 0.0


def earlier_map(clusters: Path, map_id: str, code: str, began_s: float) -> None:
    """A map of one item that took three seconds."""
    folder = clusters / "crew-1" / "maps" / map_id
    folder.mkdir(parents=True)
    request = MapRequest(map_id=map_id, code=code, item_name="x", items_sha256="f" * 64, count=1)
    (folder / "request.json").write_bytes(msgspec.json.encode(request))
    (folder / "state.json").write_text('{"state": "done"}')
    log = OutcomeLog(folder)
    view = msgspec.structs.replace(item(0, 3000), index=0)
    log.append(OutcomeLine(entry=0, attempt=1, lease_id="a", status="ok", view=view))
    log.close()
    os.utime(folder / "request.json", (began_s, began_s))


def test_a_damaged_map_hides_no_other(tmp_path: Path) -> None:
    """Maps are listed, and found to be resumed and to guess by, as far as they can be read."""
    earlier_map(tmp_path, "map1", "x = 1", 1.0)
    for number in (2, 3):
        earlier_map(tmp_path, f"map{number}", "x = 2", float(number))
    (tmp_path / "crew-1" / "maps" / "map2" / "request.json").write_text("damaged")

    assert [one.map_id for one in all_maps(tmp_path)] == ["map3", "map1"]
    assert mean_seconds(tmp_path, "x = 1") == 3.0


def test_only_so_many_earlier_maps_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess is not worth reading thousands of them each time a map begins."""
    monkeypatch.setattr(map_results, "MAX_FORMER", 2)
    earlier_map(tmp_path, "map1", "x = 1", 1.0)
    for number in (2, 3):
        earlier_map(tmp_path, f"map{number}", "x = 2", float(number))

    assert mean_seconds(tmp_path, "x = 2") == 3.0
    assert mean_seconds(tmp_path, "x = 1") == 0.0
