"""A real Jupyter server with the extension, for tests: its own folders, its own port, ended for sure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_gpumarket.config import Folders, folders
from jupyter_gpumarket.server.events import schema_id
from tests.broker.running import until

TOKEN = "the-servers-token-f3a9"
START_S = 60.0
PATIENCE_S = 90.0
ROOT = Path(__file__).parents[2]
LABEXTENSION = ("dask_labextension", "jupyter_server_proxy")
BASE = "/lab-42/"  # never the root, as behind JupyterHub


@dataclass
class Server:
    """A running server and ways to ask it."""

    url: str
    home: Path
    root: Path
    log: Path
    process: subprocess.Popen[bytes]

    def door(self, **headers: str) -> httpx.Client:
        """A client with the server's token, or with the headers that are given instead."""
        headers = headers or {"Authorization": f"token {TOKEN}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)

    @property
    def asking(self) -> dict[str, Any]:
        """What an `httpx.AsyncClient` needs to ask with the server's token."""
        headers = {"Authorization": f"token {TOKEN}"}
        return {"base_url": self.url, "headers": headers, "trust_env": False, "timeout": 60}

    @contextlib.contextmanager
    def browser(self) -> Iterator[httpx.Client]:
        """A client that logged in by cookie, as a page does."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            client.get("/login").raise_for_status()  # brings the XSRF cookie
            client.get("/api/status", params={"token": TOKEN}).raise_for_status()
            yield client

    def told(self, name: str) -> Any:
        """What the server wrote about itself."""
        return json.loads((self.root / f"{name}.json").read_text())

    async def events(self) -> WebSocketClientConnection:
        """Subscribed to the event bus."""
        address = self.url.replace("http://", "ws://") + "/api/events/subscribe"
        return await websocket_connect(HTTPRequest(address, headers={"Authorization": f"token {TOKEN}"}))

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(30)


class Told:
    """What has arrived on the event bus; `until` reads on until something fits."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self.all: list[dict[str, Any]] = []

    async def until(self, topic: str, *, after: int = 0, **facts: Any) -> dict[str, Any]:
        """The first notice of this topic with these facts, among all that came, or those after the first `after`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for notice in self.all[after:]:
                    after += 1
                    if notice["schema_id"] == schema_id(topic) and facts.items() <= notice.items():
                        return notice
                text = await self._socket.read_message()
                assert text is not None, "the event bus closed"
                self.all.append(json.loads(text))

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()


def folders_of(server: Server) -> Folders:
    """The folders that the server's extension uses."""
    return folders({"JUPYTER_GPUMARKET_HOME": str(server.home)})


async def get(door: httpx.AsyncClient, path: str) -> tuple[int, dict[str, Any]]:
    """Status and content."""
    reply = await door.get(f"/gpumarket{path}")
    return reply.status_code, reply.json()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def server_in(
    folder: Path, home: Path, *options: str, extension: bool = True, beside: tuple[str, ...] = ()
) -> Iterator[Server]:
    """A server whose extension uses the broker of `home`; `beside` names other extensions that it has."""
    own = {name: folder / name for name in ("config", "runtime", "data", "ipython", "root")}
    for path in own.values():
        path.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GPUMARKET", "JPY"))}
    environment |= {f"JUPYTER_{n.upper()}_DIR": str(own[n]) for n in ("config", "runtime", "data")}
    environment |= {"IPYTHONDIR": str(own["ipython"]), "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    environment |= {"DASK_CONFIG": str(own["config"])}  # where dask-labextension writes its defaults
    others = ("ipyparallel", "jupyterlab", "jupyter_lsp", "notebook_shim", "jupyter_server_terminals", *LABEXTENSION)
    enabled = {"jupyter_gpumarket": extension} | dict.fromkeys(others, False) | dict.fromkeys(beside, True)
    (own["config"] / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": enabled}, "IdentityProvider": {"token": TOKEN}})
    )
    port = free_port()
    argv = [sys.executable, "-m", "tests.server.told_server", "--no-browser", "--allow-root", f"--port={port}"]
    argv += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={own['root']}"]
    argv += [f"--ServerApp.base_url={BASE}", f"--GpuMarketApp.home={home}", *options]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=ROOT)
    server = Server(f"http://127.0.0.1:{port}{BASE.rstrip('/')}", home, own["root"], log, process)
    try:
        until("the Jupyter server answers", lambda: _answers(server), START_S)
        yield server
    except BaseException:
        sys.stderr.write(log.read_text("utf-8", "replace")[-8000:])
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text("utf-8", "replace")
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{server.url}/api", trust_env=False, timeout=5).status_code == 200
    time.sleep(0.1)
    return False
