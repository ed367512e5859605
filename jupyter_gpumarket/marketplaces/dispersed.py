"""Dispersed, the Render network's compute. What is known and what is not: docs/marketplaces/dispersed.md."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, GpuMarketError, InsufficientFunds, OfferGone, Temporary
from jupyter_gpumarket.marketplaces.dispersed_replies import (
    STATUSES,
    Job,
    JobPage,
    ListedOffer,
    OfferPage,
    RunPage,
    Transaction,
    TransactionPage,
    address_of,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp, Signer
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

NAME = "dispersed"
QUOTE_MS = 60_000
ROWS = 50
MAX_PAGES = 200
HOUR_S = 3600
# The shortest that Dispersed takes; a node that pulls an image for longer is given up.
ASSIGN_MS = 300_000
USUAL_BOOT_S = 300.0
NOT_THERE = frozenset({404})
ENDED_ALREADY = frozenset({404, 409})


class DispersedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.dispersed]` takes; each has a default, so that an empty table is enough."""

    url: str = "https://api.dispersed.com"
    image: str = "otoy/dispersed-base"
    tag: str = "latest"
    disk_gb: int = 40
    ssh_user: str = "duser"
    allowed_ips: tuple[str, ...] = ()
    start_timeout_s: int = 900
    calls_per_s: float = 2.0
    listing_lag_s: int = 30
    charge_delay_s: int = 3600


class DispersedMarketplace:
    """One Dispersed account."""

    def __init__(self, options: DispersedOptions, key: Secret, clock: Clock | None = None) -> None:
        public, _, private = key.reveal().partition(":")
        if not public or not private:
            raise ConfigError("dispersed: the key is a pair, written as pk_…:sk_…, the public half first")
        if options.calls_per_s <= 0 or options.disk_gb < 1 or options.start_timeout_s < 120:
            raise ConfigError("dispersed: calls_per_s and disk_gb are above 0, start_timeout_s is 120 or more")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=Secret(private),
            signer=signer(public, Secret(private), self._clock),
            rate=options.calls_per_s,
            burst=10,
            clock=self._clock,
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """Dispersed lists classes of machines by region."""
        del query
        rows: tuple[ListedOffer, ...] = await self._pages("/v1/compute/offers", OfferPage, {})
        seen_ms = self._clock.now_ms()
        return [
            self._offer(row, row.pricing.hourly_rate_usd, seen_ms)
            for row in rows
            if row.pricing.hourly_rate_usd is not None and is_there(row)
        ]

    async def quote(self, offer: Offer) -> Quote:
        """Nothing is held, and a job names no offer: it is placed on a machine of the class at the price of then."""
        listed = await self.offers(OfferQuery())
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=f"the offer {offer.offer_id} is not listed any more")

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Create a persistent job. It may have no end time, so `deadline_ms` is kept by the node's watchdog alone."""
        del deadline_ms
        body = self._job(quote.offer, label, ssh_public_key.strip())
        job: Job = await self._http.call("POST", "/v1/jobs", Job, body=body, may_cost=True, judge=judge_create)
        return Rental(
            marketplace=NAME,
            rental_id=safe(job.uuid),
            label=label,
            status=RentalStatus.PENDING,
            kind=PriceKind.ON_DEMAND,
            machine_id=quote.offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        jobs: tuple[Job, ...] = await self._pages("/v1/jobs", JobPage, {"sort": "-created_at"})
        rentals = [rental_of(job, None) for job in {job.uuid: job for job in jobs}.values()]
        return [rental for rental in rentals if rental.status is not RentalStatus.GONE]

    async def rental(self, rental_id: str) -> Rental:
        job: Job | None = await self._http.call("GET", f"/v1/jobs/{safe(rental_id)}", Job, absent=NOT_THERE)
        if job is None:
            listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
            return listed[0] if listed else gone(rental_id)
        if job.status != "RUNNING":
            return rental_of(job, None)
        query: dict[str, str | int] = {"filter[job_uuid]": job.uuid, "limit": ROWS}
        runs: RunPage = await self._http.call("GET", "/v1/job-runs", RunPage, query=query)
        return rental_of(job, address_of(runs.data, job.uuid, self._options.ssh_user))

    async def release(self, rental_id: str) -> None:
        """Cancel the job; one that has ended already cannot be."""
        path = f"/v1/jobs/{safe(rental_id)}/cancel"
        body = {"reason": "released"}
        await self._http.call("PUT", path, None, body=body, may_cost=True, urgent=True, absent=ENDED_ALREADY)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Persistent jobs have no timer; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """The lines of the account's ledger that name the job."""
        rows: tuple[Transaction, ...] = await self._pages(
            "/v1/compute/ledger/transactions", TransactionPage, {"sort": "-created_at"}
        )
        now_ms = self._clock.now_ms()
        return [
            self._line(row, row.amount_usd, rental_id, now_ms)
            for row in rows
            if row.job_uuid == rental_id and row.amount_usd is not None
        ]

    async def balance(self) -> Balance | None:
        """No call that tells it is known; what is asked instead shows at least that the key is good."""
        await self._http.call("GET", "/v1/jobs", JobPage, query={"limit": 1, "page": 1})
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """A node could end its rental with the account's own key only, which never leaves this machine."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _pages(self, path: str, page_type: Any, query: dict[str, str | int]) -> tuple[Any, ...]:
        """All rows of a listing; a page that is not full is the last one, whatever total is told."""
        rows: list[Any] = []
        for number in range(1, MAX_PAGES + 1):
            page = await self._http.call("GET", path, page_type, query={**query, "limit": ROWS, "page": number})
            rows += page.data
            if len(page.data) < ROWS or len(rows) == page.total:
                return tuple(rows)
        raise Temporary(NAME, f"GET {path}: more than {MAX_PAGES} pages, so the listing is not whole")

    def _job(self, offer: Offer, label: str, public_key: str) -> dict[str, Any]:
        options = self._options
        docker: dict[str, Any] = {
            "image": options.image,
            "tag": options.tag,
            "ports": [22],
            "env": {},
            "volumes": [],
            "sshkey": public_key,
        }
        if options.allowed_ips:
            docker["allowed_ips"] = list(options.allowed_ips)
        return {
            "task": "PERSISTENT",
            "title": label,
            "cpu_count": offer.cpu_cores,
            "gpu_count": offer.gpu_count,
            **({"gpu_name": offer.gpu_raw, "min_vram_gb": int(offer.vram_gib)} if offer.gpu_count else {}),
            "min_ram_gb": int(offer.memory_gib),
            "min_storage_gb": options.disk_gb,
            "max_node_count": 1,
            "max_retry_count": 0,
            "max_timeout_assign_ms": ASSIGN_MS,
            "max_timeout_start_ms": options.start_timeout_s * 1000,
            "max_timeout_run_ms": None,
            **({"allowed_region_codes": [offer.region]} if offer.region else {}),
            "parameters": {"type": "docker", "parameters": docker},
        }

    def _offer(self, row: ListedOffer, rate: Decimal, seen_ms: int) -> Offer:
        hardware = row.hardware_summary
        count = hardware.gpu_count or 0
        return Offer(
            marketplace=NAME,
            offer_id=row.offer_id,
            machine_id=row.offer_id,
            price_nusd_hour=price_nusd(NAME, rate),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=(hardware.gpu_model_label or "") if count else "",
            gpu_count=count,
            vram_gib=(hardware.min_gpu_vram_gib or 0.0) if count else 0.0,
            cpu_cores=int(hardware.cpu_cores or 0),
            memory_gib=hardware.ram_gib or 0.0,
            disk_gib=float(self._options.disk_gb),
            region=row.region_code or "",
            tier=Tier.COMMUNITY,
            billing=Billing(quantum_s=HOUR_S),
            boot_s=USUAL_BOOT_S,
        )

    def _line(self, row: Transaction, amount: Decimal, rental_id: str, now_ms: int) -> MarketCharge:
        at_ms = now_ms if row.created_at is None else in_ms(row.created_at)
        return MarketCharge(
            charge_id=row.uuid,
            rental_id=rental_id,
            amount_nusd=abs(amount_nusd(NAME, amount)),
            start_ms=at_ms,
            end_ms=at_ms,
            native_amount=str(amount),
            final=now_ms - at_ms >= self._options.charge_delay_s * 1000,
        )


def signer(public: str, private: Secret, clock: Clock) -> Signer:
    """What proves a call: a signature over all that it says, at this time and never again."""

    def headers(method: str, path: str, query: str, content: bytes) -> dict[str, str]:
        time, nonce = str(clock.now_ms()), secrets.token_hex(16)
        return {
            "X-API-Key": public,
            "X-Time": time,
            "X-Nonce": nonce,
            "X-Signature": signature(private, (public, time, nonce, method, path, query), content),
        }

    return headers


def signature(private: Secret, parts: tuple[str, ...], content: bytes) -> str:
    """HMAC-SHA256 in lower-case hex: the parts and the content's hash, with bars between them."""
    said = "|".join((*parts, hashlib.sha256(content).hexdigest()))
    return hmac.new(private.reveal().encode(), said.encode(), hashlib.sha256).hexdigest()


def is_there(row: ListedOffer) -> bool:
    """Whether a class has a machine; what is not told is taken for one."""
    return row.availability is None or row.availability.node_count is None or row.availability.node_count > 0


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused job means; for lack of money or machines only the words may tell."""
    if not 400 <= status < 500:
        return None
    words = content.lower()
    if b"insufficient" in words and (b"credit" in words or b"balance" in words or b"fund" in words):
        return InsufficientFunds
    return OfferGone if status == 409 or b"no node" in words or b"capacity" in words else None


def rental_of(job: Job, address: NodeAddress | None) -> Rental:
    """A job as the contract tells it. What it costs an hour is not told."""
    told = (job.status or "").upper()
    status = STATUSES.get(told, RentalStatus.UNKNOWN)
    if status is RentalStatus.RUNNING and address is None:
        status = RentalStatus.PENDING
    return Rental(
        marketplace=NAME,
        rental_id=job.uuid,
        label=job.title or "",
        status=status,
        kind=PriceKind.ON_DEMAND,
        address=address,
        created_ms=in_ms(job.created_at),
        detail="" if status in (RentalStatus.PENDING, RentalStatus.RUNNING) else f"Dispersed says {told[:50]}",
    )


def gone(rental_id: str) -> Rental:
    """What Dispersed does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Dispersed does not know it"
    )


def safe(some_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(some_id, "a job of Dispersed")
