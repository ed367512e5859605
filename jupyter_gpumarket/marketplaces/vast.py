"""Vast.ai: machines of many hosts, rented one by one. What is known and what is not: docs/marketplaces/vast.md."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Temporary,
    Unauthorized,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import Absent, MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.vast_replies import (
    Ask,
    Asks,
    ChargePage,
    ChargeRow,
    Created,
    Instance,
    InstancePage,
    InstanceReply,
    Me,
    address_of,
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

NAME = "vast"
PAGE_ROWS = 64
LIST_ROWS = 25
MAX_LIST_PAGES = 200
QUOTE_MS = 60_000
CHARGE_DAYS = 31
DAY_S = 86_400
GIB_PER_GB = Decimal(2**30) / Decimal(10**9)
GONE_WORDS = (b"no_such_instance", b"not_found")
ITEMS = {"gpu": "compute", "disk": "storage", "bwd": "traffic", "bwu": "traffic"}

# Runs on the node. Its container has a key that can end this one instance and nothing else, in the environment of
# process 1 only, because SSH sessions do not get it.
STOP = """
import os, sys, urllib.request
env = dict(os.environ)
try:
    for part in open("/proc/1/environ", "rb").read().split(b"\\0"):
        name, _, value = part.decode("utf-8", "replace").partition("=")
        env.setdefault(name, value)
except OSError:
    pass
call = urllib.request.Request(sys.argv[1], method="DELETE")
call.add_header("Authorization", "Bearer " + env.get("CONTAINER_API_KEY", ""))
print(urllib.request.urlopen(call, timeout=30).status)
"""


class VastOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.vast]` takes; each has a default, so that an empty table is enough."""

    url: str = "https://console.vast.ai"
    image: str = "pytorch/pytorch:2.4.0-cuda12.4-cudnn9-runtime"
    disk_gb: int = 32
    verified_only: bool = True
    pages: int = 4
    calls_per_s: float = 1.0
    listing_lag_s: int = 45
    charge_delay_s: int = 900


class VastMarketplace:
    """One Vast.ai account."""

    def __init__(self, options: VastOptions, key: Secret, clock: Clock | None = None) -> None:
        if not (8 <= options.disk_gb <= 100_000 and 1 <= options.pages <= 50 and options.calls_per_s > 0):
            raise ConfigError("vast: disk_gb must be at least 8, pages 1 to 50 and calls_per_s above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(
            NAME, options.url, key=key, rate=options.calls_per_s, burst=4, read_timeout_s=60.0, clock=self._clock
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(self_stop=True, charge_delay_s=options.charge_delay_s, listing_lag_s=options.listing_lag_s)

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """The cheapest that fit, page by page of price: one reply holds 64 rows at most, and there is no next page."""
        found: dict[int, Ask] = {}
        at_least: Decimal | None = None
        for _ in range(self._options.pages):
            rows = await self._search(self._filters(query), at_least)
            new = [row for row in rows if row.ask not in found]
            found.update({row.ask: row for row in new})
            if len(rows) < PAGE_ROWS or not new:
                break
            at_least = max((row.dph_total for row in rows if row.dph_total is not None), default=None)
        seen_ms = self._clock.now_ms()
        return [self._offer(ask, seen_ms) for ask in found.values() if is_whole(ask)]

    async def quote(self, offer: Offer) -> Quote:
        """Prices are not held: the offer is read again, and the instance's own price is compared after the rent."""
        rows = await self._search({"ask_contract_id": {"eq": number(offer.offer_id)}}, None)
        for ask in rows:
            if str(ask.ask) == offer.offer_id and is_whole(ask) and ask.rentable:
                fresh = self._offer(ask, self._clock.now_ms())
                return Quote(
                    marketplace=NAME,
                    offer=fresh,
                    price_nusd_hour=fresh.price_nusd_hour,
                    expires_ms=fresh.seen_ms + QUOTE_MS,
                    quote_id=offer.offer_id,
                )
        raise OfferGone(f"{NAME}: the offer {offer.offer_id} is not listed any more")

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Take the ask. There is no timer of theirs, so `deadline_ms` is kept by the node's watchdog alone."""
        del deadline_ms
        body = {
            "client_id": "me",
            "image": self._options.image,
            "disk": self._options.disk_gb,
            "label": label,
            "runtype": "ssh_direc ssh_proxy",
            "onstart": onstart(ssh_public_key),
            "cancel_unavail": True,
            "target_state": "running",
        }
        path = f"/api/v0/asks/{number(quote.quote_id)}/"
        created: Created = await self._http.call("PUT", path, Created, body=body, may_cost=True, judge=judge_create)
        if created.new_contract is None:
            raise OutcomeUnknown(NAME, f"PUT {path}: an answer without a contract: {created.msg[:200]}")
        return Rental(
            marketplace=NAME,
            rental_id=str(created.new_contract),
            label=label,
            status=RentalStatus.PENDING,
            machine_id=quote.offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def find(self, label: str) -> Rental | None:
        """Looked for in the complete listing: whether their filter by label lags or rounds is not known."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: int(rental.rental_id), default=None)

    async def rentals(self) -> list[Rental]:
        found: dict[int, Instance] = {}
        token: str | None = None
        for _ in range(MAX_LIST_PAGES):
            query: dict[str, str | int] = {"limit": LIST_ROWS, **({"after_token": token} if token else {})}
            page: InstancePage = await self._http.call(
                "GET", "/api/v1/instances/", InstancePage, query=query, judge=judge_read
            )
            found.update({instance.id: instance for instance in page.instances})
            if not page.next_token or page.next_token == token:
                return [rental_of(instance) for instance in found.values()]
            token = page.next_token
        raise Temporary(NAME, f"GET /api/v1/instances/: more than {MAX_LIST_PAGES} pages, so the listing is not whole")

    async def rental(self, rental_id: str) -> Rental:
        path = f"/api/v0/instances/{safe(rental_id)}/"
        reply: InstanceReply | None = await self._http.call(
            "GET", path, InstanceReply, query={"owner": "me"}, judge=judge_instance
        )
        if reply is None or reply.instances is None:
            return gone(rental_id)
        return rental_of(reply.instances)

    async def release(self, rental_id: str) -> None:
        path = f"/api/v0/instances/{safe(rental_id)}/"
        await self._http.call("DELETE", path, None, body={}, may_cost=True, urgent=True, judge=judge_instance)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Vast has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        now_s = self._clock.now_ms() // 1000
        filters = {"day": {"gte": now_s - CHARGE_DAYS * DAY_S, "lte": now_s + DAY_S}, "type": {"in": ["instance"]}}
        query: dict[str, str | int] = {
            "select_filters": msgspec.json.encode(filters).decode(),
            "latest_first": "true",
            "limit": 100,
            "format": "table",
        }
        lines: list[MarketCharge] = []
        for _ in range(MAX_LIST_PAGES):
            page: ChargePage = await self._http.call(
                "GET", "/api/v0/charges/", ChargePage, query=query, judge=judge_read
            )
            mine = [row for row in page.results if row.source == f"instance-{rental_id}"]
            lines += [line for row in mine for line in self._lines(row, rental_id, now_s)]
            if not page.next_token or page.next_token == query.get("after_token"):
                break
            query["after_token"] = page.next_token
        return lines

    async def balance(self) -> Balance | None:
        me: Me = await self._http.call("GET", "/api/v0/users/current", Me, judge=judge_read)
        return (
            None
            if me.credit is None
            else Balance(amount_nusd=amount_nusd(NAME, me.credit), native_amount=str(me.credit))
        )

    def self_stop(self, rental: Rental) -> SelfStop | None:
        url = f"{self._options.url.rstrip('/')}/api/v0/instances/{safe(rental.rental_id)}/"
        return SelfStop(argv=("python3", "-c", STOP, url))

    async def aclose(self) -> None:
        await self._http.aclose()

    def _filters(self, query: OfferQuery) -> dict[str, Any]:
        filters: dict[str, Any] = {}
        if self._options.verified_only:
            filters["verified"] = {"eq": True}
        if query.vram_gib:
            filters["gpu_ram"] = {"gte": int(query.vram_gib * 1024 * 0.92)}
        if query.gpu_count:
            filters["num_gpus"] = {"eq": query.gpu_count}
        return filters

    async def _search(self, filters: dict[str, Any], at_least: Decimal | None) -> Sequence[Ask]:
        body = {
            "rentable": {"eq": True},
            "external": {"eq": False},
            **filters,
            "type": "ondemand",
            "order": [["dph_total", "asc"]],
            "limit": PAGE_ROWS,
            "allocated_storage": self._options.disk_gb,
        }
        if at_least is not None:
            body["dph_total"] = {"gte": float(at_least)}
        reply: Asks = await self._http.call("POST", "/api/v0/bundles/", Asks, body=body, judge=judge_read)
        return reply.offers

    def _offer(self, ask: Ask, seen_ms: int) -> Offer:
        assert ask.dph_total is not None
        place, _, country = (ask.geolocation or "").rpartition(",")
        return Offer(
            marketplace=NAME,
            offer_id=str(ask.ask),
            machine_id=str(ask.machine_id or ask.ask),
            price_nusd_hour=price_nusd(NAME, ask.dph_total),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=ask.gpu_name or "" if ask.num_gpus else "",
            gpu_count=int(ask.num_gpus or 0),
            vram_gib=round((ask.gpu_ram or 0) / 1024, 3) if ask.num_gpus else 0.0,
            cpu_model=ask.cpu_name or "",
            cpu_cores=int(ask.cpu_cores_effective or 0),
            memory_gib=round(memory_mb(ask) / 1024, 2),
            disk_gib=float(self._options.disk_gb),
            region=place.strip(),
            country=country.strip(),
            tier=tier_of(ask),
            cuda="" if ask.cuda_max_good is None else str(ask.cuda_max_good),
            down_mbps=ask.inet_down or 0.0,
            up_mbps=ask.inet_up or 0.0,
            reliability=ask.reliability2 if ask.reliability is None else ask.reliability,
            billing=Billing(
                quantum_s=1,
                ingress_nusd_gib=price_nusd(NAME, (ask.inet_down_cost or Decimal(0)) * GIB_PER_GB),
                egress_nusd_gib=price_nusd(NAME, (ask.inet_up_cost or Decimal(0)) * GIB_PER_GB),
            ),
            provider=f"host {ask.host_id}" if ask.host_id is not None else "",
            extra={"direct_ports": ask.direct_port_count} if ask.direct_port_count is not None else {},
        )

    def _lines(self, row: ChargeRow, rental_id: str, now_s: int) -> list[MarketCharge]:
        items = row.items or [row]
        return [
            MarketCharge(
                charge_id=f"{rental_id}-{int(item.start)}-{item.type}",
                rental_id=rental_id,
                amount_nusd=amount_nusd(NAME, item.amount),
                start_ms=int(item.start * 1000),
                end_ms=int(item.end * 1000),
                what=ITEMS.get(item.type, item.type or "other"),
                native_amount=str(item.amount),
                final=now_s - item.end >= self._options.charge_delay_s,
            )
            for item in items
        ]


def onstart(ssh_public_key: str) -> str:
    """What the container does first: let our one key in, and leave login shells plain."""
    key = shlex.quote(ssh_public_key.strip())
    return (
        "touch ~/.no_auto_tmux; mkdir -p -m 700 ~/.ssh; "
        f"echo {key} >> ~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys"
    )


def judge_read(status: int, content: bytes) -> type[GpuMarketError] | None:
    """A key that Vast does not know is a 404, told apart by its body alone."""
    return Unauthorized if status == 404 and b"auth_error" in content else None


def judge_instance(status: int, content: bytes) -> type[GpuMarketError | Absent] | None:
    """Of one instance, 404 means that it is gone, if it says so; another 404 proves nothing."""
    if status == 404 and any(word in content for word in GONE_WORDS):
        return Absent
    return judge_read(status, content) or (Temporary if status == 404 else None)


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused create means. An error that names a contract has made one all the same."""
    if b"new_contract" in content:
        return OutcomeUnknown
    if b"insufficient_credit" in content:
        return InsufficientFunds
    if b"no_such_ask" in content or status == 410 or (status == 403 and b"invalid_args" in content):
        return OfferGone
    return judge_read(status, content)


def rental_of(instance: Instance) -> Rental:
    """An instance as the contract tells it."""
    status = status_of(instance)
    return Rental(
        marketplace=NAME,
        rental_id=str(instance.id),
        label=instance.label or "",
        status=status,
        price_nusd_hour=None if instance.dph_total is None else price_nusd(NAME, instance.dph_total),
        kind=PriceKind.SPOT if instance.is_bid else PriceKind.ON_DEMAND,
        machine_id="" if instance.machine_id is None else str(instance.machine_id),
        address=address_of(instance) if status is RentalStatus.RUNNING else None,
        created_ms=None if instance.start_date is None else int(instance.start_date * 1000),
        detail=(instance.status_msg or "").strip()[:500],
        ends_ms=None if instance.end_date is None else int(instance.end_date * 1000),
        ends_why="the host has offered it until then",
    )


def gone(rental_id: str) -> Rental:
    """What Vast does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Vast does not know it"
    )


def is_whole(ask: Ask) -> bool:
    """Whether it has what an offer cannot do without."""
    return ask.dph_total is not None and ask.dph_total.is_finite() and ask.dph_total >= 0


def tier_of(ask: Ask) -> Tier:
    if ask.verification != "verified" and ask.vericode != 1:
        return Tier.COMMUNITY
    return Tier.DATACENTER if ask.hosting_type == 1 else Tier.VERIFIED


def memory_mb(ask: Ask) -> float:
    """The offer's share of the machine's memory, which Vast lists for the machine."""
    share = 1.0
    if ask.cpu_cores and ask.cpu_cores_effective:
        share = min(1.0, ask.cpu_cores_effective / ask.cpu_cores)
    return (ask.cpu_ram or 0) * share


def number(offer_id: str) -> int:
    """An offer's id, which is a number at Vast."""
    if not (offer_id.isascii() and offer_id.isdecimal() and len(offer_id) < 19):
        raise OfferGone(f"{NAME}: {offer_id!r} is not an offer of Vast")
    return int(offer_id)


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a rental of Vast", marks="")
