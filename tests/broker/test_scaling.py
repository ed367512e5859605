"""How many nodes, and why: the pure decision, by a table and by generated situations."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.api import Aim
from jupyter_gpumarket.broker.scaling import (
    Load,
    Market,
    NodeFacts,
    Past,
    Situation,
    decide,
    paid_left_s,
    share_nusd,
)

USD = 10**9
MARKET = Market(price_nusd_hour=USD, boot_s=60, least_paid_s=60)
PLENTY = 1000 * USD


def nodes(count: int, **fields: object) -> tuple[NodeFacts, ...]:
    """So many ready nodes, of which the first is the head."""
    return tuple(
        NodeFacts(
            lease_id=f"l{i}", name=f"n{i}", price_nusd_hour=USD * (i + 1), state="ready", is_head=i == 0, **fields
        )
        for i in range(count)
    )


ADAPT = Aim(minimum=1, maximum=5)
IDLE = {"idle_s": 100.0}


@pytest.mark.parametrize(
    ("what", "situation", "grow", "release", "reason"),
    [
        ("a start", Situation(aim=Aim(minimum=4, maximum=4), nodes=()), 4, (), "0 of 4 nodes"),
        ("a lost node", Situation(aim=Aim(minimum=3, maximum=3), nodes=nodes(2)), 1, (), "2 of 3"),
        ("all there", Situation(aim=Aim(minimum=3, maximum=3), nodes=nodes(3)), 0, (), "as asked"),
        ("fewer asked", Situation(aim=Aim(minimum=2, maximum=2), nodes=nodes(4)), 0, ("l3", "l2"), "2 are asked for"),
        (
            "much work",
            Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=900, work_s=9000)),
            4,
            (),
            "each of 5 nodes has at least 60 s",
        ),
        (
            "little work",
            Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=900, work_s=90)),
            0,
            (),
            "less than the 60 s",
        ),
        ("one long task", Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=1, work_s=9000)), 0, (), "less than"),
        (
            "a deadline that one node meets",
            Situation(
                aim=Aim(minimum=1, maximum=5, finish_by_ms=1_000_000), nodes=nodes(1), load=Load(tasks=90, work_s=900)
            ),
            0,
            (),
            "1 nodes finish in 900 of the 1000 s",
        ),
        (
            "a deadline that takes more",
            Situation(
                aim=Aim(minimum=1, maximum=5, finish_by_ms=600_000), nodes=nodes(1), load=Load(tasks=90, work_s=1500)
            ),
            2,
            (),
            "takes 3 nodes",
        ),
        (
            "a deadline that cannot be met",
            Situation(
                aim=Aim(minimum=1, maximum=3, finish_by_ms=600_000), nodes=nodes(1), load=Load(tasks=90, work_s=9000)
            ),
            2,
            (),
            "even 3 nodes",
        ),
        (
            "a deadline too near",
            Situation(
                aim=Aim(minimum=1, maximum=3, finish_by_ms=50_000), nodes=nodes(1), load=Load(tasks=90, work_s=9000)
            ),
            0,
            (),
            "too late",
        ),
        (
            "a rate limit",
            Situation(
                aim=Aim(minimum=1, maximum=5, max_nusd_hour=3 * USD),
                nodes=nodes(1),
                load=Load(tasks=900, work_s=90_000),
            ),
            2,
            (),
            "leaves room for 2 more",
        ),
        (
            "just given one back",
            Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=900, work_s=9000), past=Past(shrank_s=5)),
            0,
            (),
            "not before 120 s",
        ),
        ("the dearest idle one", Situation(aim=ADAPT, nodes=nodes(3, **IDLE)), 0, ("l2",), "dearest idle node"),
        (
            "paid for longer",
            Situation(aim=ADAPT, nodes=nodes(2, paid_left_s=900.0, **IDLE)),
            0,
            (),
            "kept until then",
        ),
        ("idle for a moment", Situation(aim=ADAPT, nodes=nodes(3, idle_s=3.0)), 0, (), "no node has been idle"),
        ("just grown", Situation(aim=ADAPT, nodes=nodes(3, **IDLE), past=Past(grew_s=20)), 0, (), "not shrunk"),
        ("only the head is idle", Situation(aim=ADAPT, nodes=nodes(1, **IDLE)), 0, (), "fewest"),
        (
            "no offer",
            Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=900, work_s=9000), market=None),
            0,
            (),
            "no offer fits",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_each_situation_has_its_answer_and_a_reason(
    what: str, situation: Situation, grow: int, release: tuple[str, ...], reason: str
) -> None:
    """The table of situations."""
    market = None if what == "no offer" else MARKET
    decision = decide(msgspec.structs.replace(situation, market=market, free_nusd=PLENTY))

    assert (decision.grow, decision.release) == (grow, release), decision
    assert any(reason in told for told in decision.reasons), decision.reasons


def test_a_spent_budget_rents_nothing_and_says_so() -> None:
    """What is free of the budget has to pay at least for boot and first minute of each new node."""
    start = Situation(aim=Aim(minimum=4, maximum=4), nodes=(), market=MARKET, free_nusd=USD // 12)

    assert decide(start).grow == 2
    assert "pays for 2 more" in decide(start).reasons[-1]
    assert decide(msgspec.structs.replace(start, free_nusd=0)).grow == 0


SITUATIONS = st.builds(
    Situation,
    aim=st.builds(
        lambda low, more, rate, by: Aim(minimum=low, maximum=low + more, max_nusd_hour=rate, finish_by_ms=by),
        st.integers(1, 5),
        st.integers(0, 10),
        st.none() | st.integers(0, 20 * USD),
        st.none() | st.integers(0, 10**7),
    ),
    nodes=st.integers(0, 12).flatmap(
        lambda count: st.tuples(
            *(
                st.builds(
                    NodeFacts,
                    lease_id=st.just(f"l{i}"),
                    name=st.just(f"n{i}"),
                    price_nusd_hour=st.integers(0, 5 * USD),
                    state=st.sampled_from(("coming", "ready")),
                    is_head=st.just(i == 0),
                    processing=st.integers(0, 50),
                    idle_s=st.none() | st.floats(0, 1000),
                    paid_left_s=st.floats(0, 3600),
                )
                for i in range(count)
            )
        )
    ),
    load=st.builds(Load, tasks=st.integers(0, 10_000), work_s=st.floats(0, 1e6)),
    market=st.none() | st.builds(Market, price_nusd_hour=st.integers(1, 5 * USD), boot_s=st.floats(0, 600)),
    past=st.builds(Past, grew_s=st.none() | st.floats(0, 500), shrank_s=st.none() | st.floats(0, 500)),
    now_ms=st.integers(0, 10**6),
    free_nusd=st.integers(-USD, 100 * USD),
)


@given(SITUATIONS)
def test_it_never_leaves_the_limits(now: Situation) -> None:
    """Never both directions, never beyond the number, the rate, the budget; the head stays; a reason is always told."""
    decision = decide(now)
    after = len(now.nodes) + decision.grow - len(decision.release)

    assert decision.reasons
    assert not (decision.grow and decision.release)
    assert decision.grow == 0 or after <= now.aim.maximum
    assert not decision.release or after >= now.aim.minimum
    assert all(not node.is_head for node in now.nodes if node.lease_id in decision.release)
    if decision.grow:
        assert now.market is not None
        assert now.free_nusd > 0
        rate = sum(node.price_nusd_hour for node in now.nodes) + decision.grow * now.market.price_nusd_hour
        assert now.aim.max_nusd_hour is None or rate <= now.aim.max_nusd_hour


@given(st.integers(1, 2000), st.floats(0, 20_000))
def test_it_does_not_bounce(tasks: int, work_s: float) -> None:
    """With the same load, a node that was just rented is not given back, nor one rented again right after."""
    now = Situation(aim=ADAPT, nodes=nodes(1), load=Load(tasks=tasks, work_s=work_s), market=MARKET, free_nusd=PLENTY)
    grown = decide(now).grow
    then = msgspec.structs.replace(now, nodes=nodes(1 + grown), past=Past(grew_s=1.0))

    assert decide(then).release == ()
    assert decide(then).grow == 0


@pytest.mark.parametrize(
    ("billed_ms", "quantum_s", "minimum_s", "left_s"),
    [(0, 1, 0, 0), (59_000, 1, 60, 1), (600_000, 3600, 0, 3000), (3_900_000, 3600, 0, 3300), (61_000, 60, 60, 0)],
)
def test_paid_time_is_used_up(billed_ms: int, quantum_s: int, minimum_s: int, left_s: float) -> None:
    """The rest of a minimum, or of the quantum that has begun; short quanta are not waited for."""
    assert paid_left_s(billed_ms, quantum_s, minimum_s) == left_s


@given(st.integers(-USD, 10**13), st.integers(0, 20), st.integers(0, 10 * USD), st.integers(1, 10**6))
def test_shares_never_exceed_what_is_free(free: int, count: int, price: int, max_s: int) -> None:
    """All new nodes together are set aside no more than is free."""
    assert share_nusd(free, count, price_nusd_hour=price, max_s=max_s) * count <= max(0, free)
