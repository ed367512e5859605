"""What a fan-out is going to take, told while it can still be thought over: before a map, and when a graph begins.

What is said is put together by pure functions from what is known at that moment: sizes and lines before, times of an
earlier map of the same cell, then the first results. It is said once, and again only when it turns into a warning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from jupyter_gpumarket.api import DaskGraph, DaskView, ItemView
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.models import Lease, Record
from jupyter_gpumarket.notebook import fit
from jupyter_gpumarket.notebook.data import size_words

# Until so many results are there (and as many as run at once), times of single items tell little.
FIRST_RESULTS = 4
# Below that nobody needs an estimate.
WORTH_S = 30.0
WORTH_BYTES = 500_000_000
# How a graph's guess is off when nothing is known of a part of it.
GRAPH_SPREAD = 2.0
# A graph is estimated when of so many of its tasks something is known, or after so long.
KNOWN_SHARE = 0.5
GRAPH_WAIT_S = 10.0


class MapFacts(Record, frozen=True, kw_only=True):
    """A map before it begins. `slots`: how many items run at once; `left_nusd`, `left_s`: what its nodes may still use.

    `seconds_each`: what an item took in an earlier map of the same cell; 0 where there was none.
    """

    count: int
    bytes_in: int
    slots: int
    leases: tuple[Lease, ...]
    left_nusd: int
    left_s: float
    seconds_each: float = 0.0


class Seen(Record, frozen=True, kw_only=True):
    """What the first results tell: how many, how long each took, by which factor that is off, bytes of each."""

    count: int = 0
    seconds_each: float = 0.0
    spread: float = 4.0
    bytes_each: float = 0.0


def seen_in(items: Sequence[ItemView]) -> Seen:
    """The mean of the first results, and how far one may trust it."""
    if not items:
        return Seen()
    times = [item.took_ms / 1000 for item in items]
    mean = sum(times) / len(times)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in times) / len(times))
    doubt = (deviation / mean if mean else 0.0) + 0.5
    size = sum(item.size for item in items) / len(items)
    return Seen(
        count=len(items),
        seconds_each=mean,
        spread=1.1 + 2 * doubt / math.sqrt(len(items)),
        bytes_each=size,
    )


def map_estimate(facts: MapFacts, seen: Seen, *, ended: int = 0) -> fit.Estimate:
    """What the rest of a map takes."""
    left = max(0, facts.count - ended)
    seconds, spread = (seen.seconds_each, seen.spread) if seen.count else (facts.seconds_each, 2.0)
    work = fit.Work(
        tasks=left,
        seconds_each=seconds,
        spread=spread,
        user_bytes=facts.bytes_in * left // max(1, facts.count),
        back_bytes=round(seen.bytes_each * left),
    )
    rate = sum(lease.price_nusd_hour for lease in facts.leases)
    lines = fit.lines_of(facts.leases, is_relayed=True)
    return fit.estimate(work, lines, workers=max(1, facts.slots), rate_nusd_hour=rate, is_relayed=True)


def before_map(facts: MapFacts) -> list[str]:
    """The line before the first item, and warnings that can be given so early."""
    nodes = len(facts.leases)
    home = fit.home_of([fit.path_of(lease) for lease in facts.leases])
    speed = f" at {home.up_mbps:.3g} Mbit/s (measured)" if home.is_measured else ""
    items, on = "item" if facts.count == 1 else "items", "node" if nodes == 1 else "nodes"
    about = f"{facts.count} {items} on {nodes} {on}, {facts.slots} at once; "
    about += f"{size_words(facts.bytes_in)} to send{speed}"
    if not facts.seconds_each:
        return [f"{about}; time and cost are told after the first results", *_shortages(facts, Seen())]
    found = map_estimate(facts, Seen())
    return [f"{about}; by an earlier map of this cell: {found.sentence()}", *found.warnings, *_shortages(facts, Seen())]


def after_first(facts: MapFacts, seen: Seen, ended: int) -> list[str]:
    """What the first results tell of the rest: the estimate when the rest is long, warnings in any case."""
    found = map_estimate(facts, seen, ended=ended)
    network = [warning for warning in found.warnings if warning.startswith("this is bound")]
    told = [*network, *_shortages(facts, seen, ended=ended)]
    if found.total_s.likely >= WORTH_S:
        back = f", {size_words(round(seen.bytes_each * facts.count))} of results in all" if seen.bytes_each else ""
        told.insert(0, f"after {seen.count} results: {found.sentence()} for the other {facts.count - ended}{back}")
    return told


def is_first(facts: MapFacts, seen: Seen) -> bool:
    """Whether enough results are there to say something of the rest."""
    return seen.count >= min(max(FIRST_RESULTS, facts.slots), max(1, facts.count // 2))


def _shortages(facts: MapFacts, seen: Seen, *, ended: int = 0) -> list[str]:
    short = fit.shortage(map_estimate(facts, seen, ended=ended), left_nusd=facts.left_nusd, left_s=facts.left_s)
    return [short] if short else []


class MapForecast:
    """One map's forecasts: `before` it begins, and by its first results, once."""

    def __init__(self, facts: MapFacts) -> None:
        self._facts = facts
        self._items: list[ItemView] = []
        self._is_told = False

    def before(self) -> list[str]:
        """What to say before it begins."""
        return before_map(self._facts)

    def take(self, items: Sequence[ItemView], ended: int) -> list[str]:
        """Results have come; what to say of the rest, if it is time."""
        if self._is_told:
            return []
        self._items += items
        seen = seen_in(self._items)
        if not is_first(self._facts, seen):
            return []
        self._is_told = True
        return after_first(self._facts, seen, ended)


# ── graphs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def graph_estimate(graph: DaskGraph, view: DaskView, leases: Sequence[Lease]) -> fit.Estimate:
    """What a submitted graph takes on these nodes, as far as it is known yet."""
    threads = max(1, sum(worker.nthreads for worker in view.workers if worker.state == "running"))
    known = max(1, graph.known_tasks)
    moved = graph.moved_bytes * graph.moves // max(1, graph.known_moves)
    work = fit.Work(
        tasks=graph.tasks,
        seconds_each=graph.known_s / known,
        # The less of it is known, the more the rest may differ.
        spread=GRAPH_SPREAD * min(5.0, graph.tasks / known),
        moved_bytes=moved if len(leases) > 1 else 0,
    )
    is_relayed = view.relayed > 0
    rate = sum(lease.price_nusd_hour for lease in leases)
    lines = fit.lines_of(leases, is_relayed=is_relayed)
    return fit.estimate(work, lines, workers=threads, rate_nusd_hour=rate, is_relayed=is_relayed)


def graph_words(graph: DaskGraph, view: DaskView, leases: Sequence[Lease]) -> list[str]:
    """The estimate of a large graph; nothing for one that is soon over."""
    found = graph_estimate(graph, view, leases)
    if found.total_s.likely < WORTH_S and graph.moved_bytes < WORTH_BYTES:
        return []
    moved = f", {size_words(graph.moved_bytes)} between nodes" if graph.moved_bytes else ""
    unknown = "" if graph.known_tasks >= graph.tasks else f" ({graph.tasks - graph.known_tasks} of them not known yet)"
    network = [warning for warning in found.warnings if warning.startswith("this is bound")]
    return [f"Dask has {graph.tasks} tasks{unknown}{moved}: {found.sentence()}", *network]


class GraphForecast:
    """Tells once of each large graph that is submitted while a cell runs."""

    def __init__(self, before: DaskGraph | None, leases: Sequence[Lease]) -> None:
        self._told = before.number if before is not None else 0
        self._leases = leases
        self._found_s: tuple[int, float] | None = None

    def take(self, view: DaskView, now_s: float) -> list[str]:
        """What to say now."""
        graph = view.tasks.graph
        if graph is None or graph.number <= self._told:
            return []
        if self._found_s is None or self._found_s[0] != graph.number:
            self._found_s = (graph.number, now_s)
        is_known = graph.known_tasks >= KNOWN_SHARE * graph.tasks
        if not graph.known_tasks or not (is_known or now_s - self._found_s[1] > GRAPH_WAIT_S):
            return []
        self._told = graph.number
        return graph_words(graph, view, self._leases)


# ── what was measured on the head of a collection that was not submitted ─────────────────────────────────────────────


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that `agent.graphs.sizes` gives, checked: they come from a node."""

    tasks: int
    known_tasks: int
    known_s: float
    bytes: int
    moved_bytes: int
    is_sized: int


def sizes_from(value: object) -> Sizes | None:
    """The numbers, or None where a node sent something else."""
    try:
        found = msgspec.convert(value, Sizes, strict=False)
    except msgspec.ValidationError:
        return None
    numbers = (found.tasks, found.known_tasks, found.known_s, found.bytes, found.moved_bytes)
    is_sane = all(math.isfinite(number) and 0 <= number < 2**63 for number in numbers)
    return found if is_sane and found.known_tasks <= found.tasks else None


def collection_words(
    found: Sizes, view: DaskView, leases: Sequence[Lease], *, rate_nusd_hour: int, seconds_each: float | None
) -> list[str]:
    """The estimate of a collection, and what it goes by."""
    threads = max(1, sum(worker.nthreads for worker in view.workers if worker.state == "running"))
    known_each = found.known_s / found.known_tasks if found.known_tasks else 0.0
    each = seconds_each if seconds_each is not None else known_each or 1.0
    spread = 2.0 if seconds_each is not None or found.known_tasks >= found.tasks else 4.0
    work = fit.Work(
        tasks=max(1, found.tasks), seconds_each=each, spread=spread, moved_bytes=found.moved_bytes if leases else 0
    )
    is_relayed = view.relayed > 0
    lines = fit.lines_of(leases, is_relayed=is_relayed)
    result = fit.estimate(work, lines, workers=threads, rate_nusd_hour=rate_nusd_hour, is_relayed=is_relayed)
    by = (
        f"{in_words(each)} each as you say"
        if seconds_each is not None
        else f"{found.known_tasks} of a kind that has run here before"
        if found.known_tasks
        else "1 s each was assumed; --seconds-each tells better"
    )
    what = f"{found.tasks} tasks ({by}), result {size_words(found.bytes)}, {size_words(found.moved_bytes)} to move"
    told = [f"{what}: {result.sentence()}", *result.warnings]
    if not found.is_sized:
        told.append("it does not tell its size, so what has to move is not in this")
    return told
