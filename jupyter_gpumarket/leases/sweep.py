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
        """Sweep for ever."""
        while True:
            await asyncio.gather(*(self._account(market) for market in self._world.marketplaces.values()))
            await self._world.clock.sleep(self._world.policy.sweep_every_s)

    async def aclose(self) -> None:
        """Stop. An orphan that is not gone yet is found again at the next start."""
        for task in self._releases.values():
            task.cancel()
        await asyncio.gather(*self._releases.values(), return_exceptions=True)

    async def _account(self, market: Marketplace) -> None:
        try:
            rentals = await self._world.call(market.name, market.rentals())
        except MarketplaceError as error:
            log.warning("sweep: %s", error)
            return
        except Exception:  # the engine's loop: one adapter's bug must not stop the sweep of the other accounts
            log.exception("sweep of %s failed", market.name)
            return
        for rental in rentals:
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
        """Release an orphan until the marketplace says that it is gone."""
        failures = 0
        while True:
            try:
                now = await self._world.call(market.name, market.rental(rental.rental_id))
                if now.status is RentalStatus.GONE:
                    self._note(market, rental, "gone")
                    return
                self._note(market, rental, "found")
                await self._world.call(market.name, market.release(rental.rental_id))
                self._note(market, rental, "release_asked")
            except GpuMarketError as error:
                log.warning("orphan %s on %s: %s", rental.rental_id, market.name, error)
            await self._world.back_off(failures)
            failures += 1

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
