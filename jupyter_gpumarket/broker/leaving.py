"""Nodes that will end soon, as the broker sees them: what people are told, what they may still cost, when they may go.

Pure. A node about which somebody else has given notice is not counted in its cluster any more, so that another one is
rented while it is still there; it is given back as soon as it holds nothing, at the latest when its time has come.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from jupyter_gpumarket import ledger
from jupyter_gpumarket.api import MAP_SESSION, DaskView
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.models import ENDED_RUNS, CellRun, Lease

# A marketplace ends a rental a little later than it said, or its clock is not ours.
SLACK_MS = 60_000


def is_leaving(lease: Lease, now_ms: int) -> bool:
    """Whether it will soon be taken away, by somebody else than the user or the budget."""
    notice = lease.notice
    return notice is not None and notice.source != "deadline" and notice.is_due(now_ms)


def words(lease: Lease, now_ms: int) -> str:
    """`ends at 2026-11-28T05:00:00Z, in 4 min: ...`, for people; empty without a notice."""
    notice = lease.notice
    if notice is None:
        return ""
    left_s = max(0, notice.ends_ms - now_ms) / 1000
    means = "fetch what you need from it" if notice.source != "deadline" else "`%gpu extend` gives it more"
    return f"ends at {iso_utc(notice.ends_ms)}, in {in_words(left_s)}: {notice.reason}; {means}"


def still_costs_nusd(lease: Lease) -> int:
    """What it can cost in all, when it is given back at the end that was announced."""
    assert lease.notice is not None, "only of a node with a notice"
    ends_ms = lease.notice.ends_ms + SLACK_MS
    if lease.deadline_ms is None or lease.deadline_ms <= ends_ms:
        return lease.request.budget_nusd
    early = msgspec.structs.replace(lease, deadline_ms=ends_ms)
    return min(lease.request.budget_nusd, ledger.worst_case_nusd(early))


def may_go(lease: Lease, dask: DaskView | None, runs: Sequence[CellRun], now_ms: int) -> bool:
    """Whether nothing is lost when it is given back now.

    Not while Dask's workers there still hand over, nor while a cell or a map runs there. The head, and nodes on which
    cells have run, are kept to the end: their sessions' variables cannot move.
    """
    assert lease.notice is not None, "only of a node with a notice"
    if now_ms >= lease.notice.ends_ms + SLACK_MS:
        return True
    workers = [worker for worker in dask.workers if worker.lease_id == lease.lease_id] if dask is not None else []
    if dask is not None and dask.head == lease.lease_id:
        return False
    if any(worker.state != "retired" for worker in workers):
        return False
    return all(run.status in ENDED_RUNS and run.session in (MAP_SESSION, "") for run in runs)
