"""The registry at work: the book, the clocks, and the hosts that wait for orders."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3

from jupyter_gpumarket.api.pool import HostReport, Joining, Orders
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.pool.registry_book import Book
from jupyter_gpumarket.pool.registry_store import RegistryStore

log = logging.getLogger(__name__)
VERSION = "1"
TICK_S = 0.5


class RegistryService:
    """One registry. After `lost_after_s` of silence a host is lost; it is told to speak every `heartbeat_s`."""

    def __init__(
        self,
        store: RegistryStore,
        clock: Clock,
        *,
        join_token_digest: str,
        heartbeat_s: float = 3.0,
        lost_after_s: float = 30.0,
    ) -> None:
        self.store = store
        self.book = Book(store)
        self.heartbeat_s = heartbeat_s
        self.join_token_digest = join_token_digest
        self._clock = clock
        self._lost_after_s = lost_after_s
        self._boot_id = secrets.token_hex(8)
        # Random, so that what a host has seen of an earlier life never looks like the newest orders of this one.
        self._first_version = secrets.randbelow(2**48)
        self._versions: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        # While the registry was down nobody could be heard: silence counts from its start at the earliest.
        self._heard_s = {host.host_id: clock.monotonic_s() for host in store.hosts() if host.present}
        self._last_ms = clock.now_ms()

    def now_ms(self) -> int:
        """Wall time that does not go back while the registry runs, so that no bill is negative."""
        self._last_ms = max(self._last_ms, self._clock.now_ms())
        return self._last_ms

    def join(self, joining: Joining, token_digest: str | None) -> None:
        """Take in a host."""
        self.book.join(joining, token_digest, self.now_ms())

    async def hear(self, host_id: str, report: HostReport) -> Orders:
        """Take a heartbeat, and answer with orders: at once when they are news to the host, else when they are."""
        self._heard_s[host_id] = self._clock.monotonic_s()
        self.book.report(host_id, report, self.now_ms())
        self.tell_hosts()
        if report.leaving:
            self._heard_s.pop(host_id, None)
        elif report.wait_s and report.seen_version == self._version(host_id):
            await self._wait(host_id, min(report.wait_s, self.heartbeat_s))
        return self.book.orders(host_id, self._boot_id, self._version(host_id))

    def tell_hosts(self) -> None:
        """Wake the hosts whose orders have changed."""
        for host_id in self.book.changed:
            self._versions[host_id] = self._version(host_id) + 1
            waiting = self._waiting.pop(host_id, None)
            if waiting is not None:
                waiting.set()
        self.book.changed.clear()

    def tick(self) -> None:
        """Run the timers, and give up on hosts that have been silent for too long."""
        now_s = self._clock.monotonic_s()
        for host_id, heard_s in list(self._heard_s.items()):
            if now_s - heard_s > self._lost_after_s:
                self.book.lose(host_id)
                del self._heard_s[host_id]
        self.book.run_timers(self.now_ms())
        self.tell_hosts()

    async def tick_forever(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self.tick()
            except sqlite3.Error:
                # A full or locked disk: what was due is due at the next tick too.
                log.exception("the registry's database cannot be written")
            await self._clock.sleep(TICK_S)

    def _version(self, host_id: str) -> int:
        return self._versions.get(host_id, self._first_version)

    async def _wait(self, host_id: str, seconds: float) -> None:
        event = self._waiting.setdefault(host_id, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return
