"""Notices in a lease's life: somebody says that the node will end soon. Pure, like the decisions that use it.

A notice changes no state. It is kept with the lease, shown to people, and passed on to the cluster process, which moves
what the node holds; the broker rents another node where a cluster is to keep its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jupyter_gpumarket.api import NodeLeaving
from jupyter_gpumarket.leases import terms
from jupyter_gpumarket.leases.events import Instruction, RentalSeen, Warn
from jupyter_gpumarket.models import Lease, Notice, RentalStatus

if TYPE_CHECKING:
    from jupyter_gpumarket.leases.decisions import At

MOST_REASON = 500
Outcome = tuple[Lease, tuple[Instruction, ...]]


def node_leaving(lease: Lease, event: NodeLeaving, at: At) -> Outcome:
    """The node is being shut down; its word on when is kept between now and the lease's own deadline."""
    ends_ms = max(at.now_ms, min(event.ends_ms, lease.deadline_ms or event.ends_ms))
    return told(lease, noticed(lease, Notice(ends_ms=ends_ms, reason=event.reason, source="node")))


def deadline_near(lease: Lease, _event: Any, _at: At) -> Outcome:
    """Hours or budget will soon be used up."""
    assert lease.deadline_ms is not None, "what is near has a time"
    notice = Notice(ends_ms=lease.deadline_ms, reason=terms.deadline_words(lease, is_ahead=True), source="deadline")
    return told(lease, noticed(lease, notice))


def as_told(lease: Lease, event: RentalSeen) -> Lease:
    """What the marketplace says of the rental's end: a notice, or (while it runs) none any more."""
    rental = event.rental
    if rental.ends_ms is not None and (lease.deadline_ms is None or rental.ends_ms < lease.deadline_ms):
        reason = rental.ends_why or "the marketplace ends the rental"
        return noticed(lease, Notice(ends_ms=rental.ends_ms, reason=reason, source="marketplace"))
    is_withdrawn = rental.ends_ms is None and rental.status is RentalStatus.RUNNING
    return without(lease, "marketplace") if is_withdrawn else lease


def noticed(lease: Lease, notice: Notice) -> Lease:
    """Keep a notice: each source's latest word, and of several sources the earliest end. The words are a stranger's."""
    notice = msgspec.structs.replace(notice, reason=plain(notice.reason))
    known = lease.notice
    if known is not None and known.source != notice.source and known.ends_ms <= notice.ends_ms:
        return lease
    return msgspec.structs.replace(lease, notice=notice)


def plain(text: str) -> str:
    """A line of text that can be shown anywhere: no control characters, and not too long."""
    return "".join(char if char.isprintable() else " " for char in text[:MOST_REASON])


def without_own(lease: Lease) -> Lease:
    """A deadline that has moved is not near any more, as far as is known."""
    return without(lease, "deadline")


def without(lease: Lease, source: str) -> Lease:
    """A source has taken its word back."""
    if lease.notice is None or lease.notice.source != source:
        return lease
    return msgspec.structs.replace(lease, notice=None)


def told(before: Lease, after: Lease) -> Outcome:
    """The lease, and the word to whoever works on its node."""
    return after, warning(before, after)


def warning(before: Lease | None, after: Lease) -> tuple[Instruction, ...]:
    """Whoever works on the node is told once it is ready, and whenever the notice changes."""
    known = before.notice if before is not None else None
    return (Warn(),) if known != after.notice and terms.has_agent(after) else ()
