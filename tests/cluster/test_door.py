"""The HTTP door and the process around it: who may ask, what is refused, what it holds, how it ends."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_gpumarket.api import ClusterInfo
from jupyter_gpumarket.cluster.environment import scrubbed
from jupyter_gpumarket.cluster.routes import ROUTES
from jupyter_gpumarket.config import write_private

from .conftest import ClusterUnderTest, FakeBroker, until
from .fake_node import FakeNode

METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")


async def test_every_route_refuses_a_caller_without_the_token(cluster: ClusterUnderTest) -> None:
    """No route, known or not, answers a wrong or missing token with anything but 401."""
    paths = [path.replace("([^/]+)", "x") for path, _ in ROUTES] + ["/", "/v2/nothing"]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": cluster.address["token"]}):
        for path in paths:
            for method in METHODS:
                reply = await cluster.http.request(method, cluster.address["url"] + path, headers=headers)
                assert reply.status_code in (401, 405), (method, path, reply.status_code)
                assert "cluster-1" not in reply.text


async def test_a_foreign_host_name_is_refused_even_with_the_token(cluster: ClusterUnderTest) -> None:
    """DNS rebinding: a page's own name, pointed at loopback, gets nothing."""
    headers = {"Authorization": f"Bearer {cluster.address['token']}", "Host": "evil.example:80"}
    reply = await cluster.http.get(cluster.address["url"] + "/v1/health", headers=headers)

    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (("POST", "/v1/runs", {"run_id": "r", "lease_id": "l", "code": "", "colour": 1}), "colour"),
        (("POST", "/v1/runs", {"run_id": "r", "lease_id": "l", "code": 5}), "code"),
        (("POST", "/v1/runs", {"run_id": "r", "lease_id": "l"}), "code"),
        (("POST", "/v1/runs", {"run_id": "../r", "lease_id": "lease-1", "code": ""}), "run_id"),
        (("POST", "/v1/runs", {"run_id": "r", "lease_id": "nobody", "code": ""}), "lease_id"),
        (("POST", "/v1/nodes/l/detach", {"hurry": True}), "hurry"),
        (("PUT", "/v1/nodes/l", {"lease_id": "l"}), "name"),
        (("PUT", "/v1/blobs/zzz", None), "sha256"),
    ],
)
async def test_a_wrong_field_is_a_400_that_names_it(
    cluster: ClusterUnderTest, node: FakeNode, request_: tuple[str, str, Any], field: str
) -> None:
    """Schemas at the edge: the answer says which field was wrong."""
    method, path, body = request_
    await cluster.attach(str(node.path))
    reply = await cluster.call(method, path, body, content=b"x" if body is None else None)

    assert reply.status_code == 400
    assert reply.json()["field"] == field
    assert reply.json()["error"] == "BadRequest"


@pytest.mark.parametrize("query", ["after=x", "after=-1", "wait_s=nan", "wait_s=inf"])
async def test_a_wrong_number_in_the_query_is_refused(cluster: ClusterUnderTest, node: FakeNode, query: str) -> None:
    """Also the query string is checked."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    reply = await cluster.call("GET", f"/v1/runs/run-1/messages?{query}")

    assert reply.status_code == 400


async def test_the_address_file_is_private_and_gone_after_the_end(cluster: ClusterUnderTest) -> None:
    """cluster.json holds the token: 0600, and removed by a clean end."""
    file = cluster.folder / "cluster.json"
    info = await cluster.get("/v1/health", ClusterInfo)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert info.pid == cluster.pid
    assert cluster.terminate() == 0
    assert not file.exists()


async def test_a_second_process_in_the_same_folder_ends_at_once(cluster: ClusterUnderTest) -> None:
    """One process for each folder."""
    second = ClusterUnderTest(cluster.folder)
    address = (cluster.folder / "cluster.json").read_bytes()
    with pytest.raises(AssertionError, match="another cluster process"):
        await second.start()
    await second.http.aclose()
    (cluster.folder / "cluster.json").write_bytes(address)

    assert (await cluster.call("GET", "/v1/health")).status_code == 200


CANARIES = {
    "JUPYTER_GPUMARKET_POOL_KEY": "canary-pool-5550001",
    "JUPYTER_GPUMARKET_VAST_KEY": "canary-vast-5550002",
    "RUNPOD_API_KEY": "canary-runpod-5550003",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-5550004",
    "SSH_AUTH_SOCK": "/tmp/canary-agent-5550005",
    "JUPYTER_TOKEN": "canary-token-5550006",
}


async def test_no_key_of_the_user_reaches_the_process(folder: Path, broker: FakeBroker, node: FakeNode) -> None:
    """Canaries in the environment are in no place of the process where one can look, over a whole run."""
    cluster = ClusterUnderTest(folder)
    await cluster.start(**CANARIES)
    try:
        await cluster.attach(str(node.path))
        await cluster.submit("run-1")
        await until(lambda: "run-1" in node.runs)
        await node.finish("run-1")
        await cluster.follow("run-1")
        process = Path(f"/proc/{cluster.pid}")
        seen = (process / "environ").read_bytes() + (process / "cmdline").read_bytes() + memory_of(cluster.pid)
    finally:
        cluster.terminate()
        await cluster.http.aclose()
    for path in folder.rglob("*"):
        if path.is_file():
            seen += path.read_bytes()

    assert b"canary-" not in seen.replace(b"canary-key", b"")


def memory_of(pid: int) -> bytes:
    """Every writable page of a process, where the system lets us read it."""
    pieces = []
    try:
        with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
            for line in maps:
                span, mode = line.split()[:2]
                if mode.startswith("rw"):
                    start, end = (int(part, 16) for part in span.split("-"))
                    memory.seek(start)
                    pieces.append(memory.read(end - start))
    except OSError:
        pass
    return b"".join(pieces)


def test_the_environment_is_an_allow_list() -> None:
    """A key by any name is left out, not only the names we know."""
    kept = scrubbed({**CANARIES, "PATH": "/bin", "LC_ALL": "C", "SOME_NEW_SECRET": "x", "PYTHONPATH": "/src"})

    assert kept == {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/src"}


async def test_it_ends_by_itself_when_it_has_no_node(folder: Path, broker: FakeBroker, node: FakeNode) -> None:
    """Without a node for the agreed time, the process ends; with one, it stays."""
    write_private(folder / "start.json", json.dumps({"cluster_id": "cluster-1", "idle_stop_s": 1.0}).encode())
    cluster = ClusterUnderTest(folder)
    await cluster.start()
    await cluster.attach(str(node.path))
    await asyncio.sleep(2.5)
    assert cluster.process is not None
    assert cluster.process.poll() is None
    await cluster.call("POST", "/v1/nodes/lease-1/detach", {})
    await until(lambda: cluster.process.poll() is not None, 10)
    await cluster.http.aclose()

    assert cluster.process.returncode == 0


async def test_it_ends_within_seconds_while_a_cell_runs_and_leaves_the_agent_alone(
    cluster: ClusterUnderTest, node: FakeNode
) -> None:
    """SIGTERM: clean and quick, even with doors waiting; the node is told nothing, and goes on."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    waiting = asyncio.create_task(cluster.batch("run-1", 0, 30))
    await asyncio.sleep(0.2)

    assert await asyncio.to_thread(cluster.terminate, 5.0) == 0
    with pytest.raises(httpx.HTTPError):
        await waiting
    assert "Shutdown" not in [type(order).__name__ for order in node.orders]
    assert node.runs["run-1"].status == "running"


async def test_a_waiting_door_gets_news_at_once(cluster: ClusterUnderTest, node: FakeNode) -> None:
    """Long polling: the answer comes with the message, not with the time-out."""
    await cluster.attach(str(node.path))
    await cluster.submit("run-1")
    await until(lambda: "run-1" in node.runs)
    await until(lambda: node.runs["run-1"].tailed)
    waiting = asyncio.create_task(cluster.batch("run-1", 0, 30))
    await asyncio.sleep(0.2)
    await node.say("run-1", "now")
    async with asyncio.timeout(5):
        batch = await waiting
        while not batch.messages:
            batch = await cluster.batch("run-1", 0, 30)

    assert batch.messages[0].content["text"] == "now"
