"""The demo does the whole path for real, and ends clean whatever is killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEMO_S = 240.0
COST_LINE = re.compile(r"\$0\.\d{6,9}")


def still_there(folder: Path) -> list[psutil.Process]:
    """All processes that belong to a demo, by its folder in their command line or environment."""
    mine = str(folder)
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and (
                mine in " ".join(process.cmdline()) or any(mine in v for v in process.environ().values())
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class Demo:
    """A running `jupyter gpumarket demo` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_gpumarket", "demo", "--folder", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait(self) -> int:
        return self.process.wait(DEMO_S)

    def members(self) -> list[psutil.Process]:
        return still_there(self.folder)

    def pid_of(self, module: str) -> int:
        return next(p.pid for p in self.members() if f"jupyter_gpumarket.{module}" in " ".join(p.cmdline()))

    def close(self) -> None:
        for process in [self.process, *self.members()]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path / "demo")
    yield running
    running.close()


def poll(look: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


def report(folder: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The leases and the charges that the demo's journal tells, through the terminal's door."""
    environment = {**os.environ, "JUPYTER_GPUMARKET_HOME": str(folder / "home"), "JUPYTER_GPUMARKET_BROKER_IDLE_S": "5"}

    def told(*command: str) -> dict[str, list[dict[str, object]]]:
        done = subprocess.run(
            [sys.executable, "-m", "jupyter_gpumarket", *command, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        loaded: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
        return loaded

    return told("ls", "--all")["leases"], told("report")["charges"]


def states(leases: list[dict[str, object]]) -> set[object]:
    return {view["lease"]["state"] for view in leases}  # type: ignore[index]


def test_the_demo_does_what_readme_says(demo: Demo) -> None:
    """It trains, brings results back, shows each cost, reports, and leaves nothing rented and nothing running."""
    code = demo.wait()
    shown = demo.output()
    leases, charges = report(demo.folder)
    notebook = nbformat.read(demo.folder / "notebook" / "01-first-gpu-cell.ipynb", as_version=4)

    assert code == 0, shown
    assert "test accuracy 0.9" in shown
    assert len(COST_LINE.findall(shown)) >= 3, shown
    assert states(leases) == {"released"}
    assert sum(int(str(c["amount_nusd"])) for c in charges) > 0
    assert all(c["final"] for c in charges)
    assert any("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))
    poll(lambda: not demo.members(), f"the end of {demo.members()}", 30)


@pytest.mark.parametrize("victim", ["broker", "cluster", "pool"])
def test_a_kill_in_the_middle_ends_clean(demo: Demo, victim: str) -> None:
    """After kill -9 of broker, cluster process or hosts: nothing runs, nothing bills, the ledger adds up."""
    poll(lambda: "hello from" in demo.output() or demo.process.poll() is not None, "the first remote output")
    for process in demo.members():
        if f"jupyter_gpumarket.{victim}" in " ".join(process.cmdline()) and "registry" not in process.cmdline():
            process.kill()
    demo.wait()
    poll(lambda: not demo.members(), "no process of the demo left", 60)
    leases, _ = report(demo.folder)

    if victim != "pool":
        assert demo.process.returncode == 0, demo.output()
        assert states(leases) == {"released"}
    assert states(leases) <= {"released", "failed"}, demo.output()
