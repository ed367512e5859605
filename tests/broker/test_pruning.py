"""Old output goes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_gpumarket.broker.pruning import MS_PER_DAY, prune
from jupyter_gpumarket.models import Lease, LeaseRequest, LeaseState, OfferQuery

NOW_MS = 100 * MS_PER_DAY


def lease(lease_id: str, days_ago: float, *, state: LeaseState = LeaseState.RELEASED, cluster: str = "") -> Lease:
    request = LeaseRequest(request_id=lease_id, query=OfferQuery(), budget_nusd=1, max_s=1)
    changed_ms = NOW_MS - round(days_ago * MS_PER_DAY)
    return Lease(
        lease_id=lease_id, name=lease_id, state=state, request=request, created_ms=0, changed_ms=changed_ms,
        cluster_id=cluster,
    )  # fmt: skip


LEASES = [
    lease("old", 31),
    lease("new", 29),
    lease("open", 90, state=LeaseState.READY),
    lease("a", 90, cluster="shared"),
    lease("b", 1, cluster="shared"),
]


@pytest.mark.parametrize(("keep_days", "removed"), [(30, ["old"]), (10, ["new", "old"]), (0, [])])
def test_only_what_ended_long_ago_is_removed(tmp_path: Path, keep_days: float, removed: list[str]) -> None:
    """Open leases, clusters with a lease that ended lately, and folders that no lease knows stay."""
    names = {"old", "new", "open", "shared", "unknown"}
    for name in names:
        (tmp_path / name / "runs").mkdir(parents=True)

    assert prune(tmp_path, LEASES, now_ms=NOW_MS, keep_days=keep_days) == removed
    assert {entry.name for entry in tmp_path.iterdir()} == names - set(removed)


def test_without_any_cluster_nothing_happens(tmp_path: Path) -> None:
    """The folder is made with the first cluster."""
    assert prune(tmp_path / "clusters", LEASES, now_ms=NOW_MS, keep_days=1) == []
