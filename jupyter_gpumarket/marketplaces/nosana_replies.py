"""What Nosana answers, as far as we read it, and what its fields mean."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from urllib.parse import urlsplit

import msgspec

from jupyter_gpumarket.marketplaces.nosana_job import OP_ID
from jupyter_gpumarket.marketplaces.ssh_command import is_host
from jupyter_gpumarket.models import NodeAddress, RentalStatus

SEVERAL = re.compile(r"(?:^|[^0-9a-z])([2-9]|1[0-9])\s?x\s?[a-z]", re.IGNORECASE)
HUNDRED = Decimal(100)
STATUSES = {
    "DRAFT": RentalStatus.GONE,
    "STARTING": RentalStatus.PENDING,
    "STOPPING": RentalStatus.ENDING,
    "STOPPED": RentalStatus.GONE,
    "ARCHIVED": RentalStatus.GONE,
    "ERROR": RentalStatus.FAILED,
    "INSUFFICIENT_FUNDS": RentalStatus.FAILED,
}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Market(Reply, frozen=True, kw_only=True):
    """A queue of hosts that are alike. Hosts get the reward, renters pay it and the network's fee."""

    address: str
    slug: str = ""
    name: str = ""
    type: str = "OTHER"
    usd_reward_per_hour: Decimal | None = None
    nos_job_price_per_second: Decimal | None = None
    network_fee_percentage: Decimal = Decimal(0)
    gpu_types: tuple[str, ...] = ()
    lowest_vram: float | None = None

    @property
    def gpu_count(self) -> int:
        """Only names tell it: `8x H100`."""
        found = SEVERAL.search(self.name) or SEVERAL.search(self.slug.replace("-", " "))
        return int(found[1]) if found else 1


class Endpoint(Reply, frozen=True, kw_only=True, rename="camel"):
    op_id: str
    url: str
    online: bool | None = None


class Deployment(Reply, frozen=True, kw_only=True):
    """What runs a job; `timeout` in minutes."""

    id: str
    name: str
    status: str
    market: str
    timeout: int = 0
    active_jobs: int = 0
    endpoints: tuple[Endpoint, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Pagination(Reply, frozen=True, kw_only=True):
    cursor_next: str | None = None


class DeploymentPage(Reply, frozen=True, kw_only=True):
    deployments: tuple[Deployment, ...]
    pagination: Pagination = Pagination()


class JobRow(Reply, frozen=True, kw_only=True):
    """`time_start` in seconds; 0 before it runs."""

    job: str
    state: str
    time_start: int = 0
    created_at: datetime | None = None


class JobPage(Reply, frozen=True, kw_only=True):
    jobs: tuple[JobRow, ...]
    pagination: Pagination = Pagination()


class Job(Reply, frozen=True, kw_only=True, rename="camel"):
    """One job as the chain has it: times in seconds, 0 for what has not come."""

    market: str
    state: int
    node: str | None = None
    time_start: int = 0
    time_end: int = 0
    usd_reward_per_hour: Decimal | None = None


class Credits(Reply, frozen=True, kw_only=True, rename="camel"):
    """Dollars."""

    assigned_credits: Decimal
    reserved_credits: Decimal
    settled_credits: Decimal


def price_of(reward: Decimal, fee_percentage: Decimal) -> Decimal:
    """What a renter pays, of what a host gets."""
    return reward * (HUNDRED + fee_percentage) / HUNDRED


def status_of(deployment: Deployment, job: JobRow | None) -> RentalStatus:
    """A deployment that was never started, or has no job any more, bills nothing."""
    if deployment.status == "RUNNING":
        return running_status(deployment, job)
    if deployment.status in ("STOPPED", "ARCHIVED") and deployment.active_jobs:
        return RentalStatus.ENDING
    return STATUSES.get(deployment.status, RentalStatus.UNKNOWN)


def running_status(deployment: Deployment, job: JobRow | None) -> RentalStatus:
    """Running is not serving: the job may wait in the queue, its image be loading, its bridge not be up."""
    if job is None or job.state == "QUEUED":
        return RentalStatus.PENDING
    if job.state != "RUNNING":
        return RentalStatus.FAILED
    return RentalStatus.PENDING if address_of(deployment) is None else RentalStatus.RUNNING


def address_of(deployment: Deployment) -> NodeAddress | None:
    """Where the bridge answers, once it does; servers that do not tell whether it does are believed."""
    for endpoint in deployment.endpoints:
        if endpoint.op_id == OP_ID and endpoint.online is not False:
            return through(endpoint.url)
    return None


def through(url: str) -> NodeAddress | None:
    """An ingress's URL as an address; None for anything else than http(s) with a host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    schemes = {"https": ("wss", 443), "http": ("ws", 80)}
    if parts.scheme not in schemes or not is_host(host) or "@" in parts.netloc:
        return None
    scheme, usual = schemes[parts.scheme]
    wss_url = f"{scheme}://{parts.netloc}{parts.path or '/'}"
    return NodeAddress(host=host, port=port or usual, user="root", wss_url=wss_url)
