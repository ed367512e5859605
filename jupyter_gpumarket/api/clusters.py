"""What doors and the broker say to a cluster process."""

from __future__ import annotations

from typing import Any, Literal

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import NodeAddress, Notice, Offer, Owner, Record, RunStatus, SelfStop


class Attach(Request, frozen=True, kw_only=True):
    """PUT /v1/nodes/{lease_id}, from the broker: reach this node, set it up, probe it, and report facts.

    Idempotent: for a node already attached it changes deadline and address only. `key_path` is a 0600 file that holds
    the lease's private key. `host_key`: the recorded or the marketplace's; None: first sight decides.
    `resume`: the node was ready before; do not set up anew. `demo`: a GPU that the node calls a demo's counts as one.
    `notice`: the node will end soon.
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
    demo: bool = False
    notice: Notice | None = None


class Detach(Request, frozen=True, kw_only=True):
    """POST /v1/nodes/{lease_id}/detach: end sessions and agent (where reachable within `timeout_s`), close the link.

    Before that, for at most `save_s`: cells that run and have declared outputs are interrupted, and what ended cells
    have declared is fetched. `reason` is told to whoever waits for such a cell.
    """

    timeout_s: float = 5.0
    save_s: float = 0.0
    reason: str = ""


class DeadlineChange(Request, frozen=True, kw_only=True):
    """POST /v1/nodes/{lease_id}/deadline: a new time at which the node stops itself."""

    deadline_ms: int


class NodeNotice(Request, frozen=True, kw_only=True):
    """POST /v1/nodes/{lease_id}/notice: the node will end soon; None: that word was taken back."""

    notice: Notice | None = None


class InputRef(Request, frozen=True, kw_only=True):
    """One variable to bring in. The bytes were put as a blob before (PUT /v1/blobs/{sha256})."""

    name: str
    codec: str
    sha256: str
    size: int


class LocalBlob(Request, frozen=True, kw_only=True):
    """POST /v1/blobs/{sha256}/local: an input's bytes lie in this file of the same user on the same computer."""

    path: str


class RunRequest(Request, frozen=True, kw_only=True):
    """POST /v1/runs: run a cell. The same `run_id` sent twice runs once. `timeout_s` of None: until the deadline.

    With `map_id` it is a node's part in a map, made by the cluster process itself: no kernel executes it.
    """

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
    map_id: str = ""


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
    map_id: str = ""


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
    notice: Notice | None = None


class ClusterInfo(Record, frozen=True, kw_only=True):
    """GET /v1/health: the cluster process, its attached nodes, and how many facts the broker has not taken yet."""

    cluster_id: str
    api_version: int
    pid: int
    nodes: tuple[str, ...] = ()
    facts_waiting: int = 0
