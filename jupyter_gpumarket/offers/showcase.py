"""What can be seen without an account: public lists, read live, and else the shipped sample. None of it is rentable."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Offer, OfferQuery, Record
from jupyter_gpumarket.offers.collect import Collector, Listed, Part
from jupyter_gpumarket.offers.sample import NOTE, sample

# Marketplaces that are one's own machines, not an account anywhere.
OWN = frozenset({"pool"})
PUBLIC = "read from the public list; renting needs a key: see the marketplace's page in the docs"
# An outing to the internet on behalf of who only looks: shorter than for marketplaces that one rents from.
DEADLINE_S = 5.0


class Shown(Record, frozen=True, kw_only=True):
    """One marketplace's part of the showcase, and what to say of it."""

    marketplace: str
    part: Part
    note: str

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What is shown."""
        return self.part.offers


class Showcase:
    """Public lists and the sample, of marketplaces that are not set up. `taken`: those that are."""

    def __init__(
        self, readers: Mapping[str, Marketplace], clock: Clock, *, taken: AbstractSet[str], listed: Listed
    ) -> None:
        self._readers = {name: reader for name, reader in readers.items() if name not in taken}
        self._collector = Collector(self._readers, clock, deadline_s=DEADLINE_S, listed=listed)
        self._taken = taken

    async def all(self, query: OfferQuery, *, refresh: bool) -> list[Shown]:
        """What there is to see, one entry for each marketplace."""
        live = await self._collector.collect(query, refresh=refresh)
        shown = [Shown(marketplace=name, part=part, note=PUBLIC) for name, part in live.items()]
        for name, offers in sample().items():
            wanted = not query.marketplaces or name in query.marketplaces
            if wanted and name not in self._taken and name not in live:
                shown.append(Shown(marketplace=name, part=Part(offers=offers), note=NOTE))
        return shown

    async def aclose(self) -> None:
        """Close the readers' connections."""
        for reader in self._readers.values():
            await reader.aclose()
