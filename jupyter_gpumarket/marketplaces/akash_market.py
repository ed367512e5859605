"""What could be rented on Akash, by its public listings: an offer for each provider, GPU model and number. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

import msgspec

from jupyter_gpumarket.errors import OfferGone
from jupyter_gpumarket.marketplaces.akash_money import BlockTime
from jupyter_gpumarket.marketplaces.akash_replies import UACT, Coin, GpuModel, GpuPrices, Provider, gib
from jupyter_gpumarket.marketplaces.akash_sdl import Machine
from jupyter_gpumarket.marketplaces.dollars import price_nusd
from jupyter_gpumarket.models import Billing, Offer, PriceKind, Record, Tier

NAME = "akash"
HOURS_PER_MONTH = Decimal("730.488")
MOST_MONTH = 10**6
# A container is up 10 to 90 seconds after its lease, and has its image and SSH server then to fetch.
BOOT_S = 90.0
BLOCK_QUANTUM_S = 6
BY_INTERFACE = re.compile(r"[abhv]\d{3}")
TIERS = {"datacenter": Tier.DATACENTER, "colo": Tier.DATACENTER}


class Listing(Record, frozen=True, kw_only=True):
    """How the listings are read. `rest_usd_month` is what CPU, memory and disk of `machine` cost beside the GPUs."""

    machine: Machine
    gpu_counts: tuple[int, ...]
    tee: str
    rest_usd_month: Decimal
    margin_percent: int
    block: BlockTime
    seen_ms: int


def offers_in(prices: GpuPrices, providers: Sequence[Provider], listing: Listing) -> list[Offer]:
    """All that may be rented: machines without a GPU too. Managed wallets get bids of audited providers only."""
    usable = {
        provider.owner: provider
        for provider in providers
        if provider.is_online and provider.is_audited and (not listing.tee or provider.tee)
    }
    found = {offer.offer_id: offer for model in prices.models for offer in _of_model(model, usable, listing)}
    if not listing.tee:
        for provider in usable.values():
            offer = _offer(provider, listing.machine, Decimal(0), listing)
            found.setdefault(offer.offer_id, offer)
    return list(found.values())


def _of_model(model: GpuModel, usable: dict[str, Provider], listing: Listing) -> Iterator[Offer]:
    if model.vendor != "nvidia" or not model.model:
        return
    free = {
        holder.owner: holder.allocatable - holder.allocated for holder in model.provider_availability.providers or ()
    }
    for bidder in model.providers_with_best_bid or ():
        provider = usable.get(bidder.provider.owner)
        price = bidder.best_bid.hourly_price if bidder.best_bid is not None else None
        if provider is None or price is None or not price.is_finite() or not 0 <= price < MOST_MONTH:
            continue
        for count in listing.gpu_counts:
            # How the free ones are spread over a provider's machines is known only after the auction.
            if count <= free.get(provider.owner, 0):
                machine = msgspec.structs.replace(
                    listing.machine, gpu_count=count, model=model.model, ram=model.ram, interface=model.interface
                )
                yield _offer(provider, machine, price * count, listing)


def _offer(provider: Provider, machine: Machine, gpus_usd_hour: Decimal, listing: Listing) -> Offer:
    rest = listing.rest_usd_month / HOURS_PER_MONTH
    told = (gpus_usd_hour + rest) * (100 + listing.margin_percent) / 100
    price = price_nusd(NAME, listing.block.from_console(told))
    return Offer(
        marketplace=NAME,
        offer_id="/".join((provider.owner, *_kind(machine))),
        machine_id=provider.owner,
        price_nusd_hour=price,
        seen_ms=listing.seen_ms,
        kind=PriceKind.ON_DEMAND,
        gpu_raw=spelled(machine.model, machine.interface),
        gpu_count=machine.gpu_count,
        vram_gib=gib(machine.ram) if machine.gpu_count else 0.0,
        cpu_cores=machine.cpu_cores,
        memory_gib=float(machine.memory_gib),
        disk_gib=float(machine.disk_gib),
        region=provider.location_region or "",
        country=(provider.ip_country_code or "").upper()[:2],
        tier=Tier.TEE if listing.tee else TIERS.get((provider.location_type or "").lower(), Tier.VERIFIED),
        down_mbps=provider.network_speed_down or 0.0,
        up_mbps=provider.network_speed_up or 0.0,
        reliability=provider.uptime_7d,
        billing=Billing(quantum_s=BLOCK_QUANTUM_S),
        provider=provider.organization or provider.name or provider.owner,
        native=listing.block.native(Coin(denom=UACT, amount=listing.block.uact(price)), listing.seen_ms),
        boot_s=BOOT_S,
        extra={"machine": msgspec.to_builtins(machine), "tee": provider.tee, "interface": machine.interface},
    )


def spelled(model: str, interface: str) -> str:
    """A model with its interface, where cards of one name differ by that."""
    return f"{model} {interface}" if interface and BY_INTERFACE.fullmatch(model) else model


def _kind(machine: Machine) -> tuple[str, ...]:
    if not machine.gpu_count:
        return ("cpu",)
    return machine.model, machine.ram, machine.interface, str(machine.gpu_count)


def machine_in(offer: Offer) -> Machine:
    """What an offer of ours stands for.

    Raises:
        OfferGone: it is none of ours.
    """
    try:
        return msgspec.convert(offer.extra["machine"], Machine)
    except (KeyError, msgspec.ValidationError):
        raise OfferGone(f"{NAME}: {offer.offer_id!r} does not say what was listed") from None
