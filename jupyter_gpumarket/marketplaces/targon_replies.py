"""What Targon answers, as far as we read it, and what its fields mean. Everything may be absent or null but ids.

Prices are dollars an hour of the whole resource. Memory is in MiB or GiB, whichever makes sense; storage in GB.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.models import RentalStatus


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class ResourceSpec(Reply, frozen=True, kw_only=True):
    gpu_type: str | None = None
    gpu_count: int | None = None
    vcpu: float | None = None
    memory: float | None = None
    storage: float | None = None


class Resource(Reply, frozen=True, kw_only=True):
    """One kind of machine, and how many of it are free."""

    name: str
    display_name: str = ""
    gpu: bool | None = None
    spec: ResourceSpec = ResourceSpec()
    cost_per_hour: Decimal | None = None
    available: int | None = None


class SshKey(Reply, frozen=True, kw_only=True):
    uid: str
    name: str = ""


class Registered(Reply, frozen=True, kw_only=True):
    """A workload that was described to Targon; it costs nothing until it is deployed."""

    uid: str


class State(Reply, frozen=True, kw_only=True):
    status: str = ""
    message: str | None = None
    public_ip: str | None = None
    ssh_port: int | None = None


class Workload(Reply, frozen=True, kw_only=True):
    """One rental."""

    uid: str
    name: str = ""
    resource_name: str | None = None
    state: State | None = None
    cost_per_hour: Decimal | None = None
    ssh_keys: tuple[SshKey, ...] = ()
    created_at: datetime | None = None


class Workloads(Reply, frozen=True, kw_only=True):
    items: tuple[Workload, ...]
    next_cursor: str | None = None


class Credits(Reply, frozen=True, kw_only=True):
    credits: Decimal
    currency: str = ""


STATUSES = {
    "registered": RentalStatus.PENDING,
    "provisioning": RentalStatus.PENDING,
    "running": RentalStatus.RUNNING,
    "suspended": RentalStatus.FAILED,
    "error": RentalStatus.FAILED,
    "deleted": RentalStatus.GONE,
}
