"""What must hold after every step (design: rules of a lease). Each breach names the rule and what broke it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from jupyter_gpumarket.leases import machine, terms
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseGoal, LeaseState
from jupyter_gpumarket.money import cost_nusd
from tests.leases.simulation.cloud import Truth
from tests.leases.simulation.world import CALM_S, OPEN_BUYING, World

S = LeaseState
UPWARDS = (S.BOOTING, S.LINKING, S.PREPARING, S.PROBING)
# In healthy time, with every call failing by chance: sweeps, releases and their back-off need some patience.
REACTION_S = 1200.0


class Broken(AssertionError):
    """A rule does not hold. Says which, when, and how the run came there."""

    def __init__(self, rule: str, detail: str, world: World) -> None:
        told = "\n".join(world.story[-60:])
        super().__init__(f"seed {world.options.seed}: {rule}: {detail}\n{world.options}\n{told}")
        self.rule = rule


class Invariants:
    """Watches one run. Cheap rules after every step that changed something, those about time now and then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next_look_s = 0.0
        self.longest: dict[str, float] = {}
        self._unknown_since: dict[str, float] = {}
        self._unwell_at_start: dict[str, float] = {}
        self._untold_since: dict[str, float] = {}
        self._phase_since: dict[tuple[str, LeaseState, int], float] = {}
        world.cloud.on_create = self._created
        world.cloud.on_release = self._release_asked
        world.store.on_given_up = self._given_up

    def after_step(self) -> None:
        world = self._world
        if world.surprises:
            self._fail("no surprises", world.surprises[0])
        if world.changed or world.cloud.dirty:
            world.changed = world.cloud.dirty = False
            self._one_call_per_label()
            self._one_buyer_per_offer()
            for lease in world.store.rows.values():
                self._ended_means_gone(lease)
                self._kept_only_as_agreed(lease)
        if world.loop.now_s >= self._next_look_s:
            self._next_look_s = world.loop.now_s + 20
            self._look()

    def _fail(self, rule: str, detail: str) -> None:
        raise Broken(rule, detail, self._world)

    # ── when something arrives at the marketplace ────────────────────────────────────────────────────────────────────

    def _created(self, truth: Truth) -> None:
        self._unwell_at_start[truth.rental_id] = self._world.unwell_s
        if truth.label not in self._world.store.labels:
            self._fail("journal first", f"{truth.rental_id} was rented under a label that was never written")

    def _release_asked(self, truth: Truth) -> None:
        if truth.colleague:
            self._fail("colleague untouched", f"{truth.label} was released")

    # ── after every change ───────────────────────────────────────────────────────────────────────────────────────────

    def _one_call_per_label(self) -> None:
        twice = [label for label, calls in self._world.cloud.calls.items() if calls > 1]
        if twice:
            self._fail("one rental per label", f"the create call was repeated for {twice}")

    def _one_buyer_per_offer(self) -> None:
        buying = Counter(
            lease.offer.offer_id
            for lease in self._world.store.rows.values()
            if lease.state in OPEN_BUYING and lease.offer is not None
        )
        twice = [offer_id for offer_id, buyers in buying.items() if buyers > 1]
        if twice:
            self._fail("one buyer per offer", f"{twice}")

    def _ended_means_gone(self, lease: Lease) -> None:
        ids = [attempt.rental_id for attempt in lease.attempts]
        if lease.state in ENDED_STATES:
            ids.append(lease.rental_id)
        for rental_id in filter(None, ids):
            if self._world.cloud.rentals[rental_id].gone_ms is None:
                self._fail("released means gone", f"{lease.lease_id} let go of {rental_id}, which lives")

    def _kept_only_as_agreed(self, lease: Lease) -> None:
        if lease.state not in (S.LINKING, S.PREPARING, S.PROBING, S.READY) or lease.quote is None:
            return
        truth = self._world.cloud.rentals[lease.rental_id]
        tolerance = lease.request.price_tolerance_ppm
        if terms.dearer(truth.price_nusd_hour, lease.quote.price_nusd_hour, tolerance):
            self._fail("as agreed", f"{lease.lease_id} keeps a rental at twice its price")

    def _given_up(self, lease: Lease) -> None:
        """Concluded as not rented: then nothing with its label may have been there when the search began."""
        began_ms = lease.phases[S.UNCONFIRMED]
        there = [t.rental_id for t in self._world.cloud.live() if t.label == lease.label and t.created_ms <= began_ms]
        if there:
            self._fail("absent means absent", f"{there} was there when {lease.lease_id} gave it up")

    # ── now and then ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        self._world.cloud.settle()
        open_leases = self._world.store.open_leases()
        for truth in self._world.cloud.live():
            if not truth.colleague:
                self._known_or_found(truth, open_leases)
        for lease in open_leases:
            self._moves_on(lease)
            self._notice_passed_on(lease)
        for lease in self._world.store.rows.values():
            self._in_budget(lease)

    def _known_or_found(self, truth: Truth, open_leases: list[Lease]) -> None:
        known = any(
            lease.label == truth.label and lease.may_bill and lease.rental_id in ("", truth.rental_id)
            for lease in open_leases
        )
        waited = self._waited("known or found", self._unknown_since, truth.rental_id, not known)
        if waited > REACTION_S:
            self._fail("known or found", f"{truth.rental_id} bills for {waited:.0f} s and no one knows it")

    def _in_budget(self, lease: Lease) -> None:
        """What the marketplace really charges, against what was agreed and what faults outside of us excuse."""
        now_ms = self._world.clock.now_ms()
        spent = allowed = 0
        agreed = lease.request.budget_nusd
        for truth in self._world.rentals_of(lease.lease_id):
            excused_s = self._world.unwell_s - self._unwell_at_start[truth.rental_id] + REACTION_S
            end_ms = now_ms if truth.gone_ms is None else truth.gone_ms
            if end_ms - truth.created_ms > (lease.request.max_s + excused_s) * 1000:
                self._fail("in budget", f"{truth.rental_id} lives on long after its hours")
            over_s = (end_ms - truth.created_ms) / 1000 - lease.request.max_s - (excused_s - REACTION_S)
            self.longest["hours"] = max(over_s, self.longest.get("hours", 0.0))
            spent += truth.cost_nusd(now_ms)
            allowed += cost_nusd(truth.price_nusd_hour, round(excused_s * 1000))
        if spent > agreed + allowed:
            self._fail("in budget", f"{lease.lease_id} has cost {spent}, agreed were {agreed}")

    def _moves_on(self, lease: Lease) -> None:
        if lease.state not in UPWARDS:
            return
        key = (lease.lease_id, lease.state, len(lease.attempts))
        waited = self._waited("phases end", self._phase_since, key, bad=True)
        if waited > 1200:
            self._fail("phases end", f"{lease.lease_id} is {lease.state.value} for {waited:.0f} s")

    def _notice_passed_on(self, lease: Lease) -> None:
        """What the marketplace announces is soon known here, and to whoever works on the node."""
        if lease.state not in (S.READY, S.UNREACHABLE):
            self._untold_since.pop(lease.rental_id, None)
            return
        truth = self._world.cloud.rentals[lease.rental_id]
        ends_ms = truth.dies_ms if self._world.cloud.announces_end(truth) and truth.gone_ms is None else None
        is_early = ends_ms is not None and (lease.deadline_ms is None or ends_ms < lease.deadline_ms)
        told = self._world.nodes.warned.get(lease.rental_id)
        is_told = lease.notice is not None and told == lease.notice
        waited = self._waited("notice passed on", self._untold_since, lease.rental_id, is_early and not is_told)
        if waited > REACTION_S / 8:
            self._fail("notice passed on", f"{lease.lease_id} is not told for {waited:.0f} s: {told}, {lease.notice}")

    def _waited(self, name: str, since: dict, key: object, bad: bool) -> float:  # type: ignore[type-arg]
        """Healthy seconds for which something has been bad without a break."""
        if not bad:
            since.pop(key, None)
            return 0.0
        began: float = since.setdefault(key, self._world.healthy_s)
        waited = self._world.healthy_s - began
        self.longest[name] = max(waited, self.longest.get(name, 0.0))
        return waited

    # ── at the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def at_end(self) -> None:
        world = self._world
        left = [machine.story(lease) for lease in world.store.open_leases()]
        if left:
            self._fail("all ends", f"{CALM_S:.0f} s after the last fault: {left}")
        alive = [truth.rental_id for truth in world.cloud.live() if not truth.colleague]
        if alive:
            self._fail("all ends", f"{alive} still live")
        if world.keys.held:
            self._fail("all ends", f"keys were kept: {world.keys.held}")
        for lease in world.store.rows.values():
            self._billed_truly(lease)

    def _billed_truly(self, lease: Lease) -> None:
        """Our billed span covers the whole real one, so that no cost is hidden."""
        spans = [(a.rental_id, a.billed_from_ms, a.billed_to_ms) for a in lease.attempts]
        spans.append((lease.rental_id, lease.billed_from_ms, lease.billed_to_ms))
        for rental_id, from_ms, to_ms in spans:
            if not rental_id:
                continue
            truth = self._world.cloud.rentals[rental_id]
            assert truth.gone_ms is not None
            begun_ms = min(truth.bills_from_ms, truth.gone_ms)
            if from_ms is None or to_ms is None or from_ms > begun_ms or to_ms < truth.gone_ms:
                self._fail("billed truly", f"{lease.lease_id} counts {from_ms}..{to_ms} for {truth}")
        if lease.state in ENDED_STATES and lease.goal is LeaseGoal.NODE:
            self._fail("all ends", f"{lease.lease_id} has ended without deciding to")


def checked_run(world: World) -> World:
    """Run a world with all rules watched.

    Raises:
        Broken: a rule did not hold.
    """
    invariants = world.invariants = Invariants(world)
    failure: list[Exception] = []

    def step() -> None:
        try:
            invariants.after_step()
        except Broken as broken:
            failure.append(broken)
            world.loop.stop()

    _guard(world, failure)
    try:
        world.run(step)
    except RuntimeError:
        if not failure:
            raise
    if failure:
        raise failure[0]
    invariants.at_end()
    return world


def _guard(world: World, failure: list[Exception]) -> None:
    """Rules that break inside a call of the marketplace must end the run, not become an answer."""

    def guarded(check: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(subject: Any) -> None:
            try:
                check(subject)
            except Broken as broken:
                failure.append(broken)
                world.loop.stop()

        return run

    world.cloud.on_create = guarded(world.cloud.on_create)
    world.cloud.on_release = guarded(world.cloud.on_release)
    world.store.on_given_up = guarded(world.store.on_given_up)
