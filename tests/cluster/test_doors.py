"""What nodes are ordered about doors, and what is made of what they say: the nodes are played, and some lie."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpumarket.cluster import direct_plan
from jupyter_gpumarket.cluster.authority import issue, member_name, new_authority
from jupyter_gpumarket.cluster.dask_plan import Files
from jupyter_gpumarket.cluster.doors import Doors
from jupyter_gpumarket.wire.door import (
    DoorProbed,
    DoorReport,
    DoorRules,
    OpenDoor,
    ProbeDoor,
    Route,
    RouteBroken,
    UseRoutes,
)

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = new_authority("test", NOW)
IDENTITY = issue(AUTHORITY, "any", NOW)
PORTS = {"a": (20_001,), "b": (20_002,)}


class Played:
    """Doors with a clock of the test's, and nodes that say what the test wants."""

    def __init__(self, **hosts: str) -> None:
        self.now_s = 1000.0
        clock = SimpleNamespace(monotonic_s=lambda: self.now_s)
        files = Files(authority=AUTHORITY.certificate, own=IDENTITY)
        self.doors = Doors(clock=clock, files=lambda _: files, changed=lambda: None)  # type: ignore[arg-type]
        self.orders: dict[str, list[Any]] = {}
        self.members = [self._member(name, host) for name, host in hosts.items()]
        for member in self.members:
            self.doors.meet(member)

    def _member(self, name: str, host: str) -> Any:
        orders = self.orders[name] = []
        node = SimpleNamespace(
            talk=SimpleNamespace(order=orders.append),
            record=SimpleNamespace(attach=SimpleNamespace(address=SimpleNamespace(host=host))),
            round_trip_ms=20.0,
        )
        return SimpleNamespace(lease_id=name, name=name, network=name, is_up=True, node=node)

    def tend(self) -> None:
        self.doors.tend(self.members, PORTS)

    def ordered(self, name: str, kind: type) -> list[Any]:
        return [order for order in self.orders[name] if isinstance(order, kind)]

    def open(self) -> None:
        """Both doors are open, and the rules are kept to."""
        self.tend()
        for name, last in (("a", 4), ("b", 5)):
            self.say(name, DoorReport(port=40_000, addresses=(f"10.0.0.{last}",), version=1))
        self.tend()

    def say(self, name: str, report: Any) -> None:
        self.doors.heard(name, report)

    def reach(self) -> None:
        """a reaches b's door."""
        self.open()
        probe = self.ordered("a", ProbeDoor)[-1]
        self.say("a", DoorProbed(number=probe.number, address="10.0.0.5", round_trip_ms=0.5))
        self.tend()


@pytest.fixture
def played() -> Played:
    return Played(a="198.51.100.1", b="198.51.100.2")


@pytest.mark.parametrize("hosts", [{"a": "198.51.100.1"}, {"a": "127.0.0.1", "b": "localhost"}])
def test_no_door_is_opened_where_none_is_needed_or_wanted(hosts: dict[str, str]) -> None:
    """A single node has nobody to let in, and on the user's own machine nothing listens for nodes."""
    played = Played(**hosts)
    played.tend()

    assert all(not orders for orders in played.orders.values())
    assert all("on this machine" in way.reason for _, _, way in played.doors.ways())


def test_a_way_is_used_once_the_other_node_keeps_to_the_rules(played: Played) -> None:
    """The port of a worker is allowed at its door before anybody is told the way to it."""
    played.tend()
    assert len(played.ordered("b", OpenDoor)) == 1
    assert played.ordered("b", DoorRules)[-1].ports == PORTS["b"]
    played.say("a", DoorReport(port=40_000, addresses=("10.0.0.4",), version=1))
    played.say("b", DoorReport(port=40_000, addresses=("10.0.0.5",), version=0))
    played.tend()
    probe = played.ordered("a", ProbeDoor)[-1]
    assert (probe.name, probe.addresses) == (member_name("b"), ("10.0.0.5", "198.51.100.2"))
    played.say("a", DoorProbed(number=probe.number, address="10.0.0.5", round_trip_ms=0.5))
    played.tend()
    assert played.ordered("a", UseRoutes) == []

    played.say("b", DoorReport(port=40_000, addresses=("10.0.0.5",), version=1))
    played.tend()

    route = Route(name=member_name("b"), address="10.0.0.5", port=40_000, ports=PORTS["b"])
    assert played.ordered("a", UseRoutes) == [UseRoutes(routes=(route,))]
    assert played.doors.direct_ports() == {("a", 20_002)}


def test_a_node_cannot_speak_for_another_ones_way(played: Played) -> None:
    """An answer to a probe counts from the node that was asked, and for an address to which it was sent."""
    played.open()
    number = played.ordered("a", ProbeDoor)[-1].number
    played.say("b", DoorProbed(number=number, address="10.0.0.5", round_trip_ms=0.5))
    assert not played.doors.way("a", "b").is_direct
    played.say("a", DoorProbed(number=number, address="203.0.113.9", round_trip_ms=0.5))
    played.tend()

    assert not played.doors.way("a", "b").is_direct
    assert played.ordered("a", UseRoutes) == []


def test_a_node_that_names_ever_new_addresses_is_not_believed_any_more(played: Played) -> None:
    """Others are sent to so many of its addresses and no further."""
    played.open()
    for number in range(3 * direct_plan.MAX_CLAIMS):
        played.say("b", DoorReport(port=41_000 + number, addresses=(f"10.0.7.{number}",), version=1))
        played.tend()

    assert len(played.ordered("a", ProbeDoor)) <= direct_plan.MAX_CLAIMS
    assert "again and again" in played.doors.way("a", "b").reason


def test_a_broken_way_is_left_and_looked_for_again(played: Played) -> None:
    """After a break the way counts as relayed with the reason, is probed again after a pause, and then told anew."""
    played.reach()
    played.say("a", RouteBroken(name=member_name("b"), reason="timed out"))
    played.tend()
    assert not played.doors.way("a", "b").is_direct
    assert "timed out" in played.doors.way("a", "b").reason
    assert len(played.ordered("a", ProbeDoor)) == 1

    played.now_s += direct_plan.FIRST_PAUSE_S + 1
    played.tend()
    probe = played.ordered("a", ProbeDoor)[-1]
    played.say("a", DoorProbed(number=probe.number, address="10.0.0.5", round_trip_ms=0.5))
    played.tend()

    assert len(played.ordered("a", UseRoutes)) == 2
    assert played.doors.way("a", "b").is_direct


def test_a_node_that_begins_anew_is_no_goal_until_it_has_a_door_again(played: Played) -> None:
    """The port of a former agent belongs to nobody: the others are told that there is no way."""
    played.reach()
    played.doors.meet(played.members[1])
    played.tend()

    assert played.ordered("a", UseRoutes)[-1].routes == (Route(name=member_name("b"), address="", port=0),)
    assert played.doors.direct_ports() == set()


def test_who_has_left_is_a_guest_nowhere(played: Played) -> None:
    """The last node that stays lets nobody in any more: certificates of those that left are still good."""
    played.open()
    assert played.ordered("a", DoorRules)[-1].guests == tuple(sorted((member_name("a"), member_name("b"))))

    played.doors.leave("b")
    played.members.pop()
    played.tend()

    assert played.ordered("a", DoorRules)[-1].guests == ()


def test_a_new_node_is_told_a_way_once_it_is_let_in(played: Played) -> None:
    """Else its first connections would be refused, and stay on the relay for as long as Dask keeps them."""
    played.reach()
    new = played._member("c", "198.51.100.3")
    played.members.append(new)
    played.doors.meet(new)
    played.tend()
    played.say("c", DoorReport(port=40_000, addresses=("10.0.0.6",), version=1))
    played.tend()
    probe = [one for one in played.ordered("c", ProbeDoor) if one.name == member_name("b")][-1]
    played.say("c", DoorProbed(number=probe.number, address="10.0.0.5", round_trip_ms=0.5))
    played.tend()
    assert played.ordered("c", UseRoutes) == []

    played.say("b", DoorReport(port=40_000, addresses=("10.0.0.5",), version=2))
    played.tend()

    assert [route.name for order in played.ordered("c", UseRoutes) for route in order.routes] == [member_name("b")]
