"""The JSON shapes that cross our own HTTP doors: door ↔ broker, broker ↔ cluster process, door ↔ cluster process.

Both sides decode with these records, so a wrong field is refused where it enters, by name. All requests carry
`Authorization: Bearer <token>`. Errors are answered with `Problem` and a matching status.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from jupyter_gpumarket.models import (
    Balance,
    Budget,
    Capabilities,
    CellRun,
    Charge,
    Lease,
    NodeAddress,
    Offer,
    OfferQuery,
    Owner,
    Record,
    RunStatus,
    Scope,
    SelfStop,
)

API_VERSION = 1


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what doors send: an unknown field is a 400 that names it."""


class Problem(Record, frozen=True, kw_only=True):
    """Every error answer. `error` is the class name in `errors`, `message` is for people."""

    error: str
    message: str
    field: str = ""


# ── broker ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class BrokerInfo(Record, frozen=True, kw_only=True):
    """GET /v1/health"""

    version: str
    api_version: int
    pid: int
    state_folder: str
    started_ms: int
    open_leases: int
    marketplaces: tuple[str, ...]
    python: str = ""


class OfferSearch(Request, frozen=True, kw_only=True):
    """POST /v1/offers: which offers, for which job, in which order."""

    query: OfferQuery = OfferQuery()
    hours: float = 1.0
    sort: str = "price"
    refresh: bool = False
    limit: int = 1000


class FilterStep(Record, frozen=True, kw_only=True):
    """One filter of a search: how many offers it was given, and how many it let pass."""

    filter: str
    before: int
    after: int


class MarketplaceStatus(Record, frozen=True, kw_only=True):
    """How one marketplace answered: `age_s` is how old its part of the list is."""

    marketplace: str
    ok: bool
    offers: int
    age_s: float
    message: str = ""


class OfferList(Record, frozen=True, kw_only=True):
    """The answer to `OfferSearch`; `steps` explains what was filtered away."""

    offers: list[Offer]
    statuses: list[MarketplaceStatus]
    steps: list[FilterStep] = []


class ReleaseRequest(Request, frozen=True, kw_only=True):
    """POST /v1/leases/{lease}/release"""

    reason: str = "asked by the user"


class ExtendRequest(Request, frozen=True, kw_only=True):
    """POST /v1/leases/{lease}/extend: the new totals, not increments."""

    max_s: int | None = None
    budget_nusd: int | None = None


class LeaseView(Record, frozen=True, kw_only=True):
    """A lease with its money as of now. `seq` grows with every change; `GET ...?after_seq=N&wait_s=S` waits for one.

    `notices` are warnings for people, such as a budget that is nearly used up; most are empty.
    """

    lease: Lease
    seq: int
    cost_nusd: int
    boot_nusd: int
    idle_nusd: int
    worst_case_nusd: int
    node: NodeView | None = None
    notices: tuple[str, ...] = ()


class ClusterAccess(Record, frozen=True, kw_only=True):
    """GET /v1/leases/{lease}/cluster: where the cluster process of this lease listens. The token is a secret."""

    cluster_id: str
    url: str
    token: str

    def __repr__(self) -> str:
        return f"ClusterAccess(cluster_id={self.cluster_id!r}, url={self.url!r}, token=…)"


class RunWish(Request, frozen=True, kw_only=True):
    """POST /v1/runs: before a cell runs; the broker checks the budgets and journals the wish."""

    run_id: str
    lease_id: str
    session: str
    owner: Owner
    cell_id: str = ""
    code_sha256: str = ""
    budget_nusd: int | None = None


class RunCost(Record, frozen=True, kw_only=True):
    """GET /v1/runs/{run}: a cell run and its share of its lease's bill, to the nano-dollar.

    `amount_nusd` is final once `final` is true; before, it is what has come up so far.
    """

    run: CellRun
    node: str
    duration_ms: int
    amount_nusd: int
    rate_nusd_hour: int
    final: bool
    lease_total_nusd: int
    lease_boot_nusd: int
    lease_idle_nusd: int


class CostQuery(Request, frozen=True, kw_only=True):
    """POST /v1/costs: the ledger's lines that touch this span. Open leases contribute provisional lines up to now."""

    since_ms: int = 0
    until_ms: int | None = None
    lease: str | None = None


class CostList(Record, frozen=True, kw_only=True):
    """Lines of the ledger."""

    charges: list[Charge]
    as_of_ms: int


class BudgetSetting(Request, frozen=True, kw_only=True):
    """PUT /v1/budgets: a limit on a scope, which replaces the one there was; a limit of None takes it away."""

    scope: Scope
    key: str
    limit_nusd: int | None
    since_ms: int = 0


class BudgetView(Record, frozen=True, kw_only=True):
    """A budget and how much of it is spent and reserved."""

    budget: Budget
    spent_nusd: int
    reserved_nusd: int


class Reconciliation(Record, frozen=True, kw_only=True):
    """One rental's bill by our ledger and by the marketplace's own records."""

    lease_id: str
    marketplace: str
    rental_id: str
    ours_nusd: int
    theirs_nusd: int
    gap_nusd: int
    explained: str = ""
    checked_ms: int = 0


class ReconcileQuery(Request, frozen=True, kw_only=True):
    """POST /v1/reconcile: compare ended leases (or this one) with the marketplaces' own records now."""

    lease: str | None = None


class MarketplaceInfo(Record, frozen=True, kw_only=True):
    """GET /v1/marketplaces: one marketplace; `message` says why it cannot be used when `usable` is false."""

    name: str
    usable: bool
    message: str = ""
    capabilities: Capabilities | None = None
    balance: Balance | None = None


class Orphan(Record, frozen=True, kw_only=True):
    """A rental with our label that no open lease knows: it bills until released."""

    marketplace: str
    rental_id: str
    label: str
    found_ms: int
    price_nusd_hour: int | None = None
    state: Literal["found", "release_asked", "gone"] = "found"


class JournalLine(Record, frozen=True, kw_only=True):
    """One journal entry for people and tools."""

    seq: int
    at_ms: int
    kind: str
    subject: str
    body: dict[str, Any]


# ── what the cluster process tells the broker: POST /v1/facts ────────────────────────────────────────────────────────


class Fact(Record, frozen=True, kw_only=True, tag_field="fact"):
    """Base of what a cluster process has observed. `at_ms` is when; `lease_id` is on which node."""

    lease_id: str
    at_ms: int


class Linked(Fact, frozen=True, kw_only=True, tag="linked"):
    """SSH is up and the host key has been accepted. `first_sight`: nobody had vouched for the key before."""

    host_key: str
    first_sight: bool


class Prepared(Fact, frozen=True, kw_only=True, tag="prepared"):
    """The agent runs, with fitting versions."""

    python: str
    versions: dict[str, str]
    steps_ms: dict[str, int]


class Probed(Fact, frozen=True, kw_only=True, tag="probed"):
    """The probe's report, and in which points it differs from the offer (empty: as sold)."""

    report: dict[str, Any]
    differences: tuple[str, ...]


class NodeFailed(Fact, frozen=True, kw_only=True, tag="node_failed"):
    """Linking, preparing or probing failed for good on this node. `blame_machine`: remember it as bad."""

    phase: Literal["linking", "preparing", "probing", "ready"]
    reason: str
    blame_machine: bool = True


class LinkLost(Fact, frozen=True, kw_only=True, tag="link_lost"):
    """The node does not answer; the cluster process goes on trying."""

    reason: str


class LinkBack(Fact, frozen=True, kw_only=True, tag="link_back"):
    """The node answers again. `same_boot`: its agent is the one we knew."""

    same_boot: bool


class NodeIdle(Fact, frozen=True, kw_only=True, tag="node_idle"):
    """No cell has run on the node since `idle_since_ms`."""

    idle_since_ms: int


class RunStarted(Fact, frozen=True, kw_only=True, tag="run_started"):
    """A cell run began on the node."""

    run_id: str


class RunEnded(Fact, frozen=True, kw_only=True, tag="run_ended"):
    """A cell run is over."""

    run_id: str
    status: RunStatus
    started_ms: int | None = None
    reason: str = ""


AnyFact = Linked | Prepared | Probed | NodeFailed | LinkLost | LinkBack | NodeIdle | RunStarted | RunEnded


class FactBatch(Request, frozen=True, kw_only=True):
    """POST /v1/facts: facts of one cluster process, in the order in which they happened.

    `queue` is a random name made together with the queue on disk; inside it facts are numbered 1, 2, 3 ... and
    `first` is the number of the first one here. Facts that the broker already has are skipped, so that a batch may be
    sent again until its receipt has come.
    """

    cluster_id: str
    queue: str
    first: int
    facts: list[AnyFact]


class FactReceipt(Record, frozen=True, kw_only=True):
    """The answer to a `FactBatch`: facts up to this number are in the journal and need not be sent again."""

    upto: int


# ── cluster process ──────────────────────────────────────────────────────────────────────────────────────────────────


class Attach(Request, frozen=True, kw_only=True):
    """PUT /v1/nodes/{lease_id}, from the broker: reach this node, set it up, probe it, and report facts.

    Idempotent: for a node already attached it changes deadline and address only. `key_path` is a 0600 file that holds
    the lease's private key. `host_key`: the recorded or the marketplace's; None: first sight decides.
    `resume`: the node was ready before; do not set up anew.
    """

    lease_id: str
    name: str
    address: NodeAddress
    key_path: str
    deadline_ms: int
    grace_s: int
    host_key: str | None = None
    offer: Offer | None = None
    trusted: bool = False
    self_stop: SelfStop | None = None
    resume: bool = False


class Detach(Request, frozen=True, kw_only=True):
    """POST /v1/nodes/{lease_id}/detach: end sessions and agent (where reachable within `timeout_s`), close the link."""

    timeout_s: float = 5.0


class DeadlineChange(Request, frozen=True, kw_only=True):
    """POST /v1/nodes/{lease_id}/deadline: a new time at which the node stops itself."""

    deadline_ms: int


class SetupStep(Record, frozen=True, kw_only=True):
    """Progress of set-up: one step, and how it went."""

    name: str
    state: Literal["running", "done", "skipped", "failed"]
    detail: str = ""
    took_ms: int = 0


class GpuUse(Record, frozen=True, kw_only=True):
    """What one GPU does now."""

    index: int
    name: str
    use_percent: float
    memory_used_gib: float
    memory_total_gib: float


class NodeUse(Record, frozen=True, kw_only=True):
    """What the node does now."""

    at_ms: int
    cpu_percent: float
    memory_used_gib: float
    memory_total_gib: float
    disk_free_gib: float = 0.0
    gpus: tuple[GpuUse, ...] = ()


class NodeView(Record, frozen=True, kw_only=True):
    """A node as the cluster process sees it."""

    lease_id: str
    name: str
    link: Literal["connecting", "up", "lost", "closed", "refused"]
    link_detail: str = ""
    round_trip_ms: float | None = None
    phase: Literal["linking", "preparing", "probing", "ready", "failed", "detached"] = "linking"
    steps: tuple[SetupStep, ...] = ()
    sessions: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    use: NodeUse | None = None
    last_seen_ms: int | None = None


class InputRef(Request, frozen=True, kw_only=True):
    """One variable to bring in. The bytes were put as a blob before (PUT /v1/blobs/{sha256})."""

    name: str
    codec: str
    sha256: str
    size: int


class RunRequest(Request, frozen=True, kw_only=True):
    """POST /v1/runs: run a cell. The same `run_id` sent twice runs once. `timeout_s` of None: until the deadline."""

    run_id: str
    lease_id: str
    code: str
    session: str = "main"
    inputs: tuple[InputRef, ...] = ()
    outputs: tuple[str, ...] = ()
    timeout_s: float | None = None
    output_limit_bytes: int = 10_000_000
    owner: Owner = Owner()
    cell_id: str = ""


class OutputRef(Record, frozen=True, kw_only=True):
    """One variable brought back: its codec and size, or why it could not be. Bytes: GET .../outputs/{name}."""

    name: str
    codec: str = ""
    size: int = 0
    sha256: str = ""
    error: str = ""


class RunView(Record, frozen=True, kw_only=True):
    """A cell run as the cluster process knows it. `messages` is the number of the last message on the user's disk."""

    run_id: str
    lease_id: str
    session: str
    status: RunStatus
    messages: int
    started_ms: int | None = None
    ended_ms: int | None = None
    reason: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()
    outputs: tuple[OutputRef, ...] = ()
    owner: Owner = Owner()
    cell_id: str = ""
    spill_path: str = ""


class RunMessage(Record, frozen=True, kw_only=True):
    """One output message of a run: `n` counts from 1 without gaps. Content is the node's word: clean before display.

    msg_type is one of stream, display_data, update_display_data, execute_result, clear_output, error, truncated.
    """

    n: int
    at_ms: int
    msg_type: str
    content: dict[str, Any]
    metadata: dict[str, Any] = {}


class MessageBatch(Record, frozen=True, kw_only=True):
    """GET /v1/runs/{run}/messages?after=N&wait_s=S: what came after N; waits when there is nothing yet."""

    messages: list[RunMessage]
    run: RunView
    link: Literal["connecting", "up", "lost", "closed", "refused"]
    link_detail: str = ""


msgspec.json.Decoder(LeaseView)  # resolves the forward reference at import, not at first use
