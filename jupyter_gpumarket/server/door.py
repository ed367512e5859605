"""The server's one connection to the broker: made on the first request, shared by all, made again when it is lost.

The client's libraries are imported here on first use, so that a Jupyter server in which nobody rents pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from jupyter_gpumarket import config
from jupyter_gpumarket.errors import BrokerUnavailable, GpuMarketError

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient

T = TypeVar("T")

# After a failed start, callers are told the same at once for so long: a page asks often, and each try may take seconds.
REMEMBER_FAILURE_S = 3.0
# The client keeps 64 connections; half of them stay free for calls that are answered at once.
MAX_WAITS = 32


class Door:
    """Calls to the broker. With `start`, one is started when none runs; the watch must not do that.

    `home` is a folder as in JUPYTER_GPUMARKET_HOME, or empty for the user's own folders.
    """

    def __init__(self, *, home: str, timeout_s: float, start: bool) -> None:
        self._home = home
        self._timeout_s = timeout_s
        self._start = start
        self._client: AsyncClient | None = None
        self._calls: Counter[AsyncClient] = Counter()
        self._waits = 0
        self._connecting: asyncio.Task[AsyncClient] | None = None
        self._failure: tuple[float, GpuMarketError] | None = None
        self._quiet: Door | None = None

    @property
    def quiet(self) -> Door:
        """A door to the same broker that starts none."""
        if self._quiet is None:
            self._quiet = Door(home=self._home, timeout_s=self._timeout_s, start=False)
        return self._quiet

    @property
    def folders(self) -> config.Folders:
        """The state and configuration folders; made on first use.

        Raises:
            ConfigError: they cannot be made.
        """
        return config.folders({config.ENVIRONMENT_PREFIX + "HOME": self._home} if self._home else None)

    async def call(self, ask: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Ask the broker something.

        Raises:
            BrokerUnavailable: there is none, and it could not be started or was not to be.
            GpuMarketError: what the broker answered.
        """
        client = await self._connected()
        self._calls[client] += 1
        try:
            return await ask(client)
        except BrokerUnavailable:
            # The next call looks anew, once for all callers.
            if self._client is client:
                self._client = None
            raise
        finally:
            self._calls[client] -= 1
            if client is not self._client and not self._calls[client]:
                # The last one shuts the door: closing it earlier would cut the others' calls.
                del self._calls[client]
                await client.aclose()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[bool]:
        """Around a call that waits for a change; whether it may, or too many wait already and block all others."""
        self._waits += 1
        try:
            yield self._waits <= MAX_WAITS
        finally:
            self._waits -= 1

    def forget_failure(self) -> None:
        """Somebody has reached the broker: the next call tries anew."""
        self._failure = None

    async def aclose(self) -> None:
        """Close connections; the broker goes on."""
        if self._quiet is not None:
            await self._quiet.aclose()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _connected(self) -> AsyncClient:
        if self._client is not None:
            return self._client
        if self._failure is not None and time.monotonic() - self._failure[0] < REMEMBER_FAILURE_S:
            raise self._failure[1].with_traceback(None)
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connected_or_not)
        # A browser that goes away must not take the others' attempt with it.
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> AsyncClient:
        from jupyter_gpumarket.client import connect_async

        self._client = await connect_async(self.folders, start=self._start, timeout_s=self._timeout_s)
        return self._client

    def _connected_or_not(self, task: asyncio.Task[AsyncClient]) -> None:
        self._connecting = None
        error = None if task.cancelled() else task.exception()
        self._failure = (time.monotonic(), error) if isinstance(error, GpuMarketError) else None
