"""Lium, Bittensor's subnet 51: nodes, or some of their GPUs. What is known and what not: docs/marketplaces/lium.md."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, iso_utc, text_in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Permanent,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.lium_replies import (
    STATUSES,
    DefaultImage,
    Executor,
    JobQuote,
    Location,
    Me,
    Pod,
    Record,
    Rented,
    Specs,
    Template,
    whole,
)
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
from jupyter_gpumarket.money import MS_PER_HOUR

NAME = "lium"
QUOTE_MS = 60_000
# Half of all pods whose image is cached answer after 22 s.
USUAL_BOOT_S = 30.0
MOST_TIMER_HOURS = 720
KIB_PER_GIB = 1024 * 1024
NOT_THERE = frozenset({404})
# A repeated create call whose first one is still at work, or ended nobody knows how.
UNSETTLED = (b"idempotency_in_progress", b"idempotency_outcome_unknown")
NO_MONEY = (b"insufficient_balance", b"Insufficient balance")
LABELS = uuid.UUID("8f9d9a3e-6d0f-4b57-9a51-8f0a6a4f2f10")


class LiumOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.lium]` takes; each has a default, so that an empty table is enough."""

    url: str = "https://lium.io"
    template_id: str = ""
    reliable_only: bool = True
    calls_per_s: float = 0.8
    listing_lag_s: int = 20
    charge_delay_s: int = 600


class LiumMarketplace:
    """One Lium account."""

    def __init__(self, options: LiumOptions, key: Secret, clock: Clock | None = None) -> None:
        if options.calls_per_s <= 0:
            raise ConfigError("lium: calls_per_s must be above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=key,
            key_header="X-API-KEY",
            key_prefix="",
            rate=options.calls_per_s,
            burst=8,
            clock=self._clock,
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(
            own_timer=True,
            idempotency_key=True,
            spot=True,
            charge_delay_s=options.charge_delay_s,
            listing_lag_s=options.listing_lag_s,
        )

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """Each free node, once for each number of its GPUs that can be rented."""
        del query
        return await self._listed(None)

    async def quote(self, offer: Offer) -> Quote:
        """The node is read again, and the rate is asked for at which it would be billed. Nothing is held."""
        node, count = split_id(offer.offer_id)
        fresh = next((row for row in await self._listed(offer.gpu_raw) if row.offer_id == offer.offer_id), None)
        if fresh is None:
            raise OfferGone(f"{NAME}: the node {node} is not free any more")
        query: dict[str, str | int] = {"hours": 1, "volume_gb": "0.0", "backup_gb": "0.0"}
        if count:
            query["gpu_count"] = count
        rate: JobQuote | None = await self._http.call(
            "GET", f"/api/executors/{node}/quote", JobQuote, query=query, absent=NOT_THERE
        )
        if rate is None or (count and whole(rate.gpu_count) != count):
            raise OfferGone(f"{NAME}: the node {node} is not offered with {count} GPUs any more")
        template = await self._template(fresh)
        price = price_nusd(NAME, rate.price_per_hour)
        extra = {**fresh.extra, "template_id": template.id, "encrypted": template.supports_volume_encryption}
        return Quote(
            marketplace=NAME,
            offer=msgspec.structs.replace(fresh, price_nusd_hour=price, extra=extra),
            price_nusd_hour=price,
            expires_ms=fresh.seen_ms + QUOTE_MS,
            kind=fresh.kind,
            quote_id=offer.offer_id,
        )

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """One create call with a key of its own for idempotency, made of the label, and with Lium's own timer set."""
        node, count = split_id(quote.quote_id)
        body: dict[str, Any] = {
            "pod_name": label,
            "template_id": quote.offer.extra["template_id"],
            "dockerfile_content": None,
            "volume_id": None,
            "user_public_key": [ssh_public_key.strip()],
            "initial_port_count": None,
            "enable_volume_encryption": quote.offer.extra["encrypted"],
            "backup_log_id": None,
            "restore_path": None,
            "enable_backups": False,
        }
        if count:
            body["gpu_count"] = count
        if (hours := timer_hours(deadline_ms - self._clock.now_ms())) is not None:
            body["termination_hours"] = hours
        path = f"/api/executors/{node}/rent"
        rented: Rented = await self._http.call(
            "POST",
            path,
            Rented,
            body=body,
            headers={"Idempotency-Key": str(uuid.uuid5(LABELS, label))},
            may_cost=True,
            judge=judge_create,
        )
        pod_id = rented.pod_id or rented.id
        if not pod_id:
            raise OutcomeUnknown(NAME, f"POST {path}: an answer without a pod")
        return Rental(
            marketplace=NAME,
            rental_id=pod_id,
            label=label,
            status=RentalStatus.PENDING,
            kind=quote.kind,
            machine_id=quote.offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        """Names are not unique at Lium, but our labels are; the oldest of several is the one."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        pods: tuple[Pod, ...] = await self._http.call("GET", "/api/pods", tuple[Pod, ...])
        return [rental_of(pod) for pod in pods]

    async def rental(self, rental_id: str) -> Rental:
        pod: Pod | None = await self._http.call("GET", f"/api/pods/{safe(rental_id)}", Pod, absent=NOT_THERE)
        if pod is not None:
            return rental_of(pod)
        # Right after the create call a pod's own page may say 404: only the listing decides.
        found = next((rental for rental in await self.rentals() if rental.rental_id == rental_id), None)
        return gone(rental_id) if found is None else found

    async def release(self, rental_id: str) -> None:
        path = f"/api/pods/{safe(rental_id)}"
        await self._http.call("DELETE", path, None, may_cost=True, urgent=True, absent=NOT_THERE)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Lium removes the pod at that time; the same time told twice is one schedule."""
        path = f"/api/pods/{safe(rental_id)}/schedule-removal"
        await self._http.call("POST", path, None, body={"removal_scheduled_at": iso_utc(deadline_ms)})

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """The ledger's total of one pod, which Lium debits every five minutes."""
        path = f"/api/pods/{safe(rental_id)}/record"
        record: Record | None = await self._http.call("GET", path, Record, absent=NOT_THERE)
        if record is None:
            return []
        now_ms, end_ms = self._clock.now_ms(), text_in_ms(record.removed_at)
        start_ms = text_in_ms(record.created_at) or 0
        return [
            MarketCharge(
                charge_id=rental_id,
                rental_id=rental_id,
                amount_nusd=amount_nusd(NAME, record.total),
                start_ms=start_ms,
                end_ms=now_ms if end_ms is None else end_ms,
                native_amount=str(record.total),
                final=end_ms is not None and now_ms - end_ms >= self._options.charge_delay_s * 1000,
            )
        ]

    async def balance(self) -> Balance | None:
        me: Me = await self._http.call("GET", "/api/users/me", Me)
        if me.balance is None:
            return None
        return Balance(amount_nusd=amount_nusd(NAME, me.balance), native_amount=str(me.balance))

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """A node could end its rental with the account's own key only, which never leaves this machine."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _listed(self, machine_name: str | None) -> list[Offer]:
        query: dict[str, str | int] = {"view": "summary"}
        if self._options.reliable_only:
            query["reliable_only"] = "true"
        if machine_name:
            query["machine_names"] = machine_name
        nodes: tuple[Executor, ...] = await self._http.call("GET", "/api/executors", tuple[Executor, ...], query=query)
        seen_ms = self._clock.now_ms()
        return [
            offer_of(node, count, node.price_per_gpu, seen_ms)
            for node in nodes
            if node.price_per_gpu is not None and not (self._options.reliable_only and node.frequent_rent_failures)
            for count in node.counts()
        ]

    async def _template(self, offer: Offer) -> Template:
        """The one that was set, or what Lium recommends for a node: its pick for GPU and driver, else PyTorch."""
        wanted = self._options.template_id
        images: tuple[DefaultImage, ...] = ()
        if not wanted:
            query = {"gpu_model": offer.gpu_raw, "driver_version": str(offer.extra.get("driver", ""))}
            images = await self._http.call(
                "GET", "/api/executors/default-docker-image", tuple[DefaultImage, ...], query=query
            )
        templates: tuple[Template, ...] = await self._http.call("GET", "/api/templates", tuple[Template, ...])
        same = (each for each in templates if each.id == wanted)
        chosen = next(same, None) if wanted else recommended(images, templates)
        if chosen is None:
            raise Permanent(NAME, f"it lists no template {wanted}".strip() + "; set template_id to one that it lists")
        return chosen


def offer_of(node: Executor, count: int, price_per_gpu: Decimal, seen_ms: int) -> Offer:
    """Some of a node's GPUs (0: the whole of a node without any), with the same share of its memory and processors."""
    specs = node.specs or Specs()
    all_gpus = whole(node.gpu_count) or 0
    share = count / all_gpus if all_gpus else 1.0
    gpus = (specs.gpu.details or ()) if specs.gpu else ()
    ram_kib = (specs.ram.total or 0) - (specs.ram.pod_reserve or 0) if specs.ram else 0
    disk = specs.hard_disk
    disk_kib = (disk.total if disk.free is None else disk.free) or 0 if disk else 0
    place = node.location or Location()
    spot = node.tier == "spot"
    cores = str(specs.cpu.count or "") if specs.cpu else ""
    return Offer(
        marketplace=NAME,
        offer_id=f"{node.id}/{count}",
        machine_id=node.id,
        price_nusd_hour=price_nusd(NAME, price_per_gpu * max(1, count)),
        seen_ms=seen_ms,
        kind=PriceKind.SPOT if spot else PriceKind.ON_DEMAND,
        gpu_raw=(node.machine_name or "") if count else "",
        gpu_count=count,
        vram_gib=round((gpus[0].capacity or 0) / 1024, 3) if count and gpus else 0.0,
        cpu_model=(specs.cpu.model or "") if specs.cpu else "",
        cpu_cores=int(float(cores) * share) if cores.replace(".", "", 1).isdecimal() else 0,
        memory_gib=round(max(0, ram_kib) * share / KIB_PER_GIB, 2),
        disk_gib=round(max(0, disk_kib) * share / KIB_PER_GIB, 2),
        region=place.region_name or place.city or "",
        country=place.country_code or "",
        tier=Tier.COMMUNITY if spot or node.tier is None else Tier.VERIFIED,
        cuda="" if node.max_cuda_version is None else str(node.max_cuda_version),
        down_mbps=node.effective_download_speed_mbps or 0.0,
        up_mbps=node.effective_upload_speed_mbps or 0.0,
        reliability=None if node.reliability_score is None else node.reliability_score / 100,
        billing=Billing(quantum_s=1),
        provider=f"validator {node.validator_hotkey}" if node.validator_hotkey else "",
        boot_s=USUAL_BOOT_S,
        extra={"driver": specs.gpu.driver} if specs.gpu and specs.gpu.driver else {},
    )


def recommended(images: tuple[DefaultImage, ...], templates: tuple[Template, ...]) -> Template | None:
    """The template of the first recommended image that has one, PyTorch before others; else the newest PyTorch."""
    by_image = {(each.docker_image, each.docker_image_tag): each for each in reversed(templates)}
    for image in sorted(images, key=lambda each: "pytorch" not in (each.docker_image or "").lower()):
        if (found := by_image.get((image.docker_image, image.docker_image_tag))) is not None:
            return found
    pytorch = [each for each in templates if "pytorch" in f"{each.category} {each.docker_image}".lower()]
    return max(pytorch, key=version, default=templates[0] if templates else None)


def version(template: Template) -> tuple[int, ...]:
    """The numbers that an image's tag begins with."""
    numbers = []
    for part in (template.docker_image_tag or "").partition("-")[0].split("."):
        if not (part.isascii() and part.isdecimal() and len(part) < 9):
            break
        numbers.append(int(part))
    return tuple(numbers)


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create call means."""
    if any(word in content for word in UNSETTLED):
        return OutcomeUnknown
    if any(word in content for word in NO_MONEY):
        return InsufficientFunds
    # The node is unknown, or taken, or has no ports left, or its price changed.
    return OfferGone if status in (404, 409) else None


def rental_of(pod: Pod) -> Rental:
    """A pod as the contract tells it. It bills from its creation, whether it runs or not."""
    told = (pod.status or "").upper()
    status = STATUSES.get(told, RentalStatus.UNKNOWN)
    address = address_in(pod.ssh_connect_cmd)
    if status is RentalStatus.RUNNING and address is None:
        status = RentalStatus.PENDING
    created_ms = text_in_ms(pod.created_at)
    return Rental(
        marketplace=NAME,
        rental_id=pod.id,
        label=pod.pod_name or "",
        status=status,
        price_nusd_hour=None if pod.price is None else price_nusd(NAME, pod.price),
        machine_id=(pod.executor.id or "") if pod.executor else "",
        address=address if status is RentalStatus.RUNNING else None,
        created_ms=created_ms,
        billed_from_ms=created_ms,
        detail="" if status in (RentalStatus.PENDING, RentalStatus.RUNNING) else f"Lium says {told[:50]}",
    )


def gone(rental_id: str) -> Rental:
    """What Lium does not list (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Lium does not list it"
    )


def timer_hours(left_ms: int) -> int | None:
    """Whole hours for Lium's timer, not before the deadline; None where the deadline is beyond what it takes."""
    hours = max(1, -(-left_ms // MS_PER_HOUR))
    return hours if hours <= MOST_TIMER_HOURS else None


def split_id(offer_id: str) -> tuple[str, int]:
    """An offer's node and number of GPUs."""
    node, _, count = offer_id.rpartition("/")
    if not (node and count.isascii() and count.isdecimal() and len(count) < 4):
        raise OfferGone(f"{NAME}: {offer_id!r} is not an offer of Lium")
    return safe(node), int(count)


def safe(some_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(some_id, "an identifier of Lium")
