"""What Prime Intellect answers, as far as we read it, and what its fields mean."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.marketplaces.ssh_command import address_in
from jupyter_gpumarket.models import NodeAddress, RentalStatus

STATUSES = {
    "PROVISIONING": RentalStatus.PENDING,
    "PENDING": RentalStatus.PENDING,
    "ACTIVE": RentalStatus.RUNNING,
    "STOPPED": RentalStatus.FAILED,
    "ERROR": RentalStatus.FAILED,
    "DELETING": RentalStatus.ENDING,
    "TERMINATED": RentalStatus.GONE,
}


class Reply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields that we do not know are ignored."""


class Spec(Reply, frozen=True, kw_only=True):
    """How much of something a configuration has or can have. Prices are dollars an hour for one unit (a GB)."""

    min_count: int | None = None
    default_count: int | None = None
    max_count: int | None = None
    price_per_unit: Decimal | None = None
    step: int | None = None
    default_included_in_price: bool | None = None


class Prices(Reply, frozen=True, kw_only=True):
    """Dollars an hour for the whole configuration."""

    on_demand: Decimal | None = None
    community_price: Decimal | None = None
    is_variable: bool | None = None
    currency: str = "USD"


class Configuration(Reply, frozen=True, kw_only=True):
    """One offer: a configuration of one cloud in one place. Memory: GB for each GPU; `provisioning_time`: minutes."""

    cloud_id: str
    gpu_type: str
    socket: str
    provider: str
    gpu_count: int
    gpu_memory: float
    security: str
    prices: Prices
    region: str | None = None
    data_center: str | None = None
    country: str | None = None
    disk: Spec | None = None
    vcpu: Spec | None = None
    memory: Spec | None = None
    internet_speed: float | None = None
    provisioning_time: float | None = None
    stock_status: str | None = None
    images: tuple[str, ...] = ()
    is_spot: bool | None = None
    prepaid_time: Decimal | None = None

    @property
    def price(self) -> Decimal | None:
        """Dollars an hour; which of two fields holds it goes by the kind of cloud."""
        community = self.security == "community_cloud"
        first, second = self.prices.on_demand, self.prices.community_price
        if community:
            first, second = second, first
        return second if first is None else first

    @property
    def identity(self) -> str:
        """What tells one offer from another; there is no id of theirs."""
        parts = (
            self.provider,
            self.cloud_id,
            self.gpu_type,
            self.socket,
            str(self.gpu_count),
            self.data_center or self.region or "",
            self.country or "",
            self.security,
            "spot" if self.is_spot else "",
            *(str(amount(spec)) for spec in (self.vcpu, self.memory)),
        )
        return "/".join(parts)


class Availability(Reply, frozen=True, kw_only=True):
    items: tuple[Configuration, ...]
    total_count: int


class Pod(Reply, frozen=True, kw_only=True):
    """One rented pod; of one that spans several machines, addresses are lists."""

    id: str
    name: str | None = None
    status: str
    provider_type: str = ""
    installation_status: str | None = None
    installation_failure: str | None = None
    price_hr: Decimal | None = None
    provisioning_price_hr: Decimal | None = None
    ssh_connection: str | list[str | None] | None = None
    created_at: datetime | None = None
    terminated_at: datetime | None = None
    is_spot: bool | None = None


class PodPage(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[Pod, ...]
    total_count: int = 0


class PastPod(Reply, frozen=True, kw_only=True):
    """One ended pod with its whole bill."""

    id: str
    created_at: datetime
    terminated_at: datetime | None = None
    total_billed_price: Decimal = Decimal(0)


class PastPage(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[PastPod, ...]
    total_count: int = 0


class BillingRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one thing has cost so far."""

    id: str
    created_at: datetime
    updated_at: datetime
    amount_usd: Decimal
    resource_type: str
    currency: str = "USD"
    last_billed_at: datetime | None = None
    resource_id: str | None = None


class Wallet(msgspec.Struct, frozen=True, kw_only=True):
    balance_usd: Decimal
    currency: str = "USD"
    total_billings: int = 0
    recent_billings: tuple[BillingRow, ...] = ()


class SshKey(Reply, frozen=True, kw_only=True):
    id: str
    name: str


class SshKeyPage(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[SshKey, ...]
    total_count: int = 0


def amount(spec: Spec | None) -> int:
    """What a configuration has of something, where it is told; else 0."""
    if spec is None:
        return 0
    return spec.default_count if spec.default_count is not None else spec.min_count or 0


def status_of(pod: Pod) -> RentalStatus:
    """A pod is there for us only when it is active, set up, and tells where."""
    status = STATUSES.get(pod.status, RentalStatus.UNKNOWN)
    if status in (RentalStatus.PENDING, RentalStatus.RUNNING) and pod.installation_status == "ERROR":
        return RentalStatus.FAILED
    if status is not RentalStatus.RUNNING:
        return status
    ready = pod.installation_status in (None, "FINISHED") and address_of(pod) is not None
    return RentalStatus.RUNNING if ready else RentalStatus.PENDING


def address_of(pod: Pod) -> NodeAddress | None:
    """Where SSH answers, out of a text like `root@192.0.2.7 -p 22`; of several machines, the first."""
    told = pod.ssh_connection
    return address_in((told[0] if told else None) if isinstance(told, list) else told)
