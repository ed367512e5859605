"""A node as the cluster process sees it: progress of set-up, link, use."""

from __future__ import annotations

from typing import Literal

from jupyter_gpumarket.models import Notice, Record


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
    notice: Notice | None = None
