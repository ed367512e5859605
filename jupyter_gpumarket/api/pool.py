"""The JSON shapes of the pool registry's HTTP API: users and hosts on one side, the registry on the other.

Shared by the registry, the hosts and the `pool` adapter. Amounts are integer nano-dollars, times milliseconds UTC.
Texts and numbers are bounded here, because they come from other people's machines.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import Record

Text = Annotated[str, Meta(max_length=200)]
LongText = Annotated[str, Meta(max_length=2000)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
Address = Annotated[str, Meta(pattern=r"^[A-Za-z0-9:][A-Za-z0-9._:-]{0,254}$")]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Count = Annotated[int, Meta(ge=0, le=100_000)]
Amount = Annotated[int, Meta(ge=0, le=10**15)]
Size = Annotated[float, Meta(ge=0, le=1e9)]
TimeMs = Annotated[int, Meta(ge=0, le=10**14)]
Port = Annotated[int, Meta(ge=1, le=65535)]
PublicKey = Annotated[str, Meta(max_length=2000, pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?$")]
Wait = Annotated[float, Meta(ge=0, le=60)]


# ── what hosts say ───────────────────────────────────────────────────────────────────────────────────────────────────


class MachineFacts(Record, frozen=True, kw_only=True):
    """What a host found out about the part of its machine that an offer covers."""

    gpu_raw: Text = ""
    gpu_count: Count = 0
    vram_gib: Size = 0.0
    driver: Text = ""
    cuda: Text = ""
    cpu_model: Text = ""
    cpu_cores: Count = 0
    memory_gib: Size = 0.0
    disk_gib: Size = 0.0


class HostOffer(Record, frozen=True, kw_only=True):
    """One set of GPUs (or, without any, the machine's CPUs) that is rented as a whole."""

    offer_id: Name
    price_nusd_hour: Amount
    facts: MachineFacts
    gpus: tuple[Count, ...] = ()


class Joining(Request, frozen=True, kw_only=True):
    """A host's first word, with the join token: who it is, where SSH answers, what it offers."""

    host_id: Name
    name: Text
    host: Address
    port: Port
    ssh_host_key: PublicKey
    offers: Annotated[tuple[HostOffer, ...], Meta(max_length=64)]
    region: Text = ""
    country: Text = ""


class Joined(Record, frozen=True, kw_only=True):
    """The registry's answer: the host's own token, and how often to be heard from."""

    host_token: str
    heartbeat_s: float


class LeaseReport(Record, frozen=True, kw_only=True):
    """One lease as its host sees it: `serving`, `failed` (never served) or `gone` (nothing of it is left)."""

    rental_id: Name
    offer_id: Name
    state: Annotated[str, Meta(pattern="^(starting|serving|ending|failed|gone)$")]
    detail: LongText = ""


class HostReport(Request, frozen=True, kw_only=True):
    """A host's heartbeat. `sequence` counts up within one `boot_id`, so that a late report cannot undo a newer one.

    `leaves_ms`: the host is drained: it takes no new lease, and goes then. `leaving`: it goes now.
    """

    boot_id: Name
    sequence: Annotated[int, Meta(ge=0, le=2**53)]
    leases: Annotated[tuple[LeaseReport, ...], Meta(max_length=1000)] = ()
    seen_version: Annotated[int, Meta(ge=-1, le=2**53)] = -1
    wait_s: Wait = 0.0
    leaving: bool = False
    leaves_ms: TimeMs | None = None


class ServeOrder(Record, frozen=True, kw_only=True):
    """A lease that the host has to serve until `deadline_ms`."""

    rental_id: Name
    offer_id: Name
    ssh_public_key: PublicKey
    deadline_ms: TimeMs | None = None


class Orders(Record, frozen=True, kw_only=True):
    """All that the host has to serve, and what it has to end and confirm; what is in neither is ended too.

    `version` counts up within one life of the registry, which is what `boot_id` names.
    """

    boot_id: Name
    version: int
    serve: tuple[ServeOrder, ...] = ()
    end: tuple[Name, ...] = ()


# ── what users say and see ───────────────────────────────────────────────────────────────────────────────────────────


class PoolOffer(Record, frozen=True, kw_only=True):
    """One rentable offer of a host."""

    offer_id: Name
    machine_id: Name
    price_nusd_hour: Amount
    facts: MachineFacts
    provider: Text = ""
    region: Text = ""
    country: Text = ""


class OfferListing(Record, frozen=True, kw_only=True):
    offers: tuple[PoolOffer, ...]


class QuoteRequest(Request, frozen=True, kw_only=True):
    """Which offer a firm price is wanted for."""

    offer_id: Name


class PoolQuote(Record, frozen=True, kw_only=True):
    """A price that holds until `expires_ms`."""

    quote_id: Name
    offer: PoolOffer
    price_nusd_hour: Amount
    expires_ms: TimeMs


class RentRequest(Request, frozen=True, kw_only=True):
    """What to rent. The same `label` sent again is the same rental. At `deadline_ms` the registry ends it by itself."""

    quote_id: Name
    label: Label
    ssh_public_key: PublicKey
    deadline_ms: TimeMs | None = None


class SshAddress(Record, frozen=True, kw_only=True):
    """Where a rental answers, and with which host key."""

    host: Address
    port: Port
    user: Name
    host_key: PublicKey


class PoolRental(Record, frozen=True, kw_only=True):
    """A rental. It bills from `served_ms` to `ended_ms`; without `served_ms` it has cost nothing.

    `ends_ms`: notice that its machine goes then, for `ends_why`.
    """

    rental_id: Name
    label: Label
    status: Annotated[str, Meta(pattern="^(pending|running|ending|failed|gone)$")]
    offer_id: Name
    machine_id: Name
    price_nusd_hour: Amount
    created_ms: TimeMs
    address: SshAddress | None = None
    served_ms: TimeMs | None = None
    ended_ms: TimeMs | None = None
    deadline_ms: TimeMs | None = None
    detail: LongText = ""
    ends_ms: TimeMs | None = None
    ends_why: LongText = ""


class RentalListing(Record, frozen=True, kw_only=True):
    rentals: tuple[PoolRental, ...]


class DeadlineRequest(Request, frozen=True, kw_only=True):
    """When the registry is to end a rental by itself; None for never."""

    deadline_ms: TimeMs | None


class PoolCharge(Record, frozen=True, kw_only=True):
    """A line of the pool's bill: whole seconds, at the hourly price agreed at rent."""

    charge_id: Name
    rental_id: Name
    amount_nusd: Amount
    start_ms: TimeMs
    end_ms: TimeMs
    seconds: Annotated[int, Meta(ge=0)]
    price_nusd_hour: Amount
    final: bool


class ChargeListing(Record, frozen=True, kw_only=True):
    charges: tuple[PoolCharge, ...]


class Quota(Request, frozen=True, kw_only=True):
    """What a user may have rented at once; None for no limit."""

    max_rentals: Count | None = None
    max_nusd_hour: Amount | None = None


class Account(Record, frozen=True, kw_only=True):
    """A user as the registry knows it: `granted` is the owner's limit, `chosen` the user's own. No prepaid balance."""

    user: Name
    granted: Quota
    chosen: Quota
    rentals: Count
    rate_nusd_hour: Amount


class PoolHealth(Record, frozen=True, kw_only=True):
    ok: bool
    version: str
