"""A TCP port that leads to a host of the pool: a rental's public SSH address, which can move and be cut."""

from __future__ import annotations

import asyncio
import contextlib

CHUNK = 65_536


class Relay:
    """Listens on a port of its own on loopback; without a target it accepts nobody for long."""

    def __init__(self, target: tuple[str, int] | None) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens; 0 while it does not."""
        if self._server is None or not self._server.sockets:
            return 0
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen on a new port; an earlier one is closed."""
        await self.close()
        # Known before it serves, so that one who is cancelled here can still close it.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, start_serving=False)
        await self._server.start_serving()

    async def close(self) -> None:
        """Cut everything."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._target is not None:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._target is not None
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            ways = [
                asyncio.ensure_future(_copy(reader, there_writer)),
                asyncio.ensure_future(_copy(there_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            there_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(CHUNK):
            writer.write(part)
            await writer.drain()
