"""What a Dask graph is going to take, as plain numbers: for estimates that are shown before the time is spent.

Two ways to the same numbers. `Graphs` lives in the scheduler and looks at what is submitted there; what it does not
know at that moment (how long tasks of a kind take, how large their results are) it knows a little later. `sizes` runs
in the head's session and looks at a collection that has not been submitted at all.

Which bytes move is a model: a task goes where the largest of its inputs is, so a chain moves nothing, and of `k` inputs
`k - 1` come from elsewhere. That fits reductions and shuffles both.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from jupyter_gpumarket.wire.messages import DaskGraph, DaskProgress

# Smaller ones are over before anybody has read an estimate.
LEAST_TASKS = 50
# Of larger ones a part is looked at: the scheduler has other things to do.
MOST_LOOKED_AT = 20_000
MOST_LINKS = 100_000
MAX_KINDS = 12
MAX_NAME_CHARS = 60
# Layers of a collection that need data from many others.
MOVING = ("rechunk", "shuffle", "p2p")


class Graphs(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """Notes the last large graph that was submitted."""

    name = "gpumarket-graphs"

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._number = 0
        self._at_ms = 0
        self._tasks = 0
        self._scale = 1.0
        self._of_kind: Counter[str] = Counter()
        self._moved: Counter[str] = Counter()

    def update_graph(self, scheduler: Any, *, tasks: Any = (), **_: Any) -> None:
        """Called by the scheduler for each graph, before its first task runs."""
        if len(tasks) < LEAST_TASKS:
            return
        first = [scheduler.tasks.get(key) for key in itertools.islice(tasks, MOST_LOOKED_AT)]
        # What is named only as somebody's input, and is there already, is no work.
        to_do = [task for task in first if task is not None and task.state != "memory"]
        count = round(len(tasks) * len(to_do) / len(first))
        if count < LEAST_TASKS:
            return
        self._number += 1
        self._at_ms, self._tasks = time.time_ns() // 1_000_000, count
        self._of_kind, self._moved = Counter(), Counter()
        looked_at, links = 0, 0
        while looked_at < len(to_do) and links < MOST_LINKS:
            links += self._look(to_do[looked_at])
            looked_at += 1
        self._scale = count / looked_at

    def _look(self, task: Any) -> int:
        """Count one task; how many inputs were looked at for it."""
        self._of_kind[task.prefix.name] += 1
        inputs = len(task.dependencies)
        looked_at = min(inputs, MOST_LINKS)
        if inputs > 1:
            for other in itertools.islice(task.dependencies, looked_at):
                self._moved[other.prefix.name] += (inputs - 1) / looked_at  # type: ignore[assignment]
        return looked_at

    def graph(self) -> DaskGraph | None:
        """What is known of it by now; None where none was submitted."""
        if not self._number:
            return None
        known_tasks, known_s, known_moves, moved = 0, 0.0, 0.0, 0.0
        for name, count in self._of_kind.items():
            each_s = self._average_s(name)
            if each_s is not None:
                known_tasks += count
                known_s += count * each_s
        for name, times in self._moved.items():
            size = self._average_bytes(name)
            if size is not None:
                known_moves += times
                moved += times * size
        return DaskGraph(
            number=self._number,
            at_ms=self._at_ms,
            tasks=self._tasks,
            known_tasks=round(known_tasks * self._scale),
            known_s=round(known_s * self._scale, 1),
            moves=round(sum(self._moved.values()) * self._scale),
            known_moves=round(known_moves * self._scale),
            moved_bytes=round(moved * self._scale),
        )

    def progress(self) -> tuple[DaskProgress, ...]:
        """How far each kind of task is, those with most to do first."""
        found = [_progress(prefix.name, prefix.states) for prefix in list(self._scheduler.task_prefixes.values())]
        there = [one for one in found if one.waiting + one.processing + one.in_memory + one.done + one.erred]
        there.sort(key=lambda one: (-(one.waiting + one.processing), one.name))
        return tuple(there[:MAX_KINDS])

    def _average_s(self, name: str) -> float | None:
        prefix = self._scheduler.task_prefixes.get(name)
        return None if prefix is None or prefix.duration_average < 0 else float(prefix.duration_average)

    def _average_bytes(self, name: str) -> float | None:
        prefix = self._scheduler.task_prefixes.get(name)
        if prefix is None:
            return None
        ended = sum(prefix.states.get(state, 0) for state in ("memory", "released", "forgotten"))
        return prefix.nbytes_total / ended if ended else None


def _progress(name: str, states: Any) -> DaskProgress:
    count = {state: int(number) for state, number in states.items()}
    return DaskProgress(
        name=str(name)[:MAX_NAME_CHARS],
        waiting=sum(count.get(state, 0) for state in ("waiting", "queued", "no-worker")),
        processing=count.get("processing", 0),
        in_memory=count.get("memory", 0),
        done=count.get("released", 0) + count.get("forgotten", 0),
        erred=count.get("erred", 0),
    )


def sizes(collection: Any, client: Any = None) -> dict[str, float]:
    """What computing a collection takes, as far as that can be told before: plain numbers, of which none means more.

    `known_tasks` of `tasks` are of kinds that have run on this scheduler before, and take `known_s` together. `bytes`:
    what its result has; `moved_bytes`: what has to go between nodes, the result's way to the head included.
    `is_sized`: whether it tells its sizes at all, which Dask's frames do not.
    """
    graph = getattr(collection, "__dask_graph__", None)
    if graph is None:
        return {"tasks": 0, "known_tasks": 0, "known_s": 0.0, "bytes": 0, "moved_bytes": 0, "is_sized": 0}
    built = graph()
    kinds = Counter(_kind(key) for key in _as_submitted(collection))
    averages = _averages(client, list(kinds)) if client is not None else {}
    size = getattr(collection, "nbytes", None)
    is_sized = isinstance(size, int | float) and 0 <= size < 2**63
    result = int(size) if is_sized else 0  # type: ignore[arg-type]
    return {
        "tasks": sum(kinds.values()),
        "known_tasks": sum(count for kind, count in kinds.items() if kind in averages),
        "known_s": round(sum(count * averages[kind] for kind, count in kinds.items() if kind in averages), 3),
        "bytes": result,
        "moved_bytes": result + _moved_in(built),
        "is_sized": int(is_sized),
    }


def _as_submitted(collection: Any) -> Any:
    """The graph with its tasks fused, as `compute` sends it: those are the kinds that the scheduler gets to know."""
    import dask

    (optimized,) = dask.optimize(collection)
    return optimized.__dask_graph__()


def _kind(key: Any) -> str:
    from dask.utils import key_split

    return str(key_split(key))


def _averages(client: Any, kinds: list[str]) -> dict[str, float]:
    """How long tasks of these kinds have taken, from the scheduler."""

    def ask(kinds: list[str], dask_scheduler: Any = None) -> dict[str, float]:
        known = dask_scheduler.task_prefixes
        return {k: float(known[k].duration_average) for k in kinds if k in known and known[k].duration_average >= 0}

    found: dict[str, float] = client.run_on_scheduler(ask, kinds)
    return found


def _moved_in(graph: Any) -> int:
    """The bytes that layers need from many places at once."""
    layers = getattr(graph, "layers", None)
    if layers is None:
        return 0
    sources = {
        source
        for name in layers
        if str(name).startswith(MOVING)
        for source in graph.dependencies.get(name, ())
        if not str(source).startswith(MOVING)  # one shuffle may take several layers
    }
    return sum(_layer_bytes(layers.get(source)) for source in sources)


def _layer_bytes(layer: Any) -> int:
    about = getattr(layer, "collection_annotations", None) or {}
    shape, dtype = about.get("shape"), about.get("dtype")
    if shape is None or dtype is None:
        return 0
    size = float(getattr(dtype, "itemsize", 0))
    for extent in shape:
        size *= float(extent)
    return int(size) if 0 <= size < 2**63 else 0  # a size that is not known is no number
