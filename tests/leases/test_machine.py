"""Every cell of the lease table, as a list that reads like one: state, event → state: instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_gpumarket.api import (
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
from jupyter_gpumarket.errors import InvalidTransition
from jupyter_gpumarket.leases import Policy, decisions, machine
from jupyter_gpumarket.leases.events import (
    EVENTS,
    DeadlineNear,
    DeadlineReached,
    Detached,
    Event,
    Extended,
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
from jupyter_gpumarket.models import (
    Attempt,
    Lease,
    LeaseGoal,
    LeaseState,
    NodeAddress,
    Notice,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
)
from tests.leases.fakes import offer, request

S = LeaseState
NOW_MS = 10_000_000
POLICY = Policy(max_attempts=2)
ADDRESS = NodeAddress(host="10.0.0.1", port=22, user="root", host_key="ssh-ed25519 A")
QUOTE = Quote(marketplace="fake", offer=offer(), price_nusd_hour=350_000_000, expires_ms=NOW_MS)
ORDER = [S.WISHED, S.QUOTING, S.RENTING, S.UNCONFIRMED, S.BOOTING, S.LINKING, S.PREPARING, S.PROBING, S.READY]
TRIED = Attempt(marketplace="fake", offer_id="o0", machine_id="m0", started_ms=1, ended_ms=2, reason="broken")


def rental(status: RentalStatus = RentalStatus.RUNNING, **changes: object) -> Rental:
    fields = {"marketplace": "fake", "rental_id": "r1", "label": "l1", "status": status, "address": ADDRESS}
    return Rental(**{**fields, "price_nusd_hour": 350_000_000, "kind": PriceKind.ON_DEMAND, **changes})


def lease_in(state: LeaseState, **changes: object) -> Lease:
    """A lease as it looks in a state, on its way there at one second a state."""
    rented = state not in (S.WISHED, S.QUOTING)
    known = rented and state not in (S.RENTING, S.UNCONFIRMED)
    way = ORDER[: ORDER.index(state) + 1] if state in ORDER else [*ORDER, state]
    fields: dict[str, object] = {
        "lease_id": "lease-1",
        "name": "node-1",
        "state": state,
        "request": request(),
        "created_ms": 1000,
        "changed_ms": 1000,
        "phases": {phase: 1000 * n for n, phase in enumerate(way, 1)},
    }
    if rented:
        fields |= {"label": "l1", "offer": offer(), "quote": QUOTE, "price_nusd_hour": 350_000_000}
        fields |= {"billed_from_ms": 3000, "deadline_ms": 3000 + 3600_000}
    if known:
        fields |= {"rental_id": "r1"}
    if S.LINKING in way:
        fields |= {"address": ADDRESS}
    if S.READY in way and state in (S.READY, S.UNREACHABLE):
        fields |= {"ready_ms": 9000}
    return Lease(**{**fields, **changes})


def fact(kind: type, **fields: object) -> Event:
    return kind(lease_id="lease-1", at_ms=NOW_MS, **fields)


EVENT: dict[str, Event] = {
    "taken_up": TakenUp(),
    "offer_chosen": OfferChosen(quote=QUOTE, label="l1"),
    "no_offer": NoOffer(reason="nothing fits"),
    "rented": Rented(rental=rental()),
    "rented booting": Rented(rental=rental(RentalStatus.PENDING, address=None)),
    "rented dearer": Rented(rental=rental(price_nusd_hour=700_000_000)),
    "rented spot": Rented(rental=rental(kind=PriceKind.SPOT)),
    "rent_refused": RentRefused(reason="taken"),
    "rent_unclear": RentUnclear(reason="502"),
    "rental_absent": RentalAbsent(),
    "rental_seen": RentalSeen(rental=rental()),
    "rental_seen booting": RentalSeen(rental=rental(RentalStatus.PENDING, address=None)),
    "rental_seen unknown": RentalSeen(
        rental=rental(RentalStatus.UNKNOWN, address=None, price_nusd_hour=None, kind=None)
    ),
    "rental_seen leaving": RentalSeen(rental=rental(ends_ms=2_000_000, ends_why="reclaimed")),
    "rental_seen failed": RentalSeen(rental=rental(RentalStatus.FAILED)),
    "rental_seen gone": RentalSeen(rental=rental(RentalStatus.GONE)),
    "rental_seen dearer": RentalSeen(rental=rental(price_nusd_hour=700_000_000)),
    "rental_seen cheaper": RentalSeen(rental=rental(price_nusd_hour=100_000_000)),
    "rental_seen negative": RentalSeen(rental=rental(price_nusd_hour=-1)),
    "release_unproven": ReleaseUnproven(reason="still there"),
    "detached": Detached(),
    "release_asked": ReleaseAsked(reason="enough"),
    "extended": Extended(max_s=7200, budget_nusd=2_000_000_000),
    "phase_time_up": PhaseTimeUp(),
    "deadline_reached": DeadlineReached(),
    "deadline_near": DeadlineNear(),
    "linked": fact(Linked, host_key="k", first_sight=True),
    "prepared": fact(Prepared, python="3.11", versions={}, steps_ms={}),
    "probed": fact(Probed, report={"gpu": "A"}, differences=()),
    "probed otherwise": fact(Probed, report={"gpu": "B"}, differences=("gpu: B instead of A",)),
    "node_failed": fact(NodeFailed, phase="preparing", reason="no python"),
    "node_failed not_its_fault": fact(NodeFailed, phase="preparing", reason="ours", blame_machine=False),
    "link_lost": fact(LinkLost, reason="cut"),
    "link_back": fact(LinkBack, same_boot=True),
    "node_idle": fact(NodeIdle, idle_since_ms=NOW_MS - 1),
    "node_leaving": fact(NodeLeaving, ends_ms=NOW_MS + 5_000, reason="SIGTERM"),
    "node_traffic": fact(NodeTraffic, received_bytes=5_000, sent_bytes=2**60),
    "node_idle long": fact(NodeIdle, idle_since_ms=NOW_MS - 1800_000),
}

LEASE = {
    "": {},
    "ending": {"goal": LeaseGoal.RELEASED, "reason": "enough"},
    "lost": {"goal": LeaseGoal.FAILED, "reason": "preempted"},
    "last": {"attempts": (TRIED,)},
    "asked": {"release_asks": 2},
    "warned": {"notice": Notice(ends_ms=2_500_000, reason="reclaimed", source="marketplace")},
    "nameless": {"offer": offer(machine_id="")},
    "poor": {"request": request(budget_nusd=50_000_000)},
}

# State [what is special to the lease] / event [variant] → state: instructions. Judge+ and Judge- remember the machine.
EXPECTED = """
wished / taken_up → quoting: FindOffer
wished / release_asked → released: WipeKey
wished / extended → wished:

quoting / taken_up → quoting: FindOffer
quoting / offer_chosen → renting: Rent
quoting / no_offer → failed: WipeKey
quoting / phase_time_up → failed: WipeKey
quoting / release_asked → released: WipeKey
quoting / extended → quoting:

renting / rented → linking: Attach Watch
renting / rented booting → booting: Watch
renting / rented dearer → releasing: Release Judge-
renting / rented spot → releasing: Release Judge-
renting ending / rented → releasing: Release
renting / rent_refused → quoting: FindOffer
renting last / rent_refused → failed: WipeKey
renting ending / rent_refused → released: WipeKey
renting / rent_unclear → unconfirmed: Search
renting / taken_up → unconfirmed: Search
renting / phase_time_up → unconfirmed: Search
renting / release_asked → renting:
renting / deadline_reached → renting:
renting ending / deadline_reached → renting:
renting / extended → renting:

unconfirmed / taken_up → unconfirmed: Search
unconfirmed / rental_seen → linking: Attach Watch
unconfirmed / rental_seen booting → booting: Watch
unconfirmed / rental_seen gone → releasing: Release Judge-
unconfirmed ending / rental_seen → releasing: Release
unconfirmed / rental_absent → quoting: FindOffer
unconfirmed last / rental_absent → failed: WipeKey
unconfirmed ending / rental_absent → released: WipeKey
unconfirmed / release_asked → unconfirmed:
unconfirmed / deadline_reached → unconfirmed:
unconfirmed / extended → unconfirmed:

booting / taken_up → booting: Watch
booting / rental_seen → linking: Attach Watch
booting / rental_seen booting → booting:
booting / rental_seen unknown → booting:
booting / rental_seen failed → releasing: Release Judge-
booting / rental_seen gone → releasing: Release Judge-
booting / rental_seen dearer → releasing: Release Judge-
booting nameless / rental_seen dearer → releasing: Release
booting / rental_seen negative → releasing: Release Judge-
booting / phase_time_up → releasing: Release Judge-
booting / release_asked → releasing: Release
booting / deadline_reached → releasing: Release
booting / extended → booting:

linking / taken_up → linking: Attach Watch
linking / node_traffic → linking:
linking / node_leaving → linking:
linking / linked → preparing: Watch
linking / prepared → probing: Watch
linking / probed → ready: SetDeadline Watch Judge+
linking / probed otherwise → draining: Detach Judge-
linking / node_failed → draining: Detach Judge-
linking / node_failed not_its_fault → draining: Detach
linking / rental_seen → linking:
linking / rental_seen gone → draining: Detach Judge-
linking / rental_seen dearer → draining: Detach Judge-
linking / phase_time_up → draining: Detach Judge-
linking / release_asked → draining: Detach
linking / deadline_reached → draining: Detach
linking / extended → linking:

preparing / taken_up → preparing: Attach Watch
preparing / node_traffic → preparing:
preparing / node_leaving → preparing:
preparing / prepared → probing: Watch
preparing / probed → ready: SetDeadline Watch Judge+
preparing / probed otherwise → draining: Detach Judge-
preparing / node_failed → draining: Detach Judge-
preparing / rental_seen → preparing:
preparing / rental_seen gone → draining: Detach Judge-
preparing / phase_time_up → draining: Detach Judge-
preparing / release_asked → draining: Detach
preparing / deadline_reached → draining: Detach
preparing / extended → preparing:

probing / taken_up → probing: Attach Watch
probing / node_traffic → probing:
probing / node_leaving → probing:
probing / rental_seen leaving → probing:
probing warned / probed → ready: SetDeadline Watch Warn Judge+
probing / probed → ready: SetDeadline Watch Judge+
probing / probed otherwise → draining: Detach Judge-
probing / node_failed → draining: Detach Judge-
probing / rental_seen → probing:
probing / rental_seen gone → draining: Detach Judge-
probing / phase_time_up → draining: Detach Judge-
probing / release_asked → draining: Detach
probing / deadline_reached → draining: Detach
probing / extended → probing:

ready / taken_up → ready: Attach SetDeadline Watch
ready / probed → ready:
ready / probed otherwise → draining: Detach Judge-
ready / link_lost → unreachable: SetDeadline Watch
ready / node_idle → ready:
ready / node_traffic → ready:
ready / node_leaving → ready: Warn
ready warned / node_leaving → ready:
ready / rental_seen leaving → ready: Warn
ready warned / rental_seen → ready: Warn
ready warned / rental_seen unknown → ready:
ready warned / link_lost → unreachable: SetDeadline Watch Warn
ready warned / release_asked → draining: Detach
ready warned / extended → ready: SetDeadline
ready / deadline_near → ready: Warn
ready warned / deadline_near → ready:
draining / node_traffic → draining:
ready / node_idle long → draining: Detach
ready / node_failed → draining: Detach Judge-
ready / rental_seen → ready:
ready poor / rental_seen cheaper → ready: SetDeadline
ready / rental_seen gone → draining: Detach
ready / rental_seen dearer → draining: Detach Judge-
ready / release_asked → draining: Detach
ready / deadline_reached → draining: Detach
ready / extended → ready: SetDeadline

unreachable / taken_up → unreachable: Attach SetDeadline Watch
unreachable / probed → unreachable:
unreachable / probed otherwise → draining: Detach Judge-
unreachable / node_traffic → unreachable:
unreachable / node_leaving → unreachable: Warn
unreachable / deadline_near → unreachable: Warn
unreachable / link_back → ready: SetDeadline Watch
unreachable / node_failed → draining: Detach Judge-
unreachable / rental_seen → unreachable:
unreachable / rental_seen gone → draining: Detach
unreachable / release_asked → draining: Detach
unreachable / deadline_reached → draining: Detach
unreachable / extended → unreachable: SetDeadline

draining / taken_up → draining: Detach
draining / detached → releasing: Release
draining / phase_time_up → releasing: Release
draining / rental_seen → draining:
draining / rental_seen gone → draining:
draining / release_asked → draining:
draining ending / release_asked → draining:

releasing / node_traffic → releasing:
releasing / taken_up → releasing: Release
releasing / rental_seen → releasing:
releasing / rental_seen gone → quoting: FindOffer
releasing last / rental_seen gone → failed: WipeKey
releasing ending / rental_seen gone → released: WipeKey
releasing lost / rental_seen gone → failed: WipeKey
releasing / release_unproven → releasing: Release
releasing asked / release_unproven → release_unconfirmed: Release
releasing / release_asked → releasing: Release

release_unconfirmed / taken_up → release_unconfirmed: Release
release_unconfirmed / rental_seen → release_unconfirmed:
release_unconfirmed / rental_seen gone → quoting: FindOffer
release_unconfirmed last / rental_seen gone → failed: WipeKey
release_unconfirmed ending / rental_seen gone → released: WipeKey
release_unconfirmed / release_unproven → release_unconfirmed: Release
release_unconfirmed / release_asked → release_unconfirmed: Release
"""
LINES = [line for line in EXPECTED.splitlines() if line]


def parts(line: str) -> tuple[str, str, str, str]:
    before, after = line.split(" → ")
    lease, event = before.split(" / ")
    state, _, instructions = after.partition(":")
    return lease, event, state, instructions.strip()


def given(lease: str) -> Lease:
    state, _, special = lease.partition(" ")
    return lease_in(LeaseState(state), **LEASE[special])


def words(instructions: tuple[object, ...]) -> str:
    return " ".join(
        f"Judge{'+' if i.good else '-'}" if type(i).__name__ == "Judge" else type(i).__name__  # type: ignore[attr-defined]
        for i in instructions
    )


@pytest.mark.parametrize("line", LINES)
def test_each_cell_decides_as_listed(line: str) -> None:
    """The list above is the machine."""
    lease, event, state, instructions = parts(line)

    after, told = machine.advance(given(lease), EVENT[event], POLICY, NOW_MS)

    assert (after.state.value, words(told)) == (state, instructions)


def test_the_list_has_every_cell_and_every_way_out_of_it() -> None:
    """Each cell that is not ignored, and each state it may lead to, is in the list."""
    listed: dict[tuple[str, str], set[str]] = {}
    for lease, event, state, _ in map(parts, LINES):
        listed.setdefault((lease.split(" ")[0], event.split(" ")[0]), set()).add(state)

    declared = {
        (state.value, event_name(event)): {target.value for target in step.to}
        for (state, event), step in machine.TABLE.items()
        if step.decide is not decisions.ignore
    }
    assert listed == declared


@pytest.mark.parametrize(
    ("state", "event"),
    [cell for cell, step in machine.TABLE.items() if step.decide is decisions.ignore],
    ids=lambda part: part.value if isinstance(part, LeaseState) else event_name(part),
)
def test_late_and_doubled_facts_change_nothing(state: LeaseState, event: type) -> None:
    """What the table ignores leaves the lease as it is, to the last field."""
    lease = lease_in(state)

    assert machine.advance(lease, EVENT[event_name(event)], POLICY, NOW_MS) == (lease, ())


def test_unknown_pairs_are_refused_with_the_story() -> None:
    """Each pair that is not in the table raises, and tells the lease's life."""
    unknown = [(state, event) for state in S for event in EVENTS if (state, event) not in machine.TABLE]

    for state, event in unknown:
        with pytest.raises(InvalidTransition, match="lease-1"):
            machine.advance(lease_in(state), EVENT[event_name(event)], POLICY, NOW_MS)
    assert len(unknown) + len(machine.TABLE) == len(S) * len(EVENTS)


def test_only_proof_ends_a_lease_that_may_bill() -> None:
    """From a state in which money may flow, only a refusal, proven absence or GONE lead to an end."""
    proofs = {RentRefused, RentalAbsent, RentalSeen}
    ends = {S.RELEASED, S.FAILED, S.QUOTING}

    wrong = [
        (state, event)
        for (state, event), step in machine.TABLE.items()
        if lease_in(state).may_bill and step.to & ends and event not in proofs
    ]
    assert wrong == []


def test_every_state_can_reach_an_end_and_be_taken_up() -> None:
    """No state is a dead end, and each open one goes on after a restart."""
    leads = {state: set().union(*(s.to for (at, _), s in machine.TABLE.items() if at is state)) for state in S}
    reached = {S.RELEASED, S.FAILED}
    for _ in S:
        reached |= {state for state in S if leads[state] & reached}

    assert reached == set(S)
    assert {state for state, event in machine.TABLE if event is TakenUp} == set(S) - {S.RELEASED, S.FAILED}


def test_billing_is_counted_from_before_the_call_to_the_proof() -> None:
    """`billed_from_ms` is when the wish to rent was written; `billed_to_ms` when the rental was seen to be gone."""
    renting, _ = machine.advance(lease_in(S.QUOTING), EVENT["offer_chosen"], POLICY, 5000)
    gone, _ = machine.advance(given("releasing ending"), EVENT["rental_seen gone"], POLICY, 8000)

    assert renting.billed_from_ms == 5000
    assert (gone.state, gone.billed_from_ms, gone.billed_to_ms) == (S.RELEASED, 3000, 8000)


def test_the_marketplaces_own_end_counts_where_it_tells_one() -> None:
    """An end that the marketplace tells is taken, kept within the span in which it can lie."""
    told = RentalSeen(rental=rental(RentalStatus.GONE, ended_ms=6000))
    lies = RentalSeen(rental=rental(RentalStatus.GONE, ended_ms=1))

    assert machine.advance(given("releasing ending"), told, POLICY, 8000)[0].billed_to_ms == 6000
    assert machine.advance(given("releasing ending"), lies, POLICY, 8000)[0].billed_to_ms == 3000


@pytest.mark.parametrize(("told_ms", "counted_ms"), [(1, 3000), (5000, 5000), (10**15, NOW_MS)])
def test_the_marketplaces_own_begin_counts_where_it_tells_one(told_ms: int, counted_ms: int) -> None:
    """A begin that the marketplace tells is taken, kept between the call and now; hours and budget are not longer."""
    before = lease_in(S.READY)
    seen = RentalSeen(rental=rental(RentalStatus.RUNNING, billed_from_ms=told_ms))

    after, _ = machine.advance(before, seen, POLICY, NOW_MS)

    assert (after.billed_from_ms, after.deadline_ms) == (counted_ms, before.deadline_ms)


def test_a_later_word_on_the_begin_of_a_bill_never_shortens_it() -> None:
    """First 5 s, then 6 s, then 4 s: a pod that was started anew tells its last start."""
    lease, counted = lease_in(S.READY), []
    for told_ms in (5000, 6000, 4000):
        seen = RentalSeen(rental=rental(RentalStatus.RUNNING, billed_from_ms=told_ms))
        lease, _ = machine.advance(lease, seen, POLICY, NOW_MS)
        counted.append(lease.billed_from_ms)

    assert counted == [5000, 5000, 4000]


def test_traffic_is_counted_until_the_books_close_and_never_shrinks() -> None:
    """What a node that began anew tells is not more than before; absurd amounts are cut to one that fits."""
    once, _ = machine.advance(lease_in(S.READY, received_bytes=9_000), EVENT["node_traffic"], POLICY, NOW_MS)
    late, _ = machine.advance(given("releasing ending"), EVENT["node_traffic"], POLICY, NOW_MS)

    assert (once.received_bytes, once.sent_bytes) == (9_000, 2**50)
    assert late.received_bytes == 5_000


def test_what_was_not_rented_is_not_billed() -> None:
    """A refused or absent rental leaves no billed span."""
    refused, _ = machine.advance(lease_in(S.RENTING), EVENT["rent_refused"], POLICY, NOW_MS)
    absent, _ = machine.advance(lease_in(S.UNCONFIRMED), EVENT["rental_absent"], POLICY, NOW_MS)

    assert [a.billed_from_ms for a in (*refused.attempts, *absent.attempts)] == [None, None]


def test_a_failed_attempt_moves_into_the_history_with_its_bill() -> None:
    """The next offer starts with clean fields, and the attempt keeps offer, rental, span and reason."""
    lease = lease_in(S.RELEASING, reason="not as sold: gpu")

    after, _ = machine.advance(lease, EVENT["rental_seen gone"], POLICY, NOW_MS)

    (attempt,) = after.attempts
    assert (attempt.rental_id, attempt.offer, attempt.reason) == ("r1", offer(), "not as sold: gpu")
    assert (attempt.billed_from_ms, attempt.billed_to_ms) == (3000, NOW_MS)
    assert (after.rental_id, after.label, after.offer, after.billed_from_ms, after.deadline_ms) == (
        "",
        "",
        None,
        None,
        None,
    )


def test_failed_attempts_use_up_the_budget() -> None:
    """The next attempt's deadline is paid from what the failed ones left."""
    spent = Attempt(
        marketplace="fake",
        offer_id="o0",
        machine_id="m0",
        started_ms=0,
        price_nusd_hour=3_600_000_000,
        offer=offer(0),
        billed_from_ms=0,
        billed_to_ms=900_000,
    )
    fresh, _ = machine.advance(lease_in(S.QUOTING), EVENT["offer_chosen"], POLICY, 0)
    poorer, _ = machine.advance(lease_in(S.QUOTING, attempts=(spent,)), EVENT["offer_chosen"], POLICY, 0)

    assert fresh.deadline_ms == 3_600_000
    assert poorer.deadline_ms == 100_000_000 * 3600 // 350_000_000 * 1000


def test_the_budget_and_the_hours_are_one_deadline() -> None:
    """Whichever is used up first ends the lease; new totals move it."""
    small = request(budget_nusd=350_000_000 // 4)
    lease, _ = machine.advance(lease_in(S.QUOTING, request=small), EVENT["offer_chosen"], POLICY, 0)
    longer, _ = machine.advance(lease, EVENT["extended"], POLICY, 0)

    assert lease.deadline_ms == 900_000
    assert longer.deadline_ms == 7_200_000


def test_phases_have_a_deadline_in_money_too() -> None:
    """While money flows, a phase may not use up more than its share of the budget."""
    dear = lease_in(S.BOOTING, price_nusd_hour=36_000_000_000)

    entered, _ = decisions.enter(dear, S.LINKING, decisions.At(now_ms=NOW_MS, policy=POLICY))

    assert entered.phase_deadline_ms == NOW_MS + 50_000


def test_facts_of_an_earlier_node_are_stale() -> None:
    """A fact from before this node was reached for, or of another rental, changes nothing."""
    lease = lease_in(S.LINKING, attempts=(TRIED,))
    old = Probed(lease_id="lease-1", at_ms=lease.phases[S.LINKING] - 1, report={}, differences=())
    other = RentalSeen(rental=rental(RentalStatus.GONE, rental_id="r0"))

    assert machine.advance(lease, old, POLICY, NOW_MS) == (lease, ())
    assert machine.advance(lease_in(S.LINKING), old, POLICY, NOW_MS)[0].state is S.READY
    assert machine.advance(lease, other, POLICY, NOW_MS) == (lease, ())


def test_a_phase_that_ran_out_while_no_broker_was_up_gets_a_moment() -> None:
    """Facts that wait in the cluster process are heard before the node is given up."""
    lease = lease_in(S.PREPARING, phase_deadline_ms=NOW_MS - 1)

    after, _ = machine.advance(lease, TakenUp(), POLICY, NOW_MS)

    assert after.phase_deadline_ms == NOW_MS + POLICY.take_up_s * 1000


def test_the_documented_diagram_is_the_table() -> None:
    """`docs/lease-life.md` shows the diagram that the table draws."""
    text = (Path(__file__).parents[2] / "docs" / "lease-life.md").read_text("utf-8")

    assert f"```mermaid\n{machine.diagram()}\n```" in text
