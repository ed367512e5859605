"""One run: a real engine on a lying world, crashed and started again, until the faults stop and all comes to rest."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_gpumarket.api import JournalLine
from jupyter_gpumarket.errors import BadRequest, InvalidTransition, JournalFull, LeaseError, Temporary
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.leases import LeaseEngine, Policy, machine
from jupyter_gpumarket.leases.engine import Decide
from jupyter_gpumarket.leases.labels import new_label
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseRequest, LeaseState, OfferQuery
from tests.leases.fakes import FakeKeys, FakeOffers, MemoryStore
from tests.leases.simulation.cloud import NAME, Cloud, Line, Truth
from tests.leases.simulation.loop import INCARNATION, VirtualClock, VirtualLoop
from tests.leases.simulation.nodes import Nodes, Port
from tests.leases.simulation.options import Options

SECRET = b"ours"
POLICY = Policy(
    poll_boot_s=5,
    poll_ready_s=60,
    timer_step_s=600,
    sweep_every_s=120,
    bad_machine_s=600,
    retry_most_s=60,
    absent_grace_s=15,
)
CALM_S = 6 * 3600.0


class Crashed(asyncio.CancelledError):
    """The broker this call came from is no more."""


class CrashStore(MemoryStore):
    """What `append` returned for survives; while the disk is full it takes nothing."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self._world = world
        self.labels: dict[str, str] = {}
        self.on_given_up: Callable[[Lease], None] = lambda lease: None

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        if self._world.cloud.happens(self._world.options.journal_full):
            raise JournalFull("the disk is full")
        for entry in entries:
            if entry.kind == "lease.rental_absent":
                self.on_given_up(self.rows[entry.subject])
        lines = super().append(entries)
        for entry in entries:
            self._world.trace(f"{entry.kind} {entry.subject}")
            self.labels.update({row.label: row.lease_id for row in entry.rows if isinstance(row, Lease) and row.label})
        self._world.changed = True
        return lines

    def open_leases(self) -> list[Lease]:
        return [lease for lease in self.rows.values() if lease.state not in ENDED_STATES]


class Gated:
    """A broker incarnation's view of the store and the keys: shut at its crash."""

    def __init__(self, inner: Any, gate: Callable[[], None]) -> None:
        self._inner = inner
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        self._gate()
        return getattr(self._inner, name)


@dataclass(frozen=True, kw_only=True)
class Defences:
    """Seams by which a control run switches a defence off."""

    policy: Policy = POLICY
    decide: Decide = machine.advance
    store: Callable[[Any], Any] = lambda store: store
    adjust: Callable[[LeaseEngine], None] = lambda engine: None
    told_lag: bool = True


class World:
    """Everything of one run."""

    def __init__(self, options: Options, defences: Defences | None = None) -> None:
        self.options = options
        self.defences = defences or Defences()
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.rng = random.Random(options.seed)
        self._digest = hashlib.sha256()
        self.story: list[str] = []
        self.changed = True
        self.cloud = Cloud(options=options, clock=self.clock, rng=self.rng, trace=self.trace)
        self.store = CrashStore(self)
        self.nodes = Nodes(self.cloud, self.rng, self._deliver)
        self.keys = FakeKeys()
        self.incarnation = 0
        self.engine: LeaseEngine | None = None
        self.context = contextvars.copy_context()
        self.crashes = 0
        self.steps_left = self._next_crash()
        self.down_since_s: float | None = None
        self.unwell_s = 0.0
        self._noted_s = 0.0
        self.wishes = 0
        self.cells: set[tuple[LeaseState, type]] = set()
        self.surprises: list[str] = []
        self.invariants: Any = None

    # ── trace ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def trace(self, text: str) -> None:
        line = f"{self.loop.now_s:.3f} {text}"
        self._digest.update(line.encode())
        self.story.append(line)

    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    # ── the broker's lives ───────────────────────────────────────────────────────────────────────────────────────────

    def start_broker(self) -> None:
        self.incarnation += 1
        number = self.incarnation

        def gate() -> None:
            if number != self.incarnation or self.engine is None:
                raise Crashed

        self.context = contextvars.copy_context()
        self.context.run(INCARNATION.set, number)
        line = Line(self.cloud, gate, tells_lag=self.defences.told_lag)
        self.engine = LeaseEngine(
            store=self.defences.store(Gated(self.store, gate)),
            marketplaces={NAME: line},
            offers=FakeOffers(_Catalogue(line)),  # type: ignore[arg-type]
            clusters=Port(self.nodes, self.cloud, gate),
            keys=Gated(self.keys, gate),
            clock=self.clock,
            rng=self.rng,
            label_secret=SECRET,
            policy=self.defences.policy,
            decide=self._decide,
        )
        self.defences.adjust(self.engine)
        self.down_since_s = None
        self.trace("broker up")
        self._inside(self.engine.start)

    def _decide(self, lease: Lease, event: Any, policy: Policy, now_ms: int) -> Any:
        self.cells.add((lease.state, type(event)))
        try:
            return self.defences.decide(lease, event, policy, now_ms)
        except InvalidTransition as error:
            self.surprises.append(str(error))
            raise

    def crash_broker(self) -> None:
        self.trace("broker crashed")
        self.crashes += 1
        number, self.engine = self.incarnation, None
        for task in self.loop.tasks_of.pop(number, []):
            task.cancel()
        self.down_since_s = self.loop.now_s
        self.loop.call_later(self.rng.choice([0.1, 5, 60, 600]), self.start_broker)

    def _next_crash(self) -> int:
        every = self.options.crash_every_steps
        return round(self.rng.expovariate(1 / every)) + 1 if every else -1

    def maybe_crash(self) -> None:
        if self.engine is None or self.cloud.calm or self.steps_left < 0:
            return
        self.steps_left -= 1
        if self.steps_left <= 0:
            self.steps_left = self._next_crash()
            self.crash_broker()

    def _inside(self, call: Callable[[], Any]) -> asyncio.Task[Any]:
        """A call into the broker: dies with it."""

        async def work() -> Any:
            return await call()

        return self.loop.create_task(work(), context=self.context)

    async def _deliver(self, fact: Any) -> bool:
        if self.engine is None:
            return False
        engine = self.engine
        task = self._inside(lambda: engine.report(fact))
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), JournalFull):
            self.surprises.append(repr(task.exception()))
        return not task.cancelled() and task.exception() is None

    # ── health: time in which nothing outside of the engine keeps it from acting ─────────────────────────────────────

    def note_health(self) -> None:
        passed = self.loop.now_s - self._noted_s
        self._noted_s = self.loop.now_s
        if self.engine is None or self._noted_s < self.cloud.storm_until_s:
            self.unwell_s += passed

    @property
    def healthy_s(self) -> float:
        return self.loop.now_s - self.unwell_s

    # ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def people(self) -> None:
        for _ in range(self.options.leases):
            await asyncio.sleep(self.rng.uniform(0, 60))
            await self._wish()
        while not self.cloud.calm:
            await asyncio.sleep(self.rng.uniform(20, 400))
            if self.cloud.calm:
                return
            if self.cloud.happens(self.options.storm):
                self.cloud.storm_until_s = self.loop.now_s + self.rng.uniform(10, 400)
                self.trace("storm")
            await self.rng.choice([self._wish, self._release, self._extend, self._again])()

    async def _ask(self, call: Callable[[LeaseEngine], Any]) -> None:
        if self.engine is None:
            return
        engine = self.engine
        task = self._inside(lambda: call(engine))
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            if not isinstance(error, LeaseError | BadRequest | JournalFull):
                self.surprises.append(repr(error))

    def request(self, number: int) -> LeaseRequest:
        rng = random.Random(f"{self.options.seed} request {number}")
        return LeaseRequest(
            request_id=f"q{number}",
            query=OfferQuery(),
            budget_nusd=rng.choice([20_000_000, 200_000_000, 2_000_000_000]),
            max_s=rng.choice([300, 1800]),
        )

    async def _wish(self) -> None:
        if len(self.store.open_leases()) >= self.options.leases + 1:
            return
        self.wishes += 1
        await self._ask(lambda engine: engine.wish(self.request(self.wishes)))

    async def _again(self) -> None:
        """A door repeats a call whose answer it did not get."""
        if self.wishes:
            await self._ask(lambda engine: engine.wish(self.request(self.wishes)))

    async def _release(self) -> None:
        lease = self._any_lease()
        if lease is not None:
            lease_id = lease.lease_id
            await self._ask(lambda engine: engine.release(lease_id, "no longer needed"))

    def _any_lease(self) -> Lease | None:
        return self.rng.choice(self.store.open_leases() or [None])

    async def _extend(self) -> None:
        lease = self._any_lease()
        if lease is not None:
            lease_id, max_s, budget = lease.lease_id, lease.request.max_s + 300, lease.request.budget_nusd + 100_000_000
            await self._ask(lambda engine: engine.extend(lease_id, max_s=max_s, budget_nusd=budget))

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def add_strangers(self) -> None:
        """What else is on the account: colleagues' rentals, two of them with labels that look like ours."""
        stranger = random.Random(f"{self.options.seed} strangers")
        labels = ["colleague-7", new_label(b"another installation", stranger), "gpum-" + "a" * 26 + "-" + "a" * 16]
        for number, label in enumerate(labels):
            offer = self.cloud.listed[0].__class__(
                marketplace=NAME, offer_id=f"x{number}", machine_id=f"x{number}", price_nusd_hour=1, seen_ms=0
            )
            self.cloud.add(label, offer, colleague=True)

    async def live(self) -> None:
        self.add_strangers()
        self.start_broker()
        people = self.loop.create_task(self.people())
        await asyncio.sleep(self.options.faulty_s)
        self.cloud.calm = True
        self.cloud.storm_until_s = -1.0
        self.trace("calm")
        await people
        until_s = self.loop.now_s + CALM_S
        while self.loop.now_s < until_s and not self.at_rest():
            await asyncio.sleep(60)

    def rentals_of(self, lease_id: str) -> list[Truth]:
        """Everything that was ever rented for a lease, also what came late or twice."""
        return [truth for truth in self.cloud.rentals.values() if self.store.labels.get(truth.label) == lease_id]

    def at_rest(self) -> bool:
        return not self.store.open_leases() and not [truth for truth in self.cloud.live() if not truth.colleague]

    def run(self, after_step: Callable[[], None]) -> None:
        def step() -> None:
            self.note_health()
            self.maybe_crash()
            after_step()

        self.loop.after_step = step
        self.loop.set_exception_handler(lambda loop, context: self.trace(f"lost: {context.get('message')}"))
        asyncio.set_event_loop(self.loop)
        loud = _Loud(self.surprises)
        logger = logging.getLogger("jupyter_gpumarket.leases")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(loud)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            self.loop.run_until_complete(self.live())
        finally:
            logger.removeHandler(loud)
            logger.setLevel(level)
            logger.propagate = propagate
            self.loop.after_step = lambda: None
            self._shut()

    def _shut(self) -> None:
        self.engine = None
        self.incarnation += 1
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for _ in range(5):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        asyncio.set_event_loop(None)
        self.loop.close()


class _Loud(logging.Handler):
    """What the engine itself calls an error is a bug of ours."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(self.format(record))


class _Catalogue:
    """The part of a marketplace that the fake catalogue asks, over the same bad line."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def offers(self, query: OfferQuery) -> Any:
        try:
            async with asyncio.timeout(60):
                return await self._line.offers(query)
        except TimeoutError:
            raise Temporary(NAME, "did not answer in time") from None


OPEN_BUYING = (LeaseState.RENTING, LeaseState.UNCONFIRMED)
