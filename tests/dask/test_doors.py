"""A cluster through the doors of Dask's users: dask-labextension, the dashboard through the Jupyter server, the object.

One pool of two hosts, one Jupyter server with dask-labextension beside our extension, and one trusted cluster, which
the labextension itself has made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import httpx
import msgspec
import pytest
import pytest_asyncio
from distributed import Client, Security
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_gpumarket.api import Aim, ClusterView
from jupyter_gpumarket.client import AsyncClient
from jupyter_gpumarket.errors import BadRequest
from tests.broker.running import end_processes
from tests.lab.running import chromium
from tests.pool_fixtures import RunningPool
from tests.server.running import BASE, LABEXTENSION, TOKEN, Server, server_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
PATIENCE_S = 90.0
FACTORY = {"n": 1, "gpu": "none", "budget": "2", "hours": 0.5, "trust": True, "nthreads": 1}


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    """Two hosts."""
    top = Path(tempfile.mkdtemp(prefix="gpo", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        for _ in range(2):
            pool.add_host()
        yield pool
    finally:
        end_processes(pool.folders)
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="module")
def server(pool: RunningPool) -> Iterator[Server]:
    """The Jupyter server; dask-labextension is set up as its documentation and ours say."""
    factory = {
        "MODULE": "jupyter_gpumarket",
        "CLASS": "GPUCluster",
        "KWARGS": json.dumps(FACTORY).replace("true", "True"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in factory.items():
            patch.setenv(f"DASK_LABEXTENSION__FACTORY__{name}", value)
        with server_in(pool.folder / "server", pool.home, beside=LABEXTENSION) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the server with its token."""
    async with httpx.AsyncClient(**{**server.asking, "timeout": PATIENCE_S}) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(pool: RunningPool, server: Server) -> AsyncIterator[AsyncClient]:
    """The same broker as the server's."""
    async with AsyncClient(pool.folders, timeout_s=60) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(door: httpx.AsyncClient, broker: AsyncClient) -> dict[str, Any]:
    """The cluster as dask-labextension has made it, with its name as ours."""
    reply = await door.put("/dask/clusters")
    assert reply.status_code == 200, reply.text
    (view,) = await broker.clusters()
    return {**reply.json(), "own_name": view.name}


async def until(holds: Callable[[ClusterView], bool], broker: AsyncClient, name: str, what: str) -> ClusterView:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        view = await broker.cluster_view(name)
        if holds(view):
            return view
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:g} s: {what}\n{view}"
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def client_of(broker: AsyncClient, name: str) -> AsyncIterator[Client]:
    """A Dask client on this side: the nodes are our own."""
    view = await broker.cluster_view(name)
    cluster = await broker.cluster(view.leases[0].lease_id)
    access = await cluster.dask_access()
    await cluster.aclose()
    security = Security(
        tls_ca_file=access.ca, tls_client_cert=access.cert, tls_client_key=access.key, require_encryption=True
    )
    async with Client(access.address, security=security, asynchronous=True) as client:
        yield client


def hostile_pages(dask_scheduler: Any = None) -> None:
    """Adds pages to the scheduler's own server: one that tells what it was sent, and some that try to do harm."""
    import json

    from tornado import web

    class Told(web.RequestHandler):
        def get(self) -> None:
            told = {"headers": dict(self.request.headers), "address": self.request.uri}
            self.set_header("Content-Type", "application/json")
            self.set_header("Set-Cookie", "_xsrf=mine; Path=/")
            self.set_header("Content-Security-Policy", "frame-ancestors *")
            self.set_header("Access-Control-Allow-Origin", "*")
            self.set_header("Clear-Site-Data", '"cookies"')
            self.set_header("Service-Worker-Allowed", "/")
            self.finish(json.dumps(told))

    class Away(web.RequestHandler):
        def get(self) -> None:
            self.set_status(302)
            self.set_header("Location", self.get_argument("to"))

    dask_scheduler.http_application.add_handlers(".*", [(r"/told", Told), (r"/away", Away)])
    # Asked before the dashboard's own pages.
    rules = dask_scheduler.http_application.default_router.rules
    rules.insert(0, rules.pop())


async def test_the_labextension_makes_a_cluster_and_lists_it(
    door: httpx.AsyncClient, made: dict[str, Any], broker: AsyncClient
) -> None:
    """PUT /dask/clusters gives a model with workers, cores, memory and an address; GET lists the same one."""
    listed = (await door.get("/dask/clusters")).json()

    assert [one["id"] for one in listed] == [made["id"]]
    assert (made["workers"], made["cores"]) == (1, 1)
    assert made["scheduler_address"].startswith("tls://127.0.0.1:")
    assert (await broker.cluster_view(made["own_name"])).wish.budget_nusd == 2 * 10**9


async def test_the_labextension_shows_the_dashboard_by_its_own_way(
    door: httpx.AsyncClient, made: dict[str, Any]
) -> None:
    """/dask/dashboard/{id} leads to the scheduler's pages."""
    reply = await door.get(f"/dask/dashboard/{made['id']}/individual-plots.json")

    assert reply.status_code == 200
    assert any("progress" in path for path in reply.json().values())


async def test_without_a_budget_the_labextension_rents_nothing() -> None:
    """A factory without a budget is no consent: it is refused, and says what is missing."""
    from dask_labextension.manager import make_cluster

    without = {key: value for key, value in FACTORY.items() if key != "budget"}
    factory = {"module": "jupyter_gpumarket", "class": "GPUCluster", "args": [], "kwargs": without}
    with dask.config.set({"labextension.factory": factory}), pytest.raises(BadRequest, match=r"labextension\.factory"):
        await make_cluster({})


async def test_the_dashboard_comes_through_the_jupyter_server(door: httpx.AsyncClient, made: dict[str, Any]) -> None:
    """Its pages, its scripts and its lists are served below the server's base address, and lead nowhere else."""
    top = f"/gpumarket/clusters/{made['own_name']}/dashboard"
    first = await door.get(top)
    assert first.headers["location"] == f"{BASE.rstrip('/')}{top}/status"
    page = await door.get(f"{top}/status")
    assert page.status_code == 200, page.text
    assert page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    scripts = re.findall(r'src="([^"]+\.js[^"]*)"', page.text)
    assert scripts
    for script in scripts:
        assert not script.startswith(("/", "http")), "an address that leaves the dashboard"
        reply = await door.get(f"{top}/{script}")
        assert reply.status_code == 200
        assert "javascript" in reply.headers["content-type"]


async def test_its_live_page_works_through_the_server(
    server: Server, door: httpx.AsyncClient, made: dict[str, Any]
) -> None:
    """A page's socket is carried both ways: Bokeh greets, and sends its document when it is asked for it."""
    top = f"/gpumarket/clusters/{made['own_name']}/dashboard"
    page = (await door.get(f"{top}/status")).text
    (token,) = set(re.findall(r'"token":"([^"]+)"', page))
    socket = await socket_to(server, f"{top}/status/ws", token, Authorization=f"token {TOKEN}")
    greeting = [await socket.read_message() for _ in range(3)]
    assert json.loads(str(greeting[0]))["msgtype"] == "ACK"
    for part in ('{"msgid":"1","msgtype":"PULL-DOC-REQ"}', "{}", "{}"):
        await socket.write_message(part)
    kinds: set[str] = set()
    async with asyncio.timeout(PATIENCE_S):
        while "PULL-DOC-REPLY" not in kinds:  # between changes of the live page
            part = await socket.read_message()
            assert part is not None, "the socket was closed"
            kinds.update(re.findall(r'"msgtype":\s*"([A-Z-]+)"', part if isinstance(part, str) else ""))
    socket.close()


@pytest.mark.browser
async def test_a_browser_shows_the_live_page(server: Server, made: dict[str, Any]) -> None:
    """Chromium draws the dashboard below the server's base address, and its socket goes on telling news."""

    def look() -> tuple[int, list[str]]:
        with chromium() as browser:
            page, frames, problems = browser.new_context().new_page(), [], []

            def note(frame: Any) -> None:
                frames.append(frame)

            page.on("websocket", lambda one: one.on("framereceived", note))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(f"{server.url}/gpumarket/clusters/{made['own_name']}/dashboard/status?token={TOKEN}")
            page.wait_for_function("window.Bokeh && window.Bokeh.documents.length > 0", timeout=60_000)
            page.wait_for_selector("canvas", state="attached", timeout=60_000)
            before = len(frames)
            deadline = time.monotonic() + PATIENCE_S
            while len(frames) < before + 3 and time.monotonic() < deadline:
                page.wait_for_timeout(100)
            if pictures := os.environ.get("GPUMARKET_PICTURES"):
                page.screenshot(path=f"{pictures}/dashboard.png")
            return len(frames) - before, problems

    news, problems = await asyncio.to_thread(look)

    assert news >= 3
    assert problems == []


async def socket_to(server: Server, path: str, token: str, **headers: str) -> WebSocketClientConnection:
    """A page's socket."""
    address = server.url.replace("http://", "ws://") + path
    return await websocket_connect(HTTPRequest(address, headers=headers), subprotocols=["bokeh", token])


async def test_nothing_of_jupyter_goes_to_the_node_and_nothing_of_its_policy_comes_back(
    server: Server, made: dict[str, Any], broker: AsyncClient
) -> None:
    """Cookies and tokens stay here, in headers and in the address; of the answer's headers only harmless ones come."""
    async with client_of(broker, made["own_name"]) as client:
        hostile_pages.__module__ = "__main__"  # so that it is sent by value: the scheduler has no tests
        await client.run_on_scheduler(hostile_pages)
    top = f"/gpumarket/clusters/{made['own_name']}/dashboard"
    with server.browser() as browser:
        sent = {"Referer": f"{server.url}/lab?token={TOKEN}", "X-XSRFToken": browser.cookies["_xsrf"]}
        reply = await asyncio.to_thread(browser.get, f"{top}/told?a=1&token={TOKEN}", headers=sent)
        secrets = [TOKEN, *browser.cookies.values()]
        away = [
            await asyncio.to_thread(browser.get, f"{top}/away", params={"to": to})
            for to in ("/status", "https://evil.example/", "//evil.example/", "/\\evil.example", "workers?x=1")
        ]
    told = reply.json()
    assert [secret for secret in secrets if secret in reply.text] == []
    assert set(told["headers"]) <= {"Host", "Connection", "Accept", "Accept-Encoding", "User-Agent"}
    assert told["address"] == "/told?a=1"
    assert not {"set-cookie", "clear-site-data", "service-worker-allowed"} & set(reply.headers)
    assert reply.headers.get("access-control-allow-origin") != "*"
    assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
    assert [one.headers.get("location") for one in away] == [
        f"{BASE.rstrip('/')}{top}/status", None, None, None, "workers?x=1"
    ]  # fmt: skip


async def test_a_dashboard_is_shown_to_nobody_else(server: Server, made: dict[str, Any]) -> None:
    """Without token, from a foreign page or as a service worker: no page, no socket."""
    top = f"/gpumarket/clusters/{made['own_name']}/dashboard"
    with server.door(Accept="text/html") as stranger, server.browser() as browser:
        assert (await asyncio.to_thread(stranger.get, f"{top}/status")).status_code == 403
        assert (await asyncio.to_thread(browser.get, f"{top}/status")).status_code == 200
        for headers in ({"Service-Worker": "script"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await asyncio.to_thread(browser.get, f"{top}/status", headers=headers)).status_code == 403
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    for refused in ({}, {"Cookie": cookie, "Origin": "https://evil.example"}):
        with pytest.raises(HTTPClientError, match=r"40[34]"):
            await socket_to(server, f"{top}/status/ws", "t", **refused)


async def test_pages_of_strangers_nodes_are_refused_and_their_facts_are_told(
    door: httpx.AsyncClient, made: dict[str, Any], broker: AsyncClient
) -> None:
    """The same cluster, no longer called trusted: no page of it is let in, and JSON tells workers, tasks, memory."""
    name = made["own_name"]
    view = await broker.cluster_view(name)
    wish = msgspec.structs.replace(view.wish, trusted=False)
    await broker.keep_cluster(name, wish)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (refused := await door.get(f"/gpumarket/clusters/{name}/dashboard/status")).status_code == 200:
            assert time.monotonic() < deadline, "pages are still let in"  # an answer of before counts for a moment
            await asyncio.sleep(0.2)
        told = (await door.get(f"/gpumarket/clusters/{name}")).json()
    finally:
        await broker.keep_cluster(name, view.wish)

    assert refused.status_code == 400
    assert "would act as you" in refused.text
    assert [worker["nthreads"] for worker in told["dask"]["workers"]] == [1]
    assert {"processing", "in_memory", "progress"} <= set(told["dask"]["tasks"])


async def test_the_labextension_scales_adapts_and_closes(
    door: httpx.AsyncClient, made: dict[str, Any], broker: AsyncClient
) -> None:
    """PATCH with a number and with limits change the cluster's aim; DELETE gives its nodes back."""
    here, name = f"/dask/clusters/{made['id']}", made["own_name"]
    assert (await door.patch(here, json={"workers": 2})).status_code == 200
    await until(lambda v: len(v.leases) == 2, broker, name, "a second node is rented")
    adapting = (await door.patch(here, json={"adapt": {"minimum": 1, "maximum": 3}})).json()
    assert adapting["adapt"] == {"minimum": 1, "maximum": 3}
    await until(lambda v: v.wish.aim == Aim(minimum=1, maximum=3), broker, name, "the queue decides")
    assert (await door.delete(here)).status_code == 204
    await until(lambda v: v.is_ended and not v.leases, broker, name, "its nodes are given back")
    assert (await door.get("/dask/clusters")).json() == []
