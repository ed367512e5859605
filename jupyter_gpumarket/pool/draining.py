"""How a host leaves with notice: it takes no new lease, tells when it will go, and goes then, or once nobody is there.

`host --drain` on the same machine asks for it, and so does SIGTERM for a host that was started with `--grace`. A
second SIGTERM ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Protocol

import msgspec

from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.models import Record

# Who the host is that holds the folder's lock; not there while it is still starting.
PID_FILE = "host.pid"
# Time enough to rent another node and to bring over what this one holds.
DRAIN_GRACE_S = 300.0
MOST_GRACE_S = 30 * 24 * 3600


class DrainOrder(Record, frozen=True, kw_only=True):
    """`drain.json` in the host's folder: how much notice its users get."""

    grace_s: float


class Leaver(Protocol):
    """The host."""

    async def emptied(self) -> None:
        """Return when no lease is left on it."""

    def leave_at(self, at_ms: int) -> None:
        """Take no new lease, and tell the registry when this host goes."""


class Draining:
    """Waits for whoever tells the host to leave. `over` is set when it has to end its leases and go."""

    def __init__(self, host: Leaver, folder: Path, over: asyncio.Event, *, grace_s: float) -> None:
        self._host = host
        self._folder = folder
        self._over = over
        self._grace_s = grace_s
        self._waiting: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """From now on signals mean this; `drain` finds the process by the file that is written here."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(signal.SIGUSR1, self._told_to_drain)
        write_private(self._folder / PID_FILE, str(os.getpid()).encode())

    def _told_to_stop(self) -> None:
        if self._grace_s <= 0 or self._waiting is not None:
            self._over.set()
        else:
            self._begin(self._grace_s)

    def _told_to_drain(self) -> None:
        order = msgspec.json.decode((self._folder / "drain.json").read_bytes(), type=DrainOrder)
        self._begin(order.grace_s)

    def _begin(self, grace_s: float) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._host.leave_at(time.time_ns() // 1_000_000 + round(grace_s * 1000))
        self._waiting = asyncio.get_running_loop().create_task(self._wait(grace_s))

    async def _wait(self, grace_s: float) -> None:
        """By a clock that nobody sets, so that no notice is shorter than was told."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._host.emptied(), grace_s)
        self._over.set()


def checked_grace(grace_s: float) -> float:
    """The notice that a host gives, seconds.

    Raises:
        ConfigError: it is not a time that can be waited for.
    """
    if not 0 <= grace_s <= MOST_GRACE_S:
        raise ConfigError(f"--grace {grace_s:g} is not between 0 and 30 days, in seconds")
    return grace_s


def drain(folder: Path, grace_s: float) -> int:
    """Tell the host that runs in this folder to leave after `grace_s`; its process id.

    Raises:
        ConfigError: no host runs there, or it is still starting, or the time is not one.
    """
    checked_grace(grace_s)
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _pid_in(folder)
    except OSError as error:
        raise ConfigError(f"no host has run in {folder} ({error.strerror}); name its folder with --folder") from None
    else:
        raise ConfigError(f"no host runs in {folder} now")
    write_private(folder / "drain.json", msgspec.json.encode(DrainOrder(grace_s=grace_s)))
    os.kill(pid, signal.SIGUSR1)
    return pid


def _pid_in(folder: Path) -> int:
    try:
        return int((folder / PID_FILE).read_text("ascii"))
    except (OSError, ValueError):
        raise ConfigError(f"the host in {folder} is still starting; try again in a moment") from None
