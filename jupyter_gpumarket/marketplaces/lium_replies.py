"""What Lium answers, as far as we read it, and what its fields mean. Everything may be absent or null but ids.

Prices are dollars an hour; GPU memory is in MiB, memory and disk in KiB, network speeds in Mbps, scores from 0 to 100.
Counts come as numbers or as texts.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from jupyter_gpumarket.models import RentalStatus


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class GpuDetail(Reply, frozen=True, kw_only=True):
    name: str | None = None
    capacity: float | None = None


class GpuSpecs(Reply, frozen=True, kw_only=True):
    driver: str | None = None
    details: tuple[GpuDetail, ...] | None = None


class CpuSpecs(Reply, frozen=True, kw_only=True):
    count: float | str | None = None
    model: str | None = None


class RamSpecs(Reply, frozen=True, kw_only=True):
    total: float | None = None
    pod_reserve: float | None = None


class DiskSpecs(Reply, frozen=True, kw_only=True):
    total: float | None = None
    free: float | None = None


class Specs(Reply, frozen=True, kw_only=True):
    gpu: GpuSpecs | None = None
    cpu: CpuSpecs | None = None
    ram: RamSpecs | None = None
    hard_disk: DiskSpecs | None = None


class Location(Reply, frozen=True, kw_only=True):
    country_code: str | None = None
    region_name: str | None = None
    city: str | None = None


class Executor(Reply, frozen=True, kw_only=True):
    """One node. `min_gpu_count_for_rental` of null (not: absent) is a node that is rented whole only."""

    id: str
    machine_name: str | None = None
    gpu_count: int | str | None = None
    available_gpu_count: int | str | None = None
    min_gpu_count_for_rental: int | str | msgspec.UnsetType | None = msgspec.UNSET
    price_per_gpu: Decimal | None = None
    tier: str | None = None
    status: str | None = None
    location: Location | None = None
    specs: Specs | None = None
    effective_upload_speed_mbps: float | None = None
    effective_download_speed_mbps: float | None = None
    max_cuda_version: Decimal | None = None
    reliability_score: float | None = None
    frequent_rent_failures: bool | None = None
    validator_hotkey: str | None = None

    @property
    def free(self) -> int:
        """GPUs that can be rented now."""
        free = whole(self.available_gpu_count)
        return whole(self.gpu_count) or 0 if free is None else free

    def counts(self) -> list[int]:
        """The numbers of GPUs that are offered: all that are free, and by powers of two where the node is split.

        Nothing is offered of a node whose GPUs are all taken; one without any is offered as it is.
        """
        if self.free < 1:
            return [] if whole(self.gpu_count) else [0]
        if self.min_gpu_count_for_rental is msgspec.UNSET:
            return [self.free]
        least = whole(self.min_gpu_count_for_rental)
        if least is None:
            return [self.free] if self.free == whole(self.gpu_count) else []
        return sorted({count for count in (1, 2, 4, 8, least, self.free) if max(1, least) <= count <= self.free})


class JobQuote(Reply, frozen=True, kw_only=True):
    """The rate at which a rental would be billed."""

    gpu_count: int | str
    price_per_hour: Decimal


class DefaultImage(Reply, frozen=True, kw_only=True):
    docker_image: str | None = None
    docker_image_tag: str | None = None


class Template(Reply, frozen=True, kw_only=True):
    """A container image with its settings."""

    id: str
    name: str | None = None
    docker_image: str | None = None
    docker_image_tag: str | None = None
    category: str | None = None
    supports_volume_encryption: bool = False


class Rented(Reply, frozen=True, kw_only=True):
    """What a create call answers; older servers answered with the pod."""

    pod_id: str | None = None
    id: str | None = None


class PodNode(Reply, frozen=True, kw_only=True):
    id: str | None = None


class Pod(Reply, frozen=True, kw_only=True):
    """One rental; `price` is for all its GPUs."""

    id: str
    pod_name: str | None = None
    status: str | None = None
    price: Decimal | None = None
    ssh_connect_cmd: str | None = None
    created_at: str | None = None
    executor: PodNode | None = None


class Record(Reply, frozen=True, kw_only=True):
    """What one rental cost by the ledger, also after its end."""

    pod_id: str
    total: Decimal
    billed_seconds: Decimal | None = None
    created_at: str | None = None
    removed_at: str | None = None


class Me(Reply, frozen=True, kw_only=True):
    id: str | int
    balance: Decimal | None = None


STATUSES = {
    "PENDING": RentalStatus.PENDING,
    "REBOOT_PENDING": RentalStatus.PENDING,
    "RUNNING": RentalStatus.RUNNING,
    "DELETING": RentalStatus.ENDING,
    "STOPPED": RentalStatus.FAILED,
    "FAILED": RentalStatus.FAILED,
    "ERROR": RentalStatus.FAILED,
    "CREATION_FAILED": RentalStatus.FAILED,
    "REBOOT_FAILED": RentalStatus.FAILED,
    "BROKEN": RentalStatus.FAILED,
    "TERMINATED": RentalStatus.GONE,
    "DELETED": RentalStatus.GONE,
    "REMOVED": RentalStatus.GONE,
}


def whole(told: int | str | None) -> int | None:
    """A count, or None where none is told."""
    if isinstance(told, str):
        return int(told) if told.isascii() and told.isdecimal() and len(told) < 6 else None
    return told
