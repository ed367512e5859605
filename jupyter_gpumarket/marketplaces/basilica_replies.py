"""What Basilica answers, as far as we read it, and what its fields mean.

Prices are dollars an hour: of one GPU in an offering with GPUs, else of the whole machine. Memory is in GB.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.models import RentalStatus


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class GpuOffering(Reply, frozen=True, kw_only=True):
    id: str
    provider: str = ""
    gpu_type: str = ""
    gpu_count: int = 0
    gpu_memory_gb_per_gpu: float | None = None
    vcpu_count: float = 0
    system_memory_gb: float = 0
    storage: str | None = None
    region: str = ""
    hourly_rate_per_gpu: Decimal
    availability: bool = True
    is_spot: bool = False
    interconnect: str | None = None


class GpuOfferings(Reply, frozen=True, kw_only=True):
    nodes: tuple[GpuOffering, ...]


class CpuOffering(Reply, frozen=True, kw_only=True):
    id: str
    provider: str = ""
    vcpu_count: float = 0
    system_memory_gb: float = 0
    storage_gb: float = 0
    region: str = ""
    hourly_rate: Decimal
    availability: bool = True


class CpuOfferings(Reply, frozen=True, kw_only=True):
    nodes: tuple[CpuOffering, ...]


class SshKey(Reply, frozen=True, kw_only=True):
    """The one key that an account may have."""

    id: str
    name: str = ""
    public_key: str = ""


class Started(Reply, frozen=True, kw_only=True):
    rental_id: str
    status: str = ""
    hourly_cost: Decimal | None = None


class Listed(Reply, frozen=True, kw_only=True):
    """One rental. There is no page of one alone."""

    rental_id: str
    name: str | None = None
    provider: str = ""
    status: str = ""
    hourly_cost: Decimal | None = None
    is_spot: bool = False
    ssh_command: str | None = None
    created_at: datetime | None = None
    stopped_at: datetime | None = None


class Rentals(Reply, frozen=True, kw_only=True):
    rentals: tuple[Listed, ...]


class Usage(Reply, frozen=True, kw_only=True):
    """What one rental has cost so far."""

    rental_id: str
    status: str = ""
    current_cost: Decimal
    start_time: datetime
    last_updated: datetime


class UsagePage(Reply, frozen=True, kw_only=True):
    rentals: tuple[Usage, ...]
    total_count: int


class BalanceReply(Reply, frozen=True, kw_only=True):
    balance: Decimal


STATUSES = {
    "pending": RentalStatus.PENDING,
    "provisioning": RentalStatus.PENDING,
    "restarting": RentalStatus.PENDING,
    "running": RentalStatus.RUNNING,
    "active": RentalStatus.RUNNING,
    "stopping": RentalStatus.ENDING,
    "deleting": RentalStatus.ENDING,
    "error": RentalStatus.FAILED,
    "failed": RentalStatus.FAILED,
    "stopped": RentalStatus.GONE,
    "deleted": RentalStatus.GONE,
    "terminated": RentalStatus.GONE,
}
ENDED = frozenset(word for word, status in STATUSES.items() if status is RentalStatus.GONE)
GIGABYTES = re.compile(r"\s*(\d{1,6}(?:\.\d+)?)\s*(GB|GiB|TB|TiB)?", re.ASCII | re.IGNORECASE)


def storage_gb(text: str | None) -> float:
    """The size at the beginning of what providers write of their disks; 0 where there is none."""
    found = GIGABYTES.match(text or "")
    if found is None:
        return 0.0
    return float(found[1]) * (1000 if (found[2] or "").upper().startswith("T") else 1)
