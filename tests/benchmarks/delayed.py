"""A way on which everything takes its time, for machines without a kernel that can delay packets."""

from __future__ import annotations

import asyncio
import time
from collections import deque

ONE_WAY_S = 0.02


class Delayed:
    """A TCP way to a server on which everything takes 20 ms longer in each direction.

    With `bytes_s`, so many bytes a second fit through it in each direction, over all connections together.
    """

    def __init__(self, host: str, port: int, *, bytes_s: float = 0) -> None:
        self._host = host
        self._port = port
        self._bytes_s = bytes_s
        self._free_at = [0.0, 0.0]
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        """The loopback port that leads there."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Take it down."""
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        for direction, ends in enumerate(((reader, far_writer), (far_reader, writer))):
            task = asyncio.create_task(self._carry(*ends, direction))
            self._tasks.add(task)

    def _due(self, size: int, direction: int) -> float:
        """When a piece that comes now has left the far end of the line."""
        begins = max(time.perf_counter(), self._free_at[direction])
        self._free_at[direction] = begins + (size / self._bytes_s if self._bytes_s else 0.0)
        return self._free_at[direction] + ONE_WAY_S

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        """Each piece leaves its time after it came; pieces do not wait for each other."""
        pieces: deque[tuple[float, bytes]] = deque()
        news, room = asyncio.Event(), asyncio.Event()

        async def take() -> None:
            while data := await reader.read(65536):
                pieces.append((self._due(len(data), direction), data))
                news.set()
                while len(pieces) > 400:
                    room.clear()
                    await room.wait()
            pieces.append((0.0, b""))
            news.set()

        taking = asyncio.create_task(take())
        while True:
            while not pieces:
                news.clear()
                await news.wait()
            due, data = pieces.popleft()
            room.set()
            if not data:
                break
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            writer.write(data)
            await writer.drain()
        await taking
        writer.close()
