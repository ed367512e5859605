"""Basilica, Bittensor's subnet 39. What is known and what is not: docs/marketplaces/basilica.md."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Permanent,
    Temporary,
)
from jupyter_gpumarket.marketplaces.basilica_replies import (
    ENDED,
    STATUSES,
    BalanceReply,
    CpuOffering,
    CpuOfferings,
    GpuOffering,
    GpuOfferings,
    Listed,
    Rentals,
    SshKey,
    Started,
    Usage,
    UsagePage,
    storage_gb,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import is_part, path_part
from jupyter_gpumarket.marketplaces.relisted import relisted
from jupyter_gpumarket.marketplaces.ssh_command import address_in
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

NAME = "basilica"
QUOTE_MS = 60_000
USAGE_ROWS = 50
MAX_USAGE_PAGES = 100
# What a kind of machine is rented by; a rental's id begins with its kind.
PATHS = {"gpu": "/v2/secure-cloud/rentals", "cpu": "/v2/secure-cloud/cpu-rentals"}
KEY_NAME = "gpumarket-lease"
NOT_THERE = frozenset({404})
# A stop may also be refused because it is under way: the listing is the proof of the end in any case.
STOPPED_ALREADY = frozenset({404, 409})


class BasilicaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.basilica]` takes; each has a default, so that an empty table is enough."""

    url: str = "https://api.basilica.ai"
    cpu_machines: bool = True
    replace_ssh_key: bool = False
    calls_per_s: float = 2.0
    listing_lag_s: int = 30
    charge_delay_s: int = 900


class BasilicaMarketplace:
    """One Basilica account."""

    def __init__(self, options: BasilicaOptions, key: Secret, clock: Clock | None = None) -> None:
        if options.calls_per_s <= 0:
            raise ConfigError("basilica: calls_per_s must be above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(NAME, options.url, key=key, rate=options.calls_per_s, burst=10, clock=self._clock)
        # From the key's registration to the answer of the create call nobody else may change it.
        self._key_in_use = asyncio.Lock()

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(spot=True, charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """What data centres offer through Basilica, with GPUs and (by the setting `cpu_machines`) without."""
        del query
        wish = {"available_only": "true"}
        gpus: GpuOfferings = await self._http.call("GET", "/v2/secure-cloud/gpu-prices", GpuOfferings, query=wish)
        cpus = CpuOfferings(nodes=())
        if self._options.cpu_machines:
            cpus = await self._http.call("GET", "/v2/secure-cloud/cpu-prices", CpuOfferings, query=wish)
        seen_ms = self._clock.now_ms()
        return [gpu_offer(row, seen_ms) for row in gpus.nodes if row.availability and row.gpu_count > 0] + [
            cpu_offer(row, seen_ms) for row in cpus.nodes if row.availability
        ]

    async def quote(self, offer: Offer) -> Quote:
        """Prices are not held: the offerings are read again, and the rental's own price is compared after the rent."""
        listed = await self.offers(OfferQuery())
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=f"the offering {offer.offer_id} is not listed any more")

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Put the lease's key in the account's one place for a key, and start. There is no timer of theirs."""
        del deadline_ms
        kind, _, offering = quote.quote_id.partition("/")
        async with self._key_in_use:
            key = await self._put_key(ssh_public_key.strip())
            body = {"name": label, "offering_id": offering, "ssh_public_key_id": key.id}
            started: Started = await self._http.call(
                "POST", f"{PATHS[kind]}/start", Started, body=body, may_cost=True, judge=judge_create
            )
        if not is_part(started.rental_id):
            raise OutcomeUnknown(NAME, f"POST {PATHS[kind]}/start: an answer without a rental's identifier")
        return Rental(
            marketplace=NAME,
            rental_id=f"{kind}.{started.rental_id}",
            label=label,
            status=RentalStatus.PENDING,
            price_nusd_hour=None if started.hourly_cost is None else price_nusd(NAME, started.hourly_cost),
            kind=quote.kind,
            machine_id=quote.offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        return [rental for rental in await self._listed() if rental.status is not RentalStatus.GONE]

    async def rental(self, rental_id: str) -> Rental:
        """Looked for in the listings: there is no page of one alone."""
        found = next((rental for rental in await self._listed() if rental.rental_id == rental_id), None)
        return gone(rental_id) if found is None else found

    async def release(self, rental_id: str) -> None:
        kind, _, their_id = rental_id.partition(".")
        if kind in PATHS:
            path = f"{PATHS[kind]}/{safe(their_id)}/stop"
            await self._http.call("POST", path, None, body={}, may_cost=True, urgent=True, absent=STOPPED_ALREADY)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Basilica has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """The account's usage, page by page; one line for each rental."""
        their_id, now_ms, read = rental_id.partition(".")[2], self._clock.now_ms(), 0
        for _ in range(MAX_USAGE_PAGES):
            query: dict[str, str | int] = {"limit": USAGE_ROWS, "offset": read}
            page: UsagePage = await self._http.call("GET", "/billing/usage", UsagePage, query=query)
            for row in page.rentals:
                if row.rental_id == their_id:
                    return [self._line(row, rental_id, now_ms)]
            read += len(page.rentals)
            if not page.rentals or read >= page.total_count:
                return []
        raise Temporary(NAME, f"GET /billing/usage: more than {MAX_USAGE_PAGES} pages")

    async def balance(self) -> Balance | None:
        told: BalanceReply = await self._http.call("GET", "/billing/balance", BalanceReply)
        return Balance(amount_nusd=amount_nusd(NAME, told.balance), native_amount=str(told.balance))

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """A node could end its rental with the account's own key only, which never leaves this machine."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _put_key(self, public_key: str) -> SshKey:
        """Register a lease's key in place of an earlier lease's.

        Raises:
            Permanent: the account's one place for a key is taken by the user's own.
        """
        there: SshKey | None = await self._http.call("GET", "/ssh-keys", SshKey | None, absent=NOT_THERE)
        if there is not None:
            if there.public_key.split()[:2] == public_key.split()[:2]:
                return there
            if there.name != KEY_NAME and not self._options.replace_ssh_key:
                raise Permanent(
                    NAME,
                    f"the account holds one SSH key only, and that is {there.name[:60]!r}; delete it at Basilica, or "
                    "set replace_ssh_key = true to have it replaced by each lease's own",
                )
            await self._http.call("DELETE", "/ssh-keys", None, absent=NOT_THERE)
        wish = {"name": KEY_NAME, "public_key": public_key}
        key: SshKey = await self._http.call("POST", "/ssh-keys", SshKey, body=wish)
        return key

    async def _listed(self) -> list[Rental]:
        found: list[Rental] = []
        for kind, path in PATHS.items():
            listing: Rentals = await self._http.call("GET", path, Rentals)
            found += [rental_of(row, kind) for row in listing.rentals]
        return found

    def _line(self, row: Usage, rental_id: str, now_ms: int) -> MarketCharge:
        end_ms = in_ms(row.last_updated)
        old_enough = now_ms - end_ms >= self._options.charge_delay_s * 1000
        return MarketCharge(
            charge_id=rental_id,
            rental_id=rental_id,
            amount_nusd=amount_nusd(NAME, row.current_cost),
            start_ms=in_ms(row.start_time),
            end_ms=end_ms,
            native_amount=str(row.current_cost),
            final=row.status.lower() in ENDED and old_enough,
        )


def gpu_offer(row: GpuOffering, seen_ms: int) -> Offer:
    """An offering with GPUs; its price is told for one of them."""
    return Offer(
        marketplace=NAME,
        offer_id=f"gpu/{row.id}",
        machine_id=f"gpu/{row.id}",
        price_nusd_hour=price_nusd(NAME, row.hourly_rate_per_gpu * Decimal(row.gpu_count)),
        seen_ms=seen_ms,
        kind=PriceKind.SPOT if row.is_spot else PriceKind.ON_DEMAND,
        gpu_raw=row.gpu_type.upper(),
        gpu_count=row.gpu_count,
        vram_gib=row.gpu_memory_gb_per_gpu or 0.0,
        cpu_cores=int(row.vcpu_count),
        memory_gib=row.system_memory_gb,
        disk_gib=storage_gb(row.storage),
        region=row.region,
        tier=Tier.DATACENTER,
        billing=Billing(quantum_s=1),
        provider=row.provider,
        extra={"interconnect": row.interconnect} if row.interconnect else {},
    )


def cpu_offer(row: CpuOffering, seen_ms: int) -> Offer:
    """An offering without GPUs."""
    return Offer(
        marketplace=NAME,
        offer_id=f"cpu/{row.id}",
        machine_id=f"cpu/{row.id}",
        price_nusd_hour=price_nusd(NAME, row.hourly_rate),
        seen_ms=seen_ms,
        cpu_cores=int(row.vcpu_count),
        memory_gib=row.system_memory_gb,
        disk_gib=row.storage_gb,
        region=row.region,
        tier=Tier.DATACENTER,
        billing=Billing(quantum_s=1),
        provider=row.provider,
    )


def rental_of(row: Listed, kind: str) -> Rental:
    """A rental as the contract tells it. It bills from its creation."""
    told = row.status.lower()
    status = RentalStatus.GONE if row.stopped_at is not None else STATUSES.get(told, RentalStatus.UNKNOWN)
    address = address_in(row.ssh_command)
    if status is RentalStatus.RUNNING and address is None:
        status = RentalStatus.PENDING
    created_ms = in_ms(row.created_at)
    return Rental(
        marketplace=NAME,
        rental_id=f"{kind}.{row.rental_id}",
        label=row.name or "",
        status=status,
        price_nusd_hour=None if row.hourly_cost is None else price_nusd(NAME, row.hourly_cost),
        kind=PriceKind.SPOT if row.is_spot else PriceKind.ON_DEMAND,
        address=address if status is RentalStatus.RUNNING else None,
        created_ms=created_ms,
        billed_from_ms=created_ms,
        ended_ms=in_ms(row.stopped_at),
        detail="" if status in (RentalStatus.PENDING, RentalStatus.RUNNING) else f"Basilica says {told[:50]}",
    )


def gone(rental_id: str) -> Rental:
    """What Basilica does not list (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Basilica does not list it"
    )


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create call means; for lack of money only the words may tell."""
    words = content.lower()
    if 400 <= status < 500 and b"insufficient" in words:
        return InsufficientFunds
    return OfferGone if status in (404, 409) or (status == 400 and b"available" in words) else None


def safe(some_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(some_id, "a rental of Basilica")
