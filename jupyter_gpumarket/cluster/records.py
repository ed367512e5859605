"""What the cluster process writes down about itself, its nodes and its runs."""

from __future__ import annotations

from jupyter_gpumarket.api import Attach, OutputRef, RunRequest
from jupyter_gpumarket.models import ENDED_RUNS, Record, RunStatus
from jupyter_gpumarket.nodes import Installed


class Start(Record, frozen=True, kw_only=True):
    """start.json: who the process is. It stops itself after `idle_stop_s` seconds without a node.

    `idle_tell_s`: how often the broker is told that a node has nothing to do. `direct`: whether nodes may open doors to
    each other.
    """

    cluster_id: str
    idle_stop_s: float = 60.0
    idle_tell_s: float = 60.0
    direct: bool = True


class BrokerAddress(Record, frozen=True, kw_only=True):
    """broker.json: where the broker takes facts."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"BrokerAddress(url={self.url!r}, token=…)"


class NodeRecord(Record, frozen=True, kw_only=True):
    """An attached node, as it is written to nodes.json. `agent` is the identity of the agent we last heard of.

    `ready_ms`: when it became ready; None before.
    """

    attach: Attach
    host_key: str | None = None
    installed: Installed | None = None
    ready_ms: int | None = None
    agent: str = ""


class ExpectedOutput(Record, frozen=True, kw_only=True):
    """An output variable as the node announced it."""

    name: str
    codec: str = ""
    size: int = 0
    sha256: str = ""
    error: str = ""


class RunState(Record, frozen=True, kw_only=True):
    """A cell run on disk.

    `status` is what doors see: it is an ended one only when every message and output is here. `node_status` is the
    node's own word, which may be ahead. `sent_to` is the agent that was told to execute it; it is written before the
    order leaves, so that a run is never executed by two agents. `agent_messages`: the number of the node's last
    message, once it has ended there. `save_for`: why it was interrupted so that its outputs could be brought over.
    """

    request: RunRequest
    created_ms: int
    status: RunStatus = RunStatus.QUEUED
    node_status: str = ""
    sent_to: str = ""
    agent_messages: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None
    reason: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()
    expected: tuple[ExpectedOutput, ...] = ()
    outputs: tuple[OutputRef, ...] = ()
    interrupt_asked: bool = False
    save_for: str = ""
    is_settled: bool = False
    messages: int = 0
    has_spilled: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether doors see it as ended."""
        return self.status in ENDED_RUNS

    @property
    def has_ended_on_node(self) -> bool:
        """Whether the node has said that it ended."""
        return self.node_status in ENDED_RUNS
