"""The nodes' doors, and which nodes reach each other's: ordered, probed and kept up from here.

Everything that a node says is bounded before another one hears of it (`direct_plan`). A direct way is only ever a
quicker one: the relay is there all the time, and takes over by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster import direct_plan as plan
from jupyter_gpumarket.cluster.authority import member_name
from jupyter_gpumarket.cluster.dask_plan import Files
from jupyter_gpumarket.cluster.fleet_members import Member
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

logger = logging.getLogger(__name__)

MAX_ASKED = 8
ANSWER_S = 20.0
RULES_S = 10.0


class Doors:
    """All doors of one cluster. Leases name the nodes."""

    def __init__(self, *, clock: Clock, files: Callable[[Member], Files], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._files = files
        self._changed = changed
        self._doors: dict[str, _Door] = {}
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._claims: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        # Whether something has happened since routes were last compared.
        self._is_news = True
        self._here: list[str] = []

    # ── who is there, what is said ───────────────────────────────────────────────────────────────────────────────────

    def meet(self, member: Member) -> None:
        """A fresh contact with an agent: what was ordered before is forgotten there."""
        self.leave(member.lease_id)
        self._doors[member.lease_id] = _Door(member)
        self._is_news = True

    def leave(self, lease_id: str) -> None:
        """A node is gone, or begins anew."""
        door = self._doors.pop(lease_id, None)
        if door is not None:
            door.give_up()
        self._is_news = True
        self._forget_pairs(lease_id)

    def heard(self, lease_id: str, report: DoorReport | DoorProbed | RouteBroken) -> None:
        """What a node says of its door and of its ways to others."""
        door = self._doors.get(lease_id)
        if door is None:
            return
        match report:
            case DoorReport():
                self._reported(door, report)
            case DoorProbed():
                self._probed(door, report)
            case RouteBroken():
                self._broken(door, report)
        self._is_news = True
        self._changed()

    def way(self, from_lease: str, to_lease: str) -> plan.Way:
        """How a node reaches another one."""
        pair = self._pairs.get((from_lease, to_lease))
        door = self._doors.get(to_lease)
        if pair is None and door is not None and door.claim.reason:
            return plan.Way(reason=f"{door.member.name}: {door.claim.reason}")
        return pair.way if pair is not None else plan.Way()

    def is_looking(self, from_lease: str, to_lease: str) -> bool:
        """Whether it is not known yet how a node reaches another one, and will be soon."""
        ends = [door for key in (from_lease, to_lease) if (door := self._doors.get(key)) is not None]
        if len(ends) < 2 or not all(door.member.is_up and door.lease_id in self._here for door in ends):
            return False
        pair = self._pairs.get((from_lease, to_lease))
        return not ends[1].claim.reason and (pair is None or pair.is_new)

    def direct_ports(self) -> set[tuple[str, int]]:
        """Each port to which a node has been told a direct way, with that node."""
        return {
            (key, port) for key, door in self._doors.items() for route in door.told.values() for port in route.ports
        }

    def route(self, from_lease: str, to_lease: str) -> Route | None:
        """The way to a node's door, where there is a direct one."""
        way, door = self.way(from_lease, to_lease), self._doors.get(to_lease)
        if door is None or not way.is_direct:
            return None
        return Route(name=member_name(to_lease), address=way.address, port=door.claim.port)

    def ways(self) -> list[tuple[str, str, plan.Way]]:
        """All ways between nodes of different networks, from and to which lease, as far as something is known."""
        found = {key: pair.way for key, pair in self._pairs.items()}
        for other, door in self._doors.items():
            if door.claim.reason:
                apart = [one for one in self._doors.values() if one.member.network != door.member.network]
                found |= {(one.lease_id, other): self.way(one.lease_id, other) for one in apart}
        return [(one, other, way) for (one, other), way in sorted(found.items(), key=lambda pair: pair[0])]

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def tend(self, members: Sequence[Member], ports: Mapping[str, tuple[int, ...]]) -> None:
        """Order what is missing. `ports`: of each lease, those that the others may reach."""
        found = [door for member in members if (door := self._doors.get(member.lease_id)) is not None]
        here = [door for door in found if not door.is_on_this_machine]
        if (leases := [door.lease_id for door in here]) != self._here:
            self._here, self._is_news = leases, True
        is_needed = len({door.member.network for door in here}) > 1  # one loopback needs no doors
        guests = tuple(sorted(member_name(door.lease_id) for door in here)) if is_needed else ()
        for door in here:
            if is_needed and not door.is_ordered:
                self._open(door)
            if door.is_ordered and door.rule(ports.get(door.lease_id, ()), guests):
                self._is_news = True
        if not is_needed:
            return
        reachable = [door for door in here if door.claim.port]
        for door in here:
            if door.member.is_up:
                self._look_from(door, reachable)
        if self._is_news:
            self._is_news = False
            for door in here:
                self._tell_routes(door, reachable)

    async def share(self, holder: str, sha256: str, guest: str) -> bool:
        """Let a member have an input at a holder's door; whether the holder knows."""
        door = self._doors.get(holder)
        if door is None:
            return False
        door.shared.setdefault(sha256, Counter())[member_name(guest)] += 1
        door.rule(door.wanted.ports, door.wanted.guests)
        return await door.until_obeyed()

    def unshare(self, holder: str, sha256: str, guest: str) -> None:
        """The member has it, or has given it up."""
        door = self._doors.get(holder)
        if door is None or sha256 not in door.shared:
            return
        door.shared[sha256] -= Counter({member_name(guest): 1})
        if not door.shared[sha256]:
            del door.shared[sha256]
        door.rule(door.wanted.ports, door.wanted.guests)

    def _open(self, door: _Door) -> None:
        files = self._files(door.member)
        order = OpenDoor(ca=files.authority, certificate=files.own.certificate, key=files.own.key)
        door.member.node.talk.order(order)
        door.is_ordered = True

    def _look_from(self, door: _Door, others: Sequence[_Door]) -> None:
        now = self._clock.monotonic_s()
        asked = sum(1 for other in others if (p := self._pairs.get((door.lease_id, other.lease_id))) and p.number)
        for other in others:
            if other is door:
                continue
            pair = self._pairs.setdefault((door.lease_id, other.lease_id), _Pair())
            if pair.number and now - pair.asked_s > ANSWER_S:
                self._is_news = True
                pair.settle(plan.Way(reason=f"{door.member.name} did not say whether it reaches it"), now)
            if pair.number or now < pair.due_s or asked >= MAX_ASKED:
                continue
            addresses = plan.tried(other.claim, door.claim)
            if not addresses:
                pair.settle(plan.Way(reason="they have no network in common"), now)
                continue
            asked += 1
            pair.number, pair.asked_s, pair.addresses = next(self._numbers), now, addresses
            name = member_name(other.lease_id)
            door.member.node.talk.order(
                ProbeDoor(number=pair.number, name=name, addresses=addresses, port=other.claim.port)
            )

    def _tell_routes(self, door: _Door, others: Sequence[_Door]) -> None:
        wanted: dict[str, Route] = {}
        for other in others:
            if other is door or other.member.network == door.member.network:
                continue
            route = self.route(door.lease_id, other.lease_id)
            ports = tuple(port for port in other.wanted.ports if port in other.obeyed.ports)
            is_let_in = member_name(door.lease_id) in other.obeyed.guests
            if route is not None and ports and is_let_in:
                wanted[route.name] = Route(name=route.name, address=route.address, port=route.port, ports=ports)
        news = [route for name, route in wanted.items() if door.told.get(name) != route]
        news += [Route(name=name, address="", port=0) for name in door.told if name not in wanted]
        if news:
            door.told = wanted
            door.member.node.talk.order(UseRoutes(routes=tuple(news)))

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reported(self, door: _Door, report: DoorReport) -> None:
        door.obey(report.version)
        if report.error:
            reason = f"it has no door ({report.error[:200]})"
            claim = plan.Claim(private=plan.private_of(report.addresses), reason=reason)
        else:
            claim = plan.believed(report.port, report.addresses, door.member.node.record.attach.address.host)
        if claim == door.claim or self._claims[door.lease_id] > plan.MAX_CLAIMS:
            return
        self._claims[door.lease_id] += 1
        if self._claims[door.lease_id] > plan.MAX_CLAIMS:
            claim = plan.Claim(reason="it names other addresses again and again")
        if claim.reason:
            logger.info("node %s is reached through the relay alone: %s", door.member.name, claim.reason)
        door.claim = claim
        self._forget_pairs(door.lease_id)

    def _probed(self, door: _Door, report: DoorProbed) -> None:
        found = next((key for key, pair in self._pairs.items() if pair.number and pair.number == report.number), None)
        if found is None or found[0] != door.lease_id:
            return
        pair, other = self._pairs[found], self._doors.get(found[1])
        is_sound = report.address in pair.addresses and math.isfinite(report.round_trip_ms)
        error = report.error[:200] or ("" if is_sound else "it names an address that it was not sent to")
        trips = [one.member.node.round_trip_ms for one in (door, other) if one is not None]
        relayed_ms = sum(trip for trip in trips if trip is not None) if None not in trips else None
        way = plan.choose_way(
            address=report.address if is_sound else "",
            round_trip_ms=max(report.round_trip_ms, 0.0) if is_sound else 0.0,
            error=error,
            relayed_ms=relayed_ms,
        )
        if other is not None and way.is_direct != pair.way.is_direct:
            kind = "directly" if way.is_direct else "through the relay"
            logger.info("%s reaches %s %s: %s", door.member.name, other.member.name, kind, way.reason)
        pair.settle(way, self._clock.monotonic_s())

    def _broken(self, door: _Door, report: RouteBroken) -> None:
        """The agent has stopped using the way already."""
        door.told.pop(report.name, None)
        for (one, other), pair in self._pairs.items():
            if one == door.lease_id and member_name(other) == report.name and pair.way.is_direct:
                logger.info("the direct way from %s to %s broke: %.200s", one, other, report.reason)
                way = plan.Way(reason=f"the direct way broke ({report.reason[:200]}); it is looked for again")
                pair.settle(way, self._clock.monotonic_s())

    def _forget_pairs(self, lease_id: str) -> None:
        self._pairs = {key: pair for key, pair in self._pairs.items() if lease_id not in key}


class _Door:
    """One node's door: what was ordered, what it says, what it was told of others."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.is_ordered = False
        self.claim = plan.Claim()
        self.wanted = DoorRules(version=0)
        self.obeyed = DoorRules(version=0)
        self.shared: dict[str, Counter[str]] = {}
        self.told: dict[str, Route] = {}
        self._waiting: list[tuple[int, asyncio.Future[bool]]] = []
        # There nothing is ever to listen for nodes, so it takes no part.
        self.is_on_this_machine = plan.is_inner(member.node.record.attach.address.host)
        if self.is_on_this_machine:
            self.claim = plan.Claim(reason="it is on this machine, where no door is opened")

    @property
    def lease_id(self) -> str:
        return self.member.lease_id

    def rule(self, ports: tuple[int, ...], guests: tuple[str, ...]) -> bool:
        """Have these ports, for these guests, and what is shared be all that can be had there; whether that is news."""
        blobs = {sha256: tuple(sorted(having)) for sha256, having in self.shared.items()}
        if (self.wanted.ports, self.wanted.guests, self.wanted.blobs) == (ports, guests, blobs):
            return False
        self.wanted = DoorRules(version=self.wanted.version + 1, ports=ports, guests=guests, blobs=blobs)
        self.member.node.talk.order(self.wanted)
        return True

    def obey(self, version: int) -> None:
        """The agent keeps to the rules of this version."""
        if version == self.wanted.version:
            self.obeyed = self.wanted
        for wanted, waiting in self._waiting:
            if wanted <= version and not waiting.done():
                waiting.set_result(True)
        self._waiting = [(wanted, waiting) for wanted, waiting in self._waiting if not waiting.done()]

    async def until_obeyed(self) -> bool:
        """Whether the agent comes to keep to the newest rules in time."""
        if self.obeyed is self.wanted:
            return True
        waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((self.wanted.version, waiting))
        try:
            return await asyncio.wait_for(waiting, RULES_S)
        except TimeoutError:
            return False

    def give_up(self) -> None:
        """Nobody answers any more."""
        for _, waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(False)


class _Pair:
    """One way: as it is, and when it is looked for again."""

    def __init__(self) -> None:
        self.way = plan.Way()
        self.number = 0
        self.addresses: tuple[str, ...] = ()
        self.asked_s = 0.0
        self.due_s = 0.0
        self.is_new = True
        self._failures = 0

    def settle(self, way: plan.Way, now_s: float) -> None:
        """It is known how the way is, for some time."""
        self.way, self.number, self.is_new = way, 0, False
        self._failures = 0 if way.is_direct else self._failures + 1
        self.due_s = now_s + (plan.LOOK_AGAIN_S if way.is_direct else plan.pause_s(self._failures))
