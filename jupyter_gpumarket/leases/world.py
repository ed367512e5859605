"""What the engine's parts share: the outside world behind its contracts, and the ways of calling it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import Permanent, Temporary
from jupyter_gpumarket.leases.policy import Policy
from jupyter_gpumarket.leases.ports import ClusterPort, KeyBox, LeaseStore, OfferSource
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Lease, LeaseState, Rental, RentalStatus

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything outside of the engine. `rng` makes labels, so in production it is `random.SystemRandom()`."""

    store: LeaseStore
    marketplaces: Mapping[str, Marketplace]
    offers: OfferSource
    clusters: ClusterPort
    keys: KeyBox
    clock: Clock
    rng: random.Random
    label_secret: bytes
    policy: Policy

    def marketplace(self, name: str) -> Marketplace:
        """The marketplace a lease is on.

        Raises:
            Permanent: it is no longer configured, so its rentals cannot be reached from here.
        """
        try:
            return self.marketplaces[name]
        except KeyError:
            raise Permanent(
                name, "is not configured any more; configure it again, so that its rentals can be released"
            ) from None

    async def call(self, marketplace: str, call: Awaitable[T], timeout_s: float | None = None) -> T:
        """Await a call that may be repeated.

        Raises:
            MarketplaceError: what the marketplace said; `Temporary` when it did not answer in time.
        """
        try:
            async with asyncio.timeout(self.policy.call_timeout_s if timeout_s is None else timeout_s):
                return await call
        except TimeoutError:
            raise Temporary(marketplace, "did not answer in time") from None

    async def back_off(self, failures: int, error: Exception | None = None) -> None:
        """Wait before the next try: as long as the marketplace asks for, and else longer with each failure."""
        wished_s = error.retry_after_s if isinstance(error, Temporary) else None
        seconds = self.policy.retry_s(failures, self.rng.random())
        await self.clock.sleep(max(seconds, min(wished_s or 0, self.policy.retry_most_s)))

    async def look(self, lease: Lease) -> Rental:
        """The lease's rental as the marketplace tells it now.

        GONE is the word that ends the billing, so it is doubted: a rental so young that the marketplace may not list it
        yet is UNKNOWN, and the account is searched for the label as well.

        Raises:
            MarketplaceError: no answer.
        """
        assert lease.offer is not None
        market = self.marketplace(lease.offer.marketplace)
        rental = await self.call(market.name, market.rental(lease.rental_id))
        if rental.status is not RentalStatus.GONE:
            return rental
        rented_ms = lease.phases.get(LeaseState.BOOTING, lease.billed_from_ms or 0)
        lag_s = market.capabilities.listing_lag_s
        if lag_s and self.clock.now_ms() < rented_ms + 1000 * self.policy.clean_gap_s(market.capabilities):
            return _with_status(rental, RentalStatus.UNKNOWN)
        found = await self.call(market.name, market.find(lease.label))
        return found if found is not None and found.rental_id == lease.rental_id else rental


def _with_status(rental: Rental, status: RentalStatus) -> Rental:
    return Rental(marketplace=rental.marketplace, rental_id=rental.rental_id, label=rental.label, status=status)
