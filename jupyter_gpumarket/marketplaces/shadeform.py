"""Shadeform: one account for the machines of many clouds. What is known and what is not:
docs/marketplaces/shadeform.md."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    MarketplaceError,
    OfferGone,
    OutcomeUnknown,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.relisted import relisted
from jupyter_gpumarket.marketplaces.shadeform_replies import (
    Created,
    Instance,
    Instances,
    MachineType,
    MachineTypes,
    Place,
    SshKey,
    SshKeys,
    address_of,
    came_ms,
    status_of,
)
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

NAME = "shadeform"
PREFIX = "/v1"
CENT = Decimal("0.01")
QUOTE_MS = 60_000
NOT_THERE = frozenset({404})
# Only the words of a refusal tell that a machine is gone from a request that is wrong.
NO_CAPACITY = (b"not available", b"no longer available", b"unavailable", b"out of stock", b"capacity")
NO_MONEY = (b"insufficient", b"balance")


class ShadeformOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.shadeform]` takes; each has a default."""

    url: str = "https://api.shadeform.ai"
    clouds: tuple[str, ...] = ()
    os: str = ""
    calls_per_s: float = 2.0
    listing_lag_s: int = 45
    charge_delay_s: int = 300


class ShadeformMarketplace:
    """One Shadeform account."""

    def __init__(self, options: ShadeformOptions, key: Secret, clock: Clock | None = None) -> None:
        if options.calls_per_s <= 0:
            raise ConfigError(f"{NAME}: calls_per_s is above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=key,
            key_header="X-API-KEY",
            key_prefix="",
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
        return Capabilities(own_timer=True, charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """One for each kind of machine and region that has it now."""
        return await self._listed({"num_gpus": query.gpu_count} if query.gpu_count else {})

    async def quote(self, offer: Offer) -> Quote:
        """The kind is read again; what was really agreed is the machine's own price."""
        narrowed: dict[str, str | int] = {
            name: str(offer.extra.get(name, "")) for name in ("cloud", "shade_instance_type")
        }
        listed = await self._listed(narrowed)
        why = f"{offer.provider} has no {offer.gpu_raw or 'machine'} in {offer.region} now"
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=why)

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Record the lease's key, then create the machine, with their own timer set to the deadline."""
        wish = {"name": label, "public_key": ssh_public_key.strip()}
        key: SshKey = await self._http.call("POST", f"{PREFIX}/sshkeys/add", SshKey, body=wish)
        body = self._create_body(quote, label, key.id, deadline_ms)
        try:
            created: Created = await self._http.call(
                "POST", f"{PREFIX}/instances/create", Created, body=body, may_cost=True, judge=judge_create
            )
        except OutcomeUnknown:
            # The machine may be there, and then it needs its key until it is released.
            raise
        except GpuMarketError:
            await self._forget_key(label)
            raise
        return Rental(
            marketplace=NAME,
            rental_id=created.id,
            label=label,
            status=RentalStatus.PENDING,
            machine_id=quote.offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        """Names are not unique at Shadeform, but our labels are; the oldest of several is the one."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        listing: Instances = await self._http.call("GET", f"{PREFIX}/instances", Instances)
        rentals = [rental_of(instance) for instance in listing.instances]
        return [rental for rental in rentals if rental.status is not RentalStatus.GONE]

    async def rental(self, rental_id: str) -> Rental:
        instance = await self._instance(rental_id)
        if instance is not None:
            return rental_of(instance)
        # A machine's own page may lag behind the create call: only the listing decides.
        listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
        return listed[0] if listed else gone(rental_id)

    async def release(self, rental_id: str) -> None:
        path = f"{PREFIX}/instances/{safe(rental_id)}/delete"
        label = ""
        with contextlib.suppress(MarketplaceError):
            instance = await self._instance(rental_id, urgent=True)
            label = "" if instance is None else instance.name
        await self._http.call("POST", path, None, may_cost=True, urgent=True, absent=NOT_THERE)
        if label:
            await self._forget_key(label)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        path = f"{PREFIX}/instances/{safe(rental_id)}/update"
        await self._http.call("POST", path, None, body={"auto_delete": until(deadline_ms)})

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """One line: what the machine has cost so far, by its own page."""
        instance = await self._instance(rental_id)
        if instance is None or instance.cost_estimate is None:
            return []
        now_ms = self._clock.now_ms()
        start_ms = came_ms(instance.active_at) or came_ms(instance.created_at) or now_ms
        ended_ms = came_ms(instance.deleted_at)
        end_ms = max(start_ms, ended_ms or now_ms)
        ended = instance.status == "deleted" and now_ms - end_ms >= self._options.charge_delay_s * 1000
        return [
            MarketCharge(
                charge_id=f"{rental_id}-compute",
                rental_id=rental_id,
                amount_nusd=amount_nusd(NAME, instance.cost_estimate),
                start_ms=start_ms,
                end_ms=end_ms,
                native_amount=str(instance.cost_estimate),
                final=ended,
            )
        ]

    async def balance(self) -> Balance | None:
        """Not told by the API."""
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """None: a machine gets no key of its own. Their own timer ends it."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _listed(self, narrowed: dict[str, str | int]) -> list[Offer]:
        query = {**narrowed, "available": "true", "sort": "price"}
        listing: MachineTypes = await self._http.call("GET", f"{PREFIX}/instances/types", MachineTypes, query=query)
        seen_ms = self._clock.now_ms()
        clouds = self._options.clouds
        found: dict[str, Offer] = {}
        for kind in listing.instance_types:
            if (clouds and kind.cloud not in clouds) or not kind.hourly_price.is_finite() or kind.hourly_price < 0:
                continue
            for place in kind.availability:
                if place.available:
                    offer = offer_of(kind, place, seen_ms)
                    found.setdefault(offer.offer_id, offer)
        return list(found.values())

    def _create_body(self, quote: Quote, label: str, key_id: str, deadline_ms: int) -> dict[str, Any]:
        extra = quote.offer.extra
        body: dict[str, Any] = {
            "cloud": extra["cloud"],
            "region": quote.offer.region,
            "shade_instance_type": extra["shade_instance_type"],
            "shade_cloud": True,
            "name": label,
            "ssh_key_id": key_id,
            "auto_delete": until(deadline_ms),
        }
        wanted = self._options.os
        return body | ({"os": wanted} if wanted and wanted in extra["os_options"] else {})

    async def _instance(self, rental_id: str, *, urgent: bool = False) -> Instance | None:
        path = f"{PREFIX}/instances/{safe(rental_id)}/info"
        found: Instance | None = await self._http.call("GET", path, Instance, absent=NOT_THERE, urgent=urgent)
        return found

    async def _forget_key(self, label: str) -> None:
        """Take the lease's key from the account again; one that stays opens nothing and costs nothing."""
        with contextlib.suppress(MarketplaceError):
            keys: SshKeys = await self._http.call("GET", f"{PREFIX}/sshkeys", SshKeys, urgent=True)
            for key in keys.ssh_keys:
                if key.name == label:
                    await self._http.call("POST", f"{PREFIX}/sshkeys/{safe(key.id)}/delete", None, urgent=True)


def offer_of(kind: MachineType, place: Place, seen_ms: int) -> Offer:
    """A kind of machine in one of its regions."""
    has = kind.configuration
    offer_id = "/".join((kind.cloud, kind.shade_instance_type, kind.cloud_instance_type or "", place.region))
    return Offer(
        marketplace=NAME,
        offer_id=offer_id,
        machine_id=offer_id,
        price_nusd_hour=price_nusd(NAME, kind.hourly_price * CENT),
        seen_ms=seen_ms,
        kind=PriceKind.ON_DEMAND,
        gpu_raw=has.gpu_type or "" if has.num_gpus else "",
        gpu_count=has.num_gpus,
        vram_gib=has.vram_per_gpu_in_gb or 0.0 if has.num_gpus else 0.0,
        cpu_cores=has.vcpus or 0,
        memory_gib=has.memory_in_gb or 0.0,
        disk_gib=has.storage_in_gb or 0.0,
        region=place.region,
        country=country_of(place),
        tier=Tier.VERIFIED,
        billing=Billing(quantum_s=1),
        provider=kind.cloud,
        boot_s=None if kind.boot_time is None else kind.boot_time.max_boot_in_sec,
        extra={
            "cloud": kind.cloud,
            "shade_instance_type": kind.shade_instance_type,
            "os_options": list(has.os_options or ()),
            "deployment": kind.deployment_type,
            "place": place.display_name,
        },
    )


COUNTRIES = {
    "usa": "US",
    "canada": "CA",
    "france": "FR",
    "germany": "DE",
    "finland": "FI",
    "norway": "NO",
    "sweden": "SE",
    "iceland": "IS",
    "poland": "PL",
    "netherlands": "NL",
    "uk": "GB",
    "japan": "JP",
    "india": "IN",
    "israel": "IL",
    "australia": "AU",
    "singapore": "SG",
    "korea": "KR",
}


def country_of(place: Place) -> str:
    """Region names hold the country's: `paris-france-1`."""
    return next((COUNTRIES[word] for word in place.region.lower().split("-") if word in COUNTRIES), "")


def until(deadline_ms: int) -> dict[str, str]:
    """Their own timer, as the vendor's documents name it."""
    return {"date_threshold": iso_utc(deadline_ms)}


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create means."""
    if not 400 <= status < 500 or status in (401, 403, 429):
        return None
    said = content.lower().replace(b"_", b" ")
    if any(words in said for words in NO_CAPACITY):
        return OfferGone
    return InsufficientFunds if any(words in said for words in NO_MONEY) else None


def rental_of(instance: Instance) -> Rental:
    """A machine as the contract tells it. It bills from when it is active to when it begins to be deleted."""
    status = status_of(instance)
    price = instance.hourly_price
    well = status in (RentalStatus.PENDING, RentalStatus.RUNNING)
    return Rental(
        marketplace=NAME,
        rental_id=instance.id,
        label=instance.name,
        status=status,
        price_nusd_hour=None if price is None else price_nusd(NAME, price * CENT),
        kind=PriceKind.ON_DEMAND,
        address=address_of(instance) if status is RentalStatus.RUNNING else None,
        created_ms=came_ms(instance.created_at),
        billed_from_ms=came_ms(instance.active_at),
        ended_ms=came_ms(instance.deleted_at),
        detail="" if well else (instance.status_details or f"Shadeform says {instance.status[:50]}").strip()[:500],
    )


def gone(rental_id: str) -> Rental:
    """What Shadeform does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Shadeform does not know it"
    )


def safe(identifier: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(identifier, "an instance of Shadeform")
