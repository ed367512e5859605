"""`GPUCluster` as Dask's tools use it: a broker at the client's seam, no nodes."""

from __future__ import annotations

import argparse
import asyncio
from types import SimpleNamespace
from typing import Any

import distributed
import msgspec
import pytest

from jupyter_gpumarket import GPUCluster
from jupyter_gpumarket.api import (
    Aim,
    ClusterView,
    ClusterWish,
    DaskLack,
    DaskProgress,
    DaskTasks,
    DaskView,
    DaskWorkerView,
)
from jupyter_gpumarket.errors import (
    BadRequest,
    BrokerUnavailable,
    BudgetExceeded,
    LeaseError,
    LeaseFailed,
    NodeError,
)
from jupyter_gpumarket.models import Lease, LeaseRequest, LeaseState, OfferQuery
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook import gpu_cluster
from jupyter_gpumarket.notebook.cluster_command import ClusterCommand
from jupyter_gpumarket.notebook.cluster_display import facts_of, lack_table
from jupyter_gpumarket.notebook.identity import in_jupyter_server
from tests.notebook.fakes import T0, offer

LEASE = Lease(
    lease_id="lease-1",
    name="calm-otter",
    state=LeaseState.READY,
    request=LeaseRequest(request_id="r", query=OfferQuery(), budget_nusd=usd("1"), max_s=3600),
    created_ms=T0,
    changed_ms=T0,
    offer=offer(),
)
WORKER = DaskWorkerView(
    name="calm-otter-0-1", lease_id="lease-1", state="running", address="tls://127.0.0.1:1", nthreads=4, memory_limit=8
)
EVIL = "<script>alert(1)</script>\x1b[2J"


class FakeBroker:
    """Keeps a cluster's wish, and counts what is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        progress = (DaskProgress(name=EVIL, waiting=7, processing=2, done=3),)
        self.seen = ClusterView(
            name="crew",
            cluster_id="crew-1",
            wish=ClusterWish(aim=Aim(minimum=1, maximum=1), budget_nusd=usd("5"), max_s=3600),
            leases=(LEASE,),
            spent_nusd=usd("0.25"),
            rate_nusd_hour=usd("0.35"),
            dask=DaskView(
                state="running",
                head="lease-1",
                workers=(WORKER,),
                tasks=DaskTasks(waiting=7, processing=2, progress=progress),
            ),
        )

    async def cluster_view(self, name: str) -> ClusterView:
        self.asked.append("view")
        return self.seen

    async def keep_cluster(self, name: str, wish: ClusterWish) -> ClusterView:
        self.asked.append("keep")
        self.meant = wish.cluster_id
        self.seen = msgspec.structs.replace(self.seen, wish=wish)
        return self.seen

    async def end_cluster(self, name: str, cluster_id: str = "") -> ClusterView:
        if cluster_id not in ("", self.seen.cluster_id):
            raise LeaseError("another cluster")
        self.asked.append("end")
        self.seen = msgspec.structs.replace(self.seen, leases=(), is_ended=True, dask=None)
        return self.seen

    async def aclose(self) -> None:
        pass


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> FakeBroker:
    """What `GPUCluster` connects to."""
    fake = FakeBroker()

    async def connect() -> FakeBroker:
        return fake

    monkeypatch.setenv("JUPYTER_GPUMARKET_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_cluster, "connect_async", connect)
    return fake


def test_it_has_the_names_of_dasks_own_clusters(broker: FakeBroker) -> None:
    """Every public name of `distributed.deploy.Cluster` that others use is there."""
    expected = {name for name in vars(distributed.deploy.Cluster) if not name.startswith("_")}
    cluster = GPUCluster(name="crew")

    assert expected - {"called_from_running_loop"} <= set(dir(cluster))
    assert cluster.plan == cluster.requested == cluster.observed == {"calm-otter-0-1"}
    assert cluster.scheduler_info["workers"]["tls://127.0.0.1:1"]["nthreads"] == 4
    assert cluster.loop.asyncio_loop.is_running()


def test_its_repr_asks_nothing(broker: FakeBroker) -> None:
    """A debugger or a log that shows it waits for no network."""
    cluster = GPUCluster(name="crew")
    asked = len(broker.asked)

    assert "1 ready of 1" in repr(cluster)
    assert "$0.25" in repr(cluster)
    assert len(broker.asked) == asked


def test_what_it_shows_is_our_own_text(broker: FakeBroker) -> None:
    """Names of tasks are a node's words: they are escaped, and cannot run or move anything."""
    shown = GPUCluster(name="crew")._repr_html_()

    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "\x1b" not in shown
    assert "7 waiting, 2 at work" in shown
    assert "3 of 12" in shown


def test_strangers_nodes_have_no_address_and_no_dashboard(broker: FakeBroker) -> None:
    """Both are asked for by tools that only list clusters: they are told a name and nothing, not an error."""
    cluster = GPUCluster(name="crew")

    assert cluster.scheduler_address == "gpumarket://crew"
    assert cluster.dashboard_link == ""


async def test_adapt_need_not_be_awaited(broker: FakeBroker) -> None:
    """With an asynchronous cluster it begins at once, tells its limits, may be awaited, and be stopped."""
    cluster = await GPUCluster(name="crew", asynchronous=True)
    adapting = cluster.adapt(minimum=2, maximum=5)
    assert (adapting.minimum, adapting.maximum) == (2, 5)
    assert await adapting is adapting
    assert (broker.seen.wish.aim.minimum, broker.seen.wish.aim.maximum) == (2, 5)
    await adapting.stop()
    assert broker.seen.wish.aim == Aim(minimum=1, maximum=1)
    await cluster.close()


async def test_another_size_is_asked_for_this_cluster_alone(broker: FakeBroker) -> None:
    """The broker is told which cluster is meant: one that ends meanwhile is not rented anew."""
    async with GPUCluster(name="crew", asynchronous=True) as cluster:
        await cluster.scale(2)

    assert (broker.meant, broker.seen.wish.aim.minimum) == ("crew-1", 2)


def test_the_command_asks_for_the_cluster_that_it_has_found_alone(broker: FakeBroker) -> None:
    """`%gpu cluster scale` says which one is meant too."""
    asked: list[ClusterWish] = []

    def keep(name: str, wish: ClusterWish) -> ClusterView:
        asked.append(wish)
        return broker.seen

    client = SimpleNamespace(cluster_view=lambda name: broker.seen, keep_cluster=keep)
    stage = SimpleNamespace(table=lambda table: None, say=lambda text: None)
    command = ClusterCommand(SimpleNamespace(client=client), stage, None)  # type: ignore[arg-type]
    command.run(argparse.Namespace(what=["scale", "2"], name="crew", budget=None))

    assert [(wish.cluster_id, wish.aim.maximum) for wish in asked] == [("crew-1", 2)]


@pytest.mark.parametrize("how", ["interrupted", "refused"])
async def test_a_beginning_that_is_broken_off_is_ended(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Interrupted while it is asked for, nodes may be rented that nobody holds; refused, there are none."""
    begun = asyncio.Event()

    async def keep(name: str, wish: ClusterWish) -> ClusterView:
        begun.set()
        if how == "refused":
            raise BudgetExceeded("there is no money for it")
        await asyncio.Event().wait()
        raise AssertionError("never")

    monkeypatch.setattr(broker, "keep_cluster", keep)
    beginning = asyncio.ensure_future(GPUCluster(2, budget="5", asynchronous=True))
    await asyncio.wait_for(begun.wait(), 5)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)

    assert broker.asked.count("end") == (how == "interrupted")


async def test_a_cluster_that_was_there_before_is_not_ended_with_a_beginning_that_fails(broker: FakeBroker) -> None:
    """More nodes for a living cluster that do not come in time: it has its former wish again, and all its nodes."""
    former = broker.seen.wish
    with pytest.raises(LeaseFailed, match="as it was before"):
        await GPUCluster(9, name="crew", budget="50", timeout_s=0.01, asynchronous=True)

    assert broker.seen.wish == msgspec.structs.replace(former, cluster_id="crew-1")
    assert "end" not in broker.asked


async def test_after_its_end_it_can_still_be_listed(broker: FakeBroker) -> None:
    """Closing twice ends it once; a tool that lists it afterwards gets an empty cluster, and asks nothing."""
    async with GPUCluster(name="crew", asynchronous=True) as cluster:
        await cluster.close()
        await cluster.close()
    asked = list(broker.asked)
    await asyncio.sleep(0)

    assert broker.asked.count("end") == 1
    assert cluster.scheduler_info["workers"] == {}
    assert (cluster.scheduler_address, cluster.dashboard_link) == ("gpumarket://crew", "")
    assert cluster.status is distributed.core.Status.closed
    assert broker.asked == asked


@pytest.mark.parametrize(("budget", "told"), [(None, "say what all of them together may cost"), (2.5, "as text")])
def test_without_a_budget_nothing_is_rented(broker: FakeBroker, budget: Any, told: str) -> None:
    """A budget is the consent: it is never guessed, and never a float."""
    with pytest.raises(BadRequest, match=told):
        GPUCluster(2, budget=budget)
    assert broker.asked == []


@pytest.mark.parametrize("count", [0, -1, 1001, True])
def test_a_number_of_nodes_that_no_cluster_can_begin_with_is_refused(broker: FakeBroker, count: Any) -> None:
    """None at all would be waited for in vain: the scheduler runs on one of them."""
    with pytest.raises(BadRequest, match="it begins with 1 to 1000"):
        GPUCluster(count, budget="10")
    assert broker.asked == []


def test_too_few_workers_to_wait_for_are_refused(broker: FakeBroker) -> None:
    """As Dask's own clusters do."""
    with pytest.raises(ValueError, match="from 1 up"):
        GPUCluster(name="crew").wait_for_workers(0)


def test_only_a_kernel_is_inside_of_a_jupyter_server() -> None:
    """A script started from Jupyter's terminal has the variable too, and nobody who looks through the server."""
    assert in_jupyter_server({"JUPYTER_GPUMARKET_BASE_URL": "/user/ann/"}) == ""


async def test_nodes_that_could_not_be_given_back_can_be_given_back_again(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is away while a cluster is closed: the error is told, and the second try is one."""
    cluster = await GPUCluster(name="crew", asynchronous=True)

    async def away(*_: str) -> ClusterView:
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(broker, "end_cluster", away)
        with pytest.raises(BrokerUnavailable):
            await cluster.close()
    await cluster.close()

    assert broker.asked.count("end") == 1


@pytest.mark.parametrize(
    ("threads", "words"),
    [
        ((), "0 with 0 threads"),
        ((4, 8), "2 with 12 threads"),
        ((0, 0), "2, threads not known yet"),
        ((4, 0), "2 with 4 threads, 1 not heard of yet"),
    ],
)
def test_threads_that_are_not_known_yet_are_not_told_as_none(
    broker: FakeBroker, threads: tuple[int, ...], words: str
) -> None:
    """A worker runs before its scheduler has told how many threads it has; of one that has ended none count."""
    workers = tuple(msgspec.structs.replace(WORKER, nthreads=count) for count in threads)
    ended = msgspec.structs.replace(WORKER, state="ended", nthreads=9)
    assert broker.seen.dask is not None
    dask = msgspec.structs.replace(broker.seen.dask, workers=(*workers, ended))

    assert dict(facts_of(msgspec.structs.replace(broker.seen, dask=dask)))["workers"] == words


async def test_a_wish_that_is_cut_short_leaves_no_nodes_behind(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the broker is asked to rent: whether it has heard that or not, the cluster is ended."""
    asked = asyncio.Event()

    async def keep(name: str, wish: ClusterWish) -> ClusterView:
        asked.set()
        return await asyncio.Future()

    monkeypatch.setattr(broker, "keep_cluster", keep)

    async def rent() -> None:
        await GPUCluster(n=1, budget="1", asynchronous=True)

    renting = asyncio.create_task(rent())
    await asked.wait()
    renting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await renting

    assert broker.asked == ["end"]


async def test_a_cluster_that_has_ended_is_not_asked_for_again(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is still shown somewhere keeps no broker running once its nodes are given back elsewhere."""
    monkeypatch.setattr(gpu_cluster, "POLL_S", 0.001)
    cluster = await GPUCluster(name="crew", asynchronous=True)
    await broker.end_cluster("crew")
    async with asyncio.timeout(5):
        while cluster.status is not distributed.core.Status.closed:
            await asyncio.sleep(0.001)
    asked = len(broker.asked)
    for _ in range(20):
        await asyncio.sleep(0.001)

    assert len(broker.asked) == asked
    cluster.shutdown_on_close = False
    await cluster.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_was_rented_is_given_back_when_its_modules_cannot_be_brought(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Nobody gets the object, so nobody could close it; a cluster that was there before stays."""

    def failing(*_: object) -> None:
        raise NodeError("not synced")

    async def make(**more: Any) -> None:
        await GPUCluster(sync=True, asynchronous=True, **more)

    monkeypatch.setattr(gpu_cluster, "bring_to", failing)
    for more, ended in (({"name": "crew"}, 0), ({"n": 1, "budget": "1"}, 1)):
        with pytest.raises(NodeError):
            asyncio.run(make(**more)) if asynchronous else GPUCluster(sync=True, **more)
        assert broker.asked.count("end") == ended


def test_why_tells_of_each_node_without_a_worker(broker: FakeBroker) -> None:
    """By the cluster process's word, cleaned, and by the lease's state where that has none; of others nothing."""
    dask = broker.seen.dask
    assert dask is not None
    booting = msgspec.structs.replace(LEASE, lease_id="lease-2", name="new-fox", state=LeaseState.BOOTING)
    going = msgspec.structs.replace(LEASE, lease_id="lease-3", name="old-fox", state=LeaseState.RELEASING)
    view = msgspec.structs.replace(broker.seen, leases=(LEASE, booting, going))
    table = lack_table(view)
    assert table is not None
    assert table.rows == (("new-fox", "it is not ready yet: booting"),)

    lacks = (DaskLack(lease_id="lease-1", reason=f"its link is down: {EVIL}"), DaskLack(lease_id="gone", reason="x"))
    table = lack_table(msgspec.structs.replace(view, leases=(LEASE,), dask=msgspec.structs.replace(dask, lacks=lacks)))
    assert table is not None
    ((name, reason),) = table.rows
    assert name == "calm-otter"
    assert reason.startswith("its link is down: ")
    assert "\x1b" not in reason
    assert lack_table(broker.seen) is None


async def test_an_object_of_a_cluster_that_has_ended_changes_no_other_of_its_name(broker: FakeBroker) -> None:
    """Another one was begun under the name: closing ends nothing of it, and scaling means the former one."""
    cluster = await GPUCluster(name="crew", asynchronous=True)
    broker.seen = msgspec.structs.replace(broker.seen, cluster_id="crew-2")
    await cluster.scale(3)
    assert broker.meant == "crew-1"

    await cluster.close()
    assert "end" not in broker.asked
    assert cluster.status is distributed.core.Status.closed
