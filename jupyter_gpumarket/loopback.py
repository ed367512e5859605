"""HTTP to our own processes on this machine, over kept connections; h11 knows the grammar.

Every cell waits for a few such calls, and a general client takes several times as long for each: what a stranger's
server needs (proxies, redirects, cookies, TLS, content codings) is not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

READ_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
KEPT = 8
TOKEN = re.compile(r"[\x21-\x7e]{1,500}")


class Lost(Exception):
    """Nobody is there, or the connection broke before the whole answer had come. The call may have had its effect."""


class Answer(NamedTuple):
    """What the other side answered."""

    status: int
    body: bytes


class _Connection:
    """One connection, used for one call after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._grammar = h11.Connection(h11.CLIENT)

    @property
    def is_usable(self) -> bool:
        """Whether another call may be sent, as far as can be seen from here."""
        is_closed = self._writer.is_closing() or self._reader.at_eof()
        return not is_closed and self._grammar.our_state is h11.IDLE

    async def call(self, head: h11.Request, token: Callable[[], str], content: bytes, silence_s: float) -> Answer:
        """Send and receive."""
        await self._send(head, token, content, silence_s)
        status, pieces = 0, []
        while True:
            event = self._grammar.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(silence_s):
                    self._grammar.receive_data(await self._reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise Lost("the connection was closed")
        if self._grammar.our_state is h11.DONE and self._grammar.their_state is h11.DONE:
            self._grammar.start_next_cycle()
        return Answer(status, b"".join(pieces))

    async def _send(self, head: h11.Request, token: Callable[[], str], content: bytes, silence_s: float) -> None:
        whole = memoryview(content)
        self._writer.write(_with_token(self._grammar.send(head) or b"", token))
        self._grammar.send_with_data_passthrough(h11.Data(data=content))
        self._grammar.send(h11.EndOfMessage())
        with contextlib.suppress(ConnectionError):  # it may have answered before it had read everything
            for start in range(0, max(1, len(content)), PIECE_BYTES):
                self._writer.write(whole[start : start + PIECE_BYTES])
                async with asyncio.timeout(silence_s):
                    await self._writer.drain()

    def drop(self) -> None:
        """Close it, whatever is under way."""
        self._writer.transport.abort()


class Connections:
    """Calls to one process. Belongs to one event loop; calls at the same time have a connection each."""

    def __init__(self, url: str, token: Callable[[], str], *, connect_s: float) -> None:
        """`token` tells it when a call is sent: it is in no variable, which a verbose traceback would show."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"a process of ours listens at http://ADDRESS:PORT, not at {url[:80]!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._base = parts.path.rstrip("/")
        self._headers = [("Host", parts.netloc)]
        self._token = token
        self._connect_s = connect_s
        self._kept: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._is_closed = False
        self._pid = os.getpid()
        self._of_parent: list[_Connection] = []

    async def call(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        silence_s: float,
    ) -> Answer:
        """One call. `silence_s`: the longest time in which nothing moves, seconds.

        Raises:
            Lost: see there.
            TimeoutError: it is there and says nothing.
        """
        length = [("Content-Length", str(len(content)))] if content or method in ("POST", "PUT") else []
        head = h11.Request(
            method=method, target=self._base + path, headers=[*self._headers, *(headers or {}).items(), *length]
        )
        connection = self._free() or await self._connected()
        self._busy.add(connection)
        try:
            answer = await connection.call(head, self._token, content, silence_s)
        except (OSError, h11.ProtocolError) as error:
            connection.drop()
            if isinstance(error, TimeoutError):
                raise
            raise Lost(type(error).__name__) from None
        except BaseException:
            connection.drop()
            raise
        finally:
            self._busy.discard(connection)
        if connection.is_usable and len(self._kept) < KEPT and not self._is_closed:
            self._kept.append(connection)
        else:
            connection.drop()
        return answer

    def close(self) -> None:
        """Close all connections, for good: calls under way are lost, and no later one keeps its connection."""
        self._is_closed = True
        for connection in [*self._kept, *self._busy]:
            connection.drop()
        self._kept.clear()

    def _free(self) -> _Connection | None:
        if self._pid != os.getpid():
            # A forked child. What is open belongs to its parent, and is not even let go of here: to close it would take
            # it out of the parent's loop, since both have one epoll.
            self._of_parent += self._kept
            self._kept, self._pid = [], os.getpid()
        while self._kept:
            connection = self._kept.pop()
            if connection.is_usable:
                return connection
            connection.drop()
        return None

    async def _connected(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                return _Connection(*await asyncio.open_connection(self._host, self._port, limit=READ_BYTES))
        except OSError as error:  # TimeoutError too: nobody takes the connection
            raise Lost(type(error).__name__) from None


def _with_token(head: bytes, token: Callable[[], str]) -> bytes:
    """A call's head with the token in it, which h11 never sees: what it says of a request shows all of its headers.

    Raises:
        ValueError: it is no token.
    """
    if not TOKEN.fullmatch(token()):
        raise ValueError("the token for a process of ours is not one line of plain letters")
    return head[:-2] + f"Authorization: Bearer {token()}\r\n\r\n".encode("ascii")
