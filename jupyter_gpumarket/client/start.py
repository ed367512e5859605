"""Finding the running broker, and starting one when there is none.

The broker's lock decides who is the one: doors may start as many as they like at the same moment, all but one leave
at once with `ALREADY_RUNNING`, and every door then finds the one that stayed through `broker.json`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import msgspec

from jupyter_gpumarket import __version__
from jupyter_gpumarket.api import API_VERSION, BrokerInfo, Problem
from jupyter_gpumarket.client.http import Conversation, Endpoint, Gone
from jupyter_gpumarket.client.problems import exception_of
from jupyter_gpumarket.config import Folders, Secret
from jupyter_gpumarket.errors import BrokerUnavailable, GpuMarketError

ALREADY_RUNNING = 75  # the broker's exit code when another one holds the lock (EX_TEMPFAIL)
POLL_S = 0.05
HEALTH_TIMEOUT_S = 10.0
LAST_LINES = 12


class BrokerFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker writes for doors."""

    url: str
    token: str
    pid: int
    version: str = ""
    api_version: int = API_VERSION

    def __repr__(self) -> str:
        return f"BrokerFile(url={self.url!r}, pid={self.pid})"


async def find(folders: Folders, *, start: bool, timeout_s: float) -> Conversation:
    """A conversation with the living broker of this state folder.

    Raises:
        BrokerUnavailable: none runs and `start` is false; it could not be started; it does not answer in time; or it
            is of an incompatible version.
    """
    deadline = time.monotonic() + timeout_s
    found = await _living(folders)
    if found is not None:
        return found
    if not start:
        raise BrokerUnavailable(f"no broker runs for {folders.state}; start one with any command that rents or lists")
    began = time.time()
    process = _spawn(folders)
    while time.monotonic() < deadline:
        found = await _living(folders)
        if found is not None:
            return found
        exit_code = process.poll()
        if exit_code is not None:
            if exit_code != ALREADY_RUNNING:
                raise _why(folders, began, exit_code)
            # Somebody else holds the lock: one that is just starting, or one that is just ending.
            await asyncio.sleep(5 * POLL_S)
            found = await _living(folders)
            if found is not None:
                return found
            process = _spawn(folders)
        await asyncio.sleep(POLL_S)
    raise BrokerUnavailable(_story(folders, f"the broker did not answer within {timeout_s:g} s"))


async def _living(folders: Folders) -> Conversation | None:
    """The broker that `broker.json` names, if it answers to its token; a stale file is no broker."""
    try:
        file = msgspec.json.decode(folders.broker_file.read_bytes(), type=BrokerFile)
    except (OSError, msgspec.DecodeError):
        return None
    if file.api_version != API_VERSION and _alive(file.pid):
        raise BrokerUnavailable(
            f"the running broker (pid {file.pid}) is of version {file.version or 'unknown'}, this is {__version__}: "
            f"they do not understand each other. Stop it with `kill {file.pid}`; leases go on, and the next call "
            "starts a broker of this version"
        )
    conversation = Conversation(Endpoint(url=file.url, token=Secret(file.token)))
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await conversation.call("GET", "/v1/health", BrokerInfo)
    except Gone:
        await conversation.aclose()
        return None
    except TimeoutError:
        await conversation.aclose()
        raise BrokerUnavailable(
            f"the broker (pid {file.pid}) is there but has not answered for {HEALTH_TIMEOUT_S:g} s; it may be stopped "
            f"(`kill -CONT {file.pid}`) or the machine overloaded. `kill -9 {file.pid}` ends it; leases go on, and the "
            "next call starts another one"
        ) from None
    except BaseException:
        await conversation.aclose()
        raise
    return conversation


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _spawn(folders: Folders) -> subprocess.Popen[bytes]:
    """Start a broker that outlives this process: own session, no terminal, output to its log."""
    argv = [sys.executable, "-m", "jupyter_gpumarket.broker"]
    argv += ["--state", str(folders.state), "--configuration", str(folders.configuration)]
    log = os.open(folders.broker_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            close_fds=True,
        )
    finally:
        os.close(log)
    # Somebody has to take its exit status, or it would stay behind as a zombie of a long-living kernel.
    threading.Thread(target=process.wait, name=f"broker-{process.pid}", daemon=True).start()
    return process


def _environment() -> dict[str, str]:
    """Our environment, with a module path that is right from any working folder."""
    environment = dict(os.environ)
    package_root = str(Path(__file__).resolve().parent.parent.parent)
    installed = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
    path = [str(Path(entry).absolute()) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if package_root not in installed and package_root not in path:
        path.insert(0, package_root)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment


def _why(folders: Folders, began: float, exit_code: int) -> GpuMarketError:
    """Why the broker ended at its start: its own error where it could still write one, else the end of its log."""
    failure = folders.state / "broker.failure.json"
    try:
        if failure.stat().st_mtime >= began - 1:
            return exception_of(msgspec.json.decode(failure.read_bytes(), type=Problem))
    except (OSError, msgspec.DecodeError):
        pass  # it had no time to say it
    return BrokerUnavailable(_story(folders, f"the broker ended at its start (exit code {exit_code})"))


def _story(folders: Folders, what: str) -> str:
    try:
        lines = folders.broker_log.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        lines = []
    told = "\n".join(f"  {line}" for line in lines)
    return f"{what}; its log is {folders.broker_log}" + (f" and ends with:\n{told}" if told else "")
