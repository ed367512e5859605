"""Dask scheduler and workers as child processes of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from jupyter_gpumarket.agent.driver import FILE, Access
from jupyter_gpumarket.agent.folder import safe_name, write_atomically
from jupyter_gpumarket.agent.launcher import PR_SET_PDEATHSIG
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire.messages import DaskReport, DaskStatus, StartDask

MODULES = {"scheduler": "distributed.cli.dask_scheduler", "worker": "distributed.cli.dask_worker"}
ADDRESS = re.compile(r"(?:Scheduler at|Start worker at):\s*(\S+://\S+)")
OPTION = re.compile(r"[a-z][a-z0-9-]*")
END_TIMEOUT_S = 5.0
POLL_S = 0.1
STATUS_POLL_S = 0.5
# As the preloaded part of the scheduler (`agent/head.py`) names them; it is not imported here, for it imports Dask.
STATUS, RETIRE = "status.json", "retire.json"
TLS_FILES = ("ca.pem", "cert.pem", "key.pem")
# Drops the user's own modules when they have changed; not imported here, for it is for the children.
SYNC_MODULE = "jupyter_gpumarket.agent.sync"
CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"


class DaskProcesses:
    """What `StartDask` started, by name."""

    def __init__(
        self, folder: Path, environment: dict[str, str], tell: Callable[[DaskReport | DaskStatus], None]
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._tell_on = tell
        self._told: dict[str, DaskReport] = {}
        self._orders: dict[str, StartDask] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def start(self, order: StartDask) -> None:
        """Start a scheduler or worker; its address follows in a report.

        Raises:
            BadRequest: the role, the name, an option or a file's name is not usable.
        """
        name = safe_name(order.name, "name")
        if order.role not in MODULES:
            raise BadRequest(f"role must be one of {', '.join(MODULES)}")
        if name in self._processes:
            return  # the order was repeated, and what it led to has been told
        folder = self._folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, content in order.files.items():
            write_atomically(folder / safe_name(file, "file"), content)
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                MODULES[order.role],
                *arguments(order, folder),
                cwd=folder,
                env=environment_for(order, self._environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_agent,
            )
        self._processes[name] = process
        self._orders[name] = order
        self._tell(DaskReport(name=name, state="starting"))
        self._watching[name] = asyncio.create_task(self._watch(name, process, log))

    async def stop(self, name: str) -> None:
        """End a process and its children."""
        process = self._processes.get(name)
        if process is not None:
            end_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
            end_group(process.pid, signal.SIGKILL)
        watching = self._watching.get(name)
        if watching is not None:
            await watching

    async def close(self) -> None:
        """End all."""
        await asyncio.gather(*(self.stop(name) for name in list(self._processes)))

    def tell_all(self) -> None:
        """Say again how each process is: whoever listens now may not have heard it."""
        for report in self._told.values():
            self._tell_on(report)

    def retire(self, workers: tuple[str, ...]) -> None:
        """Ask the scheduler on this node to retire workers; its status tells when that is done.

        Raises:
            BadRequest: no scheduler runs here.
        """
        heads = [name for name, order in self._orders.items() if order.role == "scheduler"]
        if not heads:
            raise BadRequest("no Dask scheduler runs on this node")
        for name in heads:
            write_atomically(self._folder / name / RETIRE, msgspec.json.encode(workers))

    def _tell(self, report: DaskReport) -> None:
        self._told[report.name] = report
        self._tell_on(report)

    async def _watch(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        ended = asyncio.ensure_future(process.wait())
        is_head = self._orders[name].role == "scheduler"
        address, told = "", None
        while not ended.done():
            if not address and (found := ADDRESS.search(log.read_text(errors="replace"))):
                address = found[1]
                self._tell(DaskReport(name=name, state="running", address=address))
                if is_head:
                    self._let_kernels_in(self._orders[name], address)
            if address and is_head:
                told = self._tell_status(log.with_name(STATUS), told)
            await asyncio.wait([ended], timeout=POLL_S if not address else STATUS_POLL_S if is_head else None)
        words = log.read_text(errors="replace")[-1000:].strip()
        del self._processes[name], self._watching[name], self._orders[name]
        if is_head:
            (self._folder / FILE).unlink(missing_ok=True)
        reason = f"it ended with code {process.returncode}\n{words}"
        self._tell(DaskReport(name=name, state="ended", address=address, reason=reason))

    def _let_kernels_in(self, order: StartDask, address: str) -> None:
        folder = self._folder / order.name
        paths = [str(folder / file) if file in order.files else "" for file in TLS_FILES]
        access = Access(address=address, ca=paths[0], cert=paths[1], key=paths[2])
        write_atomically(self._folder / FILE, msgspec.json.encode(access))

    def _tell_status(self, file: Path, told: bytes | None) -> bytes | None:
        """Pass on what the scheduler says of itself, when that is news."""
        try:
            content = file.read_bytes()
            if content != told:
                self._tell_on(msgspec.json.decode(content, type=DaskStatus))
        except (OSError, msgspec.MsgspecError):
            return told
        return content


def environment_for(order: StartDask, environment: dict[str, str]) -> dict[str, str]:
    """The process's environment: the order's additions, and of the GPUs that the lease may see only its own one."""
    found = {**environment, **order.environment}
    if order.gpu is not None:
        visible = [device for device in environment.get(CUDA_DEVICES, "").split(",") if device]
        found[CUDA_DEVICES] = visible[order.gpu] if order.gpu < len(visible) else str(order.gpu)
    return found


def arguments(order: StartDask, folder: Path) -> list[str]:
    """The command line; an option whose value names a file of the order gets that file's path.

    Raises:
        BadRequest: an option's name is none.
    """
    parts: list[str] = []
    for option, value in order.options.items():
        if option == "":
            parts.insert(0, value)
            continue
        if not OPTION.fullmatch(option):
            raise BadRequest(f"options: {option[:40]!r} is not the name of an option")
        parts.append(f"--{option}")
        if value:
            parts.append(str(folder / value) if value in order.files else value)
    parts += ["--preload", SYNC_MODULE]
    if order.gpu is not None and importlib.util.find_spec("dask_cuda") is not None:
        parts += ["--preload", "dask_cuda.initialize"]
    return parts


def end_with_agent() -> None:
    """In the child: end when the agent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_group(pid: int, signum: int) -> None:
    """Send a signal to a child's whole process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)
