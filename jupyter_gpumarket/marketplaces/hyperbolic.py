"""Hyperbolic: nodes of suppliers (v1) and virtual machines (v2) of one account. See docs/marketplaces/hyperbolic.md."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import ConfigError, OutcomeUnknown, Temporary
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.marketplaces.hyperbolic_replies import (
    Amount,
    Created,
    Credit,
    History,
    Instance,
    Instances,
    Node,
    Nodes,
    Vm,
    VmOption,
    judge_create,
    label_in,
    status_of,
    total,
)
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
    Record,
    Rental,
    RentalStatus,
    SelfStop,
    Tier,
)
from jupyter_gpumarket.money import MS_PER_HOUR

NAME = "hyperbolic"
QUOTE_MS = 60_000
CENTS = 100
MOST_CENTS = 10**7
MOST_ASKED = 256
READY = "node_ready"
MAX_ID_CHARACTERS = 100
VM_ID = re.compile(r"vm-([0-9]{1,18})")
NODES = "/v1/marketplace"
VMS = "/v2/marketplace/virtual-machine-rentals"
NOT_THERE = frozenset({404})


class HyperbolicOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.hyperbolic]` takes; each has a default."""

    url: str = "https://api.hyperbolic.xyz"
    apis: tuple[str, ...] = ("v1", "v2")
    gpu_counts: tuple[int, ...] = (1, 2, 4, 8)
    least_cents: int = 5
    cpu_nodes: bool = False
    vm_config_id: str = "c6fd6253-cbb6-4ea8-a20c-47644b431f1c"
    vm_gpu: str = "H100"
    vm_vram_gib: float = 80.0
    send_key_and_label: bool = True
    calls_per_s: float = 1.0
    listing_lag_s: int = 45


class Asked(Record, frozen=True, kw_only=True):
    """A create call of ours: for which node, and what was rented before it."""

    node: str
    before: frozenset[str]


class HyperbolicMarketplace:
    """One Hyperbolic account. With an empty key it lists the nodes, and nothing else."""

    def __init__(self, options: HyperbolicOptions, key: Secret, clock: Clock | None = None) -> None:
        unknown = [api for api in options.apis if api not in ("v1", "v2")]
        if unknown or not options.apis or min(options.gpu_counts, default=0) < 1 or options.calls_per_s <= 0:
            raise ConfigError("hyperbolic: apis are v1 and v2; gpu_counts and calls_per_s are above 0")
        self._options = options
        self._clock = clock or SystemClock()
        self._asked: dict[str, Asked] = {}
        self._has_key = bool(key.reveal())
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=key if self._has_key else None,
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
        return Capabilities(spot="v1" in self._options.apis, listing_lag_s=self._options.listing_lag_s)

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """Free GPUs of each node, and virtual machines by their number of GPUs. Nodes are listed without a key."""
        del query
        found = []
        if "v1" in self._options.apis:
            nodes: Nodes = await self._http.call("POST", NODES, Nodes, body={"filters": {}})
            seen_ms = self._clock.now_ms()
            found += [offer for node in nodes.instances for offer in self._of_node(node, seen_ms)]
        if "v2" in self._options.apis and self._has_key:
            path = "/v2/marketplace/virtual-machine-options"
            options: tuple[VmOption, ...] = await self._http.call("GET", path, tuple[VmOption, ...])
            seen_ms = self._clock.now_ms()
            found += [self._of_vm(option, seen_ms) for option in options if self._is_plausible(option.cost_per_hour)]
        return list({offer.offer_id: offer for offer in found}.values())

    async def quote(self, offer: Offer) -> Quote:
        """Prices are not held: the offer is read again, and what was agreed is read back after the rent."""
        listed = await self.offers(OfferQuery())
        return relisted(offer, listed, hold_ms=QUOTE_MS, gone=f"{offer.offer_id} is not listed any more")

    def _of_node(self, node: Node, seen_ms: int) -> list[Offer]:
        price = node.pricing.price if node.pricing is not None else None
        gpus = node.hardware.gpus if node.hardware is not None else None
        free = node.gpus_total - node.gpus_reserved
        if node.status != READY or node.reserved or price is None or price.period != "hourly":
            return []
        if not gpus or node.gpus_total <= 0:
            # One machine without GPUs, told with a price for the whole.
            return [self._node_offer(node, price, 0, seen_ms)] if self._options.cpu_nodes and not gpus else []
        if not self._is_plausible(price.amount):
            return []
        return [self._node_offer(node, price, count, seen_ms) for count in self._options.gpu_counts if count <= free]

    def _is_plausible(self, cents: Decimal) -> bool:
        """A price of less is more likely dollars, or a mistake, than a GPU for a cent: it is refused, not guessed."""
        return cents.is_finite() and self._options.least_cents <= cents < MOST_CENTS

    def _node_offer(self, node: Node, price: Amount, count: int, seen_ms: int) -> Offer:
        hardware = node.hardware
        share = count / node.gpus_total if count else 1.0
        cpu = hardware.cpus[0] if hardware is not None and hardware.cpus else None
        gpu = hardware.gpus[0] if hardware is not None and hardware.gpus and count else None
        machine = f"{node.cluster_name}/{node.id}"
        cores = (cpu.virtual_cores or cpu.cores or 0) if cpu is not None else 0
        return Offer(
            marketplace=NAME,
            offer_id=f"{machine}/{count}",
            machine_id=machine,
            price_nusd_hour=price_nusd(NAME, price.amount * max(1, count) / CENTS),
            seen_ms=seen_ms,
            kind=PriceKind.SPOT,
            gpu_raw=gpu.model if gpu is not None else "",
            gpu_count=count,
            vram_gib=round((gpu.ram or 0) / 1024, 3) if gpu is not None else 0.0,
            cpu_model=(cpu.model or "") if cpu is not None else "",
            cpu_cores=int(cores * share),
            memory_gib=round(total(hardware.ram if hardware is not None else None) * share, 2),
            disk_gib=round(total(hardware.storage if hardware is not None else None) * share, 2),
            region=(node.location.region or "") if node.location is not None else "",
            tier=Tier.COMMUNITY,
            billing=Billing(quantum_s=1),
            provider=f"supplier {node.supplier_id}" if node.supplier_id else "",
            extra={"cluster": node.cluster_name, "node": node.id},
        )

    def _of_vm(self, option: VmOption, seen_ms: int) -> Offer:
        return Offer(
            marketplace=NAME,
            offer_id=f"vm/{option.gpu_count}",
            machine_id=f"vm/{option.gpu_count}",
            price_nusd_hour=price_nusd(NAME, option.cost_per_hour / CENTS),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=self._options.vm_gpu,
            gpu_count=option.gpu_count,
            vram_gib=self._options.vm_vram_gib,
            tier=Tier.DATACENTER,
            billing=Billing(quantum_s=1),
            provider="on-demand",
            extra={"vm": True},
        )

    # ── renting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Hyperbolic has no timer, so `deadline_ms` is kept by the node's watchdog alone.

        What is rented already is noted first: whether the label comes back in listings is not certain.
        """
        del deadline_ms
        offer = quote.offer
        more: dict[str, Any] = {}
        if self._options.send_key_and_label:
            more = {"publicKey": ssh_public_key.strip(), "userMetadata": {"gpumarket": {"label": label}}}
        before = frozenset(rental.rental_id for rental in await self.rentals())
        while len(self._asked) >= MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[label] = Asked(node=str(offer.extra.get("node", "")), before=before)
        rental_id = await (self._rent_vm if offer.extra.get("vm") else self._rent_node)(offer, more)
        return Rental(
            marketplace=NAME,
            rental_id=rental_id,
            label=label,
            status=RentalStatus.PENDING,
            kind=offer.kind,
            machine_id=offer.machine_id,
            created_ms=self._clock.now_ms(),
        )

    async def _rent_node(self, offer: Offer, more: dict[str, Any]) -> str:
        path = f"{NODES}/instances/create"
        wish = {"cluster_name": offer.extra["cluster"], "node_name": offer.extra["node"], "gpu_count": offer.gpu_count}
        made: Created = await self._http.call(
            "POST", path, Created, body=wish | more, may_cost=True, judge=judge_create
        )
        rental_id = made.instance_id or made.instance_name or ""
        if not is_part(rental_id, most=MAX_ID_CHARACTERS):
            raise OutcomeUnknown(NAME, f"POST {path}: an answer without an instance's name")
        return rental_id

    async def _rent_vm(self, offer: Offer, more: dict[str, Any]) -> str:
        wish = {"configId": self._options.vm_config_id, "gpuCount": str(offer.gpu_count)}
        made: Vm = await self._http.call("POST", VMS, Vm, body=wish | more, may_cost=True, judge=judge_create)
        return f"vm-{made.id}"

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, label: str) -> Rental | None:
        """By the metadata of the create call; where none came back, by what is new on the node that was asked for.

        Raises:
            Temporary: also when something rented has no label at all, and nobody can say whose it is.
        """
        asked = self._asked.get(label)
        nameless = []
        for rental in await self.rentals():
            if rental.label == label:
                return rental
            if not rental.label and (asked is None or rental.rental_id not in asked.before):
                nameless.append(rental)
        known = [rental for rental in nameless if asked is not None and rental.machine_id == asked.node]
        if len(known) == 1:
            return msgspec.structs.replace(known[0], label=label)
        if known or (nameless and asked is None and is_ours(label)):
            raise Temporary(
                NAME, f"{nameless[0].rental_id} tells no label, so that nobody can say whether it is the one"
            )
        return None

    async def rentals(self) -> list[Rental]:
        found = [self._of_instance(row) for row in await self._instances()] if "v1" in self._options.apis else []
        found += [self._of_rented_vm(row) for row in await self._vms()] if "v2" in self._options.apis else []
        return [rental for rental in found if rental.status is not RentalStatus.GONE]

    async def rental(self, rental_id: str) -> Rental:
        """There is no page of one rental: what the complete listing does not have is gone."""
        if VM_ID.fullmatch(rental_id):
            found = [self._of_rented_vm(row) for row in await self._vms()]
        else:
            found = [self._of_instance(row) for row in await self._instances()]
        return next((rental for rental in found if rental.rental_id == rental_id), gone(rental_id))

    async def release(self, rental_id: str) -> None:
        vm = VM_ID.fullmatch(safe(rental_id))
        path, body = (
            (f"{VMS}/terminate", {"rentalId": int(vm[1])})
            if vm is not None
            else (f"{NODES}/instances/terminate", {"id": rental_id})
        )
        await self._http.call("POST", path, None, body=body, may_cost=True, urgent=True, absent=NOT_THERE)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Hyperbolic has no timer of its own; the node's watchdog has."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """There is no bill by rental: what its own times and prices come to."""
        if VM_ID.fullmatch(rental_id):
            spans = [
                (row.started_at or row.created_at, row.terminated_at, row.cost_per_hour, 1)
                for row in await self._vms()
                if f"vm-{row.id}" == rental_id
            ]
        else:
            spans = [
                (row.start or row.created, row.end, price_of(row), gpus_of(row))
                for row in await self._instances()
                if row.id == rental_id
            ]
            past: History = await self._http.call("GET", f"{NODES}/instances/history", History)
            spans += [
                (row.started_at, row.terminated_at, row.price.amount if row.price else None, row.gpu_count or 1)
                for row in past.instance_history
                if row.instance_name == rental_id and not spans
            ]
        lines = []
        for begun, ended, cents, count in spans:
            start_ms = in_ms(begun)
            if start_ms is not None and cents is not None:
                end_ms = max(start_ms, in_ms(ended) or self._clock.now_ms())
                dollars = cents * count * (end_ms - start_ms) / MS_PER_HOUR / CENTS
                lines.append(
                    MarketCharge(
                        charge_id=f"{rental_id}-{start_ms}",
                        rental_id=rental_id,
                        amount_nusd=amount_nusd(NAME, dollars),
                        start_ms=start_ms,
                        end_ms=end_ms,
                        native_amount=str(dollars),
                        final=ended is not None,
                    )
                )
        return lines

    async def balance(self) -> Balance | None:
        told: Credit = await self._http.call("GET", "/billing/get_current_balance", Credit)
        dollars = told.credits / CENTS
        return Balance(amount_nusd=amount_nusd(NAME, dollars), native_amount=str(dollars))

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """None: a machine has no key of its account."""
        del rental
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _instances(self) -> tuple[Instance, ...]:
        reply: Instances = await self._http.call("GET", f"{NODES}/instances", Instances)
        return reply.instances

    async def _vms(self) -> tuple[Vm, ...]:
        rows: tuple[Vm, ...] = await self._http.call("GET", VMS, tuple[Vm, ...])
        return rows

    def _of_instance(self, row: Instance) -> Rental:
        told = row.instance.status if row.instance is not None else None
        ended = row.end is not None and (in_ms(row.end) or 0) <= self._clock.now_ms()
        cents = price_of(row)
        address = address_in(row.ssh_command)
        status = status_of(told, ended=ended, reachable=address is not None)
        return Rental(
            marketplace=NAME,
            rental_id=row.id,
            label=label_in(row.user_metadata),
            status=status,
            price_nusd_hour=None if cents is None else price_nusd(NAME, cents * gpus_of(row) / CENTS),
            kind=PriceKind.SPOT,
            machine_id=row.instance.id if row.instance is not None else "",
            address=address if status is RentalStatus.RUNNING else None,
            created_ms=in_ms(row.created),
            billed_from_ms=in_ms(row.start),
            ended_ms=in_ms(row.end),
            detail=f"Hyperbolic says {str(told)[:50]}",
        )

    def _of_rented_vm(self, row: Vm) -> Rental:
        meta, ended = row.meta, row.terminated_at is not None
        address = address_in(meta.ssh_command if meta is not None else None)
        status = status_of(row.status or "running", ended=ended, reachable=address is not None)
        cents = row.cost_per_hour
        return Rental(
            marketplace=NAME,
            rental_id=f"vm-{row.id}",
            label=label_in(row.user_metadata) or label_in(meta.user_metadata if meta is not None else None),
            status=status,
            price_nusd_hour=None if cents is None else price_nusd(NAME, cents / CENTS),
            kind=PriceKind.ON_DEMAND,
            address=address if status is RentalStatus.RUNNING else None,
            created_ms=in_ms(row.created_at),
            billed_from_ms=in_ms(row.started_at),
            ended_ms=in_ms(row.terminated_at),
            detail=f"Hyperbolic says {str(row.status)[:50]}",
        )


def price_of(row: Instance) -> Decimal | None:
    """Cents for one GPU and hour."""
    pricing = row.instance.pricing if row.instance is not None else None
    return pricing.price.amount if pricing is not None and pricing.price is not None else None


def gpus_of(row: Instance) -> int:
    return max(1, (row.instance.gpu_count if row.instance is not None else None) or 1)


def is_ours(label: str) -> bool:
    return label.startswith("gpum-")


def gone(rental_id: str) -> Rental:
    """What Hyperbolic does not list (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Hyperbolic does not list it"
    )


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a rental of Hyperbolic", most=MAX_ID_CHARACTERS)
