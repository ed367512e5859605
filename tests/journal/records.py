"""Records for tests: small, valid, and alike."""

from __future__ import annotations

from typing import Any

from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.models import Lease, LeaseRequest, LeaseState, OfferQuery


class SteppingClock:
    """A clock that moves one second with each look."""

    def __init__(self, start_ms: int = 1_790_000_000_000) -> None:
        self.at_ms = start_ms

    def now_ms(self) -> int:
        self.at_ms += 1_000
        return self.at_ms

    def monotonic_s(self) -> float:
        return self.at_ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.at_ms += int(seconds * 1000)


def lease(number: int = 1, state: LeaseState = LeaseState.WISHED, **changes: Any) -> Lease:
    request = LeaseRequest(request_id=f"request-{number}", query=OfferQuery(), budget_nusd=10**9, max_s=3600)
    values: dict[str, Any] = {
        "lease_id": f"lease-{number}",
        "name": f"node-{number}",
        "state": state,
        "request": request,
        "created_ms": 1_790_000_000_000 + number,
        "changed_ms": 1_790_000_000_000 + number,
    }
    return Lease(**(values | changes))


def wished(number: int = 1) -> NewEntry:
    return NewEntry(kind="lease.wished", subject=f"lease-{number}", body={"n": number}, rows=(lease(number),))
