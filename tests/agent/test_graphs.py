"""What a graph is going to take, as a real scheduler and real collections tell it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import dask.array as da
import pytest
from distributed import Client, LocalCluster, wait

from jupyter_gpumarket.agent import graphs as agent_graphs
from jupyter_gpumarket.agent.graphs import LEAST_TASKS, MAX_KINDS, Graphs, sizes


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def graphs(client: Client) -> Iterator[Graphs]:
    """The plugin in their scheduler."""
    scheduler = client.cluster.scheduler
    plugin = Graphs(scheduler)
    scheduler.add_plugin(plugin)
    yield plugin
    scheduler.remove_plugin(plugin.name)


def slow(x: int) -> bytes:
    time.sleep(0.02)
    return bytes(1000)


def both(x: bytes, y: bytes) -> int:
    return len(x) + len(y)


def test_a_submitted_graph_is_known_better_once_it_runs(client: Client, graphs: Graphs) -> None:
    """At first only the number of tasks is told; later their time, and that a chain moves nothing."""
    futures = client.map(slow, range(LEAST_TASKS), pure=False)
    client.gather(futures)
    found = graphs.graph()

    assert found is not None
    assert (found.number, found.tasks, found.known_tasks, found.moves) == (1, LEAST_TASKS, LEAST_TASKS, 0)
    assert 0.02 * LEAST_TASKS * 0.8 <= found.known_s < 10 * 0.02 * LEAST_TASKS


def test_a_small_graph_is_not_noted(client: Client, graphs: Graphs) -> None:
    """What is over at once needs no estimate, and does not push a large one out."""
    client.submit(slow, 1, pure=False).result()

    assert graphs.graph() is None


def test_of_two_inputs_one_has_to_move(client: Client, graphs: Graphs) -> None:
    """A pairing of 100 results moves half of them, with the size that results of their kind have."""
    futures = client.map(slow, range(100), pure=False)
    wait(futures)
    client.gather(client.map(both, futures[:50], futures[50:], pure=False))
    found = graphs.graph()

    assert found is not None
    assert found.tasks == 50, "inputs that are there already are no work"
    assert found.moves == 50
    assert found.known_moves == 50
    assert 50 * 1000 <= found.moved_bytes < 50 * 1200


def test_a_graph_with_very_many_links_is_looked_at_in_part(
    client: Client, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler stands still meanwhile: after so many links the rest counts as what was seen."""
    monkeypatch.setattr(agent_graphs, "MOST_LINKS", 10)
    futures = client.map(slow, range(100), pure=False)
    wait(futures)
    client.gather(client.map(both, futures[:50], futures[50:], pure=False))
    found = graphs.graph()

    assert found is not None
    assert (found.tasks, found.moves) == (50, 50)
    assert sum(graphs._moved.values()) < 10


def test_progress_tells_the_kinds_with_most_to_do(client: Client, graphs: Graphs) -> None:
    """Each kind with its counts, bounded in number and in length of names."""
    futures = client.map(slow, range(20), pure=False, key=[f"{'long' * 50}-{i}" for i in range(20)])
    client.gather(futures)
    told = graphs.progress()

    assert 0 < len(told) <= MAX_KINDS
    assert max(len(one.name) for one in told) <= 60
    assert any((one.in_memory, one.waiting, one.processing) == (20, 0, 0) for one in told if "long" in one.name)


def test_a_collection_tells_its_tasks_its_result_and_what_moves(client: Client) -> None:
    """A rechunk moves its array once; the rest of the work moves nothing; kinds that have run have a time."""
    array = da.ones((1000, 1000), chunks=(100, 1000))
    array.sum().compute()
    plain, turned = sizes(array + 1, client), sizes(array.rechunk((1000, 100)).sum(), client)

    assert plain["moved_bytes"] == plain["bytes"] == 8_000_000
    assert (turned["bytes"], turned["moved_bytes"]) == (8, 8_000_008)
    assert plain["known_tasks"] == 0
    again = sizes(array.sum(), client)
    assert again["known_tasks"] == again["tasks"] > 1
    assert again["known_s"] > 0


def test_what_is_no_collection_has_no_tasks() -> None:
    """A number is told as such, without a scheduler too."""
    assert sizes(3)["tasks"] == 0
    assert sizes(da.ones(10), None)["tasks"] == 1
