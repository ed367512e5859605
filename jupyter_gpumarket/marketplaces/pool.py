"""The `pool` marketplace: machines of one's own, listed by a pool registry."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from jupyter_gpumarket.api.pool import (
    ChargeListing,
    DeadlineRequest,
    OfferListing,
    PoolOffer,
    PoolQuote,
    PoolRental,
    QuoteRequest,
    RentalListing,
    RentRequest,
)
from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, OfferGone
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
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
from jupyter_gpumarket.money import format_usd

NAME = "pool"
TAKEN = {404: OfferGone, 409: OfferGone, 410: OfferGone}
NOT_THERE = frozenset({404})
# A lease's own supervisor ends it on SIGTERM; the host then confirms the end. No key and no network are needed.
SELF_STOP = SelfStop(argv=("/bin/sh", "-c", 'kill -TERM "$GPUMARKET_SUPERVISOR"'))


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.pool]` takes: the registry's URL, and the file with its certificate when it speaks TLS."""

    url: str
    ca_file: str = ""


class PoolMarketplace:
    """One registry with one user's token."""

    def __init__(self, options: PoolOptions, key: Secret, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(
            NAME, options.url, key=key, rate=20.0, burst=40, tls=pinned(options), read_timeout_s=15.0, clock=self._clock
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            own_timer=True, idempotency_key=True, self_stop=True, tells_host_key=True, gives_notice=True
        )

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """All that is free; a pool is small, so nothing is narrowed there."""
        del query
        listing = await self._http.call("GET", "/v1/offers", OfferListing)
        return [self._offer(offer) for offer in listing.offers]

    async def quote(self, offer: Offer) -> Quote:
        wish = QuoteRequest(offer_id=offer.offer_id)
        quote: PoolQuote = await self._http.call("POST", "/v1/quotes", PoolQuote, body=wish, refusals=TAKEN)
        return Quote(
            marketplace=NAME,
            offer=self._offer(quote.offer),
            price_nusd_hour=quote.price_nusd_hour,
            expires_ms=quote.expires_ms,
            quote_id=quote.quote_id,
        )

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        wish = RentRequest(
            quote_id=quote.quote_id, label=label, ssh_public_key=ssh_public_key.strip(), deadline_ms=deadline_ms
        )
        rented = await self._http.call("POST", "/v1/rentals", PoolRental, body=wish, may_cost=True, refusals=TAKEN)
        return rental_of(rented)

    async def find(self, label: str) -> Rental | None:
        listing = await self._http.call("GET", "/v1/rentals", RentalListing, query={"label": label})
        return next((rental_of(rental) for rental in listing.rentals if rental.label == label), None)

    async def rentals(self) -> list[Rental]:
        listing = await self._http.call("GET", "/v1/rentals", RentalListing)
        return [rental_of(rental) for rental in listing.rentals]

    async def rental(self, rental_id: str) -> Rental:
        path = f"/v1/rentals/{safe(rental_id)}"
        found = await self._http.call("GET", path, PoolRental, absent=NOT_THERE)
        return gone(rental_id) if found is None else rental_of(found)

    async def release(self, rental_id: str) -> None:
        path = f"/v1/rentals/{safe(rental_id)}"
        await self._http.call("DELETE", path, PoolRental, may_cost=True, urgent=True, absent=NOT_THERE)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Move the registry's own timer, when a lease is extended or cut short."""
        path = f"/v1/rentals/{safe(rental_id)}/deadline"
        await self._http.call("PUT", path, PoolRental, body=DeadlineRequest(deadline_ms=deadline_ms))

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        path = f"/v1/rentals/{safe(rental_id)}/charges"
        listing = await self._http.call("GET", path, ChargeListing, absent=NOT_THERE)
        return [
            MarketCharge(
                charge_id=charge.charge_id,
                rental_id=charge.rental_id,
                amount_nusd=charge.amount_nusd,
                start_ms=charge.start_ms,
                end_ms=charge.end_ms,
                native_amount=format_usd(charge.amount_nusd).removeprefix("$"),
                final=charge.final,
            )
            for charge in ([] if listing is None else listing.charges)
        ]

    async def balance(self) -> Balance | None:
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        del rental
        return SELF_STOP

    async def aclose(self) -> None:
        await self._http.aclose()

    def _offer(self, offer: PoolOffer) -> Offer:
        facts = offer.facts
        return Offer(
            marketplace=NAME,
            offer_id=offer.offer_id,
            machine_id=offer.machine_id,
            price_nusd_hour=offer.price_nusd_hour,
            seen_ms=self._clock.now_ms(),
            kind=PriceKind.ON_DEMAND,
            gpu_raw=facts.gpu_raw,
            gpu_count=facts.gpu_count,
            vram_gib=facts.vram_gib,
            cpu_model=facts.cpu_model,
            cpu_cores=facts.cpu_cores,
            memory_gib=facts.memory_gib,
            disk_gib=facts.disk_gib,
            region=offer.region,
            country=offer.country,
            tier=Tier.OWN,
            cuda=facts.cuda,
            billing=Billing(quantum_s=1),
            provider=offer.provider,
            extra={"driver": facts.driver} if facts.driver else {},
        )


def rental_of(rental: PoolRental) -> Rental:
    """A registry's rental as the contract tells it."""
    address = rental.address
    # What ended without having been served has a bill of no length.
    unserved = rental.status == "gone" and rental.served_ms is None
    return Rental(
        marketplace=NAME,
        rental_id=rental.rental_id,
        label=rental.label,
        status=RentalStatus(rental.status),
        price_nusd_hour=rental.price_nusd_hour,
        kind=PriceKind.ON_DEMAND,
        machine_id=rental.machine_id,
        address=None
        if address is None
        else NodeAddress(host=address.host, port=address.port, user=address.user, host_key=address.host_key),
        created_ms=rental.created_ms,
        billed_from_ms=rental.created_ms if unserved else rental.served_ms,
        ended_ms=rental.created_ms if unserved else rental.ended_ms,
        detail=rental.detail,
        ends_ms=rental.ends_ms,
        ends_why=rental.ends_why,
    )


def gone(rental_id: str) -> Rental:
    """What the registry does not know (any more)."""
    return Rental(
        marketplace=NAME,
        rental_id=rental_id,
        label="",
        status=RentalStatus.GONE,
        detail="the registry does not know it",
    )


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a rental of the pool")


def pinned(options: PoolOptions) -> ssl.SSLContext | None:
    """Trust exactly the registry's own certificate, by whatever name it is reached.

    Raises:
        ConfigError: the file cannot be read, or there is none for an https registry.
    """
    if not options.url.startswith("https:"):
        return None
    if not options.ca_file:
        raise ConfigError("pool: an https registry needs ca_file in [marketplaces.pool] (its registry.crt)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    try:
        context.load_verify_locations(cadata=Path(options.ca_file).expanduser().read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"pool: ca_file {options.ca_file}: {error}") from None
    return context
