"""The life of a lease: one table of (state, event) → decision. Pure and total; the engine performs what it says.

Rules that this table and the engine hold together (tests/leases/simulation checks them after every step):

1. The wish to rent, with its label, is written before the marketplace is called. A create call is never repeated: after
   an unclear answer, or a crash while renting, the lease is UNCONFIRMED until the label is found or proven absent.
2. At most one live rental bears a label; one offer is bought by one lease at a time.
3. A lease is RELEASED or FAILED only when nothing was rented or the marketplace has said that the rental is gone.
4. A rental with our label that no open lease knows is an orphan, and is released by the sweep.
5. A rental that is dearer, or less firm, than quoted is given back at once.
6. Each phase before READY has a deadline in time and in money; then the machine is remembered as bad and the next offer
   follows.
7. The agreed hours and the budget are one deadline; the node keeps it by itself, and so does this side, a moment
   earlier, so that what cells have declared as outputs can be brought over before it.
8. A notice (the marketplace, the node, or the deadline says that the node will end) changes no state: it is kept with
   the lease and passed on to whoever works on the node.

An event that a state does not know is a bug of ours and raises `InvalidTransition` with the lease's story. What may
legitimately come late or twice is in the table as `ignore`. Wishes (release, extend) that a state cannot take are
refused by the engine before they come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jupyter_gpumarket.api import (
    Fact,
    LinkBack,
    Linked,
    LinkLost,
    NodeFailed,
    NodeIdle,
    NodeLeaving,
    NodeTraffic,
    Prepared,
    Probed,
)
from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.errors import InvalidTransition
from jupyter_gpumarket.leases import decisions as d
from jupyter_gpumarket.leases import notices, terms
from jupyter_gpumarket.leases.events import (
    CLUSTER_FACTS,
    DeadlineNear,
    DeadlineReached,
    Detached,
    Event,
    Extended,
    Instruction,
    NoOffer,
    OfferChosen,
    PhaseTimeUp,
    ReleaseAsked,
    ReleaseUnproven,
    RentalAbsent,
    RentalSeen,
    Rented,
    RentRefused,
    RentUnclear,
    TakenUp,
    event_name,
)
from jupyter_gpumarket.leases.policy import Policy
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseGoal, LeaseState

S = LeaseState


class Step(NamedTuple):
    """One cell of the table: who decides, and which states may follow."""

    decide: Callable[[Lease, Any, d.At], d.Outcome]
    to: frozenset[LeaseState]


Row = dict[type, Step]


def to(decide: Callable[[Lease, Any, d.At], d.Outcome], *states: LeaseState) -> Step:
    """A cell, in the words of the table."""
    return Step(decide, frozenset(states))


def stay(*events: type, at: LeaseState) -> Row:
    """Cells for events that change nothing any more."""
    return dict.fromkeys(events, to(d.ignore, at))


NEXT = (S.QUOTING, S.RELEASED, S.FAILED)  # after an attempt: the next offer, or the end
GIVE_BACK = (S.DRAINING,)

WISHED: Row = {
    TakenUp: to(d.look_for_offer, S.QUOTING),
    ReleaseAsked: to(d.release_unrented, S.RELEASED),
    Extended: to(d.extend, S.WISHED),
}

QUOTING: Row = {
    **stay(*CLUSTER_FACTS, at=S.QUOTING),
    TakenUp: to(d.take_up, S.QUOTING),
    OfferChosen: to(d.choose, S.RENTING),
    NoOffer: to(d.give_up, S.FAILED),
    PhaseTimeUp: to(d.quoting_time_up, S.FAILED),
    ReleaseAsked: to(d.release_unrented, S.RELEASED),
    Extended: to(d.extend, S.QUOTING),
}

RENTING: Row = {
    **stay(*CLUSTER_FACTS, at=S.RENTING),
    Rented: to(d.rented, S.BOOTING, S.LINKING, S.RELEASING),
    RentRefused: to(d.refused, *NEXT),
    RentUnclear: to(d.unclear, S.UNCONFIRMED),
    TakenUp: to(d.unclear_after_crash, S.UNCONFIRMED),
    PhaseTimeUp: to(d.unclear_after_crash, S.UNCONFIRMED),
    ReleaseAsked: to(d.end_when_known, S.RENTING),
    DeadlineReached: to(d.end_at_deadline_when_known, S.RENTING),
    Extended: to(d.extend, S.RENTING),
}

UNCONFIRMED: Row = {
    **stay(*CLUSTER_FACTS, at=S.UNCONFIRMED),
    TakenUp: to(d.take_up, S.UNCONFIRMED),
    RentalSeen: to(d.rented, S.BOOTING, S.LINKING, S.RELEASING),
    RentalAbsent: to(d.absent, *NEXT),
    ReleaseAsked: to(d.end_when_known, S.UNCONFIRMED),
    DeadlineReached: to(d.end_at_deadline_when_known, S.UNCONFIRMED),
    Extended: to(d.extend, S.UNCONFIRMED),
}

BOOTING: Row = {
    **stay(*CLUSTER_FACTS, at=S.BOOTING),
    TakenUp: to(d.take_up, S.BOOTING),
    RentalSeen: to(d.seen_booting, S.BOOTING, S.LINKING, S.RELEASING),
    PhaseTimeUp: to(d.phase_time_up, S.RELEASING),
    ReleaseAsked: to(d.release, S.RELEASING),
    DeadlineReached: to(d.deadline_reached, S.RELEASING),
    Extended: to(d.extend, S.BOOTING),
}


def attached(state: LeaseState, special: Row) -> Row:
    """A node that a cluster process looks after: what may happen in each such state, and what is special to one."""
    return {
        **stay(Linked, Prepared, LinkLost, LinkBack, NodeIdle, at=state),
        NodeTraffic: to(d.traffic, state),
        NodeLeaving: to(notices.node_leaving, state),
        TakenUp: to(d.take_up_node, state),
        RentalSeen: to(d.seen_with_node, state, *GIVE_BACK),
        NodeFailed: to(d.node_failed, *GIVE_BACK),
        ReleaseAsked: to(d.release, *GIVE_BACK),
        DeadlineReached: to(d.deadline_reached, *GIVE_BACK),
        Extended: to(d.extend, state),
        **special,
    }


# A fact further on than the state expects means that a fact between was told to an earlier broker: it counts as told.
LINKING = attached(
    S.LINKING,
    {
        Linked: to(d.linked, S.PREPARING),
        Prepared: to(d.prepared, S.PROBING),
        Probed: to(d.probed, S.READY, *GIVE_BACK),
        PhaseTimeUp: to(d.phase_time_up, *GIVE_BACK),
    },
)
PREPARING = attached(
    S.PREPARING,
    {
        Prepared: to(d.prepared, S.PROBING),
        Probed: to(d.probed, S.READY, *GIVE_BACK),
        PhaseTimeUp: to(d.phase_time_up, *GIVE_BACK),
    },
)
PROBING = attached(
    S.PROBING,
    {
        Probed: to(d.probed, S.READY, *GIVE_BACK),
        PhaseTimeUp: to(d.phase_time_up, *GIVE_BACK),
    },
)
READY = attached(
    S.READY,
    {
        Probed: to(d.probed_again, S.READY, *GIVE_BACK),
        LinkLost: to(d.link_lost, S.UNREACHABLE),
        DeadlineNear: to(notices.deadline_near, S.READY),
        NodeIdle: to(d.idle, S.READY, *GIVE_BACK),
    },
)
UNREACHABLE = attached(
    S.UNREACHABLE,
    {
        Probed: to(d.probed_again, S.UNREACHABLE, *GIVE_BACK),
        LinkBack: to(d.link_back, S.READY),
        DeadlineNear: to(notices.deadline_near, S.UNREACHABLE),
    },
)

DRAINING: Row = {
    **stay(*CLUSTER_FACTS, at=S.DRAINING),
    NodeTraffic: to(d.traffic, S.DRAINING),
    TakenUp: to(d.take_up, S.DRAINING),
    Detached: to(d.detached, S.RELEASING),
    PhaseTimeUp: to(d.detached, S.RELEASING),
    RentalSeen: to(d.seen_gone_early, S.DRAINING),
    ReleaseAsked: to(d.want_end, S.DRAINING),
}

RELEASING: Row = {
    **stay(*CLUSTER_FACTS, at=S.RELEASING),
    NodeTraffic: to(d.traffic, S.RELEASING),
    TakenUp: to(d.take_up, S.RELEASING),
    RentalSeen: to(d.seen_releasing, S.RELEASING, *NEXT),
    ReleaseUnproven: to(d.unproven, S.RELEASING, S.RELEASE_UNCONFIRMED),
    ReleaseAsked: to(d.want_end_now, S.RELEASING),
}

RELEASE_UNCONFIRMED: Row = {
    **stay(*CLUSTER_FACTS, at=S.RELEASE_UNCONFIRMED),
    TakenUp: to(d.take_up, S.RELEASE_UNCONFIRMED),
    RentalSeen: to(d.seen_releasing, S.RELEASE_UNCONFIRMED, *NEXT),
    ReleaseUnproven: to(d.unproven, S.RELEASE_UNCONFIRMED),
    ReleaseAsked: to(d.want_end_now, S.RELEASE_UNCONFIRMED),
}

RELEASED: Row = stay(*CLUSTER_FACTS, ReleaseAsked, at=S.RELEASED)
FAILED: Row = stay(*CLUSTER_FACTS, ReleaseAsked, at=S.FAILED)


def table(rows: Iterable[tuple[LeaseState, Row]]) -> dict[tuple[LeaseState, type], Step]:
    """The rows as one mapping."""
    return {(state, event): step for state, row in rows for event, step in row.items()}


TABLE = table(
    [
        (S.WISHED, WISHED),
        (S.QUOTING, QUOTING),
        (S.RENTING, RENTING),
        (S.UNCONFIRMED, UNCONFIRMED),
        (S.BOOTING, BOOTING),
        (S.LINKING, LINKING),
        (S.PREPARING, PREPARING),
        (S.PROBING, PROBING),
        (S.READY, READY),
        (S.UNREACHABLE, UNREACHABLE),
        (S.DRAINING, DRAINING),
        (S.RELEASING, RELEASING),
        (S.RELEASE_UNCONFIRMED, RELEASE_UNCONFIRMED),
        (S.RELEASED, RELEASED),
        (S.FAILED, FAILED),
    ]
)


def advance(lease: Lease, event: Event, policy: Policy, now_ms: int) -> tuple[Lease, tuple[Instruction, ...]]:
    """What an event makes of a lease, and what is to be done now. The same lease and no instructions: nothing.

    Raises:
        InvalidTransition: the state does not know the event; carries the lease's story.
    """
    step = TABLE.get((lease.state, type(event)))
    if step is None:
        raise InvalidTransition(f"{event_name(type(event))} cannot happen to a {lease.state.value} lease", story(lease))
    if is_stale(lease, event):
        return lease, ()
    after, instructions = step.decide(lease, event, d.At(now_ms=now_ms, policy=policy))
    if after.state not in step.to:
        raise InvalidTransition(
            f"{event_name(type(event))} led from {lease.state.value} to {after.state.value}, which is not in the table",
            story(lease),
        )
    return (after if after == lease else d.changed(after, changed_ms=now_ms)), instructions


def is_stale(lease: Lease, event: Event) -> bool:
    """Whether an event is about an earlier attempt: another rental, or a node from before this one was reached for.

    Times from before the lease itself only tell that somebody has set the clock back.
    """
    if isinstance(event, RentalSeen):
        return bool(lease.rental_id) and event.rental.rental_id != lease.rental_id
    if not isinstance(event, Fact) or not lease.attempts or S.LINKING not in lease.phases:
        return False
    return lease.created_ms <= event.at_ms < lease.phases[S.LINKING]


def due(lease: Lease) -> tuple[tuple[int, Event], ...]:
    """The deadlines of a lease and what each means; none when time alone changes nothing."""
    candidates: list[tuple[int, Event]] = []
    if lease.phase_deadline_ms is not None and (lease.state, PhaseTimeUp) in TABLE:
        candidates.append((lease.phase_deadline_ms, PhaseTimeUp()))
    wanted = lease.goal is LeaseGoal.NODE
    if wanted and lease.deadline_ms is not None and (lease.state, DeadlineReached) in TABLE:
        is_attached = (lease.state, DeadlineNear) in TABLE
        candidates.append((terms.give_back_ms(lease) if is_attached else lease.deadline_ms, DeadlineReached()))
        if is_attached and lease.notice is None:
            candidates.append((terms.near_ms(lease), DeadlineNear()))
    return tuple(candidates)


def may_extend(lease: Lease) -> bool:
    """Whether new totals of time and money still mean something."""
    return lease.goal is LeaseGoal.NODE and (lease.state, Extended) in TABLE


def story(lease: Lease) -> str:
    """The lease's life so far, a line for each thing, for people who look for a bug."""
    lines = [f"lease {lease.lease_id} ({lease.name}), wished {iso_utc(lease.created_ms)}, goal {lease.goal.value}"]
    lines += [
        f"  {iso_utc(a.started_ms)} tried {a.marketplace} {a.offer_id}, came to {a.ended_in}: {a.reason}"
        for a in lease.attempts
    ]
    lines += [f"  {iso_utc(at_ms)} {phase}" for phase, at_ms in sorted(lease.phases.items(), key=lambda p: p[1])]
    lines.append(f"  now {lease.state.value}, rental {lease.rental_id or 'none'}: {lease.reason or 'no reason told'}")
    return "\n".join(lines)


def diagram() -> str:
    """The table as a Mermaid state diagram, without what changes no state."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), step in TABLE.items():
        for target in step.to - {state}:
            arrows.setdefault((state.value, target.value), []).append(event_name(event))
    lines = ["stateDiagram-v2", f"    [*] --> {S.WISHED.value}"]
    order = [state.value for state in S]
    pairs = sorted(arrows, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    lines += [f"    {pair[0]} --> {pair[1]}: {', '.join(sorted(arrows[pair]))}" for pair in pairs]
    lines += [f"    {ended.value} --> [*]" for ended in S if ended in ENDED_STATES]
    return "\n".join(lines)
