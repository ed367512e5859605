"""Large inputs and outputs over a command of the node's own, beside the conversation with the agent.

The channel numbers, keeps and acknowledges every byte; bulk data needs none of that, since its hash is checked at the
end and what has arrived stays where it is. What goes wrong here is no error: the channel takes over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Literal

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.wire.bulk import BULK_BYTES, receive_command, send_command
from jupyter_gpumarket.wire.peer import Reader, Writer

logger = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
BATCH_BYTES = 4 * 1024 * 1024
# A command that says nothing for so long does not work on this node.
ANSWER_S = 30.0

# Runs a command on the node, made for the agent's folder there.
Open = Callable[[Callable[[str], str]], Awaitable[tuple[Reader, Writer]]]


class Bulk:
    """The way for large things to and from one node."""

    def __init__(self, run: Open) -> None:
        self._run = run

    @staticmethod
    def is_for(size: int) -> bool:
        """Whether so many bytes go this way."""
        return size >= BULK_BYTES

    async def send(self, path: Path, sha256: str, size: int) -> Literal["no", "there", "checked"]:
        """Bring a file's bytes to the node, from where an earlier try ended; whether the node has hashed them."""
        try:
            reader, writer = await self._run(lambda folder: receive_command(folder, sha256, size))
            try:
                have = int(await asyncio.wait_for(_line(reader), ANSWER_S))
                await _write(path, have, writer)
                told = await _line(reader)
                return "checked" if told == sha256.encode() else "there" if told == b"done" else "no"
            finally:
                writer.close()
        except (NodeError, OSError, TimeoutError, ValueError) as error:
            logger.info("a large input goes through the channel: %s", error or type(error).__name__)
            return "no"

    async def fetch(self, run_id: str, name: str, size: int, part: Path) -> str:
        """Append to a file what is missing of an output, as far as it comes.

        Returns the SHA-256 of the file when all of it came in this one go, else nothing.
        """
        here = part.stat().st_size if part.exists() else 0
        if not 0 <= here < size:
            return ""
        try:
            reader, writer = await self._run(lambda folder: send_command(folder, run_id, name, here))
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

    def keep(pieces: list[bytes]) -> None:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)

    pieces: list[bytes] = []
    held = 0
    try:
        async with asyncio.timeout(ANSWER_S) as patience:
            while came < most and (piece := await reader.read(PIECE_BYTES)):
                patience.reschedule(loop.time() + ANSWER_S)
                pieces.append(piece[: most - came])
                came += len(pieces[-1])
                held += len(pieces[-1])
                if held >= BATCH_BYTES:
                    # In a thread, so that the next bytes are decrypted meanwhile.
                    await asyncio.to_thread(keep, pieces)
                    pieces, held = [], 0
    finally:
        keep(pieces)
    return came, digest.hexdigest()


async def _write(path: Path, offset: int, writer: Writer) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while piece := file.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


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
