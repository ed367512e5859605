"""Asks all marketplaces at once; each has its own deadline, and one that fails is a warning, not a failure of all.

A marketplace is asked no more often than its token bucket allows, not before the moment that its own `Retry-After`
named, and once more when the first answer was a passing trouble. What it told last stays in the list, with its age.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec

from jupyter_gpumarket.api import MarketplaceStatus
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import MarketplaceError, Temporary
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.marketplaces.http import Bucket
from jupyter_gpumarket.models import Offer, OfferQuery
from jupyter_gpumarket.offers.filters import with_canonical_gpu

DEADLINE_S = 15.0
FRESH_S = 20.0
# One list every five seconds on average, six at once: enough for a person, kind to a marketplace.
LISTS_PER_S = 0.2
LISTS_AT_ONCE = 6
# A marketplace that just failed is not asked again at once, unless somebody wants a fresh list or rents.
REST_S = 10.0
PAUSE_S = 0.5

Listed = Callable[[str, Sequence[Offer]], None]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One marketplace's newest list. `message`: why there is none newer."""

    offers: tuple[Offer, ...] = ()
    taken_s: float | None = None
    failed_s: float | None = None
    not_before_s: float = 0.0
    message: str = ""


class Collector:
    """The newest list of every marketplace, with its age. `listed` is told of each new list."""

    def __init__(
        self,
        marketplaces: Mapping[str, Marketplace],
        clock: Clock,
        *,
        deadline_s: float = DEADLINE_S,
        listed: Listed = lambda _name, _offers: None,
    ) -> None:
        self._marketplaces = marketplaces
        self._clock = clock
        self._deadline_s = deadline_s
        self._listed = listed
        self._parts: dict[str, Part] = {}
        self._locks = {name: asyncio.Lock() for name in marketplaces}
        self._buckets = {name: Bucket(LISTS_PER_S, LISTS_AT_ONCE, clock) for name in marketplaces}

    async def collect(self, query: OfferQuery, *, refresh: bool) -> dict[str, Part]:
        """Every wanted marketplace's list: no older than FRESH_S, or new with `refresh`."""
        wanted = [name for name in self._marketplaces if not query.marketplaces or name in query.marketplaces]
        parts = await asyncio.gather(*(self._part(name, refresh=refresh) for name in wanted))
        return dict(zip(wanted, parts, strict=True))

    def status(self, name: str, part: Part) -> MarketplaceStatus:
        """How it did, for people."""
        age_s = 0.0 if part.taken_s is None else self._clock.monotonic_s() - part.taken_s
        return MarketplaceStatus(
            marketplace=name, ok=not part.message, offers=len(part.offers), age_s=age_s, message=part.message
        )

    async def _part(self, name: str, *, refresh: bool) -> Part:
        asked_s = self._clock.monotonic_s()
        async with self._locks[name]:
            known = self._parts.get(name, Part())
            if self._is_due(known, asked_s, refresh=refresh):
                known = self._parts[name] = await self._ask(name, known)
            return known

    def _is_due(self, known: Part, asked_s: float, *, refresh: bool) -> bool:
        if known.failed_s is not None:
            return known.failed_s < (asked_s if refresh else asked_s - REST_S)
        return known.taken_s is None or known.taken_s < (asked_s if refresh else asked_s - FRESH_S)

    async def _ask(self, name: str, known: Part) -> Part:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._wait_for_leave(name, known)
                started_s = self._clock.monotonic_s()
                listed = await self._list(name)
        except TimeoutError:
            return self._failed(known, f"{name} did not answer within {self._deadline_s:g} s")
        except MarketplaceError as error:
            return self._failed(known, str(error), getattr(error, "retry_after_s", None))
        offers = tuple(with_canonical_gpu(offer) for offer in listed)
        self._listed(name, offers)
        return Part(offers=offers, taken_s=started_s)

    async def _list(self, name: str) -> list[Offer]:
        try:
            return await self._marketplaces[name].offers(OfferQuery())
        except Temporary as error:
            await self._clock.sleep(PAUSE_S if error.retry_after_s is None else error.retry_after_s)
        return await self._marketplaces[name].offers(OfferQuery())

    async def _wait_for_leave(self, name: str, known: Part) -> None:
        await self._buckets[name].take()
        wait_s = known.not_before_s - self._clock.monotonic_s()
        if wait_s > 0:
            await self._clock.sleep(wait_s)

    def _failed(self, known: Part, message: str, retry_after_s: float | None = None) -> Part:
        now_s = self._clock.monotonic_s()
        return msgspec.structs.replace(
            known, message=message, failed_s=now_s, not_before_s=now_s + (retry_after_s or 0.0)
        )
