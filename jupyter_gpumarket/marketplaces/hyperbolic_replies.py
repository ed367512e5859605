"""What Hyperbolic answers, in both generations of its API, and what that means. Amounts of money are cents."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.errors import GpuMarketError, InsufficientFunds, OfferGone
from jupyter_gpumarket.models import RentalStatus

NOT_ENOUGH = (b"nsufficient", b"not enough credit", b"Not enough credit", b"balance")
TAKEN = (b"not available", b"unavailable", b"already reserved", b"ot enough GPUs", b"No available", b"no available")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Camel(Reply, frozen=True, kw_only=True, rename="camel"):
    """The same, where Hyperbolic writes camelCase."""


# ── generation 1: nodes of suppliers ─────────────────────────────────────────────────────────────────────────────────


class Amount(Reply, frozen=True, kw_only=True):
    """Cents for one GPU and hour, whatever the documentation's prose says."""

    amount: Decimal
    period: str = "hourly"


class Pricing(Reply, frozen=True, kw_only=True):
    price: Amount | None = None


class Cpu(Reply, frozen=True, kw_only=True):
    model: str | None = None
    cores: float | None = None
    virtual_cores: float | None = None


class Gpu(Reply, frozen=True, kw_only=True):
    """One of several equal ones; `ram` is in MB."""

    model: str = ""
    ram: float | None = None
    interface: str | None = None


class Capacity(Reply, frozen=True, kw_only=True):
    """Of disk or memory, in GB."""

    capacity: float | None = None


class Hardware(Reply, frozen=True, kw_only=True):
    cpus: tuple[Cpu, ...] | None = None
    gpus: tuple[Gpu, ...] | None = None
    storage: tuple[Capacity, ...] | None = None
    ram: tuple[Capacity, ...] | None = None


class Location(Reply, frozen=True, kw_only=True):
    region: str | None = None


class Node(Reply, frozen=True, kw_only=True):
    """One machine of a supplier, some of whose GPUs may be free."""

    id: str
    status: str = ""
    cluster_name: str = ""
    supplier_id: str | None = None
    reserved: bool = False
    gpus_total: int = 0
    gpus_reserved: int = 0
    location: Location | None = None
    hardware: Hardware | None = None
    pricing: Pricing | None = None


class Nodes(Reply, frozen=True, kw_only=True):
    instances: tuple[Node, ...]


class Created(Reply, frozen=True, kw_only=True):
    """Either name has been seen, and an empty one."""

    instance_id: str | None = None
    instance_name: str | None = None


class RentedNode(Reply, frozen=True, kw_only=True):
    id: str = ""
    status: str | None = None
    gpu_count: int | None = None
    pricing: Pricing | None = None


class Instance(Camel, frozen=True, kw_only=True):
    """One of our own. `ssh_command` is null until it is ready; `user_metadata` is what the create call said."""

    id: str
    start: datetime | None = None
    end: datetime | None = None
    created: datetime | None = None
    ssh_command: str | None = None
    instance: RentedNode | None = None
    user_metadata: dict[str, Any] | None = None


class Instances(Reply, frozen=True, kw_only=True):
    instances: tuple[Instance, ...]


class PastInstance(Reply, frozen=True, kw_only=True):
    instance_name: str = ""
    started_at: datetime | None = None
    terminated_at: datetime | None = None
    price: Amount | None = None
    gpu_count: int | None = None


class History(Reply, frozen=True, kw_only=True):
    instance_history: tuple[PastInstance, ...]


# ── generation 2: virtual machines ───────────────────────────────────────────────────────────────────────────────────


class VmOption(Camel, frozen=True, kw_only=True):
    """Cents an hour for all its GPUs, of a model that is not told."""

    gpu_count: int
    cost_per_hour: Decimal


class VmMeta(Reply, frozen=True, kw_only=True):
    ssh_command: str | None = None
    user_metadata: dict[str, Any] | None = msgspec.field(name="userMetadata", default=None)


class Vm(Camel, frozen=True, kw_only=True):
    """One of our own, also after its end."""

    id: int
    status: str | None = None
    cost_per_hour: Decimal | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    terminated_at: datetime | None = None
    user_metadata: dict[str, Any] | None = None
    meta: VmMeta | None = None


class Credit(Reply, frozen=True, kw_only=True):
    credits: Decimal


# ── what it means ────────────────────────────────────────────────────────────────────────────────────────────────────

STATUSES = {
    "pending": RentalStatus.PENDING,
    "creating": RentalStatus.PENDING,
    "starting": RentalStatus.PENDING,
    "restarting": RentalStatus.PENDING,
    "online": RentalStatus.RUNNING,
    "running": RentalStatus.RUNNING,
    "busy": RentalStatus.RUNNING,
    "node_ready": RentalStatus.RUNNING,
    "stopping": RentalStatus.ENDING,
    "failed": RentalStatus.FAILED,
    "error": RentalStatus.FAILED,
    "terminated": RentalStatus.GONE,
}


def status_of(told: str | None, *, ended: bool, reachable: bool) -> RentalStatus:
    """What runs without an address is still starting. A word that we do not know is UNKNOWN, such as `offline`."""
    if ended:
        return RentalStatus.GONE
    status = STATUSES.get((told or "").lower(), RentalStatus.UNKNOWN)
    return RentalStatus.PENDING if status is RentalStatus.RUNNING and not reachable else status


def label_in(metadata: dict[str, Any] | None) -> str:
    """Our label, where the create call's metadata came back."""
    ours = (metadata or {}).get("gpumarket")
    told = ours.get("label") if isinstance(ours, dict) else None
    return told if isinstance(told, str) else ""


def total(parts: tuple[Capacity, ...] | None) -> float:
    return sum(part.capacity or 0.0 for part in parts or ())


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create means, as far as its words tell; they are not documented."""
    if status not in (400, 402, 404, 409, 422):
        return None
    if any(words in content for words in NOT_ENOUGH):
        return InsufficientFunds
    return OfferGone if any(words in content for words in TAKEN) else None
