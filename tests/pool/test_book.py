"""The registry's rules, in pure form: rentals, hosts that come and go, and the bill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.api.pool import HostOffer, HostReport, Joining, LeaseReport, MachineFacts, Quota, RentRequest
from jupyter_gpumarket.money import cost_nusd, usd
from jupyter_gpumarket.pool.registry_book import QUOTE_LIFE_MS, Book, Refused, billed_seconds
from jupyter_gpumarket.pool.registry_store import RegistryStore, UserRow

PRICE = usd("0.35")
KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
ANA = UserRow(user="ana", token_digest="a")
BEN = UserRow(user="ben", token_digest="b")
T = 1_790_000_000_000


class World:
    """A book with one host that has two offers; time is whatever a test says."""

    def __init__(self, store: RegistryStore) -> None:
        self.store = store
        self.book = Book(store)
        store.put_user(ANA)
        store.put_user(BEN)
        offers = tuple(
            HostOffer(offer_id=f"h1.gpu{n}", price_nusd_hour=PRICE, facts=MachineFacts(), gpus=(n,)) for n in (0, 1)
        )
        self.book.join(
            Joining(
                host_id="h1", name="lab", host="127.0.0.1", port=22, ssh_host_key="ssh-ed25519 AAAA", offers=offers
            ),
            "digest",
            T,
        )
        self.sequence = 0
        self.report(T)

    def report(self, at_ms: int, *, boot: str = "boot1", sequence: int | None = None, **states: str) -> None:
        """The host says: rental id = state."""
        self.sequence += 1
        leases = tuple(
            LeaseReport(rental_id=rental_id, offer_id=self.offer_of(rental_id), state=state)
            for rental_id, state in states.items()
        )
        number = self.sequence if sequence is None else sequence
        self.book.report("h1", HostReport(boot_id=boot, sequence=number, leases=leases), at_ms)

    def offer_of(self, rental_id: str) -> str:
        row = self.store.rental(rental_id)
        return "h1.gpu0" if row is None else row.offer_id

    def rent(
        self, user: UserRow = ANA, label: str = "label", offer: str = "h1.gpu0", at_ms: int = T, **more: int
    ) -> str:
        quote = self.book.quote(user, offer, at_ms)
        wish = RentRequest(quote_id=quote.quote_id, label=label, ssh_public_key=KEY, **more)
        return self.book.rent(user, wish, at_ms).rental_id

    def status(self, rental_id: str, user: UserRow = ANA) -> str:
        return self.book.rental(user, rental_id).status


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = RegistryStore(tmp_path / "registry.sqlite")
    yield World(store)
    store.close()


def test_billing_runs_from_serving_to_gone(world: World) -> None:
    """A rental costs its whole seconds between the host's word "serving" and its word "gone", and nothing else."""
    rental = world.rent(at_ms=T)
    world.report(T + 5_000, **{rental: "serving"})
    world.book.release(ANA, rental)
    world.report(T + 65_000, **{rental: "ending"})
    during = world.book.charges(ANA, rental, T + 66_000)
    world.report(T + 67_001, **{rental: "gone"})
    (final,) = world.book.charges(ANA, rental, T + 999_000)

    assert world.status(rental) == "gone"
    assert not during[0].final
    assert (final.start_ms, final.end_ms, final.seconds, final.final) == (T + 5_000, T + 67_001, 63, True)
    assert final.amount_nusd == cost_nusd(PRICE, 63_000)


def test_a_rental_that_was_never_served_costs_nothing(world: World) -> None:
    """Released before its host began: gone, and the bill is empty."""
    rental = world.rent()
    world.book.release(ANA, rental)
    before = world.status(rental)
    world.report(T + 1_000, **{rental: "gone"})

    assert (before, world.status(rental)) == ("ending", "gone")
    assert world.book.charges(ANA, rental, T + 5_000) == []


def test_gone_only_on_the_hosts_word(world: World) -> None:
    """Release alone never makes a rental gone, however often it is asked for."""
    rental = world.rent()
    world.report(T + 1_000, **{rental: "serving"})
    for _ in range(3):
        world.book.release(ANA, rental)
    world.report(T + 2_000, **{rental: "ending"})
    world.report(T + 3_000)

    assert world.status(rental) == "ending"


def test_the_same_label_is_the_same_rental(world: World) -> None:
    """A create sent twice is one rental; also when it is over by the second time."""
    rental = world.rent(label="once")
    quote = world.book.quote(ANA, "h1.gpu1", T)
    again = world.book.rent(ANA, RentRequest(quote_id=quote.quote_id, label="once", ssh_public_key=KEY), T + 1)

    assert again.rental_id == rental
    assert len(world.book.rentals(ANA)) == 1


def test_a_label_with_another_key_is_refused(world: World) -> None:
    """Nobody gets a rental under a label whose key is not the one that was sent."""
    world.rent(label="once")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    quote = world.book.quote(ANA, "h1.gpu1", T)
    with pytest.raises(Refused) as refused:
        world.book.rent(ANA, RentRequest(quote_id=quote.quote_id, label="once", ssh_public_key=other), T)

    assert (refused.value.status, refused.value.field) == (409, "label")


def test_one_offer_has_one_rental_at_once(world: World) -> None:
    """Two users with a quote for the same offer: one rents it, the other is told that it is taken."""
    first = world.book.quote(ANA, "h1.gpu0", T)
    second = world.book.quote(BEN, "h1.gpu0", T)
    world.book.rent(ANA, RentRequest(quote_id=first.quote_id, label="a", ssh_public_key=KEY), T)
    with pytest.raises(Refused) as refused:
        world.book.rent(BEN, RentRequest(quote_id=second.quote_id, label="b", ssh_public_key=KEY), T)

    assert refused.value.status == 409
    assert [offer.offer_id for offer in world.book.offers()] == ["h1.gpu1"]


def test_an_offer_is_free_again_only_when_its_host_is_done(world: World) -> None:
    """After a host was lost and is back with a lease still on its hands, that offer is not listed."""
    rental = world.rent()
    world.report(T + 1_000, **{rental: "serving"})
    world.book.lose("h1")
    world.report(T + 61_000, **{rental: "serving"})
    still = [offer.offer_id for offer in world.book.offers()]
    orders = world.book.orders("h1", "boot", 1)
    world.report(T + 62_000, **{rental: "gone"})

    assert still == ["h1.gpu1"]
    assert rental not in {order.rental_id for order in orders.serve}
    assert {offer.offer_id for offer in world.book.offers()} == {"h1.gpu0", "h1.gpu1"}


def test_an_expired_quote_rents_nothing(world: World) -> None:
    """A quote holds for its time and no longer."""
    quote = world.book.quote(ANA, "h1.gpu0", T)
    wish = RentRequest(quote_id=quote.quote_id, label="late", ssh_public_key=KEY)
    with pytest.raises(Refused) as refused:
        world.book.rent(ANA, wish, T + QUOTE_LIFE_MS + 1)

    assert (refused.value.status, refused.value.field) == (410, "quote_id")
    assert world.book.rentals(ANA) == []


def test_a_quote_is_its_users_own(world: World) -> None:
    """A quote made for one user rents nothing for another."""
    quote = world.book.quote(ANA, "h1.gpu0", T)
    with pytest.raises(Refused) as refused:
        world.book.rent(BEN, RentRequest(quote_id=quote.quote_id, label="x", ssh_public_key=KEY), T)

    assert refused.value.status == 410


def test_a_lost_host_is_billed_to_its_last_heartbeat(world: World) -> None:
    """Silence costs the user nothing."""
    rental = world.rent()
    world.report(T + 1_000, **{rental: "serving"})
    world.report(T + 31_000, **{rental: "serving"})
    world.book.lose("h1")
    (bill,) = world.book.charges(ANA, rental, T + 500_000)

    assert world.status(rental) == "gone"
    assert (bill.end_ms, bill.amount_nusd) == (T + 31_000, cost_nusd(PRICE, 30_000))
    assert world.book.offers() == []


def test_a_host_that_started_anew_has_lost_its_leases(world: World) -> None:
    """Another boot of the host without the lease ends it, billed to the last heartbeat of the old one."""
    rental = world.rent()
    world.report(T + 1_000, **{rental: "serving"})
    world.report(T + 9_000, **{rental: "serving"})
    world.report(T + 20_000, boot="boot2", sequence=0)

    assert world.status(rental) == "gone"
    assert world.book.charges(ANA, rental, T + 30_000)[0].end_ms == T + 9_000


def test_a_late_report_changes_nothing(world: World) -> None:
    """A report that was overtaken by a newer one of the same boot is ignored."""
    rental = world.rent()
    world.report(T + 1_000, sequence=10, **{rental: "serving"})
    world.report(T + 2_000, sequence=12, **{rental: "gone"})
    world.report(T + 3_000, sequence=11, **{rental: "serving"})

    assert world.status(rental) == "gone"


def test_released_before_the_host_spoke_but_served_is_billed(world: World) -> None:
    """When the host did begin before it heard of the release, the time until gone is on the bill."""
    rental = world.rent()
    world.book.release(ANA, rental)
    world.report(T + 1_000, **{rental: "serving"})
    world.report(T + 3_500, **{rental: "gone"})

    assert world.book.charges(ANA, rental, T + 9_000)[0].seconds == 3


def test_the_registrys_timer_ends_a_forgotten_rental(world: World) -> None:
    """At its deadline a rental is on its way to its end without anybody asking."""
    rental = world.rent(deadline_ms=T + 10_000)
    world.report(T + 1_000, **{rental: "serving"})
    world.book.run_timers(T + 9_999)
    before = world.status(rental)
    world.book.run_timers(T + 10_000)

    assert (before, world.status(rental)) == ("running", "ending")
    assert world.book.orders("h1", "boot", 1).end == (rental,)


def test_a_moved_deadline_reaches_the_host(world: World) -> None:
    """Extending moves the timer, and the host's order with it."""
    rental = world.rent(deadline_ms=T + 10_000)
    world.report(T + 1_000, **{rental: "serving"})
    world.book.changed.clear()
    world.book.set_deadline(ANA, rental, T + 50_000, T + 2_000)
    world.book.run_timers(T + 20_000)

    assert world.status(rental) == "running"
    assert world.book.changed == {"h1"}
    assert world.book.orders("h1", "boot", 1).serve[0].deadline_ms == T + 50_000


@pytest.mark.parametrize("owner_says", [True, False], ids=["granted", "chosen"])
def test_a_quota_holds(world: World, owner_says: bool) -> None:
    """Neither the owner's limit nor the user's own is passed; the refusal names both amounts."""
    limit = Quota(max_rentals=1) if owner_says else Quota(max_nusd_hour=PRICE)
    user = UserRow(user="ana", token_digest="a", **({"granted": limit} if owner_says else {"chosen": limit}))
    world.store.put_user(user)
    world.rent(user, "one", "h1.gpu0")
    with pytest.raises(Refused) as refused:
        world.rent(user, "two", "h1.gpu1")

    assert refused.value.status == 402
    assert "ana" in refused.value.message


def test_rentals_are_private(world: World) -> None:
    """A user sees neither another's rentals nor their bills, and cannot release them."""
    rental = world.rent(ANA)
    assert world.book.rentals(BEN) == []
    for attempt in (world.book.rental, world.book.release):
        with pytest.raises(Refused) as refused:
            attempt(BEN, rental)
        assert refused.value.status == 404


def test_state_survives_a_restart(tmp_path: Path) -> None:
    """What was committed is there for the next process: rentals, labels, bills."""
    store = RegistryStore(tmp_path / "registry.sqlite")
    world = World(store)
    rental = world.rent(label="kept")
    world.report(T + 1_000, **{rental: "serving"})
    store.close()
    store = RegistryStore(tmp_path / "registry.sqlite")
    book = Book(store)

    assert book.rentals(ANA, "kept")[0].rental_id == rental
    assert book.charges(ANA, rental, T + 11_000)[0].seconds == 10
    store.close()


def test_a_failed_start_is_told_and_costs_nothing(world: World) -> None:
    """A lease that its host could not start is FAILED with the reason, and free of charge."""
    rental = world.rent()
    failed = LeaseReport(rental_id=rental, offer_id="h1.gpu0", state="failed", detail="disk full")
    world.book.report("h1", HostReport(boot_id="boot1", sequence=99, leases=(failed,)), T + 1_000)

    assert world.book.rental(ANA, rental).detail == "disk full"
    assert world.status(rental) == "failed"
    assert world.book.charges(ANA, rental, T + 9_000) == []


@given(start=st.integers(0, 10**13), length=st.integers(0, 10**9))
def test_billed_seconds_cover_the_time_and_less_than_one_more(start: int, length: int) -> None:
    """Rounding up adds less than a second."""
    seconds = billed_seconds(start, start + length)

    assert length <= seconds * 1000 < length + 1000
