"""Prime Intellect: one account for the GPUs of many clouds. What is known and what is not:
docs/marketplaces/primeintellect.md."""

from __future__ import annotations

import contextlib
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, GpuMarketError, MarketplaceError, OfferGone, OutcomeUnknown, Temporary
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.primeintellect_replies import (
    Availability,
    BillingRow,
    Configuration,
    PastPage,
    PastPod,
    Pod,
    PodPage,
    Spec,
    SshKey,
    SshKeyPage,
    Wallet,
    address_of,
    amount,
    status_of,
)
from jupyter_gpumarket.marketplaces.relisted import relisted
from jupyter_gpumarket.models import (
    Balance,
    Billing,
    Capabilities,
    MarketCharge,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
    Tier,
)

NAME = "primeintellect"
PREFIX = "/api/v1"
TIERS = {"secure_cloud": Tier.DATACENTER, "community_cloud": Tier.COMMUNITY}
CPU_ONLY = "CPU_NODE"
LIST_ROWS = 100
MAX_LIST_PAGES = 200
QUOTE_MS = 60_000
NOT_THERE = frozenset({404})
# Only the words of a refusal tell that a configuration is gone from a request that is wrong.
NO_CAPACITY = (b"not available", b"no longer available", b"unavailable", b"out of stock", b"capacity", b"maxPrice")


class PrimeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.primeintellect]` takes; each has a default."""

    url: str = "https://api.primeintellect.ai"
    image: str = "ubuntu_22_cuda_12"
    disk_gb: int = 40
    clouds: tuple[str, ...] = ()
    securities: tuple[str, ...] = ("secure_cloud", "community_cloud")
    team: str = ""
    pages: int = 20
    calls_per_s: float = 2.0
    listing_lag_s: int = 45
    charge_delay_s: int = 900


class PrimeMarketplace:
    """One Prime Intellect account."""

    def __init__(self, options: PrimeOptions, key: Secret, clock: Clock | None = None) -> None:
        unknown = [kind for kind in options.securities if kind not in TIERS]
        if unknown or options.disk_gb < 1 or options.pages < 1 or options.calls_per_s <= 0:
            raise ConfigError(
                f"{NAME}: securities are {' and '.join(TIERS)}; disk_gb, pages and calls_per_s are above 0"
            )
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(NAME, options.url, key=key, rate=options.calls_per_s, burst=10, clock=self._clock)

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(spot=True, charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """One for each configuration that some cloud has in stock in some place."""
        narrowed: dict[str, str | int] = {"gpu_count": query.gpu_count} if query.gpu_count else {}
        return await self._listed(narrowed)

    async def quote(self, offer: Offer) -> Quote:
        """The configuration is read again; the create call then names this price as the most that we pay."""
        narrowed: dict[str, str | int] = {"cloud_id": str(offer.extra.get("cloud_id", ""))}
        listed = await self._listed(narrowed)
        why = f"{offer.provider} has no {offer.gpu_raw or 'machine'} in {offer.region} now"
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=why)

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Record the lease's key, then create the pod. There is no timer of theirs: `deadline_ms` is the watchdog's."""
        del deadline_ms
        wish = {"name": label, "publicKey": ssh_public_key.strip()}
        key: SshKey = await self._http.call("POST", f"{PREFIX}/ssh_keys/", SshKey, body=wish)
        body = self._create_body(quote, label, key.id)
        try:
            pod: Pod = await self._http.call(
                "POST", f"{PREFIX}/pods/", Pod, body=body, may_cost=True, judge=judge_create
            )
        except OutcomeUnknown:
            # The pod may be there, and then it needs its key until it is released.
            raise
        except GpuMarketError:
            await self._forget_key(label)
            raise
        return rental_of(pod)

    async def find(self, label: str) -> Rental | None:
        """Names are not unique at Prime, but our labels are; the oldest of several is the one."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        found: dict[str, Pod] = {}
        for _ in range(MAX_LIST_PAGES):
            query: dict[str, str | int] = {"offset": len(found), "limit": LIST_ROWS}
            page: PodPage = await self._http.call("GET", f"{PREFIX}/pods/", PodPage, query=query)
            before = len(found)
            found.update({pod.id: pod for pod in page.data})
            if len(found) >= page.total_count or len(found) == before:
                rentals = [rental_of(pod) for pod in found.values()]
                return [rental for rental in rentals if rental.status is not RentalStatus.GONE]
        raise Temporary(NAME, f"GET {PREFIX}/pods/: more than {MAX_LIST_PAGES} pages, so the listing is not whole")

    async def rental(self, rental_id: str) -> Rental:
        pod = await self._pod(rental_id)
        if pod is not None:
            return rental_of(pod)
        # A pod's own page may lag behind the create call: only the listing decides.
        listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
        return listed[0] if listed else await self._ended(rental_id)

    async def release(self, rental_id: str) -> None:
        path = f"{PREFIX}/pods/{safe(rental_id)}"
        label = ""
        with contextlib.suppress(MarketplaceError):
            pod = await self._pod(rental_id, urgent=True)
            label = "" if pod is None else pod.name or ""
        await self._http.call("DELETE", path, None, may_cost=True, urgent=True, absent=NOT_THERE)
        if label:
            await self._forget_key(label)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Prime has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """An ended pod's whole bill is in the history; what a living one has cost so far, in the wallet's rows."""
        pod = await self._past(rental_id)
        if pod is not None and pod.terminated_at is not None:
            return [self._line(rental_id, "pod", pod.total_billed_price, pod.created_at, pod.terminated_at)]
        wallet = await self._wallet()
        rows = [row for row in wallet.recent_billings if row.resource_id == rental_id]
        return [self._line(rental_id, row.id, row.amount_usd, row.created_at, end_of(row)) for row in rows]

    async def balance(self) -> Balance | None:
        wallet = await self._wallet()
        return Balance(amount_nusd=amount_nusd(NAME, wallet.balance_usd), native_amount=str(wallet.balance_usd))

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """None: a pod gets no key of its own, and the account's key never goes to a node."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _listed(self, narrowed: dict[str, str | int]) -> list[Offer]:
        found: dict[str, Offer] = {}
        read = 0
        for page in range(1, self._options.pages + 1):
            query = {**narrowed, "page": page, "page_size": LIST_ROWS}
            listing: Availability = await self._http.call(
                "GET", f"{PREFIX}/availability/gpus", Availability, query=query
            )
            seen_ms = self._clock.now_ms()
            for row in listing.items:
                offer = self._offer(row, seen_ms) if self._wanted(row) else None
                if offer is not None and (
                    offer.offer_id not in found or offer.price_nusd_hour < found[offer.offer_id].price_nusd_hour
                ):
                    found[offer.offer_id] = offer
            read += len(listing.items)
            if not listing.items or read >= listing.total_count:
                break
        return list(found.values())

    def _wanted(self, row: Configuration) -> bool:
        """Prices in euros are left out: there is no rate to be exact with."""
        options = self._options
        return (
            row.stock_status != "Unavailable"
            and row.price is not None
            and row.prices.currency == "USD"
            and row.security in options.securities
            and (not options.clouds or row.provider in options.clouds)
        )

    def _offer(self, row: Configuration, seen_ms: int) -> Offer | None:
        price = row.price
        if price is None or not price.is_finite() or price < 0:
            return None
        disk_gb, disk_price = disk_of(row.disk, self._options.disk_gb)
        has_gpu = row.gpu_type != CPU_ONLY
        prepaid_s = int((row.prepaid_time or Decimal(0)) * 3600)
        return Offer(
            marketplace=NAME,
            offer_id=row.identity,
            machine_id=row.identity,
            price_nusd_hour=price_nusd(NAME, price + disk_price),
            seen_ms=seen_ms,
            kind=PriceKind.SPOT if row.is_spot else PriceKind.ON_DEMAND,
            gpu_raw=row.gpu_type if has_gpu else "",
            gpu_count=row.gpu_count if has_gpu else 0,
            vram_gib=row.gpu_memory if has_gpu else 0.0,
            cpu_cores=amount(row.vcpu),
            memory_gib=float(amount(row.memory)),
            disk_gib=float(disk_gb or 0),
            region=row.data_center or row.region or "",
            country=row.country or "",
            tier=TIERS[row.security],
            down_mbps=row.internet_speed or 0.0,
            up_mbps=row.internet_speed or 0.0,
            billing=Billing(quantum_s=1, minimum_s=prepaid_s),
            provider=row.provider,
            boot_s=None if row.provisioning_time is None else row.provisioning_time * 60.0,
            extra={
                "cloud_id": row.cloud_id,
                "gpu_type": row.gpu_type,
                "socket": row.socket,
                "count": row.gpu_count,
                "disk_gb": disk_gb,
                "data_center": row.data_center,
                "security": row.security,
                "stock": row.stock_status,
                "image": image_of(row.images, self._options.image),
            },
        )

    def _create_body(self, quote: Quote, label: str, key_id: str) -> dict[str, Any]:
        offer, extra = quote.offer, quote.offer.extra
        pod: dict[str, Any] = {
            "name": label,
            "cloudId": extra["cloud_id"],
            "gpuType": extra["gpu_type"],
            "socket": extra["socket"],
            "gpuCount": extra["count"],
            "diskSize": extra["disk_gb"],
            "vcpus": offer.cpu_cores or None,
            "memory": int(offer.memory_gib) or None,
            "maxPrice": in_dollars(quote.price_nusd_hour),
            "image": extra["image"],
            "dataCenterId": extra["data_center"],
            "country": offer.country or None,
            "security": extra["security"],
            "sshKeyId": key_id,
            "autoRestart": False,
        }
        body: dict[str, Any] = {"pod": pod, "provider": {"type": offer.provider}}
        return body | ({"team": {"teamId": self._options.team}} if self._options.team else {})

    async def _pod(self, rental_id: str, *, urgent: bool = False) -> Pod | None:
        path = f"{PREFIX}/pods/{safe(rental_id)}"
        found: Pod | None = await self._http.call("GET", path, Pod, absent=NOT_THERE, urgent=urgent)
        return found

    async def _past(self, rental_id: str) -> PastPod | None:
        query: dict[str, str | int] = {"sort_by": "terminatedAt", "sort_order": "desc", "offset": 0}
        query["limit"] = LIST_ROWS
        past: PastPage = await self._http.call("GET", f"{PREFIX}/pods/history", PastPage, query=query)
        return next((pod for pod in past.data if pod.id == rental_id), None)

    async def _ended(self, rental_id: str) -> Rental:
        """What the history tells of a pod that is not there any more; without it, it is gone all the same."""
        ended_ms = None
        with contextlib.suppress(MarketplaceError):
            pod = await self._past(rental_id)
            ended_ms = None if pod is None or pod.terminated_at is None else in_ms(pod.terminated_at)
        return Rental(
            marketplace=NAME,
            rental_id=rental_id,
            label="",
            status=RentalStatus.GONE,
            ended_ms=ended_ms,
            detail="Prime does not know it",
        )

    async def _wallet(self) -> Wallet:
        query: dict[str, str | int] = {"offset": 0, "limit": LIST_ROWS}
        if self._options.team:
            query["teamId"] = self._options.team
        wallet: Wallet = await self._http.call("GET", f"{PREFIX}/billing/wallet", Wallet, query=query)
        return wallet

    async def _forget_key(self, label: str) -> None:
        """Take the lease's key from the account again; one that stays opens nothing and costs nothing."""
        with contextlib.suppress(MarketplaceError):
            query: dict[str, str | int] = {"limit": LIST_ROWS}
            page: SshKeyPage = await self._http.call("GET", f"{PREFIX}/ssh_keys/", SshKeyPage, query=query, urgent=True)
            for key in page.data:
                if key.name == label:
                    await self._http.call("DELETE", f"{PREFIX}/ssh_keys/{safe(key.id)}", None, urgent=True)

    def _line(self, rental_id: str, what: str, dollars: Decimal, start: datetime, end: datetime) -> MarketCharge:
        start_ms, end_ms = in_ms(start), in_ms(end)
        return MarketCharge(
            charge_id=f"{rental_id}-{what}",
            rental_id=rental_id,
            amount_nusd=amount_nusd(NAME, dollars),
            start_ms=start_ms,
            end_ms=end_ms,
            native_amount=str(dollars),
            final=what == "pod" and self._clock.now_ms() - end_ms >= self._options.charge_delay_s * 1000,
        )


def in_dollars(nusd: int) -> msgspec.Raw:
    """A price as a number of their JSON, digit by digit."""
    return msgspec.Raw(f"{Decimal(nusd) / 1_000_000_000:f}".encode())


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create means."""
    refused = status in (400, 404, 409, 422)
    return OfferGone if refused and any(words in content for words in NO_CAPACITY) else None


def disk_of(spec: Spec | None, wanted_gb: int) -> tuple[int | None, Decimal]:
    """The disk to ask for in GB, None where there is no choice; and what it adds in dollars an hour."""
    if spec is None or spec.min_count is None or spec.max_count is None:
        return (None if spec is None else spec.default_count), Decimal(0)
    step = max(spec.step or 1, 1)
    steps = max(0, -(-(wanted_gb - spec.min_count) // step))
    size = min(spec.min_count + steps * step, spec.max_count)
    paid = max(0, size - (spec.default_count or 0)) if spec.default_included_in_price else size
    return size, (spec.price_per_unit or Decimal(0)) * paid


def image_of(offered: tuple[str, ...], wanted: str) -> str:
    """The image to start: the one of the settings where it is offered, else the first."""
    return wanted if wanted in offered or not offered else offered[0]


def rental_of(pod: Pod) -> Rental:
    """A pod as the contract tells it."""
    status = status_of(pod)
    created_ms = in_ms(pod.created_at)
    words = pod.installation_failure or f"Prime says {pod.status[:50]}"
    return Rental(
        marketplace=NAME,
        rental_id=pod.id,
        label=pod.name or "",
        status=status,
        price_nusd_hour=None if pod.price_hr is None else price_nusd(NAME, pod.price_hr),
        kind=PriceKind.SPOT if pod.is_spot else PriceKind.ON_DEMAND,
        address=address_of(pod) if status is RentalStatus.RUNNING else None,
        created_ms=created_ms,
        # Where provisioning is free, the bill begins later, and when is not told.
        billed_from_ms=None if pod.provisioning_price_hr == 0 else created_ms,
        ended_ms=in_ms(pod.terminated_at),
        detail="" if status in (RentalStatus.PENDING, RentalStatus.RUNNING) else words.strip()[:500],
    )


def end_of(row: BillingRow) -> datetime:
    """Up to when a row of the wallet is billed."""
    return row.last_billed_at or row.updated_at


def safe(identifier: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(identifier, "a pod of Prime Intellect")
