"""Each defence, switched off at a seam. The simulation must see the harm, or it could not see its absence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from jupyter_gpumarket.api import JournalLine
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.leases import LeaseEngine, Policy, machine
from jupyter_gpumarket.leases.events import (
    Event,
    Instruction,
    ReleaseUnproven,
    Rent,
    RentalSeen,
    Rented,
    RentUnclear,
    TakenUp,
    Warn,
)
from jupyter_gpumarket.models import Lease, LeaseState, Rental, RentalStatus
from tests.leases.simulation.cloud import NAME
from tests.leases.simulation.world import POLICY, Defences

Decision = tuple[Lease, tuple[Instruction, ...]]


def blind_retry(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """An unclear create call is simply made again."""
    if lease.state is LeaseState.RENTING and isinstance(event, RentUnclear):
        return lease, (Rent(),)
    return machine.advance(lease, event, policy, now_ms)


def retry_after_crash(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """A broker that crashed while renting rents again."""
    if lease.state is LeaseState.RENTING and isinstance(event, TakenUp):
        return lease, (Rent(),)
    return machine.advance(lease, event, policy, now_ms)


def believe_release(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """A release call that was answered is taken for the end."""
    if isinstance(event, ReleaseUnproven):
        gone = Rental(marketplace=NAME, rental_id=lease.rental_id, label=lease.label, status=RentalStatus.GONE)
        return machine.advance(lease, RentalSeen(rental=gone), policy, now_ms)
    return machine.advance(lease, event, policy, now_ms)


def no_read_back(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """Price and kind of the rental are not looked at."""
    if isinstance(event, Rented | RentalSeen):
        event = msgspec.structs.replace(
            event, rental=msgspec.structs.replace(event.rental, price_nusd_hour=None, kind=None)
        )
    return machine.advance(lease, event, policy, now_ms)


def no_deadline(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """Hours and budget lead to no deadline."""
    after, instructions = machine.advance(lease, event, policy, now_ms)
    if after.deadline_ms is not None:
        after = msgspec.structs.replace(after, deadline_ms=2**53)
    return after, instructions


def bill_from_answer(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """Billing is counted from the marketplace's answer instead of from before the call."""
    after, instructions = machine.advance(lease, event, policy, now_ms)
    if isinstance(event, Rented) and after.billed_from_ms is not None:
        after = msgspec.structs.replace(after, billed_from_ms=now_ms)
    return after, instructions


def silent_about_notices(lease: Lease, event: Event, policy: Policy, now_ms: int) -> Decision:
    """A notice is kept, and nobody who works on the node hears of it."""
    after, instructions = machine.advance(lease, event, policy, now_ms)
    return after, tuple(one for one in instructions if not isinstance(one, Warn))


class LazyStore:
    """Writes the wish to rent only together with what comes of it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._held: list[NewEntry] = []
        self._seq = 0

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        if entries[0].kind == "lease.offer_chosen":
            self._held += entries
            return [JournalLine(seq=0, at_ms=0, kind=entries[0].kind, subject=entries[0].subject, body={})]
        held, self._held = self._held, []
        lines: list[JournalLine] = self._store.append([*held, *entries])
        return lines[len(held) :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class NoLocks:
    """Everybody may buy everything."""

    def take(self, marketplace: str, offer_id: str, lease_id: str) -> bool:
        return True

    def free(self, lease_id: str) -> None:
        return None


def without_locks(engine: LeaseEngine) -> None:
    engine._locks = engine._activities._locks = NoLocks()  # type: ignore[assignment]


def own_by_prefix(engine: LeaseEngine) -> None:
    engine._sweep._is_ours = lambda label: label.startswith("gpum-")


def without_recovery(engine: LeaseEngine) -> None:
    engine._begin = lambda lease_id: None  # type: ignore[method-assign]


def policy(**changes: Any) -> Policy:
    return msgspec.structs.replace(POLICY, **changes)


# Defence off → the rules of which at least one must be seen broken.
CONTROLS: dict[str, tuple[Defences, set[str]]] = {
    "create calls are repeated": (Defences(decide=blind_retry), {"one rental per label"}),
    "create calls are repeated after a crash": (Defences(decide=retry_after_crash), {"one rental per label"}),
    "the wish is written late": (Defences(store=LazyStore), {"journal first"}),
    "offers are not locked": (Defences(adjust=without_locks), {"one buyer per offer"}),
    "releases are believed": (Defences(decide=believe_release), {"released means gone"}),
    "no sweep": (Defences(policy=policy(sweep_every_s=10_000_000)), {"known or found", "all ends"}),
    "ours by prefix": (Defences(adjust=own_by_prefix), {"colleague untouched"}),
    "price is not read back": (Defences(decide=no_read_back), {"as agreed"}),
    "the listing's lag is not known": (Defences(told_lag=False), {"absent means absent", "released means gone"}),
    "one clean listing is enough": (Defences(policy=policy(clean_lists=1)), {"absent means absent"}),
    "phases have no end": (Defences(policy=policy(phase_s={})), {"phases end", "all ends"}),
    "no deadline": (Defences(decide=no_deadline), {"in budget", "all ends"}),
    "no recovery": (Defences(adjust=without_recovery), {"known or found", "in budget", "phases end", "all ends"}),
    "notices are not passed on": (Defences(decide=silent_about_notices), {"notice passed on"}),
    "billed from the answer": (Defences(decide=bill_from_answer), {"billed truly"}),
}
