"""Asks all marketplaces at once; each has its own deadline, and one that fails is a warning, not a failure of all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from jupyter_gpumarket.api import MarketplaceStatus
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import MarketplaceError
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Offer, OfferQuery
from jupyter_gpumarket.offers.filters import with_canonical_gpu

DEADLINE_S = 15.0
FRESH_S = 20.0


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    offers: tuple[Offer, ...] = ()
    taken_s: float | None = None
    message: str = ""


class Collector:
    """The newest list of every marketplace, with its age."""

    def __init__(
        self, marketplaces: Mapping[str, Marketplace], clock: Clock, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._marketplaces = marketplaces
        self._clock = clock
        self._deadline_s = deadline_s
        self._parts: dict[str, _Part] = {}
        self._locks = {name: asyncio.Lock() for name in marketplaces}

    async def collect(self, query: OfferQuery, *, refresh: bool) -> tuple[list[Offer], list[MarketplaceStatus]]:
        """All offers, from lists no older than FRESH_S (or new ones with `refresh`), and how each marketplace did."""
        wanted = [name for name in self._marketplaces if not query.marketplaces or name in query.marketplaces]
        parts = await asyncio.gather(*(self._part(name, refresh=refresh) for name in wanted))
        offers = [offer for part in parts for offer in part.offers]
        return offers, [self._status(name, part) for name, part in zip(wanted, parts, strict=True)]

    async def _part(self, name: str, *, refresh: bool) -> _Part:
        asked_s = self._clock.monotonic_s()
        async with self._locks[name]:
            known = self._parts.get(name, _Part())
            fresh_enough = asked_s if refresh else asked_s - FRESH_S
            if known.taken_s is None or known.taken_s < fresh_enough or known.message:
                known = self._parts[name] = await self._ask(name, known)
            return known

    async def _ask(self, name: str, known: _Part) -> _Part:
        started_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(self._deadline_s):
                listed = await self._marketplaces[name].offers(OfferQuery())
        except TimeoutError:
            return msgspec.structs.replace(known, message=f"{name} did not answer within {self._deadline_s:g} s")
        except MarketplaceError as error:
            return msgspec.structs.replace(known, message=str(error))
        return _Part(offers=tuple(with_canonical_gpu(offer) for offer in listed), taken_s=started_s)

    def _status(self, name: str, part: _Part) -> MarketplaceStatus:
        age_s = 0.0 if part.taken_s is None else self._clock.monotonic_s() - part.taken_s
        return MarketplaceStatus(
            marketplace=name, ok=not part.message, offers=len(part.offers), age_s=age_s, message=part.message
        )
