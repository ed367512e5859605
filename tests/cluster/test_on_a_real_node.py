"""The whole way: cluster process, SSH, a real OpenSSH server, set-up, the agent, a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import InputRef, NodeView, RunView
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.models import RunStatus
from tests.nodes.openssh import Sshd

from .conftest import ROOT, ClusterUnderTest, text_of, until

LEASE = "lease-real"


# Loaded by the interpreter of the cluster process before anything else: no production code knows of it.
WATCH = """
import sys
def watch(event, arguments):
    if event == "pickle.find_class":
        open({marker!r}, "a").write(str(arguments))
    if event == "import" and arguments[0] == "jupyter_gpumarket.cluster.process":
        open({marker!r} + ".watched", "a").close()
sys.addaudithook(watch)
"""


class RealNode:
    """An sshd whose logins get a home folder of their own, and what set-up left there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        settings = (f"SetEnv HOME={self.home} GPUMARKET_PYTHON={sys.executable}",)
        self.sshd = Sshd(folder / "sshd", settings=settings)

    @property
    def folder(self) -> Path:
        return self.home / ".gpumarket" / LEASE

    def agent_pid(self) -> int:
        return int((self.folder / "agent.pid").read_text())

    def cut(self) -> None:
        """End every connection of the server, and none of what the connections had started for good."""
        assert self.sshd.process is not None
        for child in psutil.Process(self.sshd.process.pid).children():
            with contextlib.suppress(psutil.Error):
                child.kill()

    def stop(self) -> None:
        self.sshd.stop()
        marks = (f"GPUMARKET_FOLDER={self.folder}", str(self.folder))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = [*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items())]
                if process.pid != os.getpid() and any(mark in words for words in told for mark in marks):
                    process.kill()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    node = RealNode(tmp_path_factory.mktemp("real"))
    node.sshd.start()
    yield node
    node.stop()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ClusterUnderTest]]:
    """The one process of this module, once it was started."""
    held: dict[str, ClusterUnderTest] = {}
    yield held
    for cluster in held.values():
        cluster.terminate()


@pytest.fixture
async def on_node(
    real: RealNode, process: dict[str, ClusterUnderTest], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ClusterUnderTest]:
    """The cluster process with the real node attached and ready."""
    if not process:
        folder = tmp_path_factory.mktemp("cluster")
        write_private(folder / "start.json", b'{"cluster_id": "cluster-1"}')
        process["cluster"] = ClusterUnderTest(folder, "jupyter_gpumarket.cluster")
        watch = folder.parent / "watch"
        watch.mkdir(exist_ok=True)
        (watch / "sitecustomize.py").write_text(WATCH.format(marker=str(watch / "unpickled")))
        process["cluster"].environment = {"PYTHONPATH": f"{watch}:{ROOT}"}
        await process["cluster"].start()
        await process["cluster"].attach(
            "", LEASE, address=real.sshd.address(host_key=real.sshd.host_key), key_path=str(real.sshd.key_path)
        )
    cluster = process["cluster"]
    await cluster.renew_client()
    await until_up(cluster)
    yield cluster
    await cluster.http.aclose()


async def until_up(cluster: ClusterUnderTest, timeout_s: float = 60.0) -> NodeView:
    async with asyncio.timeout(timeout_s):
        while True:
            (view,) = await cluster.get("/v1/nodes", list[NodeView])
            assert view.link != "refused", view.link_detail
            if view.link == "up" and view.phase == "ready":
                return view
            await asyncio.sleep(0.1)


async def run(cluster: ClusterUnderTest, code: str, **fields: object) -> tuple[str, RunView]:
    run_id = f"run-{os.urandom(4).hex()}"
    await cluster.submit(run_id, code, LEASE, **fields)
    messages, view = await cluster.follow(run_id, 60)
    return text_of(messages), view


async def test_a_cell_prints_and_its_variables_stay(on_node: ClusterUnderTest) -> None:
    """Output comes back, and the next cell finds what the first one left."""
    first, view = await run(on_node, "x = 20\nprint('hello', x)")
    second, _ = await run(on_node, "print(x + 1)")

    assert (first, second, view.status) == ("hello 20\n", "21\n", RunStatus.OK)


async def test_results_displays_and_errors_come_as_messages(on_node: ClusterUnderTest) -> None:
    """A display, a result and a traceback arrive in order, and the run says what failed."""
    await on_node.submit(
        "run-display", "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\n40 + 2", LEASE
    )
    messages, view = await on_node.follow("run-display", 60)
    assert [m.msg_type for m in messages] == ["display_data", "execute_result"]
    assert messages[0].content["data"]["text/html"] == "<b>x</b>"
    assert messages[1].content["data"]["text/plain"] == "42"
    assert view.status is RunStatus.OK

    await on_node.submit("run-error", "print('before')\n1 / 0", LEASE)
    messages, view = await on_node.follow("run-error", 60)
    assert [m.msg_type for m in messages] == ["stream", "error"]
    assert (view.status, view.error_name) == (RunStatus.ERROR, "ZeroDivisionError")
    assert "ZeroDivisionError" in "".join(view.traceback)


async def test_variables_go_in_and_come_out(on_node: ClusterUnderTest) -> None:
    """An array and a function go in; an array comes out checked; what has no codec says why."""
    array = np.arange(500_000, dtype="float64")
    refs = []
    for name, value in (("a", array), ("f", lambda v: v * 2)):
        encoded = codecs.encode_input(value)
        sha256 = hashlib.sha256(encoded.data).hexdigest()
        assert (await on_node.call("PUT", f"/v1/blobs/{sha256}", content=encoded.data)).status_code == 200
        refs.append(InputRef(name=name, codec=encoded.codec, sha256=sha256, size=len(encoded.data)))
    await on_node.submit(
        "run-io", "b = f(a)\nbad = object()", LEASE, inputs=tuple(refs), outputs=("b", "bad", "absent")
    )
    _, view = await on_node.follow("run-io", 60)
    b, bad, absent = view.outputs
    reply = await on_node.call("GET", "/v1/runs/run-io/outputs/b")

    np.testing.assert_array_equal(codecs.decode(b.codec, reply.content), array * 2)
    assert "object" in bad.error
    assert "absent" in absent.error


async def test_a_running_cell_is_interrupted_and_the_session_lives_on(on_node: ClusterUnderTest) -> None:
    """Interrupting ends the cell with KeyboardInterrupt; variables are still there."""
    await run(on_node, "kept = 5")
    await on_node.submit("run-interrupt", "import time\nprint('on', flush=True)\ntime.sleep(60)", LEASE)
    async with asyncio.timeout(30):
        while not (await on_node.batch("run-interrupt", 0, 5)).messages:
            pass
    await on_node.call("POST", "/v1/runs/run-interrupt/interrupt")
    _, view = await on_node.follow("run-interrupt", 30)
    text, _ = await run(on_node, "print(kept)")

    assert view.status is RunStatus.INTERRUPTED
    assert text == "5\n"


async def test_a_time_out_ends_the_cell(on_node: ClusterUnderTest) -> None:
    """A cell that runs longer than agreed ends as timed out."""
    _, view = await run(on_node, "import time\ntime.sleep(60)", timeout_s=1.0)

    assert view.status is RunStatus.TIMED_OUT


async def test_a_restarted_session_begins_anew(on_node: ClusterUnderTest) -> None:
    """After a restart the variables are gone, and a cell that ran has ended."""
    await run(on_node, "gone = 1", session="other")
    await on_node.submit("run-restart", "import time\ntime.sleep(60)", LEASE, session="other")
    async with asyncio.timeout(30):
        while (await on_node.get("/v1/runs/run-restart", RunView)).started_ms is None:
            await asyncio.sleep(0.05)
    reply = await on_node.call("POST", f"/v1/nodes/{LEASE}/sessions/other/restart")
    _, ended = await on_node.follow("run-restart", 60)
    _, after = await run(on_node, "gone", session="other")

    assert reply.json()["delivered"] is True
    assert ended.status not in (RunStatus.OK, RunStatus.RUNNING)
    assert after.error_name == "NameError"


PRINTING = "import time\nfor n in range(300):\n    print('line', n, flush=True)\n    time.sleep(0.01)"
PRINTED = "".join(f"line {n}\n" for n in range(300))


async def test_cutting_ssh_during_a_printing_cell_loses_nothing(on_node: ClusterUnderTest, real: RealNode) -> None:
    """Every connection killed twice, the server away for seconds: all lines, once, in order."""
    await on_node.submit("run-cut", PRINTING, LEASE)
    for _ in range(2):
        await asyncio.sleep(0.8)
        real.cut()
    real.sshd.stop()
    await asyncio.sleep(3)
    real.sshd.start()
    messages, view = await on_node.follow("run-cut", 60)

    assert text_of(messages) == PRINTED
    assert view.status is RunStatus.OK


async def test_kill_nine_of_the_cluster_process_during_a_printing_cell_loses_nothing(
    on_node: ClusterUnderTest,
) -> None:
    """Killed in the middle and started again: all lines, once, in order."""
    await on_node.submit("run-kill", PRINTING, LEASE)
    await asyncio.sleep(1)
    on_node.kill()
    await asyncio.sleep(1)
    await on_node.start()
    messages, view = await on_node.follow("run-kill", 60)

    assert text_of(messages) == PRINTED
    assert view.status is RunStatus.OK


@pytest.mark.slow
async def test_a_black_hole_is_noticed_and_gone_round(on_node: ClusterUnderTest, real: RealNode) -> None:
    """The connection stays open and nothing comes through it: it is dropped after the silence, a new one goes on."""
    await on_node.submit("run-hole", PRINTING, LEASE)
    await asyncio.sleep(0.8)
    assert real.sshd.process is not None
    children = psutil.Process(real.sshd.process.pid).children(recursive=True)
    for child in children:
        child.send_signal(signal.SIGSTOP)
    try:
        messages, view = await on_node.follow("run-hole", 60)
    finally:
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    assert text_of(messages) == PRINTED
    assert view.status is RunStatus.OK


async def test_an_agent_killed_during_a_cell_ends_it_as_lost_and_the_node_works_again(
    on_node: ClusterUnderTest, real: RealNode
) -> None:
    """The agent dies with its kernels: the run is lost with a reason, and set-up brings a new agent."""
    await on_node.submit("run-killed", "import time\nprint('on', flush=True)\ntime.sleep(60)", LEASE)
    async with asyncio.timeout(30):
        while not (await on_node.batch("run-killed", 0, 5)).messages:
            pass
    os.kill(real.agent_pid(), signal.SIGKILL)
    messages, view = await on_node.follow("run-killed", 90)
    assert view.status is RunStatus.LOST
    assert view.reason
    assert text_of(messages) == "on\n"

    await until_up(on_node)
    text, _ = await run(on_node, "print('again')")
    assert text == "again\n"


async def test_a_node_that_is_shut_down_says_so_and_its_outputs_are_saved(
    on_node: ClusterUnderTest, real: RealNode
) -> None:
    """SIGTERM to the agent, as when a container is stopped: the broker hears of it, and declared outputs come over."""
    code = "best = 0\nimport time\nprint('on', flush=True)\nwhile True:\n    best += 1\n    time.sleep(0.01)"
    await on_node.submit("run-leaving", code, LEASE, outputs=("best",))
    async with asyncio.timeout(30):
        while not (await on_node.batch("run-leaving", 0, 5)).messages:
            pass
    os.kill(real.agent_pid(), signal.SIGTERM)
    _, view = await on_node.follow("run-leaving", 30)
    output = await on_node.call("GET", "/v1/runs/run-leaving/outputs/best")
    waiting = (on_node.folder / "facts.jsonl").read_text()

    assert (view.status, view.outputs[0].error) == (RunStatus.INTERRUPTED, "")
    assert "SIGTERM" in view.reason
    assert int(output.content) > 0
    assert '"node_leaving"' in waiting
    async with asyncio.timeout(90):  # until a new agent is there, and the node goes on
        while (await until_up(on_node, 90)).notice is not None:
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_hundred_megabytes_come_through(on_node: ClusterUnderTest) -> None:
    """A real kernel prints 100 MB: bounded log, everything in the file."""
    code = "line = 'x' * 99 + '\\n'\nfor _ in range(1000):\n    print(line * 1000, end='')"
    await on_node.submit("run-flood", code, LEASE, output_limit_bytes=1_000_000)
    messages, view = await on_node.follow("run-flood", 110)

    assert view.status is RunStatus.OK
    assert len(text_of(messages)) + Path(view.spill_path).stat().st_size == 100_000_000


async def test_the_log_of_the_node_can_be_read(on_node: ClusterUnderTest) -> None:
    """Steps of set-up are told, for people who ask why."""
    log = await on_node.call("GET", f"/v1/nodes/{LEASE}/log")

    assert log.status_code == 200
    assert "watchdog" in log.text or "agent" in log.text


async def test_detaching_ends_the_agent_on_the_node(on_node: ClusterUnderTest, real: RealNode) -> None:
    """Given back: no agent and no kernel is left there. (Last: the node is gone afterwards.)"""
    pid = real.agent_pid()
    reply = await on_node.call("POST", f"/v1/nodes/{LEASE}/detach", {"timeout_s": 10.0})

    assert reply.status_code == 200
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert msgspec.json.decode((on_node.folder / "nodes.json").read_bytes()) == []


def test_nothing_was_unpickled_in_the_cluster_process(process: dict[str, ClusterUnderTest]) -> None:
    """Over everything above, with results that were pickles too: the unpickler was never asked for a class."""
    watch = process["cluster"].folder.parent / "watch"

    assert (watch / "unpickled.watched").exists(), "the hook was in place"
    assert not (watch / "unpickled").exists(), (watch / "unpickled").read_text()
