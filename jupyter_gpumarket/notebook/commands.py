"""`%gpu ...`: one method per command; each parses, asks one collaborator, and shows."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from jupyter_gpumarket import config
from jupyter_gpumarket.api import LeaseView, MapState, MapView, OfferSearch
from jupyter_gpumarket.cleaning.text import clean_text, one_line
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import ENDED_RUNS, ENDED_STATES, RunStatus, Scope
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook import renting
from jupyter_gpumarket.notebook.cluster_command import ClusterCommand, add_cluster_arguments
from jupyter_gpumarket.notebook.costline import CostLine, gpu_words, place_of
from jupyter_gpumarket.notebook.doctor import examine
from jupyter_gpumarket.notebook.following import Followed
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.options import (
    HelpShown,
    Parser,
    SyncOptions,
    add_limit_arguments,
    add_wish_arguments,
    hours_from,
    money,
    query_from,
    wish_from,
)
from jupyter_gpumarket.notebook.running import CellRunner
from jupyter_gpumarket.notebook.stage import Stage, Table

RELEASE_PATIENCE_S = 60.0


class Command(NamedTuple):
    """A command's parser and what it does."""

    parser: Parser
    work: Callable[[argparse.Namespace], Any]


class Commands:
    """The commands of one notebook."""

    def __init__(self, notebook: Notebook, shell: Any, runner: CellRunner) -> None:
        self._notebook = notebook
        self._stage = Stage(shell)
        self._runner = runner
        self.table = self._table()

    def run(self, words: list[str]) -> Any:
        """Carry out `%gpu WORD ...`; without words, the status.

        Raises:
            BadRequest: an unknown command, or arguments that cannot be read.
        """
        name, *rest = words or ["status"]
        if name in ("-h", "--help"):
            name = "help"
        command = self.table.get(name)
        if command is None:
            raise BadRequest(f"%gpu {name}: no such command; there are {', '.join(self.table)}")
        try:
            with contextlib.redirect_stderr(None):
                arguments = command.parser.parse_args(rest)
        except HelpShown:
            return None
        return command.work(arguments)

    def _table(self) -> dict[str, Command]:
        table: dict[str, Command] = {}

        def add(name: str, what: str, work: Callable[[argparse.Namespace], Any]) -> Parser:
            parser = Parser(prog=f"%gpu {name}", description=what, formatter_class=argparse.HelpFormatter)
            table[name] = Command(parser, work)
            return parser

        offers = add("offers", "What can be rented now, cheapest first.", self._offers)
        add_wish_arguments(offers)
        offers.add_argument("--limit", type=int, default=20, help="so many rows (default: 20)")
        rent = add("rent", "Rent a node for this notebook now.", self._rent)
        add_wish_arguments(rent)
        add_limit_arguments(rent)
        rent.add_argument("--project", default="", help="book the costs on this project")
        status = add("status", "This notebook's nodes, what they do and cost.", self._status)
        status.add_argument("--all", action="store_true", help="nodes of all notebooks")
        release = add("release", "Give nodes back.", self._release)
        release.add_argument("node", nargs="?", help="which one (default: this notebook's)")
        release.add_argument("--all", action="store_true", help="all nodes of this notebook")
        cost = add("cost", "What this notebook's nodes and cells cost.", self._cost)
        cost.add_argument("--all", action="store_true", help="costs of all notebooks")
        attach = add("attach", "Show a run's whole output again and go on with it.", self._attach)
        attach.add_argument("run", nargs="?", help="the run's id or its beginning (default: the running one)")
        logs = add("logs", "What happened to a node, and its own log.", self._logs)
        logs.add_argument("node", nargs="?", help="which one (default: this notebook's)")
        cluster = add("cluster", "Several nodes with Dask on them: rent, scale, ask why, give back.", self._cluster)
        add_cluster_arguments(cluster)
        sync = add("sync", "Bring your own modules to this notebook's nodes, and packages that they need.", self._sync)
        sync.add_argument("paths", nargs="*", help="files, folders or modules (default: what this kernel has loaded)")
        sync.add_argument("--no-packages", action="store_true", help="modules only")
        sync.add_argument("--dry-run", action="store_true", help="show what would be brought")
        sync.add_argument("--yes", "-y", action="store_true", help="install missing packages without asking")
        self._add_settings_commands(add)
        return table

    def _add_settings_commands(self, add: Callable[[str, str, Callable[[argparse.Namespace], Any]], Parser]) -> None:
        extend = add("extend", "Give a node more time or money: the new totals.", self._extend)
        extend.add_argument("node", nargs="?", help="which one (default: this notebook's)")
        extend.add_argument("--hours", help="longest time of the lease, in all")
        extend.add_argument("--budget", metavar="USD", help="budget of the lease, in all")
        budget = add("budget", "Show or set hard limits.", self._budget)
        budget.add_argument("limit", nargs="?", metavar="USD", help="the new limit; 'none' takes it away")
        scopes = [scope.value for scope in Scope if scope is not Scope.CELL]
        budget.add_argument("--scope", choices=scopes, default=Scope.NOTEBOOK.value, help="what it limits")
        budget.add_argument("--key", help="which notebook, user or project (default: this one)")
        add("config", "The settings that count here, and where they come from.", self._config)
        add("doctor", "Look whether everything is in place.", self._doctor)
        help_ = add("help", "The commands.", self._help)
        help_.add_argument("command", nargs="?", help="one of them")

    def _offers(self, arguments: argparse.Namespace) -> None:
        query = query_from(arguments, self._notebook.settings)
        hours = hours_from(arguments.hours) if arguments.hours else 1.0
        found = self._notebook.client.offers(OfferSearch(query=query, hours=hours, limit=arguments.limit))
        if not found.offers:
            renting.refuse_nothing(found)
        self._stage.table(renting.offers_table(found.offers))
        for status in found.statuses:
            if not status.ok:
                self._stage.say(f"no answer from {renting.trouble_words(status)}")

    def _cluster(self, arguments: argparse.Namespace) -> None:
        ClusterCommand(self._notebook, self._stage, self._runner.syncer).run(arguments)

    def _rent(self, arguments: argparse.Namespace) -> None:
        wish = wish_from(arguments, self._notebook.settings)
        line = CostLine(self._stage, f"gpum-rent-{os.urandom(8).hex()}", self._notebook.clock)
        lease = renting.rent(self._notebook, self._stage, line, wish, self._notebook.owner(arguments.project))
        phases = renting.phases_text(lease, lease.changed_ms)
        line.final(f"{one_line(lease.name)} · {gpu_words(lease)} · {format_usd(lease.price_nusd_hour)}/h · {phases}")

    def _sync(self, arguments: argparse.Namespace) -> None:
        yes = arguments.yes or not self._notebook.settings.ask
        options = SyncOptions(paths=tuple(arguments.paths), packages=not arguments.no_packages, yes=yes)
        syncer = self._runner.syncer
        prepared = syncer.prepare(options, "")
        if arguments.dry_run:
            syncer.show(prepared)
            return
        views = self._notebook.leases(with_nodes=False)
        if not views:
            raise BadRequest("this notebook has no node to bring anything to; `%%gpu --sync` rents one and syncs")
        if not syncer.bring(prepared, [view.lease for view in views]):
            self._stage.say("no modules of yours were found: import one here first, or name it: `%gpu sync helpers.py`")

    def _status(self, arguments: argparse.Namespace) -> None:
        views = self._notebook.client.leases() if arguments.all else self._own_views()
        if not views:
            self._stage.say("no node is rented; the first %%gpu cell rents one, `%gpu offers` shows which")
            return
        now_ms = self._notebook.clock.now_ms()
        rows = tuple(_status_row(view, now_ms) for view in views)
        headers = ("node", "GPU", "state", "per hour", "cost so far", "idle", "at most", "left", "link")
        self._stage.table(Table(headers=headers, rows=rows, right=frozenset({3, 4, 5, 6})))
        for view in views:
            for notice in view.notices:
                self._stage.say(f"{one_line(view.lease.name)}: {one_line(notice, 500)}")
        for orphan in self._notebook.client.orphans():
            if orphan.state != "gone":
                self._stage.say(f"orphan at {orphan.marketplace}: {one_line(orphan.rental_id)} ({orphan.state})")

    def _release(self, arguments: argparse.Namespace) -> None:
        if arguments.node:
            views = [self._notebook.named(arguments.node)]
        else:
            views = self._notebook.leases()
            if len(views) > 1 and not arguments.all:
                known = ", ".join(view.lease.name for view in views)
                raise BadRequest(f"this notebook has {len(views)} nodes ({known}): name one, or use --all")
        if not views:
            self._stage.say("this notebook has no node to give back")
        views = [self._notebook.client.release(view.lease.lease_id) for view in views]
        for view in views:
            # Before waiting: after a Ctrl-C the next cell need not be told that this node is gone.
            self._notebook.forget(view.lease.lease_id)
        try:
            for view in views:
                self._follow_release(view)
        except KeyboardInterrupt:
            raise renting.Cancelled("stopped waiting; the release goes on, `%gpu status` shows it") from None

    def _follow_release(self, view: LeaseView) -> None:
        clock = self._notebook.clock
        deadline_s = clock.monotonic_s() + RELEASE_PATIENCE_S
        while view.lease.state not in ENDED_STATES and clock.monotonic_s() < deadline_s:
            view = self._notebook.client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=2.0)
        name = one_line(view.lease.name)
        if view.lease.state in ENDED_STATES:
            self._stage.say(f"{name} is given back; it cost {format_usd(view.cost_nusd)} in all")
        else:
            self._stage.say(
                f"{name}: the marketplace has not confirmed its end yet and it may still bill; it is asked again "
                "until it does, `%gpu status` shows it"
            )

    def _cost(self, arguments: argparse.Namespace) -> None:
        from jupyter_gpumarket.notebook.frames import charges_frame, cost_summary

        charges = self._notebook.client.costs().charges
        own = self._notebook.owner()
        if not arguments.all:
            views = self._notebook.client.leases(all=True, nodes=False)
            mine = {view.lease.lease_id for view in views if self._notebook.was_mine(view.lease, own)}
            charges = [
                charge
                for charge in charges
                if charge.lease_id in mine or (own.notebook and charge.owner.notebook == own.notebook)
            ]
        if not charges:
            self._stage.say("nothing was spent here so far")
            return
        self._stage.table(cost_summary(charges_frame(charges)))

    def _attach(self, arguments: argparse.Namespace) -> None:
        run, lease_view = self._find_run(arguments.run)
        if isinstance(run, MapView):
            self._notebook.use(lease_view.lease.lease_id)
            self._runner.attach_map(run.map_id, lease_view.lease)
            return
        cluster = self._notebook.cluster(lease_view.lease.lease_id)
        trusted = self._runner.is_trusted(lease_view.lease)
        self._notebook.use(lease_view.lease.lease_id)
        self._runner.finish([Followed(run, cluster, place_of(lease_view.lease), trusted=trusted)])

    def _find_run(self, wanted: str | None) -> tuple[str | MapView, LeaseView]:
        """The run to attach to: the named one, else one that is running, else the last one.

        Raises:
            BadRequest: there is none.
        """
        views = self._own_views() or self._notebook.client.leases()
        found = [
            (run.status not in ENDED_RUNS, run.started_ms or 0, run.run_id, view)
            for view in views
            for run in self._notebook.cluster(view.lease.lease_id).runs()
            if run.lease_id == view.lease.lease_id and run.run_id.startswith(wanted or "") and not run.map_id
        ]
        maps = [
            (one.state is MapState.RUNNING, one.began_ms, one, view)
            for view in views
            for one in self._notebook.cluster(view.lease.lease_id).maps()
            if one.map_id.startswith(wanted or "")
        ]
        if maps and (latest := max(maps, key=lambda one: one[:2]))[:2] > max((one[:2] for one in found), default=()):
            return latest[2], latest[3]
        if not found:
            raise BadRequest(
                f"no run {wanted!r} is known" if wanted else "no cell has run on this notebook's nodes yet"
            )
        _, _, run_id, view = max(found, key=lambda one: one[:2])
        return run_id, view

    def _logs(self, arguments: argparse.Namespace) -> None:
        view = self._notebook.known(arguments.node)
        for line in self._notebook.client.story(view.lease.lease_id):
            reason = one_line(str(line.body.get("reason", "")), 300)
            self._stage.say(f"{iso_utc(line.at_ms)}  {line.kind}  {reason}".rstrip())
        if view.lease.state in ENDED_STATES:
            return  # the process that had the node's own log has ended with it
        log = self._notebook.cluster(view.lease.lease_id).node_log(view.lease.lease_id)
        if log.strip():
            self._stage.say(f"— the node's own log —\n{clean_text(log)}")

    def _extend(self, arguments: argparse.Namespace) -> None:
        if not arguments.hours and not arguments.budget:
            raise BadRequest("%gpu extend: tell --hours or --budget, the new totals")
        view = self._one(arguments.node)
        extended = self._notebook.client.extend(
            view.lease.lease_id,
            max_s=round(hours_from(arguments.hours) * 3600) if arguments.hours else None,
            budget_nusd=money("--budget", arguments.budget) if arguments.budget else None,
        )
        deadline = iso_utc(extended.lease.deadline_ms) if extended.lease.deadline_ms else "not set yet"
        worst = format_usd(extended.worst_case_nusd)
        self._stage.say(f"{one_line(extended.lease.name)} ends by {deadline} and costs at most {worst}")

    def _budget(self, arguments: argparse.Namespace) -> None:
        client = self._notebook.client
        if arguments.limit:
            limit = None if arguments.limit == "none" else money("%gpu budget", arguments.limit)
            own = self._notebook.owner()
            scope = Scope(arguments.scope)
            key = arguments.key or {"notebook": own.notebook, "user": own.user, "project": own.project}[scope.value]
            if not key:
                raise BadRequest(f"%gpu budget: this {scope.value} has no name here; tell --key")
            client.set_budget(scope, key, limit)
        views = client.budgets()
        if not views:
            self._stage.say("no budgets are set, besides each lease's own (--budget)")
            return
        rows = tuple(
            (
                view.budget.scope.value,
                one_line(view.budget.key, 80),
                format_usd(view.budget.limit_nusd),
                format_usd(view.spent_nusd),
                format_usd(view.reserved_nusd),
            )
            for view in views
        )
        headers = ("scope", "for", "limit", "spent", "reserved")
        self._stage.table(Table(headers=headers, rows=rows, right=frozenset({2, 3, 4})))

    def _config(self, _arguments: argparse.Namespace) -> None:
        settings = self._notebook.settings
        rows = tuple(
            (name, str(getattr(settings, name))) for name in settings.__struct_fields__ if name != "marketplaces"
        )
        rows += tuple(
            (f"marketplaces.{name}", ", ".join(sorted(options))) for name, options in settings.marketplaces.items()
        )
        where = config.folders().settings_file
        self._stage.table(Table(title=f"{where} and JUPYTER_GPUMARKET_*", headers=("setting", "value"), rows=rows))

    def _doctor(self, _arguments: argparse.Namespace) -> None:
        rows = tuple(examine(self._notebook))
        self._stage.table(Table(headers=("what", "state", "detail"), rows=rows))

    def _help(self, arguments: argparse.Namespace) -> None:
        if arguments.command:
            if arguments.command not in self.table:
                raise BadRequest(f"%gpu help {arguments.command}: no such command; there are {', '.join(self.table)}")
            self._stage.say(self.table[arguments.command].parser.format_help())
            return
        rows = tuple((f"%gpu {name}", command.parser.description or "") for name, command in self.table.items())
        rows = (("%%gpu", "Run a cell on a rented GPU; `%%gpu?` tells its arguments."), *rows)
        self._stage.table(Table(headers=("command", "what it does"), rows=rows))

    def _own_views(self) -> list[LeaseView]:
        own = self._notebook.leases()
        ending = [view for view in self._notebook.client.leases() if view.lease.may_bill]
        owner = self._notebook.owner()
        ids = {view.lease.lease_id for view in own}
        leaving = [
            view
            for view in ending
            if view.lease.lease_id not in ids and owner.notebook and view.lease.request.owner.notebook == owner.notebook
        ]
        return own + leaving

    def _one(self, name: str | None) -> LeaseView:
        if name:
            return self._notebook.named(name)
        views = self._notebook.leases()
        if not views:
            raise BadRequest("this notebook has no node; `%gpu status --all` shows those of others")
        return views[0]


def _status_row(view: LeaseView, now_ms: int) -> tuple[str, ...]:
    lease = view.lease
    left = in_words((lease.deadline_ms - now_ms) / 1000) if lease.deadline_ms and lease.deadline_ms > now_ms else "-"
    running = view.node.running if view.node else ()
    state = f"{RunStatus.RUNNING.value} {', '.join(running)}" if running else lease.state.value
    return (
        one_line(lease.name, 60),
        gpu_words(lease),
        state,
        format_usd(lease.price_nusd_hour),
        format_usd(view.cost_nusd, places=6),
        format_usd(view.idle_nusd, places=6),
        format_usd(view.worst_case_nusd, places=2),
        left,
        view.node.link if view.node else "-",
    )
