"""Finds and ends rentals that bear our label and that no open lease knows: left over from late replies and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from jupyter_gpumarket.api import Orphan
from jupyter_gpumarket.errors import GpuMarketError, JournalError, MarketplaceError
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.leases.labels import is_ours
from jupyter_gpumarket.leases.world import World
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Lease, Rental, RentalStatus

log = logging.getLogger(__name__)


class Sweep:
    """Looks through each account at the start and every few minutes."""

    def __init__(self, world: World, open_leases: Callable[[], list[Lease]]) -> None:
        self._world = world
        self._open_leases = open_leases
        self._is_ours = partial(is_ours, world.label_secret)
        self._found: dict[tuple[str, str], Orphan] = {}
        self._releases: dict[tuple[str, str], asyncio.Task[None]] = {}

    def orphans(self) -> list[Orphan]:
        """All found since the start, also those that are gone."""
        return list(self._found.values())

    async def run(self) -> None:
        """Sweep for ever, each account at its own pace."""
        await asyncio.gather(*(self._repeat(market) for market in self._world.marketplaces.values()))

    async def aclose(self) -> None:
        """Stop. An orphan that is not gone yet is found again at the next start."""
        for task in self._releases.values():
            task.cancel()
        await asyncio.gather(*self._releases.values(), return_exceptions=True)

    async def _repeat(self, market: Marketplace) -> None:
        failures = 0
        while True:
            error: Exception
            try:
                await self._account(market)
            except MarketplaceError as caught:
                log.warning("sweep: %s", caught)
                error = caught
            except Exception as caught:  # the engine's loop: an adapter's bug must not end the sweep for good
                log.exception("sweep of %s failed", market.name)
                error = caught
            else:
                failures = 0
                await self._world.clock.sleep(self._world.policy.sweep_every_s)
                continue
            await self._world.back_off(failures, error)
            failures += 1

    async def _account(self, market: Marketplace) -> None:
        for rental in await self._world.call(market.name, market.rentals()):
            key = (market.name, rental.rental_id)
            if key not in self._releases and self._is_orphan(rental):
                self._releases[key] = asyncio.get_running_loop().create_task(self._end(market, rental))
                self._releases[key].add_done_callback(partial(self._over, key))

    def _over(self, key: tuple[str, str], _done: asyncio.Task[None]) -> None:
        self._releases.pop(key, None)

    def _is_orphan(self, rental: Rental) -> bool:
        """Ours by its MAC, and no open lease has it or may be about to have it."""
        if rental.status is RentalStatus.GONE or not self._is_ours(rental.label):
            return False
        return not any(
            lease.label == rental.label and lease.may_bill and lease.rental_id in ("", rental.rental_id)
            for lease in self._open_leases()
        )

    async def _end(self, market: Marketplace, rental: Rental) -> None:
        """Release an orphan until the marketplace says that it is gone; first look whether it is really there."""
        failures = 0
        while True:
            if (market.name, rental.rental_id) in self._found:
                await self._ask_for_end(market, rental)
            try:
                now = await self._world.call(market.name, market.rental(rental.rental_id))
            except GpuMarketError as error:
                log.warning("orphan %s: %s", rental.rental_id, error)
            else:
                if now.status is RentalStatus.GONE:
                    self._note(market, rental, "gone")
                    return
                if (market.name, rental.rental_id) not in self._found:
                    self._note(market, rental, "found")
                    continue
            await self._world.back_off(failures)
            failures += 1

    async def _ask_for_end(self, market: Marketplace, rental: Rental) -> None:
        try:
            await self._world.call(market.name, market.release(rental.rental_id))
        except GpuMarketError as error:
            log.warning("orphan %s: %s", rental.rental_id, error)
        else:
            self._note(market, rental, "release_asked")

    def _note(self, market: Marketplace, rental: Rental, state: str) -> None:
        """Remember and write how far it is, once for each step. What was gone already was never an orphan."""
        key = (market.name, rental.rental_id)
        known = self._found.get(key)
        order = ("found", "release_asked", "gone")
        if (known is None and state == "gone") or (
            known is not None and order.index(known.state) >= order.index(state)
        ):
            return
        orphan = msgspec.convert(
            {
                "marketplace": market.name,
                "rental_id": rental.rental_id,
                "label": rental.label,
                "found_ms": known.found_ms if known else self._world.clock.now_ms(),
                "price_nusd_hour": rental.price_nusd_hour,
                "state": state,
            },
            Orphan,
        )
        self._found[key] = orphan
        entry = NewEntry(kind=f"orphan.{state}", subject=rental.rental_id, body=msgspec.to_builtins(orphan))
        # An orphan must be ended whether or not the journal can be written.
        with contextlib.suppress(JournalError):
            self._world.store.append([entry])
