"""A worker process of a map as the agent holds it: started in its own group, fed over a socket, killed for sure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from jupyter_gpumarket.agent.launcher import PARENT_VARIABLE
from jupyter_gpumarket.agent.map_worker import LENGTH, Done, Setup, Task
from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.wire.mapping import MAX_INLINE_BYTES, MAX_ITEM_TEXT

START_TIMEOUT_S = 300.0
# What an answer may weigh: result, streams, traceback.
MAX_ANSWER_BYTES = MAX_INLINE_BYTES + 16 * MAX_ITEM_TEXT
LAST_WORDS_CHARS = 1500

_answers = msgspec.msgpack.Decoder(Done)


class WorkerDied(NodeError):
    """The process is gone; the message says how, with its last words."""


class WorkerProcess:
    """One worker. Make it with `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log

    @classmethod
    async def start(cls, setup: Setup, *, folder: Path, number: int, environment: dict[str, str]) -> WorkerProcess:
        """Start a process and wait until it has its inputs.

        Raises:
            WorkerDied: it ended before, or took too long.
        """
        ours, theirs = socket.socketpair()
        log = folder / f"worker-{number}.log"
        with theirs, log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "jupyter_gpumarket.agent.map_worker",
                str(theirs.fileno()),
                cwd=folder.parent.parent / "work",
                env={**environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer, log)
        try:
            await asyncio.wait_for(worker._exchange(msgspec.msgpack.encode(setup)), START_TIMEOUT_S)
        except TimeoutError:
            await worker.kill()
            raise WorkerDied(f"a worker was not ready within {START_TIMEOUT_S:.0f} s of its start") from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def run(self, task: Task) -> Done:
        """Run one item.

        Raises:
            WorkerDied: the process ended meanwhile.
        """
        return _answers.decode(await self._exchange(msgspec.msgpack.encode(task)))

    async def kill(self) -> None:
        """End the process with all that it has started."""
        self._writer.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def _exchange(self, frame: bytes) -> bytes:
        try:
            self._writer.write(LENGTH.pack(len(frame)) + frame)
            await self._writer.drain()
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_ANSWER_BYTES:
                raise WorkerDied("a worker answered with more than it may")
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            code = await self._process.wait()
            raise WorkerDied(self._how(code)) from None

    def _how(self, code: int) -> str:
        with contextlib.suppress(OSError):
            words = self._log.read_text(errors="replace")[-LAST_WORDS_CHARS:].strip()
            return f"{how_it_died(code)}\n{words}".strip()
        return how_it_died(code)


def how_it_died(code: int) -> str:
    """The end of a worker process in words."""
    if code >= 0:
        return f"the worker process ended with exit code {code} (something called exit)"
    if code == -signal.SIGKILL:
        return "the worker process was killed (SIGKILL): most often the node ran out of memory"
    with contextlib.suppress(ValueError):
        return f"the worker process was ended by {signal.Signals(-code).name}"
    return f"the worker process was ended by signal {-code}"
