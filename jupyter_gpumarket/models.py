"""The nouns of the project, as plain immutable records. No I/O, no clock.

The same field names stand in Python, JSON, TypeScript and the docs. Units come last in a name: `_nusd` nano-dollars,
`_nusd_hour` nano-dollars an hour, `_ms` milliseconds since 1970 UTC (or a duration where the name says so), `_s`
seconds, `_gib` GiB, `_mbps` megabits a second.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable, keyword-only; unknown fields from a newer version are ignored on reading."""


# ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class PriceKind(StrEnum):
    """How firm the rental is."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"


class Tier(StrEnum):
    """How far a machine's operator may be trusted, weakest first (`TIER_ORDER`)."""

    COMMUNITY = "community"
    VERIFIED = "verified"
    DATACENTER = "datacenter"
    TEE = "tee"
    OWN = "own"


TIER_ORDER = (Tier.COMMUNITY, Tier.VERIFIED, Tier.DATACENTER, Tier.TEE, Tier.OWN)


class Billing(Record, frozen=True, kw_only=True):
    """How a marketplace turns time into money: `ceil(time / quantum) * quantum`, at least `minimum_s`."""

    quantum_s: int = 1
    minimum_s: int = 0
    storage_nusd_gib_hour: int = 0
    ingress_nusd_gib: int = 0
    egress_nusd_gib: int = 0
    fee_nusd: int = 0


class NativePrice(Record, frozen=True, kw_only=True):
    """A price in the marketplace's own unit, and how it became dollars.

    `amount_hour` and `rate` are decimal texts: units of `currency` an hour, and dollars for one unit. `source` says
    where the rate comes from, `rate_ms` from when it is.
    """

    amount_hour: str
    currency: str
    rate: str
    source: str
    rate_ms: int


class Offer(Record, frozen=True, kw_only=True):
    """Something a marketplace lists. Indicative until quoted. Prices are for the whole offer, all its GPUs.

    `native` is there where the marketplace does not bill in dollars. `boot_s` is how long the marketplace says, or is
    known, to take from the create call to an answering node; None where nothing is known.
    """

    marketplace: str
    offer_id: str
    machine_id: str
    price_nusd_hour: int
    seen_ms: int
    kind: PriceKind = PriceKind.ON_DEMAND
    gpu_raw: str = ""
    gpu: str | None = None
    gpu_count: int = 0
    vram_gib: float = 0.0
    cpu_model: str = ""
    cpu_cores: int = 0
    memory_gib: float = 0.0
    disk_gib: float = 0.0
    region: str = ""
    country: str = ""
    tier: Tier = Tier.COMMUNITY
    cuda: str = ""
    down_mbps: float = 0.0
    up_mbps: float = 0.0
    reliability: float | None = None
    billing: Billing = Billing()
    provider: str = ""
    native: NativePrice | None = None
    boot_s: float | None = None
    extra: dict[str, Any] = {}


class Quote(Record, frozen=True, kw_only=True):
    """A firm price with an expiry."""

    marketplace: str
    offer: Offer
    price_nusd_hour: int
    expires_ms: int
    kind: PriceKind = PriceKind.ON_DEMAND
    quote_id: str = ""


class OfferQuery(Record, frozen=True, kw_only=True):
    """What a user looks for. `gpu` is the grammar `names:memory:count`: "H100|A100:80GB", "24GB..80GB", "L40S:48GB:2".

    `gpu` of None takes anything, also machines without a GPU; "any" takes any GPU; "none" only CPU machines.
    `offer_id` takes this one offer alone, which somebody chose from a list; with its marketplace in `marketplaces`.
    """

    gpu: str | None = None
    vram_gib: float | None = None
    gpu_count: int | None = None
    max_price_nusd_hour: int | None = None
    region: str | None = None
    marketplaces: tuple[str, ...] = ()
    tier: Tier | None = None
    kind: PriceKind | None = None
    cpu_cores: int | None = None
    memory_gib: float | None = None
    disk_gib: float | None = None
    offer_id: str | None = None


# ── rentals: what a marketplace says ─────────────────────────────────────────────────────────────────────────────────


class RentalStatus(StrEnum):
    """A rental as its marketplace tells it. GONE alone proves that billing has ended."""

    PENDING = "pending"
    RUNNING = "running"
    ENDING = "ending"
    FAILED = "failed"
    GONE = "gone"
    UNKNOWN = "unknown"


class NodeAddress(Record, frozen=True, kw_only=True):
    """Where SSH answers. `host_key` is an OpenSSH public key line, where the marketplace tells it.

    With `wss_url` SSH is reached by that WebSocket alone, and host and port are only what it is called.
    """

    host: str
    port: int
    user: str
    host_key: str | None = None
    wss_url: str = ""


class Rental(Record, frozen=True, kw_only=True):
    """One rented machine on an account, as the marketplace tells it now.

    `billed_from_ms` is from when it bills, where the marketplace tells that; it may come later than `created_ms`.
    `ends_ms` is there where the marketplace has given notice: it will end the rental then, for `ends_why`.
    """

    marketplace: str
    rental_id: str
    label: str
    status: RentalStatus
    price_nusd_hour: int | None = None
    kind: PriceKind | None = None
    machine_id: str = ""
    address: NodeAddress | None = None
    created_ms: int | None = None
    billed_from_ms: int | None = None
    ended_ms: int | None = None
    detail: str = ""
    ends_ms: int | None = None
    ends_why: str = ""


class MarketCharge(Record, frozen=True, kw_only=True):
    """A line of the marketplace's own bill, for reconciliation."""

    charge_id: str
    rental_id: str
    amount_nusd: int
    start_ms: int
    end_ms: int
    what: str = "compute"
    native_amount: str = ""
    native_currency: str = "USD"
    final: bool = True


class Balance(Record, frozen=True, kw_only=True):
    """What is left on an account."""

    amount_nusd: int
    native_amount: str = ""
    native_currency: str = "USD"


class SelfStop(Record, frozen=True, kw_only=True):
    """How a node can end its own rental: the watchdog runs `argv`, with `env` set; both are fit to be public."""

    argv: tuple[str, ...]
    env: dict[str, str] = {}


class Capabilities(Record, frozen=True, kw_only=True):
    """What a marketplace can do. `gives_notice`: `Rental.ends_ms` may come minutes before, so it is looked at often."""

    auction: bool = False
    spot: bool = False
    tee: bool = False
    https_only: bool = False
    own_timer: bool = False
    idempotency_key: bool = False
    self_stop: bool = False
    tells_host_key: bool = False
    charges: bool = True
    charge_delay_s: int = 0
    listing_lag_s: int = 0
    gives_notice: bool = False


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class LeaseState(StrEnum):
    """A lease's life (design: one transition table in `leases.machine`)."""

    WISHED = "wished"
    QUOTING = "quoting"
    RENTING = "renting"
    UNCONFIRMED = "unconfirmed"
    BOOTING = "booting"
    LINKING = "linking"
    PREPARING = "preparing"
    PROBING = "probing"
    READY = "ready"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    RELEASING = "releasing"
    RELEASE_UNCONFIRMED = "release_unconfirmed"
    RELEASED = "released"
    FAILED = "failed"


ENDED_STATES = frozenset({LeaseState.RELEASED, LeaseState.FAILED})
# In these a marketplace may be billing, or be about to: from the create call to the proof of the end.
BILLING_STATES = frozenset(LeaseState) - ENDED_STATES - {LeaseState.WISHED, LeaseState.QUOTING}


# Time enough to rent and set up another node, and to bring over what the first one holds.
HEED_NOTICE_MS = 15 * 60_000
# Nobody comes in its place, and its time is paid: only what it holds has to move.
HEED_DEADLINE_MS = 60_000


class LeaseGoal(StrEnum):
    """What a lease is heading for. NODE: a ready node, by the next offer if need be; RELEASED and FAILED: its end."""

    NODE = "node"
    RELEASED = "released"
    FAILED = "failed"


class Owner(Record, frozen=True, kw_only=True):
    """For whom and for what a lease is: the scopes of budgets and reports. Empty text: not told."""

    user: str = ""
    project: str = ""
    notebook: str = ""


class Notice(Record, frozen=True, kw_only=True):
    """Somebody's word that a node ends at `ends_ms`, though nobody on the user's side has asked for that.

    `source`: the marketplace (a machine reclaimed, a host that is drained), the node itself (it is being shut down), or
    the lease's own deadline. A deadline is no loss that somebody else causes, so nothing is rented in its place.
    """

    ends_ms: int
    reason: str
    source: Literal["marketplace", "node", "deadline"]

    def is_due(self, now_ms: int) -> bool:
        """Whether it is time to move what the node holds; a node that has a day left is used until then."""
        return self.ends_ms - now_ms <= (HEED_DEADLINE_MS if self.source == "deadline" else HEED_NOTICE_MS)


class LeaseRequest(Record, frozen=True, kw_only=True):
    """What a door asks for. `request_id` is made by the door: the same one sent twice is one lease."""

    request_id: str
    query: OfferQuery
    budget_nusd: int
    max_s: int
    owner: Owner = Owner()
    name: str = ""
    cluster: str = ""
    trusted: bool = False
    grace_s: int = 900
    price_tolerance_ppm: int = 10_000


class Attempt(Record, frozen=True, kw_only=True):
    """One offer that a lease tried, and how that ended. The ledger bills it by `offer.billing` for its billed span."""

    marketplace: str
    offer_id: str
    machine_id: str
    started_ms: int
    ended_ms: int | None = None
    ended_in: LeaseState | None = None
    reason: str = ""
    rental_id: str = ""
    price_nusd_hour: int = 0
    billed_from_ms: int | None = None
    billed_to_ms: int | None = None
    offer: Offer | None = None


class Lease(Record, frozen=True, kw_only=True):
    """One rented node, from the wish to the confirmed release.

    `label` is the current attempt's name on the marketplace's account. `phases` holds when each state of the current
    attempt was entered. `deadline_ms` is when the node stops itself; budget and hours are both inside it.
    `billed_from_ms`/`billed_to_ms` span what the marketplace may charge for the current attempt.
    `attempts` holds the attempts that failed before they were ready, each with its billed span; the
    current one is in the lease's own fields and moves there when it has failed, so no time is in both.
    `received_bytes` and `sent_bytes` are the node's own word on its traffic. `notice`: the node will end soon.
    """

    lease_id: str
    name: str
    state: LeaseState
    request: LeaseRequest
    created_ms: int
    changed_ms: int
    goal: LeaseGoal = LeaseGoal.NODE
    label: str = ""
    offer: Offer | None = None
    quote: Quote | None = None
    rental_id: str = ""
    price_nusd_hour: int = 0
    address: NodeAddress | None = None
    host_key: str | None = None
    deadline_ms: int | None = None
    phase_deadline_ms: int | None = None
    billed_from_ms: int | None = None
    billed_to_ms: int | None = None
    ready_ms: int | None = None
    phases: dict[str, int] = {}
    attempts: tuple[Attempt, ...] = ()
    reason: str = ""
    release_asks: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    probe: dict[str, Any] = {}
    cluster_id: str = ""
    notice: Notice | None = None

    @property
    def may_bill(self) -> bool:
        """Whether a marketplace may be charging for it now."""
        return self.state in BILLING_STATES


class Machine(Record, frozen=True, kw_only=True):
    """What we remember of a machine: how often it was good and bad, and the last reason."""

    marketplace: str
    machine_id: str
    good: int = 0
    bad: int = 0
    last_bad_ms: int | None = None
    last_reason: str = ""


# ── cell runs, charges, budgets ──────────────────────────────────────────────────────────────────────────────────────


class RunStatus(StrEnum):
    """A cell run's life. LOST: the node is gone and the result with it."""

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    TIMED_OUT = "timed_out"
    LOST = "lost"


ENDED_RUNS = frozenset(RunStatus) - {RunStatus.QUEUED, RunStatus.RUNNING}


class CellRun(Record, frozen=True, kw_only=True):
    """One execution of one cell. Times are the user's side's clock."""

    run_id: str
    lease_id: str
    session: str
    status: RunStatus
    owner: Owner = Owner()
    cell_id: str = ""
    code_sha256: str = ""
    started_ms: int | None = None
    ended_ms: int | None = None
    budget_nusd: int | None = None
    reason: str = ""


class ChargeKind(StrEnum):
    """What a line of the ledger pays for."""

    CELL = "cell"
    IDLE = "idle"
    BOOT = "boot"
    FAILED_ATTEMPT = "failed_attempt"
    STORAGE = "storage"
    TRAFFIC = "traffic"
    FEE = "fee"
    ADJUSTMENT = "adjustment"


class Charge(Record, frozen=True, kw_only=True):
    """A line of the ledger. Integer nano-dollars; the native amount, rate and its source stay with it."""

    charge_id: str
    lease_id: str
    kind: ChargeKind
    amount_nusd: int
    start_ms: int
    end_ms: int
    owner: Owner = Owner()
    run_id: str = ""
    marketplace: str = ""
    machine_id: str = ""
    gpu: str = ""
    gpu_count: int = 0
    rate_nusd_hour: int = 0
    native_amount: str = ""
    native_currency: str = "USD"
    native_rate: str = "1"
    native_rate_source: str = ""
    native_rate_ms: int | None = None
    final: bool = True


class Scope(StrEnum):
    """What a budget limits."""

    CELL = "cell"
    NOTEBOOK = "notebook"
    USER = "user"
    PROJECT = "project"


class Budget(Record, frozen=True, kw_only=True):
    """A hard limit in money on a scope. `key` is the notebook's path, the user's or the project's name."""

    scope: Scope
    key: str
    limit_nusd: int
    since_ms: int = 0
    set_ms: int = 0


class CodeFile(Record, frozen=True, kw_only=True):
    """One file of the user's own code: its path below the folder that is on `sys.path`, and its content's hash."""

    path: str
    sha256: str
    size: int
