"""What is reckoned beside an offer: the price of a whole job, comparisons, history, and searches that are kept."""

from __future__ import annotations

from typing import Literal

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import Offer, OfferQuery, Record

# Whether samples of markets without an account are shown too: never, where no account is set up at all, or always.
Samples = Literal["no", "auto", "yes"]


class OwnRecord(Record, frozen=True, kw_only=True):
    """What we ourselves have seen of a machine. `gap_ppm` is how much more than our reckoning it was billed."""

    good: int = 0
    bad: int = 0
    boot_s: float | None = None
    tflops: float | None = None
    down_mbps: float | None = None
    gap_ppm: int | None = None
    last_trouble: str = ""


class OfferFigures(Record, frozen=True, kw_only=True):
    """One offer's figures for the job that was asked about. Amounts are nano-dollars, for all GPUs of the offer.

    Attributes:
        rentable: false for a dated sample, and for what a market shows without an account; `note` says which.
        age_s: how old the offer's price is.
        all_in_nusd: the job's whole price, the sum of the six parts after it: time, start of the machine, disk,
            traffic in and out, fee.
        risk_nusd: what an interruption costs, times how likely one is (`chance_ppm`, millionths).
        cost_to_finish_nusd: all of it; what a rent ranks by.
        boot_s: the start-up time that was counted, seconds; `boot_known` says whether anybody told or we measured it.
        gpu_nusd_hour, vram_gib_nusd_hour, tflops_nusd_hour: the price now, per GPU, per GiB of GPU memory, and per
            TFLOP/s (dense bf16, else fp32, from the specification); None where it has no such figure.
        tflops: of all its GPUs, by their specification.
        baseline_nusd_hour: the cheapest hyperscaler price for as many of the same GPU; see `OfferList.baselines`.
        saving: the part of that price which this offer saves, as a fraction; negative when it is dearer.
        own: what we have seen of this machine; None for never rented.
    """

    rentable: bool = True
    note: str = ""
    age_s: float = 0.0
    all_in_nusd: int = 0
    time_nusd: int = 0
    boot_nusd: int = 0
    storage_nusd: int = 0
    in_nusd: int = 0
    out_nusd: int = 0
    fee_nusd: int = 0
    risk_nusd: int = 0
    chance_ppm: int = 0
    cost_to_finish_nusd: int = 0
    boot_s: float = 0.0
    boot_known: bool = False
    gpu_nusd_hour: int | None = None
    vram_gib_nusd_hour: int | None = None
    tflops_nusd_hour: int | None = None
    tflops: float | None = None
    baseline_nusd_hour: int | None = None
    saving: float | None = None
    own: OwnRecord | None = None


class Baseline(Record, frozen=True, kw_only=True):
    """The cheapest hyperscaler price of one GPU model, for comparison: whose, where, and when it was true."""

    gpu: str
    cloud: str
    instance_type: str
    gpu_nusd_hour: int
    region: str
    date: str
    source: str


class PriceQuery(Request, frozen=True, kw_only=True):
    """POST /v1/prices: how prices were. `gpu` is the grammar of searches."""

    gpu: str | None = None
    marketplaces: tuple[str, ...] = ()
    since_ms: int = 0


class PricePoint(Record, frozen=True, kw_only=True):
    """One hour of one GPU model at one marketplace: cheapest and middle price per GPU and hour, and how many offers."""

    hour_ms: int
    marketplace: str
    gpu: str
    kind: str
    low_nusd_hour: int
    middle_nusd_hour: int
    offers: int


class PriceHistory(Record, frozen=True, kw_only=True):
    """The answer to `PriceQuery`, oldest first."""

    points: list[PricePoint]


class SavedSearch(Request, frozen=True, kw_only=True):
    """PUT /v1/searches: a search that is kept under a name, and looked at while the broker runs.

    `max_price_nusd_hour` of the query is the price at which somebody wants to be told.
    """

    name: str
    query: OfferQuery


class DropSearch(Request, frozen=True, kw_only=True):
    """POST /v1/searches/drop"""

    name: str


class Alert(Record, frozen=True, kw_only=True):
    """A saved search has found something that it had not found before."""

    search: str
    found_ms: int
    offers: int
    best: Offer


class SearchView(Record, frozen=True, kw_only=True):
    """GET /v1/searches: a saved search and what it last found; `alert` of None: nothing fits now."""

    search: SavedSearch
    alert: Alert | None = None
