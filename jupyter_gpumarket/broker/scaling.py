"""How many nodes a cluster should have now, and which ones should go: a pure function with reasons that can be read.

What it weighs: work that waits against what a new node costs before it does any (its boot) and at least (its first
paid quantum); the end of each node's paid time, before which giving it back saves nothing; and steadiness, because a
node that is given back and rented again costs its boot twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from jupyter_gpumarket.api import Aim, DaskView, Decision
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseState, Record
from jupyter_gpumarket.money import format_usd

# A paid quantum is used up to so long before its end.
BEFORE_END_S = 60.0
SHORT_QUANTUM_S = 120
DEARER_PERCENT = 120


class NodeFacts(Record, frozen=True, kw_only=True):
    """A node of the cluster. `idle_s`: how long it has had no task; None while it has one.

    `paid_left_s`: until when its marketplace has charged in any case, seconds from now.
    """

    lease_id: str
    name: str
    price_nusd_hour: int
    state: Literal["coming", "ready"]
    is_head: bool = False
    processing: int = 0
    in_memory: int = 0
    idle_s: float | None = None
    paid_left_s: float = 0.0


class Load(Record, frozen=True, kw_only=True):
    """What waits for workers: `work_s` is worker-seconds of all known tasks, estimated; `tasks` how many they are."""

    tasks: int = 0
    work_s: float = 0.0


class Market(Record, frozen=True, kw_only=True):
    """The next node: its price, how long until it works, and what it costs at least. None known: nothing fits now."""

    price_nusd_hour: int
    boot_s: float = 60.0
    least_paid_s: float = 0.0


class Past(Record, frozen=True, kw_only=True):
    """How long ago the cluster grew and shrank by a decision; None: never."""

    grew_s: float | None = None
    shrank_s: float | None = None


class Situation(Record, frozen=True, kw_only=True):
    """All that the decision depends on. `free_nusd`: what of the budget is neither spent nor reserved.

    `leaving_nusd_hour`: what nodes cost that will soon be taken away and are not counted any more.
    """

    aim: Aim
    nodes: tuple[NodeFacts, ...]
    load: Load = Load()
    market: Market | None = None
    past: Past = Past()
    now_ms: int = 0
    free_nusd: int = 0
    leaving_nusd_hour: int = 0


def decide(now: Situation) -> Decision:
    """What to do now, and why."""
    aim, past, count = now.aim, now.past, len(now.nodes)
    if count < aim.minimum:
        return _grow(now, aim.minimum - count, [f"{count} of {aim.minimum} nodes are there"])
    if count > aim.maximum:
        return _to_maximum(aim, now.nodes)
    if aim.minimum == aim.maximum:
        return Decision(reasons=(f"{count} nodes, as asked",))
    wanted, reasons = _wanted(now)
    if wanted > count:
        if past.shrank_s is not None and past.shrank_s < aim.steady_s:
            since = f"a node was given back {past.shrank_s:.0f} s ago"
            wait = f"{since}; not before {aim.steady_s:.0f} s another one is rented"
            return Decision(reasons=(*reasons, wait))
        return _grow(now, wanted - count, reasons)
    return _shrink(now, reasons)


def _wanted(now: Situation) -> tuple[int, list[str]]:
    """How many nodes the work is worth, at most `aim.maximum`."""
    aim, load, market = now.aim, now.load, now.market
    count = len(now.nodes)
    if load.tasks == 0:
        return count, ["nothing waits"]
    if market is None:
        return count, ["no offer fits now"]
    worth_s = max(aim.least_work_s, market.boot_s, market.least_paid_s / 2)
    told = f"{load.tasks} tasks need about {load.work_s:.0f} worker-seconds"
    best = count
    for more in range(1, aim.maximum - count + 1):
        # A new node's share of the work, less the time in which the others work alone.
        share_s = (load.work_s - count * market.boot_s) / (count + more)
        if share_s < worth_s or load.tasks < count + more:
            break
        best = count + more
    if aim.finish_by_ms is None:
        if best == count:
            return count, [
                f"{told}: a further node would have less than the {worth_s:.0f} s of them that are worth its boot"
            ]
        return best, [f"{told}: each of {best} nodes has at least {worth_s:.0f} s of them"]
    return _by_deadline(now, market, told)


def _by_deadline(now: Situation, market: Market, told: str) -> tuple[int, list[str]]:
    aim, load, count = now.aim, now.load, len(now.nodes)
    assert aim.finish_by_ms is not None
    left_s = (aim.finish_by_ms - now.now_ms) / 1000
    if count and load.work_s / count <= left_s:
        return count, [f"{told}: {count} nodes finish in {load.work_s / count:.0f} of the {left_s:.0f} s that are left"]
    usable_s = left_s - market.boot_s
    if usable_s <= 0:
        return count, [f"{told}, and {left_s:.0f} s are left: a node that is rented now would come too late"]
    alone_s = count * market.boot_s
    wanted = min(max(count, math.ceil((load.work_s - alone_s) / usable_s), 1), aim.maximum)
    reason = f"{told}: to be done in {left_s:.0f} s takes {wanted} nodes"
    if wanted == aim.maximum and (load.work_s - alone_s) / wanted > usable_s:
        reason = f"{told}: even {aim.maximum} nodes, the most that are allowed, do not finish in {left_s:.0f} s"
    return wanted, [reason]


def _grow(now: Situation, more: int, reasons: list[str]) -> Decision:
    """Rent, as far as rate and budget allow."""
    aim, market = now.aim, now.market
    if market is None:
        return Decision(reasons=(*reasons, "no offer fits now"))
    rate = sum(node.price_nusd_hour for node in now.nodes) + now.leaving_nusd_hour
    if aim.max_nusd_hour is not None and market.price_nusd_hour > 0:
        room = max(0, (aim.max_nusd_hour - rate) // market.price_nusd_hour)
        if room < more:
            limit, paid = format_usd(aim.max_nusd_hour), format_usd(rate)
            reasons = [*reasons, f"the limit of {limit}/h leaves room for {room} more beside the {paid}/h of now"]
            more = room
    least = market.price_nusd_hour * max(1, round(market.boot_s + max(market.least_paid_s, aim.least_work_s))) // 3600
    affordable = max(0, now.free_nusd) // max(least, 1)
    if affordable < more:
        free = format_usd(max(0, now.free_nusd))
        reasons = [*reasons, f"the budget has {free} free, which pays for {affordable} more"]
        more = affordable
    return Decision(grow=more, reasons=tuple(reasons))


def _to_maximum(aim: Aim, nodes: Sequence[NodeFacts]) -> Decision:
    """More nodes than are allowed: those that do least go, the dearest of them first."""
    going = sorted(
        (node for node in nodes if not node.is_head),
        key=lambda node: (node.state == "ready", node.processing, node.in_memory > 0, -node.price_nusd_hour),
    )
    release = tuple(node.lease_id for node in going[: len(nodes) - aim.maximum])
    if aim.maximum == 0:
        release = tuple(node.lease_id for node in nodes)
    return Decision(release=release, reasons=(f"{len(nodes)} nodes, and {aim.maximum} are asked for",))


def _shrink(now: Situation, reasons: list[str]) -> Decision:
    """Give back the dearest node that has had nothing to do, at the end of its paid time; one at a time."""
    aim, nodes, past = now.aim, now.nodes, now.past
    if now.load.tasks >= len(nodes):
        return Decision(reasons=tuple(reasons))
    if len(nodes) <= aim.minimum:
        return Decision(reasons=(*reasons, f"{len(nodes)} nodes are the fewest that are asked for"))
    idle = [
        node
        for node in nodes
        if not node.is_head and node.state == "ready" and node.idle_s is not None and node.idle_s >= aim.idle_s
    ]
    if not idle:
        return Decision(reasons=(*reasons, f"no node has been idle for {aim.idle_s:.0f} s"))
    if past.grew_s is not None and past.grew_s < aim.steady_s:
        return Decision(reasons=(*reasons, f"the cluster grew {past.grew_s:.0f} s ago; it is not shrunk before long"))
    ending = [node for node in idle if node.paid_left_s <= BEFORE_END_S]
    if not ending:
        soonest = min(idle, key=lambda node: node.paid_left_s)
        kept = f"{soonest.name} is idle, and paid for {soonest.paid_left_s:.0f} s more: it is kept until then"
        return Decision(reasons=(*reasons, kept))
    dearest = max(ending, key=lambda node: (node.price_nusd_hour, node.idle_s or 0.0, node.lease_id))
    idle_for = f"idle for {dearest.idle_s:.0f} s" if dearest.idle_s is not None else "idle"
    price = format_usd(dearest.price_nusd_hour)
    why = f"{dearest.name} is {idle_for}, costs {price}/h, and its paid time is over: the dearest idle node goes"
    return Decision(release=(dearest.lease_id,), reasons=(*reasons, why))


def paid_left_s(billed_ms: int, quantum_s: int, minimum_s: int) -> float:
    """How much longer a node is paid for in any case, when it has been billed for so long; 0 with short quanta."""
    billed_s = billed_ms / 1000
    if billed_s < minimum_s:
        return minimum_s - billed_s
    if quantum_s <= SHORT_QUANTUM_S:
        return 0.0
    return quantum_s - billed_s % quantum_s


def share_nusd(free_nusd: int, nodes: int, *, price_nusd_hour: int, max_s: int) -> int:
    """What each of so many new nodes may cost, of what is free: together never more than that.

    Nor more than its whole time can cost, with something on top for fees and for a next offer that is dearer: what is
    set aside for one node cannot pay for another.
    """
    share = max(0, free_nusd) // max(nodes, 1)
    if price_nusd_hour <= 0:
        return share
    return min(share, price_nusd_hour * max_s * DEARER_PERCENT // (3600 * 100))


def load_of(view: DaskView | None) -> Load:
    """What waits. Tasks that wait for others count with the mean time of those that are assigned."""
    if view is None:
        return Load()
    tasks = view.tasks
    each_s = tasks.occupancy_s / tasks.processing if tasks.processing else 1.0
    waiting = tasks.waiting + tasks.queued + tasks.unrunnable
    return Load(tasks=tasks.processing + waiting, work_s=tasks.occupancy_s + waiting * each_s)


def boot_s(lease: Lease) -> float:
    """How long a lease took from the create call to a node that works."""
    began_ms = lease.phases.get(LeaseState.RENTING, lease.created_ms)
    return max(0.0, ((lease.ready_ms or began_ms) - began_ms) / 1000)


def lost_in_a_row(leases: list[Lease]) -> int:
    """How many of the last leases ended without ever having been ready."""
    lost = 0
    for lease in sorted(leases, key=lambda lease: -lease.created_ms):
        if lease.state not in ENDED_STATES or lease.ready_ms is not None:
            break
        lost += 1
    return lost
