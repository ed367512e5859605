"""RunPod by its REST API v2. What is known and what is not: docs/marketplaces/runpod.md."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, GpuMarketError, InsufficientFunds, OfferGone, Temporary
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.relisted import relisted
from jupyter_gpumarket.models import (
    Balance,
    Billing,
    Capabilities,
    MarketCharge,
    NodeAddress,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
    Tier,
)

NAME = "runpod"
CLOUDS = {"SECURE": Tier.DATACENTER, "COMMUNITY": Tier.COMMUNITY}
QUOTE_MS = 60_000
LIST_ROWS = 100
MAX_LIST_PAGES = 200
HOURS_PER_MONTH = 730
DISK_USD_GB_MONTH = Decimal("0.10")
NOT_THERE = frozenset({404})
# Only the text of a 400 tells that there is no machine from a request that is wrong.
NO_CAPACITY = (b"no longer any instances", b"not enough free GPUs")
STATUSES = {
    "PROVISIONING": RentalStatus.PENDING,
    "STARTING": RentalStatus.PENDING,
    "RUNNING": RentalStatus.RUNNING,
    "EXITED": RentalStatus.FAILED,
    "ERROR": RentalStatus.FAILED,
    "TERMINATED": RentalStatus.GONE,
}

# Runs on the node. Its container has a key that can end this one pod, in the environment of process 1 only.
STOP = """
import json, os, sys, urllib.request
env = {}
try:
    for part in open("/proc/1/environ", "rb").read().split(b"\\0"):
        name, _, value = part.decode("utf-8", "replace").partition("=")
        env[name] = value
except OSError:
    pass
env.update({name: value for name, value in os.environ.items() if name == "RUNPOD_API_KEY"})
call = urllib.request.Request(sys.argv[1], method="POST", data=json.dumps({"action": "terminate"}).encode())
call.add_header("Authorization", "Bearer " + env.get("RUNPOD_API_KEY", ""))
call.add_header("Content-Type", "application/json")
call.add_header("User-Agent", "gpumarket-watchdog")
print(urllib.request.urlopen(call, timeout=30).status)
"""


class RunpodOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.runpod]` takes; each has a default."""

    url: str = "https://api.runpod.io"
    image: str = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
    disk_gb: int = 32
    gpu_count: int = 1
    clouds: tuple[str, ...] = ("SECURE", "COMMUNITY")
    calls_per_s: float = 1.0
    listing_lag_s: int = 45
    charge_delay_s: int = 900


class Reply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields that we do not know are ignored."""


class DataCenter(Reply, frozen=True, kw_only=True):
    id: str
    name: str = ""
    availability: str | None = None


class GpuType(Reply, frozen=True, kw_only=True):
    """One GPU model: dollars an hour for one of it, in each cloud; memory in GB."""

    id: str
    name: str = ""
    memory: float = 0
    secure: bool = False
    community: bool = False
    price: dict[str, Decimal | None] = {}
    data_centers: tuple[DataCenter, ...] = ()


class GpuTypes(Reply, frozen=True, kw_only=True):
    gpus: tuple[GpuType, ...]


class SshEndpoint(Reply, frozen=True, kw_only=True):
    host: str
    port: int
    username: str


class Ssh(Reply, frozen=True, kw_only=True):
    direct: SshEndpoint | None = None


class Pod(Reply, frozen=True, kw_only=True):
    id: str
    name: str
    status: str
    cost: Decimal | None = None
    ssh: Ssh | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None


class Pagination(Reply, frozen=True, kw_only=True):
    next_cursor: str | None = None


class Pods(Reply, frozen=True, kw_only=True):
    pods: tuple[Pod, ...]
    pagination: Pagination = Pagination()


class BillingRecord(Reply, frozen=True, kw_only=True):
    start_time: datetime
    end_time: datetime
    pod_id: str
    gpu_amount: Decimal = Decimal(0)
    cpu_amount: Decimal = Decimal(0)
    disk_amount: Decimal = Decimal(0)


class BillingRecords(Reply, frozen=True, kw_only=True):
    records: tuple[BillingRecord, ...]


class RunpodMarketplace:
    """One RunPod account."""

    def __init__(self, options: RunpodOptions, key: Secret, clock: Clock | None = None) -> None:
        unknown = [cloud for cloud in options.clouds if cloud not in CLOUDS]
        if unknown or options.disk_gb < 1 or options.gpu_count < 1 or options.calls_per_s <= 0:
            raise ConfigError("runpod: clouds are SECURE and COMMUNITY; disk_gb, gpu_count and calls_per_s are above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(NAME, options.url, key=key, rate=options.calls_per_s, burst=10, clock=self._clock)

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(self_stop=True, charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """RunPod lists no machines: one offer for each GPU model, cloud and data centre that has some."""
        del query
        found: list[Offer] = []
        for cloud in self._options.clouds:
            found += await self._in_cloud(cloud)
        return found

    async def quote(self, offer: Offer) -> Quote:
        """The catalogue is read again; what was really agreed is the pod's own cost."""
        cloud = str(offer.extra.get("cloud", ""))
        listed = await self._in_cloud(cloud) if cloud in CLOUDS else []
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=f"there is no {offer.gpu_raw} in {offer.region} now")

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Create a pod. RunPod enforces no end time, so `deadline_ms` is kept by the node's watchdog alone."""
        del deadline_ms
        offer = quote.offer
        body: dict[str, Any] = {
            "name": label,
            "image": self._options.image,
            "cloud": offer.extra["cloud"],
            "gpu": {"id": offer.gpu_raw, "count": offer.gpu_count},
            "dataCenterIds": [offer.region],
            "disk": self._options.disk_gb,
            "ports": ["22/tcp"],
            "env": {"PUBLIC_KEY": ssh_public_key.strip()},
            "startSsh": True,
        }
        pod = await self._http.call("POST", "/v2/pods", Pod, body=body, may_cost=True, judge=judge_create)
        return rental_of(pod)

    async def find(self, label: str) -> Rental | None:
        """Names are not unique at RunPod, but our labels are; the oldest of several is the one."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        found: dict[str, Pod] = {}
        query: dict[str, str | int] = {}
        for _ in range(MAX_LIST_PAGES):
            page: Pods = await self._http.call("GET", "/v2/pods", Pods, query=query)
            found.update({pod.id: pod for pod in page.pods})
            cursor = page.pagination.next_cursor
            if not cursor or cursor == query.get("cursor"):
                rentals = [rental_of(pod) for pod in found.values()]
                return [rental for rental in rentals if rental.status is not RentalStatus.GONE]
            query = {"limit": LIST_ROWS, "cursor": cursor}
        raise Temporary(NAME, f"GET /v2/pods: more than {MAX_LIST_PAGES} pages, so the listing is not whole")

    async def rental(self, rental_id: str) -> Rental:
        pod = await self._http.call("GET", f"/v2/pods/{safe(rental_id)}", Pod, judge=None, absent=NOT_THERE)
        if pod is not None:
            return rental_of(pod)
        # Right after the create call a pod's own page may say 404: only the listing decides.
        listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
        return listed[0] if listed else gone(rental_id)

    async def release(self, rental_id: str) -> None:
        path = f"/v2/pods/{safe(rental_id)}"
        await self._http.call("DELETE", path, None, may_cost=True, urgent=True, absent=NOT_THERE)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """RunPod has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """By the hour, the last 30 days; records are written some minutes after the fact."""
        query: dict[str, str | int] = {"lastN": 720, "bucketSize": "hour", "podId": safe(rental_id)}
        found: BillingRecords = await self._http.call("GET", "/v2/billing/pods", BillingRecords, query=query)
        return [line for record in found.records if record.pod_id == rental_id for line in self._lines(record)]

    async def balance(self) -> Balance | None:
        """Not told by the REST API."""
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        url = f"{self._options.url.rstrip('/')}/v2/pods/{safe(rental.rental_id)}/action"
        return SelfStop(argv=("python3", "-c", STOP, url))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _in_cloud(self, cloud: str) -> list[Offer]:
        count = self._options.gpu_count
        query: dict[str, str | int] = {"include": "AVAILABILITY", "product": "POD", "count": count, "cloud": cloud}
        listing: GpuTypes = await self._http.call("GET", "/v2/catalog/gpus", GpuTypes, query=query)
        seen_ms = self._clock.now_ms()
        return [
            self._offer(gpu, center, cloud, price, seen_ms)
            for gpu in listing.gpus
            if (gpu.secure if cloud == "SECURE" else gpu.community)
            and (price := gpu.price.get(cloud.lower())) is not None
            for center in gpu.data_centers
            if center.availability not in (None, "NONE")
        ]

    def _offer(self, gpu: GpuType, center: DataCenter, cloud: str, price: Decimal, seen_ms: int) -> Offer:
        count = self._options.gpu_count
        kind = f"{gpu.id}/{cloud}/{center.id}"
        disk = DISK_USD_GB_MONTH / HOURS_PER_MONTH
        return Offer(
            marketplace=NAME,
            offer_id=f"{kind}/{count}",
            machine_id=kind,
            price_nusd_hour=price_nusd(NAME, price * count),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=gpu.id,
            gpu_count=count,
            vram_gib=gpu.memory,
            disk_gib=float(self._options.disk_gb),
            region=center.id,
            country=country_of(center.id),
            tier=CLOUDS[cloud],
            billing=Billing(quantum_s=1, storage_nusd_gib_hour=price_nusd(NAME, disk)),
            provider=f"{cloud.lower()} cloud",
            extra={"cloud": cloud, "availability": center.availability},
        )

    def _lines(self, record: BillingRecord) -> list[MarketCharge]:
        start_ms, end_ms = in_ms(record.start_time), in_ms(record.end_time)
        parts = {"compute": record.gpu_amount + record.cpu_amount, "storage": record.disk_amount}
        return [
            MarketCharge(
                charge_id=f"{record.pod_id}-{start_ms}-{what}",
                rental_id=record.pod_id,
                amount_nusd=amount_nusd(NAME, amount),
                start_ms=start_ms,
                end_ms=end_ms,
                what=what,
                native_amount=str(amount),
                final=self._clock.now_ms() - end_ms >= self._options.charge_delay_s * 1000,
            )
            for what, amount in parts.items()
        ]


def country_of(center: str) -> str:
    """A data centre's name begins with its country, or with a part of the world."""
    first = center.partition("-")[0]
    return first if len(first) == 2 and first not in ("EU", "AP", "OC", "SA") else ""


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create means."""
    if status == 400 and any(words in content for words in NO_CAPACITY):
        return OfferGone
    return InsufficientFunds if status == 402 else None


def rental_of(pod: Pod) -> Rental:
    """A pod as the contract tells it. A pod that is not running costs nothing now, which is not its price."""
    status = STATUSES.get(pod.status, RentalStatus.UNKNOWN)
    direct = pod.ssh.direct if pod.ssh is not None else None
    running = status is RentalStatus.RUNNING
    return Rental(
        marketplace=NAME,
        rental_id=pod.id,
        label=pod.name,
        status=status,
        price_nusd_hour=price_nusd(NAME, pod.cost) if running and pod.cost is not None else None,
        kind=PriceKind.ON_DEMAND,
        address=NodeAddress(host=direct.host, port=direct.port, user=direct.username) if running and direct else None,
        created_ms=in_ms(pod.created_at),
        billed_from_ms=in_ms(pod.started_at),
        detail="" if status in (RentalStatus.PENDING, RentalStatus.RUNNING) else f"RunPod says {pod.status[:50]}",
    )


def gone(rental_id: str) -> Rental:
    """What RunPod does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="RunPod does not know it"
    )


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a pod of RunPod")
