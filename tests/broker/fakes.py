"""Fakes at the broker's seams: an engine that only listens, clusters that only note, leases ready to use."""

from __future__ import annotations

from typing import Any

from jupyter_gpumarket.api import AnyFact
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.models import (
    Lease,
    LeaseRequest,
    LeaseState,
    NodeAddress,
    Offer,
    OfferQuery,
    Owner,
)
from jupyter_gpumarket.money import usd


class StillClock:
    """Time stands until it is set."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


class ListeningEngine:
    """Notes what it is told; refuses when it is set to."""

    def __init__(self) -> None:
        self.facts: list[AnyFact] = []
        self.released: list[tuple[str, str]] = []
        self.refusal: GpuMarketError | None = None

    async def report(self, fact: AnyFact) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.facts.append(fact)

    async def release(self, lease_id: str, reason: str) -> Lease:
        if self.refusal is not None:
            raise self.refusal
        self.released.append((lease_id, reason))
        return lease(lease_id)


class NotingClusters:
    """Notes which runs it should interrupt."""

    def __init__(self) -> None:
        self.interrupted: list[str] = []

    async def interrupt(self, lease: Lease, run_id: str, save_for: str = "") -> None:
        self.interrupted.append(run_id)
        self.saved_for = save_for


def lease(lease_id: str = "lease-1", state: LeaseState = LeaseState.READY, **more: Any) -> Lease:
    """A ready lease at $3.60 an hour (a tenth of a cent a second), billed from `created_ms` on."""
    start = more.pop("created_ms", 1_700_000_000_000)
    request = LeaseRequest(
        request_id=f"request-{lease_id}",
        query=OfferQuery(),
        budget_nusd=more.pop("budget_nusd", usd("1")),
        max_s=3600,
        owner=more.pop("owner", Owner(user="ada", project="vision", notebook="a.ipynb")),
    )
    price = usd("3.60")
    values: dict[str, Any] = {
        "name": f"name-{lease_id}",
        "changed_ms": start,
        "offer": Offer(marketplace="pool", offer_id="o1", machine_id="m1", price_nusd_hour=price, seen_ms=start),
        "rental_id": f"rental-{lease_id}",
        "price_nusd_hour": price,
        "billed_from_ms": start,
        "ready_ms": start,
        "deadline_ms": start + 3_600_000,
        "address": NodeAddress(host="127.0.0.1", port=1, user="lease"),
        "cluster_id": lease_id,
        **more,
    }
    return Lease(lease_id=lease_id, state=state, request=request, created_ms=start, **values)
