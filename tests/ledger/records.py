"""Leases, runs and offers for tests of the ledger: small numbers, and Hypothesis strategies over all shapes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from jupyter_gpumarket.models import (
    Attempt,
    Billing,
    CellRun,
    Lease,
    LeaseRequest,
    LeaseState,
    Offer,
    OfferQuery,
    Owner,
    RunStatus,
)
from jupyter_gpumarket.money import usd

HOUR_MS = 3_600_000
MINUTE_MS = 60_000
START_MS = 1_790_000_000_000
ANNA = Owner(user="anna", project="vision", notebook="digits.ipynb")


def offer(price: str = "0.36", **changes: Any) -> Offer:
    values: dict[str, Any] = {
        "marketplace": "pool",
        "offer_id": "o-1",
        "machine_id": "m-1",
        "price_nusd_hour": usd(price),
        "seen_ms": START_MS,
        "gpu": "RTX 4090",
        "gpu_count": 1,
    }
    return Offer(**(values | changes))


def lease(price: str = "0.36", *, billing: Billing | None = None, **changes: Any) -> Lease:
    """A ready lease: rented at START_MS, ready one minute later."""
    request = LeaseRequest(request_id="q-1", query=OfferQuery(), budget_nusd=usd("5"), max_s=7200, owner=ANNA)
    values: dict[str, Any] = {
        "lease_id": "lease-1",
        "name": "blue-fox",
        "state": LeaseState.READY,
        "request": request,
        "created_ms": START_MS - 2_000,
        "changed_ms": START_MS + MINUTE_MS,
        "offer": offer(price, billing=billing or Billing()),
        "price_nusd_hour": usd(price),
        "rental_id": "r-1",
        "billed_from_ms": START_MS,
        "ready_ms": START_MS + MINUTE_MS,
        "deadline_ms": START_MS + 2 * HOUR_MS,
    }
    return Lease(**(values | changes))


def run(name: str, start_s: float | None, end_s: float | None, **changes: Any) -> CellRun:
    """A run whose times are seconds after the lease became billed."""
    values: dict[str, Any] = {
        "run_id": name,
        "lease_id": "lease-1",
        "session": "main",
        "status": RunStatus.RUNNING if end_s is None else RunStatus.OK,
        "owner": ANNA,
        "started_ms": None if start_s is None else START_MS + round(start_s * 1000),
        "ended_ms": None if end_s is None else START_MS + round(end_s * 1000),
    }
    return CellRun(**(values | changes))


SPAN_MS = 3 * HOUR_MS
moments = st.integers(-HOUR_MS, SPAN_MS).map(lambda ms: START_MS + ms)
billings = st.builds(
    Billing,
    quantum_s=st.sampled_from([0, 1, 60, 3600]),
    minimum_s=st.sampled_from([0, 1, 600, 3600]),
    storage_nusd_gib_hour=st.sampled_from([0, 137, 10**6]),
    ingress_nusd_gib=st.sampled_from([0, 7, 10**7]),
    egress_nusd_gib=st.sampled_from([0, 11, 10**7]),
    fee_nusd=st.sampled_from([0, 1, 10**7]),
)


@st.composite
def cell_runs(draw: st.DrawFn) -> list[CellRun]:
    """Runs that overlap in any way, some not started, some still going on, some ended before they started."""
    found = []
    for number in range(draw(st.integers(0, 6))):
        started = draw(st.none() | moments)
        ended = draw(st.none() | moments) if started is not None else None
        status = RunStatus.OK if ended is not None else RunStatus.RUNNING
        found.append(run(f"run-{number}", None, None, started_ms=started, ended_ms=ended, status=status))
    return found


@st.composite
def leases(draw: st.DrawFn) -> Lease:
    """A lease in any state, with failed attempts before it, under any billing rule."""
    attempts = tuple(
        Attempt(
            marketplace="pool",
            offer_id=f"o-{number}",
            machine_id=f"m-{number}",
            started_ms=START_MS,
            ended_ms=draw(moments),
            rental_id=f"old-{number}",
            price_nusd_hour=draw(st.integers(0, 10**10)),
            billed_from_ms=draw(st.none() | moments),
            offer=draw(st.none() | st.builds(offer, billing=billings, disk_gib=st.sampled_from([0.0, 12.5, 0.0007]))),
        )
        for number in range(draw(st.integers(0, 3)))
    )
    price = draw(st.integers(0, 10**11))
    return lease(
        state=draw(st.sampled_from(LeaseState)),
        attempts=attempts,
        price_nusd_hour=price,
        offer=offer(billing=draw(billings), disk_gib=draw(st.sampled_from([0.0, 0.1, 100.0]))),
        billed_from_ms=draw(st.none() | moments),
        billed_to_ms=draw(st.none() | moments),
        ready_ms=draw(st.none() | moments),
        received_bytes=draw(st.integers(0, 2**50)),
        sent_bytes=draw(st.integers(0, 2**50)),
        changed_ms=draw(moments),
    )
