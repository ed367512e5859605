"""A byte stream in a WebSocket: the way to nodes that are reached by HTTPS alone.

`socket` is this side's end, one half of a pair of connected sockets: nothing listens anywhere on the user's machine.
The bytes go out in binary messages and come in so, in both directions no faster than the other side takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

CHUNK_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
# Proxies on the way cut connections that are silent for a minute or so.
PING_S = 20.0


class Tunnel:
    """One open WebSocket and its socket. The stream ends with the WebSocket, and the WebSocket with the stream."""

    def __init__(self, websocket: WebSocketClientConnection, near: socket.socket, far: socket.socket) -> None:
        self.socket = near
        self._websocket = websocket
        self._far = far
        self._pumps = asyncio.create_task(self._carry())

    @classmethod
    async def open(cls, url: str, tls: ssl.SSLContext | None = None, *, timeout_s: float = 20.0) -> Tunnel:
        """Connect; certificates are checked (by `tls`, where another authority than the usual ones vouches).

        Raises:
            OSError: it cannot be reached, its certificate is not good, or it speaks no WebSocket there.
        """
        asked = HTTPRequest(url, connect_timeout=timeout_s, request_timeout=timeout_s, ssl_options=tls)
        try:
            websocket = await websocket_connect(
                asked, ping_interval=PING_S, ping_timeout=PING_S, max_message_size=MAX_MESSAGE_BYTES
            )
        except HTTPClientError as error:
            raise ConnectionError(f"the ingress answered {error.code} {error.message}") from None
        except WebSocketError as error:
            raise ConnectionError(f"the ingress speaks no WebSocket: {error}") from None
        near, far = socket.socketpair()
        near.settimeout(0)
        far.settimeout(0)
        return cls(websocket, near, far)

    def abort(self) -> None:
        """Cut it at once; `socket` belongs to whoever took it."""
        self._pumps.cancel()
        self._cut()

    def _cut(self) -> None:
        """Say goodbye, and do not wait for an answer."""
        protocol = self._websocket.protocol
        self._websocket.close()
        if protocol is not None and protocol.stream is not None:
            protocol.stream.close()

    async def _carry(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=self._far, limit=4 * CHUNK_BYTES)
        except OSError:
            self._cut()
            return
        ways = [asyncio.create_task(self._out(reader)), asyncio.create_task(self._in(writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            self._cut()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _out(self, reader: asyncio.StreamReader) -> None:
        # tornado's WebSocketClosedError and StreamClosedError both mean that the other side is gone.
        with contextlib.suppress(OSError, WebSocketError):
            while part := await reader.read(CHUNK_BYTES):
                await self._websocket.write_message(part, binary=True)

    async def _in(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (message := await self._websocket.read_message()) is not None:
                if isinstance(message, str):
                    return
                writer.write(message)
                await writer.drain()


def is_usable(url: str) -> bool:
    """Whether a URL is `wss://host…` without credentials; `ws://` only within this machine."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if "@" in parts.netloc or parts.fragment or not parts.hostname or port == 0 or len(url) > 2000:
        return False
    here = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return parts.scheme == "wss" or (parts.scheme == "ws" and here)
