"""A real broker process of one state folder, for tests: started as doors do, ended for sure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from jupyter_gpumarket import client
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.models import LeaseRequest, OfferQuery

DEADLINE_S = 30.0


def folders_in(root: Path) -> Folders:
    """Fresh folders under a test's own."""
    return Folders(private_folder(root / "state"), private_folder(root / "config"))


@contextmanager
def broker_of(folders: Folders) -> Iterator[client.Client]:
    """A client of a running broker; at the end, every process of this state folder is gone."""
    connected = client.connect(folders, timeout_s=DEADLINE_S)
    try:
        yield connected
    finally:
        connected.close()
        end_processes(folders)


def processes_of(folders: Folders) -> list[psutil.Process]:
    """Every living process that names this state folder in its arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if any(str(folders.state) in argument for argument in arguments):
            found.append(process)
    return found


def brokers_of(folders: Folders) -> list[psutil.Process]:
    """The broker processes of this state folder."""
    found = []
    for process in processes_of(folders):
        with contextlib.suppress(psutil.Error):  # it ended while it was looked at
            if "jupyter_gpumarket.broker" in process.cmdline():
                found.append(process)
    return found


def end_processes(folders: Folders) -> None:
    """Kill what is left."""
    for process in processes_of(folders):
        try:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(DEADLINE_S)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def until(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until it is true; the value it then has."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.03)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def raw_door(folders: Folders) -> httpx.Client:
    """A bare HTTP client with the doors' token, for saying what our own client would never say."""
    said = json.loads(folders.broker_file.read_text("utf-8"))
    return httpx.Client(base_url=said["url"], headers={"Authorization": f"Bearer {said['token']}"}, trust_env=False)


def request(request_id: str = "request-1", **more: Any) -> LeaseRequest:
    """A modest wish."""
    values: dict[str, Any] = {"query": OfferQuery(), "budget_nusd": 10**9, "max_s": 3600, **more}
    return LeaseRequest(request_id=request_id, **values)
