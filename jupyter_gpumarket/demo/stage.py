"""The demo's stage: a pool of two hosts on this machine, the settings that point at it, and a clean end.

Whatever happens in between, leaving the stage releases everything, sees the release confirmed, and ends the processes
it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from jupyter_gpumarket.cli.market import lease_table, offer_table, wait_ended
from jupyter_gpumarket.cli.report import print_report
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.config import folders, private_folder, write_private
from jupyter_gpumarket.errors import ConfigError, GpuMarketError

T = TypeVar("T")

START_S = 60.0
RELEASE_S = 60.0
HOSTS = (("atelier", "0.36", "demo-north"), ("workshop", "0.45", "demo-south"))

SETTINGS = """\
# The demo's settings. It runs on this machine alone, so nobody is asked before its pool is used.
ask = false
budget = "1.00"
hours = 1.0
project = "demo"
trust = ["pool"]

[marketplaces.pool]
url = "{url}"
"""


class Stage:
    """A context manager: on entering, a pool is running and configured; on leaving, nothing is rented or running."""

    hosts: tuple[tuple[str, str, str], ...] = HOSTS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.is_clean = False

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop_processes()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.is_clean = self._give_back()
        finally:
            self._stop_processes()

    def _start(self) -> None:
        facts = self._start_pool()
        where = folders()
        write_private(where.settings_file, SETTINGS.format(url=facts["url"]).encode())
        write_private(where.configuration / "pool.key", facts["user_token"].encode())
        with connect(timeout_s=START_S) as client:
            wait_for(lambda: len(client.offers().offers) >= len(HOSTS) or None, "the pool's hosts", self._alive)
            show_offers(client)

    def _start_pool(self, *host_options: str) -> dict[str, str]:
        """A registry and its hosts; what the registry's file says."""
        say("starting a pool with two hosts on this machine")
        registry = private_folder(self._folder / "registry")
        self._run("registry", "pool", "registry", "--folder", str(registry), "--listen", "127.0.0.1:0")
        facts: dict[str, str] = json.loads(
            wait_for(lambda: _read(registry / "registry.json"), "the pool's registry", self._alive)
        )
        token_file = self._folder / "join.token"
        write_private(token_file, facts["join_token"].encode())
        for name, price, region in self.hosts:
            options = ["--registry", facts["url"], "--token-file", str(token_file), "--name", name]
            options += ["--folder", str(private_folder(self._folder / name)), "--price", price, "--region", region]
            self._run(f"host-{name}", "pool", "host", *options, *host_options)
        return facts

    def _run(self, name: str, part: str, *options: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                # However this process ends, its end of the pipe closes, and the pool with its leases ends as well.
                [sys.executable, "-m", f"jupyter_gpumarket.{part}", *options, "--until-stdin-ends"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal must reach us alone, so that leases are released before the pool ends.
                start_new_session=True,
            )
        self._processes.append(process)

    def _alive(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise ConfigError(
                    f"a process of the demo ended (exit code {process.returncode}); see {self._folder}/*.log"
                )

    def _give_back(self) -> bool:
        try:
            with connect(start=False) as client:
                clean = release_all(client)
                client.shutdown()
        except GpuMarketError as error:
            say(f"the broker does not answer: {error}")
            return False
        return clean

    def _stop_processes(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        self._processes.clear()


def show_offers(client: Client) -> None:
    """What the pool offers."""
    print(offer_table(client.offers().offers))


def release_all(client: Client) -> bool:
    """Release what is left, wait for the confirmations, print the ledger. True when nothing may bill any more."""
    views = [client.release(view.lease.lease_id, "the demo ends") for view in client.leases()]
    end = time.monotonic() + RELEASE_S
    for view in views:
        wait_ended(client, view, end - time.monotonic())
    everything = client.leases(all=True)
    if everything:
        print("\n" + lease_table(everything) + "\n")
        print_report(client)
    return all(not view.lease.may_bill for view in everything)


def wait_for(look: Callable[[], T | None], what: str, still_possible: Callable[[], None]) -> T:
    """Poll until `look` gives something.

    Raises:
        ConfigError: it did not come in time.
    """
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        still_possible()
        time.sleep(0.1)
    raise ConfigError(f"{what} did not come up within {START_S:g} s")


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def say(text: str) -> None:
    """One line of progress."""
    print(f"── {text}", flush=True)
