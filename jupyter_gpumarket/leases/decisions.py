"""The decisions behind the table of `machine`: each takes a lease, an event and the moment; pure."""

from __future__ import annotations

from typing import Any

import msgspec

from jupyter_gpumarket.api import LinkBack, Linked, NodeFailed, NodeIdle, NodeTraffic, Probed
from jupyter_gpumarket.leases import notices, terms
from jupyter_gpumarket.leases.events import (
    Attach,
    Detach,
    Extended,
    FindOffer,
    Instruction,
    Judge,
    NoOffer,
    OfferChosen,
    Release,
    ReleaseAsked,
    ReleaseUnproven,
    Rent,
    RentalAbsent,
    RentalSeen,
    Rented,
    RentRefused,
    RentUnclear,
    Search,
    SetDeadline,
    Watch,
    WipeKey,
)
from jupyter_gpumarket.leases.policy import Policy
from jupyter_gpumarket.models import Attempt, Lease, LeaseGoal, LeaseState, Record, RentalStatus

S = LeaseState
Outcome = tuple[Lease, tuple[Instruction, ...]]
# More than any lease moves: so that no node's word makes an amount that does not fit.
MOST_BYTES = 2**50
ATTACHED = (S.LINKING, S.PREPARING, S.PROBING, S.READY, S.UNREACHABLE)


class At(Record, frozen=True, kw_only=True):
    """The moment of a decision, and the limits that hold."""

    now_ms: int
    policy: Policy


# What an engine has to be doing in a state, whether the lease just came into it or the broker just started.
DUTIES: dict[LeaseState, tuple[Instruction, ...]] = {
    S.QUOTING: (FindOffer(),),
    S.RENTING: (Rent(),),
    S.UNCONFIRMED: (Search(),),
    S.BOOTING: (Watch(),),
    S.LINKING: (Attach(), Watch()),
    S.PREPARING: (Watch(),),
    S.PROBING: (Watch(),),
    S.READY: (SetDeadline(), Watch()),
    S.UNREACHABLE: (SetDeadline(), Watch()),
    S.DRAINING: (Detach(),),
    S.RELEASING: (Release(),),
    S.RELEASE_UNCONFIRMED: (Release(),),
    S.RELEASED: (WipeKey(),),
    S.FAILED: (WipeKey(),),
}


def changed(lease: Lease, **changes: Any) -> Lease:
    """A copy with some fields replaced."""
    return msgspec.structs.replace(lease, **changes)


def enter(lease: Lease, state: LeaseState, at: At, **changes: Any) -> Outcome:
    """Go into a state, with its deadline and its duties."""
    lease = changed(lease, **changes)
    first_ms = lease.phases.get(S.READY, at.now_ms) if state is S.READY else at.now_ms
    limit = terms.phase_deadline_ms(
        lease, state, at.now_ms, phase_s=at.policy.phase_s, budget_ppm=at.policy.phase_budget_ppm
    )
    entered = changed(lease, state=state, phases={**lease.phases, state: first_ms}, phase_deadline_ms=limit)
    return entered, (*DUTIES[state], *notices.warning(None, entered))


# ── nothing to do, or the same again ─────────────────────────────────────────────────────────────────────────────────


def ignore(lease: Lease, _event: Any, _at: At) -> Outcome:
    """A fact that may come late or twice, and changes nothing any more."""
    return lease, ()


def take_up(lease: Lease, _event: Any, at: At) -> Outcome:
    """Go on where the last engine stopped."""
    return in_time(lease, at), DUTIES[lease.state]


def take_up_node(lease: Lease, _event: Any, at: At) -> Outcome:
    """Go on with a node: its cluster process may be another one by now."""
    resume = lease.state in (S.READY, S.UNREACHABLE)
    duties = tuple(duty for duty in DUTIES[lease.state] if not isinstance(duty, Attach))
    return in_time(lease, at), (Attach(resume=resume), *duties)


def in_time(lease: Lease, at: At) -> Lease:
    """A phase whose time ran out while no broker was up gets a moment: what happened meanwhile is still to be told."""
    if lease.phase_deadline_ms is None:
        return lease
    return changed(lease, phase_deadline_ms=max(lease.phase_deadline_ms, at.now_ms + at.policy.take_up_s * 1000))


# ── before anything is rented ────────────────────────────────────────────────────────────────────────────────────────


def look_for_offer(lease: Lease, _event: Any, at: At) -> Outcome:
    return enter(lease, S.QUOTING, at)


def choose(lease: Lease, event: OfferChosen, at: At) -> Outcome:
    """The wish to rent is written, with its label, before the marketplace hears of it; billing is counted from here."""
    quote = event.quote
    lease = changed(
        lease,
        label=event.label,
        offer=quote.offer,
        quote=quote,
        price_nusd_hour=quote.price_nusd_hour,
        billed_from_ms=at.now_ms,
    )
    return enter(lease, S.RENTING, at, deadline_ms=terms.deadline_ms(lease))


def give_up(lease: Lease, event: NoOffer, at: At) -> Outcome:
    tried = tried_words(lease)
    return enter(lease, S.FAILED, at, goal=LeaseGoal.FAILED, reason=f"{event.reason}{tried}")


def quoting_time_up(lease: Lease, _event: Any, at: At) -> Outcome:
    reason = f"no offer could be quoted in time{tried_words(lease)}"
    return enter(lease, S.FAILED, at, goal=LeaseGoal.FAILED, reason=reason)


def release_unrented(lease: Lease, event: ReleaseAsked, at: At) -> Outcome:
    return enter(lease, S.RELEASED, at, goal=LeaseGoal.RELEASED, reason=event.reason)


# ── the create call and its outcome ──────────────────────────────────────────────────────────────────────────────────


def rented(lease: Lease, event: Rented | RentalSeen, at: At) -> Outcome:
    """A rental bears our label: adopt it, then look whether it is what was agreed and still wanted."""
    rental = event.rental
    price = lease.price_nusd_hour if rental.price_nusd_hour is None else max(0, rental.price_nusd_hour)
    lease = changed(lease, rental_id=rental.rental_id, price_nusd_hour=price)
    lease = changed(lease, deadline_ms=terms.deadline_ms(lease))
    if lease.goal is not LeaseGoal.NODE:
        return enter(lease, S.RELEASING, at)
    booting, duties = enter(lease, S.BOOTING, at, reason="")
    seen, instructions = seen_booting(booting, RentalSeen(rental=rental), at)
    return seen, instructions if seen.state is not S.BOOTING else duties


def refused(lease: Lease, event: RentRefused, at: At) -> Outcome:
    """Nothing was rented, so nothing is billed."""
    return end_attempt(changed(lease, billed_from_ms=None), event.reason, at)


def unclear(lease: Lease, event: RentUnclear, at: At) -> Outcome:
    return enter(lease, S.UNCONFIRMED, at, reason=reason_kept(lease, event.reason))


def unclear_after_crash(lease: Lease, _event: Any, at: At) -> Outcome:
    reason = "the broker stopped, or the marketplace did not answer, while the machine was being rented"
    return enter(lease, S.UNCONFIRMED, at, reason=reason_kept(lease, reason))


def absent(lease: Lease, _event: RentalAbsent, at: At) -> Outcome:
    reason = f"{lease.reason or 'the create call had no clear answer'}; nothing was rented"
    return end_attempt(changed(lease, billed_from_ms=None), reason, at)


def end_when_known(lease: Lease, event: ReleaseAsked, _at: At) -> Outcome:
    """Whether there is something to release is not known yet: remember the wish."""
    return changed(lease, goal=LeaseGoal.RELEASED, reason=event.reason), ()


def end_at_deadline_when_known(lease: Lease, _event: Any, _at: At) -> Outcome:
    if lease.goal is not LeaseGoal.NODE:
        return lease, ()
    return changed(lease, goal=LeaseGoal.RELEASED, reason=terms.deadline_words(lease)), ()


# ── a rented machine, until it is ready ──────────────────────────────────────────────────────────────────────────────


def seen_booting(lease: Lease, event: RentalSeen, at: At) -> Outcome:
    over = trouble(lease, event, at)
    if over is not None:
        return over
    lease = as_told(lease, event, at)
    address = event.rental.address
    if event.rental.status is not RentalStatus.RUNNING or address is None:
        return lease, ()
    return enter(lease, S.LINKING, at, address=address, host_key=address.host_key)


def seen_with_node(lease: Lease, event: RentalSeen, at: At) -> Outcome:
    over = trouble(lease, event, at)
    if over is not None:
        return over
    seen = notices.as_told(as_told(lease, event, at), event)
    moved = (SetDeadline(),) if seen.deadline_ms != lease.deadline_ms and terms.has_agent(lease) else ()
    return seen, (*moved, *notices.warning(lease, seen))


def linked(lease: Lease, event: Linked, at: At) -> Outcome:
    return enter(lease, S.PREPARING, at, host_key=event.host_key)


def prepared(lease: Lease, _event: Any, at: At) -> Outcome:
    return enter(lease, S.PROBING, at)


def probed(lease: Lease, event: Probed, at: At) -> Outcome:
    lease = changed(lease, probe=event.report)
    if event.differences:
        return fail_node(lease, f"not as sold: {'; '.join(event.differences)}", at, blame=True)
    ready, duties = enter(lease, S.READY, at, ready_ms=at.now_ms, reason="")
    return ready, (*duties, *judge(ready, good=True))


def phase_time_up(lease: Lease, _event: Any, at: At) -> Outcome:
    return fail_node(lease, f"was {lease.state.value} for too long", at, blame=True)


# ── a ready node ─────────────────────────────────────────────────────────────────────────────────────────────────────


def probed_again(lease: Lease, event: Probed, at: At) -> Outcome:
    if not event.differences:
        return lease, ()
    return fail_node(lease, f"not as sold: {'; '.join(event.differences)}", at, blame=True)


def node_failed(lease: Lease, event: NodeFailed, at: At) -> Outcome:
    return fail_node(lease, event.reason, at, blame=event.blame_machine)


def link_lost(lease: Lease, _event: Any, at: At) -> Outcome:
    return enter(lease, S.UNREACHABLE, at)


def link_back(lease: Lease, event: LinkBack, at: At) -> Outcome:
    """It answers again; one that said it would end, and was started anew, does not end for that any more."""
    return enter(lease if event.same_boot else notices.without(lease, "node"), S.READY, at)


def idle(lease: Lease, event: NodeIdle, at: At) -> Outcome:
    idle_ms = at.now_ms - event.idle_since_ms
    if not at.policy.idle_s or idle_ms < at.policy.idle_s * 1000:
        return lease, ()
    return finish(lease, LeaseGoal.RELEASED, f"no cell ran on it for {idle_ms // 60_000} min", at)


def traffic(lease: Lease, event: NodeTraffic, _at: At) -> Outcome:
    """Traffic in all so far: it never shrinks, whatever a node that has begun anew tells."""
    received, sent = (min(max(0, told), MOST_BYTES) for told in (event.received_bytes, event.sent_bytes))
    return changed(
        lease, received_bytes=max(lease.received_bytes, received), sent_bytes=max(lease.sent_bytes, sent)
    ), ()


# ── towards the end ──────────────────────────────────────────────────────────────────────────────────────────────────


def release(lease: Lease, event: ReleaseAsked, at: At) -> Outcome:
    return finish(lease, LeaseGoal.RELEASED, event.reason, at)


def deadline_reached(lease: Lease, _event: Any, at: At) -> Outcome:
    return finish(lease, LeaseGoal.RELEASED, terms.deadline_words(lease), at)


def extend(lease: Lease, event: Extended, _at: At) -> Outcome:
    request = msgspec.structs.replace(lease.request, max_s=event.max_s, budget_nusd=event.budget_nusd)
    before, lease = lease, changed(lease, request=request)
    lease = notices.without_own(changed(lease, deadline_ms=terms.deadline_ms(lease)))
    return lease, (SetDeadline(), *notices.warning(before, lease)) if terms.has_agent(lease) else ()


def want_end(lease: Lease, event: ReleaseAsked, _at: At) -> Outcome:
    """It is ending already; from now on without a next offer."""
    if lease.goal is LeaseGoal.RELEASED:
        return lease, ()
    return changed(lease, goal=LeaseGoal.RELEASED, reason=event.reason), ()


def want_end_now(lease: Lease, event: ReleaseAsked, at: At) -> Outcome:
    """Asked again while the end is not proven: try at once, whatever the back-off."""
    return want_end(lease, event, at)[0], (Release(),)


def detached(lease: Lease, _event: Any, at: At) -> Outcome:
    return enter(lease, S.RELEASING, at)


def seen_gone_early(lease: Lease, event: RentalSeen, at: At) -> Outcome:
    return marked_gone(lease, event, at), ()


def seen_releasing(lease: Lease, event: RentalSeen, at: At) -> Outcome:
    """Only the marketplace's word that the rental is gone ends the billing."""
    if event.rental.status is not RentalStatus.GONE:
        return lease, ()
    return end_attempt(marked_gone(lease, event, at), lease.reason, at)


def unproven(lease: Lease, _event: ReleaseUnproven, at: At) -> Outcome:
    asks = lease.release_asks + 1
    if asks < at.policy.show_unconfirmed_after or lease.state is S.RELEASE_UNCONFIRMED:
        return changed(lease, release_asks=asks), (Release(patient=True),)
    return enter(lease, S.RELEASE_UNCONFIRMED, at, release_asks=asks)[0], (Release(patient=True),)


# ── shared pieces ────────────────────────────────────────────────────────────────────────────────────────────────────


def trouble(lease: Lease, event: RentalSeen, at: At) -> Outcome | None:
    """What ends a rental by the marketplace's own word: it is gone, has failed, or breaks the quote."""
    rental = event.rental
    if rental.status is RentalStatus.GONE:
        words = "the marketplace ended the rental" + (f": {rental.detail}" if rental.detail else "")
        return fail_node(marked_gone(lease, event, at), words, at, blame=lease.ready_ms is None)
    if rental.status is RentalStatus.FAILED:
        words = "the marketplace could not start it" + (f": {rental.detail}" if rental.detail else "")
        return fail_node(lease, words, at, blame=True)
    assert lease.quote is not None
    broken = terms.breach(rental, lease.quote, lease.request.price_tolerance_ppm)
    if broken:
        return fail_node(as_told(lease, event, at), broken, at, blame=True)
    return None


def as_told(lease: Lease, event: RentalSeen, at: At) -> Lease:
    """Price and begin of the bill as the marketplace tells them now: all that is counted is counted by them."""
    lease = begun_as_told(lease, event, at)
    price = event.rental.price_nusd_hour
    if price is None or price < 0 or price == lease.price_nusd_hour:
        return lease
    lease = changed(lease, price_nusd_hour=price)
    return notices.without_own(changed(lease, deadline_ms=terms.deadline_ms(lease)))


def begun_as_told(lease: Lease, event: RentalSeen, at: At) -> Lease:
    """A bill that begins later than the call, kept within the span in which it can begin; the deadline stays.

    The first word counts, and later ones only where they make the bill longer: a machine that was started anew may be
    told with its last start, and was billed before it.
    """
    told_ms = event.rental.billed_from_ms
    if told_ms is None or lease.billed_from_ms is None:
        return lease
    called_ms = terms.called_ms(lease)
    latest_ms = at.now_ms if lease.billed_from_ms <= called_ms else min(lease.billed_from_ms, at.now_ms)
    return changed(lease, billed_from_ms=max(called_ms, min(told_ms, latest_ms)))


def marked_gone(lease: Lease, event: RentalSeen, at: At) -> Lease:
    """Billing ends when the marketplace says it did, and else when we first heard that the rental is gone."""
    if event.rental.status is not RentalStatus.GONE or lease.billed_to_ms is not None:
        return lease
    lease = begun_as_told(lease, event, at)
    from_ms = at.now_ms if lease.billed_from_ms is None else lease.billed_from_ms
    told_ms = at.now_ms if event.rental.ended_ms is None else event.rental.ended_ms
    return changed(lease, billed_to_ms=max(from_ms, min(told_ms, at.now_ms)))


def fail_node(lease: Lease, reason: str, at: At, *, blame: bool) -> Outcome:
    """This node is not to be used: give it back; before `ready` the next offer follows."""
    goal = LeaseGoal.NODE if lease.ready_ms is None else LeaseGoal.FAILED
    lease, instructions = finish(lease, goal, reason, at)
    return lease, (*instructions, *(judge(lease, good=False, reason=reason) if blame else ()))


def finish(lease: Lease, goal: LeaseGoal, reason: str, at: At) -> Outcome:
    """Give the rental back; a node that somebody is attached to is told first."""
    state = S.DRAINING if lease.state in ATTACHED else S.RELEASING
    return enter(lease, state, at, goal=goal, reason=reason, release_asks=0)


def judge(lease: Lease, *, good: bool, reason: str = "") -> tuple[Judge, ...]:
    """Remember the machine, where the marketplace tells which one it is."""
    offer = lease.offer
    if offer is None or not offer.machine_id:
        return ()
    return (Judge(marketplace=offer.marketplace, machine_id=offer.machine_id, good=good, reason=reason),)


def end_attempt(lease: Lease, reason: str, at: At) -> Outcome:
    """Nothing is rented (any more): the lease ends, or goes on with the next offer."""
    if lease.billed_from_ms is not None and lease.billed_to_ms is None:
        lease = changed(lease, billed_to_ms=at.now_ms)
    if lease.goal is LeaseGoal.RELEASED:
        return enter(lease, S.RELEASED, at)
    if lease.goal is LeaseGoal.FAILED:
        return enter(lease, S.FAILED, at)
    lease = attempt_moved(lease, reason, at)
    if len(lease.attempts) < at.policy.max_attempts:
        return enter(lease, S.QUOTING, at)
    words = f"{len(lease.attempts)} offers were tried and none led to a ready node{tried_words(lease)}"
    return enter(lease, S.FAILED, at, goal=LeaseGoal.FAILED, reason=words)


def attempt_moved(lease: Lease, reason: str, at: At) -> Lease:
    """Move the current attempt into the history and clear its fields."""
    assert lease.offer is not None
    begun = lease.phases.get(S.RENTING, lease.created_ms)
    attempt = Attempt(
        marketplace=lease.offer.marketplace,
        offer_id=lease.offer.offer_id,
        machine_id=lease.offer.machine_id,
        started_ms=begun,
        ended_ms=at.now_ms,
        ended_in=last_phase(lease),
        reason=reason,
        rental_id=lease.rental_id,
        price_nusd_hour=lease.price_nusd_hour,
        billed_from_ms=lease.billed_from_ms,
        billed_to_ms=lease.billed_to_ms,
        offer=lease.offer,
    )
    return changed(
        lease,
        attempts=(*lease.attempts, attempt),
        label="",
        offer=None,
        quote=None,
        rental_id="",
        price_nusd_hour=0,
        address=None,
        host_key=None,
        deadline_ms=None,
        billed_from_ms=None,
        billed_to_ms=None,
        release_asks=0,
        received_bytes=0,
        sent_bytes=0,
        probe={},
        phases={},
        notice=None,
    )


def last_phase(lease: Lease) -> LeaseState:
    """How far the attempt came: the last state on the way up."""
    upwards = [S.RENTING, S.UNCONFIRMED, S.BOOTING, S.LINKING, S.PREPARING, S.PROBING, S.READY]
    return next((state for state in reversed(upwards) if state in lease.phases), S.RENTING)


def tried_words(lease: Lease) -> str:
    """What became of the earlier attempts, for people."""
    if not lease.attempts:
        return ""
    lines = (f"{a.marketplace} {a.machine_id or a.offer_id}: {a.reason}" for a in lease.attempts)
    return " (tried: " + "; ".join(lines) + ")"


def reason_kept(lease: Lease, reason: str) -> str:
    """Somebody's wish to end the lease stays its reason."""
    return reason if lease.goal is LeaseGoal.NODE else lease.reason
