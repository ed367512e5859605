"""The catalogue finds what fits, best first, and explains what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from jupyter_gpumarket.api import OfferSearch
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.errors import BadRequest, NoMatchingOffer, Temporary
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Machine, Offer, OfferQuery, PriceKind, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers import Catalogue


def offer(
    machine: str, price: str, *, gpu: str = "RTX 4090", vram: float = 24, count: int = 1, **more: object
) -> Offer:
    return Offer(  # type: ignore[arg-type]
        marketplace="fake",
        offer_id=f"o-{machine}",
        machine_id=machine,
        price_nusd_hour=usd(price),
        seen_ms=0,
        gpu_raw=gpu,
        gpu_count=count,
        vram_gib=vram,
        **more,
    )


class Listing:
    """A marketplace of which only the list is asked."""

    def __init__(self, offers: Sequence[Offer] = (), error: Exception | None = None, delay_s: float = 0) -> None:
        self.listed, self.error, self.delay_s, self.asked = list(offers), error, delay_s, 0

    async def offers(self, query: OfferQuery) -> list[Offer]:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        return self.listed


def catalogue(markets: Mapping[str, Listing], machines: Sequence[Machine] = ()) -> Catalogue:
    known: Mapping[str, Marketplace] = markets  # type: ignore[assignment]
    return Catalogue(known, SystemClock(), lambda: machines)


CHEAP, DEAR, BIG = offer("cheap", "0.30"), offer("dear", "0.50"), offer("big", "2.00", gpu="H100_SXM", vram=80)
CPU = offer("cpu", "0.05", gpu="", vram=0, count=0)


async def found(query: OfferQuery, **kwargs: object) -> list[str]:
    shop = catalogue({"fake": Listing([DEAR, BIG, CHEAP, CPU])})
    return [o.machine_id for o in await shop.candidates(query, exclude=frozenset())]


async def test_the_cheapest_fitting_offer_comes_first() -> None:
    """Candidates are ordered by price."""
    assert await found(OfferQuery(gpu="any")) == ["cheap", "dear", "big"]


@pytest.mark.parametrize(
    ("query", "machines"),
    [
        (OfferQuery(), ["cpu", "cheap", "dear", "big"]),
        (OfferQuery(gpu="none"), ["cpu"]),
        (OfferQuery(gpu="H100|A100:80GB"), ["big"]),
        (OfferQuery(vram_gib=40), ["big"]),
        (OfferQuery(gpu="any", max_price_nusd_hour=usd("0.40")), ["cheap"]),
    ],
)
async def test_filters_keep_what_was_asked_for(query: OfferQuery, machines: list[str]) -> None:
    """Each filter lets pass what it says."""
    assert await found(query) == machines


@pytest.mark.parametrize(
    ("query", "blamed"),
    [
        (OfferQuery(gpu="H100", max_price_nusd_hour=usd("1")), r"price <= \$1.00/h"),
        (OfferQuery(vram_gib=200), "vram >= 200 GiB"),
        (OfferQuery(region="mars"), "region mars"),
        (OfferQuery(tier=Tier.TEE), "tier >= tee"),
        (OfferQuery(kind=PriceKind.SPOT), "spot price"),
        (OfferQuery(gpu="any::8"), "at least 8 GPUs"),
        (OfferQuery(disk_gib=1000), "disk_gib >= 1000"),
    ],
)
async def test_the_filter_that_removed_the_last_candidates_is_named(query: OfferQuery, blamed: str) -> None:
    """An empty answer tells what to loosen."""
    with pytest.raises(NoMatchingOffer, match=blamed):
        await found(query)


async def test_excluded_and_bad_machines_give_way() -> None:
    """A machine that failed comes last, an excluded one not at all."""
    bad = Machine(marketplace="fake", machine_id="cheap", bad=2)
    shop = catalogue({"fake": Listing([CHEAP, DEAR, BIG])}, [bad])
    first = await shop.candidates(OfferQuery(gpu="RTX 4090"), exclude=frozenset())
    second = await shop.candidates(OfferQuery(gpu="RTX 4090"), exclude=frozenset({("fake", "dear")}))

    assert [o.machine_id for o in first] == ["dear", "cheap"]
    assert [o.machine_id for o in second] == ["cheap"]


async def test_one_failing_marketplace_is_a_warning() -> None:
    """The others' offers are still shown, and the failure is told."""
    shop = catalogue({"fake": Listing([CHEAP]), "down": Listing(error=Temporary("down", "no answer"))})
    listed = await shop.search(OfferSearch())

    assert [o.machine_id for o in listed.offers] == ["cheap"]
    assert [(s.marketplace, s.ok) for s in listed.statuses] == [("fake", True), ("down", False)]


async def test_no_marketplace_at_all_says_how_to_get_one() -> None:
    """A new user is told what to start."""
    with pytest.raises(NoMatchingOffer, match="jupyter gpumarket demo"):
        await catalogue({}).candidates(OfferQuery(), exclude=frozenset())


async def test_all_marketplaces_down_is_not_an_empty_market() -> None:
    """The error tells that nobody answered."""
    shop = catalogue({"down": Listing(error=Temporary("down", "no answer"))})
    with pytest.raises(NoMatchingOffer, match="no marketplace could be reached: down: no answer"):
        await shop.candidates(OfferQuery(), exclude=frozenset())


async def test_a_fresh_list_is_not_asked_for_again() -> None:
    """Searching twice asks once; refreshing asks again."""
    market = Listing([CHEAP])
    shop = catalogue({"fake": market})
    for refresh in (False, False, True):
        await shop.search(OfferSearch(refresh=refresh))

    assert market.asked == 2


async def test_an_unknown_order_is_refused() -> None:
    """The message lists the orders there are."""
    with pytest.raises(BadRequest, match="price_per_gpu"):
        await catalogue({"fake": Listing([CHEAP])}).search(OfferSearch(sort="colour"))
