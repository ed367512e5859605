"""The ingress of marketplaces that are reached by HTTPS alone: a WebSocket that leads to a rental's SSH server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

PREFIX = "/_ingress/"
CHUNK = 65_536


@runtime_checkable
class HasIngress(Protocol):
    """A stand-in whose nodes are reached so."""

    def ingress_port(self, name: str) -> int:
        """The port on loopback behind a public name; 0 where nothing answers (yet)."""


class Ingress(WebSocketHandler):
    """One connection; it ends with the other one, whichever ends first."""

    def initialize(self, port_of: Callable[[str], int]) -> None:
        self._port_of = port_of
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._back: asyncio.Task[None] | None = None

    def check_origin(self, origin: str) -> bool:  # noqa: ARG002
        """Nobody is asked who they are: that is what the SSH server behind does."""
        return True

    async def get(self, name: str) -> None:
        port = self._port_of(name)
        if not port:
            self.set_status(503)
            self.finish(b"no service behind this name")
            return
        try:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            self.set_status(502)
            self.finish(b"the service does not answer")
            return
        await super().get(name)

    def open(self, *_name: str) -> None:
        self._back = asyncio.create_task(self._pass_back())

    async def on_message(self, message: str | bytes) -> None:
        if self._writer is None:
            return
        self._writer.write(message if isinstance(message, bytes) else message.encode())
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def on_close(self) -> None:
        if self._back is not None:
            self._back.cancel()
        if self._writer is not None:
            self._writer.close()

    async def _pass_back(self) -> None:
        assert self._reader is not None
        with contextlib.suppress(OSError, WebSocketClosedError, StreamClosedError):
            while part := await self._reader.read(CHUNK):
                await self.write_message(part, binary=True)
        self.close()
