"""What breaks, and what must hold all the same."""

from __future__ import annotations

import asyncio
import os
import resource
import signal

import pytest

from jupyter_gpumarket.api import LinkBack, LinkLost, NodeFailed, NodeIdle, NodeView, RunEnded
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.models import RunStatus

from .conftest import ClusterUnderTest, FakeBroker, text_of, until
from .fake_node import FakeNode


async def link_of(cluster: ClusterUnderTest, lease_id: str = "lease-1") -> str:
    views = await cluster.get("/v1/nodes", list[NodeView])
    return next(view.link for view in views if view.lease_id == lease_id)


async def until_link(cluster: ClusterUnderTest, state: str, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while await link_of(cluster) != state:
            await asyncio.sleep(0.05)


async def print_lines(node: FakeNode, count: int, every_s: float = 0.01) -> str:
    """A cell that prints; returns all that it has printed."""
    lines = [f"line {n}\n" for n in range(count)]
    for line in lines:
        await node.say("run-1", line)
        await asyncio.sleep(every_s)
    await node.finish("run-1")
    return "".join(lines)


async def test_a_cut_link_loses_and_doubles_nothing(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Cut again and again, and for a while, during a printing cell: every line is there once, and the broker knows."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    printing = asyncio.create_task(print_lines(node, 400))
    for _ in range(3):
        await asyncio.sleep(0.3)
        node.cut()
    node.go_down()
    await until_link(cluster, "lost")
    await asyncio.sleep(1)
    node.come_up()
    messages, view = await cluster.follow("run-1")

    assert text_of(messages) == await printing
    assert view.status is RunStatus.OK
    await until(lambda: broker.kinds().count("LinkBack") == broker.kinds().count("LinkLost"))
    lost = [fact for fact in broker.facts if isinstance(fact, LinkLost)]
    back = [fact for fact in broker.facts if isinstance(fact, LinkBack)]
    assert lost
    assert len(back) == len(lost)
    assert all(fact.same_boot for fact in back)
    assert node.executed == ["run-1"]


async def test_kill_nine_in_the_middle_of_a_printing_cell_loses_and_doubles_nothing(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Started again, the process finds node and run by itself and goes on from the last line it has on disk."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    printing = asyncio.create_task(print_lines(node, 600))
    for _ in range(3):
        await asyncio.sleep(0.4)
        seen = (await cluster.batch("run-1")).messages
        cluster.kill()
        await cluster.start()
        still = (await cluster.batch("run-1")).messages
        assert still[: len(seen)] == seen, "a message that a door saw is gone"
    messages, view = await cluster.follow("run-1")

    assert text_of(messages) == await printing
    assert view.status is RunStatus.OK
    assert node.executed == ["run-1"]
    await until(lambda: "RunEnded" in broker.kinds())
    assert broker.kinds().count("RunStarted") == 1


async def test_kill_nine_while_an_output_is_on_its_way(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """What of an output has arrived is not asked for again, and the whole is right."""
    import numpy as np

    from jupyter_gpumarket import codecs

    encoded = codecs.encode(np.random.default_rng(1).random(4_000_000))
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", outputs=("w",))
    await until(lambda: "run-1" in node.runs)
    await node.finish("run-1", w=(encoded.codec, encoded.data))
    part = cluster.folder / "runs/run-1/output-0.part"
    await until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    cluster.kill()
    await cluster.start()
    _, view = await cluster.follow("run-1")
    reply = await cluster.call("GET", "/v1/runs/run-1/outputs/w")

    assert view.outputs[0].error == ""
    assert reply.content == encoded.data


async def test_kill_nine_between_spilled_lines(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """The spill file is as exact as the log."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", output_limit_bytes=2_000)
    await until(lambda: "run-1" in node.runs)
    printing = asyncio.create_task(print_lines(node, 400))
    await until((cluster.folder / "runs/run-1/output.txt").exists)
    for _ in range(2):
        await asyncio.sleep(0.3)
        cluster.kill()
        await cluster.start()
    messages, _ = await cluster.follow("run-1")

    assert text_of(messages) + (cluster.folder / "runs/run-1/output.txt").read_text() == await printing
    assert [m.msg_type for m in messages].count("truncated") == 1


async def test_a_suspended_cluster_process_catches_up(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """SIGSTOP for a while (a closed laptop): the node goes on, and afterwards everything is here."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    printing = asyncio.create_task(print_lines(node, 300))
    await asyncio.sleep(0.3)
    os.kill(cluster.pid, signal.SIGSTOP)
    await asyncio.sleep(4)
    os.kill(cluster.pid, signal.SIGCONT)
    messages, view = await cluster.follow("run-1")

    assert text_of(messages) == await printing
    assert view.status is RunStatus.OK


async def test_an_agent_that_lost_its_memory_loses_the_run_and_never_repeats_it(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """A run that its agent no longer knows has ended as lost; it is not executed a second time."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", outputs=("x",))
    await until(lambda: "run-1" in node.runs)
    await node.say("run-1", "before\n")
    async with asyncio.timeout(10):
        while not (await cluster.batch("run-1", 0, 5)).messages:
            pass
    node.restart_agent(forgets=True)
    messages, view = await cluster.follow("run-1")

    assert view.status is RunStatus.LOST
    assert "restarted" in view.reason
    assert view.outputs[0].error
    assert text_of(messages) == "before\n"
    assert node.executed == ["run-1"]
    await until(lambda: any(isinstance(f, RunEnded) and f.status is RunStatus.LOST for f in broker.facts))
    assert [fact.same_boot for fact in broker.facts if isinstance(fact, LinkBack)] == [False]


async def test_a_node_that_is_given_back_ends_its_runs_as_lost(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Node killed, lease ended: runs under way and runs still queued end as lost, with the reason."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    node.go_down()
    await until_link(cluster, "lost")
    await cluster.submit("run-2")
    await cluster.call("POST", "/v1/nodes/lease-1/detach", {"timeout_s": 1.0})
    for run_id in ("run-1", "run-2"):
        _, view = await cluster.follow(run_id)
        assert view.status is RunStatus.LOST
        assert "given back" in view.reason

    assert await cluster.get("/v1/nodes", list[NodeView]) == []
    refused = await cluster.call("POST", "/v1/runs", {"run_id": "run-3", "lease_id": "lease-1", "code": ""})
    assert refused.status_code == 400
    assert refused.json()["field"] == "lease_id"


async def test_detaching_tells_the_agent_to_end(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """A node that answers is told to shut its agent down before the link is closed."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    await cluster.call("POST", "/v1/nodes/lease-1/detach", {})

    assert type(node.orders[-1]).__name__ == "Shutdown"


async def test_an_interrupt_during_an_outage_is_said_and_delivered_later(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """The door learns that the node cannot hear it now; when the node is back, the cell is interrupted."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    node.go_down()
    await until_link(cluster, "lost")
    reply = await cluster.call("POST", "/v1/runs/run-1/interrupt")
    cluster.kill()  # not even this makes it forget
    await cluster.start()
    node.come_up()
    _, view = await cluster.follow("run-1")

    assert "cannot be reached" in reply.json()["reason"]
    assert view.status is RunStatus.INTERRUPTED


async def test_a_cell_that_was_not_sent_yet_is_interrupted_at_once(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """An interrupted cell that waits for its node never runs."""
    node.go_down()
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await cluster.call("POST", "/v1/runs/run-1/interrupt")
    _, view = await cluster.follow("run-1")
    node.come_up()
    await cluster.submit("run-2")
    await until(lambda: "run-2" in node.runs)

    assert view.status is RunStatus.INTERRUPTED
    assert node.executed == ["run-2"]


async def test_facts_wait_for_the_broker_in_order_and_come_once(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Broker away, cluster killed, new broker with another address and token: nothing missing, nothing twice."""
    broker.refuses = True
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    await node.finish("run-1")
    await cluster.follow("run-1")
    cluster.kill()
    await cluster.start()
    broker.stop()
    broker.refuses = False
    broker.start()
    await until(lambda: "RunEnded" in broker.kinds(), 30)

    kinds = [kind for kind in broker.kinds() if kind not in ("NodeIdle", "LinkLost", "LinkBack")]
    assert kinds == ["Linked", "Prepared", "Probed", "RunStarted", "RunEnded"]


async def test_a_changed_host_key_is_refused_and_nothing_is_sent(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Another host key than before: no further attempt, a visible state, and a fact that blames the node."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    node.path.with_suffix(".key").write_text("ssh-ed25519 OTHER")
    told = len(node.orders)
    node.cut()
    await until_link(cluster, "refused")
    await until(lambda: any(isinstance(fact, NodeFailed) for fact in broker.facts))
    (failed,) = [fact for fact in broker.facts if isinstance(fact, NodeFailed)]

    assert failed.phase == "ready"
    assert "host key" in failed.reason
    assert len(node.orders) == told


async def test_a_refused_node_is_taken_back_when_the_broker_vouches_for_its_new_key(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """The recovery path: attached again with the new key, it works."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    node.path.with_suffix(".key").write_text("ssh-ed25519 OTHER")
    node.cut()
    await until_link(cluster, "refused")
    await cluster.attach(str(node.path), host_key="ssh-ed25519 OTHER", resume=True)
    await until_link(cluster, "up")
    await cluster.submit("run-1")

    await until(lambda: "run-1" in node.runs)


async def test_a_failed_set_up_is_told_once_with_its_reason(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """The broker learns the phase and the reason, and decides what becomes of the lease."""
    node.path.with_suffix(".prepare").write_text("no Python 3.11 on the node")
    await cluster.attach(str(node.path))
    await until(lambda: any(isinstance(fact, NodeFailed) for fact in broker.facts))

    assert broker.kinds() == ["Linked", "NodeFailed"]
    failed = broker.facts[-1]
    assert isinstance(failed, NodeFailed)
    assert (failed.phase, "no Python" in failed.reason) == ("preparing", True)


async def test_a_node_that_breaks_the_protocol_is_refused(
    cluster: ClusterUnderTest, tmp_path: object, broker: FakeBroker, node: FakeNode
) -> None:
    """Noise instead of frames ends the conversation for good, and the process works on for other nodes."""

    async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff" * 100_000)
        await writer.drain()
        writer.close()

    path = node.path.with_name("noise.sock")
    server = await asyncio.start_unix_server(noise, str(path))
    await cluster.attach(str(path), "lease-2")
    await cluster.attach(str(node.path))
    async with asyncio.timeout(20):
        while await link_of(cluster, "lease-2") != "refused":
            await asyncio.sleep(0.05)
    server.close()
    await cluster.submit("run-1")

    await until(lambda: "run-1" in node.runs)
    assert await link_of(cluster) == "up"


async def test_the_broker_hears_of_an_idle_node_again_and_again(
    folder: object, broker: FakeBroker, node: FakeNode
) -> None:
    """A node without a cell is reported with the time since when; not while a cell runs."""
    write_private(broker.folder / "start.json", b'{"cluster_id": "cluster-1", "idle_tell_s": 0.2}')
    cluster = ClusterUnderTest(broker.folder)
    await cluster.start()
    try:
        await cluster.attach(str(node.path))
        await until(lambda: broker.kinds().count("NodeIdle") >= 2)
        await cluster.submit("run-1")
        await until(lambda: "RunStarted" in broker.kinds())
        count = broker.kinds().count("NodeIdle")
        await asyncio.sleep(1)
        assert broker.kinds().count("NodeIdle") == count
        await node.finish("run-1")
        await until(lambda: broker.kinds().count("NodeIdle") >= count + 2)
    finally:
        cluster.terminate()
        await cluster.http.aclose()
    idle = [fact for fact in broker.facts if isinstance(fact, NodeIdle)]
    (ended,) = [fact for fact in broker.facts if isinstance(fact, RunEnded)]
    assert idle[0].idle_since_ms == idle[1].idle_since_ms
    assert idle[-1].idle_since_ms == ended.at_ms


async def test_a_full_disk_stops_the_log_and_loses_nothing(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """While nothing can be written, the node keeps the output and doors are told why; afterwards all of it is here."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    unlimited = resource.prlimit(cluster.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cluster.pid, resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    whole = await print_lines(node, 300, 0.001)
    async with asyncio.timeout(10):
        while "disk" not in (await cluster.batch("run-1")).link_detail:
            await asyncio.sleep(0.05)
    resource.prlimit(cluster.pid, resource.RLIMIT_FSIZE, unlimited)
    messages, view = await cluster.follow("run-1")

    assert text_of(messages) == whole
    assert view.status is RunStatus.OK
    await until(lambda: "RunEnded" in broker.kinds())


@pytest.mark.slow
async def test_a_hundred_megabytes_printed_stay_bounded_and_complete(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """100 MB of output: the log stays at its bound, the file has the rest, the process stays small."""
    import psutil

    await cluster.attach(str(node.path))
    await cluster.submit("run-1", output_limit_bytes=1_000_000)
    await until(lambda: "run-1" in node.runs)
    piece, most = "x" * 65_535 + "\n", 0
    for _ in range(1600):
        await node.say("run-1", piece)
        most = max(most, psutil.Process(cluster.pid).memory_info().rss)
    await node.finish("run-1")
    messages, view = await cluster.follow("run-1", timeout_s=100)

    assert view.status is RunStatus.OK
    kept = len(text_of(messages))
    assert kept <= 1_100_000
    assert kept + (cluster.folder / "runs/run-1/output.txt").stat().st_size == 1600 * 65_536
    assert most < 250_000_000
