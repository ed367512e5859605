"""A cluster process in a folder, a broker that takes facts, and nodes that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from jupyter_gpumarket.api import AnyFact, Attach, FactBatch, FactReceipt, MessageBatch, RunMessage, RunRequest, RunView
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.models import ENDED_RUNS, NodeAddress

from .fake_node import FakeNode

ROOT = Path(__file__).parents[2]


async def until(true: Callable[[], Any], timeout_s: float = 15.0, what: str = "") -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = true()
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not become true in {timeout_s} s: {what or true}")


class FakeBroker:
    """Takes facts as the real one does: each number once, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: list[AnyFact] = []
        self.batches: list[FactBatch] = []
        self.taken: dict[str, int] = {}
        self.refuses = False
        self._server: HTTPServer | None = None

    def start(self) -> None:
        broker = self

        class Facts(web.RequestHandler):
            def post(self) -> None:
                if broker.refuses or self.request.headers["Authorization"] != f"Bearer {broker.token}":
                    self.set_status(503)
                    return
                batch = msgspec.json.decode(self.request.body, type=FactBatch)
                broker.take(batch)
                self.finish(msgspec.json.encode(FactReceipt(upto=broker.taken[batch.queue])))

        (socket,) = bind_sockets(0, "127.0.0.1")
        self._server = HTTPServer(web.Application([("/v1/facts", Facts)], log_function=lambda _: None))
        self._server.add_sockets([socket])
        self.token = os.urandom(8).hex()
        address = {"url": f"http://127.0.0.1:{socket.getsockname()[1]}", "token": self.token}
        write_private(self.folder / "broker.json", msgspec.json.encode(address))

    def take(self, batch: FactBatch) -> None:
        self.batches.append(batch)
        for number, fact in enumerate(batch.facts, batch.first):
            if number > self.taken.get(batch.queue, 0):
                assert number == self.taken.get(batch.queue, 0) + 1, "a fact is missing"
                self.taken[batch.queue] = number
                self.facts.append(fact)

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()

    def kinds(self) -> list[str]:
        return [type(fact).__name__ for fact in self.facts]


class ClusterUnderTest:
    """The process, and an HTTP client for it."""

    def __init__(self, folder: Path, module: str = "tests.cluster.process_on_fakes") -> None:
        self.folder = folder
        self._module = module
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.http = httpx.AsyncClient(trust_env=False, timeout=70)

    async def renew_client(self) -> None:
        """An HTTP client belongs to one event loop."""
        if not self.http.is_closed:
            await self.http.aclose()
        self.http = httpx.AsyncClient(trust_env=False, timeout=70)

    async def start(self, **environment: str) -> None:
        (self.folder / "cluster.json").unlink(missing_ok=True)
        log = (self.folder / "cluster.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", self._module, "--folder", str(self.folder)],
            cwd=ROOT,
            env=os.environ | self.environment | environment,
            stdout=log,
            stderr=log,
        )
        log.close()
        await until(lambda: (self.folder / "cluster.json").exists() or self.process.poll() is not None, 30)
        assert self.process.poll() is None, (self.folder / "cluster.log").read_text()
        self.address = msgspec.json.decode((self.folder / "cluster.json").read_bytes())

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 10.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(timeout_s)

    async def call(self, method: str, path: str, body: Any = None, content: bytes | None = None) -> httpx.Response:
        if body is not None:
            content = msgspec.json.encode(body)
        headers = {"Authorization": f"Bearer {self.address['token']}"}
        return await self.http.request(method, self.address["url"] + path, content=content, headers=headers)

    async def get(self, path: str, kind: Any) -> Any:
        reply = await self.call("GET", path)
        assert reply.status_code == 200, reply.text
        return msgspec.json.decode(reply.content, type=kind)

    async def attach(self, host: str, lease_id: str = "lease-1", **fields: Any) -> httpx.Response:
        attach = Attach(
            lease_id=lease_id,
            name=fields.pop("name", "calm-otter"),
            address=fields.pop("address", NodeAddress(host=host, port=22, user="root")),
            key_path=fields.pop("key_path", "/nonexistent"),
            deadline_ms=int(time.time() * 1000) + 3_600_000,
            grace_s=900,
            **fields,
        )
        reply = await self.call("PUT", f"/v1/nodes/{lease_id}", attach)
        assert reply.status_code == 200, reply.text
        return reply

    async def submit(self, run_id: str, code: str = "pass", lease_id: str = "lease-1", **fields: Any) -> RunView:
        request = RunRequest(run_id=run_id, lease_id=lease_id, code=code, **fields)
        reply = await self.call("POST", "/v1/runs", request)
        assert reply.status_code == 202, reply.text
        return msgspec.json.decode(reply.content, type=RunView)

    async def batch(self, run_id: str, after: int = 0, wait_s: float = 0) -> MessageBatch:
        return await self.get(f"/v1/runs/{run_id}/messages?after={after}&wait_s={wait_s}", MessageBatch)

    async def follow(
        self, run_id: str, timeout_s: float = 30.0, wait_s: float = 2.0
    ) -> tuple[list[RunMessage], RunView]:
        """Tail a run to its end, as a door does."""
        found: list[RunMessage] = []
        async with asyncio.timeout(timeout_s):
            while True:
                batch = await self.batch(run_id, len(found), wait_s)
                found += batch.messages
                if batch.run.status in ENDED_RUNS and len(found) >= batch.run.messages:
                    assert [message.n for message in found] == list(range(1, len(found) + 1))
                    return found, batch.run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir(mode=0o700)
    write_private(folder / "start.json", b'{"cluster_id": "cluster-1"}')
    return folder


@pytest.fixture
async def broker(folder: Path) -> AsyncIterator[FakeBroker]:
    broker = FakeBroker(folder)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def cluster(folder: Path, broker: FakeBroker) -> AsyncIterator[ClusterUnderTest]:
    """A running cluster process. When the test is over it must still be able to end cleanly."""
    cluster = ClusterUnderTest(folder)
    await cluster.start()
    yield cluster
    assert cluster.process is not None
    if cluster.process.poll() is None:
        exit_code = cluster.terminate()
        assert exit_code == 0, (folder / "cluster.log").read_text()
    await cluster.http.aclose()
    assert not (folder / "unpickled").exists(), "the cluster process unpickled something"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    with contextlib.suppress(asyncio.CancelledError):
        async with FakeNode(tmp_path) as node:
            yield node


def text_of(messages: list[RunMessage]) -> str:
    return "".join(message.content.get("text", "") for message in messages if message.msg_type == "stream")
