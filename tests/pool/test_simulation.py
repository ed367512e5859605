"""Seeded random histories of a registry: hosts that crash, late and doubled reports, restarts, releases, timers.

After every step: no offer has two live rentals, a label stays with its rental, what is gone stays gone with the same
bill, and that bill is exactly what an independent account of the host's words comes to. A test's name has its seed.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jupyter_gpumarket.api.pool import (
    HostOffer,
    HostReport,
    Joining,
    LeaseReport,
    MachineFacts,
    PoolRental,
    RentRequest,
)
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.pool.registry_book import Book, Refused, ended
from jupyter_gpumarket.pool.registry_store import RegistryStore, UserRow
from tests.pool.test_book import ANA, KEY, PRICE, T

OFFERS = ("h1.gpu0", "h1.gpu1")
STEPS = 120


class Machine:
    """A host as it really is: what it serves, since when, and what it remembers to report."""

    def __init__(self) -> None:
        self.boot = 0
        self.sequence = 0
        self.states: dict[str, tuple[str, str]] = {}

    def crash(self) -> None:
        self.boot += 1
        self.sequence = 0
        self.states.clear()

    def report(self) -> HostReport:
        self.sequence += 1
        leases = tuple(LeaseReport(rental_id=r, offer_id=o, state=s) for r, (o, s) in self.states.items())
        return HostReport(boot_id=f"boot{self.boot}", sequence=self.sequence, leases=leases)

    def obey(self, book: Book) -> None:
        orders = book.orders("h1", "b", 1)
        wanted = {order.rental_id: order.offer_id for order in orders.serve}
        for rental_id, offer_id in wanted.items():
            held = any(o == offer_id and s != "gone" for o, s in self.states.values())
            if rental_id not in self.states and not held:
                self.states[rental_id] = (offer_id, "serving")
        for rental_id in orders.end:
            self.states.setdefault(rental_id, ("h1.none", "gone"))
        for rental_id, (offer_id, _state) in list(self.states.items()):
            if rental_id not in wanted:
                self.states[rental_id] = (offer_id, "gone")


class Account:
    """What each rental must cost, kept apart from the registry: first, last and final word of its host."""

    def __init__(self) -> None:
        self.boot = ""
        self.sequence = -1
        self.spans: dict[str, tuple[int, int, str]] = {}
        self.owed: dict[str, int] = {}

    def hear(self, report: HostReport, now_ms: int) -> None:
        if report.boot_id == self.boot and report.sequence <= self.sequence:
            return
        self.boot, self.sequence = report.boot_id, report.sequence
        told = {lease.rental_id: lease.state for lease in report.leases}
        for rental_id, state in told.items():
            if rental_id in self.owed:
                continue
            first, _, boot = self.spans.get(rental_id, (now_ms, now_ms, report.boot_id))
            if state == "serving":
                self.spans[rental_id] = (first, now_ms, boot)
            elif rental_id in self.spans:
                self.close(rental_id, now_ms)
            else:
                self.owed[rental_id] = 0
        for rental_id, (_, last, boot) in list(self.spans.items()):
            if rental_id not in told and boot != report.boot_id:
                self.close(rental_id, last)

    def lose(self, rented: list[str]) -> None:
        for rental_id in rented:
            if rental_id not in self.owed:
                self.close(rental_id, self.spans.get(rental_id, (0, 0, ""))[1])

    def close(self, rental_id: str, end_ms: int) -> None:
        first = self.spans.get(rental_id, (end_ms, end_ms, ""))[0]
        self.owed.setdefault(rental_id, cost_nusd(PRICE, -(-(end_ms - first) // 1000) * 1000))


class Simulation:
    """One seed's history."""

    def __init__(self, file: Path, seed: int, kind: type[Book] = Book) -> None:
        self.kind = kind
        self.account = Account()
        self.rng = random.Random(seed)
        self.file = file
        self.now_ms = T
        self.machine = Machine()
        self.late: list[HostReport] = []
        self.store = RegistryStore(file)
        self.store.put_user(ANA)
        self.book = self.kind(self.store)
        offers = tuple(HostOffer(offer_id=o, price_nusd_hour=PRICE, facts=MachineFacts()) for o in OFFERS)
        joining = Joining(
            host_id="h1", name="lab", host="127.0.0.1", port=22, ssh_host_key="ssh-ed25519 AAAA", offers=offers
        )
        self.book.join(joining, "digest", self.now_ms)
        self.rented: list[str] = []
        self.final: dict[str, int] = {}

    def step(self) -> None:
        self.now_ms += self.rng.randrange(1, 4000)
        self.rng.choice(
            [self.heartbeat, self.heartbeat, self.heartbeat, self.rent, self.rent_again, self.release, self.late_report,
             self.registry_restarts, self.host_crashes, self.host_is_lost, self.timers]
        )()  # fmt: skip
        self.check()

    def heartbeat(self) -> None:
        report = self.machine.report()
        if self.rng.random() < 0.2:
            self.late.append(report)
            return
        self.deliver(report)
        if self.rng.random() < 0.2:
            self.late.append(report)
        self.machine.obey(self.book)

    def deliver(self, report: HostReport) -> None:
        self.book.report("h1", report, self.now_ms)
        self.account.hear(report, self.now_ms)

    def late_report(self) -> None:
        if self.late:
            report = self.late.pop(self.rng.randrange(len(self.late)))
            if report.boot_id == f"boot{self.machine.boot}":
                self.deliver(report)

    def rent(self) -> None:
        try:
            quote = self.book.quote(ANA, self.rng.choice(OFFERS), self.now_ms)
            wish = RentRequest(
                quote_id=quote.quote_id,
                label=f"l{len(self.rented)}",
                ssh_public_key=KEY,
                deadline_ms=self.now_ms + self.rng.randrange(5_000, 60_000),
            )
            self.rented.append(self.book.rent(ANA, wish, self.now_ms).rental_id)
        except Refused:
            return

    def rent_again(self) -> None:
        if self.rented:
            number = self.rng.randrange(len(self.rented))
            wish = RentRequest(quote_id="q-none", label=f"l{number}", ssh_public_key=KEY)
            assert self.book.rent(ANA, wish, self.now_ms).rental_id == self.rented[number]

    def release(self) -> None:
        if self.rented:
            self.book.release(ANA, self.rng.choice(self.rented))

    def registry_restarts(self) -> None:
        self.store.close()
        self.store = RegistryStore(self.file)
        self.book = self.kind(self.store)

    def host_crashes(self) -> None:
        self.machine.crash()

    def host_is_lost(self) -> None:
        if self.rng.random() < 0.3:
            self.book.lose("h1")
            self.account.lose(self.rented)

    def timers(self) -> None:
        self.book.run_timers(self.now_ms)

    def check(self) -> None:
        live = [row.offer_id for row in self.store.live_rentals()]
        assert len(live) == len(set(live))
        for rental_id in self.rented:
            bill = sum(charge.amount_nusd for charge in self.book.charges(ANA, rental_id, self.now_ms))
            if rental_id in self.final:
                assert self.book.rental(ANA, rental_id).status == "gone"
                assert bill == self.final[rental_id]
            elif self.book.rental(ANA, rental_id).status == "gone":
                assert bill == self.account.owed[rental_id]
                self.final[rental_id] = bill


def play(file: Path, seed: int, kind: type[Book] = Book) -> Simulation:
    """A whole history, with everything released at its end."""
    simulation = Simulation(file, seed, kind)
    for _ in range(STEPS):
        simulation.step()
    for rental_id in simulation.rented:
        simulation.book.release(ANA, rental_id)
    for _ in range(4):
        simulation.now_ms += 1000
        simulation.machine.obey(simulation.book)
        simulation.deliver(simulation.machine.report())
    simulation.check()
    simulation.store.close()
    return simulation


@pytest.mark.parametrize("seed", range(25))
def test_the_registry_keeps_its_promises_in_any_history(tmp_path: Path, seed: int) -> None:
    """One rental per offer and label, nothing comes back from the end, exact bills; and everything ends."""
    simulation = play(tmp_path / "registry.sqlite", seed)

    assert len(simulation.final) == len(simulation.rented) > 3


class BillsTheSilence(Book):
    """Wrong on purpose: a lost host's rentals end now, not at its last heartbeat."""

    def lose(self, host_id: str) -> None:
        for rental in self._store.live_rentals(host_id):
            self._put(rental, ended(rental, (rental.serving_until_ms or T) + 60_000, "lost"))


class EndsOnRequest(Book):
    """Wrong on purpose: a release is taken for its own proof, so the offer is free before its host is done."""

    def release(self, user: UserRow, rental_id: str) -> PoolRental:
        rental = self._rental(user, rental_id)
        self._put(rental, ended(rental, rental.serving_until_ms, "released"))
        return self.shown(rental)


@pytest.mark.parametrize("wrong", [BillsTheSilence, EndsOnRequest])
def test_the_simulation_catches_what_it_is_for(tmp_path: Path, wrong: type[Book]) -> None:
    """With a rule broken on purpose, some of the same histories fail."""
    caught = 0
    for seed in range(10):
        try:
            play(tmp_path / f"{seed}.sqlite", seed, wrong)
        except (AssertionError, KeyError):
            caught += 1

    assert caught > 0
