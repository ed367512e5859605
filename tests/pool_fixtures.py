"""A real pool for tests: a registry and hosts as processes of their own on loopback, in a short temporary folder.

`pool` has one registry and two hosts; `start_pool` makes others. Everything is stopped by pid at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from jupyter_gpumarket.config import Folders, Secret, Settings, folders
from jupyter_gpumarket.marketplaces.pool import PoolMarketplace, PoolOptions

ROOT = Path(__file__).parent.parent
START_S = 30.0
TOLD_OF_A_LOG = 6000
# Of this test process; a test that fails tells what their processes have said.
RUNNING: list[RunningPool] = []


class Process:
    """One process of a pool: `start` it, `kill` it (-9), `stop` it (SIGTERM), start it again."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.arguments = arguments
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_GPUMARKET_", "GPUMARKET_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # However the tests end, the closing of this pipe ends the process too.
                [sys.executable, "-m", "jupyter_gpumarket.pool", *self.arguments, "--until-stdin-ends"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, what: int) -> None:
        os.kill(self.pid, what)

    def kill(self) -> None:
        """As a crash: SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self._close()

    def stop(self, timeout_s: float = 30.0) -> int:
        """In order: SIGTERM, and SIGKILL if that takes too long. The exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()
        return self.process.wait()

    def _close(self) -> None:
        assert self.process is not None
        if self.process.stdin is not None:
            self.process.stdin.close()

    def logged(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


class RunningPool:
    """A pool at work, and a user's folders that are set up to rent from it.

    Attributes:
        home: what JUPYTER_GPUMARKET_HOME must be for processes that shall rent here (also in `environment`).
        folders, settings: the same as objects, ready for `marketplaces.registry.build(pool.settings, pool.folders)`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Process] = []
        self.registry: Process | None = None
        self.url = ""
        self.user_token = ""
        self.join_token = ""
        self.ca_file = ""
        self.home = folder / "home"
        RUNNING.append(self)

    # setting up

    def start_registry(self, *more: str) -> None:
        """Start the registry (again, after it was killed) and wait until it answers."""
        if self.registry is None:
            arguments = ["registry", "--folder", str(self.folder / "r"), "--heartbeat", "0.5", *more]
            self.registry = Process(arguments, self.folder / "registry.log")
        self.registry.start()
        self.wait_until(self._registry_answers, "the registry answers")
        self._set_up_user()

    def add_host(self, *more: str, price: str = "0.35", wait: bool = True) -> Process:
        """Start another host and wait until its offer is listed."""
        number = len(self.hosts)
        pin = ["--ca-file", self.ca_file] if self.ca_file else []
        arguments = ["host", "--registry", self.url, "--token-file", str(self.folder / "r" / "join.token"), *pin]
        arguments += ["--folder", str(self.folder / f"h{number}"), "--name", f"host-{number}", "--region", "eu-lab"]
        arguments += ["--price", price, *more]
        host = Process(arguments, self.folder / f"h{number}.log")
        self.hosts.append(host)
        listed = len(self.offer_ids())
        host.start()
        if wait:
            self.wait_until(lambda: len(self.offer_ids()) > listed, f"host {number} is listed")
        return host

    def host_folder(self, number: int) -> Path:
        return self.folder / f"h{number}"

    # using it

    @property
    def environment(self) -> dict[str, str]:
        """For processes that shall rent here."""
        return {**os.environ, "JUPYTER_GPUMARKET_HOME": str(self.home)}

    @property
    def folders(self) -> Folders:
        return folders({"JUPYTER_GPUMARKET_HOME": str(self.home)})

    @property
    def settings(self) -> Settings:
        options = {"url": self.url, **({"ca_file": self.ca_file} if self.ca_file else {})}
        return Settings(ask=False, marketplaces={"pool": options})

    def marketplace(self, token: str | None = None) -> PoolMarketplace:
        """A new adapter; close it with `aclose()`."""
        return PoolMarketplace(PoolOptions(url=self.url, ca_file=self.ca_file), Secret(token or self.user_token))

    def api(self, method: str, path: str, body: Any = None, token: str | None = None) -> httpx.Response:
        """A raw call to the registry."""
        token = self.user_token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        verify = self._tls()
        with httpx.Client(base_url=self.url, trust_env=False, verify=verify, timeout=10) as client:
            content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
            return client.request(method, path, content=content, headers=headers)

    def offer_ids(self) -> list[str]:
        return [offer["offer_id"] for offer in self.api("GET", "/v1/offers").json()["offers"]]

    def wait_until(self, holds: Callable[[], Any], what: str, timeout_s: float = START_S) -> Any:
        """Poll until something holds; its value. Fails with the processes' logs."""
        until = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError, KeyError):
                if value := holds():
                    return value
            if time.monotonic() > until:
                logs = "\n".join(f"── {file.name}\n{file.read_text()}" for file in sorted(self.folder.glob("*.log")))
                pytest.fail(f"not within {timeout_s} s: {what}\n{logs}")
            time.sleep(0.05)

    def give_all_back(self) -> None:
        """End every rental that a test has left, so that the next one finds the pool as if it were the first."""

        def empty() -> bool:
            rentals = self.api("GET", "/v1/rentals").json()["rentals"]
            for rental in rentals:
                self.api("DELETE", f"/v1/rentals/{rental['rental_id']}")
            return not rentals

        self.wait_until(empty, "nothing is rented")

    def stop(self) -> None:
        """Stop everything that was started."""
        for process in [*self.hosts, self.registry]:
            if process is not None and process.process is not None:
                process.stop()
        with contextlib.suppress(ValueError):
            RUNNING.remove(self)

    def logs(self) -> Iterator[tuple[str, str]]:
        """Name and end of each log: of the pool, the broker, the cluster processes, and what runs on the nodes."""
        # Folders of leases go while it is looked.
        with contextlib.suppress(OSError):
            for file in sorted(file for file in self.folder.rglob("*.log") if _is_told(file)):
                yield str(file.relative_to(self.folder)), file.read_text("utf-8", "replace")[-TOLD_OF_A_LOG:]

    # inside

    def _tls(self) -> Any:
        from jupyter_gpumarket.marketplaces.http import usual_tls
        from jupyter_gpumarket.marketplaces.pool import pinned

        return pinned(PoolOptions(url=self.url, ca_file=self.ca_file)) or usual_tls()

    def _registry_answers(self) -> bool:
        assert self.registry is not None
        told = json.loads((self.folder / "r" / "registry.json").read_text())
        if told["pid"] != self.registry.pid:
            return False
        self.url, self.user_token, self.join_token = told["url"], told["user_token"], told["join_token"]
        self.ca_file = told["ca_file"]
        return self.api("GET", "/v1/health").status_code == 200

    def _set_up_user(self) -> None:
        where = self.folders
        options = f'url = "{self.url}"\n' + (f'ca_file = "{self.ca_file}"\n' if self.ca_file else "")
        where.settings_file.write_text(f"ask = false\n\n[marketplaces.pool]\n{options}")
        key = where.configuration / "pool.key"
        key.write_text(self.user_token)
        key.chmod(0o600)


def _is_told(file: Path) -> bool:
    """Whether it is a log of words; those of runs and maps are of messages."""
    return file.is_file() and not file.stem.isdigit() and file.stem != "outcomes"


@pytest.fixture
def start_pool() -> Iterator[Callable[..., RunningPool]]:
    """Start pools: `start_pool(hosts=2, registry=("--lost-after", "2"))`."""
    with pools() as start:
        yield start


@contextlib.contextmanager
def pools() -> Iterator[Callable[..., RunningPool]]:
    """The same for fixtures of a wider scope."""
    # Short, because sockets of leases live below it and their paths are limited to about 100 characters.
    top = Path(tempfile.mkdtemp(prefix="gp", dir="/tmp"))
    running: list[RunningPool] = []

    def start(hosts: int = 1, registry: tuple[str, ...] = (), host: tuple[str, ...] = ()) -> RunningPool:
        folder = top / str(len(running))
        folder.mkdir()
        pool = RunningPool(folder)
        running.append(pool)
        pool.start_registry(*registry)
        for _ in range(hosts):
            pool.add_host(*host)
        return pool

    try:
        yield start
    finally:
        for pool in running:
            pool.stop()
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def pool(start_pool: Callable[..., RunningPool]) -> RunningPool:
    """A registry and two hosts on this machine, and a user set up to rent from them."""
    return start_pool(hosts=2)
