"""The engine against one lie or fault at a time, in real time with short patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.api import JournalLine, LinkBack, LinkLost, NodeFailed, NodeIdle, Probed, RunStarted
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.errors import (
    BadRequest,
    ConfigError,
    InsufficientFunds,
    InvalidTransition,
    JournalFull,
    LeaseError,
    OfferGone,
    OutcomeUnknown,
    Temporary,
    Unreachable,
)
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.models import (
    Capabilities,
    Lease,
    LeaseState,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
)
from tests.leases.fakes import QUICK, Bench, FakeClusters, FakeMarket, MemoryStore, offer, request

S = LeaseState


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.engine.start()
    try:
        yield bench
    finally:
        await bench.engine.aclose()


async def ready(bench: Bench, **changes: object) -> Lease:
    lease = await bench.engine.wish(request(**changes))
    return await bench.reaches(lease.lease_id, S.READY)


async def until(condition: object, within_s: float = 5) -> None:
    """Poll a condition."""
    async with asyncio.timeout(within_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def now(bench: Bench) -> int:
    return bench.clock.now_ms()


# ── the create call ──────────────────────────────────────────────────────────────────────────────────────────────────


class LosesReply(FakeMarket):
    """Rents, and the answer is lost."""

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        await super().rent(quote, label=label, ssh_public_key=ssh_public_key, deadline_ms=deadline_ms)
        raise OutcomeUnknown(self.name, "502")


class LosesRequest(FakeMarket):
    """The first create call never arrives."""

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        if sum(call.startswith("rent") for call in self.calls) == 0:
            self.calls.append(f"rent {quote.offer.offer_id}")
            raise OutcomeUnknown(self.name, "504")
        return await super().rent(quote, label=label, ssh_public_key=ssh_public_key, deadline_ms=deadline_ms)


class NeverAnswers(FakeMarket):
    """Rents and hangs."""

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        await super().rent(quote, label=label, ssh_public_key=ssh_public_key, deadline_ms=deadline_ms)
        await asyncio.sleep(3600)
        raise AssertionError


async def test_a_lost_reply_is_looked_for_and_adopted() -> None:
    """The rental is found by its label; there is one create call and one rental."""
    async with running(Bench(LosesReply())) as bench:
        lease = await ready(bench)

        assert [call for call in bench.market.calls if call.startswith("rent")] == ["rent o1"]
        assert list(bench.market.live) == [lease.rental_id]


async def test_a_hanging_create_call_is_looked_for_and_adopted() -> None:
    """A time-out is an unclear answer, not a refusal."""
    policy = msgspec.structs.replace(QUICK, rent_timeout_s=0.05)
    async with running(Bench(NeverAnswers(), policy)) as bench:
        lease = await ready(bench)

        assert list(bench.market.live) == [lease.rental_id]


async def test_a_lost_request_is_proven_absent_and_the_next_offer_follows() -> None:
    """Nothing was rented under the first label: the second attempt has another one."""
    async with running(Bench(LosesRequest())) as bench:
        lease = await ready(bench)

        assert [attempt.billed_from_ms for attempt in lease.attempts] == [None]
        assert lease.offer is not None
        assert lease.offer.offer_id == "o2"


async def test_a_broken_adapter_counts_as_unclear() -> None:
    """Whatever a create call dies of, it may have cost money."""

    class Broken(FakeMarket):
        async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
            await super().rent(quote, label=label, ssh_public_key=ssh_public_key, deadline_ms=deadline_ms)
            raise KeyError("price")

    async with running(Bench(Broken())) as bench:
        lease = await ready(bench)

        assert list(bench.market.live) == [lease.rental_id]


async def test_a_release_while_the_answer_is_unclear_ends_what_is_found() -> None:
    """Somebody changes his mind while the label is looked for: what is found is given back."""
    async with running(Bench(LosesReply())) as bench:
        lease = await bench.engine.wish(request())
        await bench.reaches(lease.lease_id, S.RENTING, S.UNCONFIRMED)
        await bench.engine.release(lease.lease_id, "changed my mind")
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert bench.market.live == {}
        assert released.reason == "changed my mind"


@pytest.mark.parametrize("error", [OfferGone("taken"), InsufficientFunds("fake", "balance is 0.00")])
async def test_a_refusal_is_told_when_no_offer_is_left(error: Exception) -> None:
    """The failed lease says what each offer's refusal was."""

    class Refuses(FakeMarket):
        async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
            raise error

    async with running(Bench(Refuses())) as bench:
        lease = await bench.engine.wish(request())
        failed = await bench.reaches(lease.lease_id, S.FAILED)

        assert len(failed.attempts) == 2
        assert str(error) in failed.reason


# ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_wishes_for_one_offer_rent_it_once() -> None:
    """The second waits, and hears that nothing is left."""
    async with running(Bench(FakeMarket(offer(1)))) as bench:
        first = await bench.engine.wish(request(1))
        second = await bench.engine.wish(request(2))
        states = {(await bench.reaches(lease.lease_id, S.READY, S.FAILED)).state for lease in (first, second)}

        assert states == {S.READY, S.FAILED}
        assert [call for call in bench.market.calls if call.startswith("rent")] == ["rent o1"]


async def test_a_budget_below_the_minimum_rents_nothing() -> None:
    """The reason says for how long the budget would pay."""
    async with running(Bench()) as bench:
        lease = await bench.engine.wish(request(budget_nusd=1_000_000))
        failed = await bench.reaches(lease.lease_id, S.FAILED)

        assert "the budget pays for 10 s" in failed.reason
        assert not any(call.startswith("rent") for call in bench.market.calls)


async def test_a_quote_above_the_listed_price_is_not_taken() -> None:
    """The next offer is."""

    class Dearer(FakeMarket):
        async def quote(self, offer: Offer) -> Quote:
            quote = await super().quote(offer)
            return quote if offer.offer_id == "o2" else msgspec.structs.replace(quote, price_nusd_hour=10**12)

    async with running(Bench(Dearer())) as bench:
        lease = await ready(bench)

        assert lease.offer is not None
        assert lease.offer.offer_id == "o2"


@pytest.mark.parametrize("changes", [{"max_s": 0}, {"budget_nusd": 0}, {"budget_nusd": -1}])
async def test_a_wish_without_time_or_money_is_refused(changes: dict[str, int]) -> None:
    """The message names the field."""
    async with running(Bench()) as bench:
        with pytest.raises(BadRequest, match=next(iter(changes))):
            await bench.engine.wish(request(**changes))

        assert bench.store.lines == []


async def test_a_name_is_taken_once() -> None:
    """Two open leases of one name could not be told apart."""
    async with running(Bench()) as bench:
        await bench.engine.wish(request(1, name="mine"))
        with pytest.raises(BadRequest, match="mine"):
            await bench.engine.wish(request(2, name="mine"))


# ── what was rented ──────────────────────────────────────────────────────────────────────────────────────────────────


class RentsOtherwise(FakeMarket):
    """What it rents on the first machine is not what was agreed."""

    changes: dict[str, object] = {}

    def start(self, quote: Quote, label: str) -> Rental:
        rental = super().start(quote, label)
        if quote.offer.offer_id == "o1":
            rental = msgspec.structs.replace(rental, **self.changes)
            self.live[rental.rental_id] = rental
        return rental


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price_nusd_hour": 700_000_000}, "dearer"),
        ({"price_nusd_hour": -5}, "negative"),
        ({"kind": PriceKind.SPOT}, "spot"),
        ({"status": RentalStatus.FAILED, "detail": "no image"}, "no image"),
    ],
)
async def test_what_breaks_the_quote_is_given_back_at_once(changes: dict[str, object], reason: str) -> None:
    """Released with proof, remembered as bad, and the next offer follows."""
    market = RentsOtherwise()
    market.changes = changes
    async with running(Bench(market)) as bench:
        lease = await ready(bench)

        assert reason in lease.attempts[0].reason
        assert [rental.machine_id for rental in market.live.values()] == ["m2"]
        assert bench.store.judged["fake", "m1"].bad == 1
        assert bench.store.judged["fake", "m2"].good == 1


async def test_a_node_that_never_boots_is_given_back_in_time() -> None:
    """The phase's deadline ends it."""
    market = RentsOtherwise()
    market.changes = {"status": RentalStatus.PENDING, "address": None}
    policy = msgspec.structs.replace(QUICK, phase_s={S.BOOTING: 0})
    async with running(Bench(market, policy)) as bench:
        lease = await bench.engine.wish(request())
        await until(lambda: bench.store.rows[lease.lease_id].attempts)

        assert "booting for too long" in bench.store.rows[lease.lease_id].attempts[0].reason


async def test_a_machine_that_is_not_as_sold_is_given_back_and_marked() -> None:
    """The probe's differences are the reason."""

    class Differs(FakeClusters):
        async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
            assert lease.offer is not None
            self.differences = ("GPU: A4000 instead of H100",) if lease.offer.offer_id == "o1" else ()
            await super().attach(lease, self_stop=self_stop, resume=resume)

    bench = Bench(clusters=Differs())
    async with running(bench):
        lease = await ready(bench)

        assert "A4000 instead of H100" in lease.attempts[0].reason
        assert bench.store.judged["fake", "m1"].last_reason.startswith("not as sold")


async def test_a_machine_that_was_bad_for_one_lease_comes_last_for_the_next() -> None:
    """It is used again only when nothing else is left."""
    market = RentsOtherwise()
    market.changes = {"status": RentalStatus.FAILED}
    async with running(Bench(market)) as bench:
        first = await ready(bench)
        market.changes = {}
        second = await bench.engine.wish(request(2))
        second = await bench.reaches(second.lease_id, S.READY)

        assert first.offer is not None
        assert second.offer is not None
        assert (first.offer.offer_id, second.offer.offer_id) == ("o2", "o1")


async def test_an_unreachable_cluster_process_is_tried_again() -> None:
    """Attaching goes on with back-off within the phase's deadline."""

    class Away(FakeClusters):
        async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
            if len(self.calls) < 3:
                self.calls.append("refused")
                raise Unreachable("the cluster process does not answer")
            await super().attach(lease, self_stop=self_stop, resume=resume)

    async with running(Bench(clusters=Away())) as bench:
        await ready(bench)

        assert bench.clusters.calls[:4] == ["refused", "refused", "refused", "attach"]


# ── a ready node ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_preempted_node_ends_the_lease_with_its_reason() -> None:
    """The marketplace's word is polled, without the link."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        bench.market.live.clear()
        failed = await bench.reaches(lease.lease_id, S.FAILED)

        assert "the marketplace ended the rental" in failed.reason
        assert failed.billed_to_ms is not None


async def test_the_deadline_is_kept_on_this_side_too() -> None:
    """With nobody asking, the lease ends when its hours are over."""
    async with running(Bench()) as bench:
        lease = await ready(bench, max_s=1)
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert released.reason == "the agreed hours are over"
        assert bench.market.live == {}


async def test_more_budget_moves_the_deadline_and_the_node_is_told() -> None:
    """New totals count from the start of the rental."""
    async with running(Bench()) as bench:
        lease = await ready(bench, budget_nusd=50_000_000)
        bench.clusters.calls.clear()
        longer = await bench.engine.extend(lease.lease_id, budget_nusd=100_000_000)
        await until(lambda: "set_deadline" in bench.clusters.calls)

        assert lease.billed_from_ms is not None
        assert longer.deadline_ms == lease.billed_from_ms + 1028_000


async def test_an_idle_node_is_given_back() -> None:
    """After the policy's time without a cell, and not before."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        at_ms = now(bench)
        await bench.engine.report(NodeIdle(lease_id=lease.lease_id, at_ms=at_ms, idle_since_ms=at_ms - 60_000))
        assert bench.engine.leases()[0].state is S.READY
        await bench.engine.report(NodeIdle(lease_id=lease.lease_id, at_ms=at_ms, idle_since_ms=at_ms - 1_900_000))
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert "no cell ran on it for 31 min" in released.reason


async def test_a_lost_link_is_shown_and_costs_no_lease() -> None:
    """Unreachable and back; a doubled word changes nothing."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        lost = LinkLost(lease_id=lease.lease_id, at_ms=now(bench), reason="cut")
        await bench.engine.report(lost)
        await bench.engine.report(lost)
        assert bench.engine.leases()[0].state is S.UNREACHABLE
        await bench.engine.report(LinkBack(lease_id=lease.lease_id, at_ms=now(bench), same_boot=True))

        assert bench.engine.leases()[0].state is S.READY


async def test_a_node_that_fails_when_ready_ends_the_lease() -> None:
    """Its variables are gone, so no other node takes its place unasked."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        await bench.engine.report(
            NodeFailed(lease_id=lease.lease_id, at_ms=now(bench), phase="ready", reason="another host key")
        )
        failed = await bench.reaches(lease.lease_id, S.FAILED)

        assert failed.reason == "another host key"
        assert bench.market.live == {}


async def test_facts_about_nothing_are_refused_and_late_ones_taken() -> None:
    """An unknown lease, an impossible fact; and a fact about a lease that has ended."""
    async with running(Bench()) as bench:
        with pytest.raises(LeaseError, match="no lease"):
            await bench.engine.report(LinkLost(lease_id="lease-0", at_ms=0, reason=""))
        lease = await bench.engine.wish(request())
        with pytest.raises(InvalidTransition, match="probed cannot happen to a wished lease"):
            await bench.engine.report(Probed(lease_id=lease.lease_id, at_ms=0, report={}, differences=()))
        await bench.reaches(lease.lease_id, S.READY)
        await bench.engine.report(RunStarted(lease_id=lease.lease_id, at_ms=0, run_id="r"))
        await bench.engine.release(lease.lease_id, "done")
        await bench.reaches(lease.lease_id, S.RELEASED)
        await bench.engine.report(LinkLost(lease_id=lease.lease_id, at_ms=now(bench), reason="late"))


async def test_an_ending_lease_cannot_be_extended() -> None:
    """The message says what to do instead."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        await bench.engine.release(lease.lease_id, "done")

        with pytest.raises(LeaseError, match="rent a new node"):
            await bench.engine.extend(lease.lease_id, max_s=9999)


# ── giving back ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Clings(FakeMarket):
    """Says yes to each release and keeps the node until it is let go."""

    clinging = True

    async def release(self, rental_id: str) -> None:
        self.calls.append("release")
        if not self.clinging:
            await super().release(rental_id)


async def test_a_release_is_believed_only_with_proof() -> None:
    """Shown as unconfirmed, asked again and again, and ended when the marketplace says gone."""
    market = Clings()
    async with running(Bench(market)) as bench:
        lease = await ready(bench)
        await bench.engine.release(lease.lease_id, "done")
        shown = await bench.reaches(lease.lease_id, S.RELEASE_UNCONFIRMED)
        assert shown.may_bill
        market.clinging = False
        await bench.engine.release(lease.lease_id, "now, please")
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert market.calls.count("release") > 3
        assert released.reason == "done"


@pytest.mark.parametrize("error", [ConfigError("'a b' is not a rental"), KeyError("a bug")], ids=["no_id", "bug"])
async def test_people_are_told_of_a_release_that_an_adapter_cannot_even_ask_for(error: Exception) -> None:
    """It may still bill: shown as unconfirmed with the reason, like one that the marketplace refuses."""

    class Unable(FakeMarket):
        async def release(self, rental_id: str) -> None:
            raise error

    async with running(Bench(Unable())) as bench:
        lease = await ready(bench)
        await bench.engine.release(lease.lease_id, "done")

        assert (await bench.reaches(lease.lease_id, S.RELEASE_UNCONFIRMED)).may_bill


async def test_a_marketplace_that_is_down_is_asked_until_it_answers() -> None:
    """Errors of the release call end nothing."""

    class Down(FakeMarket):
        down = False

        async def release(self, rental_id: str) -> None:
            if self.down:
                raise Temporary(self.name, "503", retry_after_s=0.001)
            await super().release(rental_id)

    market = Down()
    async with running(Bench(market)) as bench:
        lease = await ready(bench)
        market.down = True
        await bench.engine.release(lease.lease_id, "done")
        await bench.reaches(lease.lease_id, S.RELEASE_UNCONFIRMED)
        market.down = False
        await bench.reaches(lease.lease_id, S.RELEASED)

        assert market.live == {}


async def test_a_hanging_cluster_process_does_not_keep_a_node_rented() -> None:
    """Saying good-bye is bounded."""

    class Hangs(FakeClusters):
        async def detach(self, lease: Lease, *, save_s: float) -> None:
            await asyncio.sleep(3600)

    policy = msgspec.structs.replace(QUICK, detach_s=0.05, save_s=0.05)
    async with running(Bench(policy=policy, clusters=Hangs())) as bench:
        lease = await ready(bench)
        await bench.engine.release(lease.lease_id, "done")
        await bench.reaches(lease.lease_id, S.RELEASED)

        assert bench.market.live == {}


async def test_gone_is_doubted_while_the_marketplace_may_not_list_it_yet() -> None:
    """A new rental that is not shown yet is not taken for gone."""

    class Lags(FakeMarket):
        capabilities = Capabilities(listing_lag_s=1)
        hidden = True

        async def rental(self, rental_id: str) -> Rental:
            if self.hidden:
                return Rental(marketplace=self.name, rental_id=rental_id, label="", status=RentalStatus.GONE)
            return await super().rental(rental_id)

    market = Lags()
    async with running(Bench(market)) as bench:
        lease = await bench.engine.wish(request())
        await bench.reaches(lease.lease_id, S.LINKING, S.READY)
        await bench.engine.release(lease.lease_id, "done")
        await bench.reaches(lease.lease_id, S.RELEASING)
        await until(lambda: bench.store.rows[lease.lease_id].release_asks)
        state = bench.store.rows[lease.lease_id].state

        assert state in (S.RELEASING, S.RELEASE_UNCONFIRMED)


# ── crashes, orphans, colleagues, disks ──────────────────────────────────────────────────────────────────────────────


async def test_a_crash_after_the_create_call_finds_the_node_again() -> None:
    """The next broker adopts what the last one rented; there is no second create call."""
    bench = Bench(NeverAnswers())
    await bench.engine.start()
    lease = await bench.engine.wish(request())
    await until(lambda: bench.market.live)
    await bench.engine.aclose()
    bench.new_engine()
    async with running(bench):
        ready = await bench.reaches(lease.lease_id, S.READY)

        assert list(bench.market.live) == [ready.rental_id]
        assert "lease.taken_up" in bench.store.kinds()


async def test_a_restart_takes_up_a_ready_node_and_its_cluster() -> None:
    """The node is attached again as one that was ready before, and its deadline told."""
    bench = Bench()
    await bench.engine.start()
    lease = await ready(bench)
    await bench.engine.aclose()
    bench.clusters.calls.clear()
    bench.new_engine()
    async with running(bench):
        await until(lambda: {"resume", "set_deadline"} <= set(bench.clusters.calls))

        assert bench.engine.leases()[0].lease_id == lease.lease_id


async def test_an_orphan_is_found_and_ended_and_a_colleague_left_alone() -> None:
    """Our label without a lease: journaled and released. Everything else on the account stays."""
    bench = Bench()
    quote = await bench.market.quote(offer(1))
    for label in ("colleague", "gpum-" + "a" * 26 + "-" + "a" * 16):
        bench.market.start(quote, label)
    strangers = dict(bench.market.live)
    async with running(bench):
        lease = await ready(bench, query=OfferQuery())
        twin = msgspec.structs.replace(bench.market.live[lease.rental_id], rental_id="twin")
        bench.market.live["twin"] = twin
        await until(lambda: [orphan.state for orphan in bench.engine.orphans()] == ["gone"])

        assert set(bench.market.live) == {*strangers, lease.rental_id}
        assert [kind for kind in bench.store.kinds() if kind.startswith("orphan")] == [
            "orphan.found",
            "orphan.release_asked",
            "orphan.gone",
        ]


async def test_a_full_disk_stops_renting_but_not_releasing() -> None:
    """The wish is refused; a release that cannot be written is asked for all the same, and said so."""

    class Full(MemoryStore):
        full = False

        def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
            if self.full:
                raise JournalFull("the disk is full")
            return super().append(entries)

    bench = Bench(store=Full())
    async with running(bench):
        lease = await ready(bench)
        bench.store.full = True
        with pytest.raises(JournalFull):
            await bench.engine.wish(request(2))
        with pytest.raises(JournalFull):
            await bench.engine.release(lease.lease_id, "done")
        await until(lambda: not bench.market.live)
        bench.store.full = False
        ended = await bench.reaches(lease.lease_id, S.FAILED)

        assert "the marketplace ended the rental" in ended.reason


async def test_a_marketplace_that_is_not_configured_any_more_is_said_so() -> None:
    """Its rentals are shown as possibly billing until it is configured again."""
    bench = Bench()
    await bench.engine.start()
    lease = await ready(bench)
    await bench.engine.aclose()
    bench.new_engine(without_market=True)
    async with running(bench):
        await bench.engine.release(lease.lease_id, "done")
        shown = await bench.reaches(lease.lease_id, S.RELEASE_UNCONFIRMED)

        assert shown.may_bill
        unproven = bench.store.entries(subject=lease.lease_id, kinds={"lease.release_unproven"})
        assert "configure it again" in unproven[-1].body["reason"]


async def test_waiting_returns_at_the_next_change_or_in_time() -> None:
    """A door never polls in a loop, and never waits longer than it asked for."""
    async with running(Bench()) as bench:
        lease = await ready(bench)
        same, seq = await bench.engine.wait_changed(lease.lease_id, 0, 5)
        again, later = await bench.engine.wait_changed(lease.lease_id, seq, 0.02)
        waiting = asyncio.create_task(bench.engine.wait_changed(lease.lease_id, seq, 5))
        await asyncio.sleep(0)
        await bench.engine.release(lease.lease_id, "done")
        changed, last = await waiting

        assert (same.state, again.state, changed.state) == (S.READY, S.READY, S.DRAINING)
        assert seq == later < last


async def test_the_engine_lives_on_the_real_journal(tmp_path: Path) -> None:
    """Wish, crash, recovery and proof of the end on SQLite; the journal adds up afterwards."""
    clock = SystemClock()
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    journal = Journal.open(url, clock)
    bench = Bench(store=journal)
    await bench.engine.start()
    lease = await ready(bench)
    await bench.engine.aclose()
    journal.close()
    bench.store = journal = Journal.open(url, clock)
    bench.new_engine()
    async with running(bench):
        known, seq = await bench.engine.wait_changed(lease.lease_id, 0, 1)
        await bench.engine.release(lease.lease_id, "done")
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert known.rental_id == lease.rental_id
        assert seq > 0
        assert journal.lease(lease.lease_id) == released
    journal.verify()
    journal.close()


class JumpingClock(SystemClock):
    """A wall clock that somebody sets."""

    jump_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.jump_ms


async def test_a_clock_set_forward_or_a_night_asleep_ends_the_lease_at_its_deadline() -> None:
    """The wall's clock counts: after eight hours asleep nobody waits another hour."""
    clock = JumpingClock()
    async with running(Bench(clock=clock)) as bench:
        lease = await ready(bench, max_s=3600)
        clock.jump_ms = 8 * 3600 * 1000
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert released.reason == "the agreed hours are over"


async def test_a_clock_set_back_gives_no_longer_lease() -> None:
    """The monotonic clock counts too."""
    clock = JumpingClock()
    async with running(Bench(clock=clock)) as bench:
        lease = await ready(bench, max_s=1)
        clock.jump_ms = -3600 * 1000
        released = await bench.reaches(lease.lease_id, S.RELEASED)

        assert released.reason == "the agreed hours are over"
        assert released.billed_from_ms is not None
        assert released.billed_to_ms is not None
        assert released.billed_to_ms >= released.billed_from_ms
