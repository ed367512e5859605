"""What Akash's Console API answers, as far as we read it. `akash_meaning` says what it means."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal

import msgspec

UACT = "uact"
UACT_PER_DOLLAR = 1_000_000
SSH_PORT = 22
# A nominal 80Gi is what everybody sells as an 80 GB card.
MEMORY = re.compile(r"([0-9]{1,4})(?:\.[0-9]+)?\s*(?:Gi|GiB|GB|G)?", re.IGNORECASE)
Number = int | str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Camel(Reply, frozen=True, kw_only=True, rename="camel"):
    """The same, where Akash writes camelCase."""


class Coin(Reply, frozen=True, kw_only=True):
    """An amount with up to 18 decimals; since March 2026 in uact, a millionth of an ACT, which is a dollar."""

    denom: str
    amount: Decimal


# ── what can be had ──────────────────────────────────────────────────────────────────────────────────────────────────


class BestBid(Camel, frozen=True, kw_only=True):
    hourly_price: Decimal | None = None


class BidderAddress(Camel, frozen=True, kw_only=True):
    owner: str = ""


class Bidder(Camel, frozen=True, kw_only=True):
    """The newest or cheapest bid that a provider made for one GPU of a model, with hardly any CPU and memory."""

    provider: BidderAddress = BidderAddress()
    best_bid: BestBid | None = None


class Holder(Camel, frozen=True, kw_only=True):
    owner: str = ""
    allocated: int = 0
    allocatable: int = 0


class Holders(Camel, frozen=True, kw_only=True):
    providers: tuple[Holder, ...] | None = None


class ModelPrice(Camel, frozen=True, kw_only=True):
    min: Decimal | None = None


class GpuModel(Camel, frozen=True, kw_only=True):
    """One model. The parts about single providers come only with `debug=true`."""

    vendor: str = ""
    model: str = ""
    ram: str = ""
    interface: str = ""
    provider_availability: Holders = Holders()
    providers_with_best_bid: tuple[Bidder, ...] | None = None
    price: ModelPrice | None = None


class GpuPrices(Camel, frozen=True, kw_only=True):
    models: tuple[GpuModel, ...]


class Attribute(Reply, frozen=True, kw_only=True):
    key: str = ""
    value: str | None = None


class Provider(Camel, frozen=True, kw_only=True):
    """One provider. Uptimes are parts of 1; their 0 is told as null."""

    owner: str
    name: str | None = None
    organization: str | None = None
    host_uri: str | None = None
    ip_country_code: str | None = None
    location_region: str | None = None
    location_type: str | None = None
    uptime_7d: float | None = msgspec.field(name="uptime7d", default=None)
    is_online: bool = False
    is_audited: bool = False
    network_speed_down: float | None = None
    network_speed_up: float | None = None
    attributes: tuple[Attribute, ...] | None = None

    @property
    def tee(self) -> str:
        """Which kind of confidential computing it says that it has; empty for none."""
        return next((a.value or "" for a in self.attributes or () if a.key == "tee/type"), "")


class Estimate(Reply, frozen=True, kw_only=True):
    """Dollars a month for CPU, memory and disk."""

    akash: Decimal


# ── the auction and the lease ────────────────────────────────────────────────────────────────────────────────────────


class Created(Reply, frozen=True, kw_only=True):
    dseq: Number
    manifest: str = ""


class CreatedReply(Reply, frozen=True, kw_only=True):
    data: Created


class PartyId(Reply, frozen=True, kw_only=True):
    """Of a bid or a lease."""

    dseq: Number
    gseq: int = 1
    oseq: int = 1
    provider: str = ""


class Bid(Reply, frozen=True, kw_only=True):
    """`price` is for one block and the whole group."""

    id: PartyId
    state: str
    price: Coin


class BidRow(Reply, frozen=True, kw_only=True):
    bid: Bid


class Bids(Reply, frozen=True, kw_only=True):
    data: tuple[BidRow, ...]


class ForwardedPort(Camel, frozen=True, kw_only=True):
    port: int
    external_port: int = 0
    host: str | None = None


class ServiceStatus(Reply, frozen=True, kw_only=True):
    available: float | None = None


class LeaseStatus(Reply, frozen=True, kw_only=True):
    """What the provider says now. Any of it may be null."""

    services: dict[str, ServiceStatus | None] | None = None
    forwarded_ports: dict[str, tuple[ForwardedPort, ...] | None] | None = None


class Reclamation(Reply, frozen=True, kw_only=True):
    """The provider wants its machine back (AEP-82). `deadline` is in seconds since 1970."""

    deadline: Number = 0
    reason: str = ""


class LeaseRow(Reply, frozen=True, kw_only=True):
    """Heights are texts; `closed_on` is "0" while it is open. Without `status` the provider could not be asked."""

    id: PartyId
    state: str
    price: Coin
    created_at: Number = 0
    closed_on: Number = 0
    reason: str | None = None
    reclamation: Reclamation | None = None
    status: LeaseStatus | None = None


class DeploymentId(Reply, frozen=True, kw_only=True):
    owner: str
    dseq: Number


class Deployment(Reply, frozen=True, kw_only=True):
    id: DeploymentId
    state: str


class EscrowState(Reply, frozen=True, kw_only=True):
    state: str = ""
    transferred: tuple[Coin, ...] | None = None
    settled_at: Number = 0


class Escrow(Reply, frozen=True, kw_only=True):
    state: EscrowState = EscrowState()


class Holding(Reply, frozen=True, kw_only=True):
    """One deployment of the account, with its leases and its money."""

    deployment: Deployment
    leases: tuple[LeaseRow, ...] | None = None
    escrow_account: Escrow = Escrow()
    name: str | None = None

    @property
    def dseq(self) -> str:
        return str(self.deployment.id.dseq)


class HoldingReply(Reply, frozen=True, kw_only=True):
    data: Holding


class Pagination(Camel, frozen=True, kw_only=True):
    has_more: bool = False


class Holdings(Reply, frozen=True, kw_only=True):
    deployments: tuple[Holding, ...]
    pagination: Pagination = Pagination()


class HoldingsReply(Reply, frozen=True, kw_only=True):
    data: Holdings


class GroupSpec(Reply, frozen=True, kw_only=True):
    name: str = ""


class Group(Reply, frozen=True, kw_only=True):
    group_spec: GroupSpec = GroupSpec()


class OnChain(Reply, frozen=True, kw_only=True):
    """A deployment as the chain has it: with its groups, whose names cannot be changed."""

    deployment: Deployment
    groups: tuple[Group, ...] = ()

    @property
    def name(self) -> str:
        return self.groups[0].group_spec.name if self.groups else ""


class NextPage(Reply, frozen=True, kw_only=True):
    next_key: str | None = None


class ChainPage(Reply, frozen=True, kw_only=True):
    deployments: tuple[OnChain, ...]
    pagination: NextPage = NextPage()


class Settings(Camel, frozen=True, kw_only=True):
    """Without a limit it runs until somebody closes it."""

    runtime_limit_hours: int | None = None


class SettingsReply(Reply, frozen=True, kw_only=True):
    data: Settings


# ── time and money ───────────────────────────────────────────────────────────────────────────────────────────────────


class Block(Reply, frozen=True, kw_only=True):
    height: int
    datetime: datetime


class BalanceSums(Reply, frozen=True, kw_only=True):
    balance: Decimal


class BalanceReply(Reply, frozen=True, kw_only=True):
    data: BalanceSums


# ── numbers in texts ─────────────────────────────────────────────────────────────────────────────────────────────────


def gib(ram: str) -> float:
    """The memory of one GPU; 0 where it is not told."""
    found = MEMORY.fullmatch(ram.strip())
    return float(found[1]) if found else 0.0


def height(told: Number) -> int:
    """A block's number, which is mostly written as text; 0 for none."""
    text = str(told)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
