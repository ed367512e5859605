"""A cluster as it is shown: a few facts, workers, tasks. Our own text of a node's numbers, never a node's page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jupyter_gpumarket.api import ClusterView, DaskProgress, DaskTasks, DaskView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.models import ENDED_STATES, LeaseState
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.data import size_words
from jupyter_gpumarket.notebook.stage import Table, as_html

READY = (LeaseState.READY, LeaseState.UNREACHABLE)
GOING = (*ENDED_STATES, LeaseState.DRAINING, LeaseState.RELEASING, LeaseState.RELEASE_UNCONFIRMED)
UPDATE_EVERY_S = 2.0
MAX_WORKERS = 50


def is_complete(view: ClusterView) -> bool:
    """Whether as many nodes as are asked for at least are ready, each with a worker that the scheduler knows."""
    if view.dask is None or view.dask.state != "running":
        return False
    at_work = {worker.lease_id for worker in view.dask.workers if worker.state == "running" and worker.nthreads}
    ready = [lease for lease in view.leases if lease.state in READY and lease.lease_id in at_work]
    return len(ready) >= max(1, view.wish.aim.minimum)


def is_over(view: ClusterView) -> bool:
    """Whether nothing changes any more: to go on asking would only keep a broker running, or start one."""
    return view.is_ended and not view.leases


def facts_of(view: ClusterView) -> list[tuple[str, str]]:
    """A cluster in a few lines."""
    ready = sum(lease.state in READY for lease in view.leases)
    aim = view.wish.aim
    asked = str(aim.maximum) if aim.minimum == aim.maximum else f"{aim.minimum} to {aim.maximum}"
    dask = view.dask
    head = next((lease.name for lease in view.leases if dask and lease.lease_id == dask.head), "none yet")
    limit, spent = format_usd(view.wish.budget_nusd), format_usd(view.spent_nusd, places=6)
    found = [
        ("nodes", f"{ready} ready of {asked} asked for"),
        ("workers", worker_words(dask)),
        ("head", head),
        ("cost", f"{spent} of {limit} so far, {format_usd(view.rate_nusd_hour)}/h"),
    ]
    if dask is not None and dask.workers:
        found += [("tasks", task_words(dask.tasks)), ("memory", memory_words(dask))]
    return found


def worker_words(dask: DaskView | None) -> str:
    """`2 with 16 threads`, of those that run; a worker that has just begun has not told its threads yet."""
    threads = [worker.nthreads for worker in dask.workers if worker.state == "running"] if dask is not None else []
    if threads and not any(threads):
        return f"{len(threads)}, threads not known yet"
    words = f"{len(threads)} with {sum(threads)} threads"
    return f"{words}, {threads.count(0)} not heard of yet" if 0 in threads else words


def task_words(tasks: DaskTasks) -> str:
    """`120 waiting, 8 at work, 40 in memory`; those that failed where there are some."""
    waiting = tasks.waiting + tasks.queued + tasks.unrunnable
    words = f"{waiting} waiting, {tasks.processing} at work, {tasks.in_memory} in memory"
    return f"{words}, {tasks.erred} failed" if tasks.erred else words


def memory_words(dask: DaskView) -> str:
    """What workers hold, of what they may."""
    held = sum(worker.memory_bytes for worker in dask.workers)
    limit = sum(worker.memory_limit for worker in dask.workers)
    return f"{size_words(held)} of {size_words(limit)}" if limit else size_words(held)


def progress_table(dask: DaskView) -> Table | None:
    """How far each kind of task is; None where there is none. The names are a node's words."""
    rows = tuple((one_line(one.name, 60), *_counts(one)) for one in dask.tasks.progress)
    headers = ("tasks", "done", "at work", "waiting", "failed")
    return Table(headers=headers, rows=rows, right=frozenset({1, 2, 3, 4})) if rows else None


def worker_table(dask: DaskView) -> Table | None:
    """The workers and what they do; None where there is none."""
    rows = tuple(
        (
            one_line(worker.name, 80),
            worker.state,
            str(worker.nthreads),
            str(worker.processing),
            str(worker.in_memory),
            size_words(worker.memory_bytes),
        )
        for worker in dask.workers[:MAX_WORKERS]
    )
    headers = ("worker", "state", "threads", "assigned", "results", "memory")
    return Table(headers=headers, rows=rows, right=frozenset({2, 3, 4, 5})) if rows else None


def lack_table(view: ClusterView) -> Table | None:
    """Nodes on which a worker should run and does not, with the reason; None where there is none."""
    if view.dask is None or view.dask.state == "off":
        return None
    names = {lease.lease_id: one_line(lease.name, 60) for lease in view.leases}
    coming = [lease for lease in view.leases if lease.state not in READY and lease.state not in GOING]
    told = {lease.lease_id: f"it is not ready yet: {lease.state.value}" for lease in coming}
    told |= {lack.lease_id: lack.reason for lack in view.dask.lacks}
    rows = tuple((names[key], one_line(reason, 500)) for key, reason in told.items() if key in names)
    return (
        Table(title="nodes without a worker, or not heard", headers=("node", "why"), rows=rows[:MAX_WORKERS])
        if rows
        else None
    )


def _counts(one: DaskProgress) -> tuple[str, str, str, str]:
    done, every = one.in_memory + one.done, one.in_memory + one.done + one.waiting + one.processing + one.erred
    return f"{done} of {every}", str(one.processing), str(one.waiting), str(one.erred) if one.erred else ""


def html_of(view: ClusterView, dashboard_link: str = "") -> str:
    """The same for a page: all of it escaped text of ours."""
    rows = "".join(f"<tr><th>{as_html(key)}</th><td>{as_html(value)}</td></tr>" for key, value in facts_of(view))
    if dashboard_link:
        link = as_html(dashboard_link)
        rows += f'<tr><th>dashboard</th><td><a href="{link}" target="_blank" rel="noreferrer">{link}</a></td></tr>'
    tables = [progress_table(view.dask), worker_table(view.dask)] if view.dask is not None else []
    more = "".join(
        f"<details><summary>{table.headers[0]}</summary>{table.html()}</details>" for table in tables if table
    )
    return f"<b>GPUCluster {as_html(view.name)}</b><table>{rows}</table>{more}"


class LiveView:
    """The same in a widget that is kept up to date, for a front end that shows widgets."""

    def __init__(self, html: Callable[[], str | None], *, in_thread: bool) -> None:
        """`html` gives what is to be shown now, or None when it changes no more."""
        from ipywidgets import HTML

        self._html = html
        self._widget = HTML(html() or "")
        self._over = threading.Event()
        if in_thread:
            threading.Thread(target=self._keep, name="gpumarket-cluster-view", daemon=True).start()

    def bundle(self) -> dict[str, Any]:
        """How a front end is told of the widget."""
        found = self._widget._repr_mimebundle_()
        return dict(found or {})

    def update(self) -> bool:
        """Show how it is now; False when that was the last time."""
        html = self._html()
        if html is None:
            return False
        self._widget.value = html
        return True

    def stop(self) -> None:
        """Leave it as it is."""
        self._over.set()

    def _keep(self) -> None:
        while not self._over.wait(UPDATE_EVERY_S):
            try:
                if not self.update():
                    return
            except Exception:  # noqa: BLE001 - the kernel or the broker is ending; a view must not complain into cells
                return
