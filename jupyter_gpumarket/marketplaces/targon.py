"""Targon, Bittensor's subnet 4: kinds of machines. What is known and what is not: docs/marketplaces/targon.md."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    MarketplaceError,
    OfferGone,
    OutcomeUnknown,
    Temporary,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.relisted import relisted
from jupyter_gpumarket.marketplaces.ssh_command import is_host
from jupyter_gpumarket.marketplaces.targon_replies import (
    STATUSES,
    Credits,
    Registered,
    Resource,
    SshKey,
    Workload,
    Workloads,
)
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

NAME = "targon"
QUOTE_MS = 60_000
LIST_ROWS = 100
MAX_LIST_PAGES = 200
# A machine has more than this many MiB of memory, and less than this many GiB.
MOST_GIB = 8192
NOT_THERE = frozenset({404})
NO_MONEY = (b"insufficient_credit", b"insufficient credit", b"insufficient_fund", b"insufficient fund")
NO_CAPACITY = (b"capacity", b"unavailable", b"not available", b"out of stock", b"sold out")
# Targon tells a GPU's name alone. These are the data sheets' sizes, for which a node is checked when it is there.
VRAM_GIB = {"H100": 80.0, "H200": 141.0, "B200": 180.0, "B300": 288.0, "RTX4090": 24.0, "RTX6000B": 96.0}


class TargonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.targon]` takes; each has a default, so that an empty table is enough."""

    url: str = "https://api.targon.com"
    image: str = "pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime"
    ssh_gateway: str = "ssh.deployments.targon.com"
    ssh_user: str = "root"
    calls_per_s: float = 2.0
    listing_lag_s: int = 30


class TargonMarketplace:
    """One Targon account."""

    def __init__(self, options: TargonOptions, key: Secret, clock: Clock | None = None) -> None:
        if options.calls_per_s <= 0 or not is_host(options.ssh_gateway):
            raise ConfigError("targon: calls_per_s must be above 0, and ssh_gateway a host name")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(NAME, options.url, key=key, rate=options.calls_per_s, burst=10, clock=self._clock)
        # What this process deployed, with the key that it gave each.
        self._deployed: dict[str, str] = {}

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """No timer, no key for the node, and no bill to compare with: see the docs before trusting it with much."""
        return Capabilities(charges=False, listing_lag_s=self._options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """Targon lists no machines: one offer for each kind of which there is one."""
        del query
        kinds: tuple[Resource, ...] = await self._http.call(
            "GET", "/tha/v2/inventory", tuple[Resource, ...], query={"type": "rental"}
        )
        seen_ms = self._clock.now_ms()
        return [
            offer_of(kind, kind.cost_per_hour, seen_ms)
            for kind in kinds
            if kind.cost_per_hour is not None and (kind.available or 0) > 0
        ]

    async def quote(self, offer: Offer) -> Quote:
        """The inventory is read again; what was really agreed is the workload's own cost."""
        listed = await self.offers(OfferQuery())
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=f"there is no {offer.offer_id} now")

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Register a workload under the label with a key of its own, then deploy it: only that costs.

        Targon enforces no end time, so `deadline_ms` is kept by the node's watchdog and our own sweep alone.
        """
        del deadline_ms
        wish = {"name": label, "ssh_key": ssh_public_key.strip()}
        key: SshKey = await self._http.call("POST", "/tha/v2/ssh-keys", SshKey, body=wish)
        body = {
            "name": label,
            "image": self._options.image,
            "resource_name": quote.quote_id,
            "type": "RENTAL",
            "args": ["sleep", "infinity"],
            "ssh_keys": [key.uid],
        }
        uid = ""
        try:
            made: Registered = await self._http.call(
                "POST", "/tha/v2/workloads", Registered, body=body, may_cost=True, judge=judge_create
            )
            uid = safe(made.uid)
            path = f"/tha/v2/workloads/{uid}/deploy"
            await self._http.call("POST", path, None, may_cost=True, judge=judge_create)
        except OutcomeUnknown:
            raise
        except GpuMarketError:
            await self._tidy(uid, key.uid)
            raise
        self._deployed[uid] = key.uid
        return Rental(
            marketplace=NAME,
            rental_id=uid,
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
        found: dict[str, Workload] = {}
        query: dict[str, str | int] = {"limit": LIST_ROWS}
        for _ in range(MAX_LIST_PAGES):
            page: Workloads = await self._http.call("GET", "/tha/v2/workloads", Workloads, query=query)
            found.update({workload.uid: workload for workload in page.items})
            if not page.next_cursor or page.next_cursor == query.get("cursor"):
                rentals = [self._rental_of(workload) for workload in found.values()]
                return [rental for rental in rentals if rental.status is not RentalStatus.GONE]
            query["cursor"] = page.next_cursor
        raise Temporary(NAME, f"GET /tha/v2/workloads: more than {MAX_LIST_PAGES} pages, so the listing is not whole")

    async def rental(self, rental_id: str) -> Rental:
        workload = await self._workload(rental_id)
        if workload is not None:
            return self._rental_of(workload)
        # A workload's own page may lag behind the create call: only the listing decides.
        listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
        return listed[0] if listed else gone(rental_id)

    async def release(self, rental_id: str) -> None:
        """Delete the workload, and then the key that was made for it, if it is still known which one that is."""
        path = f"/tha/v2/workloads/{safe(rental_id)}"
        await self._http.call("DELETE", path, None, may_cost=True, urgent=True, absent=NOT_THERE)
        key = self._deployed.pop(rental_id, "")
        if key:
            await self._tidy("", key)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Targon has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """Targon tells no bill."""
        del rental_id
        return []

    async def balance(self) -> Balance | None:
        """The account's credits, where they are dollars."""
        told: Credits = await self._http.call("GET", "/tha/v2/me/credits", Credits)
        if told.currency.upper() not in ("USD", "$"):
            return None
        return Balance(amount_nusd=amount_nusd(NAME, told.credits), native_amount=str(told.credits))

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """A node could end its rental with the account's own key only, which never leaves this machine."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _workload(self, uid: str) -> Workload | None:
        path = f"/tha/v2/workloads/{safe(uid)}"
        found: Workload | None = await self._http.call("GET", path, Workload, absent=NOT_THERE)
        return found

    async def _tidy(self, workload: str, key: str) -> None:
        """Take away what costs nothing and is of no use any more; what stays is no harm."""
        for path in ((f"/tha/v2/workloads/{workload}",) if workload else ()) + (f"/tha/v2/ssh-keys/{key}",):
            with contextlib.suppress(MarketplaceError):
                await self._http.call("DELETE", path, None, urgent=True, absent=NOT_THERE)

    def _rental_of(self, workload: Workload) -> Rental:
        """A workload as the contract tells it. One that was registered and never deployed will never run."""
        told = workload.state.status.lower() if workload.state is not None else ""
        status = STATUSES.get(told, RentalStatus.UNKNOWN)
        if told == "registered" and workload.uid not in self._deployed:
            status = RentalStatus.FAILED
        address = self._address_of(workload) if status is RentalStatus.RUNNING else None
        return Rental(
            marketplace=NAME,
            rental_id=workload.uid,
            label=workload.name,
            status=status,
            price_nusd_hour=None if workload.cost_per_hour is None else price_nusd(NAME, workload.cost_per_hour),
            kind=PriceKind.ON_DEMAND,
            machine_id=workload.resource_name or "",
            address=address,
            created_ms=in_ms(workload.created_at),
            detail="" if address else words_of(workload, told),
        )

    def _address_of(self, workload: Workload) -> NodeAddress:
        """A public address where one is told; else Targon's gateway, where the user name says which workload."""
        state = workload.state
        if state is not None and state.ssh_port and state.public_ip and is_host(state.public_ip):
            return NodeAddress(host=state.public_ip, port=state.ssh_port, user=self._options.ssh_user)
        return NodeAddress(host=self._options.ssh_gateway, port=22, user=workload.uid)


def offer_of(kind: Resource, cost_per_hour: Decimal, seen_ms: int) -> Offer:
    """A kind of machine. Whose and where it is is not told."""
    spec = kind.spec
    count = (spec.gpu_count or 0) if kind.gpu is not False else 0
    memory = spec.memory or 0.0
    return Offer(
        marketplace=NAME,
        offer_id=kind.name,
        machine_id=kind.name,
        price_nusd_hour=price_nusd(NAME, cost_per_hour),
        seen_ms=seen_ms,
        kind=PriceKind.ON_DEMAND,
        gpu_raw=(spec.gpu_type or "") if count else "",
        gpu_count=count,
        vram_gib=VRAM_GIB.get((spec.gpu_type or "").upper(), 0.0) if count else 0.0,
        cpu_cores=int(spec.vcpu or 0),
        memory_gib=round(memory / 1024 if memory > MOST_GIB else memory, 2),
        disk_gib=spec.storage or 0.0,
        tier=Tier.DATACENTER,
        billing=Billing(quantum_s=1),
        extra={"available": kind.available},
    )


def words_of(workload: Workload, told: str) -> str:
    message = workload.state.message if workload.state is not None else None
    return f"Targon says {told[:50] or 'nothing'}" + (f": {message[:300]}" if message else "")


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused registration or deployment means; only its words tell."""
    if not 400 <= status < 500:
        return None
    words = content.lower()
    if any(word in words for word in NO_MONEY):
        return InsufficientFunds
    return OfferGone if status == 409 or any(word in words for word in NO_CAPACITY) else None


def gone(rental_id: str) -> Rental:
    """What Targon does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Targon does not know it"
    )


def safe(some_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(some_id, "an identifier of Targon")
