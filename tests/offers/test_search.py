"""A search for people: figures, samples, ages, our own record, and kind manners towards marketplaces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from jupyter_gpumarket.api import OfferSearch, PriceQuery
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.errors import BadRequest, Temporary
from jupyter_gpumarket.models import Billing, Lease, LeaseRequest, LeaseState, Machine, Offer, OfferQuery, Tier
from jupyter_gpumarket.money import MS_PER_HOUR, usd
from jupyter_gpumarket.offers import Catalogue, PriceBook, own_records, sample_points, summed_up
from jupyter_gpumarket.offers.baselines import baselines
from jupyter_gpumarket.offers.history import KEPT_MS
from jupyter_gpumarket.offers.ranking import SORTS
from tests.offers.test_catalogue import Listing, offer

A100 = offer("a100", "1.20", gpu="A100_SXM4", vram=80, country="DE", reliability=0.99, tier=Tier.VERIFIED)
FAR = offer("far", "1.00", gpu="A100_SXM4", vram=80, country="US", region="us-east-1", tier=Tier.DATACENTER)
HOURLY = offer("hourly", "1.10", gpu="A100_SXM4", vram=80, country="NO", billing=Billing(minimum_s=7200))


def shop(*listed: Offer, name: str = "fake", **more: object) -> Catalogue:
    return Catalogue({name: Listing(listed)}, SystemClock(), lambda: (), **more)  # type: ignore[arg-type, dict-item]


async def test_every_offer_has_its_figures() -> None:
    """One entry each, in the order of the offers; the parts add up; the comparison names date and source."""
    found = await shop(A100, FAR).search(OfferSearch(query=OfferQuery(gpu="A100"), hours=6, out_gib=1))
    baseline = found.baselines[0]

    assert [o.machine_id for o in found.offers] == ["far", "a100"]
    for listed, one in zip(found.offers, found.figures, strict=True):
        parts = (one.time_nusd, one.boot_nusd, one.storage_nusd, one.in_nusd, one.out_nusd, one.fee_nusd)
        assert one.all_in_nusd == sum(parts)
        assert one.cost_to_finish_nusd == one.all_in_nusd + one.risk_nusd
        assert one.gpu_nusd_hour == listed.price_nusd_hour
        assert one.vram_gib_nusd_hour == listed.price_nusd_hour // 80
        assert one.saving == pytest.approx(1 - listed.price_nusd_hour / baseline.gpu_nusd_hour)
        assert one.rentable
    assert (baseline.gpu, bool(baseline.date), bool(baseline.source)) == ("A100 SXM 80GB", True, True)


@pytest.mark.parametrize("sort", SORTS)
async def test_every_order_takes_every_offer(sort: str) -> None:
    """No order loses an offer, also where it lacks the figure that is sorted by."""
    cpu = offer("cpu", "0.05", gpu="", vram=0, count=0)
    odd = offer("odd", "0.50", gpu="Voodoo 2", vram=12)
    found = await shop(A100, FAR, HOURLY, cpu, odd).search(OfferSearch(sort=sort))

    assert {o.machine_id for o in found.offers} == {"a100", "far", "hourly", "cpu", "odd"}


async def test_rents_go_by_the_whole_job() -> None:
    """For half an hour, a machine with a minimum of two hours is the dearer one; for six hours it is not."""
    market = shop(A100, HOURLY)
    short = await market.candidates(OfferQuery(), exclude=frozenset(), hours=0.5)
    long = await market.candidates(OfferQuery(), exclude=frozenset(), hours=6)

    assert [o.machine_id for o in short] == ["a100", "hourly"]
    assert [o.machine_id for o in long] == ["hourly", "a100"]


@pytest.mark.parametrize(
    ("place", "machines"),
    [("EU", {"a100", "hourly"}), ("europe", {"a100", "hourly"}), ("US", {"far"}), ("NA", {"far"}), ("east", {"far"})],
)
async def test_places_are_countries_not_letters(place: str, machines: set[str]) -> None:
    """EU is Europe; any other word is looked for in names."""
    found = await shop(A100, FAR, HOURLY).search(OfferSearch(query=OfferQuery(region=place)))

    assert {o.machine_id for o in found.offers} == machines


async def test_samples_are_shown_only_when_asked_for_and_never_rented() -> None:
    """Without an account the sample stands behind one's own machines, marked and dated; rents do not see it."""
    own = shop(A100, name="pool")
    listed = await own.search(OfferSearch(samples="auto", limit=20))
    strict = await own.search(OfferSearch())
    with_account = await shop(A100, name="vast").search(OfferSearch(samples="auto"))
    candidates = await own.candidates(OfferQuery(), exclude=frozenset())

    assert [one.rentable for one in listed.figures] == [True] + [False] * 19
    assert all("2026-11-20" in one.note for one in listed.figures[1:])
    assert {s.marketplace for s in listed.statuses} >= {"pool", "vast", "runpod", "lium"}
    assert len(strict.offers) == len(with_account.offers) == len(candidates) == 1


async def test_public_lists_are_shown_live_without_an_account() -> None:
    """A market that anybody may read is read, in place of its sample; it is marked, and never rented from."""
    public = offer("public", "0.40")
    market = shop(A100, name="pool", readers={"vast": Listing([public])})
    found = await market.search(OfferSearch(samples="auto", query=OfferQuery(max_price_nusd_hour=A100.price_nusd_hour)))

    shown = {o.machine_id: one.rentable for o, one in zip(found.offers, found.figures, strict=True)}

    assert (shown["a100"], shown["public"]) == (True, False)
    assert "vast" not in {o.marketplace for o in found.offers}
    assert [o.machine_id for o in await market.candidates(OfferQuery(), exclude=frozenset())] == ["a100"]


class Moody(Listing):
    """Fails so many times first."""

    def __init__(self, offers: Sequence[Offer], failures: int, retry_after_s: float | None = None) -> None:
        super().__init__(offers)
        self.failures, self.retry_after_s = failures, retry_after_s

    async def offers(self, query: OfferQuery) -> list[Offer]:
        self.asked += 1
        if self.asked <= self.failures:
            raise Temporary("moody", "429 too many", retry_after_s=self.retry_after_s)
        return self.listed


async def test_a_passing_failure_is_tried_once_more_and_patience_is_kept() -> None:
    """A 429 with Retry-After is waited for; one that lasts is a warning and the market is let rest."""
    loop = asyncio.get_running_loop()
    once, always = Moody([A100], 1, retry_after_s=0.3), Moody([A100], 99)
    market = Catalogue({"once": once, "always": always}, SystemClock(), lambda: ())  # type: ignore[dict-item]
    started = loop.time()
    first = await market.search(OfferSearch())
    took_s = loop.time() - started
    await market.search(OfferSearch())

    assert (once.asked, always.asked) == (2, 2)
    assert took_s >= 0.3
    assert {s.marketplace: s.ok for s in first.statuses} == {"once": True, "always": False}


async def test_what_was_told_last_stays_with_its_age() -> None:
    """A market that fails later keeps its list in the catalogue, and the warning says how old it is."""
    listing = Listing([A100])
    market = Catalogue({"fake": listing}, SystemClock(), lambda: ())  # type: ignore[dict-item]
    await market.search(OfferSearch())
    listing.error = Temporary("fake", "down")
    found = await market.search(OfferSearch(refresh=True))

    assert [o.machine_id for o in found.offers] == ["a100"]
    assert [(s.ok, s.offers, s.age_s > 0.4) for s in found.statuses] == [(False, 1, True)]


async def test_our_own_record_of_a_machine_is_shown() -> None:
    """Start-up time, verdicts, measured speed and the last trouble come from our leases on that machine."""
    lease = Lease(
        lease_id="l",
        name="n",
        state=LeaseState.RELEASED,
        request=LeaseRequest(request_id="r", query=OfferQuery(), budget_nusd=1, max_s=1),
        created_ms=0,
        changed_ms=0,
        offer=A100,
        ready_ms=45_000,
        phases={"renting": 5_000},
        probe={"compute": [{"tflops": 3.5}, {"tflops": "?"}], "network": {"down_mbps": 80}},
    )
    judged = Machine(marketplace="fake", machine_id="a100", good=1, bad=1, last_reason="vanished")
    records = own_records([judged], [lease])
    found = await shop(A100, records=lambda: records).search(OfferSearch())
    own = found.figures[0].own

    assert own is not None
    assert (own.good, own.bad, own.boot_s, own.tflops, own.down_mbps) == (1, 1, 40.0, 3.5, 80.0)
    assert (own.last_trouble, found.figures[0].boot_s, found.figures[0].boot_known) == ("vanished", 40.0, True)


def test_baselines_are_of_hyperscalers_and_of_whole_machines() -> None:
    """The comparison is with what one could rent there: no resellers, no accelerator without its host."""
    clouds = {price.cloud for price in baselines().values()}

    assert clouds <= {"aws", "azure", "gcp", "oci"}
    assert all(price.date and price.source for price in baselines().values())
    assert baselines()["T4"].gpu_nusd_hour == usd("0.526")
    assert baselines()["A100 80GB"].gpu_nusd_hour == baselines()["A100 SXM 80GB"].gpu_nusd_hour


def test_prices_are_kept_compactly_and_for_a_while(tmp_path: Path) -> None:
    """Many lists of an hour are one row; what is too old goes; a search by GPU finds its rows."""
    book = PriceBook(tmp_path / "prices.sqlite")
    now_ms = 2 * KEPT_MS
    for price in ("1.20", "0.90", "1.50"):
        book.note(summed_up("fake", [offer("m", price, gpu="A100_SXM4", vram=80, count=2)], now_ms), now_ms)
    book.note(summed_up("fake", [offer("old", "9", gpu="H100_SXM", vram=80)], now_ms), now_ms)
    points = book.points(PriceQuery())
    book.note(summed_up("fake", [offer("m", "1", vram=24)], now_ms), now_ms + KEPT_MS + 2 * MS_PER_HOUR)
    left = book.points(PriceQuery(since_ms=now_ms + 1))
    book.close()

    assert [(p.gpu, p.low_nusd_hour, p.middle_nusd_hour, p.offers) for p in points if "A100" in p.gpu] == [
        ("A100_SXM4", usd("0.45"), usd("0.75"), 1)
    ]
    assert left == []


def test_a_damaged_price_file_is_put_aside(tmp_path: Path) -> None:
    """It holds nothing that is worth not starting for; what was there is kept under another name."""
    path = tmp_path / "prices.sqlite"
    path.write_bytes(b"this is no database" * 100)
    book = PriceBook(path)
    book.note(sample_points(), 0)
    found = book.points(PriceQuery(gpu="H100"))
    with pytest.raises(BadRequest, match="did you mean"):
        book.points(PriceQuery(gpu="H1000"))
    book.close()

    assert found
    assert (tmp_path / "prices.damaged").exists()
    assert path.stat().st_mode & 0o077 == 0
