"""Saved searches: looked at while the broker runs, and told when one finds something that it had not found before."""

from __future__ import annotations

import logging
from typing import Protocol

from jupyter_gpumarket.api import Alert, OfferList, OfferSearch, SavedSearch, SearchView
from jupyter_gpumarket.api.requests import InvalidField, NotFound
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.offers import PriceBook, parse

log = logging.getLogger(__name__)

MOST_SEARCHES = 50
MAX_NAME = 64


class Catalogue(Protocol):
    """The offers."""

    async def search(self, search: OfferSearch) -> OfferList: ...


class Alerts:
    """The saved searches of one broker."""

    def __init__(self, *, book: PriceBook, catalogue: Catalogue, clock: Clock) -> None:
        self._book = book
        self._catalogue = catalogue
        self._clock = clock
        self._found: dict[str, Alert] = {}

    def views(self) -> list[SearchView]:
        """All saved searches with what they last found."""
        return [SearchView(search=search, alert=self._found.get(search.name)) for search in self._book.searches()]

    async def keep(self, search: SavedSearch) -> list[SearchView]:
        """Save a search and look at once.

        Raises:
            BadRequest: a name or a GPU that cannot be read, or too many searches.
        """
        if not 0 < len(search.name.strip()) <= MAX_NAME or not search.name.isprintable():
            raise InvalidField(f"name must be 1 to {MAX_NAME} printable characters", name="name")
        parse(search.query.gpu)
        known = {kept.name for kept in self._book.searches()}
        if search.name not in known and len(known) >= MOST_SEARCHES:
            raise InvalidField(f"there are {MOST_SEARCHES} saved searches already; drop one first", name="name")
        self._book.keep(search)
        self._found.pop(search.name, None)
        await self._look(search)
        return self.views()

    def drop(self, name: str) -> list[SearchView]:
        """Forget a search.

        Raises:
            NotFound: there is none with this name.
        """
        if not self._book.drop(name):
            raise NotFound(f"no search is saved as {name[:MAX_NAME]!r}", what="name")
        self._found.pop(name, None)
        return self.views()

    async def look(self) -> None:
        """Look for all of them."""
        for search in self._book.searches():
            try:
                await self._look(search)
            except GpuMarketError as error:
                log.warning("the saved search %s: %s", search.name, error)

    async def _look(self, search: SavedSearch) -> None:
        listed = await self._catalogue.search(OfferSearch(query=search.query, limit=1))
        if not listed.offers:
            self._found.pop(search.name, None)
            return
        best, before = listed.offers[0], self._found.get(search.name)
        if before is None or best.price_nusd_hour < before.best.price_nusd_hour:
            count = listed.steps[-1].after if listed.steps else sum(status.offers for status in listed.statuses)
            alert = Alert(search=search.name, found_ms=self._clock.now_ms(), offers=count, best=best)
            self._found[search.name] = alert
