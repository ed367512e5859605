"""io.net's virtual machines (VMaaS): hours are paid in advance. See docs/marketplaces/ionet.md."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Temporary,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import Absent, MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import is_part, path_part
from jupyter_gpumarket.marketplaces.ionet_replies import (
    Deployed,
    Details,
    DetailsReply,
    Hardware,
    HardwareReply,
    PriceReply,
    Row,
    RowsReply,
    WorkersReply,
    status_of,
)
from jupyter_gpumarket.marketplaces.ssh_command import address_in
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
from jupyter_gpumarket.money import MS_PER_HOUR

NAME = "ionet"
WITH_KEY = "/enterprise/v1/io-cloud/vmaas"
WITHOUT_KEY = "/v1/io-cloud/vmaas"
QUOTE_MS = 60_000
LIST_ROWS = 100
MAX_LIST_PAGES = 200
MAX_ID_CHARACTERS = 80
LONGEST_H = 8760
FIRST_HOUR_S = 3600
MINUTES = 60
BY_INTERFACE = re.compile(r"[ABHV]\d{3}")
TIERS = {"internal": Tier.COMMUNITY, "external": Tier.DATACENTER}
# How io.net words these is not documented.
NOT_ENOUGH = (b"nsufficient", b"not enough credit", b"payment_required")
SOLD_OUT = (b"sold out", b"sold_out", b"not available", b"no longer available", b"No available", b"out of stock")


class IonetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.ionet]` takes; each has a default."""

    url: str = "https://api.io.solutions"
    vm_image_type: str = "general"
    currency: str = "usdc"
    # Text, so that no float comes near a price.
    fee_percent: str = "2.25"
    fees_in_total: bool = True
    cpu_rows: bool = False
    calls_per_s: float = 1.0
    listing_lag_s: int = 45


class IonetMarketplace:
    """One io.net account. With an empty key it lists what there is, and nothing else."""

    def __init__(self, options: IonetOptions, key: Secret, clock: Clock | None = None) -> None:
        self._fee = fee_in(options.fee_percent)
        if options.vm_image_type not in ("general", "datascience") or options.currency not in ("usdc", "iocoin"):
            raise ConfigError("ionet: vm_image_type is general or datascience; currency is usdc or iocoin")
        if options.calls_per_s <= 0:
            raise ConfigError("ionet: calls_per_s must be above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._has_key = bool(key.reveal())
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=key if self._has_key else None,
            key_header="x-api-key",
            key_prefix="",
            rate=options.calls_per_s,
            burst=10,
            read_timeout_s=60.0,
            clock=self._clock,
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Its own timer is the end of the hours that were paid."""
        return Capabilities(own_timer=True, listing_lag_s=self._options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """List prices, with io.net's fees. Needs no key."""
        del query
        seen_ms = self._clock.now_ms()
        found = [self._offer(row, seen_ms) for row in await self._hardware() if self._is_offered(row)]
        return list({offer.offer_id: offer for offer in found}.values())

    async def quote(self, offer: Offer) -> Quote:
        """What one hour costs with all fees, and whether there is one now. It reserves nothing."""
        query: dict[str, str | int] = {
            "hardware_id": offer.extra["deploy_id"],
            "location_ids": msgspec.json.encode(places(offer)).decode(),
            "currency": self._options.currency,
            "duration_hours": 1,
            "gpus_per_vm": max(1, offer.gpu_count),
            "replica_count": 1,
        }
        reply: PriceReply = await self._http.call("GET", f"{WITH_KEY}/price", PriceReply, query=query, judge=judge)
        told = reply.data
        if told.available_replica_count is not None and not any(told.available_replica_count):
            raise OfferGone(f"{NAME}: there is no {offer.gpu_raw or 'machine'} {offer.offer_id} now")
        dollars = told.total_cost_usdc
        if not self._options.fees_in_total:
            dollars += told.ionet_fee + told.currency_conversion_fee
        price, now_ms = price_nusd(NAME, dollars), self._clock.now_ms()
        return Quote(
            marketplace=NAME,
            offer=msgspec.structs.replace(offer, price_nusd_hour=price, seen_ms=now_ms),
            price_nusd_hour=price,
            expires_ms=now_ms + QUOTE_MS,
            quote_id=offer.offer_id,
        )

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Pay for whole hours up to the deadline: the first is never given back, the rest to the second."""
        offer = quote.offer
        hours = max(1, min(LONGEST_H, hours_until(deadline_ms, self._clock.now_ms())))
        body: dict[str, Any] = {
            "resource_private_name": label,
            "duration_hours": hours,
            "gpus_per_vm": max(1, offer.gpu_count),
            "hardware_id": offer.extra["deploy_id"],
            # Required until 2025, deprecated since.
            "vms_qty": 1,
            "ssh_keys": {"gpumarket": ssh_public_key.strip()},
            "vm_image_type": self._options.vm_image_type,
            **({"location_ids": places(offer)} if places(offer) else {}),
        }
        path = f"{WITH_KEY}/deploy"
        reply: Deployed = await self._http.call("POST", path, Deployed, body=body, may_cost=True, judge=judge)
        if not is_part(reply.known_id, most=MAX_ID_CHARACTERS):
            raise OutcomeUnknown(NAME, f"POST {path}: an answer without a deployment's id")
        return Rental(
            marketplace=NAME,
            rental_id=reply.known_id,
            label=label,
            status=RentalStatus.PENDING,
            kind=PriceKind.ON_DEMAND,
            machine_id=offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        """By name in the complete listing."""
        return next((rental for rental in await self.rentals() if rental.label == label), None)

    async def rentals(self) -> list[Rental]:
        rentals = [rental_of(row) for row in await self._rows()]
        return [rental for rental in rentals if rental.status is not RentalStatus.GONE]

    async def rental(self, rental_id: str) -> Rental:
        path = f"{WITH_KEY}/deployment/{safe(rental_id)}"
        reply: DetailsReply | None = await self._http.call("GET", path, DetailsReply, judge=judge_one)
        if reply is None:
            # Any wrong path is answered by 404 too: only the listing decides.
            listed = [rental_of(row) for row in await self._rows() if row.id == rental_id]
            return listed[0] if listed else gone(rental_id)
        address, detail = None, ""
        status = status_of(
            reply.data.status, reply.data.compute_minutes_remaining, finished=reply.data.finished_at is not None
        )
        if status is RentalStatus.RUNNING:
            address, detail = await self._address(path)
            status = RentalStatus.PENDING if address is None else status
        return _whole(reply.data, status, address, detail)

    async def release(self, rental_id: str) -> None:
        path = f"{WITH_KEY}/deployment/{safe(rental_id)}"
        await self._http.call("DELETE", path, None, may_cost=True, urgent=True, judge=judge_one)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Pay for more whole hours where those that were paid end before the deadline; fewer cannot be had."""
        path = f"{WITH_KEY}/deployment/{safe(rental_id)}"
        reply: DetailsReply | None = await self._http.call("GET", path, DetailsReply, judge=judge_one)
        if reply is None or status_of(reply.data.status, Decimal(0)) is not RentalStatus.RUNNING:
            return
        ends_ms = self._clock.now_ms() + int(reply.data.compute_minutes_remaining * MINUTES * 1000)
        if deadline_ms > ends_ms:
            body = {"duration_hours": hours_until(deadline_ms, ends_ms)}
            await self._http.call("POST", f"{path}/extend", None, body=body)

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """Of what was paid, what does not come back: the time that was used, and one hour at least."""
        path = f"{WITH_KEY}/deployment/{safe(rental_id)}"
        reply: DetailsReply | None = await self._http.call("GET", path, DetailsReply, judge=judge_one)
        if reply is None:
            return []
        paid = reply.data
        start_ms = in_ms(paid.started_at) or in_ms(paid.created_at)
        minutes = paid.prepaid_minutes
        if start_ms is None or minutes <= 0:
            return []
        end_ms = max(start_ms, in_ms(paid.finished_at) or self._clock.now_ms())
        used = Decimal(end_ms - start_ms) / (1000 * MINUTES)
        charged = min(minutes, max(used, Decimal(MINUTES)))
        amount = paid.amount_paid * charged / minutes
        return [
            MarketCharge(
                charge_id=f"{rental_id}-hours",
                rental_id=rental_id,
                amount_nusd=amount_nusd(NAME, amount),
                start_ms=start_ms,
                end_ms=start_ms + int(charged * MINUTES * 1000),
                native_amount=str(amount),
                final=paid.finished_at is not None,
            )
        ]

    async def balance(self) -> Balance | None:
        """Not told to an API key; whether the key is good is seen all the same."""
        query: dict[str, str | int] = {"page": 0, "page_size": 1}
        await self._http.call("GET", f"{WITH_KEY}/deployments", RowsReply, query=query)
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """None: a virtual machine has no key of its account. It ends with the hours that were paid."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _hardware(self) -> tuple[Hardware, ...]:
        path = f"{WITH_KEY if self._has_key else WITHOUT_KEY}/hardware"
        reply: HardwareReply = await self._http.call("GET", path, HardwareReply)
        return reply.data.hardware

    def _is_offered(self, row: Hardware) -> bool:
        """The listing has rows that are sold out, cost nothing, or have no GPU."""
        if row.sold_out or row.price is None or not row.price.is_finite() or row.price <= 0:
            return False
        return (row.num_cards > 0 and bool(row.name)) or (self._options.cpu_rows and row.num_cards == 0)

    def _offer(self, row: Hardware, seen_ms: int) -> Offer:
        assert row.price is not None
        return Offer(
            marketplace=NAME,
            offer_id=f"{row.id}/{row.location or ''}",
            machine_id=f"{row.id}/{row.location or ''}",
            price_nusd_hour=price_nusd(NAME, row.price * (100 + self._fee) / 100),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=spelled(row) if row.num_cards else "",
            gpu_count=row.num_cards,
            vram_gib=(row.vram_per_card or 0.0) if row.num_cards else 0.0,
            cpu_cores=int(row.vcpu or 0),
            memory_gib=float(row.memory or 0),
            disk_gib=float(row.storage or 0),
            country=(row.location or "").upper()[:2],
            tier=TIERS.get(row.supplier, Tier.COMMUNITY),
            billing=Billing(quantum_s=1, minimum_s=FIRST_HOUR_S),
            provider=f"{row.supplier} supplier" if row.supplier else "",
            extra={
                "deploy_id": row.deploy_id,
                "location": row.location,
                "interconnect": row.interconnect,
                "nvlink": row.nvlink,
            },
        )

    async def _rows(self) -> list[Row]:
        """The complete listing; its pages begin with 0."""
        found: dict[str, Row] = {}
        for page in range(MAX_LIST_PAGES):
            query = {"page": page, "page_size": LIST_ROWS}
            reply: RowsReply = await self._http.call("GET", f"{WITH_KEY}/deployments", RowsReply, query=query)
            found.update({row.id: row for row in reply.data.deployments})
            if not reply.data.deployments or len(found) >= reply.data.total:
                return list(found.values())
        raise Temporary(NAME, f"GET {WITH_KEY}/deployments: too many pages, so the listing is not whole")

    async def _address(self, path: str) -> tuple[NodeAddress | None, str]:
        reply: WorkersReply = await self._http.call("GET", f"{path}/vms", WorkersReply)
        for worker in reply.data.workers or ():
            if address := address_in(worker.ssh_access):
                return address, ""
            if worker.ssh_access:
                return None, f"io.net tells an SSH address that cannot be read: {worker.ssh_access[:100]!r}"
        return None, "io.net does not tell an SSH address yet"


def fee_in(percent: str) -> Decimal:
    """A setting in percent.

    Raises:
        ConfigError: it is none.
    """
    try:
        fee = Decimal(percent)
    except InvalidOperation:
        fee = Decimal(-1)
    if not fee.is_finite() or not 0 <= fee <= 50:
        raise ConfigError(f"ionet: fee_percent must be a percentage as text, such as '2.25', not {percent!r}")
    return fee


def places(offer: Offer) -> list[Any]:
    return [offer.extra["location"]] if offer.extra.get("location") else []


def spelled(row: Hardware) -> str:
    """A model with its interface, where cards of one name differ by that."""
    name = row.name or ""
    return f"{name} {row.interconnect}" if row.interconnect and BY_INTERFACE.fullmatch(name) else name


def hours_until(later_ms: int, from_ms: int) -> int:
    return -(-(later_ms - from_ms) // MS_PER_HOUR)


def judge(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refusal means, as far as its words tell."""
    if status not in (400, 402, 404, 409, 422):
        return None
    if any(words in content for words in NOT_ENOUGH):
        return InsufficientFunds
    return OfferGone if any(words in content for words in SOLD_OUT) else None


def judge_one(status: int, content: bytes) -> type[GpuMarketError | Absent] | None:
    """Of one deployment: io.net's own 404 has a JSON body."""
    if status != 404:
        return None
    return Absent if b'"detail"' in content else Temporary


def rental_of(row: Row) -> Rental:
    """A deployment as the listing tells it: without its address, and without its price."""
    status = status_of(row.status, row.compute_minutes_remaining)
    return Rental(
        marketplace=NAME,
        rental_id=row.id,
        label=row.name,
        # Only its own page can tell that it can be reached.
        status=RentalStatus.PENDING if status is RentalStatus.RUNNING else status,
        kind=PriceKind.ON_DEMAND,
        detail=f"io.net says {row.status[:50]}",
    )


def _whole(paid: Details, status: RentalStatus, address: NodeAddress | None, detail: str) -> Rental:
    minutes = paid.prepaid_minutes
    known = minutes > 0 and status in (RentalStatus.PENDING, RentalStatus.RUNNING)
    return Rental(
        marketplace=NAME,
        rental_id=paid.id,
        label="",
        status=status,
        price_nusd_hour=price_nusd(NAME, paid.amount_paid * MINUTES / minutes) if known else None,
        kind=PriceKind.ON_DEMAND,
        address=address,
        created_ms=in_ms(paid.created_at),
        billed_from_ms=in_ms(paid.started_at),
        ended_ms=in_ms(paid.finished_at),
        detail=detail or ("" if known else f"io.net says {paid.status[:50]}"),
    )


def gone(rental_id: str) -> Rental:
    """What io.net does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="io.net does not know it"
    )


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a deployment of io.net", most=MAX_ID_CHARACTERS)
