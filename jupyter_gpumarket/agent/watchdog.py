"""Stops a node that costs money and is not wanted any more: `python3 watchdog.py FOLDER`.

It is the first thing that runs on a node, before anything is installed, so it is one file, standard library only, and
runs on any Python from 3.8. It needs nobody: when the user's side, the link, the agent or the clock fail, it still
stops the node

- at the deadline, which comes from the agreed hours and budget, whatever happens;
- after `grace_s` of silence from the user's side, unless a cell runs: that one goes on to the deadline.

Each tick it reads `watchdog.json` (deadline_ms, grace_s, self_stop; optional remaining_s, tick_s), the time of
`heartbeat` and whether `busy` exists with a living agent. What cannot be read keeps its last good value.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

TICK_S = 5.0
# When nothing can be read at all: enough for a set-up that goes wrong, and little money.
DEFAULT_LIFE_S = 3600.0
DEFAULT_GRACE_S = 900.0
# A wall clock that jumps past the deadline and back must have been there for so many ticks to count.
WALL_TICKS = 3
MAX_LIFE_S = 400 * 24 * 3600.0
TERM_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 60.0
STOP_PAUSES_S = (2, 5, 10, 30, 60, 120)
STOP_ATTEMPTS = 200


class Reading:
    """What one tick saw. `boot_s` never goes back, and counts while the machine is suspended."""

    def __init__(
        self,
        *,
        wall_ms: int,
        boot_s: float,
        settings: dict[str, object] | None,
        heartbeat: float | None,
        busy: bool,
    ) -> None:
        self.wall_ms = wall_ms
        self.boot_s = boot_s
        self.settings = settings
        self.heartbeat = heartbeat
        self.busy = busy


class Timer:
    """Decides, without touching anything, when the node has to stop."""

    def __init__(self, boot_s: float) -> None:
        self.grace_s = DEFAULT_GRACE_S
        self._deadline_ms: int | None = None
        self._ends_boot_s = boot_s + DEFAULT_LIFE_S
        self._set: tuple[object, ...] = ()
        self._heartbeat: float | None = None
        self._heard_boot_s = boot_s
        self._wall_ticks = 0

    def tick(self, reading: Reading) -> str:
        """Why the node has to stop now, or empty text."""
        if reading.settings is not None:
            self._take(reading.settings, reading)
        if reading.heartbeat is not None and reading.heartbeat != self._heartbeat:
            self._heartbeat = reading.heartbeat
            self._heard_boot_s = reading.boot_s
        if reading.busy:
            # The grace begins anew when the cell is done: its result has to be fetched.
            self._heard_boot_s = reading.boot_s
        return self._reason(reading)

    def _take(self, settings: dict[str, object], reading: Reading) -> None:
        grace_s = number(settings.get("grace_s"))
        if grace_s is not None and grace_s > 0:
            self.grace_s = grace_s
        deadline_ms = number(settings.get("deadline_ms"))
        remaining_s = number(settings.get("remaining_s"))
        now_set = (deadline_ms, remaining_s, settings.get("set_ms"))
        if deadline_ms is None or deadline_ms <= 0 or now_set == self._set:
            return
        self._set = now_set
        self._deadline_ms = int(deadline_ms)
        left_s = (deadline_ms - reading.wall_ms) / 1000 if remaining_s is None else remaining_s
        self._ends_boot_s = reading.boot_s + min(left_s, MAX_LIFE_S)
        self._wall_ticks = 0

    def _reason(self, reading: Reading) -> str:
        if reading.boot_s >= self._ends_boot_s:
            return "the agreed time is over"
        is_past = self._deadline_ms is not None and reading.wall_ms >= self._deadline_ms
        self._wall_ticks = self._wall_ticks + 1 if is_past else 0
        if self._wall_ticks >= WALL_TICKS:
            return "the deadline has passed"
        silent_s = reading.boot_s - self._heard_boot_s
        if silent_s > self.grace_s:
            return "no word from the user's side for %d s, and no cell was running" % silent_s  # noqa: UP031
        return ""


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e18 else None


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────────


def boot_seconds() -> float:
    """Seconds on a clock that nobody sets; with the time that the machine was suspended, where the system tells it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def read_settings(folder: str) -> dict[str, object] | None:
    """`watchdog.json`, or None while it is missing or broken."""
    try:
        with open(os.path.join(folder, "watchdog.json"), encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def read_time(folder: str, name: str) -> float | None:
    """When a file was last touched, or None when it is not there."""
    try:
        return os.stat(os.path.join(folder, name)).st_mtime_ns / 1e9
    except OSError:
        return None


def agent_pid(folder: str) -> int | None:
    """The living agent's process, or None: a process id may have been given to another program."""
    try:
        with open(os.path.join(folder, "agent.pid"), encoding="ascii") as file:
            pid = int(file.read())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:  # noqa: UP031
            return pid if os.fsencode(folder) in file.read() else None
    except OSError:
        return None if os.path.isdir("/proc/self") else pid


def read(folder: str) -> Reading:
    """One tick's reading."""
    return Reading(
        wall_ms=time.time_ns() // 1_000_000,
        boot_s=boot_seconds(),
        settings=read_settings(folder),
        heartbeat=read_time(folder, "heartbeat"),
        busy=read_time(folder, "busy") is not None and agent_pid(folder) is not None,
    )


# ── what is done ─────────────────────────────────────────────────────────────────────────────────────────────────────


def environment_of(pid: int) -> bytes:
    """A process's environment at its start, or nothing where it cannot be read."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:  # noqa: UP031
            return b"\0" + file.read()
    except OSError:
        return b""


def parents() -> dict[int, int]:
    """Every process and its parent."""
    try:
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, timeout=10, check=False
        ).stdout.decode()
        return {int(pid): int(parent) for pid, parent in (line.split() for line in listing.splitlines())}
    except (OSError, ValueError, subprocess.SubprocessError):
        return proc_parents()


def proc_parents() -> dict[int, int]:
    """Every process and its parent, where there is no `ps`."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        try:
            with open("/proc/%s/stat" % name, "rb") as file:  # noqa: UP031
                found[int(name)] = int(file.read().rsplit(b")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return found


def lease_processes(folder: str, agent: int | None) -> set[int]:
    """The agent, its descendants, and what else carries the lease in its environment; never this process."""
    marks = [b"\0GPUMARKET_FOLDER=" + os.fsencode(folder) + b"\0"]
    lease = os.environb.get(b"GPUMARKET_LEASE")
    if lease:
        marks.append(b"\0GPUMARKET_LEASE=" + lease + b"\0")
    tree = parents()
    found = {pid for pid in tree if any(mark in environment_of(pid) for mark in marks)}
    if agent is not None:
        found.add(agent)
    grown = True
    while grown:
        children = {pid for pid, parent in tree.items() if parent in found} - found
        found |= children
        grown = bool(children)
    # Those above this process are not the lease's work: the shell or the service that started it.
    return found - ancestors(tree, os.getpid())


def ancestors(tree: dict[int, int], pid: int) -> set[int]:
    """A process and all above it."""
    found = {pid}
    while pid in tree and tree[pid] not in found:
        pid = tree[pid]
        found.add(pid)
    return found


def kill(pid: int, signum: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(OSError):
        os.kill(pid, signum)


def end_processes(folder: str) -> None:
    """End everything of the lease: the agent may tidy up for a moment, then all are killed."""
    agent = agent_pid(folder)
    if agent is not None:
        kill(agent, signal.SIGTERM)
        until = time.monotonic() + TERM_TIMEOUT_S
        while time.monotonic() < until and agent_pid(folder) is not None:
            time.sleep(0.05)
    for _ in range(5):
        living = lease_processes(folder, agent_pid(folder))
        if not living:
            return
        for pid in living:
            kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def run_self_stop(self_stop: object) -> bool:
    """Run the marketplace's recipe once; whether it ended well."""
    argv = self_stop.get("argv") if isinstance(self_stop, dict) else None
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        return True
    more = self_stop.get("env") if isinstance(self_stop, dict) else None
    environment = {**os.environ, **more} if isinstance(more, dict) else dict(os.environ)
    try:
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, timeout=STOP_TIMEOUT_S, check=False)
    except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
        say("the node cannot stop itself yet: %s" % error)  # noqa: UP031
        return False
    if done.returncode != 0:
        say("the node cannot stop itself yet: exit code %d" % done.returncode)  # noqa: UP031
    return done.returncode == 0


def stop(folder: str, reason: str, self_stop: object) -> None:
    """Stop the node: note why, end the lease's processes, end the rental by the marketplace's recipe."""
    say("stopping: " + reason)
    with contextlib.suppress(OSError), open(os.path.join(folder, "stopped"), "w", encoding="utf-8") as file:
        file.write(reason + "\n")
    end_processes(folder)
    for attempt in range(STOP_ATTEMPTS):
        if run_self_stop(self_stop):
            return
        time.sleep(STOP_PAUSES_S[min(attempt, len(STOP_PAUSES_S) - 1)])


def say(words: str) -> None:
    """A line in the log."""
    sys.stdout.write(time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) + words + "\n")
    sys.stdout.flush()


def is_needless(folder: str, self_stop: object) -> bool:
    """Whether nothing is left to be stopped: the folder is gone, with all processes, and the node has no recipe."""
    return not os.path.isdir(folder) and not self_stop and not lease_processes(folder, None)


def main(folder: str) -> int:
    """Watch until the node has to stop."""
    folder = os.path.abspath(folder)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(os.path.join(folder, "watchdog.pid"), "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    timer = Timer(boot_seconds())
    self_stop: object = None
    say("watching " + folder)
    while True:
        try:
            reading = read(folder)
            settings = reading.settings or {}
            self_stop = settings.get("self_stop") or self_stop
            reason = timer.tick(reading)
        except Exception as error:  # noqa: BLE001 - whatever surprises it, it must go on guarding the money
            say("a tick failed: %r" % error)  # noqa: UP031
            time.sleep(TICK_S)
            continue
        if reason:
            stop(folder, reason, self_stop)
            return 0
        if is_needless(folder, self_stop):
            return 0
        time.sleep(max(0.05, min(number(settings.get("tick_s")) or TICK_S, TICK_S)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
