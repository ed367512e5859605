"""What a cluster process tells the broker: POST /v1/facts."""

from __future__ import annotations

from typing import Any, Literal

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import Record, RunStatus


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


class NodeLeaving(Fact, frozen=True, kw_only=True, tag="node_leaving"):
    """The node's own word that it is being shut down, at `ends_ms` at the latest."""

    ends_ms: int
    reason: str


class NodeTraffic(Fact, frozen=True, kw_only=True, tag="node_traffic"):
    """The node's own word on how much has gone through its network, in all. Some marketplaces bill that."""

    received_bytes: int
    sent_bytes: int


class RunStarted(Fact, frozen=True, kw_only=True, tag="run_started"):
    """A cell run began on the node."""

    run_id: str


class RunEnded(Fact, frozen=True, kw_only=True, tag="run_ended"):
    """A cell run is over."""

    run_id: str
    status: RunStatus
    started_ms: int | None = None
    reason: str = ""


AnyFact = (
    Linked
    | Prepared
    | Probed
    | NodeFailed
    | LinkLost
    | LinkBack
    | NodeIdle
    | NodeLeaving
    | NodeTraffic
    | RunStarted
    | RunEnded
)


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
