"""`%gpu cluster`: rent several nodes with Dask on them, look at them, estimate, scale, ask why, give them back."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import secrets
from typing import Any

import msgspec

from jupyter_gpumarket.api import Aim, ClusterView, ClusterWish, DaskWish
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.errors import BadRequest, BudgetExceeded, LeaseFailed, NoMatchingOffer
from jupyter_gpumarket.models import ENDED_STATES
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.notebook import renting
from jupyter_gpumarket.notebook.cluster_display import facts_of, is_complete, lack_table, progress_table
from jupyter_gpumarket.notebook.costline import CostLine, gpu_words
from jupyter_gpumarket.notebook.estimating import estimate
from jupyter_gpumarket.notebook.fanout import own_cluster
from jupyter_gpumarket.notebook.interrupts import InterruptWatch
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.options import (
    MAX_NODES,
    Wish,
    add_limit_arguments,
    add_sync_arguments,
    add_wish_arguments,
    money,
    node_count,
    sync_options,
    wish_from,
)
from jupyter_gpumarket.notebook.stage import Stage, Table
from jupyter_gpumarket.notebook.sync import Syncer

POLL_S = 0.5
READY_PATIENCE_S = 900.0
RELEASE_PATIENCE_S = 60.0
WORDS = ("status", "why", "estimate", "scale", "adapt", "release")
MAX_WAYS = 30


def add_cluster_arguments(parser: Any) -> None:
    """The arguments of `%gpu cluster`."""
    parser.add_argument(
        "what", nargs="*", help="a number of nodes to rent, or: status, why, estimate, scale N, adapt, release"
    )
    add_wish_arguments(parser)
    add_limit_arguments(parser)
    add_sync_arguments(parser)
    parser.add_argument("--project", default="", help="book the costs on this project")
    parser.add_argument("--threads", type=int, default=0, help="threads of each worker (default: the node's cores)")
    parser.add_argument("--minimum", type=int, default=1, help="adapt: at least so many nodes (default: 1)")
    parser.add_argument("--maximum", type=int, help="adapt: at most so many nodes")
    parser.add_argument("--max-usd-hour", metavar="USD", help="adapt: what all nodes together may cost an hour")
    parser.add_argument("--seconds-each", type=float, metavar="S", help="estimate: how long one task takes")
    parser.add_argument("--finish-by", metavar="TIME", help="adapt: by when the work should be done: 18:30")


class ClusterCommand:
    """Carries out `%gpu cluster`."""

    def __init__(self, notebook: Notebook, stage: Stage, syncer: Syncer) -> None:
        self._notebook = notebook
        self._stage = stage
        self._syncer = syncer

    def run(self, arguments: argparse.Namespace) -> None:
        """Do what the first word says.

        Raises:
            BadRequest: not one of the words, or no number where one is needed.
        """
        word, *more = arguments.what or ["status"]
        if word.isdigit():
            self._rent(node_count(word), arguments)
        elif word == "scale":
            aim_at = _number(more[0] if more else "")
            self._aim(arguments, Aim(minimum=aim_at, maximum=aim_at))
        elif word == "adapt":
            self._adapt(arguments)
        elif word == "estimate":
            view = own_cluster(self._notebook, arguments.name)
            estimate(self._notebook, self._stage, view, " ".join(more), _seconds(arguments.seconds_each))
        elif word in WORDS:
            view = own_cluster(self._notebook, arguments.name)
            {"status": self._status, "why": self._why, "release": self._release}[word](view)
        else:
            raise BadRequest(f"%gpu cluster {word}: tell a number of nodes, or one of {', '.join(WORDS)}")

    # ── renting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rent(self, count: int, arguments: argparse.Namespace) -> None:
        wish = wish_from(arguments, self._notebook.settings)
        wanted = sync_options(arguments, self._notebook.settings)
        own_code = self._syncer.prepare(wanted, "") if wanted else None
        name = arguments.name or f"cluster-{secrets.token_hex(2)}"
        self._consent(count, wish)
        asked = ClusterWish(
            aim=Aim(minimum=count, maximum=count),
            query=wish.query,
            budget_nusd=wish.budget_nusd,
            max_s=wish.max_s,
            owner=self._notebook.owner(arguments.project),
            trusted=wish.trust,
            grace_s=self._notebook.settings.grace_s,
            dask=DaskWish(nthreads=max(0, arguments.threads), dashboard=wish.trust),
        )
        line = CostLine(self._stage, f"gpum-cluster-{os.urandom(8).hex()}", self._notebook.clock)
        with InterruptWatch() as watch:
            view = watch.wait(lambda: self._notebook.client.keep_cluster(name, asked))
            if view is not None:
                view = self._wait_complete(line, watch, view)
        if view is None:
            # It may not have arrived; ended for certain it is so.
            self._release(self._notebook.client.keep_cluster(name, asked))
            raise renting.Cancelled("cancelled while renting; the nodes were given back")
        head = view.dask.head if view.dask else ""
        for lease in sorted(view.leases, key=lambda lease: lease.lease_id == head):
            self._notebook.use(lease.lease_id)
        line.final(f"{name} · " + " · ".join(f"{key}: {value}" for key, value in facts_of(view)))
        if own_code is not None:
            self._syncer.bring(own_code, view.leases)  # last: if it fails, it is known what has been rented

    def _consent(self, count: int, wish: Wish) -> None:
        """Show what would be rented and what it can cost, and ask.

        Raises:
            NoMatchingOffer: fewer offers fit than nodes are asked for.
            BudgetExceeded: the budget does not even cover the start.
            Cancelled: the answer was no.
        """
        offers = renting.best_offers(self._notebook, wish, limit=count).offers
        if len(offers) < count:
            fits = "1 offer fits" if len(offers) == 1 else f"{len(offers)} offers fit"
            raise NoMatchingOffer(f"{count} nodes are asked for, and {fits}; `%gpu offers` shows what there is")
        rate = sum(offer.price_nusd_hour for offer in offers)
        least = cost_nusd(rate, 60_000)
        if wish.budget_nusd < least:
            raise BudgetExceeded(
                f"the budget of {format_usd(wish.budget_nusd)} is for all {count} nodes together, which cost "
                f"{format_usd(rate)}/h: raise --budget, or ask for fewer"
            )
        self._stage.table(renting.offers_table(offers, f"{count} nodes, together {format_usd(rate)}/h"))
        worst = min(wish.budget_nusd, cost_nusd(rate, wish.max_s * 1000))
        limits = f"one budget of {format_usd(wish.budget_nusd)} for all, each at most {in_words(wish.max_s)}"
        summary = f"rent {count} nodes like these: {limits}; worst case {format_usd(worst, places=2)}"
        renting.ask(self._stage, summary, yes=wish.yes)

    def _wait_complete(self, line: CostLine, watch: InterruptWatch, view: ClusterView) -> ClusterView | None:
        """The cluster once it is whole; None when Ctrl-C came.

        Raises:
            LeaseFailed: it did not become whole; its nodes are given back.
        """
        clock = self._notebook.clock
        deadline_s = clock.monotonic_s() + READY_PATIENCE_S
        while not is_complete(view):
            trouble = "; ".join(view.notices)
            if clock.monotonic_s() > deadline_s or (trouble and not view.leases):
                self._notebook.client.end_cluster(view.name, view.cluster_id)
                raise LeaseFailed(f"{view.name} did not become whole and is given back: {one_line(trouble, 900)}")
            waited = watch.wait(lambda: self._look(view.name))  # noqa: B023
            if waited is None:
                watch.news()
                return None
            view = waited
            states = ", ".join(f"{one_line(lease.name, 40)} {lease.state.value}" for lease in view.leases)
            dask = f"Dask {view.dask.state}" if view.dask else "Dask waits for a node"
            line.live(
                f"{view.name} · {states or 'renting'} · {dask}{' · ' + one_line(trouble, 200) if trouble else ''}"
            )
        return view

    def _look(self, name: str) -> ClusterView:
        self._notebook.pause(POLL_S)
        return self._notebook.client.cluster_view(name)

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _aim(self, arguments: argparse.Namespace, aim: Aim) -> None:
        view = own_cluster(self._notebook, arguments.name)
        # It may end meanwhile, and would be rented anew without having been shown and asked for.
        wish = msgspec.structs.replace(view.wish, aim=aim, cluster_id=view.cluster_id)
        if arguments.budget:
            wish = msgspec.structs.replace(wish, budget_nusd=money("--budget", arguments.budget))
        self._why(self._notebook.client.keep_cluster(view.name, wish))

    def _adapt(self, arguments: argparse.Namespace) -> None:
        if arguments.maximum is None:
            raise BadRequest("%gpu cluster adapt: tell --maximum, the most nodes that may be rented")
        finish_by = _time_of_day(arguments.finish_by, self._notebook.clock.now_ms()) if arguments.finish_by else None
        rate = money("--max-usd-hour", arguments.max_usd_hour) if arguments.max_usd_hour else None
        aim = Aim(
            minimum=max(1, arguments.minimum),
            maximum=arguments.maximum,
            max_nusd_hour=rate,
            finish_by_ms=finish_by,
        )
        self._aim(arguments, aim)

    def _status(self, view: ClusterView) -> None:
        self._stage.table(Table(title=view.name, headers=("what", "now"), rows=tuple(facts_of(view))))
        workers = view.dask.workers if view.dask else ()
        rows = tuple(
            (
                one_line(lease.name, 60) + (" (head)" if view.dask and view.dask.head == lease.lease_id else ""),
                gpu_words(lease),
                lease.state.value,
                format_usd(lease.price_nusd_hour),
                str(sum(w.lease_id == lease.lease_id and w.state == "running" for w in workers)),
                str(sum(w.processing for w in workers if w.lease_id == lease.lease_id)),
            )
            for lease in view.leases
        )
        headers = ("node", "GPU", "state", "per hour", "workers", "tasks")
        self._stage.table(Table(headers=headers, rows=rows, right=frozenset({3, 4, 5})))
        if view.dask is not None and (progress := progress_table(view.dask)) is not None:
            self._stage.table(progress)
        self._say_notices(view)

    def _why(self, view: ClusterView) -> None:
        rows = tuple(
            (iso_utc(decision.at_ms), _deed(decision.grow, len(decision.release)), "; ".join(decision.reasons))
            for decision in view.decisions[-10:]
        )
        self._stage.table(Table(title=f"{view.name}: decisions", headers=("when", "what", "why"), rows=rows))
        if view.dask and view.dask.head:
            head = next((lease.name for lease in view.leases if lease.lease_id == view.dask.head), "")
            self._stage.say(f"head: {one_line(head)}: {one_line(view.dask.head_reason, 300)}")
        if (lacks := lack_table(view)) is not None:
            self._stage.table(lacks)
        if view.dask and view.dask.ways:
            names = {lease.lease_id: one_line(lease.name, 60) for lease in view.leases}
            ways = tuple(
                (
                    f"{names.get(way.from_lease, '?')} → {names.get(way.to_lease, '?')}",
                    "direct" if way.is_direct else "relayed",
                    one_line(way.reason, 200),
                )
                for way in view.dask.ways[:MAX_WAYS]
            )
            self._stage.table(Table(title="between nodes", headers=("way", "how", "why"), rows=ways))
        self._say_notices(view)

    def _say_notices(self, view: ClusterView) -> None:
        for notice in (*view.notices, *(view.dask.notices[-5:] if view.dask else ())):
            self._stage.say(one_line(notice, 500))
        for key in view.dask.tasks.poisoned if view.dask else ():
            self._stage.say(f"poisoned: the task {one_line(key, 200)} ended several workers, and was given up")

    def _release(self, view: ClusterView) -> None:
        client, clock = self._notebook.client, self._notebook.clock
        view = client.end_cluster(view.name, view.cluster_id)
        for lease in view.leases:
            self._notebook.forget(lease.lease_id)
        deadline_s = clock.monotonic_s() + RELEASE_PATIENCE_S
        while view.leases and clock.monotonic_s() < deadline_s:
            view = self._look(view.name)
        if any(lease.state not in ENDED_STATES for lease in view.leases):
            names = ", ".join(one_line(lease.name) for lease in view.leases)
            self._stage.say(f"not confirmed yet, and may still bill: {names}; `%gpu status` shows it")
        else:
            self._stage.say(f"{view.name} is given back; it cost {format_usd(view.spent_nusd)} in all")


def _deed(grow: int, released: int) -> str:
    if grow:
        return f"rent {grow}"
    return f"give back {released}" if released else "leave"


def _number(text: str) -> int:
    if not text.isdigit() or int(text) > MAX_NODES:
        raise BadRequest(f"%gpu cluster scale {text}: tell a number of nodes up to {MAX_NODES}, as in `scale 3`")
    return int(text)


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e7:
        raise BadRequest(f"--seconds-each {value:g}: tell the seconds of one task")
    return value


def _time_of_day(text: str, now_ms: int) -> int:
    """Today at this local time, or tomorrow when that has passed."""
    try:
        wanted = dt.time.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"--finish-by {text}: write a time of day like 18:30") from None
    now = dt.datetime.fromtimestamp(now_ms / 1000).astimezone()
    then = now.replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    if then <= now:
        then += dt.timedelta(days=1)
    return round(then.timestamp() * 1000)
