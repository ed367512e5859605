"""Inputs on their way to one node: from another node where that spares the user's line, else from here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from jupyter_gpumarket.cluster.blobs import CHANGED, BlobStore
from jupyter_gpumarket.cluster.bulk import Bulk
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire import messages as wire
from jupyter_gpumarket.wire.bulk import TakeBlob

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def _alone(sha256: str, size: int) -> AsyncIterator[bool]:
    """No other node has anything."""
    del sha256, size
    yield False


class Inputs:
    """What one node has of the inputs, as far as its agent has said so in this contact."""

    def __init__(self, blobs: BlobStore, send: Callable[[Any], Awaitable[None]], bulk: Bulk | None) -> None:
        self._blobs = blobs
        self._send = send
        self._bulk = bulk
        self._stored: set[str] = set()
        self._storing: dict[str, asyncio.Future[None]] = {}
        self._putting = asyncio.Lock()
        # Set by whoever knows the other nodes: one turn to bring an input, whose value says that another node has.
        self.staging: Callable[[str, int], AbstractAsyncContextManager[bool]] = _alone

    def has(self, sha256: str) -> bool:
        """Whether the agent has said that it has this input, whole."""
        return sha256 in self._stored

    def stored(self, report: wire.BlobStored) -> None:
        """The agent has an input, or cannot take it."""
        waiting = self._storing.pop(report.sha256, None)
        if not report.error:
            self._stored.add(report.sha256)
        if waiting is None or waiting.done():
            return
        if report.error:
            waiting.set_exception(BadRequest(report.error[:500]))
        else:
            waiting.set_result(None)

    def forget_contact(self) -> None:
        """The agent may be another one: what it has is asked anew."""
        self._stored.clear()
        for waiting in self._storing.values():
            if not waiting.done():
                waiting.set_exception(TimeoutError("the agent was restarted"))
                waiting.exception()
        self._storing.clear()

    async def bring(self, sha256: str) -> None:
        """Bring an input over, unless the agent has it. One at a time: pieces of one blob must not be mixed.

        Raises:
            BadRequest: the node cannot keep it.
            OSError, TimeoutError: it is gone here, or the agent was restarted.
        """
        async with self._putting:
            if sha256 in self._stored:
                return
            path = self._blobs.path(sha256)
            if path.exists() and not self._blobs.has(sha256):
                raise BadRequest(CHANGED)
            size = path.stat().st_size
            if size > wire.MAX_CHUNK_BYTES and await self._is_there(sha256, size):
                return
            async with self.staging(sha256, size) as is_there:
                if is_there:
                    self._stored.add(sha256)
                else:
                    await self._send_from_here(path, sha256, size)

    async def _send_from_here(self, path: Path, sha256: str, size: int) -> None:
        if self._bulk is not None and self._bulk.is_for(size) and await self._send_bulk(self._bulk, path, sha256, size):
            return
        await asyncio.to_thread(self._blobs.check, sha256)
        stored = self._storing[sha256] = asyncio.get_running_loop().create_future()
        with path.open("rb") as file:
            offset, is_last = 0, False
            while not is_last and not stored.done():
                data = file.read(wire.MAX_CHUNK_BYTES)
                is_last = offset + len(data) >= size
                await self._send(wire.PutBlob(sha256=sha256, offset=offset, data=data, last=is_last))
                offset += len(data)
        await stored

    async def _send_bulk(self, bulk: Bulk, path: Path, sha256: str, size: int) -> bool:
        """Bring a large input over beside the channel; whether the agent has it now."""
        if not await bulk.send(path, sha256, size):
            return False
        taken = self._storing[sha256] = asyncio.get_running_loop().create_future()
        await self._send(TakeBlob(sha256=sha256, size=size, is_checked=True))
        try:
            await taken
        except BadRequest as error:
            logger.info("a large input goes through the channel: %s", error)
            return False
        return True

    async def _is_there(self, sha256: str, size: int) -> bool:
        """Ask by an empty last piece: whoever has the blob says so, whoever has not refuses the piece."""
        asked = self._storing[sha256] = asyncio.get_running_loop().create_future()
        await self._send(wire.PutBlob(sha256=sha256, offset=size, data=b"", last=True))
        try:
            await asked
        except BadRequest:
            return False
        return True
