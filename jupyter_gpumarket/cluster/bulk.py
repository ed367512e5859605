"""Large inputs and outputs over a command of the node's own, beside the conversation with the agent.

The channel numbers, keeps and acknowledges every byte; bulk data needs none of that, since its hash is checked at the
end and what has arrived stays where it is. What goes wrong here is no error: the channel takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.wire.bulk import BULK_BYTES, receive_command, send_command
from jupyter_gpumarket.wire.peer import Reader, Writer

logger = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
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

    async def send(self, path: Path, sha256: str, size: int) -> bool:
        """Bring a file's bytes to the node, from where an earlier try ended; whether they are there, unchecked."""
        try:
            reader, writer = await self._run(lambda folder: receive_command(folder, sha256, size))
            try:
                have = int(await asyncio.wait_for(_line(reader), ANSWER_S))
                await _write(path, have, writer)
                return await _line(reader) == b"done"
            finally:
                writer.close()
        except (NodeError, OSError, TimeoutError, ValueError) as error:
            logger.info("a large input goes through the channel: %s", error or type(error).__name__)
            return False

    async def fetch(self, run_id: str, name: str, size: int, part: Path) -> None:
        """Append to a file what is missing of an output, as far as it comes."""
        here = part.stat().st_size if part.exists() else 0
        if not 0 <= here < size:
            return
        try:
            reader, writer = await self._run(lambda folder: send_command(folder, run_id, name, here))
            try:
                with part.open("ab") as file:
                    while here < size and (piece := await asyncio.wait_for(reader.read(PIECE_BYTES), ANSWER_S)):
                        file.write(piece[: size - here])
                        here += len(piece)
            finally:
                writer.close()
        except (NodeError, OSError, TimeoutError) as error:
            logger.info("a large output goes through the channel: %s", error or type(error).__name__)


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
