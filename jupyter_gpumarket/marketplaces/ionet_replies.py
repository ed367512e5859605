"""What io.net answers, as far as we read it. Identifiers are numbers or texts, by supplier and by the year."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.models import RentalStatus

Id = int | str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Hardware(Reply, frozen=True, kw_only=True):
    """One configuration that can be had. `price` is dollars an hour for all its cards."""

    id: str
    deploy_id: Id
    name: str | None = None
    num_cards: int = 0
    supplier: str = ""
    sold_out: bool | None = None
    price: Decimal | None = None
    vram_per_card: float | None = None
    interconnect: str | None = None
    nvlink: bool | None = None
    storage: float | None = None
    vcpu: float | None = None
    memory: float | None = None
    location: str | None = None


class HardwareList(Reply, frozen=True, kw_only=True):
    hardware: tuple[Hardware, ...]


class HardwareReply(Reply, frozen=True, kw_only=True):
    data: HardwareList


class Price(Reply, frozen=True, kw_only=True):
    """What a whole duration costs. Whether the fees are in the total is not documented."""

    available_replica_count: tuple[int, ...] | None = None
    ionet_fee: Decimal = Decimal(0)
    currency_conversion_fee: Decimal = Decimal(0)
    total_cost_usdc: Decimal


class PriceReply(Reply, frozen=True, kw_only=True):
    data: Price


class Deployed(Reply, frozen=True, kw_only=True):
    """Not documented: the id has been seen in either place."""

    deployment_id: str | None = None
    id: str | None = None
    data: Deployed | None = None

    @property
    def known_id(self) -> str:
        return self.deployment_id or self.id or (self.data.known_id if self.data is not None else "")


class Row(Reply, frozen=True, kw_only=True):
    """A deployment in the listing."""

    id: str
    status: str
    name: str = ""
    compute_minutes_remaining: Decimal = Decimal(0)


class Rows(Reply, frozen=True, kw_only=True):
    deployments: tuple[Row, ...]
    total: int


class RowsReply(Reply, frozen=True, kw_only=True):
    data: Rows


class Details(Reply, frozen=True, kw_only=True):
    """A deployment's own page; it does not tell its name. Minutes are prepaid, and count down."""

    id: str
    status: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    amount_paid: Decimal = Decimal(0)
    compute_minutes_served: Decimal = Decimal(0)
    compute_minutes_remaining: Decimal = Decimal(0)

    @property
    def prepaid_minutes(self) -> Decimal:
        return self.compute_minutes_served + self.compute_minutes_remaining


class DetailsReply(Reply, frozen=True, kw_only=True):
    data: Details


class Worker(Reply, frozen=True, kw_only=True):
    """One virtual machine; `ssh_access` is a command line for people."""

    status: str = ""
    ssh_access: str | None = None


class Workers(Reply, frozen=True, kw_only=True):
    workers: tuple[Worker, ...] | None = None


class WorkersReply(Reply, frozen=True, kw_only=True):
    data: Workers


STATUSES = {
    "deployment requested": RentalStatus.PENDING,
    "running": RentalStatus.RUNNING,
    "termination requested": RentalStatus.ENDING,
    "completed": RentalStatus.GONE,
    "destroyed": RentalStatus.GONE,
}


def status_of(status: str, remaining: Decimal, *, finished: bool = False) -> RentalStatus:
    """A failed deployment is over once it has ended or has no time left; before that it is to be destroyed."""
    if status == "failed":
        return RentalStatus.GONE if finished or remaining <= 0 else RentalStatus.FAILED
    return STATUSES.get(status, RentalStatus.UNKNOWN)
