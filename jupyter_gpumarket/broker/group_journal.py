"""What the journal tells of clusters: which there are, what is wished for each, which of its nodes are to go. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from jupyter_gpumarket.api import ClusterWish, JournalLine

WISHED, ENDED, DECIDED = "cluster.wished", "cluster.ended", "cluster.decided"
KINDS = frozenset({WISHED, ENDED, DECIDED})


@dataclasses.dataclass
class Kept:
    """A cluster as it was left. `released`: nodes whose end was decided, whether or not it has come."""

    name: str
    cluster_id: str
    wish: ClusterWish
    is_ended: bool = False
    released: set[str] = dataclasses.field(default_factory=set)


def read(lines: Iterable[JournalLine]) -> list[Kept]:
    """The clusters, each as of its last line."""
    found: dict[str, Kept] = {}
    for line in lines:
        kept = found.get(line.subject)
        if line.kind == WISHED:
            wish = msgspec.convert(line.body["wish"], ClusterWish)
            if kept is None or kept.cluster_id != line.body["cluster_id"]:
                found[line.subject] = Kept(line.subject, line.body["cluster_id"], wish)
            else:
                kept.wish = wish
        elif kept is not None and line.kind == ENDED:
            kept.is_ended = True
        elif kept is not None and line.body.get("cluster_id") == kept.cluster_id:
            kept.released.update(line.body.get("release", ()))
    return list(found.values())
