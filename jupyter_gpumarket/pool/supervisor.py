"""The process above everything that one lease runs: it starts processes, and none outlives the lease.

Run as a plain script by the host (standard library only, so it starts quickly). It is the reaper of all processes of
the lease, also of daemons that left their parents (child subreaper, where the system has it). When the host is gone
(its end of the control socket closes, whatever killed it), when the deadline has come, or on SIGTERM, it kills them
all and ends.

Protocol, lines of JSON over the socket whose descriptor is the first argument:

    host → spawn   {"op": "spawn", "id": 1, "argv": […], "env": {…}, "cwd": "…", "pty": false}
                   with three descriptors, or one for a terminal
    host → signal  {"op": "signal", "id": 1, "signal": 15}
    host → end     {"op": "end", "grace_s": 2.0}
    host → deadline {"op": "deadline", "deadline_ms": 1790000000000}
    here → {"id": 1, "pid": 4711} or {"id": 1, "error": "…"}; later {"id": 1, "exit": 0} or {"id": 1, "signal": 9}
    here → {"ended": true}, the last word
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORDINARY_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1)
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
KILL_ROUND_S = 0.02
# So long do processes that cannot be killed (stuck in the kernel) hold up the supervisor's own end.
KILL_PATIENCE_S = 20.0
DEFAULT_GRACE_S = 1.0


class Supervisor:
    """One lease's processes."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pending = bytearray()
        self._descriptors: list[int] = []
        self._running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._deadline_ms: int | None = None
        self._prctl = load_prctl()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._told_to_end = False
        self._grace_s = DEFAULT_GRACE_S

    def run(self) -> None:
        """Serve until the end of the lease; on return no process of it is left, as far as that can be had."""
        if self._prctl:
            self._prctl(PR_SET_CHILD_SUBREAPER, 1)
            self._prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGUSR1, self._on_orphaned)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while not self._told_to_end and not self._overdue():
            control = self._control.fileno()
            ready, _, _ = select.select([control, self._wake_read], [], [], self._wait_s())
            if self._wake_read in ready:
                drain(self._wake_read)
            self._reap()
            if control in ready:
                self._read()
        self._end_all(self._grace_s)
        self._say({"ended": True})

    def _on_terminate(self, *_: object) -> None:
        self._told_to_end = True

    def _on_orphaned(self, *_: object) -> None:
        """The host is gone: nobody is left who would wait for a polite end."""
        self._told_to_end, self._grace_s = True, 0.0

    def _overdue(self) -> bool:
        return self._deadline_ms is not None and time.time_ns() // 1_000_000 >= self._deadline_ms

    def _wait_s(self) -> float:
        # Short steps, because a machine that slept has a wall clock that jumped.
        return 30.0 if self._deadline_ms is None else max(0.0, min(5.0, self._deadline_ms / 1000 - time.time()))

    def _read(self) -> None:
        """Take in what the host sent; its silence for ever is the end of the lease."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 16)
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        self._pending += data
        if not data or len(self._pending) > MAX_MESSAGE_BYTES:
            self._on_orphaned()
        while b"\n" in self._pending and not self._told_to_end:
            line, _, rest = bytes(self._pending).partition(b"\n")
            self._pending = bytearray(rest)
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "spawn":
                self._spawn(message)
            case "signal":
                self._signal(message["id"], message["signal"])
            case "deadline":
                self._deadline_ms = message["deadline_ms"]
            case "end":
                self._told_to_end, self._grace_s = True, float(message["grace_s"])

    def _spawn(self, message: dict[str, Any]) -> None:
        needed = 1 if message["pty"] else 3
        given, self._descriptors = self._descriptors[:needed], self._descriptors[needed:]
        streams = given * 3 if message["pty"] else given
        try:
            process = subprocess.Popen(
                message["argv"],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                env=message["env"],
                cwd=message["cwd"],
                start_new_session=True,
                # Safe: this process has one thread.
                preexec_fn=lambda: self._in_child(has_terminal=message["pty"]),  # noqa: PLW1509
            )
        except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
            self._say({"id": message["id"], "error": str(error)})
        else:
            self._running[process.pid] = (message["id"], process)
            self._say({"id": message["id"], "pid": process.pid})
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _in_child(self, *, has_terminal: bool) -> None:
        if self._prctl:
            self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Whatever the host was started with (nohup, a shell's background): a lease begins with ordinary signals.
        for what in ORDINARY_SIGNALS:
            signal.signal(what, signal.SIG_DFL)
        if has_terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _signal(self, number: int, what: int) -> None:
        for pid, (known, _) in self._running.items():
            if known == number:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, what)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            known = self._running.pop(pid, None)
            if known is None:
                continue
            number, process = known
            code = os.waitstatus_to_exitcode(status)
            process.returncode = code
            self._say({"id": number, "exit": code} if code >= 0 else {"id": number, "signal": -code})

    def _end_all(self, grace_s: float) -> None:
        """Ask once, politely; then kill until nobody is left."""
        for pid in descendants():
            send(pid, signal.SIGTERM)
            send(pid, signal.SIGCONT)
        until = time.monotonic() + grace_s
        while descendants() and time.monotonic() < until:
            self._reap()
            time.sleep(KILL_ROUND_S)
        until = time.monotonic() + KILL_PATIENCE_S
        while time.monotonic() < until:
            self._reap()
            found = descendants()
            if not found:
                return
            # All are stopped first, so that none can fork while the others die.
            for pid in found:
                send(pid, signal.SIGSTOP)
            for pid in found:
                send(pid, signal.SIGKILL)
            time.sleep(KILL_ROUND_S)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")


def descendants() -> set[int]:
    """The processes below this one that are not already dead."""
    children: dict[int, list[int]] = {}
    for pid, parent in living():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        for pid in children.get(ahead.pop(), []):
            if pid not in found:
                found.add(pid)
                ahead.append(pid)
    return found


def living() -> list[tuple[int, int]]:
    """All processes but zombies, each with its parent."""
    if not os.path.isdir("/proc/self"):
        return living_by_ps()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{name}/stat", "rb") as file:
                # The command's name is in parentheses and may itself hold blanks and parentheses.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                found.append((int(name), int(parent)))
    return found


def living_by_ps() -> list[tuple[int, int]]:
    """The same on systems without /proc."""
    shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in shown.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if len(row) >= 3 and not row[2].startswith("Z")]


def send(pid: int, what: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, what)


def drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def load_prctl() -> Any:
    """Linux's `prctl`, or None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None


if __name__ == "__main__":
    Supervisor(socket.socket(fileno=int(sys.argv[1]))).run()
