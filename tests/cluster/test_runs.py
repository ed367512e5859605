"""Cell runs, from the order to the last message on the user's disk."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import InputRef, NodeTraffic, NodeView
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire import messages as wire

from .conftest import ClusterUnderTest, FakeBroker, text_of, until
from .fake_node import FakeNode


async def test_a_cell_runs_and_its_output_comes_back(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """Attach, run, follow: output in order, the end, and the facts that the broker needs."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    for line in range(20):
        await node.say("run-1", f"line {line}\n")
    await node.finish("run-1")
    messages, view = await cluster.follow("run-1")

    assert text_of(messages) == "".join(f"line {n}\n" for n in range(20))
    assert view.status is RunStatus.OK
    assert view.started_ms is not None
    assert view.ended_ms is not None
    assert view.started_ms <= view.ended_ms
    await until(lambda: "RunEnded" in broker.kinds())
    kinds = broker.kinds()
    assert [kind for kind in kinds if kind != "NodeIdle"] == ["Linked", "Prepared", "Probed", "RunStarted", "RunEnded"]
    assert kinds[-1] in ("NodeIdle", "RunEnded")


async def test_the_same_run_id_twice_runs_once(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """A door may repeat its request; another cell under the same id is refused."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    await cluster.submit("run-1")
    refused = await cluster.call(
        "POST", "/v1/runs", {"run_id": "run-1", "lease_id": "lease-1", "code": "something else"}
    )
    await node.finish("run-1")
    await cluster.follow("run-1")

    assert node.executed == ["run-1"]
    assert refused.status_code == 400
    assert refused.json()["field"] == "run_id"


async def test_a_cell_is_begun_and_its_end_heard_in_one_call(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """The call that begins a cell answers with its end, however long output alone might wait; made again, it runs once.

    Output that comes before waits for company: `calm_s` holds it back, and the end brings all of it at once.
    """
    await cluster.attach(str(node.path))
    path, body = "/v1/runs/run-1/messages?wait_s=20&calm_s=20", {"run_id": "run-1", "lease_id": "lease-1", "code": ""}
    asked = asyncio.create_task(cluster.call("POST", path, body))
    await until(lambda: "run-1" in node.runs)
    await node.say("run-1", "soon over\n")
    await node.finish("run-1")
    async with asyncio.timeout(10):
        first, again = (await asked).json(), (await cluster.call("POST", path, body)).json()

    assert first == again
    assert first["run"]["status"] == "ok"
    assert [message["content"]["text"] for message in first["messages"]] == ["soon over\n"]
    assert node.executed == ["run-1"]


async def test_inputs_reach_the_node_once_by_content(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """Bytes put here arrive whole before the cell runs; the same content is not sent again."""
    data = bytes(range(256)) * 10_000
    sha256 = hashlib.sha256(data).hexdigest()
    await cluster.attach(str(node.path))
    put = await cluster.call("PUT", f"/v1/blobs/{sha256}", content=data)
    assert put.status_code == 200, put.text
    ref = InputRef(name="x", codec="npy", sha256=sha256, size=len(data))
    for run_id in ("run-1", "run-2", "run-3"):
        await cluster.submit(run_id, inputs=(ref,))
        await until(lambda: run_id in node.runs)  # noqa: B023
        await node.finish(run_id)
        await cluster.follow(run_id)
        if run_id == "run-2":
            cluster.kill()
            await cluster.start()

    assert bytes(node.blobs[sha256]) == data
    sent = [len(order.data) for order in node.orders if type(order).__name__ == "PutBlob"]
    assert sum(sent) == len(data)
    assert sent.count(0) == 2, "each process asks once whether the node has it"


async def test_bytes_that_do_not_match_their_address_are_refused(cluster: ClusterUnderTest) -> None:
    """A blob is its SHA-256 or nothing."""
    sha256 = hashlib.sha256(b"right").hexdigest()
    reply = await cluster.call("PUT", f"/v1/blobs/{sha256}", content=b"wrong")

    assert reply.status_code == 400
    assert (await cluster.call("HEAD", f"/v1/blobs/{sha256}")).status_code == 404
    assert list((cluster.folder / "blobs").iterdir()) == []


async def test_outputs_are_there_when_the_run_shows_as_ended(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """An ended view means: every output is fetched, checked, and can be read."""
    value = np.arange(300_000, dtype="float64")
    encoded = codecs.encode(value)
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", outputs=("w", "missing"))
    await until(lambda: "run-1" in node.runs)
    await node.finish("run-1", w=(encoded.codec, encoded.data), missing="name 'missing' is not defined")
    _, view = await cluster.follow("run-1")
    reply = await cluster.call("GET", "/v1/runs/run-1/outputs/w")

    assert [(ref.name, ref.error) for ref in view.outputs] == [("w", ""), ("missing", "name 'missing' is not defined")]
    np.testing.assert_array_equal(codecs.decode(view.outputs[0].codec, reply.content), value)


async def test_a_result_that_is_a_pickle_never_becomes_an_output(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """Under its own name and disguised as every codec: refused, not stored, and the run's other parts are there."""
    pickled = codecs.encode_input(print).data
    outputs = {codec.replace("+", "_").replace(".", "_"): codec for codec in sorted(codecs.CODECS | {"cloudpickle"})}
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", outputs=tuple(outputs))
    await until(lambda: "run-1" in node.runs)
    await node.finish("run-1", **{name: (codec, pickled) for name, codec in outputs.items()})
    _, view = await cluster.follow("run-1")

    assert view.status is RunStatus.OK
    assert [bool(ref.error) for ref in view.outputs] == [True] * len(outputs)
    assert not list((cluster.folder / "runs" / "run-1").glob("output-*"))
    assert (await cluster.call("GET", "/v1/runs/run-1/outputs/npy")).status_code == 400


async def test_an_interrupt_reaches_the_node(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """Ctrl-C goes through, and the run ends as interrupted."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    await cluster.call("POST", "/v1/runs/run-1/interrupt")
    _, view = await cluster.follow("run-1")

    assert view.status is RunStatus.INTERRUPTED


async def test_output_beyond_the_bound_goes_to_a_file_and_the_log_says_where(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """The log stays small, nothing is lost, and an error after the flood is still seen."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1", output_limit_bytes=5_000)
    await until(lambda: "run-1" in node.runs)
    whole = [f"line {n:04d}\n" for n in range(500)]
    for line in whole:
        await node.say("run-1", line)
    await node.say("run-1", "a result", "execute_result")
    await node.finish("run-1")
    messages, view = await cluster.follow("run-1")
    kept, spilled = text_of(messages), (cluster.folder / "runs/run-1/output.txt").read_text()

    assert kept + spilled == "".join(whole)
    assert len(kept) < 5_000
    (notice,) = [message for message in messages if message.msg_type == "truncated"]
    assert notice.content["path"] == view.spill_path == str(cluster.folder / "runs/run-1/output.txt")
    assert messages[-1].msg_type == "execute_result"


async def test_a_node_cannot_speak_about_the_runs_of_another(
    cluster: ClusterUnderTest, node: FakeNode, tmp_path: object
) -> None:
    """Output for a foreign run is dropped."""
    async with FakeNode(node.path.parent) as liar:
        await cluster.attach(str(node.path))
        await cluster.attach(str(liar.path), "lease-2")
        await cluster.submit("run-1")
        await until(lambda: "run-1" in node.runs)
        await until(lambda: liar.orders)
        liar.runs["run-1"] = node.runs["run-1"]
        await liar.say("run-1", "forged")
        await liar.finish("run-1", "error")
        node.runs["run-1"].messages.clear()
        node.runs["run-1"].status = "running"
        await node.say("run-1", "true")
        await node.finish("run-1")
        messages, view = await cluster.follow("run-1")

    assert text_of(messages) == "true"
    assert view.status is RunStatus.OK


async def test_messages_that_are_not_sound_are_left_out_without_a_gap(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """NaN, duplicate keys, endless depth, unknown types: skipped, and the rest is numbered without gaps."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    for content in (
        b'{"text": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"[1]",
        b"\xff",
        b'{"text": "\\ud800"}',
        b'{"n": 99999999999999999999}',
    ):
        await node.emit("run-1", "stream", content)
    await node.emit("run-1", "comm_open", b"{}")
    await node.say("run-1", "sound")
    await node.finish("run-1")
    messages, _ = await cluster.follow("run-1")

    assert [message.content["text"] for message in messages] == ["sound"]


async def test_the_nodes_view_tells_link_phase_and_sessions(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """What doors show of a node."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    (view,) = await cluster.get("/v1/nodes", list[NodeView])

    assert (view.link, view.phase, view.sessions) == ("up", "ready", ("main",))
    assert [step.name for step in view.steps] == ["python"]
    log = await cluster.call("GET", "/v1/nodes/lease-1/log")
    assert "the agent's log" in log.text


async def test_measurements_that_are_no_numbers_do_not_blind_the_view(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """NaN and infinity from a node's meters become zero: doors can still read the view."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    gpu = wire.GpuReport(
        index=0, name="x" * 5000, use_percent=float("nan"), memory_used_gib=float("inf"), memory_total_gib=1.0
    )
    await node.peer.send(
        wire.UseReport(
            at_ms=-(2**62),
            cpu_percent=float("nan"),
            memory_used_gib=float("-inf"),
            memory_total_gib=1.0,
            disk_free_gib=1.0,
            gpus=(gpu,) * 200,
        )
    )
    async with asyncio.timeout(10):
        while (view := (await cluster.get("/v1/nodes", list[NodeView]))[0]).use is None:
            await asyncio.sleep(0.05)

    assert view.use.cpu_percent == 0.0
    assert len(view.use.gpus) <= 64


async def test_the_broker_hears_of_traffic_when_it_has_become_much_more(
    cluster: ClusterUnderTest, node: FakeNode, broker: FakeBroker
) -> None:
    """A fact for the first 70 MB, none for one byte more, the next at twice as much."""
    await cluster.attach(str(node.path))
    await until(lambda: node.orders)
    for received in (70 * 10**6, 70 * 10**6 + 1, 140 * 10**6):
        await node.peer.send(
            wire.UseReport(
                at_ms=1,
                cpu_percent=0,
                memory_used_gib=0,
                memory_total_gib=1,
                disk_free_gib=1,
                received_bytes=received,
                sent_bytes=5,
            )
        )
    await until(lambda: broker.kinds().count("NodeTraffic") >= 2)

    told = [(fact.received_bytes, fact.sent_bytes) for fact in broker.facts if isinstance(fact, NodeTraffic)]
    assert told == [(70 * 10**6, 5), (140 * 10**6, 5)]


async def test_a_restart_that_is_asked_for_again_is_one(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """A door repeats a call whose answer was lost: what runs in the session since then must not be ended by it."""
    await cluster.attach(str(node.path))
    restart = "/v1/nodes/lease-1/sessions/main/restart"
    for asked in ("?asked=1", "?asked=1", "?asked=2", ""):
        assert (await cluster.call("POST", restart + asked)).status_code == 202
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)

    assert [order.session for order in node.orders if isinstance(order, wire.RestartSession)] == ["main"] * 3
