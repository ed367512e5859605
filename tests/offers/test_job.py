"""The price of a job: exact, explained, and the same for one offer and for a table."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpumarket.models import Billing, Offer, PriceKind
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.filters import frame
from jupyter_gpumarket.offers.job import COST_COLUMNS, Job, Known, job_cost, with_costs

billings = st.builds(
    Billing,
    quantum_s=st.sampled_from([0, 1, 60, 3600]),
    minimum_s=st.sampled_from([0, 60, 3600, 86_400]),
    storage_nusd_gib_hour=st.integers(0, 10**7),
    ingress_nusd_gib=st.integers(0, 10**9),
    egress_nusd_gib=st.integers(0, 10**9),
    fee_nusd=st.integers(0, 10**10),
)
offers = st.builds(
    Offer,
    marketplace=st.just("m"),
    offer_id=st.just("o"),
    machine_id=st.just("x"),
    price_nusd_hour=st.integers(0, 1000 * 10**9),
    seen_ms=st.just(0),
    kind=st.sampled_from(list(PriceKind)),
    disk_gib=st.floats(0, 10_000),
    boot_s=st.none() | st.floats(0, 3600),
    reliability=st.none() | st.floats(-0.5, 1.5),
    billing=billings,
)
jobs = st.builds(
    Job.of,
    hours=st.floats(0.001, 8760),
    disk_gib=st.none() | st.floats(0, 10_000),
    in_gib=st.floats(0, 1000),
    out_gib=st.floats(0, 1000),
)
records = st.builds(
    Known, good=st.integers(0, 50), bad=st.integers(0, 50), boot_s=st.none() | st.integers(0, 3600)
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(offers, jobs, records)
def test_a_table_reckons_as_one_offer_does(offer: Offer, job: Job, known: Known) -> None:
    """Every part agrees to the nano-dollar, up to a year at a thousand dollars an hour."""
    table = with_costs(frame([offer], {("m", "x"): known}), job)
    one = job_cost(offer, job, known)

    assert {name: table[name][0] for name in COST_COLUMNS} == {name: getattr(one, name) for name in COST_COLUMNS}
    assert all(table.schema[name] == pl.Int64 for name in COST_COLUMNS)


@settings(max_examples=100, deadline=None)
@given(offers, jobs, records)
def test_no_part_is_negative_and_the_chance_is_one(offer: Offer, job: Job, known: Known) -> None:
    """A price has no negative parts, and nothing is more likely than certain."""
    one = job_cost(offer, job, known)

    assert min(one.time_nusd, one.boot_nusd, one.storage_nusd, one.in_nusd, one.out_nusd, one.risk_nusd) >= 0
    assert 0 <= one.chance_ppm <= 1_000_000
    assert one.risk_nusd <= one.all_in_nusd


def priced(**more: object) -> Offer:
    return Offer(marketplace="m", offer_id="o", machine_id="x", price_nusd_hour=usd("3.60"), seen_ms=0, **more)  # type: ignore[arg-type]


def test_a_job_is_billed_by_the_marketplaces_rule() -> None:
    """An hourly quantum bills ten minutes as an hour, and the start is inside that hour; disk and traffic are extra."""
    hourly = Billing(quantum_s=3600, storage_nusd_gib_hour=usd("0.0001"), egress_nusd_gib=usd("0.02"), fee_nusd=usd(1))
    job = Job.of(hours=1 / 6, disk_gib=100, out_gib=2.5)
    by_hour = job_cost(priced(boot_s=60.0, billing=hourly), job)
    by_second = job_cost(priced(boot_s=60.0), job)

    assert (by_hour.time_nusd, by_hour.boot_nusd, by_hour.fee_nusd) == (usd("3.60"), 0, usd(1))
    assert (by_second.time_nusd, by_second.boot_nusd) == (usd("0.60"), usd("0.09"))
    assert by_hour.storage_nusd == usd("0.01") * 690 // 3600 + 1
    assert by_hour.out_nusd == usd("0.05")


def test_what_we_measured_counts_before_what_is_told() -> None:
    """Our own start-up time replaces the marketplace's word, and failures make a job dearer."""
    told = job_cost(priced(boot_s=600.0), Job())
    measured = job_cost(priced(boot_s=600.0), Job(), Known(good=9, boot_s=20))
    failed = job_cost(priced(boot_s=600.0), Job(), Known(good=1, bad=5, boot_s=20))

    assert (told.boot_s, measured.boot_s) == (630, 20)
    assert measured.risk_nusd < failed.risk_nusd


def test_spot_pays_when_it_is_much_cheaper_and_only_then() -> None:
    """A job of a day on spot must be cheaper by more than its risk to come first."""
    day = Job.of(hours=24)
    firm = job_cost(priced(reliability=0.99), day).cost_to_finish_nusd
    dear_spot = job_cost(priced(reliability=0.99, kind=PriceKind.SPOT), day).cost_to_finish_nusd

    assert dear_spot > firm * 1.2
    assert dear_spot // 2 < firm
