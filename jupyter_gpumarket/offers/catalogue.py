"""The catalogue: what the broker and the lease engine ask for offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from jupyter_gpumarket.api import OfferList, OfferSearch
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import NoMatchingOffer
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Machine, Offer, OfferQuery
from jupyter_gpumarket.offers.collect import Collector
from jupyter_gpumarket.offers.filters import frame, narrowed, nothing_fits, ordered


class Catalogue:
    """Offers of all configured marketplaces.

    Args:
        marketplaces: by name.
        clock: for ages.
        machines: what we remember of machines, read anew at each question.
    """

    def __init__(
        self, marketplaces: Mapping[str, Marketplace], clock: Clock, machines: Callable[[], Sequence[Machine]]
    ) -> None:
        self._collector = Collector(marketplaces, clock)
        self._machines = machines
        self._marketplaces = marketplaces

    async def candidates(self, query: OfferQuery, *, exclude: AbstractSet[tuple[str, str]]) -> list[Offer]:
        """What fits, best first, without the (marketplace, machine) pairs in `exclude`. Always asks anew.

        Raises:
            NoMatchingOffer: names the filter that removed the last candidates, or the marketplaces that fail.
            BadRequest: the query cannot be read.
        """
        offers, statuses = await self._collector.collect(query, refresh=True)
        table, steps = narrowed(frame(offers, self._machines()), query)
        rows = ordered(table, "price", 1.0)["row"].to_list()
        fitting = [offers[row] for row in rows if (offers[row].marketplace, offers[row].machine_id) not in exclude]
        if fitting:
            return fitting
        failing = [status.message for status in statuses if not status.ok]
        if not self._marketplaces:
            raise NoMatchingOffer(
                "no marketplace is configured; `jupyter gpumarket demo` starts one on this machine, "
                "`jupyter gpumarket pool` one for your own machines"
            )
        if failing and not offers:
            raise NoMatchingOffer("no marketplace could be reached: " + "; ".join(failing))
        raise nothing_fits(steps, len(offers))

    async def search(self, search: OfferSearch) -> OfferList:
        """A filtered, ordered list for people, with how each marketplace did and what each filter removed."""
        offers, statuses = await self._collector.collect(search.query, refresh=search.refresh)
        table, steps = narrowed(frame(offers, self._machines()), search.query)
        rows = ordered(table, search.sort, search.hours)["row"].head(search.limit).to_list()
        return OfferList(offers=[offers[row] for row in rows], statuses=statuses, steps=steps)

    async def aclose(self) -> None:
        """Nothing to close: the marketplaces belong to the broker."""
