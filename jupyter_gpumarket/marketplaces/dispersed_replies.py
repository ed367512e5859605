"""What Dispersed answers, as far as we read it, and what its fields mean. Everything may be absent or null but ids.

Prices are dollars an hour of the whole machine; memory and storage are in GiB.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from jupyter_gpumarket.marketplaces.ssh_command import is_host
from jupyter_gpumarket.models import NodeAddress, RentalStatus


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Availability(Reply, frozen=True, kw_only=True):
    node_count: int | None = None


class Hardware(Reply, frozen=True, kw_only=True):
    cpu_cores: float | None = None
    gpu_count: int | None = None
    gpu_model_label: str | None = None
    min_gpu_vram_gib: float | None = None
    ram_gib: float | None = None
    storage_gib: float | None = None


class Pricing(Reply, frozen=True, kw_only=True):
    hourly_rate_usd: Decimal | None = None


class ListedOffer(Reply, frozen=True, kw_only=True):
    """A class of machines in a region; whose they are is not told."""

    offer_id: str
    region_code: str | None = None
    availability: Availability | None = None
    hardware_summary: Hardware = Hardware()
    pricing: Pricing = Pricing()


class OfferPage(Reply, frozen=True, kw_only=True):
    data: tuple[ListedOffer, ...]
    total: int | None = None


class Job(Reply, frozen=True, kw_only=True):
    """One rental."""

    uuid: str
    title: str | None = None
    status: str | None = None
    created_at: datetime | None = None


class JobPage(Reply, frozen=True, kw_only=True):
    data: tuple[Job, ...]
    total: int | None = None


class NodeUrl(Reply, frozen=True, kw_only=True):
    """A port of the container, by its number or a name, and where it is reached from outside."""

    description: str | int | None = None
    hostname: str | None = None
    port: int | None = None
    protocol: str | None = None


class Run(Reply, frozen=True, kw_only=True):
    """One attempt to run a job."""

    uuid: str
    job_uuid: str | None = None
    status: str | None = None
    started_at_ms: int | None = None
    node_urls: tuple[NodeUrl, ...] | None = None


class RunPage(Reply, frozen=True, kw_only=True):
    data: tuple[Run, ...]


class Transaction(Reply, frozen=True, kw_only=True):
    """A line of the account's ledger; what a job cost is a debit."""

    uuid: str
    job_uuid: str | None = None
    amount_usd: Decimal | None = None
    created_at: datetime | None = None


class TransactionPage(Reply, frozen=True, kw_only=True):
    data: tuple[Transaction, ...]
    total: int | None = None


# A job that has ended bills no more, however it ended.
STATUSES = {
    "PENDING": RentalStatus.PENDING,
    "ASSIGNED": RentalStatus.PENDING,
    "PREPARING": RentalStatus.PENDING,
    "RUNNING": RentalStatus.RUNNING,
    "CANCELLING": RentalStatus.ENDING,
    "FAILING": RentalStatus.ENDING,
    "COMPLETED": RentalStatus.GONE,
    "FAILED": RentalStatus.GONE,
    "CANCELLED": RentalStatus.GONE,
}
SSH_WORDS = ("ssh", "22")


def address_of(runs: tuple[Run, ...], job_uuid: str, user: str) -> NodeAddress | None:
    """Where SSH answers: the TCP proxy's port of the run that is running."""
    for run in runs:
        if run.status != "RUNNING" or run.job_uuid not in (None, job_uuid):
            continue
        for url in run.node_urls or ():
            if str(url.description).lower() in SSH_WORDS and url.hostname and is_host(url.hostname) and url.port:
                return NodeAddress(host=url.hostname, port=url.port, user=user)
    return None
