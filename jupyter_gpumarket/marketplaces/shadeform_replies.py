"""What Shadeform answers, as far as we read it, and what its fields mean."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.clock import in_ms
from jupyter_gpumarket.marketplaces.ssh_command import is_host
from jupyter_gpumarket.models import NodeAddress, RentalStatus

STATUSES = {
    "creating": RentalStatus.PENDING,
    "pending_provider": RentalStatus.PENDING,
    "pending": RentalStatus.PENDING,
    "active": RentalStatus.RUNNING,
    "error": RentalStatus.FAILED,
    "deleting": RentalStatus.ENDING,
    "deleted": RentalStatus.GONE,
}
# Times that have not come are told as the year 1.
FIRST_YEAR = 2000


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Configuration(Reply, frozen=True, kw_only=True):
    """What a machine has; memory and storage in GB."""

    gpu_type: str | None = None
    gpu_manufacturer: str | None = None
    num_gpus: int = 0
    vram_per_gpu_in_gb: float | None = None
    memory_in_gb: float | None = None
    storage_in_gb: float | None = None
    vcpus: int | None = None
    interconnect: str | None = None
    os_options: tuple[str, ...] | None = None


class Place(Reply, frozen=True, kw_only=True):
    region: str
    available: bool = False
    display_name: str | None = None


class BootTime(Reply, frozen=True, kw_only=True):
    min_boot_in_sec: float | None = None
    max_boot_in_sec: float | None = None


class MachineType(Reply, frozen=True, kw_only=True):
    """A kind of machine of one cloud, and the regions that have it. `hourly_price` is in US cents for the machine."""

    cloud: str
    shade_instance_type: str
    hourly_price: Decimal
    configuration: Configuration
    cloud_instance_type: str | None = None
    deployment_type: str | None = None
    availability: tuple[Place, ...] = ()
    boot_time: BootTime | None = None


class MachineTypes(Reply, frozen=True, kw_only=True):
    instance_types: tuple[MachineType, ...]


class Created(Reply, frozen=True, kw_only=True):
    id: str
    cloud_assigned_id: str | None = None


class Instance(Reply, frozen=True, kw_only=True):
    """One rented machine. `cost_estimate` is dollars so far, as text."""

    id: str
    name: str
    status: str
    cloud: str = ""
    status_details: str | None = None
    ip: str | None = None
    ssh_user: str | None = None
    ssh_port: int | None = None
    hourly_price: Decimal | None = None
    cost_estimate: Decimal | None = None
    created_at: datetime | None = None
    active_at: datetime | None = None
    deleted_at: datetime | None = None


class Instances(Reply, frozen=True, kw_only=True):
    instances: tuple[Instance, ...]


class SshKey(Reply, frozen=True, kw_only=True):
    id: str
    name: str = ""


class SshKeys(Reply, frozen=True, kw_only=True):
    ssh_keys: tuple[SshKey, ...]


def status_of(instance: Instance) -> RentalStatus:
    """An active machine is there for us only when it tells where."""
    status = STATUSES.get(instance.status, RentalStatus.UNKNOWN)
    if status is RentalStatus.RUNNING and address_of(instance) is None:
        return RentalStatus.PENDING
    return status


def address_of(instance: Instance) -> NodeAddress | None:
    """Where SSH answers."""
    host, port, user = (instance.ip or "").strip(), instance.ssh_port or 0, instance.ssh_user or ""
    if not user or not is_host(host) or not 0 < port < 65536:
        return None
    return NodeAddress(host=host, port=port, user=user)


def came_ms(moment: datetime | None) -> int | None:
    """Milliseconds UTC of a time that has come."""
    if moment is None or moment.year < FIRST_YEAR:
        return None
    return in_ms(moment)
