"""Charges: each lease's lines add up to its bill, and each cell pays for its own time."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpumarket.ledger.charges import bill, lease_charges, lease_money, run_cost, spans, worst_case_nusd
from jupyter_gpumarket.models import (
    Attempt,
    Billing,
    CellRun,
    Charge,
    ChargeKind,
    Lease,
    LeaseState,
    NativePrice,
    Owner,
    RunStatus,
)
from jupyter_gpumarket.money import cost_nusd, usd

from .records import HOUR_MS, MINUTE_MS, START_MS, cell_runs, lease, leases, moments, offer, run


def by_kind(lines: list[Charge]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for line in lines:
        sums[str(line.kind)] = sums.get(str(line.kind), 0) + line.amount_nusd
    return sums


@given(leases(), cell_runs(), moments)
def test_the_lines_add_up_to_the_bill(lease: Lease, runs: list[CellRun], now_ms: int) -> None:
    """Whatever runs overlap, whatever was tried before, whatever the rule: no nano-dollar is lost or made."""
    lines = lease_charges(lease, runs, now_ms)

    assert sum(line.amount_nusd for line in lines) == sum(bill(span).total_nusd for span in spans(lease, now_ms))
    assert all(line.amount_nusd >= 0 and line.start_ms <= line.end_ms for line in lines)
    assert len({line.charge_id for line in lines}) == len(lines)


@given(leases(), cell_runs(), moments, st.integers(0, HOUR_MS))
def test_a_bill_never_shrinks(lease: Lease, runs: list[CellRun], now_ms: int, later_ms: int) -> None:
    """As time goes on, neither the total nor any cell's share becomes less."""
    before, after = lease_charges(lease, runs, now_ms), lease_charges(lease, runs, now_ms + later_ms)
    later = {line.run_id: line.amount_nusd for line in after if line.run_id}

    assert sum(line.amount_nusd for line in before) <= sum(line.amount_nusd for line in after)
    assert all(line.amount_nusd <= later[line.run_id] for line in before if line.run_id)


@given(leases(), cell_runs(), moments, st.randoms())
def test_the_order_of_runs_does_not_matter(lease: Lease, runs: list[CellRun], now_ms: int, rng: random.Random) -> None:
    """The same facts in any order give the same lines."""
    shuffled = list(runs)
    rng.shuffle(shuffled)

    assert lease_charges(lease, shuffled, now_ms) == lease_charges(lease, runs, now_ms)


@given(st.integers(1, 10**11), st.integers(2, 7), st.integers(1, HOUR_MS))
def test_cells_side_by_side_pay_the_same(price: int, count: int, length_ms: int) -> None:
    """Runs over the same time differ by one nano-dollar at most, and together pay for that time once."""
    runs = [run(f"run-{n}", 120, 120 + length_ms / 1000) for n in range(count)]
    own = lease(price_nusd_hour=price)

    shares = [line.amount_nusd for line in lease_charges(own, runs, START_MS + 3 * HOUR_MS) if line.run_id]

    assert max(shares) - min(shares) <= 1 if shares else True
    assert abs(sum(shares) - cost_nusd(price, length_ms)) <= 1


@given(cell_runs(), st.integers(0, HOUR_MS), moments)
def test_what_an_ended_cell_cost_is_settled(runs: list[CellRun], boot_ms: int, now_ms: int) -> None:
    """Neither the lease's end, nor its rule of rounding, nor a corrected start of the bill changes it."""
    open_lease = lease(billed_from_ms=START_MS - 2 * HOUR_MS, ready_ms=START_MS - HOUR_MS)
    ended = [r for r in runs if r.ended_ms is not None]
    now_ms = max([now_ms, *(r.ended_ms or 0 for r in ended)])
    closed = lease(
        billing=Billing(quantum_s=3600, fee_nusd=5),
        billed_from_ms=START_MS - 2 * HOUR_MS - boot_ms,
        ready_ms=START_MS - HOUR_MS - 1,
        state=LeaseState.RELEASED,
        billed_to_ms=now_ms + boot_ms,
    )

    told = {line.run_id: line.amount_nusd for line in lease_charges(open_lease, ended, now_ms) if line.run_id}
    final = {line.run_id: line.amount_nusd for line in lease_charges(closed, ended, now_ms + boot_ms) if line.run_id}

    assert told == final


def test_a_plain_lease_by_hand() -> None:
    """At $0.36 an hour a second costs 100,000 nano-dollars: 60 s boot, 30 s cell, 10 s idle."""
    own = lease(state=LeaseState.RELEASED, billed_to_ms=START_MS + 100_000)

    lines = lease_charges(own, [run("a", 70, 100)], START_MS + HOUR_MS)

    assert by_kind(lines) == {"boot": 6_000_000, "cell": 3_000_000, "idle": 1_000_000}
    assert all(line.final and line.native_amount and line.native_currency == "USD" for line in lines)


def test_a_line_keeps_its_native_amount_with_the_rate_it_was_made_by() -> None:
    """At $0.36 an hour and $0.45 a coin, 100 s cost $0.01, which is 0.022222222 coins."""
    native = NativePrice(amount_hour="0.8", currency="AKT", rate="0.45", source="the console", rate_ms=START_MS - 5)
    own = lease(offer=offer(native=native), state=LeaseState.RELEASED, billed_to_ms=START_MS + 100_000)

    lines = lease_charges(own, [run("a", 0, 100)], START_MS + HOUR_MS)

    told = [(c.native_amount, c.native_currency, c.native_rate, c.native_rate_source, c.native_rate_ms) for c in lines]
    assert told == [("0.022222222", "AKT", "0.45", "the console", START_MS - 5)]


def test_traffic_costs_by_direction_where_the_marketplace_bills_it() -> None:
    """2 GiB in at $0.01 and half a GiB out at $0.04, beside the time; nothing where it is free."""
    billing = Billing(ingress_nusd_gib=usd("0.01"), egress_nusd_gib=usd("0.04"))
    moved = {"received_bytes": 2 * 1024**3, "sent_bytes": 1024**3 // 2}
    ended = {"state": LeaseState.RELEASED, "billed_to_ms": START_MS + 100_000}

    billed = lease_charges(lease(billing=billing, **moved, **ended), [], START_MS + HOUR_MS)
    free = lease_charges(lease(**moved, **ended), [], START_MS + HOUR_MS)

    assert by_kind(billed)["traffic"] == usd("0.04")
    assert "traffic" not in by_kind(free)


def test_two_cells_share_only_the_time_they_overlap() -> None:
    """a runs 60–100 s, b 80–120 s: each has 20 s alone and half of 20 s together."""
    lines = lease_charges(lease(), [run("a", 60, 100), run("b", 80, 120)], START_MS + 120_000)

    assert {line.run_id: line.amount_nusd for line in lines if line.run_id} == {"a": 3_000_000, "b": 3_000_000}


def test_the_paid_rest_of_an_hour_is_idle() -> None:
    """Billed by the hour, used 10 minutes: the other 50 are idle, not the cell's."""
    own = lease("3.60", billing=Billing(quantum_s=3600), state=LeaseState.RELEASED, billed_to_ms=START_MS + 660_000)

    lines = lease_charges(own, [run("a", 60, 660)], START_MS + HOUR_MS)

    assert by_kind(lines) == {"boot": 60_000_000, "cell": 600_000_000, "idle": 2_940_000_000}
    assert max(line.end_ms for line in lines) == START_MS + HOUR_MS


def test_an_unconfirmed_release_is_charged_on() -> None:
    """Until the marketplace confirms the end, the bill runs up to now, whatever end was hoped for."""
    own = lease(state=LeaseState.RELEASE_UNCONFIRMED, billed_to_ms=START_MS + 100_000)

    cost, _, _ = lease_money(own, [], START_MS + HOUR_MS)

    assert cost == usd("0.36")
    assert not any(line.final for line in lease_charges(own, [], START_MS + HOUR_MS))


def test_a_failed_attempt_is_charged_by_its_own_rule() -> None:
    """What led to no ready node is a line of its own, with that offer's minimum and fee."""
    failed = Attempt(
        marketplace="pool",
        offer_id="o-0",
        machine_id="m-0",
        started_ms=START_MS - HOUR_MS,
        ended_ms=START_MS - HOUR_MS + 1_000,
        rental_id="r-0",
        price_nusd_hour=usd("0.36"),
        billed_from_ms=START_MS - HOUR_MS,
        offer=offer(billing=Billing(minimum_s=60, fee_nusd=7)),
    )

    lines = lease_charges(lease(attempts=(failed,)), [], START_MS)

    assert by_kind(lines) == {"failed_attempt": 6_000_007}


def test_an_attempt_told_twice_is_charged_once() -> None:
    """A lease that failed may hold its last attempt in its own fields and among its attempts."""
    own = lease(state=LeaseState.FAILED, ready_ms=None, billed_to_ms=START_MS + 10_000)
    same = Attempt(
        marketplace="pool",
        offer_id="o-1",
        machine_id="m-1",
        started_ms=START_MS,
        ended_ms=START_MS + 10_000,
        rental_id="r-1",
        price_nusd_hour=own.price_nusd_hour,
        billed_from_ms=START_MS,
        offer=own.offer,
    )

    lines = lease_charges(lease(**_fields(own, attempts=(same,))), [], START_MS + HOUR_MS)

    assert by_kind(lines) == {"failed_attempt": 1_000_000}


def _fields(own: Lease, **changes: object) -> dict[str, object]:
    return {name: getattr(own, name) for name in own.__struct_fields__} | changes


def test_disk_and_fee_are_lines_of_their_own() -> None:
    """100 GiB at $0.0001 a GiB and hour for one hour is $0.01."""
    own = lease(
        offer=offer(disk_gib=100.0, billing=Billing(storage_nusd_gib_hour=100_000, fee_nusd=5)),
        state=LeaseState.RELEASED,
        billed_to_ms=START_MS + HOUR_MS,
    )

    sums = by_kind(lease_charges(own, [], START_MS + HOUR_MS))

    assert (sums["storage"], sums["fee"]) == (10_000_000, 5)


def test_a_line_is_booked_on_who_ran_the_cell() -> None:
    """A colleague's cell on this node is the colleague's; boot and idle stay with who rented it."""
    guest = Owner(user="ben", project="speech", notebook="b.ipynb")

    lines = lease_charges(lease(), [run("a", 60, 70, owner=guest)], START_MS + 80_000)

    assert {line.owner.user for line in lines if line.kind is ChargeKind.CELL} == {"ben"}
    assert {line.owner.user for line in lines if line.kind is not ChargeKind.CELL} == {"anna"}


def test_runs_of_other_leases_are_passed_over() -> None:
    """A caller may hand in the runs of all leases."""
    lines = lease_charges(lease(), [run("a", 60, 70, lease_id="other")], START_MS + 80_000)

    assert not any(line.run_id for line in lines)


def test_the_cost_line_of_a_cell() -> None:
    """It tells the cell's share and what its lease cost, of that boot and idle."""
    cost = run_cost(lease(), [run("a", 70, 100)], "a", START_MS + 110_000)

    assert (cost.amount_nusd, cost.duration_ms, cost.final) == (3_000_000, 30_000, True)
    assert (cost.lease_total_nusd, cost.lease_boot_nusd, cost.lease_idle_nusd) == (11_000_000, 6_000_000, 2_000_000)


def test_a_running_cell_is_not_final() -> None:
    """Its amount is what has come up so far."""
    cost = run_cost(lease(), [run("a", 70, None)], "a", START_MS + 100_000)

    assert (cost.amount_nusd, cost.final) == (3_000_000, False)


def test_the_worst_case_of_a_ready_lease_ends_at_its_deadline() -> None:
    """The node stops itself then: two hours at $0.36."""
    assert worst_case_nusd(lease()) == usd("0.72")


def test_the_worst_case_before_ready_is_what_the_request_allows() -> None:
    """Another offer may have to be tried, up to the budget."""
    assert worst_case_nusd(lease(state=LeaseState.BOOTING, ready_ms=None)) == usd("5")


def test_the_worst_case_of_an_ended_lease_is_its_bill() -> None:
    """Nothing more can come."""
    ended = lease(state=LeaseState.RELEASED, billed_to_ms=START_MS + 10 * MINUTE_MS)

    assert worst_case_nusd(ended) == usd("0.06")


@settings(max_examples=30)
@given(leases(), cell_runs(), moments)
def test_money_of_a_lease_is_that_of_its_lines(lease: Lease, runs: list[CellRun], now_ms: int) -> None:
    """The totals shown and the lines exported never differ."""
    lines = by_kind(lease_charges(lease, runs, now_ms))

    assert lease_money(lease, runs, now_ms) == (sum(lines.values()), lines.get("boot", 0), lines.get("idle", 0))


def test_a_lease_of_many_cells_is_charged_quickly() -> None:
    """The books are looked at every second: the work grows with the number of cells, not with its square."""

    def took_s(count: int) -> float:
        runs = [run(f"run-{n:05}", 60 + n, 60.5 + n) for n in range(count)]
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            lease_charges(lease(), runs, START_MS + 3 * HOUR_MS)
            best = min(best, time.process_time() - began)
        return best

    # Sixteen times the cells take sixteen times as long; a square would take 256 times.
    assert took_s(4_000) < 80 * took_s(250)


def test_a_run_told_twice_pays_once() -> None:
    """The same run among the facts twice is one run; the first telling counts."""
    cell = run("a", 70, 100)

    lines = lease_charges(lease(), [cell, cell], START_MS + 110_000)

    assert by_kind(lines) == {"boot": 6_000_000, "cell": 3_000_000, "idle": 2_000_000}


def test_a_cell_that_waits_costs_nothing() -> None:
    """Queued, not started."""
    cost = run_cost(lease(), [run("a", None, None, status=RunStatus.QUEUED)], "a", START_MS + 90_000)

    assert (cost.amount_nusd, cost.duration_ms, cost.final) == (0, 0, False)


def test_an_unknown_run_is_an_error() -> None:
    """Not a cost of zero."""
    with pytest.raises(KeyError, match="no run b on lease lease-1"):
        run_cost(lease(), [run("a", 70, 80)], "b", START_MS + 90_000)
