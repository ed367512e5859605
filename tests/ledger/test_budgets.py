"""Budgets: reserved before renting, warned at 80 %, cut at 100 %, and refused in words with amounts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.errors import BudgetExceeded
from jupyter_gpumarket.ledger import cuts, lease_charges, refuse_lease, refuse_run, verdict, views
from jupyter_gpumarket.models import Billing, Budget, Lease, LeaseRequest, LeaseState, OfferQuery, Owner, Scope
from jupyter_gpumarket.money import usd

from .records import ANNA, HOUR_MS, MINUTE_MS, START_MS, lease, moments, run


def budget(limit: str, scope: Scope = Scope.PROJECT, key: str = "vision", **changes: int) -> Budget:
    return Budget(scope=scope, key=key, limit_nusd=usd(limit), **changes)


def request(amount: str = "1", owner: Owner = ANNA, max_price: str | None = None) -> LeaseRequest:
    query = OfferQuery(max_price_nusd_hour=usd(max_price) if max_price else None)
    return LeaseRequest(request_id="q-2", query=query, budget_nusd=usd(amount), max_s=3600, owner=owner)


def refuse(wish: LeaseRequest, limit: Budget, *open_leases: Lease, now_ms: int = START_MS + HOUR_MS) -> None:
    charges = [line for own in open_leases for line in lease_charges(own, [], now_ms)]
    refuse_lease(wish, budgets=[limit], charges=charges, open_leases=open_leases, now_ms=now_ms)


def actions(found: list[object]) -> list[tuple[str, str, str]]:
    return [(cut.action, cut.limit, cut.run_id) for cut in found]  # type: ignore[attr-defined]


def test_warn_begins_at_four_fifths_and_spent_at_the_limit() -> None:
    """To the nano-dollar."""
    assert [verdict(n, 1000) for n in (799, 800, 999, 1000)] == ["ok", "warn", "warn", "spent"]
    assert verdict(0, 0) == "spent"


def test_a_lease_is_refused_with_all_amounts() -> None:
    """The message names the budget, its limit, what is spent, reserved and asked, and what to do."""
    with pytest.raises(BudgetExceeded) as refused:
        refuse(request("1.50"), budget("2.00"), lease())

    assert str(refused.value) == (
        "the budget of project 'vision' is $2.00: $0.36 is spent, $0.36 reserved by open leases, $1.28 is free; this "
        "lease may cost up to $1.50. Ask for fewer hours or a smaller --budget, release a lease, or raise the budget"
    )


def test_two_leases_that_fit_alone_and_not_together_are_not_both_rented() -> None:
    """The first one's worst case is reserved."""
    first = lease(state=LeaseState.WISHED, request=request("1.50"), billed_from_ms=None, ready_ms=None)

    refuse(request("1.50"), budget("2.00"))
    with pytest.raises(BudgetExceeded):
        refuse(request("1.50"), budget("2.00"), first)


def test_a_price_cap_bounds_what_is_asked() -> None:
    """One hour at $0.50 at most asks for $0.50, though the lease's budget is $5."""
    refuse(request("5", max_price="0.50"), budget("0.50"))
    with pytest.raises(BudgetExceeded):
        refuse(request("5", max_price="0.51"), budget("0.50"))


@pytest.mark.parametrize(
    ("scope", "key", "counts"),
    [
        (Scope.USER, "anna", True),
        (Scope.USER, "ben", False),
        (Scope.PROJECT, "vision", True),
        (Scope.NOTEBOOK, "digits.ipynb", True),
        (Scope.NOTEBOOK, "", False),
    ],
)
def test_a_budget_limits_its_own_scope_only(scope: Scope, key: str, *, counts: bool) -> None:
    """Others' budgets do not matter; an owner without a name is in no named scope."""
    if counts:
        with pytest.raises(BudgetExceeded):
            refuse(request(), budget("0.01", scope, key))
    else:
        refuse(request(), budget("0.01", scope, key))


def test_a_cell_of_a_used_up_owner_is_refused() -> None:
    """Also on somebody else's node."""
    charges = lease_charges(lease(), [], START_MS + HOUR_MS)

    with pytest.raises(BudgetExceeded, match="used up"):
        refuse_run(
            ANNA, run_id="r", budgets=[budget("0.30")], charges=charges, open_leases=[], now_ms=START_MS + HOUR_MS
        )


def test_what_was_spent_before_the_period_does_not_count() -> None:
    """A line over its beginning counts for its part after it."""
    charges = lease_charges(lease(), [run("a", 60, 3600)], START_MS + HOUR_MS)
    period = budget("1", since_ms=START_MS + 30 * MINUTE_MS)

    (view,) = views([period], charges, [], START_MS + HOUR_MS)

    assert view.spent_nusd == usd("0.18")


def test_an_open_lease_is_warned_and_then_drained() -> None:
    """At 80 % of a project's budget a warning, at 100 % the lease ends."""
    found = {}
    for minutes in (10, 50, 60):
        now_ms = START_MS + minutes * MINUTE_MS
        told = cuts(budgets=[budget("0.36")], ended_charges=[], open_leases=[lease()], runs=[], now_ms=now_ms)
        found[minutes] = [(cut.action, cut.lease_id, cut.limit) for cut in told]

    assert found == {
        10: [],
        50: [("warn", "lease-1", "project:vision")],
        60: [("drain", "lease-1", "project:vision")],
    }


def test_the_lease_s_own_budget_cuts_too() -> None:
    """`--budget` of the lease, without any other budget."""
    own = lease(request=request("0.36"))

    told = cuts(budgets=[], ended_charges=[], open_leases=[own], runs=[], now_ms=START_MS + HOUR_MS)

    assert actions(told) == [("drain", "lease:lease-1", "")]
    assert told[0].reason == "the budget of the lease blue-fox is used up: $0.36 of $0.36"


def test_a_cell_s_budget_ends_the_cell_only() -> None:
    """The node goes on."""
    cell = run("a", 60, None, budget_nusd=usd("0.10"))

    told = cuts(budgets=[], ended_charges=[], open_leases=[lease()], runs=[cell], now_ms=START_MS + HOUR_MS)

    assert actions(told) == [("drain", "run:a", "a")]


def test_a_guest_s_used_up_budget_ends_the_guest_s_cell() -> None:
    """Not the node of who rented it."""
    cell = run("a", 60, None, owner=Owner(user="ben"))

    told = cuts(
        budgets=[budget("0.10", Scope.USER, "ben")],
        ended_charges=[],
        open_leases=[lease()],
        runs=[cell],
        now_ms=START_MS + HOUR_MS,
    )

    assert actions(told) == [("drain", "user:ben", "a")]


def test_looking_ahead_ends_a_lease_before_the_next_paid_hour_begins() -> None:
    """Billed by the hour, the cut comes while draining still fits into the hour that is paid."""
    own = lease(billing=Billing(quantum_s=3600), request=request("0.70"))

    def told(now_ms: int) -> list[tuple[str, str, str]]:
        found = cuts(budgets=[], ended_charges=[], open_leases=[own], runs=[], now_ms=now_ms, ahead_s=30)
        return actions(found)  # type: ignore[arg-type]

    assert told(START_MS + HOUR_MS - 31_000) == []
    assert told(START_MS + HOUR_MS - 29_000) == [("drain", "lease:lease-1", "")]


def test_a_lease_that_ends_already_is_not_cut_again() -> None:
    """Its money counts, and there is nothing more to do."""
    own = lease(state=LeaseState.RELEASE_UNCONFIRMED, request=request("0.36"))

    told = cuts(budgets=[budget("0.1")], ended_charges=[], open_leases=[own], runs=[], now_ms=START_MS + HOUR_MS)

    assert told == []


@given(moments, st.integers(0, 10**10), st.integers(1, 5))
def test_spent_and_reserved_never_hide_money(now_ms: int, limit: int, count: int) -> None:
    """What is spent and reserved covers at least each lease's bill up to its deadline."""
    own = [lease(lease_id=f"lease-{n}") for n in range(count)]
    now_ms = max(START_MS, now_ms)
    charges = [line for one in own for line in lease_charges(one, [], now_ms)]
    limits = [Budget(scope=Scope.USER, key="anna", limit_nusd=limit)]

    (view,) = views(limits, charges, own, now_ms)

    assert view.spent_nusd + view.reserved_nusd >= count * usd("0.72")


def test_a_cell_within_its_budget_goes_on() -> None:
    """Neither other leases' cells, nor ended ones, nor those without a budget are looked at."""
    cells = [
        run("a", 60, None, budget_nusd=usd("1")),
        run("b", 60, 70, budget_nusd=0),
        run("c", 60, None),
        run("d", 60, None, lease_id="other", budget_nusd=0),
    ]

    assert cuts(budgets=[], ended_charges=[], open_leases=[lease()], runs=cells, now_ms=START_MS + 90_000) == []


def test_a_cell_is_allowed_while_its_owner_s_budget_lasts() -> None:
    """The node's worst case is reserved already, so it is not asked for twice."""
    charges = lease_charges(lease(), [], START_MS + HOUR_MS)
    now_ms = START_MS + HOUR_MS

    refuse_run(ANNA, run_id="r", budgets=[budget("0.37")], charges=charges, open_leases=[lease()], now_ms=now_ms)
