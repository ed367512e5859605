"""What the agent has to say and need not say twice: the newest report of each thing, sent when there is room.

State changes while the link is down would otherwise pile up, and a full window would stop the session that changes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_gpumarket.errors import WireError


class Outbox:
    """Reports by key; a newer one replaces an unsent older one of the same key."""

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self._send = send
        self._due: dict[tuple[str, ...], Any] = {}
        self._wanted = asyncio.Event()

    def put(self, key: tuple[str, ...], report: Any) -> None:
        """Have this sent soon."""
        self._due[key] = report
        self._wanted.set()

    async def run(self) -> None:
        """Send what is due, for ever."""
        while True:
            while not self._due:
                self._wanted.clear()
                await self._wanted.wait()
            key = next(iter(self._due))
            try:
                await self._send(self._due.pop(key))
            except WireError as error:
                # One report that cannot be sent must not silence the others.
                sys.stderr.write(f"agent: a report about {' '.join(key)} cannot be sent: {error}\n")
