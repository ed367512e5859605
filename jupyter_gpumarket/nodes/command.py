"""One command on a node: fed, read within limits, and ended when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import shlex

import asyncssh

from jupyter_gpumarket.models import Record

MAX_ERROR_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
# The shell tells its process id in the first line of its error output: OpenSSH passes no signals on to what root
# started, so that only another command can end it.
_TELL_PID = "echo $$ >&2\n"
_MAX_PID_CHARS = 12


class CommandResult(Record, frozen=True, kw_only=True):
    """How a command on the node ended. `exit_code` is negative for a signal."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class TooMuchOutput(Exception):
    """The command printed more than allowed."""


def posix(script: str) -> str:
    """A script as a command that runs in a POSIX shell whatever the user's login shell is."""
    return f"exec sh -c {shlex.quote(script)}"


class Command:
    """A running command. `collect` it; `kill` it when that was given up."""

    def __init__(self, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._connection = connection
        self._process = process
        self._stderr = bytearray()
        self._pid: int | None = None
        self._pid_told = False

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection, script: str) -> Command:
        """Run a POSIX shell script.

        Raises:
            asyncssh.Error, OSError: the connection is gone, or opens no channel.
        """
        process = await connection.create_process(posix(_TELL_PID + script), encoding=None)
        return cls(connection, process)

    async def collect(self, given: bytes, limit: int) -> CommandResult | None:
        """Feed and read it to its end; None when the connection went away first.

        Raises:
            TooMuchOutput: more than `limit` bytes on standard output. Of error output the end is kept.
        """
        parts = (
            asyncio.ensure_future(self._feed(given)),
            asyncio.ensure_future(self._read_output(limit)),
            asyncio.ensure_future(self._read_errors()),
        )
        try:
            _, stdout, _ = await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
        await self._process.wait_closed()
        code = self._process.returncode
        return None if code is None else CommandResult(exit_code=code, stdout=stdout, stderr=bytes(self._stderr))

    async def kill(self) -> None:
        """End it and what it started in its process group, and give its channel up."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(asyncssh.Error, OSError):
            self._process.kill()
        if self._pid is not None:
            with contextlib.suppress(asyncssh.Error, OSError):
                script = f"kill -KILL -- -{self._pid} || kill -KILL {self._pid}"
                await self._connection.create_process(posix(script), stderr=asyncssh.DEVNULL)
        with contextlib.suppress(asyncssh.Error, OSError):
            self._process.channel.abort()

    async def _feed(self, given: bytes) -> None:
        # A command may end without reading its input; how it ended tells more than the broken pipe.
        with contextlib.suppress(OSError, asyncssh.Error):
            for start in range(0, len(given), READ_BYTES):
                self._process.stdin.write(given[start : start + READ_BYTES])
                await self._process.stdin.drain()
            self._process.stdin.write_eof()

    async def _read_output(self, limit: int) -> bytes:
        kept = bytearray()
        while data := await self._process.stdout.read(READ_BYTES):
            kept += data
            if len(kept) > limit:
                raise TooMuchOutput
        return bytes(kept)

    async def _read_errors(self) -> None:
        while data := await self._process.stderr.read(READ_BYTES):
            self._stderr += data
            if not self._pid_told and b"\n" in self._stderr:
                self._take_pid()
            del self._stderr[:-MAX_ERROR_BYTES]

    def _take_pid(self) -> None:
        self._pid_told = True
        line, _, rest = self._stderr.partition(b"\n")
        if len(line) <= _MAX_PID_CHARS and line.isdigit() and int(line) > 1:
            self._pid = int(line)
            self._stderr = bytearray(rest)
