"""The leases on a host: each with its folder, its supervisor, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from jupyter_gpumarket.api.pool import LeaseReport, ServeOrder
from jupyter_gpumarket.pool.host_facts import DEMO_GPU
from jupyter_gpumarket.pool.supervisor import PR_SET_CHILD_SUBREAPER, load_prctl

log = logging.getLogger(__name__)
SUPERVISOR = Path(__file__).with_name("supervisor.py")
MARK = "GPUMARKET_LEASE"
HOST_MARK = "GPUMARKET_HOST"
POLITE_S = 1.0
# Longer than the supervisor's own patience; then the host does it by itself.
SUPERVISOR_END_S = 25.0
REMOVE_PATIENCE_S = 10.0
SEND_PATIENCE_S = 1.0
KILL_ROUND_S = 0.05
# Children of this process that are meant to be there.
SUPERVISORS: set[int] = set()
# Held while a supervisor is born, so that it is not taken for a stray.
BIRTHS = asyncio.Lock()


class Started:
    """A process of a lease, as the host sees it: its end comes from the supervisor."""

    def __init__(self, lease: HostLease, number: int) -> None:
        self._lease = lease
        self._number = number
        self.begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Exit code; a negative one is the signal that ended it.
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, what: int) -> None:
        """Send a signal to its process group."""
        self._lease.tell({"op": "signal", "id": self._number, "signal": int(what)})


class HostLease:
    """One lease: `starting` → `serving` → `ending` → `gone`, or `failed` at the start."""

    def __init__(
        self, order: ServeOrder, folder: Path, gpus: tuple[int, ...], host_id: str, changed: Callable[[HostLease], None]
    ) -> None:
        self.order = order
        self.folder = folder
        self.state = "starting"
        self.detail = ""
        self.is_ending = False
        self.on_end: list[Callable[[], None]] = []
        self._gpus = gpus
        self._host_id = host_id
        self._changed = changed
        self._supervisor: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._processes: dict[int, Started] = {}
        self._next = 1
        self._listening: asyncio.Task[None] | None = None
        self._all_ended = asyncio.Event()
        self._lock = asyncio.Lock()

    def report(self) -> LeaseReport:
        return LeaseReport(
            rental_id=self.order.rental_id, offer_id=self.order.offer_id, state=self.state, detail=self.detail
        )

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the lease gets: nothing of the host's own environment but where programs are."""
        home = str(self.folder)
        supervisor = "" if self._supervisor is None else str(self._supervisor.pid)
        return {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": home,
            "TMPDIR": str(self.folder / "tmp"),
            "SHELL": "/bin/sh",
            "USER": self.order.rental_id,
            "LOGNAME": self.order.rental_id,
            MARK: self.order.rental_id,
            HOST_MARK: self._host_id,
            "GPUMARKET_PYTHON": sys.executable,
            "GPUMARKET_SUPERVISOR": supervisor,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in self._gpus),
            **({DEMO_GPU: os.environ[DEMO_GPU]} if DEMO_GPU in os.environ else {}),
        }

    async def start(self) -> None:
        """Make the folder and the supervisor. Failing is a state, not an exception."""
        async with self._lock:
            try:
                self.folder.mkdir(mode=0o700, parents=True)
                (self.folder / "tmp").mkdir(mode=0o700)
                self._control = await self._start_supervisor()
            except OSError as error:
                self._become("failed", f"the lease could not be started: {error}")
                return
            self._listening = asyncio.create_task(self._listen(self._control))
            self.set_order(self.order)
            self._become("serving")

    async def _start_supervisor(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(0.0)
        with theirs:
            async with BIRTHS:
                self._supervisor = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    str(SUPERVISOR),
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    env=self.environment,
                    cwd=self.folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
                SUPERVISORS.add(self._supervisor.pid)
        return ours

    def set_order(self, order: ServeOrder) -> None:
        """Keep to this deadline. The supervisor's own timer holds even when the host hangs."""
        self.order = order
        with contextlib.suppress(OSError):
            self.tell({"op": "deadline", "deadline_ms": order.deadline_ms})

    async def spawn(
        self, argv: list[str], descriptors: list[int], *, terminal: bool = False, more: dict[str, str] | None = None
    ) -> Started:
        """Start a process on these descriptors (stdin, stdout, stderr; or a terminal alone).

        Raises:
            OSError: it cannot be started, or the lease is ending.
        """
        if self.state != "serving" or self._control is None:
            raise OSError(f"the lease {self.order.rental_id} is {self.state}")
        number, self._next = self._next, self._next + 1
        started = self._processes[number] = Started(self, number)
        request = {
            "op": "spawn",
            "id": number,
            "argv": argv,
            "env": {**self.environment, **(more or {})},
            "cwd": str(self.folder),
            "pty": terminal,
        }
        self.tell(request, descriptors)
        await started.begun
        return started

    def tell(self, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
        """Send the supervisor a message.

        Raises:
            OSError: it is gone, or does not read.
        """
        if self._control is None:
            return
        line = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self._control, [line], list(descriptors))
        while sent < len(line):
            if not select.select([], [self._control], [], SEND_PATIENCE_S)[1]:
                # It does not read any more (somebody stopped it): without it nothing can be promised.
                self._control.shutdown(socket.SHUT_RDWR)
                raise OSError("the lease's supervisor does not answer")
            sent += self._control.send(line[sent:])

    async def end(self, why: str) -> None:
        """End all its processes and remove its folder; returns when both are verified. May be called again."""
        async with self._lock:
            if self.state == "gone":
                return
            self._become("ending", why)
            for callback in list(self.on_end):
                callback()
            await self._end_processes()
            await asyncio.to_thread(remove_folder, self.folder)
            self._become("gone", why)

    async def _end_processes(self) -> None:
        with contextlib.suppress(OSError):
            self.tell({"op": "end", "grace_s": POLITE_S})
        if self._supervisor is not None and self._supervisor.returncode is None:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                # Somebody may have stopped it.
                self._supervisor.send_signal(signal.SIGCONT)
                await asyncio.wait_for(self._supervisor.wait(), SUPERVISOR_END_S)
        # The second belt: the supervisor may itself have been killed or stopped by what it watched.
        await asyncio.to_thread(kill_all_marked, MARK, self.order.rental_id)
        if self._supervisor is not None:
            if self._supervisor.returncode is None:
                self._supervisor.kill()
            await self._supervisor.wait()
            SUPERVISORS.discard(self._supervisor.pid)
        async with BIRTHS:
            await asyncio.to_thread(kill_strays)
        if self._listening is not None:
            await self._listening

    async def _listen(self, control: socket.socket) -> None:
        """What the supervisor tells, until it is gone."""
        reader, writer = await asyncio.open_connection(sock=control)
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        except (OSError, ValueError) as error:
            log.warning("lease %s: its supervisor is not understood: %s", self.order.rental_id, error)
        finally:
            writer.close()
            self._control = None
            for started in self._processes.values():
                settle(started.begun, OSError("the lease ended"))
                settle(started.ended, -int(signal.SIGKILL))
            self._processes.clear()
            self._all_ended.set()
            if self.state == "serving":
                self._become("ending", "its processes were ended from inside, or its deadline has passed")

    def _hear(self, message: dict[str, Any]) -> None:
        started = self._processes.get(message.get("id", 0))
        if started is None:
            return
        if "pid" in message:
            settle(started.begun, message["pid"])
        elif "error" in message:
            settle(started.begun, OSError(message["error"]))
            del self._processes[message["id"]]
        else:
            settle(started.ended, message["exit"] if "exit" in message else -message["signal"])
            del self._processes[message["id"]]

    def _become(self, state: str, detail: str = "") -> None:
        self.state = state
        self.detail = detail or self.detail
        log.info("lease %s: %s %s", self.order.rental_id, state, self.detail)
        self._changed(self)


def settle(future: asyncio.Future[int], outcome: int | Exception) -> None:
    """Give a future its outcome unless it has one (or nobody waits any more)."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
        future.exception()
    else:
        future.set_result(outcome)


def marked(name: str, value: str) -> list[psutil.Process]:
    """The processes with this in their environment: those of one lease, or of one host; zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(name) == value:
                found.append(process)
    return found


def kill_marked(name: str, value: str) -> int:
    """Kill what is left of a lease, or of a host's earlier life; how many there were."""
    found = marked(name, value)
    for process in found:
        with contextlib.suppress(psutil.Error, OSError):
            process.suspend()
    for process in found:
        with contextlib.suppress(psutil.Error, OSError):
            process.kill()
    return len(found)


def kill_all_marked(name: str, value: str) -> None:
    """Kill until none is found any more; blocks."""
    while kill_marked(name, value):
        time.sleep(KILL_ROUND_S)


def adopt_orphans() -> None:
    """Become the parent of what a killed supervisor leaves, so that it can be found even without its mark."""
    prctl = load_prctl()
    if prctl:
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_strays() -> None:
    """Kill what became this process's child without being a supervisor: orphans of one that was killed. Blocks."""
    until = time.monotonic() + REMOVE_PATIENCE_S
    while time.monotonic() < until:
        strays = [child for child in psutil.Process().children() if child.pid not in SUPERVISORS]
        found = [process for stray in strays for process in (stray, *offspring(stray))]
        for process in found:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        for stray in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray.pid, os.WNOHANG)
        if not strays:
            return
        time.sleep(KILL_ROUND_S)


def offspring(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def remove_folder(folder: Path) -> None:
    """Remove a folder whatever modes its owner gave to what is in it.

    Raises:
        OSError: something in it cannot be removed.
    """
    until = time.monotonic() + REMOVE_PATIENCE_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            open_up(folder)
            if time.monotonic() > until:
                raise OSError(f"the folder {folder} cannot be removed")


def open_up(folder: Path) -> None:
    """Folders without permissions keep their content: open them. Links are not followed."""
    folder.chmod(0o700)
    for place, names, _ in os.walk(folder):
        for name in names:
            inner = Path(place, name)
            with contextlib.suppress(OSError):
                if not inner.is_symlink():
                    inner.chmod(0o700)
