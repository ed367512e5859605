"""Output variables: fetched piece by piece, checked by hash and in a child process, and only then shown to doors."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from jupyter_gpumarket.api import OutputRef
from jupyter_gpumarket.cluster.bulk import Bulk
from jupyter_gpumarket.cluster.records import ExpectedOutput
from jupyter_gpumarket.cluster.runs import Run
from jupyter_gpumarket.codecs import CODECS, DEFAULT_LIMITS, Checker
from jupyter_gpumarket.errors import CodecError
from jupyter_gpumarket.wire.messages import GetOutput, OutputChunk

Send = Callable[[GetOutput], Awaitable[None]]


class OutputFetcher:
    """Fetches the outputs of one run from its node. What has arrived before a cut is not asked for again."""

    def __init__(self, run: Run, send: Send, bulk: Bulk | None = None) -> None:
        self._bulk = bulk
        self._run = run
        self._send = send
        self._name = ""
        self._size = 0
        self._part = Path()
        self._done: asyncio.Future[None] | None = None

    async def fetch_all(self) -> tuple[OutputRef, ...]:
        """All outputs that the request named, each as a reference to checked bytes or as an error."""
        announced = {output.name: output for output in self._run.state.expected}
        missing = "the node did not say what became of it"
        return tuple(
            [
                await self._fetch_one(announced.get(name) or ExpectedOutput(name=name, error=missing))
                for name in self._run.state.request.outputs
            ]
        )

    def take(self, chunk: OutputChunk) -> None:
        """A piece has come. One that does not follow on what is here ends the fetching of this output."""
        if self._done is None or self._done.done() or chunk.name != self._name:
            return
        here = self._part.stat().st_size if self._part.exists() else 0
        data = chunk.data[max(0, here - chunk.offset) :]  # after a cut, the end of an earlier answer may come again
        if chunk.offset > here or here + len(data) > self._size:
            self._done.set_exception(CodecError("the node sent other bytes than it announced"))
            return
        with self._part.open("ab") as file:
            file.write(data)
        if chunk.last:
            self._done.set_result(None)

    def refuse(self, reason: str) -> None:
        """The node will not give the output that is being fetched."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(CodecError(f"the node did not give it: {reason[:500]}"))

    async def _fetch_one(self, output: ExpectedOutput) -> OutputRef:
        if output.error:
            return OutputRef(name=output.name, error=output.error[:2000])
        try:
            self._check_announcement(output)
            path = self._run.output_path(output.name)
            if not path.exists():
                await self._bring(output, path)
        except CodecError as error:
            return OutputRef(name=output.name, codec=output.codec[:40], size=output.size, error=str(error)[:2000])
        return OutputRef(name=output.name, codec=output.codec, size=output.size, sha256=output.sha256)

    def _check_announcement(self, output: ExpectedOutput) -> None:
        if output.codec not in CODECS:
            raise CodecError(
                f"the node sent {output.name} as {output.codec[:40]!r}, which is not opened: it could run code here"
            )
        if not 0 <= output.size <= DEFAULT_LIMITS.max_bytes:
            raise CodecError(f"{output.name} has {output.size:,} bytes; at most {DEFAULT_LIMITS.max_bytes:,} come back")

    async def _bring(self, output: ExpectedOutput, path: Path) -> None:
        part = path.with_suffix(".part")
        part.touch(0o600)
        # Started now, so that it is ready when the bytes are here.
        checker = await _ready_checker(output.codec, part)
        try:
            found = await self._receive(output, part)
            # Side by side: each of them takes its time for a large result.
            await asyncio.gather(
                asyncio.to_thread(_check_hash, output, part, found),
                asyncio.to_thread(checker.check),
                asyncio.to_thread(_force, part),
            )
        except CodecError:
            part.unlink(missing_ok=True)  # a file that is not what was announced does not stay
            raise
        finally:
            await asyncio.to_thread(checker.close)
        part.replace(path)

    async def _receive(self, output: ExpectedOutput, part: Path) -> str:
        """Bring the bytes; their SHA-256 when it was taken on the way."""
        self._name, self._size, self._part = output.name, output.size, part
        found = ""
        if self._bulk is not None and self._bulk.is_for(output.size):
            found = await self._bulk.fetch(self._run.run_id, output.name, output.size, part)
        if found:
            return found
        here = part.stat().st_size if part.exists() else 0
        if here > output.size:
            os.truncate(part, 0)  # the same file: the checking process has it open
            here = 0
        self._done = asyncio.get_running_loop().create_future()
        await self._send(GetOutput(run_id=self._run.run_id, name=output.name, offset=here))
        await self._done
        return ""


async def _ready_checker(codec: str, part: Path) -> Checker:
    """A checking process; one that comes into being after nobody wants it any more is ended."""
    making = asyncio.ensure_future(asyncio.to_thread(Checker, codec, part))

    def end(made: asyncio.Future[Checker]) -> None:
        if not made.cancelled() and made.exception() is None:
            made.result().close()

    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(end)
        raise


def _check_hash(output: ExpectedOutput, part: Path, found: str) -> None:
    """Whether the bytes are those announced; blocks, unless their hash was found on the way.

    Raises:
        CodecError: they are not.
    """
    if not found:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != output.sha256:
        raise CodecError(f"{output.name} did not arrive as it was announced: its SHA-256 differs")


def _force(part: Path) -> None:
    """To the disk; blocks."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
