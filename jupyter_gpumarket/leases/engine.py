"""Performs what the lease machine decides. The broker's one way to rent, keep and release nodes.

Every event goes through `_apply`: decide, write to the store, and only then act. It has no await inside, so decisions
of one broker never interleave, and a crash falls either before the writing (it never happened) or after it (the next
start goes on from there). Activities (`activities`) talk to the world and feed back events; a change of state ends the
activities of the state before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from jupyter_gpumarket.api import AnyFact, Orphan, RunEnded, RunStarted
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import BadRequest, GpuMarketError, JournalError, LeaseError, MarketplaceError
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.leases import machine
from jupyter_gpumarket.leases.activities import Activities
from jupyter_gpumarket.leases.events import (
    DeadlineReached,
    Event,
    Extended,
    Instruction,
    Judge,
    ReleaseAsked,
    TakenUp,
    WipeKey,
    event_name,
)
from jupyter_gpumarket.leases.locks import OfferLocks
from jupyter_gpumarket.leases.policy import Policy
from jupyter_gpumarket.leases.ports import ClusterPort, KeyBox, LeaseStore, OfferSource
from jupyter_gpumarket.leases.sweep import Sweep
from jupyter_gpumarket.leases.world import World
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseRequest, LeaseState, Machine

log = logging.getLogger(__name__)

Decide = Callable[[Lease, Event, Policy, int], tuple[Lease, tuple[Instruction, ...]]]
BUYING_STATES = frozenset({LeaseState.QUOTING, LeaseState.RENTING, LeaseState.UNCONFIRMED})


class LeaseEngine:
    """All open leases of one broker.

    Args:
        store: the journal.
        marketplaces: by name.
        offers: the catalogue.
        clusters: the cluster processes.
        keys: SSH key pairs.
        clock: time.
        rng: makes ids and labels, which must not be guessed: `random.SystemRandom()` outside of tests.
        label_secret: this installation's own, kept over restarts; labels bear its MAC.
        policy: limits.
        decide: the machine; another one only in tests.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        marketplaces: Mapping[str, Marketplace],
        offers: OfferSource,
        clusters: ClusterPort,
        keys: KeyBox,
        clock: Clock,
        rng: random.Random,
        label_secret: bytes,
        policy: Policy,
        decide: Decide = machine.advance,
    ) -> None:
        self._world = World(
            store=store,
            marketplaces=marketplaces,
            offers=offers,
            clusters=clusters,
            keys=keys,
            clock=clock,
            rng=rng,
            label_secret=label_secret,
            policy=policy,
        )
        self._decide = decide
        self._locks = OfferLocks()
        self._activities = Activities(self._world, self, self._locks)
        self._sweep = Sweep(self._world, lambda: list(self._open.values()))
        self._open: dict[str, Lease] = {}
        self._seq: dict[str, int] = {}
        self._tasks: dict[str, dict[type, asyncio.Task[None]]] = {}
        self._timers: dict[str, dict[tuple[int, Event], asyncio.Task[None]]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._sweep_task: asyncio.Task[None] | None = None
        self._last_words: set[asyncio.Task[None]] = set()

    # ── the broker's calls ───────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Take up every open lease where it is, and begin to sweep for orphans."""
        for lease in self._world.store.leases():
            if lease.state in ENDED_STATES:
                self._wipe_key(lease.lease_id)
            else:
                self._open[lease.lease_id] = lease
                self._hold_lock(lease)
        for lease_id in list(self._open):
            self._begin(lease_id)
        self._sweep_task = asyncio.get_running_loop().create_task(self._sweep.run())

    async def wish(self, request: LeaseRequest) -> Lease:
        """Ask for a node. Written before it returns; the same `request_id` again is the same lease.

        Raises:
            BadRequest: no time, no money, or the name is taken by an open lease.
            JournalError: nothing was asked for.
        """
        known = self._world.store.lease_by_request(request.request_id)
        if known is not None:
            return self._open.get(known.lease_id, known)
        lease = self._new_lease(request)
        self._write(lease, NewEntry(kind="lease.wished", subject=lease.lease_id, body=_body(request), rows=(lease,)))
        self._begin(lease.lease_id)
        return self._open.get(lease.lease_id, lease)

    async def release(self, lease_id: str, reason: str) -> Lease:
        """Ask for the end of a lease. Returns at once; the end is proven when its state says so.

        Raises:
            LeaseError: there is no such lease.
            JournalError: it could not be written; the marketplace has been asked to end the rental all the same.
        """
        lease = self._known(lease_id)
        if lease.state in ENDED_STATES:
            return lease
        try:
            return self._apply(lease_id, ReleaseAsked(reason=reason))
        except JournalError:
            self._release_unwritten(lease)
            raise

    async def extend(self, lease_id: str, *, max_s: int | None = None, budget_nusd: int | None = None) -> Lease:
        """Set new totals (not increments) of hours and budget; the node is told its new deadline.

        Raises:
            LeaseError: there is no such lease, or it is ending.
            BadRequest: not a positive amount.
        """
        lease = self._known(lease_id)
        if not machine.may_extend(lease):
            raise LeaseError(f"lease {lease.name} is {lease.state.value} and cannot be extended; rent a new node")
        new_max_s = lease.request.max_s if max_s is None else max_s
        new_budget = lease.request.budget_nusd if budget_nusd is None else budget_nusd
        _check_limits(new_max_s, new_budget)
        return self._apply(lease_id, Extended(max_s=new_max_s, budget_nusd=new_budget))

    async def report(self, fact: AnyFact) -> None:
        """Hand in what a cluster process has observed; written before it returns. Late and doubled ones are no error.

        Raises:
            LeaseError: there is no such lease.
            InvalidTransition: nothing like this can happen to the lease.
        """
        if isinstance(fact, RunStarted | RunEnded) or self._known(fact.lease_id).state in ENDED_STATES:
            return
        self._apply(fact.lease_id, fact)

    async def wait_changed(self, lease_id: str, after_seq: int, timeout_s: float) -> tuple[Lease, int]:
        """The lease and the number of its last change, as soon as that is greater than `after_seq`, or in time.

        Raises:
            LeaseError: there is no such lease.
        """
        self._known(lease_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._last_seq(lease_id) <= after_seq:
                    change = asyncio.get_running_loop().create_future()
                    self._waiters.setdefault(lease_id, []).append(change)
                    await change
        return self._known(lease_id), self._last_seq(lease_id)

    def orphans(self) -> list[Orphan]:
        """Rentals with our label that no lease knows, found since the start."""
        return self._sweep.orphans()

    def leases(self) -> list[Lease]:
        """All leases that have not ended, as of now."""
        return list(self._open.values())

    async def aclose(self) -> None:
        """Stop looking after the leases. They go on; the next start takes them up."""
        tasks = [task for by_kind in self._tasks.values() for task in by_kind.values()]
        tasks += [task for by_due in self._timers.values() for task in by_due.values()]
        tasks += [*self._last_words, *([self._sweep_task] if self._sweep_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sweep.aclose()

    # ── the desk: where activities hand in what happened ─────────────────────────────────────────────────────────────

    def current(self, lease_id: str) -> Lease:
        """An open lease as it is now."""
        return self._open[lease_id]

    async def feed(self, lease_id: str, event: Event) -> Lease:
        """Hand in an event. While the journal cannot be written nothing goes on, and it is tried again."""
        failures = 0
        while True:
            try:
                return self._apply(lease_id, event)
            except JournalError as error:
                log.warning("lease %s: the journal takes nothing: %s", lease_id, error)
                if isinstance(event, DeadlineReached):
                    self._release_unwritten(self._open[lease_id])
            await self._world.back_off(failures)
            failures += 1

    # ── deciding, writing, acting ────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, lease_id: str, event: Event) -> Lease:
        before = self._open[lease_id]
        after, instructions = self._decide(before, event, self._world.policy, self._world.clock.now_ms())
        if after != before:
            kind = f"lease.{event_name(type(event))}"
            entry = NewEntry(kind=kind, subject=lease_id, body=_body(event), rows=(after,))
            self._write(after, entry, *self._judgements(instructions))
        if after.state is not before.state:
            log.info("lease %s (%s): %s → %s", lease_id, after.name, before.state.value, after.state.value)
            self._stop_activities(lease_id)
        for instruction in instructions:
            if isinstance(instruction, WipeKey):
                self._wipe_key(lease_id)
            elif not isinstance(instruction, Judge):
                self._perform(lease_id, instruction)
        if after.state not in BUYING_STATES:
            self._locks.free(lease_id)
        self._settle(after)
        return after

    def _write(self, lease: Lease, *entries: NewEntry) -> None:
        """Append; only what is written becomes the truth in memory."""
        lines = self._world.store.append(entries)
        self._open[lease.lease_id] = lease
        self._seq[lease.lease_id] = lines[0].seq
        for waiter in self._waiters.pop(lease.lease_id, []):
            if not waiter.done():
                waiter.set_result(None)

    def _judgements(self, instructions: tuple[Instruction, ...]) -> list[NewEntry]:
        known = {(m.marketplace, m.machine_id): m for m in self._world.store.machines()} if instructions else {}
        return [
            NewEntry(
                kind="machine.judged",
                subject=f"{judge.marketplace}/{judge.machine_id}",
                body=_body(judge),
                rows=(_judged(known.get((judge.marketplace, judge.machine_id)), judge, self._world.clock.now_ms()),),
            )
            for judge in instructions
            if isinstance(judge, Judge)
        ]

    def _wipe_key(self, lease_id: str) -> None:
        """At once, so that no one sees an ended lease with a key; one that resists is tried again at the next start."""
        try:
            self._world.keys.wipe(lease_id)
        except OSError as error:
            log.warning("lease %s: its key could not be wiped: %s", lease_id, error)

    def _settle(self, lease: Lease) -> None:
        """Timers of an open lease; an ended one is let go."""
        if lease.state in ENDED_STATES:
            self._disarm(lease.lease_id)
            self._open.pop(lease.lease_id, None)
        else:
            self._arm(lease)

    def _begin(self, lease_id: str) -> None:
        """Take a lease up; while the journal cannot be written, again and again."""
        self._spawn(lease_id, TakenUp, self._take_up(lease_id))

    async def _take_up(self, lease_id: str) -> None:
        await self.feed(lease_id, TakenUp())

    def _hold_lock(self, lease: Lease) -> None:
        if lease.state in BUYING_STATES and lease.offer is not None:
            self._locks.take(lease.offer.marketplace, lease.offer.offer_id, lease.lease_id)

    # ── activities and timers ────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, lease_id: str, instruction: Instruction) -> None:
        self._spawn(lease_id, type(instruction), self._performing(lease_id, instruction))

    def _spawn(self, lease_id: str, kind: type, work: Coroutine[Any, Any, None]) -> None:
        """Start an activity in place of an earlier one of its kind."""
        tasks = self._tasks.setdefault(lease_id, {})
        _cancel_other(tasks.pop(kind, None))
        tasks[kind] = asyncio.get_running_loop().create_task(work, name=f"{lease_id} {event_name(kind)}")
        tasks[kind].add_done_callback(lambda done: self._forget(lease_id, kind, done))

    def _forget(self, lease_id: str, kind: type, done: asyncio.Task[None]) -> None:
        tasks = self._tasks.get(lease_id, {})
        if tasks.get(kind) is done:
            del tasks[kind]
        if not tasks:
            self._tasks.pop(lease_id, None)

    def _stop_activities(self, lease_id: str) -> None:
        for task in self._tasks.pop(lease_id, {}).values():
            _cancel_other(task)

    async def _performing(self, lease_id: str, instruction: Instruction) -> None:
        """An activity that fails is begun again, later and later; its state's deadline ends that."""
        failures = 0
        while True:
            try:
                await self._activities.perform(lease_id, instruction)
                return
            except GpuMarketError as error:
                log.warning("lease %s: %s: %s", lease_id, event_name(type(instruction)), error)
                failed: Exception = error
            except Exception as error:  # the engine's loop: a bug in one activity must not leave a node unattended
                log.exception("lease %s: %s failed", lease_id, event_name(type(instruction)))
                failed = error
            await self._world.back_off(failures, failed)
            failures += 1

    def _arm(self, lease: Lease) -> None:
        """A timer for each deadline. One that stands is left alone: a new one would take a set-back clock for true."""
        due, armed = machine.due(lease), self._timers.setdefault(lease.lease_id, {})
        for passed in [one for one in armed if one not in due or armed[one].done()]:
            _cancel_other(armed.pop(passed))
        for one in due:
            if one not in armed:
                clock = self._world.clock
                until_s = clock.monotonic_s() + (one[0] - clock.now_ms()) / 1000
                armed[one] = asyncio.get_running_loop().create_task(self._ring(lease.lease_id, *one, until_s))

    def _disarm(self, lease_id: str) -> None:
        for timer in self._timers.pop(lease_id, {}).values():
            _cancel_other(timer)

    async def _ring(self, lease_id: str, at_ms: int, event: Event, until_s: float) -> None:
        """Wait by both clocks: the wall's goes on while a laptop sleeps, the monotonic one cannot be set back."""
        clock = self._world.clock
        while (left_s := min((at_ms - clock.now_ms()) / 1000, until_s - clock.monotonic_s())) > 0:
            await clock.sleep(min(left_s, self._world.policy.timer_step_s))
        # It stays the lease's timer until this is written, so that no second one rings for the same deadline.
        await self.feed(lease_id, event)

    def _release_unwritten(self, lease: Lease) -> None:
        """The journal is full or broken: what can still be done is to stop the spending."""
        if lease.offer is None or not lease.rental_id:
            return
        task = asyncio.get_running_loop().create_task(self._ask_for_end(lease.offer.marketplace, lease.rental_id))
        self._last_words.add(task)
        task.add_done_callback(self._last_words.discard)

    async def _ask_for_end(self, marketplace: str, rental_id: str) -> None:
        try:
            market = self._world.marketplace(marketplace)
            await self._world.call(market.name, market.release(rental_id))
        except MarketplaceError as error:
            log.warning("rental %s could not be released either: %s", rental_id, error)

    # ── looking things up ────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, lease_id: str) -> Lease:
        lease = self._open.get(lease_id) or self._world.store.lease(lease_id)
        if lease is None:
            raise LeaseError(f"there is no lease {lease_id}")
        return lease

    def _last_seq(self, lease_id: str) -> int:
        if lease_id not in self._seq:
            lines = self._world.store.entries(subject=lease_id)
            self._seq[lease_id] = lines[-1].seq if lines else 0
        return self._seq[lease_id]

    def _new_lease(self, request: LeaseRequest) -> Lease:
        _check_limits(request.max_s, request.budget_nusd)
        taken = {lease.name for lease in self._open.values()}
        if request.name in taken:
            raise BadRequest(f"name: a lease named {request.name} is open; release it or choose another name")
        now_ms = self._world.clock.now_ms()
        lease_id = f"lease-{self._world.rng.getrandbits(64):016x}"
        number = next(n for n in range(1, len(taken) + 2) if f"node-{n}" not in taken)
        return Lease(
            lease_id=lease_id,
            name=request.name or f"node-{number}",
            state=LeaseState.WISHED,
            request=request,
            created_ms=now_ms,
            changed_ms=now_ms,
            cluster_id=request.cluster or lease_id,
            phases={LeaseState.WISHED: now_ms},
        )


def _check_limits(max_s: int, budget_nusd: int) -> None:
    if max_s <= 0:
        raise BadRequest("max_s: a lease needs a positive time")
    if budget_nusd <= 0:
        raise BadRequest("budget_nusd: a lease needs a positive budget")


def _judged(known: Machine | None, judge: Judge, now_ms: int) -> Machine:
    before = known or Machine(marketplace=judge.marketplace, machine_id=judge.machine_id)
    if judge.good:
        return msgspec.structs.replace(before, good=before.good + 1)
    return msgspec.structs.replace(before, bad=before.bad + 1, last_bad_ms=now_ms, last_reason=judge.reason)


def _body(record: Any) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(record)
    return body


def _cancel_other(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, unless it is the one that is running this very line."""
    if task is not None and task is not asyncio.current_task():
        task.cancel()
