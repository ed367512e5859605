"""The table of a map's items: pure, so that every order of events can be played."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_gpumarket.api import ItemState
from jupyter_gpumarket.cluster.maps.table import Place, Report, Share, Table, share_out

OK, ERROR, POISONED = ItemState.OK, ItemState.ERROR, ItemState.POISONED


def report(index: int, status: str = "ok", attempt: int = 1, lease: str = "a") -> Report:
    return Report(index=index, attempt=attempt, lease_id=lease, status=status)


def end(table: Table, one: Report) -> ItemState | None:
    assert table.is_news(one)
    return table.end(one)


def test_an_item_ends_once_and_later_words_change_nothing() -> None:
    """A second report of the same item, or one of a node that does not have it, is no news."""
    table = Table(2, retries=0, deaths=3)
    table.take("a", 2)
    assert end(table, report(0)) is OK
    assert not table.is_news(report(0))
    assert not table.is_news(report(0, "error"))
    assert not table.is_news(report(1, lease="b")), "b never had it"
    assert not table.is_news(report(7)), "there is no such item"
    assert table.counts[OK] == 1


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (3, 4)])
def test_an_item_that_fails_gets_its_retries_and_no_more(retries: int, tries: int) -> None:
    """`--retries N` is N more tries after an error; then the item has failed."""
    table = Table(1, retries=retries, deaths=3)
    for attempt in range(1, tries + 1):
        assert table.take("a", 1) == [(0, attempt)]
        state = end(table, report(0, "error", attempt))
    assert state is ERROR
    assert table.is_complete
    assert table.retried == retries


def test_an_item_that_kills_its_workers_is_poisoned_and_the_others_go_on() -> None:
    """After three deaths it is named; errors are counted apart from deaths."""
    table = Table(3, retries=0, deaths=3)
    table.take("a", 3)
    for attempt in (1, 2):
        assert end(table, report(1, "died", attempt)) is None
        assert table.take("a", 1) == [(1, attempt + 1)]
    assert end(table, report(1, "died", 3)) is POISONED
    assert end(table, report(0)) is OK
    assert end(table, report(2)) is OK
    assert table.is_complete


def test_a_lost_node_costs_only_the_tries_that_it_had_begun() -> None:
    """What it had not begun waits again as it was; what it had begun counts as one death."""
    table = Table(4, retries=0, deaths=3)
    table.take("a", 4)
    table.begin("a", [(0, 1)])
    table.lose_node("a")
    assert sorted(table.take("b", 4)) == [(0, 2), (1, 1), (2, 1), (3, 1)]
    assert table.retried == 1


def test_an_item_that_takes_every_node_with_it_is_written_off() -> None:
    """Three nodes lost while they ran it: it is told apart, to be written down as poisoned."""
    table = Table(1, retries=0, deaths=3)
    for attempt, lease in enumerate("abc", start=1):
        assert table.take(lease, 1) == [(0, attempt)]
        table.begin(lease, [(0, attempt)])
        table.lose_node(lease)
    assert table.take("d", 1) == []
    assert table.lost_too_often() == [(0, 3)]
    table.poison(0, "c")
    assert table.counts[POISONED] == 1


def test_of_two_copies_the_first_end_counts() -> None:
    """A silent node's items are copied to another; the late answer of the first is no news."""
    table = Table(2, retries=0, deaths=3)
    table.take("a", 2)
    assert table.copy("b", "a", 2) == [(0, 1), (1, 1)]
    assert table.copy("c", "a", 2) == [], "two copies are enough"
    assert end(table, report(0, lease="b")) is OK
    assert not table.is_news(report(0, lease="a"))
    assert end(table, report(1, lease="a")) is OK


def test_a_verified_item_runs_again_on_another_machine_only() -> None:
    """The second run waits for the first to go well, and never goes to its machine."""
    table = Table(2, retries=0, deaths=3, checked=[1])
    table.take("a", 2)
    end(table, report(0))
    end(table, report(1))
    assert table.is_complete
    assert table.take("a", 5) == []
    assert table.open_checks(["a"]) == 0
    assert table.open_checks(["a", "b"]) == 1
    assert table.take("b", 5) == [(2, 1)]
    assert table.base(2) == 1
    table.end(report(2, lease="b"))
    assert table.checks_ended == 1
    assert table.counts[OK] == 2, "a second run is no item"


def test_what_a_node_claims_without_having_been_given_it_is_not_believed() -> None:
    """A node cannot answer for items of others; only after our own restart may it tell what it has."""
    table = Table(3, retries=0, deaths=3)
    table.take("a", 1)
    table.agree("b", [(0, 1, True), (2, 1, True)], may_claim=False)
    assert not table.is_news(report(2, lease="b"))
    table.agree("b", [(2, 1, True)], may_claim=True)
    assert end(table, report(2, lease="b")) is OK


def shares(table: Table, *places: Place) -> list[Share]:
    return share_out(table, places, patience_s=5)


def place(lease: str, slots: int = 1, **more: Any) -> Place:
    return Place(lease_id=lease, slots=slots, **more)


def test_shares_follow_slots_and_shrink_towards_the_end() -> None:
    """Many items: much at once, more for more slots. Few: as many as keep the slots busy."""
    many, few = Table(1000, retries=0, deaths=3), Table(5, retries=0, deaths=3)
    assert [(one.lease_id, one.count) for one in shares(many, place("a"), place("b", 3))] == [("a", 64), ("b", 192)]
    assert [(one.lease_id, one.count) for one in shares(few, place("a"), place("b"))] == [("a", 2), ("b", 2)]


def test_a_hungry_node_gets_what_a_rich_one_has_not_begun() -> None:
    """Asked for half of what is spare there, and not twice."""
    table = Table(10, retries=0, deaths=3)
    table.take("a", 10)
    table.begin("a", [(0, 1)])
    (share,) = shares(table, place("a"), place("b"))
    assert (share.lease_id, share.take_back, share.count) == ("a", True, 4)
    assert shares(table, place("a", is_asked=True), place("b")) == []
    table.give_back("a", [(8, 1), (9, 1), (0, 1)])
    assert sorted(table.take("b", 9)) == [(8, 1), (9, 1)], "what has begun is not given back"


def test_a_silent_node_is_waited_for_and_then_copied() -> None:
    """While others have work nothing is copied; a node without work takes over after the patience."""
    table = Table(4, retries=0, deaths=3)
    table.take("a", 4)
    assert shares(table, place("a", silent_s=1.0), place("b")) == []
    (share,) = shares(table, place("a", silent_s=6.0), place("b"))
    assert (share.lease_id, share.copy_of, share.count) == ("b", "a", 1)


def test_a_node_that_will_end_gives_back_and_gets_nothing_while_another_stays() -> None:
    """What it has not begun is asked for at once, and only once; what runs there is copied only after the patience."""
    table = Table(6, retries=0, deaths=3)
    table.take("a", 3)
    table.begin("a", [(0, 1)])
    first = shares(table, place("a", leaving_s=0.0), place("b"))
    asked = shares(table, place("a", leaving_s=0.1, is_asked=True), place("b"))
    table.give_back("a", [(1, 1), (2, 1)])
    table.take("b", 9)
    for item in range(1, 6):
        table.end(Report(index=item, attempt=1, lease_id="b", status="ok"))
    early = shares(table, place("a", leaving_s=1.0), place("b"))
    late = shares(table, place("a", leaving_s=6.0), place("b"))

    assert [(one.lease_id, one.take_back, one.count) for one in first] == [("a", True, 2), ("b", False, 2)]
    assert [(one.lease_id, one.take_back) for one in asked] == [("b", False)]
    assert early == []
    assert [(one.lease_id, one.copy_of, one.count) for one in late] == [("b", "a", 1)]


def test_nodes_that_will_all_end_work_on() -> None:
    """With nobody to take over, each goes on with what it has and gets more."""
    table = Table(6, retries=0, deaths=3)
    given = shares(table, place("a", leaving_s=9.0), place("b", leaving_s=9.0))

    assert [(one.take_back, one.count > 0) for one in given] == [(False, True), (False, True)]


class World:
    """A map, its nodes and what is under way between them: played by a seed."""

    def __init__(self, seed: int, count: int, checked: int) -> None:
        self.rng = random.Random(seed)
        self.count = count
        self.checked = self.rng.sample(range(count), min(checked, count))
        self.fate = {index: self.rng.choice(["ok"] * 6 + ["error", "died", "flaky"]) for index in range(count)}
        self.lines: list[tuple[Report, ItemState | None]] = []
        self.table = self.fresh()
        self.nodes: dict[str, dict[tuple[int, int], str]] = {f"n{k}": {} for k in range(3)}
        self.runs = 0
        self.asked: set[str] = set()

    def fresh(self) -> Table:
        return Table(self.count, retries=1, deaths=3, checked=self.checked)

    def share(self, silent: str = "", leaving: str = "") -> None:
        places = [
            Place(
                lease_id=n,
                slots=2,
                silent_s=9.0 if n == silent else 0.0,
                leaving_s=self.rng.choice([0.0, 9.0]) if n == leaving else None,
            )
            for n in self.nodes
        ]
        for one in share_out(self.table, places, patience_s=5):
            if one.take_back:
                waiting = [key for key, state in self.nodes[one.lease_id].items() if state == "waiting"]
                back = waiting[-one.count :]
                for key in back:
                    del self.nodes[one.lease_id][key]
                self.table.give_back(one.lease_id, back)
                continue
            if one.copy_of:
                keys = self.table.copy(one.lease_id, one.copy_of, one.count)
            else:
                keys = self.table.take(one.lease_id, one.count)
            for key in keys:
                self.nodes[one.lease_id].setdefault(key, "waiting")

    def work(self) -> None:
        """One node does something with one of its items."""
        lease = self.rng.choice(list(self.nodes))
        held = self.nodes[lease]
        if not held:
            return
        key = self.rng.choice(list(held))
        if held[key] == "waiting":
            held[key] = "begun"
            if self.rng.random() < 0.8:  # its word may come late, or never
                self.table.begin(lease, [key])
        elif held[key] == "begun":
            self.runs += 1
            fate = self.fate[self.table.base(key[0])]
            held[key] = ("ok" if key[1] > 1 else "error") if fate == "flaky" else fate
        else:
            self.tell(lease, key, held[key])
            if self.rng.random() < 0.7:  # saved; otherwise it is told again
                del held[key]

    def tell(self, lease: str, key: tuple[int, int], status: str) -> None:
        one = Report(index=key[0], attempt=key[1], lease_id=lease, status=status)
        if not self.table.is_news(one):
            self.table.drop(one)
            return
        state = self.table.judge(one)
        self.lines.append((one, state))
        assert self.table.end(one) is state

    def trouble(self) -> None:
        lease = self.rng.choice(list(self.nodes))
        match self.rng.choice(["agent", "lost", "crash", "contact", "silent", "leaving"]):
            case "agent":  # a new agent knows nothing
                self.nodes[lease].clear()
                self.table.agree(lease, [], may_claim=False)
            case "lost":
                self.nodes[lease].clear()
                self.table.lose_node(lease)
            case "contact":
                self.agree(lease, may_claim=False)
            case "silent":
                self.share(silent=lease)
            case "leaving":
                self.share(leaving=lease)
            case "crash":  # our own process, at any step: what was written down is all there is
                self.table = self.fresh()
                for line in self.lines:
                    self.table.restore(line)
                for one in self.nodes:
                    self.agree(one, may_claim=True)
        self.write_off()

    def write_off(self) -> None:
        for index, attempt in self.table.lost_too_often():
            one = Report(index=index, attempt=attempt, lease_id="n0", status="died")
            self.lines.append((one, POISONED))
            self.table.poison(index, "n0")

    def agree(self, lease: str, *, may_claim: bool) -> None:
        held = [(i, a, state != "waiting") for (i, a), state in self.nodes[lease].items()]
        self.table.agree(lease, held, may_claim=may_claim)

    def check(self) -> None:
        """Nothing is forgotten: what has not ended waits, or some node has it."""
        for index, entry in enumerate(self.table.entries):
            if entry.state is None and index < self.count:
                assert entry.is_queued or entry.holders, (index, entry.attempt)
            assert not (entry.is_queued and (entry.holders or entry.state is not None))
        assert sum(entry.is_queued for entry in self.table.entries[: self.count]) == self.table._queued_items


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), checked=st.integers(0, 5))
def test_whatever_is_lost_doubled_or_late_each_item_ends_once(seed: int, count: int, checked: int) -> None:
    """Agents restart, nodes are lost, reports come twice, our process dies: each item ends exactly once, rightly."""
    world = World(seed, count, checked)
    for _ in range(60 + 6 * count):
        world.share()
        world.work()
        if world.rng.random() < 0.05:
            world.trouble()
        world.check()
    for _ in range(400 * (count + checked)):  # then everything goes well, and it comes to an end
        if world.table.is_complete and not world.table.open_checks(world.nodes):
            break
        world.share()
        world.work()
        world.write_off()
        world.check()
    assert world.table.is_complete
    ends = [line[0].index for line in world.lines if line[1] is not None]
    assert len(ends) == len(set(ends))
    assert set(range(count)) <= set(ends)
    for one, state in world.lines:
        if state is not None and one.index < count:
            expected = {"ok": {OK}, "flaky": {OK, ERROR}, "error": {ERROR}, "died": {POISONED}}
            assert state in expected[world.fate[one.index]] | {POISONED}, (one, state)
