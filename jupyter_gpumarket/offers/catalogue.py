"""The catalogue: what the broker and the lease engine ask for offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import polars as pl

from jupyter_gpumarket.api import MarketplaceStatus, OfferList, OfferSearch, OwnRecord
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import NoMatchingOffer
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Machine, Offer, OfferQuery
from jupyter_gpumarket.offers.collect import Collector, Listed, Part
from jupyter_gpumarket.offers.filters import frame, narrowed, nothing_fits
from jupyter_gpumarket.offers.job import Job
from jupyter_gpumarket.offers.ranking import all_known, compared_with, figures, ordered
from jupyter_gpumarket.offers.records import Place, own_records
from jupyter_gpumarket.offers.showcase import OWN, Showcase, Shown

Records = Callable[[], Mapping[Place, OwnRecord]]


class Catalogue:
    """Offers of all configured marketplaces.

    Args:
        marketplaces: by name.
        clock: for ages.
        machines: what we remember of machines, read anew at each question.
        records: more of it: our own record of each machine; made of `machines` alone where it is not given.
        readers: marketplaces without an account whose public list can be read; shown, never rented from.
        listed: told of each new list.
    """

    def __init__(
        self,
        marketplaces: Mapping[str, Marketplace],
        clock: Clock,
        machines: Callable[[], Sequence[Machine]],
        *,
        records: Records | None = None,
        readers: Mapping[str, Marketplace] | None = None,
        listed: Listed = lambda _name, _offers: None,
    ) -> None:
        self._collector = Collector(marketplaces, clock, listed=listed)
        self._showcase = Showcase(readers or {}, clock, taken=frozenset(marketplaces), listed=listed)
        self._records = records or (lambda: own_records(machines()))
        self._marketplaces = marketplaces
        self._clock = clock
        self._framed: tuple[list[Part], Mapping[Place, OwnRecord], pl.DataFrame] | None = None

    async def candidates(
        self, query: OfferQuery, *, exclude: AbstractSet[tuple[str, str]], hours: float = 1.0
    ) -> list[Offer]:
        """What fits, best first by what a job of `hours` will cost in the end, without the machines in `exclude`.

        Always asks anew.

        Raises:
            NoMatchingOffer: names the filter that removed the last candidates, or the marketplaces that fail.
            BadRequest: the query cannot be read.
        """
        parts = await self._collector.collect(query, refresh=True)
        offers = [offer for part in parts.values() for offer in part.offers]
        table, steps = narrowed(self._frame(list(parts.values()), offers, self._records()), query)
        rows = ordered(table, "cost_to_finish", Job.of(hours=hours, disk_gib=query.disk_gib))
        fitting = [offers[row] for row in rows if (offers[row].marketplace, offers[row].machine_id) not in exclude]
        if fitting:
            return fitting
        failing = [part.message for part in parts.values() if part.message]
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
        query = search.query
        parts = await self._collector.collect(query, refresh=search.refresh)
        statuses = [self._collector.status(name, part) for name, part in parts.items()]
        shown: list[Shown] = []
        if search.samples == "yes" or (search.samples == "auto" and not set(self._marketplaces) - OWN):
            shown = await self._showcase.all(query, refresh=search.refresh)
            statuses += [self._shown_status(one) for one in shown]
        lists = [*parts.values(), *(one.part for one in shown)]
        offers = [offer for part in lists for offer in part.offers]
        records = self._records()
        table, steps = narrowed(self._frame(lists, offers, records), query)
        job = Job.of(
            hours=search.hours,
            disk_gib=search.disk_gib if search.disk_gib is not None else query.disk_gib,
            in_gib=search.in_gib,
            out_gib=search.out_gib,
        )
        live = sum(len(part.offers) for part in parts.values())
        rows = ordered(table.filter(pl.col("row") < live), search.sort, job, search.limit)
        rows += ordered(table.filter(pl.col("row") >= live), search.sort, job, search.limit)[: search.limit - len(rows)]
        best = [offers[row] for row in rows]
        notes = {id(offer): one.note for one in shown for offer in one.offers}
        now_ms = self._clock.now_ms()
        return OfferList(
            offers=best,
            statuses=statuses,
            steps=steps,
            figures=[
                figures(
                    offer,
                    job,
                    now_ms=now_ms,
                    own=records.get((offer.marketplace, offer.machine_id)),
                    rentable=id(offer) not in notes,
                    note=notes.get(id(offer), ""),
                )
                for offer in best
            ],
            baselines=compared_with(best),
        )

    def _shown_status(self, shown: Shown) -> MarketplaceStatus:
        now_ms = self._clock.now_ms()
        oldest_ms = min((offer.seen_ms for offer in shown.offers), default=now_ms)
        return MarketplaceStatus(
            marketplace=shown.marketplace,
            ok=not shown.part.message,
            offers=len(shown.offers),
            age_s=max(0, now_ms - oldest_ms) / 1000,
            message=shown.part.message or shown.note,
        )

    def _frame(self, parts: list[Part], offers: list[Offer], records: Mapping[Place, OwnRecord]) -> pl.DataFrame:
        """The table of these lists; made once for as long as they and our records stay the same."""
        kept = self._framed
        if kept is None or len(kept[0]) != len(parts) or kept[1] != records or not _same(kept[0], parts):
            kept = self._framed = (parts, records, frame(offers, all_known(records)))
        return kept[2]

    async def aclose(self) -> None:
        """Close the public readers; the marketplaces belong to the broker."""
        await self._showcase.aclose()


def _same(before: list[Part], now: list[Part]) -> bool:
    return all(one.offers is other.offers for one, other in zip(before, now, strict=True))
