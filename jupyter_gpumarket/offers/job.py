"""What a job on an offer will cost: the same whole-number arithmetic for one offer and for a table of a million.

The job's time counts by the marketplace's own rule (quantum, minimum), the start of the machine is what the bill grows
by when it is put before the work, and disk, traffic and fees follow the offer's billing. The risk is the price of what
an interruption takes, times how likely one is; the assumptions behind it are the constants below, and nothing else.
"""

from __future__ import annotations

import polars as pl

from jupyter_gpumarket.models import Offer, PriceKind, Record

PPM = 1_000_000
HOUR_S = 3600
MIB = 1024
LONGEST_S = 365 * 24 * HOUR_S

# What a start takes until the first cell can run, where nobody told and we never saw; and the part of it that we need
# ourselves to set a node up, where the marketplace told how long its own part takes.
UNKNOWN_BOOT_S = 120
SETUP_S = 30
# Chance of an interruption in an hour: of a firm rental, and of one that may be taken away.
FIRM_PPM_HOUR = 500
SPOT_PPM_HOUR = 30_000
# A marketplace's reliability is read as the chance to stay up for a day; nobody told counts as this.
UNKNOWN_RELIABILITY_PPM = 970_000
DAY_H = 24
# Our own record counts as if four good rentals had been there before the first.
PRIOR_GOOD = 4


class Job(Record, frozen=True, kw_only=True):
    """How long, with how much disk, and what moves in and out. `disk_mib` of None: the disk that the offer has."""

    seconds: int = HOUR_S
    disk_mib: int | None = None
    in_mib: int = 0
    out_mib: int = 0

    @classmethod
    def of(cls, *, hours: float, disk_gib: float | None = None, in_gib: float = 0.0, out_gib: float = 0.0) -> Job:
        """The job in whole seconds and MiB, rounded up to the second."""
        return cls(
            seconds=min(LONGEST_S, max(1, -int(-hours * HOUR_S // 1))),
            disk_mib=None if disk_gib is None else round(disk_gib * MIB),
            in_mib=round(in_gib * MIB),
            out_mib=round(out_gib * MIB),
        )


class Known(Record, frozen=True, kw_only=True):
    """What we know of a machine ourselves: how its rentals went, and how long it takes to start."""

    good: int = 0
    bad: int = 0
    boot_s: int | None = None


class JobCost(Record, frozen=True, kw_only=True):
    """The parts of a job's price, nano-dollars, and of its risk (`chance_ppm`: millionths)."""

    time_nusd: int
    boot_nusd: int
    storage_nusd: int
    in_nusd: int
    out_nusd: int
    fee_nusd: int
    risk_nusd: int
    chance_ppm: int
    boot_s: int

    @property
    def all_in_nusd(self) -> int:
        """What the job costs when nothing goes wrong."""
        return (
            self.time_nusd + self.boot_nusd + self.storage_nusd + self.in_nusd + self.out_nusd + self.fee_nusd
        )  # fmt: skip

    @property
    def cost_to_finish_nusd(self) -> int:
        """What it costs on the average of many, with what goes wrong."""
        return self.all_in_nusd + self.risk_nusd


def job_cost(offer: Offer, job: Job, known: Known | None = None) -> JobCost:
    """What the job costs on this offer."""
    known = known or Known()
    billing = offer.billing
    boot_s = boot_seconds(offer, known)
    quantum_s = max(1, billing.quantum_s)

    def billed_s(seconds: int) -> int:
        return max(-(-seconds // quantum_s) * quantum_s, billing.minimum_s)

    time_nusd = _hourly(offer.price_nusd_hour, billed_s(job.seconds))
    boot_nusd = _hourly(offer.price_nusd_hour, billed_s(job.seconds + boot_s)) - time_nusd
    disk_mib = round(offer.disk_gib * MIB) if job.disk_mib is None else job.disk_mib
    chance_ppm = _chance_ppm(offer, job, known)
    lost_nusd = time_nusd // 2 + boot_nusd
    return JobCost(
        time_nusd=time_nusd,
        boot_nusd=boot_nusd,
        storage_nusd=_hourly(billing.storage_nusd_gib_hour * disk_mib // MIB, job.seconds + boot_s),
        in_nusd=-(-billing.ingress_nusd_gib * job.in_mib // MIB),
        out_nusd=-(-billing.egress_nusd_gib * job.out_mib // MIB),
        fee_nusd=billing.fee_nusd,
        risk_nusd=lost_nusd // PPM * chance_ppm + lost_nusd % PPM * chance_ppm // PPM,
        chance_ppm=chance_ppm,
        boot_s=boot_s,
    )


def boot_seconds(offer: Offer, known: Known) -> int:
    """How long the start takes: as we measured it, else as it is told, else as assumed."""
    if known.boot_s is not None:
        return known.boot_s
    return UNKNOWN_BOOT_S if offer.boot_s is None else max(0, round(offer.boot_s)) + SETUP_S


def reliability_ppm(offer: Offer) -> int:
    """The marketplace's own figure in millionths; what is not told counts as `UNKNOWN_RELIABILITY_PPM`."""
    if offer.reliability is None:
        return UNKNOWN_RELIABILITY_PPM
    return min(PPM, max(0, round(offer.reliability * PPM)))


def own_failure_ppm(good: int, bad: int) -> int:
    """How likely our record makes it that a rental of this machine fails."""
    return bad * PPM // (good + bad + PRIOR_GOOD)


def _chance_ppm(offer: Offer, job: Job, known: Known) -> int:
    hourly = SPOT_PPM_HOUR if offer.kind is PriceKind.SPOT else FIRM_PPM_HOUR
    hourly += (PPM - reliability_ppm(offer)) // DAY_H
    return min(PPM, hourly * job.seconds // HOUR_S + own_failure_ppm(known.good, known.bad))


def _hourly(nusd_hour: int, seconds: int) -> int:
    """`ceil(rate * time)`, split so that no step leaves 64 bits: tables compute the same."""
    return nusd_hour // HOUR_S * seconds - (-(nusd_hour % HOUR_S) * seconds // HOUR_S)


# ── the same over a table ────────────────────────────────────────────────────────────────────────────────────────────

COST_COLUMNS = (
    "time_nusd",
    "boot_nusd",
    "storage_nusd",
    "in_nusd",
    "out_nusd",
    "fee_nusd",
    "risk_nusd",
    "chance_ppm",
    "all_in_nusd",
    "cost_to_finish_nusd",
)


def with_costs(table: pl.DataFrame, job: Job) -> pl.DataFrame:
    """The table of `filters.frame` with `COST_COLUMNS`, exactly as `job_cost` reckons each row."""
    price, boot_s = pl.col("price_nusd_hour"), pl.col("boot_s")
    disk = pl.col("disk_mib") if job.disk_mib is None else pl.lit(job.disk_mib, dtype=pl.Int64)
    hourly = pl.when(pl.col("is_spot")).then(SPOT_PPM_HOUR).otherwise(FIRM_PPM_HOUR).cast(pl.Int64)
    hourly = hourly + (PPM - pl.col("reliability_ppm")) // DAY_H
    chance = pl.min_horizontal(pl.lit(PPM), hourly * job.seconds // HOUR_S + pl.col("own_failure_ppm"))
    table = table.with_columns(
        _billed(price, pl.lit(job.seconds, dtype=pl.Int64)).alias("time_nusd"),
        _billed(price, boot_s + job.seconds).alias("boot_nusd"),
        _rate(pl.col("storage_nusd_gib_hour") * disk // MIB, boot_s + job.seconds).alias("storage_nusd"),
        _ceil(pl.col("ingress_nusd_gib") * job.in_mib, MIB).alias("in_nusd"),
        _ceil(pl.col("egress_nusd_gib") * job.out_mib, MIB).alias("out_nusd"),
        chance.cast(pl.Int64).alias("chance_ppm"),
    )
    table = table.with_columns(pl.col("boot_nusd") - pl.col("time_nusd"))
    lost, chance = pl.col("time_nusd") // 2 + pl.col("boot_nusd"), pl.col("chance_ppm")
    parts = [pl.col(name) for name in COST_COLUMNS[:6]]
    table = table.with_columns(
        (lost // PPM * chance + lost % PPM * chance // PPM).alias("risk_nusd"),
        pl.sum_horizontal(parts).alias("all_in_nusd"),
    )
    return table.with_columns((pl.col("all_in_nusd") + pl.col("risk_nusd")).alias("cost_to_finish_nusd"))


def _billed(price: pl.Expr, seconds: pl.Expr) -> pl.Expr:
    quantum = pl.col("quantum_s")
    return _rate(price, pl.max_horizontal(_ceil(seconds, quantum) * quantum, pl.col("minimum_s")))


def _rate(nusd_hour: pl.Expr, seconds: pl.Expr) -> pl.Expr:
    return nusd_hour // HOUR_S * seconds + _ceil(nusd_hour % HOUR_S * seconds, HOUR_S)


def _ceil(amount: pl.Expr, by: pl.Expr | int) -> pl.Expr:
    return (amount + by - 1) // by
