"""What cells printed and gave back on nodes long given back is not kept for ever; the journal keeps what they cost."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from jupyter_gpumarket.broker.clusters import cluster_of
from jupyter_gpumarket.models import ENDED_STATES, Lease

log = logging.getLogger(__name__)

MS_PER_DAY = 86_400_000


def outdated(on_disk: Iterable[str], leases: Iterable[Lease], *, now_ms: int, keep_days: float) -> list[str]:
    """Clusters whose every lease ended more than `keep_days` ago; with 0 none, and never one that no lease knows."""
    if not keep_days:
        return []
    before_ms = now_ms - keep_days * MS_PER_DAY
    clusters = defaultdict(list)
    for lease in leases:
        clusters[cluster_of(lease)].append(lease.state in ENDED_STATES and lease.changed_ms < before_ms)
    return sorted(name for name in on_disk if name in clusters and all(clusters[name]))


def prune(folder: Path, leases: Iterable[Lease], *, now_ms: int, keep_days: float) -> list[str]:
    """Remove the folders of outdated clusters; their names. One that cannot be removed is left for the next time."""
    on_disk = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    removed = []
    for name in outdated(on_disk, leases, now_ms=now_ms, keep_days=keep_days):
        try:
            shutil.rmtree(folder / name)
        except OSError as error:
            log.warning("the old cluster %s cannot be removed: %s", name, error)
        else:
            removed.append(name)
    if removed:
        log.info("removed the output of %d clusters that ended over %g days ago", len(removed), keep_days)
    return removed
