"""What the journal tells of clusters: which there are, what is wished for each, which of its nodes are to go. Pure.

A broker must start whatever stands there: its leases bill. So fields of a newer version are passed over, and a line
that cannot be read leaves the cluster as a *strange* one: its nodes are shown and can be given back, and nothing is
rented or given back by itself until somebody says anew what it should be.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from jupyter_gpumarket.api import Aim, ClusterWish, JournalLine
from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.models import ENDED_STATES, Lease

WISHED, ENDED, DECIDED = "cluster.wished", "cluster.ended", "cluster.decided"
KINDS = frozenset({WISHED, ENDED, DECIDED})
_WISH = msgspec.inspect.type_info(ClusterWish)


@dataclasses.dataclass
class Kept:
    """A cluster as it was left. `released`: nodes whose end was decided, whether or not it has come.

    `unread`: why its last wish cannot be read; `wish` is then an older one, or made from its leases.
    """

    name: str
    cluster_id: str
    wish: ClusterWish
    is_ended: bool = False
    released: set[str] = dataclasses.field(default_factory=set)
    unread: str = ""


def read(lines: Iterable[JournalLine], leases: Sequence[Lease]) -> list[Kept]:
    """The clusters, each as of its last line."""
    found: dict[str, Kept] = {}
    for line in lines:
        body = line.body if isinstance(line.body, dict) else {}
        kept = found.get(line.subject)
        if line.kind == WISHED:
            found[line.subject] = _wished(line, body, kept, leases)
        elif kept is not None and line.kind == ENDED:
            kept.is_ended = True
        elif kept is not None and body.get("cluster_id") == kept.cluster_id:
            release = body.get("release")
            kept.released.update(str(one) for one in (release if isinstance(release, list) else ()))
    return list(found.values())


def _wished(line: JournalLine, body: dict[str, Any], before: Kept | None, leases: Sequence[Lease]) -> Kept:
    """The cluster as of a wish for it: another one, or the same with another wish."""
    error, wish = "", None
    try:
        wish = msgspec.convert(known_part(body.get("wish"), _WISH), ClusterWish)
    except msgspec.ValidationError as wrong:
        error = str(wrong)
    told = body.get("cluster_id")
    if not isinstance(told, str) or not told:
        error, told = error or "it names no cluster", _cluster_in(line.subject, leases)
        told = told or (before.cluster_id if before is not None else f"{line.subject}-unknown")
    is_same = before is not None and before.cluster_id == told
    unread = _unread(line, error) if error else ""
    if wish is None or unread:
        wish = before.wish if before is not None and is_same else _from_leases(told, leases)
    if before is not None and is_same:
        return dataclasses.replace(before, wish=wish, unread=unread)
    return Kept(line.subject, told, wish, unread=unread)


def _unread(line: JournalLine, error: str) -> str:
    return (
        f"what was wished for the cluster {line.subject[:60]} at {iso_utc(line.at_ms)} cannot be read ({error}; entry "
        f"{line.seq} of the journal). Its nodes go on, and nothing is rented or given back by itself: say anew how "
        "many nodes it should have, or give it back"
    )


def known_part(value: Any, kind: msgspec.inspect.Type) -> Any:
    """A record's plain form without what this version does not know, also within it."""
    if isinstance(kind, msgspec.inspect.UnionType):
        records = [one for one in kind.types if isinstance(one, msgspec.inspect.StructType)]
        return known_part(value, records[0]) if len(records) == 1 else value
    if isinstance(kind, msgspec.inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        return {name: known_part(value[name], fields[name]) for name in value.keys() & fields.keys()}
    return value


def _cluster_in(name: str, leases: Sequence[Lease]) -> str:
    """The id of the newest cluster of this name that leases know; empty when none does."""
    of_name = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}")
    newest = sorted(leases, key=lambda lease: -lease.created_ms)
    return next((lease.request.cluster for lease in newest if of_name.fullmatch(lease.request.cluster)), "")


def _from_leases(cluster_id: str, leases: Sequence[Lease]) -> ClusterWish:
    """What its leases tell of a cluster's wish; nobody's consent to more than them."""
    own = [lease for lease in leases if lease.request.cluster == cluster_id]
    count = sum(lease.state not in ENDED_STATES for lease in own)
    newest = max(own, key=lambda lease: lease.created_ms).request if own else None
    wish = ClusterWish(
        aim=Aim(minimum=0, maximum=min(count, 1000)),
        budget_nusd=sum(lease.request.budget_nusd for lease in own),
        max_s=max((lease.request.max_s for lease in own), default=0),
    )
    if newest is None:
        return wish
    return msgspec.structs.replace(wish, query=newest.query, owner=newest.owner, grace_s=newest.grace_s)
