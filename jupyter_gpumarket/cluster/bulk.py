"""Large inputs and outputs over commands of the node's own, beside the conversation with the agent.

The channel numbers, keeps and acknowledges every byte; bulk data needs none of that, since its hash is checked at the
end and what has arrived stays where it is. What goes wrong here is no error: the channel takes over.

Hashing and writing run beside the stream, at both ends. An input goes on several channels where the round trip is long.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

from jupyter_gpumarket.codecs.hashing import write_in_steps
from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.nodes import Installed
from jupyter_gpumarket.wire import bulk as wire_bulk
from jupyter_gpumarket.wire.bulk import BULK_BYTES, join_command, receive_command, send_command, stripes_for
from jupyter_gpumarket.wire.peer import Reader, Writer

logger = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
BATCH_BYTES = 4 * 1024 * 1024
# A command that says nothing for so long does not work on this node.
ANSWER_S = 30.0
# After the last byte: a slow disk has to take what is still in memory there.
DONE_S = 300.0
MAX_TOKEN_CHARS = 16

# Runs a command on the node, made for what is installed there.
Open = Callable[[Callable[[Installed], str]], Awaitable[tuple[Reader, Writer]]]


class _NoChannelError(Exception):
    """A further channel could not be had."""


class Bulk:
    """The way for large things to and from one node. `round_trip_ms` tells the present one, as far as it is known."""

    def __init__(self, run: Open, round_trip_ms: Callable[[], float | None] = lambda: None) -> None:
        self._run = run
        self._round_trip_ms = round_trip_ms
        # Set when the node's server has refused further channels, and one alone has done.
        self._is_narrow = False

    @staticmethod
    def is_for(size: int) -> bool:
        """Whether so many bytes go this way."""
        return size >= BULK_BYTES

    async def send(self, path: Path, sha256: str, size: int) -> bool:
        """Bring a file's bytes to the node, from where an earlier try ended; whether it has them, and right."""
        stripes = 1 if self._is_narrow else stripes_for(size, self._round_trip_ms())
        try:
            try:
                return await self._send_whole(path, sha256, size, stripes)
            except _NoChannelError as error:
                logger.info("a large input goes by one channel instead of %d: %s", stripes, error)
                self._is_narrow = await self._send_whole(path, sha256, size, 1)
                return self._is_narrow
        except (NodeError, OSError, TimeoutError, ValueError) as error:
            logger.info("a large input goes through the channel: %s", error or type(error).__name__)
            return False

    async def _send_whole(self, path: Path, sha256: str, size: int, stripes: int) -> bool:
        found, had = await self._send(path, sha256, size, stripes)
        if found != sha256.encode() and had > 0:
            # What lay there was something else (another node may have sent it), and is thrown away by now.
            found, _ = await self._send(path, sha256, size, stripes)
        return found == sha256.encode()

    async def _send(self, path: Path, sha256: str, size: int, stripes: int) -> tuple[bytes, int]:
        """Once; what the node found the hash to be, and how many bytes it had before."""

        def take(node: Installed) -> str:
            return receive_command(node.python, node.folder, sha256, size, stripes)

        reader, writer = await self._run(take)
        writers = [writer]
        try:
            have, token = (await asyncio.wait_for(_line(reader), ANSWER_S)).decode("ascii").split()
            await self._join_all(sha256, token, stripes, writers)
            await _write_all(path, int(have), writers)
            return await asyncio.wait_for(_line(reader), DONE_S), int(have)
        finally:
            for each in writers:
                each.close()

    async def _join_all(self, sha256: str, token: str, stripes: int, writers: list[Writer]) -> None:
        """Open the further channels, all at once: each takes two round trips. What there is of them is in `writers`."""
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError("the node's token is none")

        def joining(number: int) -> Callable[[Installed], str]:
            return lambda node: join_command(node.python, node.folder, sha256, token, number)

        opened = await asyncio.gather(
            *(self._run(joining(number)) for number in range(1, stripes)), return_exceptions=True
        )
        writers += [each[1] for each in opened if not isinstance(each, BaseException)]
        for each in opened:
            if isinstance(each, NodeError):
                raise _NoChannelError(str(each))
            if isinstance(each, BaseException):
                raise each

    async def fetch(self, run_id: str, name: str, size: int, part: Path) -> str:
        """Append to a file what is missing of an output, as far as it comes.

        Returns the SHA-256 of the file when all of it came in this one go, else nothing.
        """
        here = part.stat().st_size if part.exists() else 0
        if not 0 <= here < size:
            return ""
        try:
            reader, writer = await self._run(lambda node: send_command(node.folder, run_id, name, here))
            try:
                with part.open("ab") as file:
                    came, found = await _keep(reader, file, size - here)
            finally:
                writer.close()
        except (NodeError, OSError, TimeoutError) as error:
            logger.info("a large output goes through the channel: %s", error or type(error).__name__)
            return ""
        return found if came == size else ""


async def _keep(reader: Reader, file: IO[bytes], most: int) -> tuple[int, str]:
    """Write what comes into a file; how much it was, and its SHA-256.

    Raises:
        TimeoutError: nothing came for some time; what came before is in the file.
    """
    loop = asyncio.get_running_loop()
    digest, came = hashlib.sha256(), 0

    async def keep(batch: bytearray, size: int) -> None:
        part = memoryview(batch)[:size]
        await asyncio.gather(asyncio.to_thread(write_in_steps, file, part), asyncio.to_thread(digest.update, part))

    # One batch is written, and hashed beside it, while the next one comes: two batches of memory, used in turn.
    # Threads that went from piece to piece would wait for the interpreter's lock at each of them.
    batch, other, held = bytearray(BATCH_BYTES), bytearray(BATCH_BYTES), 0
    keeping = asyncio.ensure_future(keep(other, 0))
    try:
        async with asyncio.timeout(ANSWER_S) as patience:
            while came < most and (piece := await reader.read(PIECE_BYTES)):
                patience.reschedule(loop.time() + ANSWER_S)
                piece = piece[: most - came]
                if held + len(piece) > BATCH_BYTES:
                    await keeping
                    keeping = asyncio.ensure_future(keep(batch, held))
                    batch, other, held = other, batch, 0
                batch[held : held + len(piece)] = piece
                held += len(piece)
                came += len(piece)
    finally:
        await asyncio.shield(keeping)
        # Here and now: whoever cancelled this closes the file next.
        write_in_steps(file, memoryview(batch)[:held])
        digest.update(memoryview(batch)[:held])
    return came, digest.hexdigest()


async def _write_all(path: Path, offset: int, writers: list[Writer]) -> None:
    """Write a file from an offset on; with several writers each takes its turn's pieces, at its own pace.

    Raises:
        OSError: the link was lost, or a writer took nothing for some time.
    """
    step = wire_bulk.PIECE_BYTES * len(writers)
    try:
        with path.open("rb") as file:
            async with asyncio.TaskGroup() as group:
                for number, writer in enumerate(writers):
                    begin = offset + number * wire_bulk.PIECE_BYTES
                    group.create_task(_write_stripe(file.fileno(), begin, step, writer))
    except* (NodeError, OSError) as errors:
        raise OSError(str(errors.exceptions[0]) or type(errors.exceptions[0]).__name__) from None


async def _write_stripe(file: int, at: int, step: int, writer: Writer) -> None:
    async with asyncio.timeout(ANSWER_S) as patience:
        while piece := os.pread(file, wire_bulk.PIECE_BYTES, at):
            writer.write(piece)
            await writer.drain()
            patience.reschedule(asyncio.get_running_loop().time() + ANSWER_S)
            at += step


async def _line(reader: Reader) -> bytes:
    """One short line, without its end.

    Raises:
        OSError: the command ended, or says something else.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = await reader.read(1)
        if not byte or len(line) > 100:
            raise OSError("the node's shell does not take it")
        line += byte
    return bytes(line).strip()
