"""What the fleet knows of a node and of a Dask process on it."""

from __future__ import annotations

from typing import Literal

import msgspec

from jupyter_gpumarket.api import DaskWish
from jupyter_gpumarket.cluster.authority import Identity
from jupyter_gpumarket.cluster.dask_plan import Candidate
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.wire.messages import AgentReady

LONGEST_WAIT_S = 30.0


class Process(msgspec.Struct, kw_only=True):
    """A Dask process that was ordered. `slot` is its place on the node, None for the scheduler.

    `hurried_s`: when its end was ordered because it did not come up in time; 0 before.
    """

    name: str
    lease_id: str
    generation: int
    port: int
    nanny_port: int
    slot: int | None = None
    gpu: int | None = None
    is_scheduler: bool = False
    state: Literal["starting", "running", "retired"] = "starting"
    address: str = ""
    started_s: float = 0.0
    is_unsure: bool = False
    hurried_s: float = 0.0


class FleetRecord(Record, frozen=True, kw_only=True):
    """dask.json. `wish` of None: no Dask is wanted. `head` is the lease of the scheduler of this generation.

    `authority` is for doors. Dask has one for each generation, so that after a change of the head no certificate of a
    node that had left before counts any more; a process of an older version had `authority` for both.
    """

    wish: DaskWish | None = None
    authority: Identity | None = None
    dask_authority: Identity | None = None
    generation: int = 0
    head: str = ""
    head_reason: str = ""
    processes: tuple[Process, ...] = ()


class Member:
    """A node of the cluster, as Dask sees it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.network = node.lease_id
        self.is_met = False
        self.is_given_up = False
        self.is_retiring = False
        self.retires_for_notice = False
        # Why Dask does without this node; and how often others' processes were started anew for its sake.
        self.kept_out = ""
        self.restarts = 0
        self.met_s = 0.0
        self.names: set[str] = set()
        # By the certificate of the authority that issued it.
        self.identities: dict[bytes, Identity] = {}
        self._silent_since_s: float | None = None
        self._not_before: dict[int | None, tuple[float, int]] = {}
        self._ends: dict[int | None, str] = {}

    @property
    def lease_id(self) -> str:
        return self.node.lease_id

    @property
    def name(self) -> str:
        return self.node.record.attach.name

    @property
    def is_up(self) -> bool:
        """Whether its agent can be spoken to at this moment."""
        return self.is_met and not self.is_given_up and self.node.link_state == "up"

    @property
    def gpu_count(self) -> int:
        """How many GPUs were sold."""
        offer = self.node.record.attach.offer
        return offer.gpu_count if offer is not None else 0

    @property
    def cores(self) -> int:
        """How many CPU cores were sold; 0 where that is not known."""
        offer = self.node.record.attach.offer
        return offer.cpu_cores if offer is not None else 0

    def candidate(self) -> Candidate:
        """What counts for the choice of the head."""
        offer = self.node.record.attach.offer
        ready_ms = self.node.record.ready_ms or 0
        if offer is None:
            return Candidate(lease_id=self.lease_id, name=self.name, ready_ms=ready_ms)
        return Candidate(
            lease_id=self.lease_id,
            name=self.name,
            tier=offer.tier,
            kind=offer.kind,
            reliability=offer.reliability,
            up_mbps=offer.up_mbps,
            ready_ms=ready_ms,
        )

    def meet(self, report: AgentReady, now_s: float) -> None:
        """Its agent speaks to us, for the first time or after one of both was started anew."""
        self.is_met, self.is_given_up = True, False
        self.met_s = now_s
        self.network = report.network[:64] or self.lease_id
        self._silent_since_s = None

    def has_spoken(self, now_s: float, patience_s: float) -> bool:
        """Whether it was met so long ago, and is heard, that it has said all about what it runs."""
        return self.is_met and self.node.link_state == "up" and now_s - self.met_s > patience_s

    def is_silent(self, now_s: float, patience_s: float) -> bool:
        """Whether nothing was heard for so long, and it has not been given up yet."""
        if not self.is_met or self.node.link_state == "up":
            self._silent_since_s = None
            return False
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        return not self.is_given_up and now_s - self._silent_since_s > patience_s

    def give_up(self) -> None:
        """Dask does not count on it any more."""
        self.is_given_up = True

    def take_back(self, now_s: float) -> None:
        """It answers again."""
        self.is_given_up = False
        self.met_s = now_s

    def note_end(self, slot: int | None, now_s: float, reason: str, *, had_run: bool) -> None:
        """A process ended: the next one starts at once, unless several did not even come up."""
        self._ends[slot] = _in_short(reason)
        young = 0 if had_run else self._not_before.get(slot, (0.0, 0))[1] + 1
        wait_s = 0.0 if young < 3 else min(LONGEST_WAIT_S, 0.5 * 2 ** min(young - 3, 10))
        self._not_before[slot] = (now_s + wait_s, young)

    def may_start(self, slot: int | None, now_s: float) -> bool:
        """Whether a process may be started in this place now."""
        return self.wait_s(slot, now_s) <= 0

    def wait_s(self, slot: int | None, now_s: float) -> float:
        """How long until a process may be started in this place."""
        return max(0.0, self._not_before.get(slot, (now_s, 0))[0] - now_s)

    def last_end(self, slot: int | None) -> str:
        """How the last process in this place ended, in a line; empty when none has. A node's word."""
        return self._ends.get(slot, "")


def _in_short(reason: str) -> str:
    """The first line of a node's words, which says how it ended, and the last one, which mostly says why."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return ": ".join(line[:200] for line in dict.fromkeys((*lines[:1], *lines[-1:])))
