"""Figures on the Jupyter server's /metrics. They stand as last seen; `gpumarket_seen_timestamp_seconds` tells when."""

from __future__ import annotations

from prometheus_client import Gauge

from jupyter_gpumarket.money import NUSD_PER_USD
from jupyter_gpumarket.server.sight import Sight

# One set for the process, as the registry behind /metrics is.
BROKER_UP = Gauge("gpumarket_broker_up", "Whether the broker answered at the last look (1) or not (0)")
OPEN_LEASES = Gauge("gpumarket_open_leases", "Leases that have not ended")
RATE = Gauge("gpumarket_rate_usd_per_hour", "What everything that may be billing costs an hour, US dollars")
SPENT = Gauge("gpumarket_spent_today_usd", "Spent since midnight UTC, open leases included, US dollars")
ORPHANS = Gauge("gpumarket_orphans", "Rentals with our label that no lease knows, and that are not gone")
SEEN = Gauge("gpumarket_seen_timestamp_seconds", "When the broker was last seen, seconds since 1970 UTC")


def show(sight: Sight | None) -> None:
    """Set the figures; None: there was no broker to ask. Prometheus knows only floats: for reading, never for sums."""
    BROKER_UP.set(0 if sight is None else 1)
    if sight is None:
        return
    OPEN_LEASES.set(len(sight.leases))
    RATE.set(sight.rate_nusd_hour / NUSD_PER_USD)
    SPENT.set(sight.spent_today_nusd / NUSD_PER_USD)
    ORPHANS.set(sum(orphan.state != "gone" for orphan in sight.orphans))
    SEEN.set(sight.at_ms / 1000)
